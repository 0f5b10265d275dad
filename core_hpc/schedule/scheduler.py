"""The controller's loop: ask `state` what is ready, hand it to an executor, reconcile with what is published.

In: runs and an executor. Out: for each run, finished or stopped with a reason. Published manifests are the only
truth: a task counts as done when its manifest can be read, whatever the executor said.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from core_hpc.common.errors import StoreError
from core_hpc.local.executor import Event, TaskRef
from core_hpc.runs.folder import Run
from core_hpc.runs.graph import Graph
from core_hpc.store import manifests, shards
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import EVALUATE, SCORE, UPDATE

CONTROLLER_READS = (SCORE, UPDATE, EVALUATE)
"""Phases whose rows TensorBoard takes in the controller itself, where no task could report the damage."""


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


@dataclass
class RunProgress:
    """One run as the controller sees it."""

    run: Run
    graph: Graph
    published: set[TaskKey]
    in_flight: dict[TaskKey, float] = field(default_factory=dict)
    waiting: set[TaskKey] = field(default_factory=set)
    """Those in flight that have not begun: in SLURM's queue."""
    attempts: dict[TaskKey, int] = field(default_factory=dict)
    failures: int = 0
    stopped: str | None = None
    _ready: list[TaskKey] | None = None
    _rest: set[TaskKey] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._rest = set(self.graph.tasks()) - self.published

    @property
    def finished(self) -> bool:
        return not self._rest

    @property
    def open(self) -> bool:
        return self.stopped is None and not self.finished

    @property
    def num_tasks(self) -> int:
        return len(self.graph.tasks())

    @property
    def num_done(self) -> int:
        return self.num_tasks - len(self._rest)

    @property
    def rest(self) -> Collection[TaskKey]:
        """Tasks of the graph that are not published."""
        return self._rest

    def ready(self) -> list[TaskKey]:
        """Tasks that can be done now; worked out again only after something was published."""
        if self._ready is None:
            self._ready = self.graph.ready(self.published)
        return self._ready

    def add_published(self, key: TaskKey) -> None:
        self.published.add(key)
        self._rest.discard(key)
        self._ready = None

    def withdraw(self, key: TaskKey) -> None:
        self.published.discard(key)
        self._rest |= {key} & set(self.graph.tasks())
        self._ready = None


def inspect_run(run: Run, *, checksum: bool = False) -> tuple[RunProgress, list[str]]:
    """What is published of a run, with damaged publications set aside; returns messages about these.

    Only for the holder of the sweep's claim.
    """
    graph, published, messages = run.graph(), set(), []
    for key in shards.published_keys(run.root):
        path = run.paths.task_manifest(key)
        try:
            # Of an update, the controller reads the steps; its weights are checked by the tasks that load them.
            manifests.check_files(
                manifests.read_manifest(path),
                checksum=checksum or key.phase in CONTROLLER_READS,
                tables_only=not checksum,
            )
            published.add(key)
        except manifests.DamagedError as e:
            with contextlib.suppress(FileNotFoundError):  # a resident job looks as well, and may be first
                aside = manifests.set_aside(path)
                messages.append(f"{e}; set aside as {aside.name} and will be made again")
    return RunProgress(run, graph, published), messages


class Scheduler:
    """Drives runs to their end. A run that cannot go on stops; the others go on."""

    def __init__(
        self,
        runs: Sequence[RunProgress],
        executor: Executor,
        listeners: Sequence[Listener],
        *,
        max_attempts: int,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self._runs = {p.run.run_id: p for p in runs}
        self._executor = executor
        self._listeners = listeners
        self._max_attempts = max_attempts
        self._stop_requested = stop_requested

    def run(self) -> bool:
        """Until every run is finished or stopped (True), or until somebody asks to stop (False)."""
        for task in self._executor.adopt([p.run for p in self._runs.values()]):
            progress = self._runs[task.run_id]
            if task.key not in progress.published:
                self._take(progress, task)
        for progress in self._runs.values():
            progress.attempts = self._executor.attempts(progress.run)
        while any(p.open or p.in_flight for p in self._runs.values()):
            if self._stop_requested():
                return False
            self._submit_ready()
            for event in self._executor.poll():
                self._handle(event)
        return True

    def _submit_ready(self) -> None:
        wanted = [(p.run, key) for p in self._runs.values() if p.open for key in p.ready() if key not in p.in_flight]
        wanted.sort(key=lambda item: item[1].iteration)  # runs go side by side: the one that is behind comes first
        for task in self._executor.submit(wanted) if wanted else ():
            self._take(self._runs[task.run_id], task)

    def _take(self, progress: RunProgress, task: TaskRef) -> None:
        progress.in_flight[task.key] = time.monotonic()
        progress.waiting.add(task.key)

    def _handle(self, event: Event) -> None:
        progress = self._runs[event.task.run_id]
        key = event.task.key
        if event.kind in ("done", "failed"):
            progress.in_flight.pop(key, None)
        if event.kind == "done" and key in progress.published:
            return  # done twice, or seen published by this start before its executor was asked
        if event.kind == "waiting":
            progress.waiting.add(key)
        elif event.kind != "progress":
            progress.waiting.discard(key)
        if event.kind == "done":
            event = self._confirm(progress, event)
        if event.kind == "failed":
            self._fail(progress, key, event.fields)
        for listener in self._listeners:
            listener.on_event(progress, event)

    def _confirm(self, progress: RunProgress, event: Event) -> Event:
        path = progress.run.paths.task_manifest(event.task.key)
        try:
            manifest = manifests.read_manifest(path)
        except manifests.StoreError as e:
            kind = (
                {"kind": "damaged", "manifest": str(path)}
                if isinstance(e, manifests.DamagedError)
                else {"kind": "error"}
            )
            message = f"ended without publishing: {e}"
            return Event(
                event.task, "failed", {**kind, "message": message, "traceback": "", "log": event.fields.get("log", "")}
            )
        progress.add_published(event.task.key)
        return Event(event.task, "done", manifest.stats)

    def _fail(self, progress: RunProgress, key: TaskKey, fields: dict[str, Any]) -> None:
        counted = fields.get("counted", True)
        attempts = progress.attempts[key] = progress.attempts.get(key, 0) + counted
        progress.failures += counted
        if fields["kind"] == "damaged":
            self._set_aside(progress, Path(fields["manifest"]))
        if progress.stopped is None and (fields["kind"] == "final" or attempts >= self._max_attempts):
            progress.stopped = (
                f"{key} failed {attempts} time{'s' if attempts > 1 else ''}: {fields['message']}\n"
                f"{fields['traceback'].rstrip()}\nlog: {fields['log']}"
            )
            for task in self._executor.abandon(progress.run):
                progress.in_flight.pop(task.key, None)

    def _set_aside(self, progress: RunProgress, manifest: Path) -> None:
        """Withdraw a damaged publication. Looks again: another task may have reported it, and it may be made anew."""
        try:
            manifests.check_files(manifests.read_manifest(manifest), checksum=True)
        except manifests.DamagedError:
            with contextlib.suppress(FileNotFoundError):  # as above
                manifests.set_aside(manifest)
            progress.withdraw(shards.key_of_manifest(manifest))
        except StoreError:
            progress.withdraw(shards.key_of_manifest(manifest))


def cpu_seconds() -> float:
    """CPU time of this process and of the commands that it waited for (squeue, sbatch)."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
