"""Decisions from p values: Holm's correction, and the verdict on a difference.

The input is p values of `stats/uncertainty.py`. The output is corrected p values and short texts.
"""

from __future__ import annotations

from collections.abc import Sequence

ALPHA = 0.05
"""Level of all tests. A test of equivalence is one-sided, so its level is half of this one, and it
agrees with the 95 % interval (ICH E9, section 3.3.2)."""

MARGIN = 0.02
"""Default margin of equivalence: a difference of 2 percentage points."""

DIFFERENT, UNRESOLVED = "different", "not resolved"


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for the number of tests (Holm 1979).

    The chance that any true null hypothesis is rejected stays below the level, for dependent tests
    too.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def in_points(margin: float) -> str:
    """A margin, a fraction, in percentage points.

    >>> in_points(0.02), in_points(0.01), in_points(0.0002)
    ('2 points', '1 point', '0.02 points')
    """
    return f"{100 * margin:g} points" if margin != 0.01 else "1 point"


def verdict(p_different: float, p_not_within: float, margin: float) -> str:
    """State whether A and B are different, equivalent within the margin, or neither is shown.

    Args:
        p_different: p value of the hypothesis that there is no difference.
        p_not_within: p value of the hypothesis that the difference is not within the margin.
        margin: the margin, a fraction.

    >>> verdict(0.4, 0.01, 0.02), verdict(0.01, 0.3, 0.02), verdict(0.4, 0.3, 0.02), verdict(0.01, 0.01, 0.02)
    ('equivalent within 2 points', 'different', 'not resolved', 'different, by less than 2 points')
    """
    points = in_points(margin)
    within = p_not_within < ALPHA / 2
    if p_different < ALPHA:
        return f"{DIFFERENT}, by less than {points}" if within else DIFFERENT
    return f"equivalent within {points}" if within else UNRESOLVED
