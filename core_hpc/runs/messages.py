"""What processes report to each other about tasks: the only place that knows kinds and fields of these reports.

A worker process writes `WorkerMessage`s to its parent. A SLURM job writes a `JobStatus` file for the
controller. A driver reports `Event`s to the scheduler. `Outcome` describes how a task or a job ended.
What is written to disk or to a pipe is JSON; `to_json` and `from_json` are inverse to each other, and
`from_json` accepts files of earlier versions (missing fields take their defaults, unknown ones are ignored). Anything
else is an error, which `read_record` of `store/manifests.py` turns into a message that names the file.
Nothing here does I/O or decides what happens next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

from core_hpc.store.paths import TaskKey

Json = dict[str, Any]


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


class StopReason(StrEnum):
    """Why SLURM asked a job to end."""

    TIME_LIMIT = "time limit"
    PREEMPTED = "preempted"
    TERMINATED = "terminated"


@dataclass(frozen=True)
class TaskRef:
    """A task of a run."""

    run_id: str
    key: TaskKey


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
        return {"kind": self.kind, "counted": self.counted, **_filled(self, "kind", "counted")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        return _made(cls, data)


# --- from a worker process to its parent, and back -----------------------------------------------


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
        data: Json = {"event": self.kind, **_filled(self, "kind", "progress", "outcome")}
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
        return {"command": self.kind, **_filled(self, "kind")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WorkerCommand:
        return cls(CommandKind(data["command"]), data.get("run", ""), data.get("task", ""))


# --- from a SLURM job to the controller ----------------------------------------------------------


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
        progress = _made(Progress, data) if "done" in data else None
        return _made(cls, {"started": 0.0, **data, "progress": progress})


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
        data: Json = {"kind": self.kind, **_filled(self, "kind", "left")}
        return data if self.left is None else {**data, "left": list(self.left)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JobEnd:
        return _made(cls, data)


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
        return _made(cls, {**data, **converted})

    @classmethod
    def from_file(cls, data: Mapping[str, Any]) -> JobStatus:
        """The same, and the keys of its tasks are checked: a job may have been killed, or a file altered."""
        status = cls.from_json(data)
        for task in (*status.running, *(failure.task for failure in status.failures if failure.task)):
            TaskKey.parse(task)
        return status


# --- from a driver to the scheduler --------------------------------------------------------------


@dataclass(frozen=True)
class Waiting:
    """The task waits: it is in SLURM's queue, or goes back there."""

    task: TaskRef


@dataclass(frozen=True)
class Started:
    """Work on the task has begun, perhaps not for the first time."""

    task: TaskRef


@dataclass(frozen=True)
class Progressed:
    """The task is so far."""

    task: TaskRef
    progress: Progress


@dataclass(frozen=True)
class Done:
    """The driver has seen the task end well.

    The scheduler reads the publication before it believes this, and adds `stats`, the statistics of its manifest.
    """

    task: TaskRef
    log: str = ""
    stats: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """An attempt at the task failed."""

    task: TaskRef
    outcome: Outcome


@dataclass(frozen=True)
class Released:
    """The driver no longer works on the task, which had not begun; the scheduler submits it again."""

    task: TaskRef


@dataclass(frozen=True)
class Stopped:
    """The task ended because the driver was asked to stop."""

    task: TaskRef


Event = Waiting | Started | Progressed | Done | Failed | Released | Stopped


def _filled(item: Any, *without: str) -> Json:
    """The fields of a dataclass that are not empty."""
    return {f.name: value for f in fields(item) if f.name not in without and (value := getattr(item, f.name))}


Made = TypeVar("Made")
LATEST_S = 1e11
"""Every point in time is earlier: this is the year 5138."""


@cache
def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _made(cls: type[Made], data: Mapping[str, Any]) -> Made:
    """Make a dataclass from those entries that are its fields. ValueError if a value has another type."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{data!r} is no JSON object")
    kind: Any = cls
    made: Made = _adapter(kind).validate_python({f.name: data[f.name] for f in fields(kind) if f.name in data})
    if absurd := [name for name, value in vars(made).items() if isinstance(value, float) and not abs(value) < LATEST_S]:
        raise ValueError(f"{absurd[0]} is not a point in time")
    return made
