"""Comparisons of runs: figures by hand, intervals against plain Python, and errors."""

from __future__ import annotations

import random
import statistics
from itertools import product
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis.counts.counts import ANSWERS
from analysis.counts.load import RunData
from analysis.metrics.compare import COMPARE_TABLE, MEAN, compare
from analysis.metrics.compare_table import compare_report
from analysis.metrics.passk import before_after_table
from analysis.stats.estimators import pass_at_k, team_pass_at_k
from analysis.stats.intervals import NUM_DRAWS
from core_hpc.common.errors import InputError
from core_hpc.store.paths import RunPaths
from core_hpc.store.schema import PROBLEMS
from core_hpc.store.shards import publish_frame
from tests.support.analysis_data import config, counts_frame, make_run, pick

NOWHERE = Path("/nowhere/run")
TEAM = ("ada", "bob")


def data(
    c: Any,
    n: Any = 8,
    *,
    seed: int | None = 1,
    models: tuple[str, ...] = TEAM,
    iteration: int = 0,
    path: Path = NOWHERE,
    **changes: Any,
) -> RunData:
    """Make a run with these (M, P) counts; with seed None, imported predictions."""
    team = [{"name": name, "model": "fake:any", "engine": "fake"} for name in models]
    counts = counts_frame(n, np.asarray(c), models=models, iteration=iteration)
    run_config = None if seed is None else config(seed=seed, team=team, **changes)
    return RunData(path, run_config, list(models), counts, pl.DataFrame(schema=ANSWERS))


def ones(num_problems: int = 120) -> np.ndarray:
    return np.ones((2, num_problems), dtype=int)


def plain_bootstrap(values: list[float], groups: list[int] | None = None) -> tuple[float, float]:
    """Percentile interval of the mean. Problems, or whole groups, are drawn one after another."""
    dice, clusters = random.Random(7), {}
    for i, value in enumerate(values):
        clusters.setdefault(i if groups is None else groups[i], []).append(value)
    parts, means = list(clusters.values()), []
    for _ in range(NUM_DRAWS):
        drawn = [value for part in dice.choices(parts, k=len(parts)) for value in part]
        means.append(statistics.fmean(drawn))
    cuts = statistics.quantiles(means, n=40, method="inclusive")
    return cuts[0], cuts[-1]


# --- two runs ------------------------------------------------------------------------------------


def test_levels_and_differences_by_hand() -> None:
    a = data([[4, 2, 0, 0], [0, 2, 4, 0]], 4)
    b = data([[4, 4, 0, 0], [0, 2, 4, 2]], 4)
    frame = compare([a], [b], ks=[1, 2])
    assert frame.schema == COMPARE_TABLE
    ada = pick(frame, measure="pass", model="ada", k=1)
    assert (ada["a"], ada["b"], ada["estimate"]) == pytest.approx((6 / 16, 8 / 16, 2 / 16))
    assert (ada["seed"], ada["num_problems"], ada["num_seeds"], ada["seed_sd"]) == ("1", 4, 1, None)
    team = pick(frame, measure="team_pass", k=2)
    assert team["candidates"] == 4
    # p1: both have 2 of 4, so the chance that both fail with 2 samples is (1/6)^2. p3: only bob can
    # solve it, and fails with chance 1/6.
    assert (team["a"], team["b"]) == pytest.approx(((1 + 35 / 36 + 1 + 0) / 4, (1 + 1 + 1 + 5 / 6) / 4))
    matched = pick(frame, measure="matched_pass", model="bob", k=2)
    assert (matched["candidates"], matched["a"], matched["b"]) == (4, 2 / 4, 3 / 4)
    covered = pick(frame, measure="coverage")
    assert (covered["a"], covered["b"], covered["estimate"], covered["candidates"]) == (3 / 4, 1, 1 / 4, 8)
    gain = pick(frame, measure="gain_equal_k", k=1)
    in_a = (1 + 3 / 4 + 1 + 0) / 4 - 6 / 16
    in_b = (1 + 1 + 1 + 1 / 2) / 4 - 8 / 16  # both models have 8 of 16
    assert (gain["a"], gain["b"], gain["estimate"]) == pytest.approx((in_a, in_b, in_b - in_a))
    budget = pick(frame, measure="gain_matched_budget", k=2)
    pass_at_4 = 2 / 4  # of both models
    assert (budget["candidates"], budget["a"]) == (4, pytest.approx((1 + 35 / 36 + 1) / 4 - pass_at_4))
    assert frame["note"].str.contains("fewer than 100 problems").all()


def test_the_interval_is_that_of_a_plain_paired_bootstrap() -> None:
    """Hard and easy problems, each a little better in B.

    Only a paired interval is narrow enough to find it, because the levels vary much more.
    """
    rng = np.random.default_rng(2)
    before = np.tile(np.where(rng.random(400) < 0.5, 0, 6), (2, 1))
    after = before + 2 * (rng.random((2, 400)) < 0.5)
    row = pick(compare([data(before)], [data(after)], ks=[1]), measure="pass", model="ada")
    change = ((after - before)[0] / 8).tolist()
    assert row["estimate"] == pytest.approx(statistics.fmean(change))
    # The tolerance is 4 standard errors of a quantile.
    assert (row["low"], row["high"]) == pytest.approx(plain_bootstrap(change), abs=1.2e-3)
    error = statistics.stdev(change) / 400**0.5
    normal = statistics.NormalDist().inv_cdf(0.975) * error
    expected = (row["estimate"] - normal, row["estimate"] + normal)
    assert (row["low"], row["high"]) == pytest.approx(expected, abs=error / 5)
    assert row["low"] > 0
    assert row["note"] == "A untrained, B untrained"


def test_intervals_cover_no_effect() -> None:
    """Both runs sample the same skills, so 95 % of 50 intervals should contain 0."""
    covered = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        skill = rng.beta(0.5, 0.5, (2, 150))
        frame = compare([data(rng.binomial(8, skill))], [data(rng.binomial(8, skill))], ks=[1])
        row = pick(frame, measure="team_pass")
        covered += row["low"] <= 0 <= row["high"]
    assert covered >= 43


def test_equal_runs_have_an_interval_around_0() -> None:
    """Two pseudo-problems of +1 and -1: the standard error is sqrt(2 / n) / sqrt(n), with n = 152."""
    c = np.random.default_rng(1).binomial(8, 0.5, (2, 150))
    frame = compare([data(c)], [data(c)], ks=[1, 2])
    assert set(frame["estimate"]) == {0.0}
    # The interval of a gain also includes the uncertainty about the best model.
    certain = frame.filter(~pl.col("measure").str.starts_with("gain"))
    half = stats.t.ppf(0.975, 149) * 2**0.5 / 152
    assert certain["high"].to_list() == pytest.approx([half] * certain.height)
    assert certain["low"].to_list() == pytest.approx([-half] * certain.height)
    assert set(certain["p"]) == {1.0}
    gain = frame.filter(pl.col("measure").str.starts_with("gain"))
    assert (gain["high"] - gain["low"] > half).all()


def test_whole_source_groups_are_drawn() -> None:
    """Four variants of a question change together. Drawing single problems halves the interval."""
    rng = np.random.default_rng(5)
    change = np.repeat(rng.integers(-1, 3, 120), 4)
    groups = np.repeat(np.arange(120), 4)
    a, b = data(np.full((2, 480), 3)), data(np.stack([3 + change, 3 + change]))
    named = b.counts.with_columns(source_group=pl.Series([f"g{g}" for g in groups] * 2))
    whole = RunData(b.path, b.config, b.models, named, b.answers)  # only one side has groups
    row = pick(compare([a], [whole], ks=[1]), measure="pass", model="ada")
    expected = plain_bootstrap((change / 8).tolist(), groups.tolist())
    assert (row["low"], row["high"]) == pytest.approx(expected, abs=3e-3)
    alone = pick(compare([a], [b], ks=[1]), measure="pass", model="ada")
    assert row["high"] - row["low"] > 1.7 * (alone["high"] - alone["low"])
    few = named.with_columns(source_group=pl.Series([f"g{g // 2}" for g in groups] * 2))
    flagged = compare([a], [RunData(b.path, b.config, b.models, few, b.answers)], ks=[1])
    assert flagged["note"].str.contains("fewer than 100 source groups").all()


def gains(c: np.ndarray) -> list[np.ndarray]:
    """Team minus each model at k = 1, per problem."""
    single = c / 8
    return [1 - (1 - single).prod(axis=0) - own for own in single]


def test_gain_with_a_certain_best_model_has_the_plain_interval() -> None:
    rng = np.random.default_rng(4)
    sides = [rng.binomial(8, np.stack([rng.beta(3, 1, 200), rng.beta(1, 3, 200)])) for _ in "ab"]
    row = pick(compare([data(sides[0])], [data(sides[1])], ks=[1]), measure="gain_equal_k")
    change = (gains(sides[1])[0] - gains(sides[0])[0]).tolist()
    assert row["estimate"] == pytest.approx(statistics.fmean(change))
    assert (row["low"], row["high"]) == pytest.approx(plain_bootstrap(change), abs=6e-3)


def test_gain_with_an_uncertain_best_model_spans_the_intervals_of_all_candidates() -> None:
    rng = np.random.default_rng(9)
    certain = rng.binomial(8, np.stack([rng.beta(1, 0.5, 200), rng.beta(1, 3, 200)]))
    order = certain[0].argsort()
    equal = np.empty((2, 200), dtype=int)
    # The first model is strong where the best model of the other run is strong. The second one is
    # equally strong, but on the other problems.
    equal[0, order] = np.sort(rng.binomial(8, rng.beta(0.5, 0.5, 200)))
    equal[1, order[::-1]] = equal[0, order]
    for sign, sides in ((1, (equal, certain)), (-1, (certain, equal))):
        row = pick(compare([data(sides[0])], [data(sides[1])], ks=[1]), measure="gain_equal_k")
        bounds = [plain_bootstrap((sign * (gains(certain)[0] - own)).tolist()) for own in gains(equal)]
        expected = min(low for low, _ in bounds), max(high for _, high in bounds)
        assert (row["low"], row["high"]) == pytest.approx(expected, abs=6e-3)
        assert max(low for low, _ in bounds) - expected[0] > 0.015  # the single intervals differ


def test_gain_with_equal_models_in_one_run_covers_the_truth() -> None:
    """A has four equal models, B has one best model. A plain interval covers only 80 % here."""
    names, covered = ("ada", "bob", "cy", "dee"), 0

    def sides(seed: int, num_problems: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        skill = rng.beta(0.5, 0.5, num_problems)
        return [
            rng.binomial(8, np.stack([skill * share for share in shares]))
            for shares in ((1, 1, 1, 1), (1, 0.8, 0.8, 0.8))
        ]

    truth = 0.0
    for sign, c in zip((-1, 1), sides(10**6, 300_000), strict=True):
        n = np.full_like(c, 8)
        truth += sign * (team_pass_at_k(n, c, 1).mean() - pass_at_k(n, c, 1).mean(axis=1).max())
    for seed in range(40):
        a, b = (data(c, models=names) for c in sides(seed, 200))
        row = pick(compare([a], [b], ks=[1]), measure="gain_equal_k")
        assert row["low"] <= row["estimate"] <= row["high"]
        covered += row["low"] <= truth <= row["high"]
    assert covered >= 36


def test_problems_of_one_side_only_are_left_out_and_counted() -> None:
    b = data(ones(150) * 2, 2)
    b = RunData(b.path, b.config, b.models, b.counts.filter(pl.col("problem_id") < "p00120"), b.answers)
    short = b.counts.filter(~((pl.col("model") == "bob") & (pl.col("problem_id") < "p00010")))
    frame = compare([data(ones(150), 2)], [RunData(b.path, b.config, b.models, short, b.answers)], ks=[1])
    row = pick(frame, measure="pass", model="ada")
    assert (row["num_problems"], row["a"], row["b"]) == (110, 0.5, 1.0)
    assert "40 problems left out: in A or B only" in row["note"]
    assert "B: 10 problems left out: not published for every model" in row["note"]


def test_too_few_completions_give_null_and_a_note() -> None:
    frame = compare([data(ones(), 8)], [data(ones(), 4)], ks=[8])
    row = pick(frame, measure="pass", model="ada")
    assert (row["a"], row["b"], row["estimate"], row["low"]) == (1.0, None, None, None)
    assert "B: undefined: 120 problems have fewer than 8 completions" in row["note"]
    assert pick(frame, measure="team_pass")["estimate"] is None
    covered = pick(frame, measure="coverage")
    assert (covered["a"], covered["estimate"], covered["candidates"]) == (1.0, None, None)
    assert "not comparable: different numbers of completions" in covered["note"]
    short = compare([data(ones(), 4)], [data(ones(), 4)], ks=[4])
    assert pick(short, measure="matched_pass", model="bob")["estimate"] is None


def test_which_evaluations_are_compared() -> None:
    early, late = data(ones()), data(ones() * 4, iteration=6)
    both = RunData(early.path, early.config, early.models, pl.concat([early.counts, late.counts]), early.answers)
    latest = pick(compare([early], [both], ks=[1]), measure="pass", model="ada")
    assert latest["estimate"] == pytest.approx(3 / 8)
    assert "A untrained, B after iteration 6" in latest["note"]
    for a, iterations, expected in ((early, (0, 0), 0), (both, (6, 0), -3 / 8)):
        row = pick(compare([a], [both], ks=[1], iterations=iterations), measure="pass", model="ada")
        assert row["estimate"] == pytest.approx(expected)
    with pytest.raises(InputError, match="evaluation 6 is not published; published: 0"):
        compare([early], [both], ks=[1], iterations=(6, 6))
    imported = pick(compare([data(ones(), seed=None)], [both], ks=[1], iterations=(6, 6)), measure="pass", model="ada")
    assert imported["estimate"] == pytest.approx(3 / 8)
    assert imported["note"] == "B after iteration 6"
    nothing = RunData(early.path, early.config, early.models, early.counts.clear(), early.answers)
    with pytest.raises(InputError, match="no evaluation of all models is published yet"):
        compare([early], [nothing], ks=[1])


def test_a_run_against_its_untrained_models_equals_the_before_after_table() -> None:
    rng = np.random.default_rng(12)
    skill = rng.beta(0.5, 0.5, (2, 300))
    before, after = rng.binomial(8, skill), rng.binomial(8, np.clip(skill + 0.1, 0, 1))
    run = data(before)
    counts = pl.concat([run.counts, data(after, iteration=4).counts])
    run = RunData(run.path, run.config, run.models, counts, run.answers)
    frame = compare([run], [run], ks=[1, 2], iterations=(0, 4))
    assert pick(frame, measure="pass", model="ada", k=1)["estimate"] == pytest.approx((after - before)[0].mean() / 8)
    expected = before_after_table(run.counts, ks=[1, 2])
    compared = 0
    for row in expected.filter(when="difference").iter_rows(named=True):
        own = pick(frame, measure=row["measure"], model=row["model"], k=row["k"])
        assert own["estimate"] == pytest.approx(row["estimate"])
        # The same bootstrap with different draws. The standard error of a bound is some 3 % of the
        # interval.
        tolerance = 0.1 * (row["high"] - row["low"])
        assert (own["low"], own["high"]) == pytest.approx((row["low"], row["high"]), abs=tolerance)
        for side, when in (("a", "before"), ("b", "after")):
            level = pick(expected, when=when, **{name: row[name] for name in ("measure", "model", "k")})
            assert own[side] == pytest.approx(level["estimate"])
        compared += 1
    assert compared == 11  # two models, team and two matched budgets at two k, and coverage


def test_a_run_without_an_evaluation_of_the_untrained_models() -> None:
    base, arm = data(ones()), data(ones() * 4, iteration=4, evaluation={"samples": 8, "before": False})
    row = pick(compare([base], [arm], ks=[1], iterations=(0, 4)), measure="pass", model="ada")
    assert row["estimate"] == pytest.approx(3 / 8)
    message = (
        r"/nowhere/run: this run does not evaluate its models before the first iteration \(evaluation.before: false\)"
    )
    with pytest.raises(InputError, match=message):
        compare([arm], [arm], ks=[1], iterations=(0, 4))
    with pytest.raises(InputError, match="evaluation 0 is not published; published: 4"):
        compare([data(ones(), iteration=4)], [arm], ks=[1], iterations=(0, 4))


def test_different_teams_are_compared_in_their_common_models() -> None:
    a, b = data(ones(), 8), data(np.ones((3, 120), dtype=int) * 2, 8, models=("cy", "bob", "dee"))
    frame = compare([a], [b], ks=[1])
    assert set(zip(frame["measure"], frame["model"], strict=True)) == {
        ("pass", "bob"),
        ("team_pass", "team"),
        ("gain_equal_k", "team"),
        ("gain_matched_budget", "team"),
        ("coverage", "team"),
    }
    tested = frame.filter(pl.col("p_holm").is_not_null())["measure"].to_list()
    assert tested == ["pass", "gain_equal_k"]
    team = pick(frame, measure="team_pass")
    assert (team["candidates"], team["estimate"], team["verdict"]) == (None, None, None)
    assert "different numbers of completions (A spends 2 candidates per problem, B spends 3)" in team["note"]
    assert (team["a"], team["b"]) == pytest.approx((1 - (7 / 8) ** 2, 1 - (6 / 8) ** 3))
    budget = pick(frame, measure="gain_matched_budget")
    assert (budget["estimate"], budget["note"]) == (None, team["note"])
    assert budget["a"] == pytest.approx((1 - (7 / 8) ** 2) - 2 / 8)  # against Pass@2 of 1 in 8
    assert budget["b"] == pytest.approx((1 - (6 / 8) ** 3) - (1 - comb(6, 3) / comb(8, 3)))  # against Pass@3 of 2 in 8
    alone = data(np.ones((1, 120), dtype=int), 16, models=("ada",))
    assert set(compare([alone], [a], ks=[1])["measure"]) == {"pass", "coverage"}
    assert pick(compare([alone], [a], ks=[1]), measure="coverage")["candidates"] == 16  # one model, the same budget
    with pytest.raises(InputError, match=r"A \(ada, bob\) and B \(cy\) have no model in common"):
        compare([a], [data(ones()[:1], models=("cy",))], ks=[1])


# --- seeds ---------------------------------------------------------------------------------------


def seeds(rng: np.random.Generator, skill: np.ndarray, names: list[int], effect: float = 0.0) -> list[RunData]:
    """Make runs of these seeds. A seed changes all skills a little."""
    moved = [np.clip(skill + effect + 0.02 * s, 0, 1) for s in names]
    return [data(rng.binomial(8, m), seed=s) for m, s in zip(moved, names, strict=True)]


def test_pairs_of_seeds_and_their_spread_by_hand() -> None:
    rng = np.random.default_rng(3)
    skill = rng.beta(0.5, 0.5, (2, 150))
    a, b = seeds(rng, skill, [3, 1, 20]), seeds(rng, skill, [20, 3, 1], effect=0.1)
    frame = compare(a, b, ks=[1])
    assert list(dict.fromkeys(frame["seed"])) == ["1", "3", "20", MEAN]
    of = {run.config.seed: run for run in a}, {run.config.seed: run for run in b}
    changes = {}
    for seed in (1, 3, 20):
        ca, cb = (side[seed].counts.filter(pl.col("model") == "ada").sort("problem_id")["c"].to_numpy() for side in of)
        changes[seed] = (cb - ca) / 8
        row = pick(frame, seed=str(seed), measure="pass", model="ada")
        assert row["estimate"] == pytest.approx(changes[seed].mean())
        assert (row["num_seeds"], row["seed_sd"], row["seed_min"]) == (1, None, None)
    row = pick(frame, seed=MEAN, measure="pass", model="ada")
    values = [float(change.mean()) for change in changes.values()]
    assert row["estimate"] == pytest.approx(statistics.fmean(values))
    assert (row["num_seeds"], row["num_problems"]) == (3, 150)
    spread = (statistics.stdev(values), min(values), max(values))
    assert (row["seed_sd"], row["seed_min"], row["seed_max"]) == pytest.approx(spread)
    per_problem = (sum(changes.values()) / 3).tolist()
    assert (row["problems_low"], row["problems_high"]) == pytest.approx(plain_bootstrap(per_problem), abs=3e-3)
    assert "interval over problems and seeds" in row["note"]


def test_equal_seeds_give_the_interval_of_one_seed() -> None:
    """Three copies of one run have no new information about problems."""
    rng = np.random.default_rng(6)
    ca, cb = rng.binomial(8, 0.4, (2, 150)), rng.binomial(8, 0.5, (2, 150))
    frame = compare([data(ca, seed=s) for s in (1, 2, 3)], [data(cb, seed=s) for s in (1, 2, 3)], ks=[1])
    for measure in ("team_pass", "gain_equal_k", "coverage"):
        one, mean = pick(frame, seed="2", measure=measure), pick(frame, seed=MEAN, measure=measure)
        assert (mean["estimate"], mean["low"], mean["high"]) == pytest.approx(
            (one["estimate"], one["low"], one["high"])
        )
        assert mean["seed_sd"] == pytest.approx(0, abs=1e-12)


def test_the_mean_gain_is_the_mean_of_the_gains_of_the_seeds() -> None:
    """In seed 2 another model is the best of B than of A, and the gains of all four runs are equal."""
    rng = np.random.default_rng(11)
    c = rng.binomial(8, [[0.75], [0.25]], (2, 400))
    swapped = np.roll(c[::-1], 1, axis=1)
    frame = compare([data(c, seed=s) for s in (1, 2)], [data(c, seed=1), data(swapped, seed=2)], ks=[1])
    gain = min(float(row.mean()) for row in gains(c))
    for name in ("gain_equal_k", "gain_matched_budget"):
        for seed in ("1", "2", MEAN):
            row = pick(frame, seed=seed, measure=name)
            assert row["estimate"] == pytest.approx(0, abs=1e-12)
            assert row["a"] == pytest.approx(row["b"])
        assert row["seed_sd"] == pytest.approx(0, abs=1e-12)
    row = pick(frame, seed=MEAN, measure="gain_equal_k")
    assert row["a"] == pytest.approx(gain)
    # The best models are certain, so the interval is that of the mean of their differences, and of the pseudo-problems.
    per_problem = (gains(swapped)[1] - gains(c)[0]) / 2
    extreme = (1 - per_problem.var() * len(per_problem) / 2) ** 0.5
    expected = plain_bootstrap([*per_problem.tolist(), extreme, -extreme])
    assert (row["problems_low"], row["problems_high"]) == pytest.approx(expected, abs=2e-3)


def test_the_interval_of_a_mean_gain_includes_the_choice_of_the_best_models() -> None:
    """Two equal models: the interval spans those of both choices, in every seed."""
    rng = np.random.default_rng(13)
    counts = [[rng.permuted(np.tile(rng.binomial(8, 0.5, 200), (2, 1)), axis=1) for _ in range(3)] for _ in "ab"]
    a, b = ([data(c, seed=s) for s, c in enumerate(side)] for side in counts)
    row = pick(compare(a, b, ks=[1]), seed=MEAN, measure="gain_equal_k")
    seeds_of = [min(float(g.mean()) for g in gains(c)) for c in counts[0]]
    assert row["a"] == pytest.approx(statistics.fmean(seeds_of))
    choices = [
        np.mean([gains(c_b)[j] - gains(c_a)[i] for (i, j), c_a, c_b in zip(chosen, *counts, strict=True)], axis=0)
        for chosen in product(product(range(2), repeat=2), repeat=3)
    ]
    bounds = np.array([plain_bootstrap(choice.tolist()) for choice in choices])
    expected = bounds[:, 0].min(), bounds[:, 1].max()
    assert (row["problems_low"], row["problems_high"]) == pytest.approx(expected, abs=4e-3)


def test_the_mean_uses_the_problems_of_all_seeds() -> None:
    a = [data(ones(), seed=s) for s in (1, 2)]
    b = [data(ones() * 2, seed=1), data(np.tile([2] * 110 + [8] * 10, (2, 1)), seed=2)]
    cut = b[0].counts.filter(pl.col("problem_id") < "p00110")
    frame = compare(a, [RunData(NOWHERE, b[0].config, b[0].models, cut, b[0].answers), b[1]], ks=[1])
    row = pick(frame, seed=MEAN, measure="pass", model="ada")
    assert (row["num_problems"], row["estimate"], row["seed_sd"]) == (110, pytest.approx(1 / 8), pytest.approx(0))
    assert "10 problems left out: not in every seed" in row["note"]
    assert "10 problems left out: in A or B only" in row["note"]


def test_seeds_on_different_problems_have_no_mean() -> None:
    runs = [data(ones(10), seed=1), data(ones(10), seed=2)]
    other = runs[1].counts.with_columns(problem_id="x" + pl.col("problem_id"))
    runs[1] = RunData(NOWHERE, runs[1].config, runs[1].models, other, runs[1].answers)
    with pytest.raises(InputError, match="the seeds have no held-out problem in common"):
        compare(runs, runs, ks=[1])


def test_one_run_against_several_seeds() -> None:
    rng = np.random.default_rng(8)
    skill = rng.beta(0.5, 0.5, (2, 150))
    imported = data(rng.binomial(8, skill), seed=None)
    frame = compare([imported], seeds(rng, skill, [1, 2], effect=0.1), ks=[1])
    assert list(dict.fromkeys(frame["seed"])) == ["imported, 1", "imported, 2", MEAN]
    assert frame["note"].str.contains("A is one run: the spread is that of the seeds of B").all()


def test_undefined_in_one_seed_is_undefined_in_the_mean() -> None:
    a = [data(ones(), 8, seed=1), data(ones(), 8, seed=2)]
    b = [data(ones(), 8, seed=1), data(ones(), 2, seed=2)]
    row = pick(compare(a, b, ks=[4]), seed=MEAN, measure="pass", model="ada")
    assert (row["estimate"], row["seed_sd"], row["num_seeds"]) == (None, None, 2)
    assert "fewer than 4 completions" in row["note"]


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (
            [1, 2, 3],
            [3, 2, 4, 10],
            "seeds without a partner: only A has seed 1; only B has seed 4, 10; give runs of the same seeds",
        ),
        ([1, 1], [1, 2], "A has several runs of seed 1; give one run per seed"),
        ([1, 2], [1, None], "B has several runs, but /nowhere/run has no seed"),
        ([1], [], "B has no run; give a run folder"),
    ],
)
def test_seeds_that_cannot_be_paired(a: list[int | None], b: list[int | None], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare([data(ones(), seed=s) for s in a], [data(ones(), seed=s) for s in b], ks=[1])


def test_a_side_is_one_configuration() -> None:
    mixed = [data(ones(), seed=1), data(ones(), seed=2, update={"kl_weight": 0.0})]
    with pytest.raises(InputError, match=r"B is not one configuration: its runs differ in update\.kl_weight"):
        compare([data(ones(), seed=s) for s in (1, 2)], mixed, ks=[1])
    # The number of iterations may differ.
    longer = [data(ones(), seed=1), data(ones(), seed=2, iterations=9)]
    assert compare(longer, longer, ks=[1]).height


# --- problems ------------------------------------------------------------------------------------


def with_problems(folder: Path, **changes: Any) -> RunData:
    """Make a run with the frozen held-out problems p00000, p00001, .., one of them changed."""
    run = make_run(folder)
    rows = [
        {"problem_id": f"p{i:05d}", "question": f"Q{i}", "gold": str(i), "answer_kind": "number", "metadata": "{}"}
        for i in range(5)
    ]
    rows[3] |= changes
    publish_frame(RunPaths(run).problems, "evaluation", pl.DataFrame(rows, schema=PROBLEMS.schema), PROBLEMS)
    return data(ones(5), path=run)


@pytest.mark.parametrize(("column", "value"), [("question", "another"), ("gold", "33")])
def test_a_problem_that_differs_between_runs(tmp_path: Path, column: str, value: str) -> None:
    a, b = with_problems(tmp_path / "a"), with_problems(tmp_path / "b", **{column: value})
    assert compare([a], [a], ks=[1]).height
    difference = rf"its {column} is .* in {a.path} and '{value}' in {b.path}"
    with pytest.raises(InputError, match=rf"problem 'p00003' is not the same in two runs: {difference}"):
        compare([a], [b], ks=[1])
    unknown = with_problems(tmp_path / "c", **{column: ""})
    assert compare([a], [unknown], ks=[1]).height


def test_no_problem_in_common() -> None:
    b = data(ones())
    other = RunData(b.path, b.config, b.models, b.counts.with_columns(problem_id="x" + pl.col("problem_id")), b.answers)
    with pytest.raises(InputError, match="no held-out problem in common"):
        compare([data(ones())], [other], ks=[1])


# --- report --------------------------------------------------------------------------------------


def test_report_of_two_runs() -> None:
    a, b = data(ones(50)), data(ones(50) * 2, update={"kl_weight": 0.0})
    table = compare_report([a], [b], ks=[1])
    line = pick(table.shown, model="ada", measure="Pass@1")
    # 50 problems differ by 12.5 points, and two pseudo-problems by 100 and -100.
    centre, variance = 12.5 * 50 / 52, (50 * 12.5**2 + 2 * 100**2) / 52 - (12.5 * 50 / 52) ** 2
    half = stats.t.ppf(0.975, 49) * (variance / 52) ** 0.5
    difference = f"+12.5 [{centre - half:+.1f}, {centre + half:+.1f}]"
    assert (line["A"], line["B"], line["B - A"], line["note"]) == ("12.5", "25.0", difference, "")
    assert "update.kl_weight: 0.04 in A, 0.0 in B" in table.notes
    assert "fewer than 100 problems" in table.notes  # not in every row
    assert "one pair of runs: the spread over seeds is unknown" in table.notes
    assert "team Pass@1 - best at matched budget" in set(table.shown["measure"])


def test_report_of_seeds_shows_the_mean() -> None:
    a = [data(ones(), seed=s) for s in (1, 2)]
    b = [data(ones() * c, seed=s) for s, c in ((1, 2), (2, 4))]
    table = compare_report(a, b, ks=[1])
    line = pick(table.shown, model="ada", measure="Pass@1")
    assert line["B - A"] == "+25.0 [-100.0, +100.0]"  # two seeds with 12.5 and 37.5: t with one degree of freedom
    assert line["sd over seeds [min, max]"] == "17.7 [+12.5, +37.5]"  # of 12.5 and 37.5
    assert "2 pairs of seeds" in table.notes
    assert "A and B have the same configuration" in table.notes
    assert table.frame.filter(pl.col("seed") == "1").height == table.shown.height
