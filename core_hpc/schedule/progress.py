"""TODO docstring."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass, field

from core_hpc.runs.folder import Run
from core_hpc.runs.graph import Graph
from core_hpc.store import manifests, shards
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import EVALUATE, SCORE, UPDATE

CONTROLLER_READS = (SCORE, UPDATE, EVALUATE)
"""Phases whose rows TensorBoard takes in the controller itself, where no task could report the damage."""


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
