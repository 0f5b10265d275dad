"""What can be seen of submitted elements: published files, SLURM's queue and books, status files.

In: open submissions. Out: sightings since the last look. What is published decides; SLURM's words and the status files
only explain why something is not, and from silence nothing is concluded. What follows from a sighting is executor.py's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from core_hpc.common.errors import StoreError
from core_hpc.local.process import log_tail
from core_hpc.runs.folder import Run
from core_hpc.schedule.base import TaskRef
from core_hpc.slurm.commands import FINAL, AccountingEntry, JobId, QueueEntry, Slurm, SlurmUnavailableError
from core_hpc.slurm.outcomes import CANCELLED, INTERRUPTED, Outcome, explain
from core_hpc.slurm.records import Submission, SubmissionFolder
from core_hpc.store import manifests
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import EVALUATE

UNSURE_WAIT_S = 20.0
SETTLE_S = 8.0
"""How long an ended job may take to show its status file."""
STATUS_S, MAX_STATUS_READS = 10.0, 30
"""The status of a running element is read so often at most, and of so many elements in one look: the display shows no more."""
NEVER_REASONS = {
    "DependencyNeverSatisfied": ("waits for a job that failed", False),
    "launch_failed_requeued_held": ("could not be launched, and SLURM holds it", False),
    "JobHoldMaxRequeue": ("was put back too often, and SLURM holds it", False),
    "PartitionTimeLimit": ("asks for more time than its partition allows: lower time_min in the cluster profile", True),
    "PartitionNodeLimit": ("asks for more nodes than its partition allows: mend the cluster profile", True),
    "BadConstraints": ("asks for what no node has: mend the cluster profile", True),
    "InvalidAccount": ("names an account that SLURM does not know: mend the cluster profile", True),
    "InvalidQOS": ("names a QOS that SLURM does not know: mend the cluster profile", True),
}
"""Reasons for which a waiting job will never begin: what it means, and whether trying again is of no use."""


Awaited = tuple[TaskRef, Path, str]
"""A task that is not published, with the folder and the name of its manifest."""


@dataclass(eq=False)
class OpenSubmission:
    """A submission with elements that are not resolved, and what was seen of them so far."""

    run: Run
    folder: SubmissionFolder
    submission: Submission
    running: set[int] = field(default_factory=set)
    gone_since: dict[int, float] = field(default_factory=dict)
    status_read: dict[int, float] = field(default_factory=dict)
    _left: list[dict[TaskKey, Awaited]] = field(init=False)
    """Of each element, what was not seen published, in order; kept, since every look needs it."""

    def __post_init__(self) -> None:
        self._left = [
            {key: self._awaited(key) for key in self.submission.keys(i)} for i in range(len(self.submission.elements))
        ]

    def _awaited(self, key: TaskKey) -> Awaited:
        path = self.run.paths.task_manifest(key)
        return TaskRef(self.run.run_id, key), path.parent, path.name

    def tasks_left(self, index: int) -> list[TaskRef]:
        """Tasks of an element that were not seen published."""
        return [task for task, _, _ in self._left[index].values()]

    def is_left(self, index: int, key: TaskKey) -> bool:
        return key in self._left[index]

    def is_complete(self, index: int) -> bool:
        return not self._left[index]

    def seen(self, index: int, key: TaskKey) -> None:
        """A task is published."""
        del self._left[index][key]

    def withdrawn(self, index: int, key: TaskKey) -> None:
        """A task that was published must be made again."""
        self._left[index][key] = self._awaited(key)

    def awaited(self, index: int) -> Collection[Awaited]:
        """Tasks left that may be published before the next look: the jobs of a whole run leave out its later iterations."""
        left = self._left[index]
        if self.submission.group != "resident":
            return left.values()
        last = 1 + min(
            (key.iteration for key in left if key.phase != EVALUATE),
            default=max((key.iteration for key in left), default=0),
        )
        return [awaited for key, awaited in left.items() if key.iteration <= last]  # as state.Graph.ready

    def status_files(self, index: int) -> list[dict[str, Any]]:
        """What an element's ranks wrote, rank 0 first."""
        path = self.folder.status_file(self.submission, index)
        files = [path]
        if self.submission.group == "update":  # elsewhere there is rank 0 alone: no need to list a folder of a thousand
            files += sorted(path.parent.glob(f"{path.stem}.rank*.json"), key=lambda p: (len(p.name), p.name))
        found = []
        for file in files:
            with contextlib.suppress(StoreError):
                found.append(manifests.read_json(file))
        return found

    def log(self, index: int) -> Path:
        return self.folder.log(self.submission, index)


Kind = Literal["published", "complete", "started", "waiting", "status", "ended"]


@dataclass(frozen=True)
class Sighting:
    """Something new about an element.

    `key`: the task that was published. `status`: what the element wrote of itself. `outcome`: how it ended without being complete.
    """

    item: OpenSubmission
    index: int
    kind: Kind
    key: TaskKey | None = None
    status: dict[str, Any] | None = None
    outcome: Outcome | None = None


class Watch:
    """Looks at open submissions. `num_active` is how many jobs this user had in the queue at the last look."""

    def __init__(self, slurm: Slurm, *, lost_after_s: float, say: Callable[[str, str | None], None]) -> None:
        """`say(topic, words)` tells the user once; words None: the topic is over."""
        self.open: list[OpenSubmission] = []
        self.num_active = 0
        self._slurm = slurm
        self._lost_after_s = lost_after_s
        self._say = say
        self._num_status_reads = 0

    def look(self) -> list[Sighting]:
        """One look at published files, one at the queue, and at SLURM's books if the queue does not know a job."""
        queue = self._queue()
        self._num_status_reads = 0
        seen: list[Sighting] = []
        for item in list(self.open):
            if item.submission.job is None:
                seen += self._find(item, queue)
        visible = self._visible()
        gone: list[tuple[OpenSubmission, int, QueueEntry | None]] = []
        for item in self.open:
            for index in item.submission.unresolved:
                seen += self._published(item, index, visible)
                job = item.submission.job_id(index)
                if queue is not None and job is not None and not item.is_complete(index):
                    seen += self._queued(item, index, queue.get(job), gone)
        return seen + self._explained(gone)

    def count_jobs(self) -> None:
        """Only `num_active`: a controller that begins must know how much is in the queue already."""
        self._queue()

    def unavailable(self, error: SlurmUnavailableError) -> None:
        self._say("slurm", f"SLURM does not answer ({error}); waiting, published files are still seen")

    def _queue(self) -> dict[JobId, QueueEntry] | None:
        try:
            entries = self._slurm.queue()
        except SlurmUnavailableError as e:
            self.unavailable(e)
            return None
        self._say("slurm", None)
        self.num_active = sum(e.active for e in entries)
        return {e.id: e for e in entries}

    def _find(self, item: OpenSubmission, queue: dict[JobId, QueueEntry] | None) -> list[Sighting]:
        """A submission whose controller did not learn its job's id: look for the name."""
        if queue is None:
            return []
        submission, folder = item.submission, item.folder
        found = next((job.job for job, entry in queue.items() if entry.name == submission.name), None)
        if found is not None:
            if len(list(folder.folder(submission).glob(f"{found}*_submitted.pkl"))) == len(submission.elements):
                submission.job = found
                folder.write(submission)
                return []
            self._cancel([found])  # sbatch took it, but what its elements would read was never put in place
        elif time.time() - submission.submitted < UNSURE_WAIT_S:
            return []
        folder.discard(submission)
        self.open.remove(item)
        message = (
            "the controller was interrupted while it submitted this"
            if found is None
            else "was submitted incompletely and cancelled"
        )
        outcome = Outcome(INTERRUPTED, message, counted=False)
        return [Sighting(item, index, "ended", outcome=outcome) for index in submission.unresolved]

    def _visible(self) -> dict[Path, set[str]]:
        """Names in the folders that open tasks publish into."""
        folders = {folder for o in self.open for i in o.submission.unresolved for _, folder, _ in o.awaited(i)}
        return {folder: manifests.list_names(folder) for folder in folders}

    def _published(self, item: OpenSubmission, index: int, visible: dict[Path, set[str]]) -> list[Sighting]:
        seen = [task.key for task, folder, name in item.awaited(index) if name in visible.get(folder, ())]
        for key in seen:
            item.seen(index, key)
        sightings = [Sighting(item, index, "published", key) for key in seen]
        return [*sightings, Sighting(item, index, "complete")] if item.is_complete(index) else sightings

    def _queued(
        self,
        item: OpenSubmission,
        index: int,
        entry: QueueEntry | None,
        gone: list[tuple[OpenSubmission, int, QueueEntry | None]],
    ) -> list[Sighting]:
        """What the queue says of an element that is not complete; those that ended, or are not known, go to `gone`."""
        if entry is None or not entry.active:
            item.gone_since.setdefault(index, time.time())
            gone.append((item, index, entry))
            return []
        item.gone_since.pop(index, None)
        if entry.state == "PENDING":
            if entry.reason in NEVER_REASONS:
                self._cancel([entry.id])
                why, useless = NEVER_REASONS[entry.reason]
                message = f"job {entry.id} {why} ({entry.reason}); cancelled"
                return [Sighting(item, index, "ended", outcome=Outcome("final" if useless else CANCELLED, message))]
            if index in item.running:
                item.running.discard(index)
                return [Sighting(item, index, "waiting")]
        elif index not in item.running:
            item.running.add(index)
            return [Sighting(item, index, "started")]
        elif self._num_status_reads < MAX_STATUS_READS and time.time() - item.status_read.get(index, 0.0) > STATUS_S:
            self._num_status_reads += 1
            item.status_read[index] = time.time()
            with contextlib.suppress(StoreError):
                return [
                    Sighting(
                        item,
                        index,
                        "status",
                        status=manifests.read_json(item.folder.status_file(item.submission, index)),
                    )
                ]
        return []

    def _explained(self, gone: Sequence[tuple[OpenSubmission, int, QueueEntry | None]]) -> list[Sighting]:
        """Elements that ended, or are unknown to the queue, without being complete, as far as it can be told why."""
        books = self._books([item.submission for item, _, entry in gone if entry is None])
        seen = []
        for item, index, entry in gone:
            job = item.submission.job_id(index)
            assert job is not None
            known = entry if entry is not None else books.get(job)
            # The books lag behind the queue: what they call active is only unknown.
            state = known.state if known is not None and known.state in FINAL else None
            waited = time.time() - item.gone_since[index]
            outcome = explain(
                state,
                item.status_files(index),
                log_tail(item.log(index)),
                nodes=known.nodes if known is not None else "",
                settled=waited > SETTLE_S,
                lost=waited > self._lost_after_s,
                unseen=[str(task.key) for task in item.tasks_left(index)],
            )
            if outcome is not None:
                seen.append(Sighting(item, index, "ended", outcome=outcome))
        return seen

    def _books(self, unknown: Sequence[Submission]) -> dict[JobId, AccountingEntry]:
        jobs = {s.job for s in unknown if s.job is not None}
        return (self._slurm.accounting(jobs, since=min(s.submitted for s in unknown)) or {}) if jobs else {}

    def _cancel(self, jobs: Sequence[JobId | int]) -> None:
        """If SLURM does not hear it, the next look finds the same again, or the job ends by itself."""
        try:
            self._slurm.cancel(jobs)
        except SlurmUnavailableError as e:
            self.unavailable(e)
