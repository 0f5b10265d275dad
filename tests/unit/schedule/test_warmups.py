"""Warm-ups of several runs: one computation at a time, the others follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core_hpc.config.run import RunConfig
from core_hpc.runs.events import Done, Event, TaskRef
from core_hpc.runs.folder import ModelFacts, Run
from core_hpc.runs.graph import Graph
from core_hpc.schedule.base import Adopted
from core_hpc.schedule.progress import RunProgress
from core_hpc.schedule.scheduler import Scheduler
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import COLD, WARMUP
from tests.unit.config.test_sweep import MINIMAL

SOURCE = {"source": "generated", "task": "skills", "count": 8}


class Recorder:
    """Takes everything, and ends one warm-up per call in the order of submission."""

    def __init__(self) -> None:
        self.submitted: list[TaskRef] = []
        self.open: list[tuple[Run, TaskRef]] = []
        self.most_open = 0

    def adopt(self, runs: Sequence[Run]) -> Adopted:
        return Adopted()

    def submit(self, wanted: Sequence[tuple[Run, TaskKey]]) -> list[TaskRef]:
        taken = [(run, TaskRef(run.run_id, key)) for run, key in wanted if key.phase == WARMUP]
        self.submitted += [task for _, task in taken]
        self.open += taken
        self.most_open = max(self.most_open, len(self.open))
        return [task for _, task in taken]

    def poll(self) -> list[Event]:
        run, task = self.open.pop(0)
        folder, name = run.paths.task_folder(task.key), run.paths.task_name(task.key)

        def fill(temporary: Path) -> dict[str, tuple[int, str]]:
            (temporary / "file.txt").write_text("done")
            return {}

        manifests.publish(folder, name, fill, as_folder=False)
        return [Done(task)]

    def abandon(self, run: Run, why: str) -> list[TaskRef]:
        return []

    def close(self) -> None:
        pass


def run_of(root: Path, name: str, **warmup: Any) -> RunProgress:
    team = [{"name": m, "model": m, "warmup": {"problems": SOURCE, **warmup}} for m in ("a", "b")]
    config = RunConfig.model_validate({**MINIMAL, "team": team, "seed": len(name)})
    run = Run(name, RunPaths(root / name), config, {m: ModelFacts("f", 64, "plain") for m in ("a", "b")})
    return RunProgress(run, Graph.of(config, num_evaluation_problems=4), set())


def test_runs_with_the_same_warm_up_do_not_compute_it_at_the_same_time(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, "one"), run_of(tmp_path, "three"), run_of(tmp_path, "other", seed=1)]
    executor = Recorder()
    done = lambda: all(sum(k.phase == WARMUP for k in p.published) == 2 for p in runs)  # noqa: E731
    Scheduler(runs, executor, [], max_attempts=1, stop_requested=done).run()
    names = [(task.run_id, task.key.model) for task in executor.submitted]
    assert names[:4] == [("one", "a"), ("one", "b"), ("other", "a"), ("other", "b")]
    assert sorted(names[4:]) == [("three", "a"), ("three", "b")]
    assert executor.most_open == 4


def test_open_tasks_are_counted_by_kind(tmp_path: Path) -> None:
    progress, key = run_of(tmp_path, "one"), TaskKey(1, COLD, "a")

    def counted() -> dict[tuple[str, str], int]:
        return dict(Counter((k.phase, k.model) for k in progress.open_tasks))

    assert progress.num_open == counted()
    before = progress.num_open[COLD, "a"]
    for _ in range(2):
        progress.add_published(key)
        assert progress.num_open[COLD, "a"] == counted().get((COLD, "a"), 0) == before - 1
    for _ in range(2):
        progress.withdraw(key)
        assert progress.num_open == counted()
