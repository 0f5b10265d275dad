"""The records of the detached controllers of a sweep: which of them wait or run as jobs, and how others ended.

In: a sweep folder, and the queue of SLURM. Out: the submissions of its controllers. The jobs themselves are in
`controller/detach.py`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from core_hpc.common.errors import ClaimError, StoreError
from core_hpc.runs.outcome import Outcome, OutcomeKind
from core_hpc.slurm.commands import Slurm, certainly_ended
from core_hpc.slurm.records import OPEN, Submission, SubmissionFolder
from core_hpc.slurm.submit import find_job
from core_hpc.store import manifests
from core_hpc.store.paths import SweepPaths

SUBMITTING_S = 60.0
"""A submission whose job is not known after this time has failed."""


def active_controllers(sweep_folder: Path, slurm: Slurm, *, close: bool) -> list[Submission]:
    """Return the controllers of a sweep that wait or run as jobs.

    Args:
        close: close the records of controllers that have ended. Only for the holder of the claim.
    """
    folder = SubmissionFolder(SweepPaths(sweep_folder).slurm)
    active = []
    for submission in folder.read(OPEN):
        if folder.original(submission) is not None:  # this folder is a copy: the job controls the original
            if close:
                folder.discard(submission)
            continue
        if submission.is_foreign and not certainly_ended(slurm, submission.job, submission.owner):
            active.append(submission)  # this user may not see the job
            continue
        if submission.job is None:
            submission.job = find_job((entry for entry in slurm.queue() if entry.active), submission)
        if submission.job is None:
            # A record from the future proves only that a clock is wrong.
            if abs(time.time() - submission.submitted) < SUBMITTING_S:
                active.append(submission)
            elif close:
                folder.discard(submission)
        elif not slurm.has_ended(submission.job):
            active.append(submission)
        elif close:
            folder.resolve(submission, 0, end_of(folder, submission))
            folder.close(submission)
    return active


def end_of(folder: SubmissionFolder, submission: Submission) -> Outcome:
    """How a controller ended, according to its status file (`detach.py` writes it)."""
    try:
        ended = manifests.read_record(folder.status_file(submission, 0), Outcome.from_json)
        return replace(ended, counted=False)
    except StoreError:
        return Outcome(OutcomeKind.DIED, "the controller ended without reporting why", counted=False)


def require_no_other(sweep_folder: Path, slurm: Slurm) -> None:
    """Check that no detached controller of this sweep waits or runs.

    Raises:
        ClaimError: there is one.
    """
    for submission in active_controllers(sweep_folder, slurm, close=False):
        job = f"SLURM job {submission.job}" if submission.job is not None else "a job that is being submitted"
        owner = f" of user {submission.owner}" if submission.is_foreign else ""
        raise ClaimError(
            f"{sweep_folder}: {job}{owner} is the controller of this sweep. To see its state, run\n"
            f"  python -m core_hpc.status {sweep_folder}\n"
            f"To end it and all jobs of the sweep, run\n"
            f"  python -m core_hpc.cancel {sweep_folder}"
        )
