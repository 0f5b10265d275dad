"""When the published tasks of a run ran, and what they did: read from manifests and submissions.

The input is a run folder, of a run that is finished or in progress. The output is `RunTimes`: its
`TaskTime`s (`timing/critical_path.py`), and the graph of its tasks. The seconds of a task are those of
its first rank, and its times are those of the host of this rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.timing.critical_path import LOG_PROBS, TRAIN, Segment, TaskTime, critical_path
from core_hpc.common.errors import StoreError
from core_hpc.runs.folder import read_identity, read_run_config
from core_hpc.runs.graph import Graph
from core_hpc.store import manifests
from core_hpc.store.manifests import Manifest
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import OUTSIDE_ITERATIONS
from core_hpc.store.shards import published_keys


@dataclass(frozen=True)
class RunTimes:
    """The times of the published tasks of a run."""

    tasks: tuple[TaskTime, ...]
    graph: Graph | None  # None for imported predictions

    @cached_property
    def paths(self) -> dict[int, list[Segment]]:
        """The critical path of each iteration with published tasks (without evaluations)."""
        if self.graph is None:
            return {}
        iterations = sorted({t.key.iteration for t in self.tasks if t.key.phase not in OUTSIDE_ITERATIONS})
        return {i: critical_path(self.tasks, i, self.graph.inputs) for i in iterations}

    @cached_property
    def num_tasks(self) -> Counter[int]:
        """The number of tasks of each iteration, without evaluations."""
        keys = self.graph.tasks() if self.graph else ()
        return Counter(key.iteration for key in keys if key.phase not in OUTSIDE_ITERATIONS)


def times_of(run: Path) -> RunTimes:
    """Read the times of a run that is finished or in progress.

    Raises:
        StoreError: a manifest is damaged.
    """
    if "imported" in read_identity(run):
        return RunTimes((), None)
    paths = RunPaths(run)
    tasks = [task_time(key, manifests.read_manifest(paths.task_manifest(key))) for key in published_keys(run)]
    # Only tasks of iterations are requested, so the number of held-out problems does not matter.
    graph = Graph.of(read_run_config(run), num_evaluation_problems=0)
    # After a restart with fewer iterations, there can be tasks of later ones.
    graph = replace(graph, iterations=max([graph.iterations, *(t.key.iteration for t in tasks)]))
    return RunTimes(tuple(with_submissions(tasks, paths.slurm)), graph)


def task_time(key: TaskKey, manifest: Manifest) -> TaskTime:
    """Return when a task ran and what it did, from its manifest."""
    stats, writer = manifest.stats, manifest.writer
    laps = tuple(_laps(stats))
    ended = float(writer["time"])
    process = None
    started = stats.get("job_started", stats.get("process_started"))
    if started is not None and "process_ready" in stats:
        process = (float(started), float(stats["process_ready"]))
    began = ended - sum(seconds for _, seconds in laps)
    return TaskTime(
        key=key,
        began=began,
        ended=ended,
        host=writer["host"],
        pid=writer["pid"],
        laps=laps,
        process=process,
        stats=stats,
    )


def _laps(stats: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    """Return the laps of a task in order. `update` is split if the statistics have its parts."""
    for name, seconds in stats.get("seconds", {}).items():
        if name != "update":
            yield name, float(seconds)
        elif "train_s" not in stats:
            yield TRAIN, float(seconds)
        else:
            passes = stats.get("old_s", 0.0) + stats.get("reference_s", 0.0)
            train, save, compiled = stats["train_s"], stats.get("save_s", 0.0), stats.get("compile_s", 0.0)
            yield "prepare", max(0.0, float(seconds) - compiled - passes - train - save)
            yield from (("compile", compiled), (LOG_PROBS, passes), (TRAIN, train), ("save", save))


def with_submissions(tasks: Sequence[TaskTime], folder: Path) -> list[TaskTime]:
    """Add the time of submission to tasks.

    The first task of each element of an array gets the time at which the array was submitted.

    Args:
        tasks: published tasks.
        folder: folder with the records of submissions to SLURM.
    """
    by_key = {t.key: t for t in tasks}
    submitted: dict[TaskKey, list[float]] = {}
    patterns = [f"*-{iteration:04d}-*.json" for iteration in sorted({t.key.iteration for t in tasks})]
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        elements, at = _record(path)
        for keys in elements:
            published = [by_key[key] for key in keys if key in by_key]
            if published:
                first = min(published, key=lambda t: t.began)
                submitted.setdefault(first.key, []).append(at)
    return [_submitted(t, submitted[t.key]) if t.key in submitted else t for t in tasks]


def _submitted(task: TaskTime, times: Sequence[float]) -> TaskTime:
    """Add the submission that ran the task: the last one before the task began."""
    return replace(task, submitted=max((at for at in times if at <= task.began), default=min(times)))


def _record(path: Path) -> tuple[list[list[TaskKey]], float]:
    """The tasks of each element of a submission, and its time; empty when it was just renamed."""

    def parse(data: Any) -> tuple[list[list[TaskKey]], float]:
        return [[TaskKey.parse(text) for text in texts] for texts in data["elements"]], float(data["submitted"])

    try:
        return manifests.read_record(path, parse)
    except StoreError:
        if path.exists():
            raise
        return [], 0.0
