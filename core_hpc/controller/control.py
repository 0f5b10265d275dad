"""The controller of a sweep: takes its claim, opens its runs, and drives them to their end.

In: a sweep and what its preparation found. Out: the state of its runs at the end. A sweep has one
controller at a time. A later controller continues from what is published and from the records of
submissions. `controller/detach.py` runs the controller in a SLURM job.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape

from core_hpc.common import ownership
from core_hpc.common.errors import ClaimLostError
from core_hpc.common.terminal import duration
from core_hpc.controller.completion import complete_curves
from core_hpc.controller.counts_cache import CountsCache
from core_hpc.controller.display import Display
from core_hpc.controller.drivers import Driver, make_driver
from core_hpc.controller.heartbeat import Heartbeat
from core_hpc.controller.start import Prepared, Start
from core_hpc.controller.tracking import Tracking
from core_hpc.controller.wandb_copy import WandbCopy
from core_hpc.phases.checkpoint import remove_checkpoints, stored_steps
from core_hpc.runs import creation
from core_hpc.runs import folder as runfolders
from core_hpc.runs.graph import Graph
from core_hpc.runs.sweep import RunPlan, Sweep
from core_hpc.schedule.progress import RunProgress, inspect_run
from core_hpc.schedule.scheduler import Scheduler
from core_hpc.slurm.commands import Slurm
from core_hpc.slurm.records import OPEN, SubmissionFolder
from core_hpc.store import manifests, shards
from core_hpc.store.claims import Claim, claim
from core_hpc.store.leftovers import remove_leftovers
from core_hpc.store.paths import RunPaths, SweepPaths, TaskKey
from core_hpc.store.schema import TRAINING_PHASES, UPDATE


def control(
    sweep: Sweep, start: Start, prepared: Prepared, console: Console, *, in_loop: Callable[[], None] = lambda: None
) -> tuple[list[RunProgress], bool]:
    """Drive a sweep to its end.

    Args:
        prepared: what preparation found about the runs whose folder does not exist yet.
        in_loop: called in every pass of the scheduler's loop while this controller holds the claim.

    Returns:
        Its runs, and whether it reached its end (False: a user asked it to stop).

    Raises:
        ClaimError: another controller holds the sweep, or has taken it meanwhile (ClaimLostError).
    """
    slurm = Slurm() if sweep.cluster.uses_slurm else None
    paths = SweepPaths(sweep.folder)
    with claim(paths.claim, has_ended=slurm.has_ended if slurm is not None else None) as held:
        if start.by_user:
            paths.stop_request.unlink(missing_ok=True)
        SubmissionFolder(paths.slurm).tidy()  # of earlier detached controllers
        progress = open_runs(sweep, prepared, console, verify=start.verify)
        finished = True
        if any(p.open for p in progress):
            runs, notify = [p.run for p in progress], functools.partial(_notify, console)
            driver = make_driver(
                runs,
                slurm,
                start_id=start.start_id,
                notify=notify,
                require_claim=held.require,
                stop_requested=functools.partial(stop_requested, paths),
            )
            finished = _drive(sweep, start, progress, driver, console, held, in_loop)
        else:
            changed = complete_curves(progress, functools.partial(_notify, console))
            console.print(
                f"everything is done: {len(progress)} run(s) of sweep {sweep.name} are finished; {changed}.",
                soft_wrap=True,
            )
        for p in progress:
            if p.finished:
                _clean(p)
    return progress, finished


def stop_requested(paths: SweepPaths) -> bool:
    """Whether a user asked the sweep to stop.

    The folder is listed, because a network file system may hide a file that was looked for before it existed.
    """
    return paths.stop_request.name in manifests.list_names(paths.root)


def open_runs(sweep: Sweep, prepared: Prepared, console: Console, *, verify: bool) -> list[RunProgress]:
    """Create or open the folder of every run, and set damaged publications aside.

    Only the holder of the claim may call this.

    Args:
        prepared: what preparation found about the runs whose folder does not exist yet.
        verify: check the checksums of everything that is published.
    """
    paths = SweepPaths(sweep.folder)
    for folder in (paths.slurm, sweep.folder):
        if folder.is_dir():
            ownership.withdraw_from(folder)
    if not paths.source.exists():
        manifests.write_synced(paths.source, sweep.text.encode())
    opened = []
    for plan in sweep.runs:
        if runfolders.exists(plan, sweep.folder):
            begun = functools.partial(_begun_updates, plan, paths.run(plan.run_id))
            run = creation.start(plan, sweep.folder, begun=begun)
        else:
            run = creation.create(plan, sweep.folder, *prepared[plan.run_id])
        progress, messages = inspect_run(run, checksum=verify)
        for message in messages:
            _notify(console, message)
        _clean(progress)
        opened.append(progress)
    return opened


def _begun_updates(plan: RunPlan, paths: RunPaths) -> set[TaskKey]:
    """Updates that are not published and have a checkpoint, or that an open submission may have begun.

    An update begins when its inputs are published, also within a job that makes them itself.
    """
    graph, published = Graph.of(plan.config, num_evaluation_problems=0), set(shards.published_keys(paths.root))
    updates = [key for key in graph.tasks() if key.phase == UPDATE and key not in published]
    ready = [key for key in updates if published.issuperset(graph.inputs(key))]
    open_submissions = SubmissionFolder(paths.slurm).read(OPEN) if ready else []
    submitted = {key for s in open_submissions for index in s.unresolved for key in s.keys(index)}
    return {key for key in ready if key in submitted or stored_steps(paths, key)}


def _clean(progress: RunProgress) -> None:
    """Remove leftovers of killed writers and useless checkpoints, if no job may still write."""
    run = progress.run
    submissions = SubmissionFolder(run.paths.slurm)
    if not submissions.names(OPEN):
        submissions.tidy()
        for key in progress.published:
            if key.phase in TRAINING_PHASES:
                remove_checkpoints(run.paths, key)
        for folder in {run.paths.task_folder(key) for key in progress.graph.tasks()}:
            remove_leftovers(folder)


def _notify(console: Console, message: str) -> None:
    console.print(f"[yellow]{escape(message)}[/yellow]", soft_wrap=True)


def _drive(
    sweep: Sweep,
    start: Start,
    progress: list[RunProgress],
    driver: Driver,
    console: Console,
    held: Claim,
    in_loop: Callable[[], None],
) -> bool:
    """Run the scheduler with its listeners. Returns False when a user asked it to stop."""
    _print_work(sweep, progress, driver, console)
    paths, started = SweepPaths(sweep.folder), time.monotonic()
    tracking, counts, notify = Tracking(), CountsCache(), functools.partial(_notify, console)
    copy = WandbCopy(tracking, notify)
    heartbeat = Heartbeat(paths.controller, start, progress, driver.cpu_s)

    def should_stop() -> bool:
        heartbeat.beat()  # the scheduler calls this in every iteration of its loop
        if stop_requested(paths):
            return True
        in_loop()
        return False

    lost = False
    display = Display(console, sweep.name, progress, refreshes_per_s=driver.refreshes_per_s, warm=driver.warm)
    try:
        with display:
            finished = Scheduler(
                progress,
                driver.executor,
                [display, tracking, copy, counts],
                max_attempts=sweep.cluster.max_attempts,
                stop_requested=should_stop,
                require_claim=held.require,
                notify=notify,
            ).run()
    except ClaimLostError:
        lost = True  # these files belong to another controller now
        raise
    finally:
        if not lost:
            heartbeat.beat(last=True)
        driver.executor.close()
        if not lost:
            for listener in (tracking, copy, counts):
                try:
                    listener.close(progress)
                except Exception as e:  # noqa: BLE001 - results do not need these files
                    name, what = type(listener).__name__, f"{type(e).__name__}: {e}"
                    notify(f"{name} could not complete its files ({what}). Nothing published is lost")
    seconds, cpu_s = time.monotonic() - started, heartbeat.cpu_s
    share = f"{100 * cpu_s / seconds:.1f} % of a core"
    console.print(f"this start took {duration(seconds)}; the controller used {cpu_s:.0f} CPU-seconds ({share})")
    return finished


def _print_work(sweep: Sweep, progress: Sequence[RunProgress], driver: Driver, console: Console) -> None:
    done, total = sum(p.num_done for p in progress), sum(p.num_tasks for p in progress)
    published = f", {done} of them published already" if done else ""
    console.print(f"sweep {sweep.name}: {len(progress)} run(s), {total} tasks{published}; {driver.description}")
