"""How uncertain a difference is: over problems, and over problems and seeds.

The input is one value per problem (and seed), or an interval that is known already. The output is
an `Uncertainty`, from which intervals of any level and p values follow, so that both always agree.
This module does not know which measure the values are of. Decisions from p values are in
`stats/decisions.py`, the parts of the variance in `stats/variance.py`.

Over problems, the interval is that of Student's t over the problems (or source groups) and two
pseudo-problems: one on which B is better, one on which A is better, both by as much as on the most
extreme problem (by 1, if A and B are equal on all problems). This is the interval of Bonett and
Price (2012) for paired shares, with values between -1 and 1 instead of -1, 0 and 1. It has no width
of 0, and it covers where nearly all problems are alike (tests/benchmarks/small_samples.py).

Over problems and seeds, the runs are a crossed design: every seed meets every problem. With one
value per seed and problem, the variance of the mean has three parts, estimated by moments:
problems, seeds, and the rest (samples, and seeds that help on different problems). With few seeds,
Satterthwaite's degrees of freedom give too narrow an interval, and adding the squared half-widths
of both parts gives too wide a one (Cochran 1964). The mean of the two squared half-widths covers
(tests/benchmarks/seed_coverage.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.stats.estimators import FloatArray, IntArray
from analysis.stats.intervals import CONFIDENCE, Estimate, few, join_notes, summed_by_group, undefined
from analysis.stats.student import t_quantile

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

    def problems(self, error: float) -> float:
        """Variance of the estimate by problems alone, for a standard error over problems.

        It is at least the standard error of its own estimate, so that no interval has a width of 0.
        """
        return max(error**2 - self.rest, error**2 * math.sqrt(2 / self.df))

    def interval(self, level: float = CONFIDENCE) -> tuple[float, float]:
        """The interval over problems, and over seeds too if there are several. It lies within -1 and 1."""
        low, high = self.estimate - self._half(self.below, level), self.estimate + self._half(self.above, level)
        return max(-1.0, low), min(1.0, high)

    def _half(self, error: float, level: float) -> float:
        tail = (1 + level) / 2
        over_problems = t_quantile(tail, self.df) ** 2
        if self.num_seeds == 1:
            return error * math.sqrt(over_problems)
        problems = self.problems(error)
        if problems + self.seeds == 0:  # the bound of a share that is 0 or 1 in every seed
            return 0.0
        own_df = self.num_seeds - 1
        joint_df = (problems + self.seeds) ** 2 / (problems**2 / self.df + self.seeds**2 / own_df)
        narrow = t_quantile(tail, joint_df) ** 2 * (problems + self.seeds)
        wide = over_problems * problems + t_quantile(tail, own_df) ** 2 * self.seeds
        return math.sqrt((narrow + wide) / 2)

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
    units = estimate + (sums[:, 0] - estimate * sizes) / sizes.mean()
    with_pseudo = np.concatenate([units, [-extreme, extreme]])
    df = max(1, num_units - 1)
    half = t_quantile((1 + CONFIDENCE) / 2, df) * float(with_pseudo.std()) / math.sqrt(num_units + 2)
    centre = float(with_pseudo.mean())
    low, high = min(estimate, centre - half), max(estimate, centre + half)
    known = of_interval(estimate, low, high, num_units=num_units)
    return known if len(values) == 1 else over_seeds(known, values, groups)


def largest_difference(values: FloatArray, groups: IntArray | None = None) -> float:
    """The difference of a pseudo-problem: the largest size of (P,) differences; 1, if all are 0.

    With source groups, it is that of the means of the groups.
    """
    sums, sizes = grouped(values[:, None], groups)
    return float(np.abs(sums[:, 0] / sizes).max()) or 1.0


def with_pseudo_problems(columns: FloatArray, groups: IntArray | None) -> tuple[FloatArray, IntArray | None]:
    """Add two pseudo-problems to values whose means are drawn by a bootstrap.

    Args:
        columns: (P, F) differences between -1 and 1. A column with a NaN keeps it.
        groups: (P,) codes of source groups. Each pseudo-problem is a group of mean size.

    Returns:
        (P + 2, F), or more rows with source groups, and the codes.
    """
    sums, sizes = grouped(columns, groups)
    extreme = np.abs(sums / sizes[:, None]).max(axis=0)
    extreme[extreme == 0] = 1.0
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


def mean_over_seeds(mean: Estimate, of_seeds: Sequence[Estimate]) -> Uncertainty | None:
    """The uncertainty of a mean over seeds of a figure whose intervals over problems are known.

    The rest follows from the intervals: with V_s and V for the squared standard errors of the seeds
    and of their mean, it is (mean of V_s - V) / (S - 1). For means over problems this is the rest
    of `variances`.

    Args:
        mean: the mean of the figures of the seeds, with its interval over problems.
        of_seeds: the figure of each seed with its interval over problems.

    Returns:
        The uncertainty over problems and seeds; None if there is one seed, or no interval.
    """
    found = [_of_estimate(e) for e in (mean, *of_seeds)]
    known = [u for u in found if u is not None]
    if len(of_seeds) < 2 or len(known) < len(found):
        return None
    own, *seeds = known
    squares = [((u.below + u.above) / 2) ** 2 for u in (own, *seeds)]
    rest = (sum(squares[1:]) / len(seeds) - squares[0]) / (len(seeds) - 1)
    between = float(np.var([u.estimate for u in seeds], ddof=1)) / len(seeds)
    return replace(own, num_seeds=len(seeds), rest=max(0.0, rest), seeds=between)


def _of_estimate(e: Estimate) -> Uncertainty | None:
    if e.estimate is None or e.low is None or e.high is None:
        return None
    return of_interval(e.estimate, e.low, e.high, num_units=e.num_problems)


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
    """A mean difference of one pair of runs with its interval.

    Args:
        values: (P,) differences per problem. A NaN makes the mean undefined.
        groups: (P,) codes of source groups.
        note: note of the estimate.
    """
    if np.isnan(values).any():
        return undefined(len(values), note)
    return estimate_of(of_differences(values[None], groups), num_problems=len(values), groups=groups, note=note)
