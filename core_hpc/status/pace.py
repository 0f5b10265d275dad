"""How fast a run is: completions per second, the time of its last iteration, and the time that is left.

In: the manifests of the tasks that were published last, and the tasks that run. Out: seconds and
speeds, or None while they are unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from analysis.timing.account import iteration_table
from analysis.timing.recorded import RunTimes, task_time, with_submissions
from core_hpc.problems.splits import EVALUATION
from core_hpc.runs.folder import Run
from core_hpc.runs.graph import Graph
from core_hpc.runs.job_status import RunningTask
from core_hpc.schedule.remaining import FinishedTask, TaskCosts, expected_completions
from core_hpc.store.manifests import Manifest
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import GENERATION_PHASES, OUTSIDE_ITERATIONS

SPEED_S = 600.0


def last_iteration(
    run: Run, graph: Graph, window: Mapping[TaskKey, Manifest]
) -> tuple[float | None, float | None, str | None]:
    """Time, overhead and largest item of the last iteration whose training is in the window."""
    wanted = Counter(k.iteration for k in graph.tasks() if k.phase not in OUTSIDE_ITERATIONS)
    found = Counter(k.iteration for k in window if k.phase not in OUTSIDE_ITERATIONS)
    last = max((i for i, num in found.items() if num == wanted[i]), default=None)
    if last is None:
        return None, None, None
    near = [task_time(k, m) for k, m in window.items() if abs(k.iteration - last) <= 1]
    times = RunTimes(tuple(with_submissions(near, run.paths.slurm)), graph)
    row = iteration_table(times).filter(iteration=last).row(0, named=True)
    return row["wall_s"], row["overhead"], row["largest"]


def _spans(manifests: Mapping[TaskKey, Manifest]) -> dict[TaskKey, tuple[float, float]]:
    """When published tasks began and ended."""
    return {
        key: (m.writer["time"] - sum(m.stats.get("seconds", {}).values()), m.writer["time"])
        for key, m in manifests.items()
    }


def seconds_left(
    run: Run,
    open_tasks: Sequence[TaskKey],
    published: Mapping[TaskKey, Manifest],
    running: Mapping[TaskKey, RunningTask],
) -> float | None:
    """Seconds until the run is finished at the pace of the tasks in `published`; None while that is unknown."""
    costs = TaskCosts(warm=run.config.cluster.driver != "arrays")
    for key, manifest in published.items():
        costs.add(key, FinishedTask.of(manifest.stats, manifest.writer["time"]))
    num_open = Counter(key.kind for key in open_tasks)
    progress = {key: at.progress for key in open_tasks if (at := running.get(key)) and at.progress}
    work_s = costs.work_s(num_open, expected_completions(run, run.num_problems(EVALUATION)), progress)
    return work_s / costs.concurrency() if work_s is not None else None


def completions_per_s(
    published: Mapping[TaskKey, Manifest], running: Mapping[TaskKey, RunningTask], now: float
) -> float | None:
    """Completions per second, as a mean over the last ten minutes, or since the first of these tasks began.

    The completions of a task are spread evenly over its time.
    """
    pieces = [
        (*span, published[key].stats.get("num_completions", 0))
        for key, span in _spans(published).items()
        if key.phase in GENERATION_PHASES
    ]
    for key, at in running.items():
        if key.phase in GENERATION_PHASES and at.progress is not None:
            pieces.append((at.started, at.time, at.progress.done))
    pieces = [(begin, end, num) for begin, end, num in pieces if end > now - SPEED_S]
    if not pieces:
        return None
    since = max(now - SPEED_S, min(begin for begin, *_ in pieces))
    total: float = sum(num * (end - max(begin, since)) / max(1e-9, end - begin) for begin, end, num in pieces)
    return total / max(1.0, now - since)
