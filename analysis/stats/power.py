"""Power of a comparison of two configurations, from the parts of the variance of a difference.

The input is the parts of the variance of a difference between two arms (`Parts`) and a design: how
many problems, completions per problem and seeds. The output is the standard error of the
difference, its degrees of freedom, the smallest effect that the design detects, and the power for a
given effect. `metrics/pilot.py` estimates the parts from runs or rates.

The model: with P problems, n completions per problem and model, and S seeds per arm, the mean
difference has the variance

    problem / P + seed / S + (interaction + sampling(n)) / (S P).

The first three parts are those of two crossed samples (`stats/crossed.py`). The formula of the last
one is in `planned_sampling_variance`. This is the power analysis of Miller 2024 (arXiv 2411.00640, section
5), with seeds added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from typing import NamedTuple

import numpy as np

from analysis.stats.crossed import satterthwaite
from analysis.stats.estimators import FloatArray, IntArray, fail_at_k
from analysis.stats.student import detectable_shift, power_of

ALPHA, POWER = 0.05, 0.8


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
    df: float
    detectable: float  # smallest effect with the wanted power


def resolution(parts: Parts, design: Design, *, alpha: float = ALPHA, power: float = POWER) -> Resolution:
    """Standard error, degrees of freedom and smallest detectable effect of a design.

    Args:
        parts: parts of the variance.
        design: the design, with at least two problems.
        alpha: level of the two-sided test.
        power: chance to find the effect.
    """
    shares = parts.shares(design)
    total = max(sum(shares.values()), 1e-18)
    if not parts.covers_seeds(design):
        df = design.problems - 1.0
    else:
        both = shares["sampling"] + shares["interaction"]
        of_problems = (shares["problem"] + both) ** 2 / (design.problems - 1)
        df = satterthwaite(total, of_problems, shares["seed"] + both, both, design.problems, design.seeds)
    error = float(np.sqrt(total))
    return Resolution(error, df, error * float(detectable_shift(np.array(df), alpha, power)))


def power_for(found: Resolution, effect: float, *, alpha: float = ALPHA) -> float:
    """Chance that a design finds an effect of this size, in the right direction."""
    return power_of(abs(effect) / found.standard_error, round(found.df, 6), alpha)


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
