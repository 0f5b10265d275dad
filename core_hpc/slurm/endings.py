"""How submissions end: records of ended elements, jobs of stopped runs, and temporary files.

In: elements that ended, and submissions of runs that stopped. Out: records, `scancel`, and removed
files. What fails here for the moment is done at a later look, or by the next start.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Mapping, Sequence

from core_hpc.runs.outcome import Outcome, OutcomeKind
from core_hpc.slurm.commands import JobId, QueueEntry, Slurm, SlurmUnavailableError
from core_hpc.slurm.packing import Packing
from core_hpc.slurm.watch import OpenSubmission, Watch

TIDY_AFTER_S = 600.0
"""How long after the end of a submission its jobs may still write their last status."""


class Endings:
    """Ends submissions and their elements. The watch no longer looks at a submission without open elements."""

    def __init__(self, slurm: Slurm, packing: Packing, watch: Watch) -> None:
        self._slurm = slurm
        self._packing = packing
        self._watch = watch
        self._changed: list[OpenSubmission] = []
        """Submissions whose records must be written."""
        self._closed: deque[tuple[float, OpenSubmission]] = deque()
        """Submissions that this process has closed, with the time, until their temporary files are removed."""
        self._unwanted: list[tuple[OpenSubmission, Outcome]] = []
        """Submissions of stopped runs with elements that may have to be cancelled, and the outcome of these."""

    def record(self, item: OpenSubmission, index: int, outcome: Outcome) -> None:
        """Note how an element ended. `settle` writes it."""
        item.folder.resolve(item.submission, index, outcome)
        # A complete element is known from its publications, so its record need not be written yet.
        if outcome.kind != OutcomeKind.DONE or item.submission.is_resolved:
            self._changed.append(item)

    def abandon(self, items: Sequence[OpenSubmission], outcome: Outcome) -> None:
        """Cancel the elements that are useless after the stop of their run, now or at a later look."""
        for item in items:
            self._watch.open.remove(item)
            if item.submission.job is not None:  # else SLURM may have taken it: the next start looks at its record
                self._unwanted.append((item, outcome))
        with contextlib.suppress(OSError):  # the next look writes the records
            self.settle()

    def settle(self) -> None:
        """Cancel what stopped runs left with SLURM, and write the changed records."""
        if self._unwanted:
            with contextlib.suppress(SlurmUnavailableError):
                queue = {entry.id: entry for entry in self._slurm.queue()}
                while self._unwanted:
                    self._end(*self._unwanted[-1], queue)
                    self._unwanted.pop()
        self._write_records()

    def tidy(self) -> None:
        """Remove temporary files of ended submissions. A long sweep would collect more than one per job."""
        while self._closed and time.monotonic() - self._closed[0][0] > TIDY_AFTER_S:
            _, item = self._closed.popleft()
            with contextlib.suppress(OSError):  # the next start removes them
                item.folder.tidy_one(item.submission.name)

    def _end(self, item: OpenSubmission, outcome: Outcome, queue: Mapping[JobId, QueueEntry]) -> None:
        submission = item.submission
        jobs = {index: submission.job_id(index) for index in submission.unresolved}
        # SLURM may have given an id again.
        found = {i: e for i, job in jobs.items() if job is not None and (e := queue.get(job)) is not None}
        active = {i: e for i, e in found.items() if e.name == submission.name and e.active}
        item.running = {i for i, e in active.items() if e.state != "PENDING"}
        useless = [index for index in jobs if self._packing.ends_with_its_run(item, index)]
        if cancelled := [active[index].id for index in useless if index in active]:
            self._slurm.cancel(cancelled)
        for index in useless:
            self.record(item, index, outcome)

    def _write_records(self) -> None:
        """Write every changed record once, since many elements of an array may end at once."""
        for item in dict.fromkeys(self._changed):
            if not item.submission.is_resolved:
                item.folder.write(item.submission)
            else:
                item.folder.close(item.submission)
                self._closed.append((time.monotonic(), item))
                if item in self._watch.open:  # not, if another record failed after this one was closed
                    self._watch.open.remove(item)
        self._changed = []
