"""The jobs of a sweep, or of some of its runs, that a user cancels, and their records.

In: a sweep folder. Out: its jobs have left the queue of SLURM, and the records of submissions name the cancelled
tasks. A job belongs to the sweep if both its id and its unique name are on record. The command is in
`core_hpc/cancel.py`, which also asks the controller to stop and holds the claim while records are closed.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from core_hpc.common.errors import CoreHpcError
from core_hpc.common.ownership import user_name
from core_hpc.controller.detached_records import SUBMITTING_S
from core_hpc.runs.folder import runs_in
from core_hpc.runs.outcome import Outcome, OutcomeKind
from core_hpc.slurm.commands import JobId, QueueEntry, Slurm, SlurmUnavailableError, certainly_ended
from core_hpc.slurm.records import OPEN, Submission, SubmissionFolder, sweep_of
from core_hpc.store.manifests import is_file
from core_hpc.store.paths import RunPaths, SweepPaths

PROG = "python -m core_hpc.cancel"
"""The command, for messages."""
WAIT_S = 60.0
POLL_S = 1.0


class Cancellation:
    """Cancels the jobs of open submissions, each once.

    Args:
        run_ids: the runs whose jobs are cancelled. None: all jobs of the sweep, controllers included.
    """

    def __init__(self, sweep: Path, run_ids: Sequence[str] | None, slurm: Slurm, console: Console) -> None:
        self._sweep = sweep
        self._run_ids = run_ids
        self._slurm = slurm
        self._console = console
        self._cancelled: dict[str, set[JobId]] = {}
        """Name of a submission -> its jobs and array elements that were in the queue when they were cancelled."""
        self._absent: set[str] = set()
        """Names of submissions whose jobs are not in the queue, confirmed by a second question."""
        self._reported: set[Path] = set()

    def report(self, message: str) -> None:
        self._console.print(message, markup=False, soft_wrap=True)

    def num_cancelled(self) -> int:
        return sum(len(ids) for ids in self._cancelled.values())

    def _records(self) -> list[tuple[SubmissionFolder, Submission]]:
        """Open submissions of this folder, controllers first. Those of a copied folder belong to the original."""
        roots = [SweepPaths(self._sweep).slurm] if self._run_ids is None else []
        run_ids = [run.name for run in runs_in(self._sweep)] if self._run_ids is None else self._run_ids
        folders = [
            SubmissionFolder(root)
            for root in (*roots, *(RunPaths(self._sweep / run_id).slurm for run_id in sorted(run_ids)))
        ]
        found = [(folder, submission) for folder in folders for _, submission in folder.read_with_state(OPEN)]
        own = [(folder, submission) for folder, submission in found if folder.original(submission) is None]
        self._report_copies([folder.original(submission) for folder, submission in found])
        return own

    def _report_copies(self, originals: Sequence[Path | None]) -> None:
        """Report once which other sweeps the records came from that were copied with the folder."""
        sweeps = Counter(sweep_of(path) for path in originals if path is not None)
        for sweep, num in sorted(sweeps.items()):
            if sweep not in self._reported:
                self._reported.add(sweep)
                self.report(
                    f"{self._sweep} is a copy of {sweep}: {num} open submission(s) belong to the original and continue"
                    f". To end their jobs: {PROG} {sweep}"
                )

    def require_own(self) -> None:
        """Check that neither the folder nor a job of the sweep belongs to another user. Only that user can end it.

        Raises:
            CoreHpcError: another user's jobs wait or run, or this user may not write into the folder.
                The message names the user and the jobs.
        """
        foreign: dict[str, list[str]] = {}
        for _, submission in self._records():
            if submission.is_foreign and not certainly_ended(self._slurm, submission.job, submission.owner):
                job = f"job {submission.job}" if submission.job is not None else "a job that is being submitted"
                foreign.setdefault(submission.owner, []).append(f"{job} ({submission.name})")
        if foreign:
            owners = "; ".join(f"user {owner}: {', '.join(jobs)}" for owner, jobs in sorted(foreign.items()))
            raise CoreHpcError(
                f"jobs of this sweep belong to another user, and nothing was cancelled. {owners}. "
                f"Only that user can end them: {PROG} {self._sweep}"
            )
        if not os.access(self._sweep, os.W_OK | os.X_OK):
            owner = user_name(self._sweep.stat().st_uid)
            raise CoreHpcError(
                f"{self._sweep}: belongs to user {owner}, and this user may not write there, so nothing was cancelled. "
                f"Only {owner} can end its controller and its jobs: {PROG} {self._sweep}"
            )

    def active(self) -> list[tuple[Submission, list[QueueEntry]]]:
        """Open submissions that have jobs in the queue. The name must match too, because SLURM may reuse job ids.

        Raises:
            SlurmUnavailableError: Two answers of SLURM contradict each other.
        """
        records = self._records()
        entries = self._slurm.queue() if records else []
        found = [(s, [e for e in entries if e.name == s.name and s.job in (None, e.id.job)]) for _, s in records]
        for submission, own in found:
            if not own and submission.name not in self._absent:
                self._require_absent(submission)
        active = [(submission, [entry for entry in own if entry.active]) for submission, own in found]
        return [(submission, own) for submission, own in active if own]

    def _require_absent(self, submission: Submission) -> None:
        """Ask once more about a job that the queue does not list: one answer without jobs is not believed."""
        elements = self._slurm.elements(submission.job) if submission.job is not None else None
        if any(entry.active and entry.name == submission.name for entry in elements or ()):
            raise SlurmUnavailableError(
                f"the queue has no job {submission.job} ({submission.name}), but squeue finds it by its id"
            )
        self._absent.add(submission.name)

    def cancel_new(self) -> int:
        """Cancel the jobs that are not cancelled yet, and return the number of jobs that are still in the queue."""
        active = self.active()
        for submission, entries in active:
            known = self._cancelled.setdefault(submission.name, set())
            new = {entry.id for entry in entries} - known
            if new:
                # Cancel the array as a whole: waiting elements that are cancelled one by one leave no record.
                job = entries[0].id.job
                self._slurm.cancel([job])
                known |= new
                states = ", ".join(
                    f"{num} {state.lower()}" for state, num in Counter(e.state for e in entries if e.id in new).items()
                )
                self.report(f"cancelled job {job} ({submission.name}): {states}")
        return sum(len(entries) for _, entries in active)

    def wait(self, controller: Callable[[], str | None]) -> list[str]:
        """Wait until no job is left and `controller` returns None, for at most WAIT_S.

        Args:
            controller: describes the controller that still runs, or returns None.

        Returns:
            Descriptions of what still runs in the end; empty if nothing does.
        """
        deadline, reported = time.monotonic() + WAIT_S, ""
        while True:
            try:
                num = self.cancel_new()
                left = [text for text in (controller(), f"{num} job(s) that are ending" if num else None) if text]
            except SlurmUnavailableError as e:
                left = [f"SLURM, which does not answer ({e})"]
            if not left or time.monotonic() > deadline:
                return left
            if (current := " and ".join(left)) != reported:
                reported = current
                self.report(f"waiting for {current} ...")
            time.sleep(POLL_S)

    def close_records(self) -> int:
        """Write to the records which jobs have left the queue. The caller must hold the sweep's claim.

        Returns:
            Number of closed records whose jobs had ended before.
        """
        active, num_ended = {submission.name for submission, _ in self.active()}, 0
        for folder, submission in self._records():
            ids = self._cancelled.get(submission.name, set())
            if submission.group == "controller" or submission.name in active:
                continue
            if not ids:
                num_ended += self._close_ended(folder, submission)
                continue
            submission.job = next(iter(ids)).job
            paths = RunPaths(folder.root.parent)
            for index in submission.unresolved:
                unfinished = [key for key in submission.keys(index) if not is_file(paths.task_manifest(key))]
                if not unfinished:
                    folder.resolve(submission, index, Outcome(OutcomeKind.DONE, counted=False))
                elif submission.job_id(index) in ids:
                    task = str(unfinished[0])
                    outcome = Outcome(OutcomeKind.ABANDONED, "core_hpc.cancel", counted=False, task=task)
                    folder.resolve(submission, index, outcome)
            if submission.is_resolved:
                folder.close(submission)
            else:
                folder.write(submission)  # some elements ended before; the next start looks up how
        return num_ended

    def _close_ended(self, folder: SubmissionFolder, submission: Submission) -> bool:
        """Close the record of a submission that is not in the queue, if it is certain that nothing of it can run."""
        if submission.job is None:
            # SLURM did not take it. A record from the future proves only that a clock is wrong.
            if abs(time.time() - submission.submitted) < SUBMITTING_S:
                return False
            folder.discard(submission)
            return True
        if not certainly_ended(self._slurm, submission.job, submission.owner):
            return False
        folder.abandon(submission, "ended before core_hpc.cancel")
        return True
