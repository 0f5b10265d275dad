"""The controller of a sweep: takes its claim, opens its runs, drives them with a local pool or with SLURM arrays.

In: a sweep and what preparation found out. Out: the progress of its runs at the end. There is one controller a sweep;
any of them goes on from what is published and from the records of what was submitted. detach.py runs it in a job.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from core_hpc.controller.counts_cache import CountsCache
from core_hpc.controller.heartbeat import Heartbeat
from core_hpc.controller.prepare import Prepared, Start
from core_hpc.local.executor import LocalExecutor, LocalLimits
from core_hpc.phases.checkpoint import remove_checkpoints
from core_hpc.runs import folder as runfolders
from core_hpc.runs.sweep import RunPlan, Sweep
from core_hpc.schedule.base import Executor
from core_hpc.schedule.progress import RunProgress, inspect_run
from core_hpc.schedule.scheduler import Scheduler, cpu_seconds
from core_hpc.slurm.commands import Slurm
from core_hpc.slurm.records import OPEN, SubmissionFolder
from core_hpc.store import manifests
from core_hpc.store.claims import claim
from core_hpc.store.paths import SweepPaths
from core_hpc.store.schema import UPDATE


def control(sweep: Sweep, start: Start, prepared: Prepared, console: Console) -> tuple[list[RunProgress], bool]:
    """Drive a sweep to its end; returns its runs, and whether it came to its end (False: somebody asked to stop)."""
    cluster = sweep.runs[0].config.cluster
    paths = SweepPaths(sweep.folder)
    slurm = Slurm() if cluster.uses_slurm else None
    with claim(paths.claim, has_ended=slurm.has_ended if slurm is not None else None):
        if start.by_user:
            paths.stop_request.unlink(missing_ok=True)
        progress = open_runs(sweep, prepared, console, verify=start.verify)
        finished = True
        if any(p.open for p in progress):
            notify: Callable[[str], None] = lambda words: console.print(
                f"[yellow]{escape(words)}[/yellow]", soft_wrap=True
            )
            if slurm is not None:
                from core_hpc.slurm.arrays import ArraysExecutor
                from core_hpc.slurm.resident import ResidentExecutor

                kind, how = (
                    (ArraysExecutor, "SLURM arrays")
                    if cluster.driver == "arrays"
                    else (ResidentExecutor, "one SLURM job a run")
                )
                executor: Executor = kind(
                    cluster, slurm, [p.run for p in progress], start_id=start.start_id, notify=notify
                )
            else:
                limits = LocalLimits.of(cluster, sweep.largest_team)
                executor = LocalExecutor(cluster, limits)
                how = f"{limits.num_running} task(s) at a time, {limits.threads} thread(s) each, {len(limits.gpus) or 'no'} GPU(s)"
            finished = _drive(sweep, start, progress, executor, how, console)
        else:
            console.print(
                f"everything is done: {len(progress)} run(s) of sweep {sweep.name} are finished; nothing was changed."
            )
        for p in progress:
            if p.finished:
                _clean(p)
    return progress, finished


def open_runs(sweep: Sweep, prepared: Prepared, console: Console, *, verify: bool) -> list[RunProgress]:
    """Create or open every run's folder; damaged publications are set aside. For the holder of the claim."""
    source = SweepPaths(sweep.folder).source
    if not source.exists():
        source.write_text(sweep.text, encoding="utf-8")
    opened = []
    for plan in sweep.runs:
        run = (
            runfolders.start(plan, sweep.folder)
            if runfolders.exists(plan, sweep.folder)
            else _create(plan, sweep.folder, prepared)
        )
        progress, messages = inspect_run(run, checksum=verify)
        for message in messages:
            console.print(f"[yellow]damaged:[/yellow] {escape(message)}", soft_wrap=True)
        _clean(progress)
        opened.append(progress)
    return opened


def _create(plan: RunPlan, folder: Path, prepared: Prepared) -> runfolders.Run:
    return runfolders.create(plan, folder, *prepared[plan.run_id])


def _clean(progress: RunProgress) -> None:
    """Remove what killed writers left, unless jobs of an earlier start may still write, and checkpoints without use."""
    run = progress.run
    submissions = SubmissionFolder(run.paths.slurm)
    if not submissions.names(OPEN):
        submissions.tidy()
        for key in progress.published:
            if key.phase == UPDATE:
                remove_checkpoints(run.paths, key)
        for folder in {run.paths.task_folder(key) for key in progress.graph.tasks()}:
            manifests.remove_leftovers(folder)


def _drive(
    sweep: Sweep, start: Start, progress: list[RunProgress], executor: Executor, how: str, console: Console
) -> bool:
    from core_hpc.common.terminal import duration
    from core_hpc.controller.display import Display
    from core_hpc.controller.tracking import Tracking

    cluster = sweep.runs[0].config.cluster
    done, total = sum(p.num_done for p in progress), sum(p.num_tasks for p in progress)
    console.print(
        f"sweep {sweep.name}: {len(progress)} run(s), {total} tasks"
        + (f", {done} of them published already" if done else "")
        + f"; {how}"
    )
    started = time.monotonic()
    tracking, keeping = Tracking(), CountsCache()
    paths = SweepPaths(sweep.folder)
    # The children of the local driver are its workers, which are no part of the controller.
    heartbeat = Heartbeat(
        paths.controller, start, progress, time.process_time if cluster.driver == "local" else cpu_seconds
    )

    def stop_requested() -> bool:
        heartbeat.beat()  # asked in every turn of the loop
        return paths.stop_request.exists()

    try:
        with Display(console, sweep.name, progress, refreshes_per_s=4 if cluster.driver == "local" else 0.5) as display:
            scheduler = Scheduler(
                progress,
                executor,
                [display, tracking, keeping],
                max_attempts=cluster.max_attempts,
                stop_requested=stop_requested,
            )
            finished = scheduler.run()
    finally:
        heartbeat.beat(last=True)
        executor.close()
        tracking.close(progress)
        keeping.close(progress)
    seconds, cpu = time.monotonic() - started, heartbeat.cpu_s
    console.print(
        f"this start took {duration(seconds)}; the controller used {cpu:.0f} CPU-seconds ({100 * cpu / seconds:.1f} % of a core)"
    )
    return finished
