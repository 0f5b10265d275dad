"""The Pass@k tables: figures by hand, parts of the team, pairing, gains and missing problems."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from analysis.counts.counts import COUNTS, count_rows
from analysis.metrics.passk import before_after_table, before_and_after, gain_table, pass_at_k_table
from analysis.metrics.strata import stratified
from analysis.stats.estimators import pass_at_k
from analysis.stats.intervals import NUM_DRAWS
from core_hpc.common.errors import StoreError
from tests.support.analysis_data import counts_frame, pick, rollout, rollouts
from tests.support.source_groups import assert_same_figures, grouped


def test_counts_of_rows() -> None:
    rows = [rollout(sample_index=s, correct=s == 0, finish_reason="length") for s in range(3)]
    rows += [rollout(sample_index=3, verdict="timeout")]
    counts = count_rows(rollouts(rows))
    assert counts.schema == COUNTS
    assert counts.select("n", "c", "num_timeout", "num_truncated").rows() == [(4, 1, 1, 3)]


def test_a_hinted_row_outside_the_rescue_phase_is_an_error() -> None:
    with pytest.raises(StoreError, match=r"run x: 1 hinted completions outside .*'evaluate', 'ada', 'p0'"):
        count_rows(rollouts([rollout(phase="evaluate", hint_given=True)]), source="run x")


def test_levels_and_budgets() -> None:
    c = np.array([[4, 2, 0, 0], [0, 2, 4, 0]])
    table = pass_at_k_table(counts_frame(4, c), ks=[1, 2])
    assert pick(table, measure="pass", model="ada", k=1)["estimate"] == pytest.approx(6 / 16)
    team = pick(table, measure="team_pass", k=2)
    assert team["candidates"] == 4
    # ada always solves p0, and bob always solves p2. On p1 the chance that both fail is
    # (C(2,2)/C(4,2))^2 = 1/36. p3 is never solved.
    assert team["estimate"] == pytest.approx((1 + 35 / 36 + 1) / 4)
    matched = pick(table, measure="matched_pass", model="ada", k=2)
    assert matched["candidates"] == 4
    assert matched["estimate"] == pytest.approx(2 / 4)
    assert pick(table, measure="coverage")["estimate"] == pytest.approx(3 / 4)
    assert table["note"].str.contains("fewer than 100 problems").all()


def test_too_few_completions_give_null_and_a_note() -> None:
    table = pass_at_k_table(counts_frame(2, np.ones((2, 150), dtype=int)), ks=[2, 4])
    assert pick(table, measure="pass", model="ada", k=2)["estimate"] == 1.0
    for measure in ("pass", "matched_pass"):
        row = pick(table, measure=measure, model="ada", k=4)
        assert (row["estimate"], row["low"], row["high"]) == (None, None, None)
        assert "150 problems have fewer than" in row["note"]
    for measure in ("first", "pass_hat"):
        assert pick(table, measure=measure, model="bob", k=2)["estimate"] == (1.0 if measure == "first" else 0.0)
        note = pick(table, measure=measure, model="bob", k=4)["note"]
        assert note == "undefined: 150 problems have fewer than 4 completions"
    gains = gain_table(counts_frame(2, np.ones((2, 150), dtype=int)), ks=[2])
    for against in ("best", "ada", "bob"):
        gain = pick(gains, baseline="matched_budget", against=against)
        assert gain["estimate"] is None
        assert "fewer than 4" in gain["note"]


def test_first_k_and_pass_hat_k_by_hand() -> None:
    rows = [rollout(phase="evaluate", sample_index=s, correct=s in (1, 2)) for s in range(4)]
    rows += [rollout(phase="evaluate", problem_id="p1", sample_index=s, correct=s == 0) for s in range(4)]
    table = pass_at_k_table(count_rows(rollouts(rows)), ks=[1, 2])
    got = {(row["measure"], row["k"]): row["estimate"] for row in table.iter_rows(named=True)}
    assert got["first", 1] == 1 / 2
    assert got["first", 2] == 1
    assert got["pass_hat", 1] == got["pass", 1] == pytest.approx(3 / 8)
    assert got["pass_hat", 2] == pytest.approx((1 / 6 + 0) / 2)


def test_every_part_of_the_team_with_its_budget() -> None:
    """The figures of a part are those of a run that has only these models."""
    c = np.random.default_rng(6).integers(0, 9, (4, 120))
    names = ("d", "a", "c", "b")
    table = pass_at_k_table(counts_frame(8, c, models=names), ks=[1, 2], models=names)
    teams = table.filter(pl.col("measure") == "team_pass", pl.col("k") == 2)["model"].to_list()
    assert sorted(teams) == sorted(
        ["team", "d+a", "d+c", "d+b", "a+c", "a+b", "c+b", "d+a+c", "d+a+b", "d+c+b", "a+c+b"]
    )
    for part in ((0, 2), (1, 2, 3)):
        members = [names[m] for m in part]
        alone = pass_at_k_table(counts_frame(8, c[list(part)], models=tuple(members)), ks=[2], models=members)
        expected = pick(alone, measure="team_pass", model="team")
        got = pick(table, measure="team_pass", model="+".join(members), k=2)
        assert {**got, "model": "team"} == expected
        matched = pick(table, measure="matched_pass", model="c", k=2, candidates=2 * len(part))
        assert matched == pick(alone, measure="matched_pass", model="c", candidates=2 * len(part))
    assert table.select("measure", "model", "k", "candidates").is_unique().all()
    few = pass_at_k_table(counts_frame(8, c, models=names), ks=[1, 2], models=names, teams=[("b", "d")])
    assert set(few.filter(pl.col("measure") == "team_pass")["model"]) == {"team", "d+b"}


def test_copies_in_one_source_group_change_no_interval() -> None:
    rng = np.random.default_rng(9)
    counts = pl.concat(
        [counts_frame(4, rng.integers(0, 5, (3, 110)), models=("a", "b", "c"), iteration=i) for i in (0, 1)]
    )
    copied = grouped(counts, 3)
    assert_same_figures(pass_at_k_table(counts, ks=[1, 2]), pass_at_k_table(copied, ks=[1, 2]))
    assert_same_figures(before_after_table(counts, ks=[1, 2]), before_after_table(copied, ks=[1, 2]))
    assert_same_figures(gain_table(counts, ks=[1]), gain_table(copied, ks=[1]))


def test_a_table_by_subject() -> None:
    c = np.random.default_rng(1).integers(0, 5, (2, 30))
    subjects = {f"p{p:05d}": ("algebra" if p < 10 else "geometry" if p < 25 else None) for p in range(30)}
    described = counts_frame(4, c).with_columns(subject=pl.col("problem_id").replace_strict(subjects))
    table = stratified(lambda part: pass_at_k_table(part, ks=[1], models=["ada", "bob"]), described, "subject")
    assert table.columns[:3] == ["by", "value", "phase"]
    row = pick(table, by="subject", value="geometry", measure="pass", model="bob")
    assert row["estimate"] == pytest.approx(c[1, 10:25].mean() / 4)
    assert row["num_problems"] == 15
    assert set(table["value"]) == {"algebra", "geometry"}
    nothing = described.with_columns(subject=pl.lit(None, pl.String()))
    assert stratified(lambda part: pass_at_k_table(part, ks=[1]), nothing, "subject").height == 0
    with pytest.raises(ValueError, match="no attribute level; known attributes: subject"):
        stratified(lambda part: part, described, "level")


def test_difference_is_paired_by_problem() -> None:
    """Hard and easy problems, each a little better after training.

    Only a paired interval is narrow enough to find it, because the levels vary much more.
    """
    rng = np.random.default_rng(2)
    before = np.tile(np.where(rng.random(200) < 0.5, 0, 6), (2, 1))
    after = before + 2 * (rng.random((2, 200)) < 0.5)
    counts = pl.concat([counts_frame(8, before), counts_frame(8, after, iteration=3)])
    row = pick(before_after_table(counts, ks=[1]), when="difference", measure="pass", model="ada")
    assert row["iteration"] == 3
    assert row["estimate"] == pytest.approx((after - before)[0].mean() / 8)
    error = ((after - before)[0] / 8).std(ddof=1) / np.sqrt(200)
    normal = (row["estimate"] - 1.96 * error, row["estimate"] + 1.96 * error)
    assert (row["low"], row["high"]) == pytest.approx(normal, abs=error / 4)


def test_problems_in_one_evaluation_only_are_left_out_of_the_levels_too() -> None:
    before, after = counts_frame(2, np.ones((2, 150), dtype=int)), counts_frame(2, np.full((2, 150), 2), iteration=1)
    after = after.filter(pl.col("problem_id") < "p00120")
    table = before_after_table(pl.concat([before, after]), ks=[1])
    for when in ("before", "after", "difference"):
        row = pick(table, when=when, measure="pass", model="ada")
        assert row["num_problems"] == 120
        assert "30 problems left out" in row["note"]


def test_a_problem_missing_for_one_model_is_left_out_for_all_with_a_note() -> None:
    missing = (pl.col("model") == "bob") & (pl.col("problem_id") == "p00000")
    counts = counts_frame(2, np.ones((2, 150), dtype=int)).filter(~missing)
    row = pick(pass_at_k_table(counts, ks=[1]), measure="pass", model="ada")
    assert row["num_problems"] == 149
    assert row["note"].startswith("1 problems left out")


def test_which_evaluations_are_compared() -> None:
    ones = np.ones((2, 3), dtype=int)
    counts = pl.concat([counts_frame(2, ones, iteration=i) for i in (0, 2, 5)])
    half = counts.filter((pl.col("iteration") < 5) | (pl.col("model") == "ada"))  # the last one of bob is in progress
    assert before_and_after(counts, ["ada", "bob"]) == (0, 5)
    assert before_and_after(half, ["ada", "bob"]) == (0, 2)
    assert before_and_after(counts.filter(pl.col("iteration") > 0), ["ada", "bob"]) == (None, 5)


def test_gain_over_a_certain_best_model_against_a_plain_bootstrap() -> None:
    """If it is certain which model is the best, the lower bound is that of a paired bootstrap."""
    rng = np.random.default_rng(4)
    c = rng.binomial(4, np.stack([rng.beta(2, 1, 150), rng.beta(1, 3, 150)]))
    table = gain_table(counts_frame(4, c), ks=[1])
    row = pick(table, baseline="equal_k", against="best")
    single = np.stack([pass_at_k(np.full(150, 4), m, 1) for m in c])
    team = 1 - (1 - single).prod(axis=0)
    assert row["estimate"] == pytest.approx(team.mean() - single[0].mean())
    assert row["best_model"] == "ada"
    gains = team - single
    extreme = np.abs(gains).max(axis=1, keepdims=True)
    gains = np.hstack([gains, extreme, -extreme])  # the two pseudo-problems
    draws = [gains[:, rng.integers(0, 152, 152)].mean(axis=1) for _ in range(NUM_DRAWS)]
    bounds = np.quantile(draws, [0.025, 0.975], axis=0).T
    for model, value, (low, high) in zip(("ada", "bob"), single, bounds, strict=True):
        over = pick(table, baseline="equal_k", against=model)
        assert over["estimate"] == pytest.approx(team.mean() - value.mean())
        assert (over["low"], over["high"]) == pytest.approx((low, high), abs=0.006)
    low, high = np.quantile(np.array(draws)[:, 0], [0.025, 0.975])
    assert row["low"] == pytest.approx(low, abs=0.006)
    assert high - 0.006 <= row["high"] <= high + (high - low)


def test_a_copy_gains_nothing_at_matched_budget() -> None:
    """Two models with equal skills are like one model with twice the samples.

    95 % of 60 intervals should contain 0. A plain percentile interval of the maximum covers only 65
    %.
    """
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        skill = rng.beta(0.5, 0.5, 200)
        table = gain_table(counts_frame(8, rng.binomial(8, np.stack([skill, skill]))), ks=[2])
        matched, equal = (pick(table, baseline=name, against="best") for name in ("matched_budget", "equal_k"))
        covered += matched["low"] <= 0 <= matched["high"]
        assert equal["low"] > 0
    assert covered >= 54


def test_nothing_published_and_a_team_of_one_model() -> None:
    empty = pl.DataFrame(schema=COUNTS)
    for table in (pass_at_k_table(empty, ks=[1]), before_after_table(empty, ks=[1]), gain_table(empty, ks=[1])):
        assert table.height == 0
    alone = counts_frame(4, np.ones((1, 5), dtype=int), models=("ada",))
    assert set(pass_at_k_table(alone, ks=[1])["measure"]) == {"pass", "first", "pass_hat", "coverage"}
    assert gain_table(alone, ks=[1]).height == 0
