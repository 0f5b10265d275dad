"""Where the variance of a difference comes from: problems, samples or seeds, and what to buy.

The input is the differences of each seed and problem, and the variance that is due to sampling
alone. The output is the three parts, and a sentence.

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
from analysis.stats.uncertainty import variances

PROBLEMS, SAMPLES, SEEDS = "problems", "samples", "seeds"
PARTS = (PROBLEMS, SAMPLES, SEEDS)


@dataclass(frozen=True)
class Split:
    """The parts of the variance of a mean difference."""

    problems: float
    samples: float
    seeds: float | None  # None: unknown, because there is one seed

    @property
    def total(self) -> float:
        return self.problems + self.samples + (self.seeds or 0.0)

    def share(self, part: str) -> float | None:
        """The share of one of PARTS in the total; None if it is unknown."""
        value: float | None = getattr(self, part)
        return None if value is None or self.total == 0 else value / self.total

    def narrower(self, part: str) -> float | None:
        """By which share the interval becomes narrower with twice as many of one of PARTS; None if it is unknown.

        More problems or seeds also mean more samples in all.
        """
        own, samples = self.share(part), self.share(SAMPLES)
        if own is None or samples is None:
            return None
        return 1 - math.sqrt(1 - own / 2 - (0.0 if part == SAMPLES else samples / 2))


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
    if len(values) == 1:
        samples = min(own + shared, found.problems)
        return Split(found.problems - samples, samples, None)
    common = min(shared, max(0.0, found.problems - found.rest))
    alone = min(own, found.rest)
    seeds = max(0.0, found.seeds - found.rest) + found.rest - alone
    return Split(max(0.0, found.problems - found.rest - common), common + alone, seeds)


def advice(parts: Split) -> str:
    """State how much narrower the interval becomes with twice the problems, samples or seeds, the best one first.

    >>> advice(Split(0.25, 0.25, 0.5))
    'twice the seeds: 21% narrower; twice the problems: 13%; twice the samples: 6%'
    """
    gains = {part: gain for part in PARTS if (gain := parts.narrower(part)) is not None}
    if not gains:
        return "no variance: all differences are equal"
    best, *others = sorted(gains, key=lambda part: -gains[part])
    further = [f"; twice the {part}: {gains[part]:.0%}" for part in others]
    return f"twice the {best}: {gains[best]:.0%} narrower{''.join(further)}"
