"""The Pass@k tables: known answers, pairing, the best single model, and what is said of missing rows."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from analysis.counts import COUNTS, count_rows
from analysis.estimators import pass_at_k
from analysis.intervals import NUM_DRAWS
from analysis.passk import before_after_table, before_and_after, gain_table, pass_at_k_table
from core_hpc.errors import StoreError
from tests.unit.analysis_data import counts_frame, pick, rollout, rollouts


def test_counting() -> None:
    rows = [rollout(sample_index=s, correct=s == 0, finish_reason="length") for s in range(3)]
    rows += [rollout(sample_index=3, verdict="timeout")]
    counts = count_rows(rollouts(rows))
    assert counts.schema == COUNTS
    assert counts.select("n", "c", "num_timeout", "num_truncated").rows() == [(4, 1, 1, 3)]


def test_a_hinted_row_in_a_cold_metric_is_an_error() -> None:
    with pytest.raises(StoreError, match=r"run x: 1 hinted completions outside .*'evaluate', 'ada', 'p0'"):
        count_rows(rollouts([rollout(phase="evaluate", hint_given=True)]), source="run x")


def test_levels_and_budgets() -> None:
    c = np.array([[4, 2, 0, 0], [0, 2, 4, 0]])
    table = pass_at_k_table(counts_frame(4, c), ks=[1, 2])
    assert pick(table, measure="pass", model="ada", k=1)["estimate"] == pytest.approx(6 / 16)
    team = pick(table, measure="team_pass", k=2)
    assert team["candidates"] == 4
    # ada solves p0 for sure, bob p2; on p1 both fail with chance (C(2,2)/C(4,2))^2 = 1/36; p3 is never solved
    assert team["estimate"] == pytest.approx((1 + 35 / 36 + 1) / 4)
    matched = pick(table, measure="matched_pass", model="ada", k=2)
    assert matched["candidates"] == 4
    assert matched["estimate"] == pytest.approx(2 / 4)
    assert pick(table, measure="coverage")["estimate"] == pytest.approx(3 / 4)
    assert table["note"].str.contains("fewer than 100 problems").all()


def test_too_few_completions_is_null_and_says_so() -> None:
    table = pass_at_k_table(counts_frame(2, np.ones((2, 150), dtype=int)), ks=[2, 4])
    assert pick(table, measure="pass", model="ada", k=2)["estimate"] == 1.0
    for measure in ("pass", "matched_pass"):
        row = pick(table, measure=measure, model="ada", k=4)
        assert (row["estimate"], row["low"], row["high"]) == (None, None, None)
        assert "150 problems have fewer than" in row["note"]
    gain = pick(gain_table(counts_frame(2, np.ones((2, 150), dtype=int)), ks=[2]), baseline="matched_budget")
    assert gain["estimate"] is None
    assert "fewer than 4" in gain["note"]


def test_difference_is_paired_by_problem() -> None:
    """Hard and easy problems, each a little better after: pairing must see it, though levels vary much more."""
    rng = np.random.default_rng(2)
    before = np.tile(np.where(rng.random(200) < 0.5, 0, 6), (2, 1))
    after = before + (rng.random((2, 200)) < 0.5)
    counts = pl.concat([counts_frame(8, before), counts_frame(8, after, iteration=3)])
    row = pick(before_after_table(counts, ks=[1]), when="difference", measure="pass", model="ada")
    assert row["iteration"] == 3
    assert row["estimate"] == pytest.approx((after - before)[0].mean() / 8)
    # normal theory for the paired difference
    error = ((after - before)[0] / 8).std(ddof=1) / np.sqrt(200)
    assert (row["low"], row["high"]) == pytest.approx((row["estimate"] - 1.96 * error, row["estimate"] + 1.96 * error), abs=error / 4)


def test_problems_in_one_evaluation_only_are_left_out_of_the_difference() -> None:
    before, after = counts_frame(2, np.ones((2, 150), dtype=int)), counts_frame(2, np.full((2, 150), 2), iteration=1)
    after = after.filter(pl.col("problem_id") < "p00120")
    row = pick(before_after_table(pl.concat([before, after]), ks=[1]), when="difference", measure="pass", model="ada")
    assert row["num_problems"] == 120
    assert "30 problems left out" in row["note"]


def test_a_problem_missing_for_one_model_is_left_out_for_all_and_said() -> None:
    counts = counts_frame(2, np.ones((2, 150), dtype=int)).filter(~((pl.col("model") == "bob") & (pl.col("problem_id") == "p00000")))
    row = pick(pass_at_k_table(counts, ks=[1]), measure="pass", model="ada")
    assert row["num_problems"] == 149
    assert row["note"].startswith("1 problems left out")


def test_which_evaluations_are_compared() -> None:
    ones = np.ones((2, 3), dtype=int)
    counts = pl.concat([counts_frame(2, ones, iteration=i) for i in (0, 2, 5)])
    half = counts.filter((pl.col("iteration") < 5) | (pl.col("model") == "ada"))  # bob's last one is still running
    assert before_and_after(counts, ["ada", "bob"]) == (0, 5)
    assert before_and_after(half, ["ada", "bob"]) == (0, 2)
    assert before_and_after(counts.filter(pl.col("iteration") > 0), ["ada", "bob"]) == (None, 5)


def test_gain_over_a_clearly_best_model_against_a_plain_bootstrap() -> None:
    """Then the choice of the best is certain, and the lower bound is that of a plain paired bootstrap."""
    rng = np.random.default_rng(4)
    c = rng.binomial(4, np.stack([rng.beta(2, 1, 150), rng.beta(1, 3, 150)]))
    row = pick(gain_table(counts_frame(4, c), ks=[1]), baseline="equal_k")
    single = np.stack([pass_at_k(np.full(150, 4), m, 1) for m in c])
    team = 1 - (1 - single).prod(axis=0)
    assert row["estimate"] == pytest.approx(team.mean() - single[0].mean())
    assert row["best_model"] == "ada"
    draws = []
    for _ in range(NUM_DRAWS):
        index = rng.integers(0, 150, 150)
        draws.append(team[index].mean() - single[0, index].mean())
    low, high = np.quantile(draws, [0.025, 0.975])
    assert row["low"] == pytest.approx(low, abs=0.006)
    assert high - 0.006 <= row["high"] <= high + (high - low)


def test_a_copy_gains_nothing_at_matched_budget() -> None:
    """Two samplers of the same skill per problem are one model with twice the samples; 60 studies at nominal 95 %.

    The maximum over equal models is where a plain percentile interval fails (65 %).
    """
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        skill = rng.beta(0.5, 0.5, 200)
        table = gain_table(counts_frame(8, rng.binomial(8, np.stack([skill, skill]))), ks=[2])
        matched, equal = pick(table, baseline="matched_budget"), pick(table, baseline="equal_k")
        covered += matched["low"] <= 0 <= matched["high"]
        assert equal["low"] > 0
    assert covered >= 54


def test_nothing_published_and_team_of_one() -> None:
    empty = pl.DataFrame(schema=COUNTS)
    for table in (pass_at_k_table(empty, ks=[1]), before_after_table(empty, ks=[1]), gain_table(empty, ks=[1])):
        assert table.height == 0
    alone = counts_frame(4, np.ones((1, 5), dtype=int), models=("ada",))
    assert set(pass_at_k_table(alone, ks=[1])["measure"]) == {"pass", "coverage"}
    assert gain_table(alone, ks=[1]).height == 0
