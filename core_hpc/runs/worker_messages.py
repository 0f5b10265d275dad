"""Lines between a worker process and its parent: commands to the worker, and its reports about tasks.

`to_json` and `from_json` are inverse to each other. `phases/worker.py` and `local/process.py` write
and read the lines; this module does no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from core_hpc.runs.json_fields import Json, filled_fields
from core_hpc.runs.outcome import Outcome, Progress


class MessageKind(StrEnum):
    """What a worker reports. All but `READY` and `ASLEEP` are about one task."""

    READY = "ready"
    PROGRESS = "progress"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"
    ASLEEP = "asleep"


@dataclass(frozen=True)
class WorkerMessage:
    """One line from a worker. `run` is the run's folder; `outcome` belongs to `FAILED` and `STOPPED`."""

    kind: MessageKind
    run: str = ""
    task: str = ""
    progress: Progress | None = None
    outcome: Outcome | None = None

    def to_json(self) -> Json:
        data: Json = {"event": self.kind, **filled_fields(self, "kind", "progress", "outcome")}
        if self.progress is not None:
            data["progress"] = vars(self.progress)
        if self.outcome is not None:
            data["outcome"] = self.outcome.to_json()
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WorkerMessage:
        progress, outcome = data.get("progress"), data.get("outcome")
        return cls(
            MessageKind(data["event"]),
            data.get("run", ""),
            data.get("task", ""),
            Progress(**progress) if progress is not None else None,
            Outcome.from_json(outcome) if outcome is not None else None,
        )


class CommandKind(StrEnum):
    """What a parent asks of its worker."""

    RUN = "run"
    SLEEP = "sleep"
    """The engine leaves the memory of its GPU until the next task."""
    STOP = "stop"
    """No further task begins, and an update saves its position and ends."""


@dataclass(frozen=True)
class WorkerCommand:
    """One line to a worker; `run` (a folder) and `task` belong to `RUN`."""

    kind: CommandKind
    run: str = ""
    task: str = ""

    def to_json(self) -> Json:
        return {"command": self.kind, **filled_fields(self, "kind")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WorkerCommand:
        return cls(CommandKind(data["command"]), data.get("run", ""), data.get("task", ""))
