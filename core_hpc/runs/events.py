"""Events: what a driver reports to the scheduler about a task, and the scheduler to its listeners.

Events stay inside the controller's process, or inside a job of the driver `resident`. Nothing here
decides what happens next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core_hpc.runs.outcome import Outcome, Progress
from core_hpc.store.paths import TaskKey


@dataclass(frozen=True)
class TaskRef:
    """A task of a run."""

    run_id: str
    key: TaskKey


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
