"""Advantages without the division by the standard deviation, and the compared completions.

The references are exact fractions, and for `update.group: model` the scores of each model alone.
Advantages with the division are tested in test_rewards.py.
"""

from __future__ import annotations

import random
import zlib
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from core_hpc.config.run import RunConfig
from core_hpc.phases.context import Warm
from core_hpc.phases.score import _length_shares, schedule_index, score_rollouts
from core_hpc.protocol.advantages import advantages
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, RESCUE, SCORE

REWARDS = st.lists(st.integers(-40, 40).map(lambda n: n / 16), min_size=1, max_size=8)


@given(REWARDS)
def test_without_division_advantages_are_centred_rewards(rewards: list[float]) -> None:
    exact = [Fraction(r) for r in rewards]
    mean = sum(exact) / len(exact)
    assert advantages(rewards, scale="none").tolist() == pytest.approx([float(r - mean) for r in exact], abs=1e-12)


@given(REWARDS, st.integers(1, 50))
def test_only_without_division_do_larger_rewards_give_larger_advantages(rewards: list[float], factor: int) -> None:
    larger = [factor * r for r in rewards]
    assert advantages(larger, scale="none").tolist() == pytest.approx(
        (factor * advantages(rewards, scale="none")).tolist(), abs=1e-9
    )
    assert advantages(larger).tolist() == pytest.approx(advantages(rewards).tolist(), abs=1e-5)


@given(st.floats(-100, 100), st.integers(1, 6))
def test_equal_rewards_give_exactly_zero(value: float, n: int) -> None:
    assert advantages([value] * n, scale="none").tolist() == [0.0] * n


# --- the compared completions --------------------------------------------------------------------


class _Embedder:
    """A random direction per text, the same in every call."""

    def embed(self, texts: list[str]) -> np.ndarray:
        return np.stack([np.random.default_rng(zlib.crc32(text.encode())).normal(size=6) for text in texts])


WORDS = ("add", "divide by", "so x =", "check", "simplify", "half of", "square")


def rollouts_of(seed: int, models: str, phases: dict[str, int]) -> pl.DataFrame:
    """Random completions of three problems in a random order; models that failed cold get hints."""
    draw = random.Random(seed)
    rows = []
    for problem in ("p", "q", "r"):
        for model in models:
            solved = False
            for phase, num in phases.items():
                for _ in range(num if phase == COLD or not solved else 0):
                    correct = draw.random() < 0.5
                    solved |= correct and phase == COLD
                    rows.append(
                        {
                            "model": model,
                            "problem_id": problem,
                            "phase": phase,
                            "correct": correct,
                            "hint_given": phase == RESCUE,
                            "answer": "12" if correct else draw.choice([None, "7", "12 3"]),
                            "gold": "12",
                            "text": " ".join(draw.choices(WORDS, k=4)),
                        }
                    )
    draw.shuffle(rows)
    return pl.DataFrame(rows, schema_overrides={"answer": pl.String})


def scored(
    rollouts: pl.DataFrame, models: str, *, iteration: int = 1, rule: str = "leave_one_out", **update: Any
) -> pl.DataFrame:
    """The columns that the score phase adds, for a run with these models."""
    config = RunConfig.model_validate(
        {
            "name": "s",
            "iterations": 2,
            "team": [{"name": m, "model": "x"} for m in models],
            "problems": {split: {"source": "generated", "count": 3} for split in ("train", "evaluation")},
            "protocol": {"problems_per_iteration": 3, "rescue_samples": 0},
            "update": update,
            "reward": {"explore": {"rule": rule}, "distance": {"embedder": "fake:none"}},
        }
    )
    context = SimpleNamespace(
        run=SimpleNamespace(config=config, num_problems=lambda split: 3),
        key=TaskKey(iteration, SCORE, TEAM),
        warm=Warm(_embedder=("fake:none", _Embedder())),  # type: ignore[arg-type]
        progress=lambda *_: None,
    )
    return score_rollouts(context, rollouts)  # type: ignore[arg-type]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["leave_one_out", "greedy_outsider", "dpp"]), st.sampled_from([1, 2]))
def test_with_group_model_a_model_is_scored_as_if_trained_alone(seed: int, rule: str, iteration: int) -> None:
    """The reference is a run of one model with the same completions.

    In iteration 2 (epoch 2) cross has a weight.
    """
    rollouts = rollouts_of(seed, "abc", {COLD: 3})
    together = scored(rollouts, "abc", iteration=iteration, rule=rule, group="model")
    for model in "abc":
        mine = (rollouts["model"] == model).to_numpy()
        alone = scored(rollouts.filter(mine), model, iteration=iteration, rule=rule)
        assert together.filter(mine).equals(alone)


def test_comparing_with_peers_changes_the_scores() -> None:
    """The test above could fail: in a team, every part that depends on peers has other values."""
    rollouts = rollouts_of(0, "ab", {COLD: 2, RESCUE: 2})
    team, alone = (scored(rollouts, "ab", iteration=2, group=group) for group in ("team", "model"))
    for part in ("explore", "rescue", "trace_accuracy", "cross", "reward", "advantage"):
        assert not np.allclose(team[part], alone[part]), part
    assert team["exploit"].equals(alone["exploit"])
    assert alone["rescue"].to_list() == alone["cross"].to_list() == [0.0] * rollouts.height


@pytest.mark.parametrize(
    ("schedule_by", "expected"), [("iteration", [0, 1, 2, 3, 4, 5, 6]), ("epoch", [0, 0, 0, 1, 1, 1, 2])]
)
def test_the_index_of_a_schedule_counts_iterations_or_epochs(schedule_by: str, expected: list[int]) -> None:
    """An epoch of 12 problems has three iterations of 4 problems."""
    config = SimpleNamespace(
        reward=SimpleNamespace(schedule_by=schedule_by), protocol=SimpleNamespace(problems_per_iteration=4)
    )
    run = SimpleNamespace(config=config, num_problems=lambda split: 12)
    found = [schedule_index(SimpleNamespace(run=run, key=TaskKey(i, SCORE, TEAM))) for i in range(1, 8)]  # type: ignore[arg-type]
    assert found == expected


def test_lengths_are_shares_of_the_limit_of_each_model() -> None:
    """A completion that was cut has a share of 1, however many tokens it has."""
    config = SimpleNamespace(
        team=[SimpleNamespace(name=name) for name in "ab"],
        sampling_of=lambda model, phase: SimpleNamespace(max_new_tokens={"a": 10, "b": 40}[model.name]),
    )
    columns = {"model": ["a", "b", "b", "a"], "num_completion_tokens": [4, 4, 40, 9]}
    group = pl.DataFrame({**columns, "finish_reason": ["stop", "stop", "stop", "length"]})
    assert _length_shares(config, group).tolist() == [0.4, 0.1, 1.0, 1.0]  # type: ignore[arg-type]


def test_with_group_model_advantages_are_over_the_models_own_completions() -> None:
    rollouts = rollouts_of(11, "ab", {COLD: 4, RESCUE: 2})
    table = pl.concat([rollouts, scored(rollouts, "ab", group="model", advantage_scale="none")], how="horizontal")
    for row in table.iter_rows(named=True):
        same = [
            r for r in table.iter_rows(named=True) if (r["model"], r["problem_id"]) == (row["model"], row["problem_id"])
        ]
        own = [Fraction(r["reward"]) for r in same]
        assert row["advantage"] == pytest.approx(float(Fraction(row["reward"]) - sum(own) / len(own)), abs=1e-12)
        assert row["zero_signal"] == (len(set(own)) == 1)


# --- the baseline --------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize(
    ("baseline", "same"),
    [("team", ()), ("model", ("model",)), ("model_phase", ("model", "phase"))],
)
def test_a_baseline_takes_mean_and_deviation_of_its_completions(
    baseline: str, same: tuple[str, ...], scale: str
) -> None:
    """Each advantage against a plain loop. The rewards are those of the team for every baseline."""
    rollouts = rollouts_of(11, "abc", {COLD: 2, RESCUE: 1})
    team = scored(rollouts, "abc", iteration=2)
    found = scored(rollouts, "abc", iteration=2, baseline=baseline, advantage_scale=scale)
    assert found.drop("advantage", "zero_signal").equals(team.drop("advantage", "zero_signal"))
    rows = pl.concat([rollouts, found], how="horizontal").to_dicts()
    some_signal, no_signal = 0, 0
    for row in rows:
        of_group = [r["reward"] for r in rows if all(r[c] == row[c] for c in ("problem_id", *same))]
        mean = sum(of_group) / len(of_group)
        deviation = (sum((r - mean) ** 2 for r in of_group) / len(of_group)) ** 0.5
        expected = (row["reward"] - mean) / (deviation + 1e-8 if scale == "std" else 1.0)
        assert row["advantage"] == pytest.approx(0.0 if len(set(of_group)) == 1 else expected, abs=1e-9)
        assert row["zero_signal"] == (len(set(of_group)) == 1)
        some_signal, no_signal = some_signal + (not row["zero_signal"]), no_signal + row["zero_signal"]
    assert some_signal
    assert no_signal or baseline != "model_phase"


def test_a_model_that_always_fails_is_pushed_down_only_by_the_baseline_of_the_team() -> None:
    rows = [("a", True), ("a", True), ("b", False), ("b", False)]
    rollouts = rollouts_of(0, "ab", {COLD: 2}).filter(pl.col("problem_id") == "p").sort("model")
    rollouts = rollouts.with_columns(
        correct=pl.Series([right for _, right in rows]),
        answer=pl.Series(["12" if right else None for _, right in rows]),
        text=pl.Series(["half of"] * 4),
    )
    team, model = (scored(rollouts, "ab", baseline=baseline)["advantage"].to_list() for baseline in ("team", "model"))
    assert team[2:] == pytest.approx([-1.0, -1.0], abs=1e-6)
    assert model == [0.0] * 4


def test_a_baseline_without_peers_is_a_configuration_error() -> None:
    with pytest.raises(ValidationError, match=r"update\.baseline has no effect"):
        scored(rollouts_of(0, "ab", {COLD: 2}), "ab", group="model", baseline="model")


def test_the_baseline_of_the_batch_is_over_the_problems_of_an_optimizer_step() -> None:
    """The steps are those of the update, which cuts the rows of a model."""
    from core_hpc.common.seeds import stable_seed
    from core_hpc.training.batching import Row, step_rows

    rollouts = rollouts_of(11, "ab", {COLD: 3, RESCUE: 1})
    found = scored(rollouts, "ab", iteration=2, baseline="model_batch", problems_per_step=2)
    seed = stable_seed(42, "update", "shuffle", 2)
    no_ids: dict[str, Any] = {"prompt_token_ids": [1], "completion_token_ids": [1], "behaviour_logprobs": None}
    rows = [Row(key=(p,), problem_id=p, **no_ids, advantage=0.0, weight=1.0) for p in ("p", "q", "r")]
    steps = [problems for problems, _ in step_rows(rows, problems_per_step=2, seed=seed)]
    assert [len(step) for step in steps] == [2, 1]
    table = pl.concat([rollouts, found], how="horizontal").to_dicts()
    for row in table:
        (step,) = [step for step in steps if row["problem_id"] in step]
        rewards = [r["reward"] for r in table if r["problem_id"] in step and r["model"] == row["model"]]
        mean = sum(rewards) / len(rewards)
        deviation = (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5
        assert row["advantage"] == pytest.approx((row["reward"] - mean) / (deviation + 1e-8), abs=1e-9)
