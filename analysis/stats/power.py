"""Power of a comparison of two configurations, from the parts of the variance of a difference.

The input is the parts of the variance of a difference between two arms (`Parts`) and a design: how
many problems, completions per problem and seeds. The output is the standard error of the
difference, the smallest effect that the design detects, and the power for a given effect.
`metrics/pilot.py` estimates the parts from runs or rates.

The model: with P problems, n completions per problem and model, and S seeds per arm, the mean
difference has the variance

    problem / P + seed / S + (interaction + sampling(n)) / (S P).

The formula of the last part is in `planned_sampling_variance`. This is the power analysis of Miller
2024 (arXiv 2411.00640, section 5), with seeds added.

The power is that of the p value in the tables of comparisons (`stats/uncertainty.py`): the chance
that its interval lies above 0. The half-width of this interval depends on two estimates, the
variance over problems and the variance between seeds. Under the model, with normal parts, they are
independent of the mean difference and of each other, and follow chi-squared distributions. So the
power is the mean, over both distributions, of a normal probability. It is integrated numerically,
with the same functions that compute the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import comb
from typing import NamedTuple

import numpy as np

from analysis.stats.estimators import FloatArray, IntArray, fail_at_k
from analysis.stats.student import t_quantile
from analysis.stats.uncertainty import at_least, errors_over_problems, half_width, problems_alone

ALPHA, POWER = 0.05, 0.8
_NODES_OF_PROBLEMS, NODES_OF_SEEDS = 5, 32  # the error of the power is below 0.001
_TOLERANCE = 1e-3  # relative error of the smallest detectable effect


class Design(NamedTuple):
    """The size of a comparison. Both arms have the same size."""

    problems: int
    samples: int  # completions per problem and model
    seeds: int  # training runs per arm


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Parts of the variance of a difference between two arms."""

    problem: float  # variance over problems of the true difference
    seed: float | None  # variance over seeds of the true mean difference; None: unknown
    interaction: float  # variance of what a seed changes on a single problem
    sampling: Callable[[int], float]  # n -> variance from the n completions of a problem

    def shares(self, design: Design) -> dict[str, float]:
        """Variance of the mean difference by part; the seed is left out if it is not covered."""
        p, n, s = design
        return {
            "problem": self.problem / p,
            "sampling": self.sampling(n) / (s * p),
            "interaction": self.interaction / (s * p),
            "seed": self.seed / s if self.covers_seeds(design) and self.seed is not None else 0.0,
        }

    def covers_seeds(self, design: Design) -> bool:
        """Whether the comparison can hold for other seeds: there are several, of known variance."""
        return design.seeds > 1 and self.seed is not None


@dataclass(frozen=True)
class Resolution:
    """What a design can find."""

    standard_error: float
    detectable: float  # smallest effect with the wanted power; 1 if there is no smaller one


def resolution(parts: Parts, design: Design, *, alpha: float = ALPHA, power: float = POWER) -> Resolution:
    """Standard error and smallest detectable effect of a design.

    Args:
        parts: parts of the variance.
        design: the design, with at least two problems.
        alpha: level of the two-sided test.
        power: chance to find the effect.
    """
    error = _standard_error(parts, design)
    low, high = 0.0, 4 * error
    while high < 1 and power_for(parts, design, high, alpha=alpha) < power:
        low, high = high, 2 * high
    high = min(high, 1.0)
    while high - low > _TOLERANCE * high:
        middle = (low + high) / 2
        low, high = (middle, high) if power_for(parts, design, middle, alpha=alpha) < power else (low, middle)
    return Resolution(error, high)


def power_for(parts: Parts, design: Design, effect: float, *, alpha: float = ALPHA) -> float:
    """Chance that a design finds an effect of this size, in the right direction.

    Args:
        parts: parts of the variance.
        design: the design, with at least two problems.
        effect: the true difference; its sign does not matter.
        alpha: level of the two-sided test.
    """
    from scipy.special import ndtr

    shares, df = parts.shares(design), design.problems - 1
    rest = shares["sampling"] + shares["interaction"]
    over_problems = max(shares["problem"] + rest, 1e-18)
    # Estimates of the variance over problems (I, 1) and of the variance between seeds (1, J), with their weights.
    x, weights = chi_squared(df, _NODES_OF_PROBLEMS)
    squares = over_problems * x[:, None] * df * design.problems
    extreme = max(_extreme(over_problems * design.problems, design.problems), abs(effect))
    extremes = np.sqrt(np.maximum(extreme**2, at_least(squares)))
    error, _ = errors_over_problems(abs(effect), squares, extremes, design.problems)
    if parts.covers_seeds(design):
        y, of_seeds = chi_squared(design.seeds - 1, NODES_OF_SEEDS)
        between = (shares["seed"] + rest) * y[None, :]
        problems = problems_alone(error, rest, df)
        half = half_width(problems, between, df=df, num_seeds=design.seeds, level=1 - alpha)
        joint = weights[:, None] * of_seeds[None, :]
    else:
        half, joint = t_quantile(1 - alpha / 2, df) * error, weights[:, None]
    return float((joint * ndtr((abs(effect) - half) / _standard_error(parts, design))).sum())


def _standard_error(parts: Parts, design: Design) -> float:
    return float(np.sqrt(max(sum(parts.shares(design).values()), 1e-18)))


def _extreme(variance: float, num_problems: int) -> float:
    """Largest difference of a problem, in the median, if they are normal with this variance; at most 1."""
    from scipy.special import ndtri

    return float(min(1.0, np.sqrt(variance) * ndtri((1 + 0.5 ** (1 / num_problems)) / 2)))


@cache
def chi_squared(df: int, num_nodes: int) -> tuple[FloatArray, FloatArray]:
    """Values of a chi-squared variable divided by its degrees of freedom, and their weights, for integrals."""
    from scipy.special import chdtri

    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    values: FloatArray = chdtri(df, (1 - nodes) / 2) / df
    return values, weights / 2


def planned_sampling_variance(n: IntArray, c: IntArray, k: int, num_samples: int) -> FloatArray:
    """Unbiased estimate, per problem, of the variance of (team) Pass@k from drawing completions.

    Let q_m be the chance that a completion of model m is wrong. Two draws of k out of num_samples
    completions have j in common with the hypergeometric chance h(j), and all 2k - j are wrong with
    chance q_m^(2k-j). The variance of the estimate of prod_m q_m^k is therefore

        prod_m sum_j h(j) q_m^(2k-j) - prod_m q_m^(2k)        (Hoeffding 1948, on U-statistics).

    Powers of q_m are estimated without bias by the share of draws that are all wrong. For one model
    and k = 1 the result is p (1 - p) / num_samples.

    Args:
        n: (M, P) completions of the pilot, at least 2 k.
        c: (M, P) correct completions of the pilot.
        k: completions per model.
        num_samples: completions per model of the design, at least k.

    Returns:
        (P,). An estimate for a single problem may be negative; only means are used.

    >>> planned_sampling_variance(np.array([[4]]), np.array([[2]]), 1, 10).round(6).tolist()
    [0.033333]
    """
    total = comb(num_samples, k)
    chances = [comb(k, j) * comb(num_samples - k, k - j) / total for j in range(k + 1)]
    wrong = {i: np.stack([fail_at_k(a, b, i) for a, b in zip(n, c, strict=True)]) for i in range(k, 2 * k + 1)}
    twice: FloatArray = sum((h * wrong[2 * k - j] for j, h in enumerate(chances)), np.zeros(n.shape)).prod(axis=0)
    variance: FloatArray = twice - wrong[2 * k].prod(axis=0)
    return variance


def cheapest(candidates: Sequence[tuple[float, float]], effect: float) -> int | None:
    """Position of the cheapest design whose detectable effect is at most the wanted one.

    Args:
        candidates: (cost, detectable effect) of each design.
        effect: the wanted effect.

    >>> cheapest([(10, 0.05), (40, 0.02), (30, 0.03)], 0.03)
    2
    """
    enough = [(cost, detectable, i) for i, (cost, detectable) in enumerate(candidates) if detectable <= effect]
    return min(enough)[2] if enough else None
