"""TODO docstring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from core_hpc.runs.folder import Run
from core_hpc.schedule.progress import RunProgress
from core_hpc.store.paths import TaskKey


@dataclass(frozen=True)
class TaskRef:
    """A task of a run."""

    run_id: str
    key: TaskKey


@dataclass(frozen=True)
class Event:
    """Something that happened to a task: `kind` is started, waiting, progress, done or failed (see schedule.Executor).

    Also stopped, after `LocalExecutor.stop`.
    """

    task: TaskRef
    kind: str
    fields: dict[str, Any]


class Executor(Protocol):
    """Where tasks run. Events of a task: started (perhaps again), waiting, progress, then done or failed."""

    def adopt(self, runs: Sequence[Run]) -> list[TaskRef]:
        """Tasks that an earlier controller submitted and that are still under way."""

    def attempts(self, run: Run) -> dict[TaskKey, int]:
        """Failures that count, of controllers before this one that belong to the same start by the user."""

    def submit(self, wanted: Sequence[tuple[Run, TaskKey]]) -> list[TaskRef]:
        """Take what fits now, most urgent first; returns what was taken."""

    def poll(self) -> list[Event]:
        """What happened since the last poll; waits a while when nothing did."""

    def abandon(self, run: Run) -> list[TaskRef]:
        """A run has stopped: those of its tasks that are given up, and of which no event will tell. The others may end."""

    def close(self) -> None: ...


class Listener(Protocol):
    """Who is told what happens: the display, TensorBoard."""

    def on_event(self, progress: RunProgress, event: Event) -> None: ...
