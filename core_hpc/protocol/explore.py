"""The exploration reward with its three rules (Eq. 3, METHOD.md section 4).

In: distances or similarities of all completions of one problem (all models, both phases) and their
exploit rewards. Out: one unweighted reward per completion. The only completion of a problem gets 0.
This module does not compute distances and applies no weights.

Shapes: n completions.
"""

from __future__ import annotations

import numpy as np

from core_hpc.protocol.distance import FloatArray


def greedy_outsider(distances: FloatArray, exploit: FloatArray, *, margin: float, cap: int) -> FloatArray:
    """Eq. 3 as printed: rewards of the completions outside a greedily chosen, diverse set, [n].

    The set starts with the completion that has the highest exploit reward. Then the completion with
    the largest distance to the set is added, as long as this distance is at least `margin` and the
    set has fewer than `cap` members. The first one wins ties. Members get 0. The others get
    max(0, smallest distance to the set - margin), which is 0 unless the set reached the cap.
    """
    rewards = np.zeros(len(distances))
    if not len(distances):
        return rewards
    chosen = np.zeros(len(distances), dtype=bool)
    following = int(np.argmax(exploit))
    nearest = np.full(len(distances), np.inf)
    while True:
        chosen[following] = True
        nearest = np.minimum(nearest, distances[following])
        outside = np.where(chosen, -np.inf, nearest)
        following = int(np.argmax(outside))
        if chosen.sum() >= cap or outside[following] < margin or chosen.all():
            break
    rewards[~chosen] = np.maximum(0.0, nearest[~chosen] - margin)
    return rewards


def leave_one_out(distances: FloatArray, *, margin: float) -> FloatArray:
    """max(0, smallest distance to another completion of the problem - margin), [n].

    >>> leave_one_out(np.array([[0, 0.5, 0.9], [0.5, 0, 0.1], [0.9, 0.1, 0]]), margin=0.15).round(2).tolist()
    [0.35, 0.0, 0.0]
    """
    if len(distances) < 2:
        return np.zeros(len(distances))
    others = np.array(distances, dtype=np.float64)
    np.fill_diagonal(others, np.inf)
    rewards: FloatArray = np.maximum(0.0, others.min(axis=1) - margin)
    return rewards


def dpp(similarity: FloatArray, quality: FloatArray) -> FloatArray:
    """Determinantal rule: gain in log det(I + L), minus the gain of a duplicate, [n] in [0, 1].

    L = diag(q) S diag(q) with the similarity S [n, n] and the quality q [n]. The gain of completion
    i, given all others, is log det(I + L) - log det(I + L without i) = -log [(I + L)^-1]_ii. It
    lies between 0 and log(1 + q_i^2). Because of the identity matrix, even an exact duplicate gains
    log(1 + q^2 / (1 + q^2)), more than half of this bound. This amount is therefore subtracted
    (down to 0), and the rest is divided by its largest value, log(4/3) at q = 1. A duplicate or a
    completion of quality 0 gets 0, and a correct completion unlike all others gets 1.

    Args:
        similarity: [n, n], positive semi-definite with diagonal 1.
        quality: [n] in [0, 1].

    Raises:
        ValueError: a quality is outside [0, 1].
    """
    q = np.asarray(quality, dtype=np.float64)
    if not ((q >= 0) & (q <= 1)).all():
        raise ValueError("quality of the determinantal rule must be in [0, 1]")
    if len(q) < 2:
        return np.zeros(len(q))
    inverse = np.linalg.inv(np.eye(len(q)) + q[:, None] * similarity * q[None, :])
    gain = -np.log(np.diag(inverse))
    duplicate = np.log1p(q**2 / (1 + q**2))
    rewards: FloatArray = np.clip((gain - duplicate) / np.log(4 / 3), 0.0, 1.0)
    return rewards
