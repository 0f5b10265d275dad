"""The state of one run as its controller sees it, and how that state is first read from the run's folder.

In: a run folder. Out: `RunProgress`. What is published is the only truth; the rest is forgotten when the
controller ends.
"""

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
"""Phases whose rows the controller itself reads (for TensorBoard), where no task could report damage."""


@dataclass
class RunProgress:
    """Which tasks of a run are published, in progress, waiting or still open.

    Attributes:
        in_flight: submitted tasks, with the time of submission (monotonic clock, seconds).
        waiting: tasks in flight that have not started, because they are in SLURM's queue.
        attempts: failed attempts that count, by task.
        failures: their number over all tasks.
        stopped: why the run was stopped; None while it was not.
    """

    run: Run
    graph: Graph
    published: set[TaskKey]
    in_flight: dict[TaskKey, float] = field(default_factory=dict)
    waiting: set[TaskKey] = field(default_factory=set)
    attempts: dict[TaskKey, int] = field(default_factory=dict)
    failures: int = 0
    stopped: str | None = None
    _ready: list[TaskKey] | None = None
    _open_tasks: set[TaskKey] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._open_tasks = set(self.graph.tasks()) - self.published

    @property
    def finished(self) -> bool:
        return not self._open_tasks

    @property
    def open(self) -> bool:
        return self.stopped is None and not self.finished

    @property
    def num_tasks(self) -> int:
        return len(self.graph.tasks())

    @property
    def num_done(self) -> int:
        return self.num_tasks - len(self._open_tasks)

    @property
    def open_tasks(self) -> Collection[TaskKey]:
        """Tasks of the graph that are not published."""
        return self._open_tasks

    def ready(self) -> list[TaskKey]:
        """Tasks whose inputs are published; computed again only after something was published."""
        if self._ready is None:
            self._ready = self.graph.ready(self.published)
        return self._ready

    def add_published(self, key: TaskKey) -> None:
        self.published.add(key)
        self._open_tasks.discard(key)
        self._ready = None

    def withdraw(self, key: TaskKey) -> None:
        """A publication was damaged: the task must be done again."""
        self.published.discard(key)
        self._open_tasks |= {key} & set(self.graph.tasks())
        self._ready = None


def inspect_run(run: Run, *, checksum: bool = False) -> tuple[RunProgress, list[str]]:
    """Read what is published and set damaged publications aside. Only the holder of the sweep's claim may call this.

    Args:
        checksum: check the checksums of all files, not only of those that the controller reads.

    Returns:
        The run's progress, and one message per damaged publication.
    """
    graph, published, messages = run.graph(), set(), []
    for key in shards.published_keys(run.root):
        path = run.paths.task_manifest(key)
        try:
            # Of an update, the controller reads the steps; tasks that load its weights check them.
            manifests.check_files(
                manifests.read_manifest(path),
                checksum=checksum or key.phase in CONTROLLER_READS,
                tables_only=not checksum,
            )
            published.add(key)
        except manifests.DamagedError as e:
            with contextlib.suppress(FileNotFoundError):  # a resident job looks as well, and may be first
                aside = manifests.set_aside(path)
                messages.append(f"{e}; set aside as {aside.name}, and will be made again")
    return RunProgress(run, graph, published), messages
