"""Advantages for team Pass@k against the enumeration of all outcomes, and in the score phase."""

from __future__ import annotations

from itertools import combinations, product
from math import prod

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from core_hpc.protocol.team_pass import all_fail, team_pass_advantages
from core_hpc.store.schema import COLD, RESCUE
from tests.unit.protocol.test_advantages import rollouts_of, scored

P = {"a": 0.3, "b": 0.6, "c": 0.15}


@pytest.mark.parametrize("n", range(1, 6))
def test_all_fail_counts_the_draws_without_a_correct_completion(n: int) -> None:
    for c, k in product(range(n + 1), range(n + 1)):
        draws = list(combinations([True] * c + [False] * (n - c), k))
        assert all_fail(n, c, k) == pytest.approx(sum(not any(draw) for draw in draws) / len(draws))


@pytest.mark.parametrize(
    ("counts", "k"), [({"a": 2}, 1), ({"a": 4}, 2), ({"a": 3, "b": 4}, 2), ({"a": 2, "b": 2, "c": 3}, 1)]
)
def test_the_expected_gradient_is_that_of_team_pass_at_k(counts: dict[str, int], k: int) -> None:
    """Each model is right with probability sigmoid(theta), so grad log pi of a completion is correct - p."""
    models = [model for model, n in counts.items() for _ in range(n)]
    found = dict.fromkeys(counts, 0.0)
    for outcome in product((False, True), repeat=len(models)):
        probability = prod(P[m] if right else 1 - P[m] for m, right in zip(models, outcome, strict=True))
        advantages = team_pass_advantages(models, np.array(outcome), k=k)
        for m, right, advantage in zip(models, outcome, advantages, strict=True):
            found[m] += probability * advantage * (right - P[m]) / counts[m]
    for m, gradient in found.items():
        peers = prod((1 - P[j]) ** k for j in counts if j != m)
        assert gradient == pytest.approx(k * (1 - P[m]) ** (k - 1) * P[m] * (1 - P[m]) * peers, abs=1e-12)


def test_too_few_completions_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 3"):
        team_pass_advantages(["a", "a"], np.array([True, False]), k=2)
    with pytest.raises(ValidationError, match="set cold_samples to 3 or more"):
        scored(rollouts_of(0, "ab", {COLD: 2}), "ab", team_pass={"weight": 1})


@pytest.mark.parametrize(("iteration", "share"), [(1, 0.0), (3, 0.5), (6, 1.0)])
@pytest.mark.parametrize("group", ["team", "model"])
def test_the_score_phase_mixes_both_advantages(iteration: int, share: float, group: str) -> None:
    """The schedule leads from the reward to team Pass@1 in four iterations. Rescues have no share in Pass@1."""
    rollouts = rollouts_of(4, "ab", {COLD: 2} if group == "model" else {COLD: 2, RESCUE: 2})
    schedule = {"weight": 0, "weight_end": 1, "weight_iterations": 4, "k": 1}
    plain = scored(rollouts, "ab", iteration=iteration, group=group)
    mixed = scored(rollouts, "ab", iteration=iteration, group=group, team_pass=schedule)
    rows = pl.concat([rollouts, mixed.rename({"advantage": "mixed"}), plain.select("advantage")], how="horizontal")
    signal = 0.0
    for row in rows.iter_rows(named=True):
        cold = [r for r in rows.iter_rows(named=True) if r["problem_id"] == row["problem_id"] and r["phase"] == COLD]
        own = [r["correct"] for r in cold if r["model"] == row["model"]]
        peers = [r["correct"] for r in cold if r["model"] != row["model"]] if group == "team" else []
        peers_fail = 1 - sum(peers) / len(peers) if peers else 1.0
        # Leave-one-out of two completions: the own result minus the other one.
        expected = peers_fail * (2 * row["correct"] - sum(own)) if row["phase"] == COLD else 0.0
        signal += abs(expected)
        assert row["team_pass_advantage"] == (pytest.approx(expected) if row["phase"] == COLD else None)
        assert row["mixed"] == pytest.approx((1 - share) * row["advantage"] + share * expected, abs=1e-12)
    assert signal > 0
    assert plain["team_pass_advantage"].null_count() == plain.height
