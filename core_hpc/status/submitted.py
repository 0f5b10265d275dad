"""What the submissions of a run show: which tasks run or wait, and which attempts failed.

In: the records of submissions, the queue of SLURM, and the status files of jobs. Out: `Submitted`.
Whether a task is done is not decided here; that depends on its published files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from core_hpc.runs.folder import Run
from core_hpc.runs.job_status import JobStatus, RunningTask
from core_hpc.schedule.progress import RUNNING, WAITING
from core_hpc.slurm.commands import QueueEntry
from core_hpc.slurm.records import OPEN, Submission, SubmissionFolder
from core_hpc.status.collect import Queue, Records, read_or_none
from core_hpc.status.model import Failure
from core_hpc.store.paths import TaskKey


@dataclass
class Submitted:
    """What the submissions of a run show: tasks that run or wait, what they wait for, and failed attempts."""

    running: dict[TaskKey, RunningTask] = field(default_factory=dict)
    waiting: set[TaskKey] = field(default_factory=set)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)


def read_submitted(run: Run, records: Records, queue: Queue, start_id: str, since: float) -> Submitted:
    """Read what the submissions of a run show.

    Args:
        run: the run.
        records: its submissions and their states.
        queue: the queue of SLURM.
        start_id: the last start of the sweep, whose failed attempts count.
        since: attempts that failed later count too, in seconds since 1970.
    """
    out = Submitted()
    for state, submission in records:
        out.failures += _recorded_failures(run, submission, start_id, since)
        for index in submission.unresolved if state == OPEN else ():
            _add_element(out, run, submission, index, queue)
    return out


def _recorded_failures(run: Run, submission: Submission, start_id: str, since: float) -> list[Failure]:
    """Failed attempts that a controller of the last start has recorded."""
    found = []
    for index, outcome in submission.outcomes.items():
        if outcome.kind.is_failure and (submission.start_id == start_id or outcome.time >= since):
            failure = Failure(
                run_id=run.run_id,
                task=outcome.task or submission.elements[index][0],
                kind=outcome.kind.value,
                message=outcome.message,
                node=outcome.node,
                counted=outcome.counted,
                log=outcome.log,
                time=outcome.time or submission.submitted,
            )
            found.append(failure)
    return found


def _add_element(out: Submitted, run: Run, submission: Submission, index: int, queue: Queue) -> None:
    """Add what an array element without a recorded outcome does."""
    folder, keys, entry = SubmissionFolder(run.paths.slurm), submission.keys(index), queue.entry(submission, index)
    is_pending = entry is not None and entry.state == "PENDING"
    status = None if is_pending else read_or_none(folder.status_file(submission, index), JobStatus.from_file)
    if status is not None:
        out.failures += _failures_inside(run, status)
    place = _place(submission, entry, status, queue_known=queue.known and not submission.is_foreign)
    if place == RUNNING:
        out.running |= _running(submission, keys, status or JobStatus())
    elif place == WAITING:
        out.waiting |= set(keys)
        out.reasons.update([entry.reason] if entry is not None else [])
    elif status is not None and status.outcome is not None and status.outcome.is_failure:
        failure = Failure(
            run_id=run.run_id,
            task=status.outcome.task or str(keys[-1]),
            kind=status.outcome.kind.value,
            message=status.outcome.message,
            node=status.node,
            counted=None,
            log=str(folder.log(submission, index)),
            time=(status.progress[1].time if status.progress else 0.0) or status.started,
        )
        out.failures.append(failure)


def _failures_inside(run: Run, status: JobStatus) -> list[Failure]:
    """Failed attempts that a job of the driver `resident` has repeated itself."""
    return [
        Failure(
            run_id=run.run_id,
            task=outcome.task,
            kind=outcome.kind.value,
            message=outcome.message,
            node=status.node,
            counted=True,
            log=outcome.log,
            time=outcome.time,
        )
        for outcome in status.failures
    ]


def _place(
    submission: Submission, entry: QueueEntry | None, status: JobStatus | None, *, queue_known: bool
) -> str | None:
    """RUNNING, WAITING, or None for an element that has ended. Without the queue, its job's status file decides."""
    if entry is not None:
        return WAITING if entry.state == "PENDING" else RUNNING
    if queue_known:
        return WAITING if submission.job is None else None
    if status is None:
        return WAITING
    return RUNNING if status.outcome is None else None


def _running(submission: Submission, keys: Sequence[TaskKey], status: JobStatus) -> dict[TaskKey, RunningTask]:
    """Tasks of a running element. A job of the driver `resident` lists its tasks in progress itself."""
    if submission.group == "resident":
        return {TaskKey.parse(task): at for task, at in status.running.items()}
    other = RunningTask(status.started)
    task, at = status.progress or ("", other)
    own = replace(at, started=at.started or status.started)  # earlier versions did not write the start of a task
    return {key: own if str(key) == task else other for key in keys}
