"""The draw of training problems, against the probabilities of draws one after the other."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest

from core_hpc.runs.choice import SMALLEST_WEIGHT, draw, pass_rate_weights
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, RESCUE, SCORE
from tests.unit.runs.test_graph import graph


def test_a_draw_has_the_probabilities_of_draws_one_after_the_other() -> None:
    weights, count, num = [1.0, 0.1, 0.75, 2.0], 2, 40_000
    stream = random.Random(0)
    found = Counter(tuple(draw(weights, count, stream)) for _ in range(num))
    total = sum(weights)
    for first, second in itertools.permutations(range(len(weights)), count):
        expected = weights[first] / total * weights[second] / (total - weights[first])
        error = (expected * (1 - expected) / num) ** 0.5
        assert found[first, second] / num == pytest.approx(expected, abs=5 * error)


def test_all_problems_can_be_drawn_at_once() -> None:
    assert sorted(draw([0.1, 1.0, 1.0], 3, random.Random(1))) == [0, 1, 2]


def test_weights_are_largest_for_problems_that_are_solved_half_of_the_time() -> None:
    rates = np.linspace(0, 1, 101)
    weights = pass_rate_weights(rates)
    assert weights.argmax() == 50
    assert weights.min() == weights[0] == weights[-1] == SMALLEST_WEIGHT
    assert np.allclose(weights, weights[::-1])
    # The chance that two completions differ is 2 r (1 - r).
    middle = weights > SMALLEST_WEIGHT
    assert np.allclose(weights[middle], 2 * (1 - rates**2 - (1 - rates) ** 2)[middle])


def test_stale_weights_come_with_the_scores_before_them() -> None:
    inputs = graph(iterations=3, chooses_by_scores=True, staleness=1).inputs(TaskKey(3, COLD, "a", 0))
    assert {key for key in inputs if key.phase == SCORE} == {TaskKey(1, SCORE, TEAM, p) for p in (0, 1)}


def test_cold_tasks_wait_for_all_earlier_scores_only_if_these_choose_problems() -> None:
    for chooses in (False, True):
        shape = graph(iterations=3, chooses_by_scores=chooses)
        scored = {TaskKey(i, SCORE, TEAM, p) for i in (1, 2) for p in (0, 1)}
        assert scored & set(shape.inputs(TaskKey(3, COLD, "a", 0))) == (scored if chooses else set())
        assert not scored & set(shape.inputs(TaskKey(3, RESCUE, "a", 0)))
        before = set(shape.tasks_of(1)) | set(shape.tasks_of(2))
        assert TaskKey(3, COLD, "a", 0) in shape.ready(before)
        assert (TaskKey(3, COLD, "a", 0) in shape.ready(before - {TaskKey(2, SCORE, TEAM, 0)})) is not chooses
