"""Intervals and p values of differences: against scipy, an analysis of variance, and simulated truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from analysis.stats.decisions import holm, verdict
from analysis.stats.estimators import pass_at_k, team_pass_at_k
from analysis.stats.intervals import Estimate
from analysis.stats.student import t_quantile
from analysis.stats.uncertainty import (
    Uncertainty,
    difference,
    half_width,
    mean_over_seeds,
    of_differences,
    of_interval,
    problems_alone,
    variances,
    with_pseudo_problems,
)
from analysis.stats.variance import PROBLEMS, SAMPLES, SEEDS, Split, advice, sampling_variance, split
from tests.benchmarks.seed_coverage import CHOSEN, LEVEL, WORLDS, coverage
from tests.benchmarks.small_samples import RARE, calibration, rare_coverage
from tests.benchmarks.small_samples import coverage as small_coverage


def known(estimate: float, error: float, df: float = 1e9) -> Uncertainty:
    return Uncertainty(estimate=estimate, below=error, above=error, df=df)


def test_over_problems_against_scipy() -> None:
    """With many problems, the two pseudo-problems have no weight, and the rest is the t test of one sample."""
    values = np.random.default_rng(1).normal(0.02, 0.3, 20_000).clip(-1, 1)
    found, expected = of_differences(values[None]), stats.ttest_1samp(values, 0)
    interval = expected.confidence_interval(0.95)
    assert found.interval() == pytest.approx((interval.low, interval.high), abs=5e-6)
    few = of_differences(values[None, :400])
    assert few.p_value() == pytest.approx(stats.ttest_1samp(values[:400], 0).pvalue, rel=0.1)
    assert few.df == 399


def test_the_interval_of_paired_shares_is_that_of_bonett_and_price() -> None:
    """12 problems are solved by B only, 4 by A only, 34 by both or neither (Bonett and Price 2012, equation 6)."""
    values = np.array([1.0] * 12 + [-1.0] * 4 + [0.0] * 34)
    p12, p21 = 13 / 52, 5 / 52
    half = stats.t.ppf(0.975, 49) * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / 52)
    assert of_differences(values[None]).interval() == pytest.approx((p12 - p21 - half, p12 - p21 + half))


def test_p_values_agree_with_intervals_of_every_level() -> None:
    rng = np.random.default_rng(2)
    for values in (rng.normal(0.1, 0.3, (1, 40)), rng.normal(0.1, 0.3, (3, 40)), rng.normal(-0.1, 0.2, (2, 150))):
        found = of_differences(values.clip(-1, 1))
        for null in (0.0, 0.02, -0.05):
            p = found.p_value(null)
            low, high = found.interval(1 - p)
            assert min(abs(low - null), abs(high - null)) < 1e-6
            assert found.chance_above(null) == pytest.approx(1 - p / 2 if found.estimate > null else p / 2)


def test_equivalence_is_two_one_sided_tests() -> None:
    for estimate, error in ((0.004, 0.006), (0.015, 0.01), (-0.01, 0.004), (0.03, 0.01)):
        normal = stats.norm(estimate, error)
        expected = max(normal.cdf(-0.02), normal.sf(0.02))
        found = known(estimate, error)
        assert found.p_not_within(0.02) == pytest.approx(max(expected, 5e-7), abs=1e-7)
        low, high = found.interval()
        assert (found.p_not_within(0.02) < 0.025) == (low > -0.02 and high < 0.02)


def test_verdicts_of_the_three_kinds() -> None:
    assert verdict(0.3, 0.024, 0.02) == "equivalent within 2 points"
    assert verdict(0.3, 0.026, 0.02) == verdict(0.05, 0.5, 0.02) == "not resolved"
    assert verdict(0.049, 0.5, 0.01) == "different"
    assert verdict(0.049, 0.001, 0.01) == "different, by less than 1 point"


def test_holm_keeps_the_chance_of_any_false_result() -> None:
    """Against the definition: in order, p is multiplied by the number of hypotheses that are left."""
    p = [0.004, 0.03, 0.012, 0.9, 0.02]
    expected = [0.02, 0.06, 0.048, 0.9, 0.06]  # 5 x .004; 4 x .012; 3 x .02; then never smaller than before
    assert holm(p) == pytest.approx(expected)
    rng = np.random.default_rng(3)
    false = sum(min(holm(list(rng.random(8)))) < 0.05 for _ in range(2000))
    assert false / 2000 == pytest.approx(0.05, abs=0.015)
    assert holm([]) == []
    assert holm([0.6, 0.9, 0.4]) == [1.0, 1.0, 1.0]  # 3 x 0.4 is above 1


def test_variances_against_an_analysis_of_variance() -> None:
    """Mean squares of a crossed design, computed from sums of squares."""
    values = np.random.default_rng(4).normal(0, 0.3, (4, 60)) + np.linspace(-0.3, 0.3, 60)
    num_seeds, num_problems = values.shape
    grand, rows, columns = values.mean(), values.mean(axis=1, keepdims=True), values.mean(axis=0)
    of_problems = num_seeds * ((columns - grand) ** 2).sum() / (num_problems - 1)
    of_seeds = num_problems * ((rows - grand) ** 2).sum() / (num_seeds - 1)
    of_rest = ((values - rows - columns + grand) ** 2).sum() / ((num_problems - 1) * (num_seeds - 1))
    found = variances(values)
    expected = np.array([of_problems, of_seeds, of_rest]) / values.size
    assert (found.problems, found.seeds, found.rest) == pytest.approx(expected)
    # Copies in source groups add no information.
    groups = np.repeat(np.arange(60), 3)
    copied = variances(np.repeat(values, 3, axis=1), groups)
    assert (copied.problems, copied.seeds, copied.rest) == pytest.approx(expected)
    one, three = of_differences(values), of_differences(np.repeat(values, 3, axis=1), groups)
    assert three.interval() == pytest.approx(one.interval())


def test_few_seeds_with_a_large_effect_have_the_interval_of_t_over_seeds() -> None:
    values = np.array([[0.0], [0.1], [0.3]]) + np.random.default_rng(5).normal(0, 0.001, (3, 500))
    means = values.mean(axis=1)
    half = stats.t.ppf(0.975, 2) * means.std(ddof=1) / np.sqrt(3)
    found = of_differences(values)
    assert found.interval() == pytest.approx((means.mean() - half, means.mean() + half), rel=0.01)
    # For these seeds, there is room for a few problems that are unlike all others.
    assert np.ptp(found.given_seeds.interval()) == pytest.approx(2 * stats.t.ppf(0.975, 499) * 2**0.5 / 502, rel=0.01)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.25, -1.0])
@pytest.mark.parametrize("num_seeds", [1, 2])
def test_no_interval_has_a_width_of_0(value: float, num_seeds: int) -> None:
    found = of_differences(np.full((num_seeds, 30), value))
    low, high = found.interval()
    assert -1 <= low < high <= 1  # no difference is larger than 1
    assert low < value or low == value == -1.0
    assert value < high or high == value == 1.0
    assert 0 < found.p_value() <= 1
    assert (low > 0) == (value > 0)
    assert (high < 0) == (value < 0)


@pytest.mark.parametrize(
    ("problems", "seeds", "df", "num_seeds"),
    [(0.04, 0.01, 99, 3), (0.002, 0.09, 30, 2), (0.5, 0.0, 12, 5), (0.0, 0.2, 400, 4)],
)
@pytest.mark.parametrize("level", [0.95, 0.5])
def test_the_half_width_is_between_those_of_satterthwaite_and_of_the_sum_of_the_parts(
    problems: float, seeds: float, df: int, num_seeds: int, level: float
) -> None:
    """Each in its textbook form; the square of the half-width is the mean of both squares."""
    joint = (problems + seeds) ** 2 / (problems**2 / df + seeds**2 / (num_seeds - 1))
    at_joint, at_problems, at_seeds = (stats.t.ppf((1 + level) / 2, x) for x in (joint, df, num_seeds - 1))
    narrow, wide = at_joint**2 * (problems + seeds), at_problems**2 * problems + at_seeds**2 * seeds
    found = half_width(np.array([problems, 0.0]), np.array([seeds, 0.0]), df=df, num_seeds=num_seeds, level=level)
    assert found.tolist() == pytest.approx([((narrow + wide) / 2) ** 0.5, 0.0])


def test_the_variance_by_problems_alone_is_at_least_the_error_of_its_estimate() -> None:
    found = problems_alone(np.array([0.1, 0.1, 0.0]), 0.004, 50)
    assert found.tolist() == pytest.approx([0.01 - 0.004, 0.01 - 0.004, 0.0])
    assert problems_alone(np.array([0.1]), 0.009, 50).tolist() == pytest.approx([0.01 * (2 / 50) ** 0.5])


def test_all_problems_alike_leave_room_for_about_three_in_n() -> None:
    """If B equals A on n problems, a share of up to 3 / n of all problems may differ (the rule of three)."""
    for n in (30, 100, 500):
        low, high = of_differences(np.zeros((1, n))).interval()
        assert 2 / n < high == -low < 3 / n


def test_pseudo_problems_of_a_bootstrap() -> None:
    columns, groups = with_pseudo_problems(np.array([[0.5, 0.0], [-0.25, 0.0]]), np.array([4, 4]))
    # Two problems of one group, whose means do not vary; a pseudo-problem has as many rows as a group.
    assert columns[2:].tolist() == [[1.0, 1.0]] * 2 + [[-1.0, -1.0]] * 2
    assert groups is not None
    assert groups.tolist() == [4, 4, 5, 5, 6, 6]
    # Groups of 4 and 3 problems: the mean size of 3.5 is rounded.
    sizes = with_pseudo_problems(np.ones((7, 1)), np.array([0, 0, 0, 0, 1, 1, 1]))[0]
    assert len(sizes) == 7 + 2 * 4
    alone, none = with_pseudo_problems(np.array([[0.9, 0.5], [-0.9, -0.5]]), None)
    # The squares of both columns are 1.62 and 0.5. With the pseudo-problems they add up to 2 at least.
    assert (alone[2:].tolist(), none) == ([[0.9, pytest.approx(0.75**0.5)], [-0.9, pytest.approx(-(0.75**0.5))]], None)


def test_a_known_interval_keeps_its_bounds() -> None:
    found = of_interval(0.1, 0.02, 0.3, num_units=50)
    assert found.interval() == pytest.approx((0.02, 0.3))
    assert found.df == 49
    assert t_quantile(0.975, 49) == pytest.approx(stats.t.ppf(0.975, 49))


def from_error(estimate: float, error: float) -> Estimate:
    """An estimate over 101 problems with Student's interval of a standard error."""
    half = stats.t.ppf(0.975, 100) * error
    return Estimate(estimate, estimate - half, estimate + half, 101)


def test_a_mean_over_seeds_of_known_intervals() -> None:
    """With V_s and V for the squared errors of the seeds and of their mean, the rest is (mean V_s - V) / (S - 1)."""
    seeds, mean = [from_error(0.4, 0.05), from_error(0.5, 0.04), from_error(0.7, 0.06)], from_error(1.6 / 3, 0.035)
    rest = ((0.05**2 + 0.04**2 + 0.06**2) / 3 - 0.035**2) / 2
    between = ((0.4 - 1.6 / 3) ** 2 + (0.5 - 1.6 / 3) ** 2 + (0.7 - 1.6 / 3) ** 2) / 2 / 3
    half = half_width(np.array(0.035**2 - rest), np.array(between), df=100, num_seeds=3, level=0.95)
    found = mean_over_seeds(mean, seeds)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((1.6 / 3 - half, 1.6 / 3 + half))
    # Groups are the units of the interval over problems.
    grouped = mean_over_seeds(mean, seeds, np.repeat(np.arange(20), 6)[:101])
    assert grouped is not None
    assert grouped.low < found.low


def test_a_mean_over_seeds_is_within_the_range_of_its_figure_and_needs_all_intervals() -> None:
    seeds = [from_error(0.05, 0.02), from_error(0.2, 0.02)]
    of_share, of_difference = (mean_over_seeds(from_error(0.125, 0.02), seeds, lowest=lowest) for lowest in (0.0, -1.0))
    assert of_share is not None
    assert of_difference is not None
    assert of_share.low == 0.0
    assert of_difference.low < -0.5
    assert mean_over_seeds(seeds[0], seeds[:1]) is None
    assert mean_over_seeds(seeds[0], [seeds[0], Estimate(0.3, None, None, 101)]) is None


def test_undefined_differences_and_few_problems() -> None:
    assert difference(np.array([np.nan, 0.1]), note="why").note == "why"
    assert difference(np.array([0.0, 0.1])).note == "fewer than 100 problems"


# --- parts of the variance -----------------------------------------------------------------------


def test_sampling_variance_is_unbiased() -> None:
    """Against the variance of many repeated evaluations of the same problems."""
    rng = np.random.default_rng(6)
    chance = np.array([[0.2, 0.5, 0.9], [0.1, 0.6, 0.5]])
    c = np.repeat(chance, 20_000, axis=1)  # (2, 3 x 20,000)
    c, n = rng.binomial(8, c), np.full(c.shape, 8)
    expected = team_pass_at_k(n, c, 2).reshape(3, -1).var(axis=1)
    assert sampling_variance(n, c, 2).reshape(3, -1).mean(axis=1) == pytest.approx(expected, rel=0.06)
    expected = pass_at_k(n[0], c[0], 4).reshape(3, -1).var(axis=1)
    assert sampling_variance(n[:1], c[:1], 4).reshape(3, -1).mean(axis=1) == pytest.approx(expected, rel=0.06)
    assert np.isnan(sampling_variance(n, c, 5)).all()


@pytest.mark.parametrize("num_seeds", [2, 3])
def test_what_twice_as_many_buy_in_a_simulation(num_seeds: int) -> None:
    """The mean width of intervals in simulated studies, with twice as many of each."""
    rng = np.random.default_rng(8)

    def width(num_problems: int, num_seeds: int, num_samples: int) -> float:
        widths = []
        for _ in range(1000):
            problems, seeds = rng.normal(0, 0.2, (1, num_problems)), rng.normal(0, 0.015, (num_seeds, 1))
            samples = rng.normal(0, 0.3 / num_samples**0.5, (num_seeds, num_problems))
            widths.append(np.ptp(of_differences(problems + seeds + samples).interval()))
        return float(np.mean(widths))

    parts = Split(
        problems=0.2**2 / 100,
        samples=0.3**2 / (100 * num_seeds * 2),
        seeds=0.015**2 / num_seeds,
        num_problems=100,
        num_seeds=num_seeds,
    )
    before = width(100, num_seeds, 2)
    after = {
        PROBLEMS: width(200, num_seeds, 2),
        SEEDS: width(100, 2 * num_seeds, 2),
        SAMPLES: width(100, num_seeds, 4),
    }
    for part, value in after.items():
        assert parts.narrower(part) == pytest.approx(1 - value / before, abs=0.04)


def test_the_parts_are_found_again() -> None:
    """Simulated effects of problems, seeds and samples of known size."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(400):
        problems, seeds, samples = (rng.normal(0, sd, s) for sd, s in ((0.2, 100), (0.05, (4, 1)), (0.4, (4, 100))))
        parts = split(problems + seeds + samples, own=0.4**2 / 400)
        found.append([parts.problems, parts.seeds, parts.samples])
    expected = [0.2**2 / 100, 0.05**2 / 4, 0.4**2 / 400]
    assert np.mean(found, axis=0)[0] == pytest.approx(expected[0], rel=0.1)
    assert np.mean(found, axis=0)[1] == pytest.approx(expected[1], rel=0.15)
    assert np.mean(found, axis=0)[2] == pytest.approx(expected[2], rel=0.1)
    one = split(rng.normal(0, 0.2, (1, 100)), own=1e-4)
    assert one.seeds is None
    assert one.samples == 1e-4


@pytest.mark.parametrize("copies", [1, 3])
def test_samples_have_at_most_what_an_analysis_of_variance_leaves_for_them(copies: int) -> None:
    """Own samples of the seeds are part of the rest, shared ones of the problems. Copies in groups add nothing."""
    values = np.random.default_rng(9).normal(0, 0.3, (4, 50)) + np.linspace(-0.3, 0.3, 50)
    values += np.array([[0.0], [0.1], [0.2], [0.3]])
    grand, rows, columns = values.mean(), values.mean(axis=1, keepdims=True), values.mean(axis=0)
    of_problems = ((columns - grand) ** 2).sum() / 49 / 50
    of_seeds = ((rows - grand) ** 2).sum() / 3 / 4
    of_rest = ((values - rows - columns + grand) ** 2).sum() / (49 * 3) / values.size
    assert 0 < of_rest < min(of_problems, of_seeds)
    groups = np.repeat(np.arange(50), copies) if copies > 1 else None
    low, high = 0.3 * of_rest, 10 * of_problems
    for own, shared in ((low, 0.0), (high, 0.0), (low, low), (low, high), (high, high), (0.0, low)):
        found = split(np.repeat(values, copies, axis=1), own=own, shared=shared, groups=groups)
        alone, common = min(own, of_rest), min(shared, of_problems - of_rest)
        expected = (of_problems - of_rest - common, alone + common, of_seeds - alone)
        assert (found.problems, found.samples, found.seeds) == pytest.approx(expected, abs=1e-15)
    one = variances(values[:1]).problems
    for own, shared in ((0.2, 0.3), (0.2, 0.0), (0.9, 0.9)):
        found = split(values[:1], own=own * one, shared=shared * one)
        samples = min(own + shared, 1.0) * one
        assert (found.problems, found.samples, found.seeds) == (
            pytest.approx(one - samples),
            pytest.approx(samples),
            None,
        )


def test_with_two_seeds_more_seeds_are_the_first_thing_to_buy() -> None:
    """The interval of 2 seeds has the t quantile 12.7, the one of 4 seeds 3.2, whatever the share of the seeds."""
    parts = Split(problems=0.6, samples=0.1, seeds=0.3, num_problems=200, num_seeds=2)
    assert [parts.share(p) for p in (PROBLEMS, SAMPLES, SEEDS)] == pytest.approx([0.6, 0.1, 0.3])
    assert advice(parts) == "twice the seeds: 62% narrower; twice the problems: 7%; twice the samples: 6%"


def test_with_many_seeds_the_interval_is_that_of_the_standard_error() -> None:
    parts = Split(problems=0.25, samples=0.25, seeds=0.5, num_problems=100_000, num_seeds=1000)
    # Twice the seeds: half of the parts of seeds and samples.
    expected = [1 - 0.75**0.5, 1 - 0.875**0.5, 1 - 0.625**0.5]
    assert [parts.narrower(p) for p in (PROBLEMS, SAMPLES, SEEDS)] == pytest.approx(expected, abs=0.002)
    shared = replace(parts, shared=0.25)  # samples that all seeds have in common: more seeds do not halve them
    assert shared.narrower(SEEDS) == pytest.approx(1 - 0.75**0.5, abs=0.002)
    helps = replace(parts, interaction=0.5)  # seeds that help on different problems: more problems halve this part
    assert helps.narrower(PROBLEMS) == pytest.approx(1 - 0.5**0.5, abs=0.002)


def test_what_to_buy_with_one_seed_and_without_variance() -> None:
    one = Split(problems=0.1, samples=0.9, seeds=None, num_problems=400, num_seeds=1)
    assert advice(one) == "twice the problems: 29% narrower; twice the samples: 26%"
    none = Split(problems=0.0, samples=0.0, seeds=None, num_problems=400, num_seeds=1)
    assert advice(none) == "no variance: all differences are equal"


# --- simulated coverage --------------------------------------------------------------------------


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 10])
def test_the_half_width_covers_for_any_share_of_the_seeds(num_seeds: int) -> None:
    """200,000 normal estimates, by the share of the variance that is between seeds. A variance of the mean of 1."""
    rng = np.random.default_rng(num_seeds)
    size, df = 200_000, 199
    for share in (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95):
        problems = (1 - share) * rng.chisquare(df, size) / df
        seeds = share * rng.chisquare(num_seeds - 1, size) / (num_seeds - 1)
        half = half_width(problems, seeds, df=df, num_seeds=num_seeds, level=0.95)
        assert 0.938 < (np.abs(rng.normal(size=size)) < half).mean() < (0.985 if num_seeds == 2 else 0.97)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("num_seeds", [2, 3, 10])
def test_intervals_over_problems_and_seeds_cover_the_truth(world: str, num_seeds: int) -> None:
    """The short form of tests/benchmarks/seed_coverage.py: 300 studies, 3 standard errors."""
    found = coverage(
        WORLDS[world],
        num_seeds=num_seeds,
        num_problems=100,
        num_studies=300,
        seed=2,
        methods=(CHOSEN, LEVEL, "over problems only"),
        population=300_000,
    )
    for name in (CHOSEN, LEVEL):
        # With ten seeds the problems vary less than where two of 100 are unlike all others, for which there is room.
        assert 95 - 3 * 1.26 <= found[name] <= (99.7 if num_seeds < 10 else 100)
    if world == "large seed effect":
        assert found["over problems only"] < 75


@pytest.mark.parametrize(("mean", "samples"), [(0.5, 8), (0.9, 1), (0.99, 8), (0.99, 1)])
def test_intervals_of_30_problems_cover_the_truth(mean: float, samples: int) -> None:
    """The short form of tests/benchmarks/small_samples.py."""
    found = small_coverage(num_problems=30, mean=mean, samples=samples, effect=0.5, num_studies=300)
    assert found["difference"] >= 95 - 3 * 1.26
    assert found["level"] >= 88
    if mean == 0.99:
        assert found["bootstrap"] < 60
        assert found["t"] < 60


@pytest.mark.parametrize(("num_problems", "lost", "chance"), RARE)
def test_intervals_cover_where_few_problems_are_unlike_all_others(
    num_problems: int, lost: float, chance: float
) -> None:
    """Such problems are absent from some studies, whose other problems vary only a little."""
    found = rare_coverage(num_problems=num_problems, lost=lost, chance=chance, samples=8, num_studies=400)
    assert found["difference"] >= 93
    assert found["level"] >= 93
    assert found["bootstrap"] < 90


def test_more_variation_does_not_make_an_interval_narrower() -> None:
    equal, one_differs = np.zeros((1, 100)), np.zeros((1, 100))
    one_differs[0, 0] = 1 / 28
    assert np.ptp(of_differences(one_differs).interval()) >= np.ptp(of_differences(equal).interval())


def test_the_chance_that_b_is_better_is_right() -> None:
    for stated in calibration(num_problems=100, num_studies=1500).values():
        error = 100 * np.sqrt(0.25 / stated["studies"])
        assert stated["stated_percent"] == pytest.approx(stated["true_percent"], abs=3 * error)
