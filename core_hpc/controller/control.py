"""The controller of a sweep: takes its claim, opens its runs, drives them with a local pool or with SLURM arrays.

In: a sweep and what preparation found out. Out: the progress of its runs at the end. There is one controller a sweep;
any of them goes on from what is published and from the records of what was submitted. detach.py runs it in a job.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from core_hpc.common.errors import CoreHpcError
from core_hpc.local.executor import Event, LocalExecutor, LocalLimits
from core_hpc.phases.checkpoint import remove_checkpoints
from core_hpc.problems.splits import Splits
from core_hpc.runs import folder as runfolders
from core_hpc.runs.folder import ModelFacts
from core_hpc.runs.sweep import RunPlan, Sweep
from core_hpc.schedule.scheduler import Executor, RunProgress, Scheduler, cpu_seconds, inspect_run
from core_hpc.slurm.commands import Slurm
from core_hpc.slurm.submit import OPEN, SubmissionFolder
from core_hpc.store import manifests
from core_hpc.store.claims import claim, own_job
from core_hpc.store.paths import SweepPaths
from core_hpc.store.schema import UPDATE

HEARTBEAT_S = 60.0

Prepared = dict[str, tuple[Splits, dict[str, ModelFacts]]]


@dataclass(frozen=True)
class Start:
    """One start by the user; `start_id` is handed on from a detached controller to its successor."""

    start_id: str
    by_user: bool = True
    verify: bool = False

    @classmethod
    def new(cls, *, verify: bool) -> Start:
        return cls(uuid.uuid4().hex[:8], verify=verify)


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
    from core_hpc.controller.display import Display, duration
    from core_hpc.controller.tracking import Tracking

    cluster = sweep.runs[0].config.cluster
    done, total = sum(p.num_done for p in progress), sum(p.num_tasks for p in progress)
    console.print(
        f"sweep {sweep.name}: {len(progress)} run(s), {total} tasks"
        + (f", {done} of them published already" if done else "")
        + f"; {how}"
    )
    started = time.monotonic()
    tracking, keeping = Tracking(), Keeping()
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


class Keeping:
    """Listener that has the counts of every finished iteration kept, for analysis (analysis/counts/kept.py)."""

    def on_event(self, progress: RunProgress, event: Event) -> None:
        if event.kind == "done":
            self._keep(progress, {event.task.key.iteration})

    def close(self, runs: Sequence[RunProgress]) -> None:
        """Make up for what a controller that was killed did not keep, or what a damaged shard has changed since."""
        from analysis.counts import kept

        for progress in runs:
            self._keep(progress, {key.iteration for key in progress.published} - kept.iterations(progress.run.root))

    def _keep(self, progress: RunProgress, iterations: set[int]) -> None:
        from analysis.counts.run import keep_counts

        for iteration in sorted(iterations):
            own = progress.graph.tasks_of(iteration)
            if any(
                key in progress.rest for key in reversed(own)
            ):  # mostly the last: after every task this is asked again
                continue
            # Analysis does without, and says what is wrong with the rows.
            with contextlib.suppress(CoreHpcError, OSError):
                keep_counts(progress.run.root, iteration)


class Heartbeat:
    """Says in a file that the controller lives, what CPU time it takes, and how its runs are. For core_hpc.status alone.

    host, pid, user, time (of writing), job, start_id, started, interval_s (between writings), cpu_s (since `started`), and
    runs: by id, the tries that failed and counted, and why it was stopped (or null).
    """

    def __init__(self, path: Path, start: Start, runs: Sequence[RunProgress], cpu: Callable[[], float]) -> None:
        self._path, self._runs, self._cpu, self._cpu_before = path, runs, cpu, cpu()
        self._fixed = {"job": own_job(), "start_id": start.start_id, "started": time.time(), "interval_s": HEARTBEAT_S}
        self._next = 0.0
        self.cpu_s = 0.0

    def beat(self, *, last: bool = False) -> None:
        """Write, if it is time to."""
        if time.monotonic() < self._next and not last:
            return
        self._next = time.monotonic() + HEARTBEAT_S
        self.cpu_s = self._cpu() - self._cpu_before
        runs = {p.run.run_id: {"failed": p.failures, "stopped": p.stopped} for p in self._runs}
        body = {**manifests.writer_identity(), **self._fixed, "cpu_s": round(self.cpu_s, 2), "runs": runs}
        with contextlib.suppress(OSError):  # a full disk must not end a controller for this
            manifests.write_json(self._path, body)
