"""Advantages of the completions of one problem, over all models and both phases together (METHOD section 4).

In: rewards [n] of one problem. Out: advantages [n]. Not here: normalisation over a batch or per model, which
would be another method (METHOD, trap 5).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from core_hpc.protocol.distance import FloatArray

EPSILON = 1e-8


def advantages(rewards: ArrayLike) -> FloatArray:
    """(R - mean) / (population standard deviation + 1e-8), [n]; exactly 0 where all rewards are equal.

    Raises ValueError for a reward that is not finite.

    >>> advantages([1.0, 0.0, 0.0, 1.0]).round(6).tolist(), advantages([0.3, 0.3, 0.3]).tolist()
    ([1.0, -1.0, -1.0, 1.0], [0.0, 0.0, 0.0])
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"rewards have {values.ndim} axes, not one")
    if not np.isfinite(values).all():
        raise ValueError(f"reward of row {int(np.argmin(np.isfinite(values)))} is not finite")
    if not len(values) or np.ptp(values) == 0:
        return np.zeros(len(values))
    return (values - values.mean()) / (values.std() + EPSILON)
