"""How far a task is, and how a task or a job ended.

`Progress` and `Outcome` are parts of worker messages (`worker_messages.py`), of the status file of a
job (`job_status.py`) and of events (`events.py`). This module does no I/O and does not decide what
happens next.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from core_hpc.runs.json_fields import Json, filled_fields, from_fields

_FULL_DISK = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)


class OutcomeKind(StrEnum):
    """How a task, an array element or a job ended."""

    DONE = "done"
    """Everything is published, or what is left belongs to other jobs."""
    STOPPED = "stopped"
    """It was asked to stop and did."""
    INTERRUPTED = "interrupted"
    """Its submission was never completed."""
    ABANDONED = "abandoned"
    """Somebody decided to give it up: `core_hpc.cancel`, or the controller when the run stopped."""
    ERROR = "error"
    """The task raised an exception."""
    DAMAGED = "damaged"
    """A published file that the task reads is damaged."""
    FINAL = "final"
    """Every further attempt would fail in the same way."""
    DIED = "died"
    """A worker or a job ended without reporting anything."""
    NODE = "node"
    OUT_OF_MEMORY = "out of memory"
    TIME_LIMIT = "time limit"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    LOST = "lost"
    """SLURM does not know the job any more."""
    GAVE_UP = "gave up"
    """A job of the driver `resident` stopped its run because of failures that its status file lists."""

    @property
    def is_failure(self) -> bool:
        """Whether the status command lists it as a failed attempt."""
        return self not in (OutcomeKind.DONE, OutcomeKind.STOPPED, OutcomeKind.ABANDONED)


@dataclass(frozen=True)
class Progress:
    """How far a task is: units done and in all (completions, steps or problems), and tokens so far."""

    done: int
    total: int
    tokens: int


@dataclass(frozen=True)
class Outcome:
    """How a task or an array element ended, and what is known about it.

    Attributes:
        counted: whether it counts as one of the failed attempts after which a run stops.
        manifest: the damaged publication (`DAMAGED`).
        task: the task at which an array element ended, where that is known.
        time: when it was recorded, in seconds since 1970; 0 where that does not matter.
    """

    kind: OutcomeKind
    message: str = ""
    counted: bool = True
    node: str = ""
    traceback: str = ""
    log: str = ""
    manifest: str = ""
    task: str = ""
    time: float = 0.0

    def with_note(self, note: str, *, counted: bool) -> Outcome:
        return replace(self, message=f"{self.message}; {note}", counted=counted)

    def to_json(self) -> Json:
        """Its fields without those that are empty; `kind` and `counted` are always there."""
        return {"kind": self.kind, "counted": self.counted, **filled_fields(self, "kind", "counted")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        return from_fields(cls, data)


def final_on_full_disk(outcome: Outcome) -> Outcome:
    """The outcome of a failure; with a full disk or quota every further attempt would fail in the same way."""
    if outcome.kind == OutcomeKind.FINAL or not _FULL_DISK.search(outcome.message):
        return outcome
    message = f"{outcome.message}. Free space (or raise the quota) and start again"
    return replace(outcome, kind=OutcomeKind.FINAL, message=message)
