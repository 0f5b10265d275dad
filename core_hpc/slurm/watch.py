"""What can be seen of submitted elements: published files, queue, accounting and status files.

In: open submissions. Out: sightings since the last look. Only a publication proves that a task is
done. The states of SLURM and the status files explain why a task is not published. If SLURM does
not answer, nothing is concluded. What follows from a sighting is decided in `slurm/executor.py`.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from pathlib import Path

from core_hpc.common.errors import StoreError
from core_hpc.local.process import log_tail
from core_hpc.runs.events import TaskRef
from core_hpc.runs.folder import Run
from core_hpc.runs.graph import last_in_reach
from core_hpc.runs.job_status import JobStatus
from core_hpc.runs.outcome import Outcome, OutcomeKind
from core_hpc.slurm.commands import FINAL, AccountingEntry, JobId, QueueEntry, Slurm, SlurmUnavailableError
from core_hpc.slurm.notices import Notices
from core_hpc.slurm.outcomes import explain
from core_hpc.slurm.parse import Place
from core_hpc.slurm.reasons import why_never
from core_hpc.slurm.records import CALLS, Submission, SubmissionFolder
from core_hpc.slurm.submit import find_job
from core_hpc.store import manifests
from core_hpc.store.paths import TaskKey

UNSURE_WAIT_S = 20.0
SETTLE_S, UNSEEN_S = 8.0, 65.0
"""How long an ended job may take to show the last version of its status file, and any version of it. A network
file system may hide a file for a minute after it was looked for before it existed."""
STATUS_S, MAX_STATUS_READS = 10.0, 30
"""Limits for reading status files: the interval per element, and their number in one look. If more are
due, those that were read longest ago come first."""


Awaited = tuple[TaskRef, Path, str]
"""A task that is not published, with the folder and the name of its manifest."""


@dataclass(eq=False)
class OpenSubmission:
    """A submission with unresolved elements, and what was seen of them so far."""

    run: Run
    folder: SubmissionFolder
    submission: Submission
    _: KW_ONLY
    missing_since: float | None = None
    """When SLURM first answered that it has no job of this name, on the clock of this process. The
    clock of the host that wrote the record may be hours ahead."""
    running: set[int] = field(default_factory=set)
    gone_since: dict[int, float] = field(default_factory=dict)
    status_read: dict[int, float] = field(default_factory=dict)
    _left: list[dict[TaskKey, Awaited]] = field(init=False)
    """Per element: what was not seen published, in order. Every look needs it."""

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
        """Tasks left that may be published before the next look.

        Those of later iterations of a resident job are not among them.
        """
        left = self._left[index]
        if self.submission.group != "resident":
            return left.values()
        last = last_in_reach(left, self.run.config.protocol.staleness)
        return [awaited for key, awaited in left.items() if key.iteration <= last]

    def status(self, index: int, rank: int = 0) -> JobStatus | None:
        """The status file of an element's rank; None if there is none yet or it is not readable."""
        path = self.folder.status_file(self.submission, index)
        with contextlib.suppress(StoreError):
            return manifests.read_record(
                path if rank == 0 else path.with_suffix(f".rank{rank}.json"), JobStatus.from_file
            )
        return None

    def statuses(self, index: int) -> list[JobStatus]:
        """The status files of all ranks of an element, rank 0 first.

        SLURM may start a job again, and then files of ranks that failed before are left.
        """
        ranks = [0]
        # Other groups have one rank, so their folders (a thousand files) need not be listed.
        if self.submission.group == "update":
            path = self.folder.status_file(self.submission, index)
            named = [re.fullmatch(rf"{path.stem}\.rank(\d+)\.json", p.name) for p in path.parent.glob("*.rank*.json")]
            ranks += sorted(int(match[1]) for match in named if match)
        found = [status for rank in ranks if (status := self.status(index, rank)) is not None]
        newest = max((status.restarts for status in found), default=0)
        return [status for status in found if status.restarts == newest]

    def log(self, index: int) -> Path:
        return self.folder.log(self.submission, index)


class SightingKind(StrEnum):
    """What is new about an element."""

    PUBLISHED = "published"
    """One of its tasks."""
    COMPLETE = "complete"
    """All of its tasks are published."""
    STARTED = "started"
    WAITING = "waiting"
    STATUS = "status"
    """It runs, and has written a status file."""
    ENDED = "ended"
    """It ended without being complete."""


@dataclass(frozen=True)
class Sighting:
    """Something new about an element.

    `PUBLISHED` has a `key`, `STATUS` has a `status`, `ENDED` has an `outcome`.
    """

    item: OpenSubmission
    index: int
    kind: SightingKind
    key: TaskKey | None = None
    status: JobStatus | None = None
    outcome: Outcome | None = None


class Watch:
    """Looks at open submissions.

    Attributes:
        open: submissions with unresolved elements.
        active: the jobs of this user in the queue, counted by place: those of the last look, and what
            was submitted since.
    """

    def __init__(self, slurm: Slurm, *, lost_after_s: float, notices: Notices) -> None:
        self.open: list[OpenSubmission] = []
        self.active: Counter[Place] = Counter()
        self._slurm = slurm
        self._lost_after_s = lost_after_s
        self._notices = notices
        self._seen: list[Sighting] = []
        """Sightings of a look that did not end. The next one returns them."""

    def look(self) -> list[Sighting]:
        """Look at published files and at the queue; at the accounting for jobs not in the queue."""
        queue, visible, seen = self._queue(), self._visible(), self._seen
        for item in list(self.open):
            if item.submission.job is None:
                seen += self._find(item, queue)
        running: list[tuple[OpenSubmission, int]] = []
        gone: list[tuple[OpenSubmission, int, QueueEntry | None]] = []
        for item in self.open:
            for index in item.submission.unresolved:
                seen += self._published(item, index, visible)
                job = item.submission.job_id(index)
                if queue is not None and job is not None and not item.is_complete(index):
                    seen += self._queued(item, index, queue.get(job), running, gone)
        seen += [*_reported(running), *self._explained(gone)]
        self._seen = []
        return seen

    def count_jobs(self) -> None:
        """Update `active` only: a new controller must know how much is in the queue already."""
        self._queue()

    def unavailable(self, error: SlurmUnavailableError) -> None:
        message = f"SLURM does not answer ({error}); waiting. Published files are still noticed"
        self._notices.show("slurm", message)

    def _queue(self) -> dict[JobId, QueueEntry] | None:
        try:
            entries = self._slurm.queue()
        except SlurmUnavailableError as e:
            self.unavailable(e)
            return None
        self._notices.clear("slurm", "SLURM answers again")
        self.active = Counter(e.place for e in entries if e.active)
        return {e.id: e for e in entries}

    def _find(self, item: OpenSubmission, queue: dict[JobId, QueueEntry] | None) -> list[Sighting]:
        """Find a submission without a known job in the queue, by its name."""
        if queue is None:
            return []
        submission, folder, topic = item.submission, item.folder, f"name {item.submission.name}"
        found = find_job(queue.values(), submission)
        if found is not None:
            self._notices.clear(topic, f"job {found} is {submission.name}")
            if (folder.folder(submission) / CALLS).exists():
                submission.job = found
                folder.write(submission)
                return []
            self._cancel([found])  # sbatch accepted it, but the files that it reads are missing
        else:
            now = time.monotonic()
            if item.missing_since is None:
                item.missing_since = now
                why = f"it is not known whether SLURM has taken {submission.name}; looking for a job of this name"
                self._notices.show(topic, f"{why} for {UNSURE_WAIT_S:g} s")
            if now - item.missing_since < UNSURE_WAIT_S:
                return []
            self._notices.clear(topic)
        folder.discard(submission)
        self.open.remove(item)
        incomplete = "was submitted incompletely and cancelled"
        message = incomplete if found is not None else "SLURM has no job of this submission; it is submitted again"
        outcome = Outcome(OutcomeKind.INTERRUPTED, message, counted=False)
        return [Sighting(item, index, SightingKind.ENDED, outcome=outcome) for index in submission.unresolved]

    def _visible(self) -> dict[Path, set[str]]:
        """Names in the folders that open tasks publish into."""
        folders = {folder for o in self.open for i in o.submission.unresolved for _, folder, _ in o.awaited(i)}
        return {folder: manifests.list_names(folder) for folder in folders}

    def _published(self, item: OpenSubmission, index: int, visible: dict[Path, set[str]]) -> list[Sighting]:
        seen = [task.key for task, folder, name in item.awaited(index) if name in visible.get(folder, ())]
        for key in seen:
            item.seen(index, key)
        sightings = [Sighting(item, index, SightingKind.PUBLISHED, key) for key in seen]
        return [*sightings, Sighting(item, index, SightingKind.COMPLETE)] if item.is_complete(index) else sightings

    def _queued(
        self,
        item: OpenSubmission,
        index: int,
        entry: QueueEntry | None,
        running: list[tuple[OpenSubmission, int]],
        gone: list[tuple[OpenSubmission, int, QueueEntry | None]],
    ) -> list[Sighting]:
        """Interpret the queue's entry of an incomplete element.

        Elements that still run are added to `running`, and those that have ended or are unknown to `gone`.
        """
        name = item.submission.name
        if entry is not None and entry.name != name:
            # Its user has renamed it, or SLURM has given the id again. Which of both is not known while it is there.
            if entry.active:
                message = f"job {entry.id.job} is in the queue with the name {entry.name!r} instead of {name}"
                self._notices.show(f"other {name}", f"{message}; it is left alone, and its tasks wait for its end")
                return []
            entry = None
        if entry is None or not entry.active:
            item.gone_since.setdefault(index, time.monotonic())
            gone.append((item, index, entry))
            return []
        item.gone_since.pop(index, None)
        if entry.state == "PENDING":
            if (never := why_never(entry)) is not None:
                self._cancel([entry.id])
                kind = OutcomeKind.FINAL if never.is_useless_again else OutcomeKind.CANCELLED
                outcome = Outcome(kind, f"job {entry.id} {never.why} ({entry.reason}); cancelled")
                return [Sighting(item, index, SightingKind.ENDED, outcome=outcome)]
            if index in item.running:
                item.running.discard(index)
                return [Sighting(item, index, SightingKind.WAITING)]
        elif index not in item.running:
            item.running.add(index)
            return [Sighting(item, index, SightingKind.STARTED)]
        else:
            running.append((item, index))
        return []

    def _explained(self, gone: Sequence[tuple[OpenSubmission, int, QueueEntry | None]]) -> list[Sighting]:
        """Outcomes of incomplete elements that SLURM does not run any more, once they are clear."""
        accounting = self._accounting([item.submission for item, _, entry in gone if entry is None])
        still: dict[int, set[JobId] | None] = {}
        for folder in {item.folder.folder(item.submission) for item, _, _ in gone}:
            manifests.list_names(folder)  # shows status files that a network file system has hidden
        seen = []
        for item, index, entry in gone:
            job = item.submission.job_id(index)
            assert job is not None
            known = entry if entry is not None else accounting.get(job)
            # The accounting lags behind the queue: a job that it calls active is only unknown.
            state = known.state if known is not None and known.state in FINAL else None
            waited = time.monotonic() - item.gone_since[index]
            lost = waited > self._lost_after_s
            if lost and state is None:
                if job.job not in still:
                    still[job.job] = self._active_elements(job.job)
                active = still[job.job]
                if active is None or job in active:
                    self._notices.show(f"gone {job}", f"squeue does not list job {job}, which may still run; waiting")
                    continue
                self._notices.clear(f"gone {job}")
            statuses = item.statuses(index)
            outcome = explain(
                state,
                statuses,
                log_tail(item.log(index)),
                nodes=known.nodes if known is not None else "",
                settled=waited > (SETTLE_S if statuses else UNSEEN_S),
                lost=lost,
                unseen=[str(task.key) for task in item.tasks_left(index)],
            )
            if outcome is not None:
                seen.append(Sighting(item, index, SightingKind.ENDED, outcome=outcome))
        return seen

    def _accounting(self, unknown: Sequence[Submission]) -> dict[JobId, AccountingEntry]:
        jobs = {s.job for s in unknown if s.job is not None}
        return (self._slurm.accounting(jobs, since=min(s.submitted for s in unknown)) or {}) if jobs else {}

    def _active_elements(self, job: int) -> set[JobId] | None:
        """The elements of a job that may still run; None: SLURM does not say."""
        try:
            return self._slurm.active_elements(job)
        except SlurmUnavailableError:
            return None

    def _cancel(self, jobs: Sequence[JobId | int]) -> None:
        """Cancel jobs. If SLURM does not answer, the next look finds the same, or the job ends."""
        try:
            self._slurm.cancel(jobs)
        except SlurmUnavailableError as e:
            self.unavailable(e)


def _reported(running: Sequence[tuple[OpenSubmission, int]]) -> list[Sighting]:
    """The status files of running elements that are due."""
    now = time.monotonic()
    read = [(item.status_read.get(index, -math.inf), item, index) for item, index in running]
    due = sorted((entry for entry in read if now - entry[0] > STATUS_S), key=lambda entry: entry[0])
    seen = []
    for _, item, index in due[:MAX_STATUS_READS]:
        item.status_read[index] = time.monotonic()
        if (status := item.status(index)) is not None:
            seen.append(Sighting(item, index, SightingKind.STATUS, status=status))
    return seen
