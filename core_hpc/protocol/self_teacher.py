"""Token weights by a model that sees the hint (METHOD.md section 9.8).

In: log-probabilities of the tokens of a failed completion with and without the hint. Out: a factor
for the advantage of each token. This is a pure function.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from core_hpc.protocol.distance import FloatArray

LOW, HIGH = 0.8, 1.2


def rlsd_factors(plain: ArrayLike, hinted: ArrayLike, advantage: float, *, share: float) -> FloatArray:
    """(1 - l) + l clip(exp(sign(A) delta_t), 0.8, 1.2), [T].

    With delta_t = hinted_t - plain_t, a token that the model with the hint finds less probable is
    blamed more for a negative advantage. The sign of the advantage stays that of the verifier.

    Args:
        plain: [T] log pi_old(y_t | x).
        hinted: [T] log pi_old(y_t | x, h).
        advantage: A of the completion.
        share: l, from 0 to 1.

    >>> rlsd_factors([-1.0, -1.0, -1.0], [-3.0, -1.0, -0.9], -1.0, share=0.5).round(3).tolist()
    [1.1, 1.0, 0.952]
    """
    delta = np.asarray(hinted, dtype=np.float64) - np.asarray(plain, dtype=np.float64)
    # An exponent beyond the bounds of the clip would only overflow.
    raw = np.exp(np.clip(np.sign(advantage) * delta, np.log(LOW), np.log(HIGH)))
    factors: FloatArray = (1 - share) + share * raw
    return factors
