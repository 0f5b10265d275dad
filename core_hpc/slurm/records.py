"""TODO docstring."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core_hpc.common.errors import StoreError
from core_hpc.config.cluster import PhaseGroup
from core_hpc.slurm.commands import JobId
from core_hpc.slurm.outcomes import DONE, Outcome
from core_hpc.store import manifests
from core_hpc.store.paths import TaskKey

OPEN, ENDED, FAILED = "open", "ended", "failed"


NAME = re.compile(r"(?P<name>[a-z]+-\d{4,}-[0-9a-f]{8})\.(?P<state>open|ended|failed)\.json")


@dataclass
class Submission:
    """One array (or job of one element) and what became of its elements."""

    name: str
    group: PhaseGroup
    start_id: str
    elements: list[list[str]]
    """Task keys of each element, as text."""
    mem_gb: float
    submitted: float
    excluded: list[str] = field(default_factory=list)
    job: int | None = None
    outcomes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By index of the element: kind, message, node, counted, log."""

    def keys(self, index: int) -> list[TaskKey]:
        return [TaskKey.parse(text) for text in self.elements[index]]

    def job_id(self, index: int) -> JobId | None:
        """SLURM's id of an element; submitit makes no array of a single one."""
        return None if self.job is None else JobId(self.job, index if len(self.elements) > 1 else None)

    @property
    def is_resolved(self) -> bool:
        return len(self.outcomes) == len(self.elements)

    @property
    def unresolved(self) -> list[int]:
        return [i for i in range(len(self.elements)) if str(i) not in self.outcomes]


class SubmissionFolder:
    """The submissions of one run, or of a sweep's controllers."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()  # jobs may begin in another folder

    def names(self, *states: str) -> list[tuple[str, str]]:
        """(name, state) of the records in these states."""
        if not self.root.is_dir():
            return []
        found = [m for p in self.root.iterdir() if (m := NAME.fullmatch(p.name))]
        return sorted((m["name"], m["state"]) for m in found if m["state"] in states)

    def read(self, *states: str) -> list[Submission]:
        """Records in these states. Another process may rename one between listing and reading: then they are listed again."""
        return [submission for _, submission in self.read_with_state(*states)]

    def read_with_state(self, *states: str) -> list[tuple[str, Submission]]:
        found: dict[str, tuple[str, Submission]] = {}
        for attempt in range(2):
            complete = True
            for name, state in self.names(*states):
                path = self.root / f"{name}.{state}.json"
                if name in found:
                    continue
                try:
                    found[name] = (state, Submission(**manifests.read_json(path)))
                except StoreError:
                    if attempt and path.exists():
                        raise
                    complete = False
            if complete:
                break
        return list(found.values())

    def write(self, submission: Submission) -> None:
        manifests.make_folder(self.root)
        manifests.write_json(self.root / f"{submission.name}.{OPEN}.json", asdict(submission))

    def close(self, submission: Submission) -> None:
        """Write the record for the last time."""
        failed = any(o["kind"] != DONE for o in submission.outcomes.values())
        self.write(submission)
        (self.root / f"{submission.name}.{OPEN}.json").rename(
            self.root / f"{submission.name}.{FAILED if failed else ENDED}.json"
        )

    def resolve(self, submission: Submission, index: int, outcome: Outcome) -> None:
        """Note how an element ended; the caller writes or closes the record."""
        noted: dict[str, Any] = {"kind": outcome.kind, "counted": outcome.counted}
        if outcome.kind != DONE:  # an array may have thousands of elements, most of which have nothing to tell
            log = str(self.log(submission, index))
            noted |= {
                "message": outcome.message,
                "node": outcome.node,
                "task": outcome.task,
                "log": log,
                "time": time.time(),
            }
        submission.outcomes[str(index)] = noted

    def tidy(self) -> None:
        """Remove what only submitit and the watching of closed submissions needed; scripts, logs and records stay."""
        for name, _ in self.names(ENDED, FAILED):
            for pattern in ("*.pkl", "element-*.json", ".submission_file_*"):
                for path in (self.root / name).glob(pattern):
                    path.unlink(missing_ok=True)

    def discard(self, submission: Submission) -> None:
        """Forget a submission that SLURM never took."""
        (self.root / f"{submission.name}.{OPEN}.json").unlink(missing_ok=True)

    def folder(self, submission: Submission) -> Path:
        return self.root / submission.name

    def status_file(self, submission: Submission, index: int) -> Path:
        return self.folder(submission) / f"element-{index:04d}.json"

    def log(self, submission: Submission, index: int, rank: int = 0) -> Path:
        """The log of an element's rank, as submitit names it."""
        job = submission.job_id(index)
        return self.folder(submission) / (f"{job}_{rank}_log.out" if job is not None else "not-submitted.out")


def new_submission(
    group: PhaseGroup,
    what: str,
    elements: Sequence[Sequence[TaskKey]],
    *,
    start_id: str,
    mem_gb: float,
    excluded: Sequence[str] = (),
) -> Submission:
    """A record not yet submitted; `what` is like cold-0001."""
    texts = [[str(key) for key in keys] for keys in elements]
    return Submission(f"{what}-{uuid.uuid4().hex[:8]}", group, start_id, texts, mem_gb, time.time(), list(excluded))
