"""The controller's loop: ask `state` what is ready, hand it to an executor, reconcile with what is published.

In: runs and an executor. Out: for each run, finished or stopped with a reason. Published manifests are the only
truth: a task counts as done when its manifest can be read, whatever the executor said.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from core_hpc import shards, store
from core_hpc.executors import Event, TaskRef
from core_hpc.paths import TaskKey
from core_hpc.runs import Run
from core_hpc.schema import EVALUATE, SCORE, UPDATE
from core_hpc.state import Graph

POLL_S = 0.5
CONTROLLER_READS = (SCORE, UPDATE, EVALUATE)
"""Phases whose rows TensorBoard takes in the controller itself, where no task could report the damage."""


class Executor(Protocol):
    """Where tasks run."""

    def try_submit(self, run: Run, key: TaskKey) -> bool: ...

    def poll(self, timeout_s: float) -> list[Event]: ...

    def close(self) -> None: ...


class Listener(Protocol):
    """Who is told what happens: the display, TensorBoard."""

    def on_event(self, progress: RunProgress, event: Event) -> None: ...


@dataclass
class RunProgress:
    """One run as the controller sees it."""

    run: Run
    graph: Graph
    published: set[TaskKey]
    in_flight: dict[TaskKey, float] = field(default_factory=dict)
    attempts: dict[TaskKey, int] = field(default_factory=dict)
    stopped: str | None = None

    @property
    def finished(self) -> bool:
        return self.graph.finished(self.published)

    @property
    def open(self) -> bool:
        return not self.finished and self.stopped is None


def inspect_run(run: Run, *, clean: bool, checksum: bool = False) -> tuple[RunProgress, list[str]]:
    """What is published of a run, with damaged publications set aside (and leftovers of killed writers removed).

    Only for the holder of the sweep's claim, while no task runs. Returns messages about what was set aside.
    """
    graph, published, messages = run.graph(), set(), []
    for key in shards.published_keys(run.root):
        path = run.paths.task_manifest(key)
        try:
            store.check_files(store.read_manifest(path), checksum=checksum or key.phase in CONTROLLER_READS)
            published.add(key)
        except store.DamagedError as e:
            aside = store.set_aside(path)
            messages.append(f"{e}; set aside as {aside.name} and will be made again")
    if clean:
        for folder in {run.paths.task_folder(key) for key in graph.tasks()}:
            store.remove_leftovers(folder)
    return RunProgress(run, graph, published), messages


class Scheduler:
    """Drives runs to their end. A run that cannot go on stops; the others go on."""

    def __init__(self, runs: Sequence[RunProgress], executor: Executor, listeners: Sequence[Listener], *, max_attempts: int) -> None:
        self._runs = {p.run.run_id: p for p in runs}
        self._executor = executor
        self._listeners = listeners
        self._max_attempts = max_attempts

    def run(self) -> None:
        """Until every run is finished or stopped."""
        while any(p.open for p in self._runs.values()) or any(p.in_flight for p in self._runs.values()):
            self._submit_ready()
            for event in self._executor.poll(POLL_S):
                self._handle(event)

    def _submit_ready(self) -> None:
        for progress in self._runs.values():
            if not progress.open:
                continue
            for key in progress.graph.ready(progress.published):
                if key not in progress.in_flight and self._executor.try_submit(progress.run, key):
                    progress.in_flight[key] = time.monotonic()
                    self._tell(progress, Event(TaskRef(progress.run.run_id, key), "started", {}))

    def _handle(self, event: Event) -> None:
        progress = self._runs[event.task.run_id]
        key = event.task.key
        if event.kind in ("done", "failed"):
            progress.in_flight.pop(key, None)
        if event.kind == "done":
            event = self._confirm(progress, event)
        if event.kind == "failed":
            self._fail(progress, key, event.fields)
        self._tell(progress, event)

    def _confirm(self, progress: RunProgress, event: Event) -> Event:
        path = progress.run.paths.task_manifest(event.task.key)
        try:
            manifest = store.read_manifest(path)
        except store.StoreError as e:
            return Event(event.task, "failed", {"kind": "error", "message": f"ended without publishing: {e}", "traceback": "", "log": ""})
        progress.published.add(event.task.key)
        return Event(event.task, "done", manifest.stats)

    def _fail(self, progress: RunProgress, key: TaskKey, fields: dict[str, Any]) -> None:
        attempts = progress.attempts[key] = progress.attempts.get(key, 0) + 1
        if fields["kind"] == "damaged":
            damaged = shards.key_of_manifest(Path(fields["manifest"]))
            if damaged in progress.published:
                store.set_aside(Path(fields["manifest"]))
                progress.published.discard(damaged)
        if fields["kind"] == "final" or attempts >= self._max_attempts:
            progress.stopped = (
                f"{key} failed {attempts} time{'s' if attempts > 1 else ''}: {fields['message']}\n"
                f"{fields['traceback'].rstrip()}\nlog: {fields['log']}"
            )

    def _tell(self, progress: RunProgress, event: Event) -> None:
        for listener in self._listeners:
            listener.on_event(progress, event)
