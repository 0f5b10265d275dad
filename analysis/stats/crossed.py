"""Means over problems and seeds, where both are samples: every seed is measured on every problem.

The input is an array of shape (seeds, problems). The output is the parts of the variance of its
mean, and an interval of the mean that holds for other problems and other seeds. With one seed the
interval is over problems only. The parts are estimated in `stats/uncertainty.py`. This module does
not know what the values are.

The variance of the mean is that of two crossed samples (two-way clustering: Cameron, Gelbach and
Miller 2011, doi 10.1198/jbes.2010.07136): the part that problems share over seeds, plus the part
that seeds share over problems, minus what both contain. Source groups are sampled as a whole. The
degrees of freedom are those of Satterthwaite (1946, doi 10.2307/3002019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.stats.estimators import FloatArray, IntArray
from analysis.stats.intervals import CONFIDENCE, Estimate, few, join_notes, undefined
from analysis.stats.student import t_quantile
from analysis.stats.uncertainty import variances


@dataclass(frozen=True)
class MeanVariance:
    """Parts of the variance of a mean over S seeds and P problems in G source groups.

    Each figure is an unbiased estimate of the variance that the mean would have if only this part
    varied, plus `both`. `both` is the variance from what a seed does on a problem, which includes
    the sampling of completions.
    """

    problems: float  # estimated from the means of G source groups over seeds
    seeds: float  # estimated from the means of S seeds; 0 for one seed
    both: float  # estimated from the rest; 0 for one seed, where `problems` contains it
    num_groups: int
    num_seeds: int

    @property
    def total(self) -> float:
        """Variance of the mean. A negative estimate of the part of the seeds counts as 0."""
        return self.problems + max(self.seeds - self.both, 0.0)

    @property
    def df(self) -> float:
        """Degrees of freedom of `total`."""
        of_problems = self.problems**2 / (self.num_groups - 1)
        if self.num_seeds == 1 or self.seeds <= self.both:
            return self.num_groups - 1.0
        return satterthwaite(self.total, of_problems, self.seeds, self.both, self.num_groups, self.num_seeds)


def satterthwaite(
    total: float, of_problems: float, seeds: float, both: float, num_groups: float, num_seeds: float
) -> float:
    """Degrees of freedom of problems + seeds - both.

    Args:
        total: the sum.
        of_problems: problems^2 / (num_groups - 1).
        seeds: variance estimated from the means of seeds.
        both: variance that both of the other estimates contain.
        num_groups: number of source groups (or problems).
        num_seeds: number of seeds, at least 2.
    """
    of_seeds = seeds**2 / (num_seeds - 1)
    of_both = both**2 / ((num_seeds - 1) * (num_groups - 1))
    return max(1.0, total**2 / (of_problems + of_seeds + of_both))


def mean_variance(values: FloatArray, groups: IntArray | None = None) -> MeanVariance:
    """Estimate the parts of the variance of the mean of all values.

    Args:
        values: (S, P) values of S seeds on the same P problems; P is at least 2.
        groups: (P,) codes of source groups; default: every problem is a group of its own.
    """
    found = variances(values, groups)
    num_groups = values.shape[1] if groups is None else len(np.unique(groups))
    return MeanVariance(found.problems, found.seeds, found.rest, num_groups, len(values))


def crossed_mean(
    values: FloatArray,
    groups: IntArray | None = None,
    *,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    note: str = "",
) -> Estimate:
    """Mean over seeds and problems with an interval that covers other seeds and other problems.

    With 200 problems, simulated coverage of the 95 % interval is in analysis/README.md. With one
    seed, the interval covers other problems only.

    Args:
        values: (S, P) values of S seeds on the same P problems. A NaN makes the mean undefined.
        groups: (P,) codes of source groups, whose problems are dependent.
        bounds: smallest and largest possible value; the interval is cut to them.
        note: note of the estimate.
    """
    num_problems = values.shape[1]
    if np.isnan(values).any():
        return undefined(num_problems, note or "undefined for some problems")
    mean, note = float(values.mean()), join_notes(note, few(num_problems, groups))
    if num_problems < 2 or (groups is not None and len(np.unique(groups)) < 2):
        return Estimate(mean, None, None, num_problems, join_notes(note, "no interval: one problem"))
    parts = mean_variance(values, groups)
    if parts.total <= 1e-24:
        return Estimate(mean, None, None, num_problems, join_notes(note, "no interval: all problems are alike"))
    half = t_quantile((1 + CONFIDENCE) / 2, parts.df) * float(np.sqrt(parts.total))
    low, high = max(bounds[0], mean - half), min(bounds[1], mean + half)
    return Estimate(mean, low, high, num_problems, note)
