"""How uncertain a figure is: over problems, and over problems and seeds.

The input is one value per problem (and seed), or an interval that is known already. The output is
an `Uncertainty`, from which intervals of any level and p values follow, so that both always agree.
All tables with a mean or a difference over seeds use this module, and `stats/power.py` computes the
power of its p value. This module does not know which measure the values are of. Decisions from p
values are in `stats/decisions.py`, the parts of the variance in `stats/variance.py`.

Over problems, the interval is that of Student's t over the problems (or source groups) and two
pseudo-problems: one on which B is better, one on which A is better, both by as much as on the most
extreme problem. This is the interval of Bonett and Price (2012) for paired shares, with values
between -1 and 1 instead of -1, 0 and 1. Where the differences vary little, the pseudo-problems are
more extreme, so that the interval is not narrower than that of equal differences on all problems,
whose pseudo-problems are 1 and -1: a few problems that only A or only B solves may be absent from
the data by chance. The interval has no width of 0, and it covers where nearly all problems are alike
(tests/benchmarks/small_samples.py).

Over problems and seeds, the runs are a crossed design: every seed meets every problem. With one
value per seed and problem, the variance of the mean has three parts, estimated by moments:
problems, seeds, and the rest (samples, and seeds that help on different problems). With few seeds,
Satterthwaite's degrees of freedom give too narrow an interval, and adding the squared half-widths
of both parts gives too wide a one (Cochran 1964). The mean of the two squared half-widths covers
(tests/benchmarks/seed_coverage.py). A weight of 1/2 is about the smallest one of the wide interval
with which the coverage is at least 94 %, for any number of seeds and any share of the seeds in the
variance (tests/unit/analysis/test_uncertainty.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.stats.estimators import FloatArray, IntArray
from analysis.stats.intervals import CONFIDENCE, Estimate, few, join_notes, summed_by_group, undefined
from analysis.stats.student import t_quantile, t_quantiles

SMALLEST_P = 1e-6
"""Smaller p values are given as this one: no approximation is good so far out."""


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """A difference with its standard errors.

    The standard error may differ below and above the estimate. With `num_seeds` of 1, nothing is
    known about seeds.
    """

    estimate: float
    below: float  # standard error over problems, for the lower bound
    above: float  # the same for the upper bound
    df: float  # degrees of freedom over problems
    num_seeds: int = 1
    rest: float = 0.0  # variance of the estimate by samples and by seeds that help on different problems
    seeds: float = 0.0  # variance of the estimate between seeds; contains `rest`

    @property
    def given_seeds(self) -> Uncertainty:
        """The same difference for these seeds, that is over problems only."""
        return replace(self, num_seeds=1, rest=0.0, seeds=0.0)

    def interval(self, level: float = CONFIDENCE) -> tuple[float, float]:
        """The interval over problems, and over seeds too if there are several. It lies within -1 and 1."""
        low, high = self.estimate - self._half(self.below, level), self.estimate + self._half(self.above, level)
        return max(-1.0, low), min(1.0, high)

    def _half(self, error: float, level: float) -> float:
        if self.num_seeds == 1:
            return error * t_quantile((1 + level) / 2, self.df)
        problems = problems_alone(np.array(error), self.rest, self.df)
        return float(half_width(problems, np.array(self.seeds), df=self.df, num_seeds=self.num_seeds, level=level))

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided p value: 1 - the level of the widest interval that does not contain `null`."""
        gap = self.estimate - null
        error = self.below if gap > 0 else self.above
        if gap == 0:
            return 1.0

        def contains(p: float) -> bool:
            return self._half(error, 1 - p) >= abs(gap)

        return _smallest_outside(contains)

    def chance_above(self, null: float = 0.0) -> float:
        """Chance that the true difference is greater than `null`, if all values were equally likely before."""
        half = self.p_value(null) / 2
        return 1 - half if self.estimate > null else half

    def p_not_within(self, margin: float) -> float:
        """P value of the hypothesis that the true difference is not between -margin and margin.

        It is the larger one of two one-sided tests (Schuirmann 1987).
        """
        return max(1 - self.chance_above(-margin), self.chance_above(margin))


def problems_alone(error: FloatArray, rest: float, df: float) -> FloatArray:
    """Variance of an estimate by problems alone, for a standard error over problems.

    It is at least the standard error of its own estimate, so that no interval has a width of 0.

    Args:
        error: standard errors over problems, which contain `rest`; any shape.
        rest: variance of the estimate by samples and by seeds that help on different problems.
        df: degrees of freedom over problems.
    """
    square = np.square(error)
    alone: FloatArray = np.maximum(square - rest, square * math.sqrt(2 / df))
    return alone


def half_width(problems: FloatArray, seeds: FloatArray, *, df: float, num_seeds: int, level: float) -> FloatArray:
    """Half-width of the interval over problems and seeds: the one rule of all tables and plans.

    Its square is the mean of two. The narrow one is that of Satterthwaite (1946, doi
    10.2307/3002019), the wide one is the sum of the squared half-widths of both parts.

    Args:
        problems: estimated variance by problems alone; any shape.
        seeds: estimated variance between seeds; the same shape.
        df: degrees of freedom over problems.
        num_seeds: number of seeds, at least 2.
        level: level of the interval.

    >>> half_width(np.array([0.0, 1.0]), np.array([1.0, 0.0]), df=1e9, num_seeds=5, level=0.95).round(3).tolist()
    [2.776, 1.96]
    """
    tail, own_df, total = (1 + level) / 2, num_seeds - 1, problems + seeds
    # Where both parts are 0, as for the bound of a share that is 0 or 1 in every seed, any df gives 0.
    spread = np.where(total > 0, problems**2 / df + seeds**2 / own_df, 1.0)
    joint_df = np.maximum(total**2 / spread, min(df, own_df))
    narrow = t_quantiles(tail, joint_df) ** 2 * total
    wide = t_quantile(tail, df) ** 2 * problems + t_quantile(tail, own_df) ** 2 * seeds
    half: FloatArray = np.sqrt((narrow + wide) / 2)
    return half


def errors_over_problems(
    estimate: float, squares: FloatArray, extreme: float | FloatArray, num_units: int
) -> tuple[FloatArray, FloatArray]:
    """Standard errors below and above a mean difference over problems, with two pseudo-problems.

    Args:
        estimate: mean difference.
        squares: sum of the squared deviations of the units from the mean; any shape.
        extreme: difference of a pseudo-problem; that of the other one is -extreme. The same shape.
        num_units: number of problems, or of source groups.
    """
    whole = num_units + 2
    centre = estimate * num_units / whole
    squares = squares + 2 * extreme**2 + estimate**2 * 2 * num_units / whole
    quantile = t_quantile((1 + CONFIDENCE) / 2, max(1, num_units - 1))
    half = quantile * np.sqrt(squares) / whole
    return np.maximum(0, estimate - centre + half) / quantile, np.maximum(0, centre + half - estimate) / quantile


def _smallest_outside(contains: Callable[[float], bool]) -> float:
    """The p at which the interval of the level 1 - p begins to exclude a value, by bisection."""
    if not contains(SMALLEST_P):
        return SMALLEST_P
    low, high = math.log(SMALLEST_P), 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if contains(math.exp(middle)) else (low, middle)
    return math.exp(high)


def of_interval(estimate: float, low: float, high: float, *, num_units: int) -> Uncertainty:
    """The uncertainty of a figure whose 95 % interval over problems is known.

    Args:
        estimate: the figure.
        low: lower bound of the interval.
        high: upper bound of the interval.
        num_units: number of problems, or of source groups.
    """
    df = max(1, num_units - 1)
    quantile = t_quantile((1 + CONFIDENCE) / 2, df)
    below, above = ((max(0.0, side) / quantile) for side in (estimate - low, high - estimate))
    return Uncertainty(estimate=estimate, below=below, above=above, df=df)


def of_differences(values: FloatArray, groups: IntArray | None = None) -> Uncertainty:
    """The uncertainty of a mean difference.

    Args:
        values: (S, P) differences between -1 and 1 for each of S seeds and P problems.
        groups: (P,) codes of source groups; default: every problem is one.

    Returns:
        The uncertainty of the mean over seeds and problems.
    """
    own = values.mean(axis=0)
    sums, sizes = grouped(own[:, None], groups)
    estimate, num_units, extreme = float(own.mean()), len(sizes), largest_difference(own, groups)
    # Problems of a group count together, in units of the mean size of a group.
    deviations = (sums[:, 0] - estimate * sizes) / sizes.mean()
    below, above = errors_over_problems(estimate, np.square(deviations).sum(), extreme, num_units)
    known = Uncertainty(estimate=estimate, below=float(below), above=float(above), df=max(1, num_units - 1))
    return known if len(values) == 1 else over_seeds(known, values, groups)


def largest_difference(values: FloatArray, groups: IntArray | None = None) -> float:
    """The difference of a pseudo-problem for (P,) differences (`_extremes`)."""
    return float(_extremes(values[:, None], groups)[0])


def _extremes(columns: FloatArray, groups: IntArray | None) -> FloatArray:
    """The difference of a pseudo-problem for each column of (P, F) differences.

    It is the largest size of a difference, or more: the squared deviations of all problems and of
    both pseudo-problems add up to at least 2. With source groups, it is that of the means of the groups.
    """
    sums, sizes = grouped(columns, groups)
    largest = np.abs(sums / sizes[:, None]).max(axis=0)
    squares = np.square((sums - columns.mean(axis=0) * sizes[:, None]) / sizes.mean()).sum(axis=0)
    extremes: FloatArray = np.sqrt(np.maximum(np.square(largest), at_least(squares)))
    return extremes


def at_least(squares: FloatArray) -> FloatArray:
    """Smallest square of a pseudo-problem, for the sum of the squared deviations of the problems; any shape."""
    least: FloatArray = 1 - squares / 2
    return least


def with_pseudo_problems(columns: FloatArray, groups: IntArray | None) -> tuple[FloatArray, IntArray | None]:
    """Add two pseudo-problems to values whose means are drawn by a bootstrap.

    Args:
        columns: (P, F) differences between -1 and 1. A column with a NaN keeps it.
        groups: (P,) codes of source groups. Each pseudo-problem is a group of mean size.

    Returns:
        (P + 2, F), or more rows with source groups, and the codes.
    """
    extreme = _extremes(columns, groups)
    repeats, groups = pseudo_groups(groups)
    return np.concatenate([columns, *[extreme[None]] * repeats, *[-extreme[None]] * repeats]), groups


def pseudo_groups(groups: IntArray | None) -> tuple[int, IntArray | None]:
    """Add the codes of two pseudo-problems to those of the problems.

    Returns:
        How many rows each pseudo-problem has, the mean size of a source group, and the codes.
    """
    if groups is None:
        return 1, None
    repeats = max(1, round(len(groups) / len(np.unique(groups))))
    return repeats, np.concatenate([groups, np.repeat(groups.max() + np.array([1, 2]), repeats)])


@dataclass(frozen=True, kw_only=True)
class Variances:
    """Estimated variances of a mean over S seeds and P problems."""

    problems: float  # over problems, for these seeds; contains `rest`
    seeds: float  # between seeds; contains `rest`. 0 for one seed
    rest: float  # samples, and seeds that help on different problems. 0 for one seed


def variances(values: FloatArray, groups: IntArray | None = None) -> Variances:
    """Estimate the variances of the mean of (S, P) values by moments.

    With the covariances C of the S means over problems, `problems` is the mean of all C_st, and
    `rest` is (mean of C_ss - mean of all C_st) / (S - 1). Without source groups these are the mean
    squares of problems and of the interaction in a crossed analysis of variance, divided by S P.
    """
    num_seeds = len(values)
    sums, sizes = grouped(values.T, groups)
    means = values.mean(axis=1)
    residuals = (sums - sizes[:, None] * means) / sizes.mean()
    num_units = len(sizes)
    covariance = residuals.T @ residuals / (num_units * max(1, num_units - 1))
    problems = float(covariance.mean())
    if num_seeds == 1:
        return Variances(problems=problems, seeds=0.0, rest=0.0)
    rest = (float(np.trace(covariance)) / num_seeds - problems) / (num_seeds - 1)
    return Variances(problems=problems, seeds=float(means.var(ddof=1)) / num_seeds, rest=max(0.0, rest))


def over_seeds(known: Uncertainty, values: FloatArray, groups: IntArray | None = None) -> Uncertainty:
    """Add the variation between seeds to an uncertainty over problems.

    Args:
        known: the uncertainty of the mean over seeds, over problems.
        values: (S, P) value of each of S seeds (two or more) and P problems.
        groups: (P,) codes of source groups; default: every problem is one.
    """
    found = variances(values, groups)
    return replace(known, num_seeds=len(values), rest=found.rest, seeds=found.seeds)


def mean_over_seeds(
    mean: Estimate, of_seeds: Sequence[Estimate], groups: IntArray | None = None, *, lowest: float = 0.0
) -> Estimate | None:
    """A mean over seeds of a figure whose intervals over problems are known.

    The rest follows from the intervals: with V_s and V for the squared standard errors of the seeds
    and of their mean, it is (mean of V_s - V) / (S - 1). For means over problems this is the rest
    of `variances`.

    Args:
        mean: the mean of the figures of the seeds, with its interval over problems.
        of_seeds: the figure of each seed with its interval over problems.
        groups: (P,) codes of source groups; default: every problem is one.
        lowest: smallest possible value; the largest is 1.

    Returns:
        The mean with its interval over problems and seeds; None if there is one seed, or no interval.
    """
    found = [_of_estimate(e, groups) for e in (mean, *of_seeds)]
    known = [u for u in found if u is not None]
    if len(of_seeds) < 2 or len(known) < len(found):
        return None
    own, *seeds = known
    squares = [((u.below + u.above) / 2) ** 2 for u in (own, *seeds)]
    rest = (sum(squares[1:]) / len(seeds) - squares[0]) / (len(seeds) - 1)
    between = float(np.var([u.estimate for u in seeds], ddof=1)) / len(seeds)
    low, high = replace(own, num_seeds=len(seeds), rest=max(0.0, rest), seeds=between).interval()
    return replace(mean, low=max(lowest, low), high=high)


def _of_estimate(e: Estimate, groups: IntArray | None) -> Uncertainty | None:
    if e.estimate is None or e.low is None or e.high is None:
        return None
    num_units = e.num_problems if groups is None else len(np.unique(groups))
    return of_interval(e.estimate, e.low, e.high, num_units=num_units)


def grouped(columns: FloatArray, groups: IntArray | None) -> tuple[FloatArray, FloatArray]:
    """Sums (G, F) of each source group and their numbers of problems (G,); without groups, each problem is one."""
    if groups is None:
        return columns, np.ones(len(columns))
    sums = summed_by_group(np.concatenate([columns, np.ones((len(columns), 1))], axis=1), groups)
    return sums[:, :-1], sums[:, -1]


def estimate_of(known: Uncertainty, *, num_problems: int, groups: IntArray | None = None, note: str = "") -> Estimate:
    """The estimate with its interval, as a row of a table."""
    low, high = known.interval()
    return Estimate(known.estimate, low, high, num_problems, join_notes(note, few(num_problems, groups)))


def difference(values: FloatArray, *, groups: IntArray | None = None, note: str = "") -> Estimate:
    """A mean difference with its interval.

    Args:
        values: (P,) differences per problem of one pair of runs, or (S, P) of several seeds, which
            give an interval over problems and seeds. A NaN makes the mean undefined.
        groups: (P,) codes of source groups.
        note: note of the estimate.
    """
    num_problems = values.shape[-1]
    if np.isnan(values).any():
        return undefined(num_problems, note)
    return estimate_of(
        of_differences(np.atleast_2d(values), groups), num_problems=num_problems, groups=groups, note=note
    )
