"""How much a rescue relies on its hint (METHOD.md section 9.6).

In: mean log-probabilities per token of a rescue completion, with and without the hint in the
prompt. Out: their difference, and a weight. These are pure functions.
"""

from __future__ import annotations

from math import exp


def reliance(plain: float, hinted: float) -> float:
    """mean log pi_old(y|x) - mean log pi_old(y|x,h), in nats per token.

    It is negative if the completion is less probable without the hint.
    """
    return plain - hinted


def reliance_weight(delta: float, scale: float | None) -> float:
    """exp(min(delta, 0) / scale): 1 for a completion that needs no hint (HiLL, arXiv 2604.00698).

    `scale` None gives every completion the weight 1.

    >>> [round(reliance_weight(delta, 0.3), 3) for delta in (0.2, 0.0, -0.3)]
    [1.0, 1.0, 0.368]
    """
    return 1.0 if scale is None else exp(min(delta, 0.0) / scale)
