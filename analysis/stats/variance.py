"""Where the variance of a difference comes from: problems, samples or seeds, and what to buy.

The input is the differences of each seed and problem, and the variance that is due to sampling
alone. The output is the three parts, and a sentence. The sentence is about the interval of the tables of
comparisons (`half_width` of `stats/uncertainty.py`), not about the standard error: the interval of
2 seeds is much wider than that of 4 with the same standard error.

The parts are: problems, because the effect differs between problems; seeds, because training
differs between seeds, on all problems or on some of them; samples, because the same models answer
the same problem differently. (Two-way random effects: Searle,
Casella and McCulloch 1992, chapter 4. Sampling within a problem: Miller 2024, arXiv 2411.00640.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analysis.stats.estimators import FloatArray, IntArray, fail_at_k
from analysis.stats.intervals import CONFIDENCE
from analysis.stats.power import NODES_OF_SEEDS, chi_squared
from analysis.stats.student import t_quantile
from analysis.stats.uncertainty import half_width, problems_alone, variances

PROBLEMS, SAMPLES, SEEDS = "problems", "samples", "seeds"
PARTS = (PROBLEMS, SAMPLES, SEEDS)


@dataclass(frozen=True, kw_only=True)
class Split:
    """The parts of the variance of a mean difference, and the size of the comparison."""

    problems: float
    samples: float
    seeds: float | None  # None: unknown, because there is one seed
    num_problems: int  # or source groups
    num_seeds: int
    shared: float = 0.0  # the part of `samples` that all seeds have in common
    interaction: float = 0.0  # the part of `seeds` from seeds that help on different problems

    @property
    def total(self) -> float:
        return self.problems + self.samples + (self.seeds or 0.0)

    def share(self, part: str) -> float | None:
        """The share of one of PARTS in the total; None if it is unknown."""
        value: float | None = getattr(self, part)
        return None if value is None or self.total == 0 else value / self.total

    def narrower(self, part: str) -> float | None:
        """By which share the interval becomes narrower with twice as many of one of PARTS; None if it is unknown.

        Twice the problems or seeds also mean twice the samples in all. Twice the seeds also double the
        degrees of freedom between seeds. Where seeds are few, this alone makes the interval much narrower.
        """
        if self.share(part) is None:
            return None
        return max(0.0, 1 - self._half_width(part) / self._half_width(None))

    def _half_width(self, doubled: str | None) -> float:
        """Expected half-width of the interval of a comparison with twice as many of one of PARTS.

        As in `stats/power.py`, the estimated variance between seeds is chi-squared, and the one over
        problems, which varies little, has its expected value.
        """
        p, n, s = (2 if doubled == part else 1 for part in PARTS)
        df, num_seeds = max(1, p * self.num_problems - 1), s * self.num_seeds
        alone = (self.problems + self.shared / n) / p
        rest = (self.interaction + (self.samples - self.shared) / n) / (s * p)
        error = math.sqrt(alone + rest)
        if self.seeds is None:
            return error * t_quantile((1 + CONFIDENCE) / 2, df)
        between = (self.seeds - self.interaction) / s + rest
        problems = problems_alone(np.array(error), rest, df)
        values, weights = chi_squared(num_seeds - 1, NODES_OF_SEEDS)
        halves = half_width(problems, between * values, df=df, num_seeds=num_seeds, level=CONFIDENCE)
        return float(weights @ halves)


def sampling_variance(n: IntArray, c: IntArray, k: int) -> FloatArray:
    """Variance of the estimate of Pass@k of each problem, over its samples.

    With F_k for the estimated chance that all of k completions of every model are wrong, it is
    F_k^2 - F_2k, which is unbiased: F_2k estimates the square of the true chance without bias.

    Args:
        n: (M, P) completions of the M models of the team (or of one model).
        c: (M, P) correct completions.
        k: completions per model.

    Returns:
        (P,); NaN where some model has fewer than 2 k completions.

    >>> sampling_variance(np.array([[4]]), np.array([[1]]), 1).round(6).tolist()  # p (1 - p) / (n - 1)
    [0.0625]
    """
    once, twice = (fail_at_k(n, c, size).prod(axis=0) for size in (k, 2 * k))
    spread: FloatArray = np.square(once) - twice
    return spread


def split(values: FloatArray, *, own: float, shared: float = 0.0, groups: IntArray | None = None) -> Split:
    """Split the variance of the mean of (S, P) differences.

    Args:
        values: differences of each seed and problem.
        own: variance of the mean by samples that every seed has for itself.
        shared: variance of the mean by samples that all seeds have in common, as when one run is
            compared with several seeds.
        groups: (P,) codes of source groups.
    """
    found = variances(values, groups)
    num_problems = values.shape[1] if groups is None else len(np.unique(groups))
    if len(values) == 1:
        samples = min(own + shared, found.problems)
        return Split(
            problems=found.problems - samples, samples=samples, seeds=None, num_problems=num_problems, num_seeds=1
        )
    common = min(shared, max(0.0, found.problems - found.rest))
    alone = min(own, found.rest)
    interaction = found.rest - alone
    return Split(
        problems=max(0.0, found.problems - found.rest - common),
        samples=common + alone,
        seeds=max(0.0, found.seeds - found.rest) + interaction,
        num_problems=num_problems,
        num_seeds=len(values),
        shared=common,
        interaction=interaction,
    )


def advice(parts: Split) -> str:
    """State how much narrower the interval becomes with twice the problems, samples or seeds, the best one first.

    >>> advice(Split(problems=0.25, samples=0.25, seeds=0.5, num_problems=200, num_seeds=2))
    'twice the seeds: 73% narrower; twice the samples: 9%; twice the problems: 6%'
    """
    gains = {part: gain for part in PARTS if (gain := parts.narrower(part)) is not None}
    if not gains:
        return "no variance: all differences are equal"
    best, *others = sorted(gains, key=lambda part: -gains[part])
    further = [f"; twice the {part}: {gains[part]:.0%}" for part in others]
    return f"twice the {best}: {gains[best]:.0%} narrower{''.join(further)}"
