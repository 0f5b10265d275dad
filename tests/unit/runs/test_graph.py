"""The task graph: which tasks are ready, in which order, and how horizons are extended."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_hpc.runs.graph import Graph, Horizon, extend_horizon, horizon_at
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, EVALUATE, HINT, RESCUE, SCORE, UPDATE, WARMUP


def graph(**changes: object) -> Graph:
    fields = {
        "models": ("a", "b"),
        "iterations": 2,
        "num_parts": 2,
        "num_evaluation_parts": 1,
        "evaluate_every": 0,
        "evaluate_before": True,
        "has_rescue": True,
    }
    return Graph(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_new_run_starts_with_evaluation_and_cold() -> None:
    ready = graph().ready(set())
    assert {k.phase for k in ready} == {EVALUATE, COLD}
    assert {k.iteration for k in ready if k.phase == COLD} == {1}
    assert ready[0] == TaskKey(0, EVALUATE, "a")


def test_a_part_continues_without_waiting_for_the_other() -> None:
    published = {TaskKey(1, COLD, m, 0) for m in "ab"}
    assert TaskKey(1, HINT, TEAM, 0) in graph().ready(published)
    assert TaskKey(1, HINT, TEAM, 1) not in graph().ready(published)


def test_an_update_needs_all_scores_but_not_the_other_model() -> None:
    g = graph()
    published = {k for k in g.tasks() if k.iteration == 1 and k.phase in (COLD, HINT, RESCUE, SCORE)}
    assert TaskKey(1, UPDATE, "a") in g.ready(published)
    assert TaskKey(1, UPDATE, "a") not in g.ready(published - {TaskKey(1, SCORE, TEAM, 1)})
    ready = g.ready({*published, TaskKey(1, UPDATE, "a")})
    assert TaskKey(2, COLD, "a", 0) in ready
    assert TaskKey(2, COLD, "b", 0) not in ready


def test_a_warm_up_comes_first_and_everything_of_its_model_waits_for_it() -> None:
    g = graph(warmed=("b",))
    warm = TaskKey(0, WARMUP, "b")
    assert g.tasks()[0] == warm
    assert [k for k in g.tasks() if k.phase == WARMUP] == [warm]
    first = g.ready(set())
    assert first[0] == warm
    assert {k.model for k in first[1:]} == {"a"}
    assert {(k.phase, k.model) for k in g.ready({warm})} == {(p, m) for p in (EVALUATE, COLD) for m in "ab"}
    for key in g.tasks():
        reads_weights = key.phase in (COLD, RESCUE, UPDATE, EVALUATE) and key.model == "b"
        assert (warm in g.inputs(key)) == reads_weights, key
    # A damaged warm-up is made again before anything else of its model, also late in a run.
    late = {k for k in g.tasks() if k.iteration < 2} - {warm}
    assert {k.model for k in g.ready(late) if k.phase == COLD} == {"a"}
    assert warm in g.ready(late)


def test_without_rescue_samples_there_are_no_hint_and_rescue_tasks() -> None:
    assert {k.phase for k in graph(has_rescue=False).tasks()} == {EVALUATE, COLD, SCORE, UPDATE}


def test_iterations_that_are_evaluated() -> None:
    assert graph(iterations=5).evaluated() == [0, 5]
    assert graph(iterations=5, evaluate_every=2).evaluated() == [0, 2, 4, 5]
    assert graph(iterations=5, evaluate_every=2, evaluate_before=False).evaluated() == [2, 4, 5]
    assert not [k for k in graph(iterations=5, evaluate_before=False).tasks() if k.iteration == 0]


@given(st.randoms(), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 2))
def test_any_order_of_publishing_ends_with_every_task_once(
    rng: object, models: int, parts: int, has_rescue: bool, every: int
) -> None:
    g = graph(models=tuple("abc"[:models]), num_parts=parts, has_rescue=has_rescue, evaluate_every=every)
    published: set[TaskKey] = set()
    while not g.finished(published):
        ready = g.ready(published)
        assert ready
        assert not published & set(ready)
        published.add(rng.choice(ready))  # type: ignore[attr-defined]
    assert published == set(g.tasks())
    assert g.ready(published) == []


def read_or_awaited(key: TaskKey, staleness: int, parts: int, *, has_rescue: bool) -> set[TaskKey]:
    """What a task reads or must wait for, written out task by task for the models a and b."""
    i, own = key.iteration, key.model
    sampling = {1: 0, 2: 1 - staleness, 3: 2 - staleness, 4: 3 - staleness}
    last_phase = RESCUE if has_rescue else COLD
    weights = {TaskKey(sampling[i], UPDATE, own)} if sampling.get(i) else set()
    if key.phase == EVALUATE:
        return {TaskKey(i, UPDATE, own)} if i else set()
    if key.phase == COLD:
        before = {TaskKey(i - 1, last_phase, own, p) for p in range(parts)} if staleness and i > 1 else set()
        return weights | before
    if key.phase == HINT:
        return {TaskKey(i, COLD, "a", key.part), TaskKey(i, COLD, "b", key.part)}
    if key.phase == RESCUE:
        return weights | {TaskKey(i, HINT, TEAM, key.part)}
    phases = (COLD, RESCUE) if has_rescue else (COLD,)
    if key.phase == SCORE:
        return {TaskKey(i, phase, m, key.part) for phase in phases for m in "ab"}
    assert key.phase == UPDATE
    newest = {TaskKey(i - 1, UPDATE, own)} if i > 1 else set()
    samples = {TaskKey(i, phase, own, p) for phase in phases for p in range(parts)}
    return weights | newest | samples | {TaskKey(i, SCORE, TEAM, p) for p in range(parts)}


@settings(max_examples=60)
@given(st.randoms(), st.integers(0, 1), st.integers(1, 2), st.booleans())
def test_ready_is_what_an_enumeration_finds(rng: object, staleness: int, parts: int, has_rescue: bool) -> None:
    g = graph(iterations=4, num_parts=parts, has_rescue=has_rescue, staleness=staleness)
    published: set[TaskKey] = set()
    while not g.finished(published):
        expected = [
            key
            for key in g.tasks()
            if key not in published and read_or_awaited(key, staleness, parts, has_rescue=has_rescue) <= published
        ]
        assert g.ready(published) == expected
        # A greedy choice of one model and of late iterations reaches the states that are furthest apart.
        late = sorted(expected, key=lambda key: (key.model == "a", key.iteration))
        published.add(late[-1] if rng.random() < 0.7 else rng.choice(expected))  # type: ignore[attr-defined]


def test_with_staleness_an_iteration_is_sampled_while_the_one_before_is_updated() -> None:
    g = graph(iterations=3, num_parts=1, staleness=1)
    assert [g.sampler(i) for i in (1, 2, 3)] == [0, 0, 1]
    sampled = {k for k in g.tasks() if k.iteration == 1 and k.phase in (COLD, HINT, RESCUE)}
    published = {k for k in g.tasks() if k.iteration == 0} | sampled
    assert g.ready(published) == [TaskKey(1, SCORE, TEAM), TaskKey(2, COLD, "a"), TaskKey(2, COLD, "b")]
    # Iteration 3 needs the update of iteration 1, and that of iteration 2 the same, as the weights to start from.
    published |= {k for k in g.tasks() if k.iteration <= 2 and k.phase in (COLD, HINT, RESCUE, SCORE)}
    assert g.ready(published) == [TaskKey(1, UPDATE, "a"), TaskKey(1, UPDATE, "b")]
    assert set(g.ready({*published, TaskKey(1, UPDATE, "a")})) == {
        TaskKey(1, UPDATE, "b"),
        TaskKey(2, UPDATE, "a"),
        TaskKey(3, COLD, "a"),
    }


def test_with_staleness_a_model_samples_an_iteration_to_its_end_first() -> None:
    g = graph(iterations=2, num_parts=1, evaluate_before=False, staleness=1)
    cold = {TaskKey(1, COLD, m) for m in "ab"}
    assert g.ready(cold) == [TaskKey(1, HINT, TEAM)]
    rescued = cold | {TaskKey(1, HINT, TEAM), TaskKey(1, RESCUE, "a")}
    assert g.ready(rescued) == [TaskKey(1, RESCUE, "b"), TaskKey(2, COLD, "a")]


@given(st.integers(1, 4), st.integers(1, 4))
def test_a_longer_run_contains_the_shorter_one_except_its_last_evaluation(short: int, more: int) -> None:
    shorter, longer = graph(iterations=short).tasks(), set(graph(iterations=short + more).tasks())
    assert {k for k in shorter if k not in longer} <= {
        k for k in shorter if k.phase == EVALUATE and k.iteration == short
    }


@pytest.mark.parametrize("staleness", [0, 1])
def test_tasks_come_after_what_they_read(staleness: int) -> None:
    g = graph(iterations=4, staleness=staleness, warmed=("b",))
    seen: set[TaskKey] = set()
    for key in g.tasks():
        assert set(g.inputs(key)) <= seen
        seen.add(key)


def test_a_new_horizon_begins_after_the_last_update() -> None:
    first = extend_horizon([], 3, set())
    assert first == [Horizon(1, 3)]
    # Nothing is updated yet, so this is as if the run had started with 2 or 6 iterations.
    assert extend_horizon(first, 2, {TaskKey(1, COLD, "a")}) == [Horizon(1, 2)]
    assert extend_horizon(first, 6, set()) == [Horizon(1, 6)]
    updated = {TaskKey(i, UPDATE, "a") for i in (1, 2, 3)}
    longer = extend_horizon(first, 6, updated)
    assert longer == [Horizon(1, 3), Horizon(4, 6)]
    assert [horizon_at(longer, i) for i in (1, 3, 4, 6)] == [3, 3, 6, 6]
    assert extend_horizon(longer, 6, updated) == longer
    assert extend_horizon(longer, 5, updated) == longer
    assert extend_horizon(longer, 9, {*updated, TaskKey(4, UPDATE, "b")}) == [*longer, Horizon(5, 9)]
