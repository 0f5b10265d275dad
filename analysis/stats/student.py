"""Quantiles of Student's t distribution, for intervals and power.

The input is probabilities and degrees of freedom (also fractional). The quantiles are those of
scipy, which is imported when it is needed: loading it takes half a second, and most tables do not
need it.
"""

from __future__ import annotations

from analysis.stats.estimators import FloatArray


def t_quantiles(share: float, df: FloatArray) -> FloatArray:
    """Quantiles of Student's t distribution for degrees of freedom of any shape."""
    from scipy.special import stdtrit

    quantiles: FloatArray = stdtrit(df, share)
    return quantiles


def t_quantile(share: float, df: float) -> float:
    """Quantile of Student's t distribution.

    >>> round(t_quantile(0.975, 4), 4), round(t_quantile(0.975, 1), 3), round(t_quantile(0.975, 1e9), 3)
    (2.7764, 12.706, 1.96)
    """
    from scipy.special import stdtrit

    return float(stdtrit(df, share))
