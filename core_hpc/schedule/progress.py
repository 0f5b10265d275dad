"""The state of one run in its controller, and how it is read from the run folder at the start.

In: a run folder. Out: `RunProgress`. Only publications last. The rest of the state is lost when the
controller ends.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass, field

from core_hpc.runs.adapters import restore_adapters
from core_hpc.runs.contents import check_counts
from core_hpc.runs.folder import Run
from core_hpc.runs.frozen import restore_problems
from core_hpc.runs.graph import Graph
from core_hpc.store import manifests, shards
from core_hpc.store.leftovers import foreign_names
from core_hpc.store.paths import Kind, TaskKey
from core_hpc.store.schema import EVALUATE, SCORE, UPDATE

CONTROLLER_READS = (SCORE, UPDATE, EVALUATE)
"""Phases whose rows the controller reads itself (for TensorBoard). No task would report damage."""

FINISHED, RUNNING, WAITING, STOPPED = "finished", "running", "waiting", "stopped"
"""States of a run, as the launcher's panel and `core-hpc status` show them."""

MAX_NAMES = 5
"""A message lists at most this many names."""


@dataclass
class RunProgress:
    """Which tasks of a run are published, in progress, waiting or still open.

    Attributes:
        tasks: those that count, in the order of the graph; all of the graph unless given.
        in_flight: submitted tasks, with the time of submission (monotonic clock, seconds).
        waiting: tasks in flight that have not started, because they are in SLURM's queue.
        attempts: failed attempts that count, by task.
        failures: their number over all tasks.
        stopped: why the run was stopped; None while it was not.
    """

    run: Run
    graph: Graph
    published: set[TaskKey]
    _: KW_ONLY
    tasks: Collection[TaskKey] = ()
    in_flight: dict[TaskKey, float] = field(default_factory=dict)
    waiting: set[TaskKey] = field(default_factory=set)
    attempts: dict[TaskKey, int] = field(default_factory=dict)
    failures: int = 0
    stopped: str | None = None
    _ready: list[TaskKey] | None = None
    _open_tasks: set[TaskKey] = field(default_factory=set)
    _num_open: Counter[Kind] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.tasks = self.tasks or self.graph.tasks()
        self._open_tasks = set(self.tasks) - self.published
        self._num_open.update(key.kind for key in self._open_tasks)

    @property
    def finished(self) -> bool:
        return not self._open_tasks

    @property
    def open(self) -> bool:
        return self.stopped is None and not self.finished

    @property
    def state(self) -> str:
        """`FINISHED`, `STOPPED`, `RUNNING`, or `WAITING` while no task runs."""
        if self.finished:
            return FINISHED
        if self.stopped is not None:
            return STOPPED
        return RUNNING if self.num_running else WAITING

    @property
    def num_running(self) -> int:
        """How many tasks have started and are not published."""
        return len(self.in_flight) - len(self.waiting)

    @property
    def num_tasks(self) -> int:
        return len(self.tasks)

    @property
    def num_done(self) -> int:
        return self.num_tasks - len(self._open_tasks)

    @property
    def open_tasks(self) -> Collection[TaskKey]:
        """Tasks that are not published."""
        return self._open_tasks

    @property
    def num_open(self) -> Mapping[Kind, int]:
        """How many tasks are open, by phase and model."""
        return self._num_open

    def ready(self) -> list[TaskKey]:
        """Tasks whose inputs are published. Cached until something is published or withdrawn."""
        if self._ready is None:
            self._ready = self.graph.ready(self.published, self.tasks)
        return self._ready

    def add_published(self, key: TaskKey) -> None:
        self.published.add(key)
        if key in self._open_tasks:
            self._open_tasks.remove(key)
            self._num_open[key.kind] -= 1
        self._ready = None

    def withdraw(self, key: TaskKey) -> None:
        """A publication was damaged: the task must be done again."""
        self.published.discard(key)
        if key not in self._open_tasks and key in self.tasks:
            self._open_tasks.add(key)
            self._num_open[key.kind] += 1
        self._ready = None


def inspect_run(run: Run, *, checksum: bool = False) -> tuple[RunProgress, list[str]]:
    """Read what is published, and set damaged publications aside.

    Only the holder of the sweep's claim may call this.

    Args:
        checksum: check the checksums of all files, not only of those that the controller reads.

    Returns:
        The run's progress, and messages: one per damaged publication, and one about names that
        are ignored.
    """
    messages = [*restore_problems(run), *restore_adapters(run)]
    graph, published = run.graph(), set()
    if foreign := foreign_names(run.root):
        shown = ", ".join(str(path.relative_to(run.root)) for path in foreign[:MAX_NAMES])
        more = f" and {len(foreign) - MAX_NAMES} more" if len(foreign) > MAX_NAMES else ""
        messages.append(f"ignored in {run.root}, because core_hpc did not write them: {shown}{more}")
    for key in shards.published_keys(run.root):
        path = run.paths.task_manifest(key)
        try:
            manifest = manifests.read_manifest(path)
            # The controller reads the steps of an update. Tasks that load its weights check those.
            manifests.check_files(
                manifest, checksum=checksum or key.phase in CONTROLLER_READS, tables_only=not checksum
            )
            check_counts(run, key, manifest)
            published.add(key)
        except manifests.DamagedError as e:
            if e.manifest_path != path:  # the frozen problems, damaged since they were checked
                raise
            with contextlib.suppress(FileNotFoundError):  # a resident job may have been faster
                aside = manifests.set_aside(path)
                messages.append(f"damaged: {e}; set aside as {aside.name}, and will be made again")
    return RunProgress(run, graph, published), messages
