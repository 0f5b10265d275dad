"""Student's t distribution, central and noncentral, for power and for intervals.

The input is noncentralities, degrees of freedom (also fractional) and probabilities. The output is
probabilities and quantiles. They are those of scipy, which is imported when it is needed: loading
it takes half a second, and most tables do not need it.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from analysis.stats.estimators import FloatArray

_LARGE_DF = 1e6  # from here on, t is normal up to the digits of a result
_TABLE_SIZE = 64


def t_exceeds(bound: float, df: float, shift: float = 0.0) -> float:
    """Chance that a noncentral t variable is larger than a bound.

    The variable is (Z + shift) / W, with Z normal and W the root of a chi-squared variable divided
    by its degrees of freedom.

    Args:
        bound: the bound.
        df: degrees of freedom, at least 1.
        shift: noncentrality; 0 gives the central distribution.

    >>> round(t_exceeds(2.776445, 4), 6), round(t_exceeds(1.959964, 1e9), 6)
    (0.025, 0.025)
    """
    from scipy.special import nctdtr, ndtr

    return float(ndtr(shift - bound) if df > _LARGE_DF else 1 - nctdtr(df, shift, bound))


def t_quantile(share: float, df: float) -> float:
    """Quantile of Student's t distribution.

    >>> round(t_quantile(0.975, 4), 4), round(t_quantile(0.975, 1), 3), round(t_quantile(0.975, 1e9), 3)
    (2.7764, 12.706, 1.96)
    """
    from scipy.special import stdtrit

    return float(stdtrit(df, share))


def power_of(shift: float, df: float, alpha: float) -> float:
    """Chance that a two-sided t test finds an effect, in the right direction.

    Args:
        shift: effect divided by the standard error of its estimate.
        df: degrees of freedom of the standard error, at least 1.
        alpha: level of the test.

    >>> round(power_of(2.801585, 1e9, 0.05), 4)
    0.8
    """
    return t_exceeds(t_quantile(1 - alpha / 2, df), df, shift)


@cache
def _shift_exactly(df: float, alpha: float, power: float) -> float:
    low, high = 0.0, 4.0
    while power_of(high, df, alpha) < power:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if power_of(middle, df, alpha) < power else (low, middle)
    return (low + high) / 2


@cache
def _shift_table(alpha: float, power: float) -> tuple[FloatArray, FloatArray]:
    inverse = np.linspace(0, 1, _TABLE_SIZE) ** 2
    shifts = [_shift_exactly(1 / x if x else 2 * _LARGE_DF, alpha, power) for x in inverse]
    return inverse, np.array(shifts)


def detectable_shift(df: FloatArray, alpha: float, power: float) -> FloatArray:
    """Smallest effect, in standard errors, that a two-sided t test finds with this power.

    Values are interpolated in 1/df between 64 exact ones. The relative error is below 1e-3.

    Args:
        df: degrees of freedom, at least 1; any shape.
        alpha: level of the test.
        power: wanted power, between alpha and 1.

    >>> detectable_shift(np.array([1e9, 4.0]), 0.05, 0.8).round(2).tolist()
    [2.8, 3.76]
    """
    inverse, shifts = _shift_table(alpha, power)
    found: FloatArray = np.interp(1 / np.asarray(df, dtype=np.float64), inverse, shifts)
    return found
