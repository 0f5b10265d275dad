"""The estimate of the time left, with given times of tasks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import yaml
from core_hpc.problems.splits import EVALUATION
from core_hpc.runs.outcome import Progress
from core_hpc.runs.sweep import load_sweep
from core_hpc.schedule.remaining import RECENT_TASKS, FinishedTask, TaskCosts, expected_completions
from core_hpc.store.paths import TEAM, TaskKey
from tests.support.created_run import create_run
from tests.support.fake_slurm import SWEEP

MODELS = ("m0", "m1")
EXPECTED = {"cold": 8.0, "rescue": 2.0, "update": 32.0, "evaluate": 16.0, "hint": 0.0, "score": 0.0}
NEXT = [TaskKey(2, "cold", model, part) for part in (0, 1, 2) for model in MODELS]


def costs_of(*tasks: tuple[TaskKey, float, float], warm: bool = False, load_s: float = 0.0) -> TaskCosts:
    """The costs after some tasks.

    Args:
        tasks: key, time of the end, and duration of each.
        load_s: how much of the duration is loading.
    """
    costs = TaskCosts(warm=warm)
    for key, end, seconds in tasks:
        stats = {"seconds": {"load": load_s, "generate": seconds - load_s}, "num_completions": 4}
        costs.add(key, FinishedTask.of(stats, end))
    return costs


def left_s(costs: TaskCosts, open_tasks: list[TaskKey], running: dict[TaskKey, Progress] | None = None) -> float | None:
    num_open = Counter((key.phase, key.model) for key in open_tasks)
    work_s = costs.work_s(num_open, EXPECTED, running or {})
    return work_s / costs.concurrency() if work_s is not None else None


def two_at_a_time() -> list[tuple[TaskKey, float, float]]:
    return [(TaskKey(1, "cold", model, part), 100.0 + 10 * part, 10.0) for part in (0, 1) for model in MODELS]


def test_work_is_divided_by_how_many_tasks_ran_at_once() -> None:
    costs = costs_of(*two_at_a_time())
    assert costs.concurrency() == pytest.approx(2.0)
    assert left_s(costs, NEXT) == pytest.approx(30.0)  # 6 tasks of 10 s, two at a time


def test_the_finished_share_of_a_running_task_is_subtracted() -> None:
    costs = costs_of(*two_at_a_time())
    assert left_s(costs, NEXT, {NEXT[0]: Progress(3, 6, 0)}) == pytest.approx(27.5)


def test_a_running_task_that_was_published_a_moment_ago_has_no_work_left() -> None:
    costs = costs_of(*two_at_a_time())
    assert left_s(costs, [], {NEXT[0]: Progress(6, 6, 0)}) == 0.0


def test_there_is_no_estimate_before_a_task_has_ended() -> None:
    assert left_s(TaskCosts(warm=True), NEXT) is None


def test_a_new_kind_of_task_is_estimated_from_its_expected_completions() -> None:
    """4 completions took 10 s, so an update that costs 32 completions takes 80 s.

    Tasks of the team cost nothing as long as none has ended.
    """
    costs = costs_of((TaskKey(1, "cold", "m0"), 10.0, 10.0))
    assert left_s(costs, [TaskKey(1, "update", "m0"), TaskKey(1, "score", TEAM)]) == pytest.approx(80.0)
    costs.add(TaskKey(1, "update", "m1"), FinishedTask(20.0, 25.0, 5.0))
    assert costs.estimate_s(("update", "m0"), EXPECTED) == pytest.approx(5.0)


def test_the_speed_of_a_model_is_that_of_its_largest_task_and_an_unknown_model_is_as_slow_as_the_slowest() -> None:
    """A few completions do not show the speed of many."""
    costs = TaskCosts(warm=True)
    for model, num, seconds in (("m0", 2, 60.0), ("m0", 10, 20.0), ("m0", 3, 90.0), ("m1", 5, 5.0)):
        costs.add(TaskKey(1, "cold", model), FinishedTask(0.0, seconds, seconds, num, seconds))
    assert costs.estimate_s(("update", "m0"), EXPECTED) == pytest.approx(32 * 2.0)
    assert costs.estimate_s(("update", "m1"), EXPECTED) == pytest.approx(32 * 1.0)
    assert costs.estimate_s(("update", "m2"), EXPECTED) == pytest.approx(32 * 2.0)


def test_more_than_everything_is_never_done() -> None:
    """A task may report more units than it had, as after a damaged publication was made again."""
    costs = costs_of(*two_at_a_time())
    assert left_s(costs, NEXT[:1], {NEXT[0]: Progress(9, 6, 0)}) == 0.0


def test_a_task_began_before_its_start_up() -> None:
    stats = {"seconds": {"load": 6.0, "generate": 3.0, "verify": 1.0}, "num_completions": 4}
    assert FinishedTask.of(stats, 100.0) == FinishedTask(90.0, 100.0, 4.0, 4, 3.0)


@pytest.mark.parametrize("with_sets", [False, True])
def test_expected_completions_of_a_task(tmp_path: Path, with_sets: bool) -> None:
    """Two parts of 6 and 4 problems, 3 cold completions, and held-out problems in parts of 6."""
    sets = [{"name": "extra", "problems": {"source": "generated", "count": 5}, "samples": 7}] if with_sets else []
    data = {
        **SWEEP,
        "output": str(tmp_path),
        "protocol": {"problems_per_iteration": 10, "problems_per_part": 6, "cold_samples": 3},
        "evaluation": {"samples": 4, "sets": sets},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(data))
    run = create_run(load_sweep(tmp_path / "sweep.yaml"))
    num_problems = run.num_problems(EVALUATION)
    parts = run.graph().num_evaluation_parts
    assert (num_problems, parts) == ((9, 2) if with_sets else (4, 1))
    found = expected_completions(run, num_problems)
    cold = 10 * 3 / 2
    evaluated = (4 * 4 + 5 * 7) / 2 if with_sets else 4 * 4
    expected = {"cold": cold, "rescue": 0.2 * cold, "update": 2 * 10 * 3, "evaluate": evaluated}
    assert found == pytest.approx({**expected, "warmup": 0, "hint": 0, "score": 0})


def test_a_warm_worker_does_not_load_again() -> None:
    task = (TaskKey(1, "cold", "m0"), 100.0, 10.0)
    cold, warm = (costs_of(task, warm=warm, load_s=6.0) for warm in (False, True))
    assert cold.estimate_s(("cold", "m0"), EXPECTED) == pytest.approx(10.0)
    assert warm.estimate_s(("cold", "m0"), EXPECTED) == pytest.approx(4.0)


def test_a_long_interruption_counts_as_much_as_the_longest_task_and_a_minute() -> None:
    """50 s of work in 20 s, an interruption that counts as 70 s, and 10 s: half a task at a time."""
    costs = costs_of(*two_at_a_time(), (TaskKey(2, "cold", "m0", 9), 90_000.0, 10.0))
    assert left_s(costs, NEXT) == pytest.approx(6 * 10 / 0.5)


def test_only_the_latest_tasks_show_how_many_run_at_once() -> None:
    """First two at a time, then RECENT_TASKS tasks one after the other."""
    alone = [(TaskKey(2, "cold", "m0", part), 120.0 + 10 * part, 10.0) for part in range(RECENT_TASKS)]
    assert costs_of(*two_at_a_time(), *alone[:-4]).concurrency() > 1.0
    assert costs_of(*two_at_a_time(), *alone).concurrency() == pytest.approx(1.0)
