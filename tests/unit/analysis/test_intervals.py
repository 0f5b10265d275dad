"""Intervals against scipy, closed forms and a bootstrap in plain Python, and their coverage."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.stats import binomtest

from analysis.stats.intervals import (
    NUM_DRAWS,
    effective_n,
    few,
    from_draws,
    resampled_means,
    share,
    smallest_from_draws,
    wilson,
)


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (3, 7), (50, 200), (200, 200)])
def test_wilson_against_scipy(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("n", [1, 7, 7.5, 9, 10, 13, 48, 1e5])
def test_one_bound_of_a_share_of_0_or_1_is_exact(n: float) -> None:
    """With most of these numbers, the formula of the interval has a rounding error there."""
    assert (wilson(0.0, n)[0], wilson(1.0, n)[1]) == (0.0, 1.0)
    assert 0 < wilson(0.0, n)[1] == pytest.approx(1 - wilson(1.0, n)[0])


def test_one_completion_per_problem_is_the_binomial_case() -> None:
    """The problems are independent observations, so the effective n is about their number.

    The variance estimate has the factor P/(P-1), so the two are not exactly equal.
    """
    values = np.array([1.0] * 60 + [0.0] * 140)
    assert effective_n(values, np.ones(200)) == pytest.approx(200, rel=0.01)
    expected = binomtest(60, 200).proportion_ci(method="wilson")
    got = share(values)
    assert (got.estimate, got.num_problems, got.note) == (0.3, 200, "")
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=2e-3)


def test_equal_samples_of_a_problem_add_no_information() -> None:
    """8 equal completions per problem must give the interval of one completion per problem."""
    values = np.array([1.0] * 60 + [0.0] * 140)
    assert share(values, samples_per_unit=8) == share(values)
    counted = share(values * 8, np.full(200, 8.0))
    assert (counted.low, counted.high) == pytest.approx((share(values).low, share(values).high))


def test_equal_problems_count_all_their_samples() -> None:
    assert effective_n(np.full(100, 0.5), np.ones(100), samples_per_unit=8) == 800


def test_effective_n_is_that_of_the_problems_and_two_pseudo_problems() -> None:
    """40 problems of 1, 2 or 3 completions, one problem at a time. The pseudo-problems are as extreme as the worst."""
    dice = random.Random(9)
    sizes = [dice.choice([1, 2, 3]) for _ in range(40)]
    correct = [dice.randint(0, size) for size in sizes]
    p = sum(correct) / sum(sizes)
    squares = [(c - p * size) ** 2 for c, size in zip(correct, sizes, strict=True)]
    variance = 40 / 39 * (sum(squares) + 2 * max(squares)) / sum(sizes) ** 2
    found = effective_n(np.array(correct, dtype=float), np.array(sizes, dtype=float))
    assert found == pytest.approx(p * (1 - p) / variance)
    assert sum(sizes) ** 2 / sum(size**2 for size in sizes) < found < sum(sizes)


def test_the_variance_of_a_share_is_at_least_that_of_two_problems_that_are_never_solved() -> None:
    values = np.ones(100)
    values[0] = 7 / 8
    p = float(values.mean())
    bound = p * (1 - p) / (100 / 99 * 2 * p**2 / 100**2)
    assert bound < 100  # so the effective number of problems is the result
    assert effective_n(values, np.ones(100), samples_per_unit=8) == 100
    assert effective_n(np.full(100, 0.5), np.ones(100), samples_per_unit=800) == pytest.approx(0.25 * 99 * 100 / 0.5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_width_for_shares_of_0_and_1_counts_problems(value: float) -> None:
    got = share(np.full(150, value), samples_per_unit=8)
    expected = binomtest(int(150 * value), 150).proportion_ci(method="wilson")
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_undefined_figures_and_too_few_problems() -> None:
    assert share(np.zeros(3), np.zeros(3)).estimate is None
    assert "denominator" in share(np.zeros(0)).note
    assert share(np.array([1.0, np.nan]), note="why").estimate is None
    assert "fewer than 100 problems" in share(np.array([1.0, 0.0])).note
    assert from_draws(float("nan"), np.zeros(3), num_problems=2).estimate is None


def test_no_zero_width_interval() -> None:
    got = from_draws(0.0, np.zeros(NUM_DRAWS), num_problems=500)
    assert (got.estimate, got.low, got.high) == (0.0, None, None)
    assert got.note == "no interval: all problems have the same value"


def test_bootstrap_against_a_plain_bootstrap() -> None:
    """The multinomial over distinct rows has the same law as drawing problems one by one."""
    rng = np.random.default_rng(3)
    columns = np.stack([rng.integers(0, 3, 120) / 2, rng.integers(0, 2, 120)], axis=1)
    fast = resampled_means(columns)
    assert fast.shape == (NUM_DRAWS, 2)
    dice, rows = random.Random(5), columns.tolist()
    slow = []
    for _ in range(NUM_DRAWS):
        drawn = dice.choices(rows, k=len(rows))
        slow.append(sum(a - b for a, b in drawn) / len(rows))
    got = np.quantile(fast[:, 0] - fast[:, 1], [0.025, 0.5, 0.975])
    expected = np.quantile(slow, [0.025, 0.5, 0.975])
    assert got == pytest.approx(expected, abs=0.012)  # 4 standard errors of a quantile of 2000 draws


def test_bootstrap_of_many_distinct_problems_against_the_normal_law() -> None:
    """With many distinct rows, problems are drawn one after another."""
    values = np.random.default_rng(8).random((3000, 2))
    draws = resampled_means(values)
    error = values.std(axis=0) / np.sqrt(3000)
    assert draws.mean(axis=0) == pytest.approx(values.mean(axis=0), abs=5 * error.max() / np.sqrt(NUM_DRAWS))
    assert draws.std(axis=0) == pytest.approx(error, rel=0.08)  # 5 standard errors of a deviation of 2000 draws
    assert np.corrcoef(draws.T)[0, 1] == pytest.approx(np.corrcoef(values.T)[0, 1], abs=0.12)


def test_bootstrap_with_source_groups_against_a_plain_bootstrap() -> None:
    """Whole groups of different sizes are drawn. The mean is still one over problems."""
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(80), rng.integers(1, 6, 80))
    values = (rng.random(80) < 0.5)[groups] * 0.5 + rng.integers(0, 3, len(groups)) / 4
    fast = resampled_means(values[:, None], groups)[:, 0]
    dice, members = random.Random(6), [values[groups == g].tolist() for g in range(80)]
    slow = []
    for _ in range(NUM_DRAWS):
        drawn = [value for member in dice.choices(members, k=80) for value in member]
        slow.append(sum(drawn) / len(drawn))
    assert np.quantile(fast, [0.025, 0.5, 0.975]) == pytest.approx(np.quantile(slow, [0.025, 0.5, 0.975]), abs=0.012)
    without_groups = np.ptp(np.quantile(resampled_means(values[:, None]), [0.025, 0.975]))
    assert np.ptp(np.quantile(fast, [0.025, 0.975])) > 1.2 * without_groups


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_copies_in_one_source_group_change_no_interval(spread: float) -> None:
    """With spread 0 all problems are equal, and the number of completions bounds effective n."""
    rng = np.random.default_rng(2)
    values = np.clip(0.5 + spread * rng.standard_normal(120).round(1), 0, 1)
    parts = rng.integers(1, 5, 120).astype(float)
    copied, groups = np.repeat(values, 3), np.repeat(np.arange(120), 3)
    one, three = share(values, samples_per_unit=8), share(copied, groups=groups, samples_per_unit=8)
    assert (three.estimate, three.low, three.high) == pytest.approx((one.estimate, one.low, one.high), abs=1e-12)
    one, three_parts = share(values * parts, parts), np.repeat(parts, 3)
    ratio = share(copied * three_parts, three_parts, groups=groups)
    assert (ratio.estimate, ratio.low, ratio.high) == pytest.approx((one.estimate, one.low, one.high), abs=1e-12)
    assert (three.num_problems, three.note) == (360, "")
    columns = np.stack([values, parts], axis=1)
    assert resampled_means(np.repeat(columns, 3, axis=0), groups) == pytest.approx(resampled_means(columns), abs=1e-12)


def test_few_source_groups_get_a_note() -> None:
    groups = np.repeat(np.arange(50), 4)
    values = np.random.default_rng(0).random(200)
    assert share(values, groups=groups).note == "fewer than 100 source groups"
    draws = resampled_means(values[:, None], groups)
    assert from_draws(0.5, draws[:, 0], num_problems=200, groups=groups).note == "fewer than 100 source groups"
    smallest = smallest_from_draws(np.array([0.5]), draws, num_problems=200, groups=groups)
    assert smallest.note == "fewer than 100 source groups"


def test_100_problems_or_source_groups_are_enough() -> None:
    assert few(100) == ""
    assert few(99) == "fewer than 100 problems"
    assert few(200, np.repeat(np.arange(100), 2)) == ""
    assert few(198, np.repeat(np.arange(99), 2)) == "fewer than 100 source groups"


def test_source_groups_without_completions_do_not_count() -> None:
    """Of 120 groups of two problems, half have nothing in the denominator."""
    groups, denominator = np.repeat(np.arange(120), 2), np.repeat([1.0, 0.0], 120)
    got = share(np.tile([1.0, 0.0], 120) * denominator, denominator, groups=groups)
    assert (got.estimate, got.num_problems, got.note) == (0.5, 120, "fewer than 100 source groups")


def test_bootstrap_is_repeatable_and_ignores_the_order_of_problems() -> None:
    columns = np.random.default_rng(1).random((50, 2)).round(1)
    assert (resampled_means(columns) == resampled_means(columns[::-1])).all()


def test_a_column_with_an_undefined_problem_has_no_means() -> None:
    columns = np.array([[1.0, np.nan], [0.0, 1.0], [1.0, 0.0]])
    means = resampled_means(columns)
    assert np.isnan(means[:, 1]).all()
    assert np.isfinite(means[:, 0]).all()


def test_shares_cover_the_truth() -> None:
    """400 simulated studies with clustered data. An interval over samples covers only 60 % here."""
    rng = np.random.default_rng(11)
    num_problems, samples, studies, covered = 200, 8, 400, 0
    for _ in range(studies):
        skill = rng.beta(0.4, 0.6, num_problems)  # mean 0.4
        got = share(rng.binomial(samples, skill) / samples, samples_per_unit=samples)
        covered += got.low <= 0.4 <= got.high
    assert covered / studies >= 0.93 - 2 * np.sqrt(0.05 * 0.95 / studies)
