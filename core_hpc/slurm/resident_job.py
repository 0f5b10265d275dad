"""What runs inside a job of the driver `resident`: one run, on the warm workers of one node.

In: an `ElementSpec` with the unpublished tasks of a run. Out: published tasks, and a status file
(`JobStatus`) with the tasks in progress, the failures, and how the job ended. It is the driver
`local` for one run, until these tasks are published or SLURM wants the job to end. Then no further
task begins, updates save their positions, and tasks that do not end in time are given up. The
scheduler handles attempts, damaged publications and the order of tasks, as on one machine. The
controller outside the job submits the successor (`slurm/resident.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from dataclasses import replace

from core_hpc.common.environment import number_in
from core_hpc.common.errors import CoreHpcError
from core_hpc.local.executor import LocalExecutor, LocalLimits
from core_hpc.local.memory import needs_of
from core_hpc.runs.events import Done, Event, Failed, Progressed, Started
from core_hpc.runs.folder import Run
from core_hpc.runs.job_status import JobEnd, RunningTask
from core_hpc.runs.outcome import Outcome, OutcomeKind
from core_hpc.schedule.progress import RunProgress, inspect_run
from core_hpc.schedule.scheduler import Scheduler
from core_hpc.slurm.element import (
    ElementError,
    ElementSpec,
    StatusFile,
    Stop,
    end_of_error,
    patient,
    run_of,
    steps_saved,
)
from core_hpc.store import shards
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import EVALUATE


class Reporter:
    """Listener of the scheduler that keeps the job's status file and log."""

    def __init__(self, status: StatusFile) -> None:
        self._status = status
        self._running: dict[str, RunningTask] = {}
        self._failures: list[Outcome] = []
        self.died: Outcome | None = None
        """The failure of a task whose worker died. Memory or the node may be the cause, and only
        the controller outside the job can change them."""

    @property
    def num_running(self) -> int:
        return len(self._running)

    def on_event(self, progress: RunProgress, event: Event) -> None:
        task, now, message = str(event.task.key), time.time(), ""
        if isinstance(event, Progressed):
            started = self._running[task].started if task in self._running else now
            self._running[task] = RunningTask(started, event.progress, now)
            self._status.note(running=dict(self._running))
            return
        if isinstance(event, Started):
            self._running[task] = RunningTask(now)
        else:
            self._running.pop(task, None)
        if isinstance(event, Failed):
            message = f" {event.outcome.message}"
            outcome = replace(event.outcome, task=task, time=now)
            if outcome.kind == OutcomeKind.DIED:
                self.died = outcome
            else:
                self._failures.append(outcome)
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {task}: {type(event).__name__.lower()}{message}", flush=True)
        if isinstance(event, Done):
            self._status.published(running=dict(self._running), failures=tuple(self._failures))
        else:
            self._status.note(now=True, running=dict(self._running), failures=tuple(self._failures))

    def on_finished(self, progress: RunProgress) -> None:
        """The job ends, and reports its end itself."""


def run_resident(spec: ElementSpec) -> None:
    """Work on a run as long as the job's time allows."""
    stop, status = Stop(spec), StatusFile(spec, rank=0)
    # Workers begin at any time of this job: none of them has waited since the job began (statistics
    # of first tasks).
    os.environ.pop("CORE_HPC_JOB_START", None)
    status.write()
    try:
        end = _drive(patient(lambda: run_of(spec), stop), spec.tasks, stop, status)
    except (CoreHpcError, OSError) as e:
        end = end_of_error(e)
    status.end(end)
    if end.is_failure:
        raise ElementError(f"{end.message}\n{end.traceback}")


def _tasks(run: Run, own: Collection[TaskKey]) -> tuple[TaskKey, ...]:
    """The job's own tasks, and those that it makes again if their publications are damaged.

    The run may have been continued with more iterations or evaluations while the job waited in the
    queue. They belong to another job.
    """
    last, published = max((key.iteration for key in own), default=0), set(shards.published_keys(run.root))

    def counts(key: TaskKey) -> bool:
        return key in own or key in published or (key.iteration <= last and key.phase != EVALUATE)

    return tuple(dict.fromkeys([*filter(counts, run.graph().tasks()), *own]))


def _drive(run: Run, own: Sequence[str], stop: Stop, status: StatusFile) -> JobEnd:
    """Drive the run; returns how the job ends once no task is in progress any more."""
    tasks = patient(lambda: _tasks(run, dict.fromkeys(map(TaskKey.parse, own))), stop)
    progress, messages = patient(lambda: inspect_run(run), stop)
    progress = RunProgress(run, progress.graph, progress.published, tasks=tasks)
    for message in messages:
        print(message, flush=True)
    open_tasks, cluster = set(progress.open_tasks), run.config.cluster
    saved = patient(lambda: steps_saved(run, open_tasks), stop)
    cores = number_in("SLURM_CPUS_PER_TASK") or None
    limits = LocalLimits.of(cluster, len(run.config.team), cores=cores, needs=needs_of([run]))
    print(limits.description, flush=True)
    executor = LocalExecutor(cluster, limits, ignore_signals=True)
    reporter = Reporter(status)

    def should_stop() -> bool:
        return stop.reason is not None or reporter.died is not None

    def deadline() -> float:
        if stop.reason is not None:
            status.stopping(stop.reason)
        return stop.deadline

    scheduler = Scheduler(
        [progress], executor, [reporter], max_attempts=cluster.max_attempts, stop_requested=should_stop
    )
    try:
        if not scheduler.run():
            for event in executor.stop(deadline):
                reporter.on_event(progress, event)
    finally:
        executor.close()
    if reporter.died is not None:
        return JobEnd.of_failure(reporter.died)
    if progress.stopped is not None:
        return JobEnd(OutcomeKind.GAVE_UP, progress.stopped)
    if stop.reason is None or progress.finished:
        return JobEnd(OutcomeKind.DONE)
    message = f"{reporter.num_running} running task(s) were given up" if reporter.num_running else "between two tasks"
    gained = status.num_published > 0 or steps_saved(run, open_tasks) > saved
    return JobEnd(OutcomeKind.STOPPED, message, stop.reason, gained)
