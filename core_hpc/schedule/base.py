"""The two interfaces of the scheduler: an executor runs tasks, a listener receives their events.

The events that pass between them are in `runs/events.py`. Executors are in `local/` and `slurm/`;
the listeners (display, TensorBoard, cached counts) are in `controller/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from core_hpc.runs.events import Event, Failed, TaskRef
from core_hpc.runs.folder import Run
from core_hpc.schedule.progress import RunProgress
from core_hpc.store.paths import TaskKey


@dataclass(frozen=True)
class Adopted:
    """What an executor takes over from earlier controllers of the same start by the user.

    Attributes:
        tasks: submitted by an earlier controller and not yet ended.
        failures: failed attempts that count, the earliest first.
        stopped: why a run was stopped, by run id, where `failures` do not show it.
    """

    tasks: Sequence[TaskRef] = ()
    failures: Sequence[Failed] = ()
    stopped: Mapping[str, str] = field(default_factory=dict)


class Executor(Protocol):
    """Runs tasks somewhere.

    The events of a task that was taken are `Started` (perhaps repeatedly) or `Waiting`, then
    `Progressed`, and at the end `Done`, `Failed` or `Released`. The scheduler ignores what is
    reported about tasks that it has not submitted, so an executor does not need to remember which
    these are.
    """

    def adopt(self, runs: Sequence[Run]) -> Adopted:
        """Take over what an earlier controller left behind."""

    def submit(self, wanted: Sequence[tuple[Run, TaskKey]]) -> list[TaskRef]:
        """Take what fits now, most urgent first.

        Returns:
            The tasks that were taken. The others are offered again.
        """

    def poll(self) -> list[Event]:
        """Report what happened since the last call; wait a while when nothing did."""

    def abandon(self, run: Run, why: str) -> list[TaskRef]:
        """Give up the tasks of a run that has stopped.

        Args:
            why: why it has stopped, for those who read what is recorded about the tasks.

        Returns:
            Tasks that are given up, about which no event will come. Others may still end.
        """

    def close(self) -> None:
        """Release what the executor holds."""


class Listener(Protocol):
    """Is informed of every event, after the scheduler has acted on it.

    It may raise. A DamagedError makes the scheduler set the publication aside and make it again;
    any other error is reported once, and the run continues.
    """

    def on_event(self, progress: RunProgress, event: Event) -> None:
        """`progress` is the state of the event's run."""

    def on_finished(self, progress: RunProgress) -> None:
        """All tasks of a run are published: complete what is written about it."""
