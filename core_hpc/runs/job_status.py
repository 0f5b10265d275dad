"""The status file of a SLURM job: which tasks it works on, and how it describes its own end.

A job writes the file for the controller and the status command. `to_json` and `from_json` are inverse
to each other, and files of earlier versions are read (`json_fields.py`). This module does no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from core_hpc.runs.json_fields import Json, filled_fields, from_fields
from core_hpc.runs.outcome import Outcome, OutcomeKind, Progress
from core_hpc.store.paths import TaskKey


class StopReason(StrEnum):
    """Why SLURM asked a job to end."""

    TIME_LIMIT = "time limit"
    PREEMPTED = "preempted"
    TERMINATED = "terminated"


@dataclass(frozen=True)
class RunningTask:
    """A task that a job works on: since when, and how far it was at `time` (0: it has not reported progress)."""

    started: float
    progress: Progress | None = None
    time: float = 0.0

    def to_json(self) -> Json:
        data: Json = {"started": self.started}
        return data if self.progress is None else {**data, **vars(self.progress), "time": self.time}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunningTask:
        progress = from_fields(Progress, data) if "done" in data else None
        return from_fields(cls, {"started": 0.0, **data, "progress": progress})


@dataclass(frozen=True)
class JobEnd:
    """How a job or an array element describes its own end.

    Attributes:
        reason: why it was asked to stop (`OutcomeKind.STOPPED`).
        gained: whether an interrupted update saved steps, or anything was published.
        left: tasks that the element leaves to other jobs; None when it leaves none.
    """

    kind: OutcomeKind
    message: str = ""
    reason: StopReason | None = None
    gained: bool = False
    left: tuple[str, ...] | None = None
    traceback: str = ""
    manifest: str = ""
    task: str = ""
    log: str = ""

    @property
    def is_failure(self) -> bool:
        return self.kind not in (OutcomeKind.DONE, OutcomeKind.STOPPED)

    @classmethod
    def of_failure(cls, outcome: Outcome) -> JobEnd:
        """The end of a job whose task failed."""
        names = ("kind", "message", "traceback", "manifest", "task", "log")
        return cls(**{name: getattr(outcome, name) for name in names})

    def to_json(self) -> Json:
        data: Json = {"kind": self.kind, **filled_fields(self, "kind", "left")}
        return data if self.left is None else {**data, "left": list(self.left)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JobEnd:
        return from_fields(cls, data)


@dataclass(frozen=True)
class JobStatus:
    """The status file of an array element or of a job of the driver `resident`.

    Attributes:
        started: when this process started, in seconds since 1970.
        published: number of tasks published so far.
        progress: the task in progress (arrays: one at a time), as (task, how far it is).
        stopping: set when SLURM has asked the job to end.
        outcome: set when the job has ended by itself.
        running: tasks in progress by key (resident: several at a time).
        failures: attempts that failed and were repeated inside the job (resident).
    """

    job: str = ""
    restarts: int = 0
    node: str = ""
    pid: int = 0
    started: float = 0.0
    published: int = 0
    progress: tuple[str, RunningTask] | None = None
    stopping: StopReason | None = None
    outcome: JobEnd | None = None
    running: Mapping[str, RunningTask] = field(default_factory=dict)
    failures: tuple[Outcome, ...] = ()

    def to_json(self) -> Json:
        data: Json = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.progress is not None:
            task, at = self.progress
            data["progress"] = {"task": task, **at.to_json()}
        data["outcome"] = self.outcome.to_json() if self.outcome is not None else None
        data["running"] = {task: at.to_json() for task, at in self.running.items()}
        data["failures"] = [failure.to_json() for failure in self.failures]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JobStatus:
        progress, outcome = data.get("progress"), data.get("outcome")
        converted = {
            "progress": (progress["task"], RunningTask.from_json(progress)) if progress else None,
            "stopping": data.get("stopping") or None,
            "outcome": JobEnd.from_json(outcome) if outcome else None,
            "running": {task: RunningTask.from_json(at) for task, at in data.get("running", {}).items()},
            "failures": tuple(Outcome.from_json(failure) for failure in data.get("failures", ())),
        }
        return from_fields(cls, {**data, **converted})

    @classmethod
    def from_file(cls, data: Mapping[str, Any]) -> JobStatus:
        """The same, and the keys of its tasks are checked: a job may have been killed, or a file altered."""
        status = cls.from_json(data)
        for task in (*status.running, *(failure.task for failure in status.failures if failure.task)):
            TaskKey.parse(task)
        return status
