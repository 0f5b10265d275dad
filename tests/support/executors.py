"""Executors without processes, for tests of the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core_hpc.runs.events import Done, Event, TaskRef
from core_hpc.runs.folder import Run
from core_hpc.schedule.base import Adopted
from core_hpc.store.paths import TaskKey


class Instant:
    """An executor that publishes every task when it is submitted.

    Args:
        publish: publishes one task of a run.

    Attributes:
        done: the tasks that it has published, in order.
    """

    def __init__(self, publish: Callable[[Run, TaskKey], None]) -> None:
        self.done: list[TaskKey] = []
        self._publish = publish
        self._events: list[Event] = []

    def adopt(self, runs: Sequence[Run]) -> Adopted:
        return Adopted()

    def submit(self, wanted: Sequence[tuple[Run, TaskKey]]) -> list[TaskRef]:
        for run, key in wanted:
            self._publish(run, key)
            self.done.append(key)
        tasks = [TaskRef(run.run_id, key) for run, key in wanted]
        self._events += [Done(task) for task in tasks]
        return tasks

    def poll(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def abandon(self, run: Run, why: str) -> list[TaskRef]:
        return []

    def close(self) -> None:
        pass
