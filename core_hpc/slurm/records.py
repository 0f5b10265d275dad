"""Records of submissions to SLURM: one JSON file per submission, in the folder of its run.

In: submissions and outcomes of their elements. Out: records and their folders. The suffix of a
record's name is its state, so that a listing shows it without reading:

    RUN/slurm/NAME.open.json      some elements may be waiting or running
    RUN/slurm/NAME.ended.json     all elements did their tasks
    RUN/slurm/NAME.failed.json    closed, and some elements failed (see the outcomes inside)
    RUN/slurm/NAME/               script, calls, logs, and status files like element-0000.json

A record is written before sbatch is called, so that a controller that dies at any moment leaves
nothing that its successor cannot find. Scripts are in `slurm/submit.py`, calls of
sbatch in `slurm/sbatch.py`.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from core_hpc.common.errors import StoreError
from core_hpc.common.ownership import user_name
from core_hpc.config.slurm import PhaseGroup
from core_hpc.runs.json_fields import LATEST_S
from core_hpc.runs.outcome import Outcome, OutcomeKind
from core_hpc.slurm.commands import JobId
from core_hpc.store import manifests
from core_hpc.store.paths import TaskKey

CALLS, SCRIPT = "calls.json", "submission.sh"
"""Files in the folder of a submission: what its elements call, and its batch script."""
OPEN, ENDED, FAILED = "open", "ended", "failed"
"""States of a record: some element is not resolved; all are published; some failed."""
NAME = re.compile(r"(?P<name>[a-z]+-\d{4,}-[0-9a-f]{8})\.(?P<state>open|ended|failed)\.json")


@dataclass(kw_only=True)
class Submission:
    """One array, or an ordinary job as its only element, and the outcomes of its elements."""

    name: str
    group: PhaseGroup
    start_id: str
    elements: list[list[str]]
    """Task keys of each element, as text."""
    mem_gb: float
    submitted: float
    excluded: list[str] = field(default_factory=list)
    job: int | None = None
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    """By index of the element."""
    uid: int | None = None
    """The user who submitted it, and as whom its jobs run; None: an earlier version wrote the record."""
    folder: str = ""
    """The folder that the record was written into; its jobs publish beside it."""
    claim: str = ""
    """Token of the claim under which it was submitted; empty: an earlier version wrote the record."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "outcomes": {str(i): outcome.to_json() for i, outcome in self.outcomes.items()}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Submission:
        """Inverse of `to_json`. A ValueError, KeyError, TypeError or AttributeError if it is no record."""
        outcomes = {int(i): Outcome.from_json(outcome) for i, outcome in data["outcomes"].items()}
        made = _SUBMISSION.validate_python({**data, "outcomes": outcomes})
        if not 0 <= made.submitted < LATEST_S:
            raise ValueError("submitted is not a point in time")
        if not made.elements or not set(outcomes) <= set(range(len(made.elements))):
            raise ValueError("it has no elements, or outcomes of elements that it has not")
        for text in (text for element in made.elements for text in element):
            TaskKey.parse(text)
        return made

    def keys(self, index: int) -> list[TaskKey]:
        return [TaskKey.parse(text) for text in self.elements[index]]

    def job_id(self, index: int) -> JobId | None:
        """The id of an element in SLURM. A single element is an ordinary job."""
        return None if self.job is None else JobId(self.job, index if len(self.elements) > 1 else None)

    @property
    def is_foreign(self) -> bool:
        """Whether its jobs are those of another user, which this user neither sees nor can end."""
        return self.uid is not None and self.uid != os.getuid()

    @property
    def owner(self) -> str:
        """The login name of the user whose jobs they are."""
        return user_name(os.getuid() if self.uid is None else self.uid)

    @property
    def is_resolved(self) -> bool:
        return len(self.outcomes) == len(self.elements)

    @property
    def unresolved(self) -> list[int]:
        return [i for i in range(len(self.elements)) if i not in self.outcomes]


_SUBMISSION = TypeAdapter(Submission)


class SubmissionFolder:
    """The submissions of one run, or of a sweep's controllers."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()  # a job may start in another folder

    def names(self, *states: str) -> list[tuple[str, str]]:
        """(name, state) of the records in these states."""
        found = [m for name in manifests.list_names(self.root) if (m := NAME.fullmatch(name))]
        return sorted((m["name"], m["state"]) for m in found if m["state"] in states)

    def read(self, *states: str) -> list[Submission]:
        """Read the records in these states. If another process renames one, list them again."""
        return [submission for _, submission in self.read_with_state(*states)]

    def read_with_state(self, *states: str) -> list[tuple[str, Submission]]:
        """Read the records in these states, each with its state."""
        found: dict[str, tuple[str, Submission]] = {}
        for attempt in range(2):
            complete = True
            for name, state in self.names(*states):
                path = self.root / f"{name}.{state}.json"
                if name in found:
                    continue
                try:
                    found[name] = (state, _read(path, name))
                except StoreError as e:
                    if attempt and not isinstance(e.__cause__, FileNotFoundError):
                        raise StoreError(
                            f"{e}. Restore this record; or, if SLURM has no job with the name {name}, remove it"
                        ) from e
                    complete = False
            if complete:
                break
        return list(found.values())

    def read_unresolved(self) -> tuple[list[Submission], list[str]]:
        """Read the records of submissions that this folder waits for, and clear away those which it does not.

        Records of a copied folder are removed, because their jobs work for the original. A record
        whose elements are all resolved is closed: a controller was killed before it did so.

        Returns:
            The records, and messages for the user.
        """
        waiting, originals = [], set()
        for submission in self.read(OPEN):
            if (original := self.original(submission)) is not None:
                originals.add(original)
                self.discard(submission)
            elif submission.is_resolved:
                self.close(submission)
            else:
                waiting.append(submission)
        here = self.root.parent
        return waiting, [
            f"{here} is a copy of {original.parent}: the jobs of the original continue, and publish there only"
            for original in sorted(originals)
        ]

    def write(self, submission: Submission) -> None:
        submission.folder = submission.folder or str(self.root)
        manifests.make_folder(self.root)
        manifests.write_json(self.root / f"{submission.name}.{OPEN}.json", submission.to_json())

    def close(self, submission: Submission) -> None:
        """Write the record for the last time."""
        failed = any(o.kind != OutcomeKind.DONE for o in submission.outcomes.values())
        self.write(submission)
        (self.root / f"{submission.name}.{OPEN}.json").rename(
            self.root / f"{submission.name}.{FAILED if failed else ENDED}.json"
        )

    def resolve(self, submission: Submission, index: int, outcome: Outcome) -> None:
        """Set the outcome of an element. The caller writes or closes the record."""
        # An array may have thousands of elements, most of which need no details.
        if outcome.kind == OutcomeKind.DONE:
            submission.outcomes[index] = Outcome(OutcomeKind.DONE, counted=outcome.counted)
        else:
            log = str(self.log(submission, index))
            submission.outcomes[index] = replace(outcome, log=log, time=time.time(), traceback="", manifest="")

    def abandon(self, submission: Submission, why: str) -> None:
        """Close the record of a submission whose jobs have ended and whose end nobody will look up."""
        for index in submission.unresolved:
            self.resolve(submission, index, Outcome(OutcomeKind.ABANDONED, why, counted=False))
        self.close(submission)

    def tidy(self) -> None:
        """Remove temporary files of closed submissions. Scripts, logs and records stay."""
        for name, _ in self.names(ENDED, FAILED):
            self.tidy_one(name)

    def tidy_one(self, name: str) -> None:
        """The same for one submission."""
        for pattern in (CALLS, "*.pkl", "element-*.json", ".submission_file_*"):
            for path in (self.root / name).glob(pattern):
                path.unlink(missing_ok=True)

    def discard(self, submission: Submission) -> None:
        """Remove the record of a submission that SLURM did not accept, and what it would run.

        If SLURM has taken the job nevertheless, the job finds nothing to do and ends.
        """
        (self.root / f"{submission.name}.{OPEN}.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder(submission), ignore_errors=True)

    def original(self, submission: Submission) -> Path | None:
        """The other folder to which a record belongs, if this folder is a copy.

        The jobs of the record publish into that folder. A folder that was moved is no copy: nothing
        is left where it was. Two paths of the same folder (links, mounts) are none either.
        """
        path = Path(submission.folder)
        if not submission.folder or path == self.root or manifests.is_same_file(path, self.root):
            return None
        states = (path / f"{submission.name}.{state}.json" for state in (OPEN, ENDED, FAILED))
        return path if any(manifests.is_file(record) for record in states) else None

    def folder(self, submission: Submission) -> Path:
        return self.root / submission.name

    def status_file(self, submission: Submission, index: int) -> Path:
        return self.folder(submission) / f"element-{index:04d}.json"

    def log(self, submission: Submission, index: int, rank: int = 0) -> Path:
        """The log of an element's rank, as the batch script names it."""
        job = submission.job_id(index)
        return self.folder(submission) / (f"{job}_{rank}_log.out" if job is not None else "not-submitted.out")


def _read(path: Path, name: str) -> Submission:
    submission = manifests.read_record(path, Submission.from_json)
    if submission.name != name:
        raise StoreError(f"{path}: is a copy of the record of {submission.name}")
    return submission


def sweep_of(folder: Path) -> Path:
    """The sweep to which a folder of records belongs: that of a run, or of the sweep's controllers."""
    return folder.parents[1] if (folder.parent / "run.json").exists() else folder.parent


def new_submission(
    group: PhaseGroup,
    what: str,
    elements: Sequence[Sequence[TaskKey]],
    *,
    start_id: str,
    mem_gb: float,
    excluded: Sequence[str] = (),
    claim: str = "",
) -> Submission:
    """Create a submission that is not submitted yet.

    Args:
        what: the name begins with it, for example `cold-0001`.
        elements: tasks of each element.
        start_id: names the start by the user.
        excluded: nodes that the job must not use.
        claim: token of the claim of the controller that submits it.
    """
    return Submission(
        name=f"{what}-{uuid.uuid4().hex[:8]}",
        group=group,
        start_id=start_id,
        elements=[[str(key) for key in keys] for keys in elements],
        mem_gb=mem_gb,
        submitted=time.time(),
        excluded=list(excluded),
        uid=os.getuid(),
        claim=claim,
    )
