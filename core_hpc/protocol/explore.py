"""The exploration reward, by three rules (Eq. 3 and METHOD section 4).

In: distances or similarities of all completions of one problem (all models, both phases) and their exploit
rewards. Out: one reward per completion, unweighted. A completion that is alone in its problem gets 0.
This module does not compute distances and applies no weights.

Shapes: n completions.
"""

from __future__ import annotations

import numpy as np

from core_hpc.protocol.distance import FloatArray


def greedy_outsider(distances: FloatArray, exploit: FloatArray, *, margin: float, cap: int) -> FloatArray:
    """Eq. 3 to the letter: reward of the completions outside a greedily chosen, spread-out set, [n].

    The set starts with the completion of highest exploit (ties: the first) and takes the one farthest from it
    (max-min distance, ties: the first) while that distance is at least `margin` and the set is smaller than
    `cap`. Chosen completions get 0, others max(0, least distance to the set - margin): always 0 unless the cap
    was reached.
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
    """max(0, least distance to every other completion of the problem - margin), [n].

    >>> leave_one_out(np.array([[0, 0.5, 0.9], [0.5, 0, 0.1], [0.9, 0.1, 0]]), margin=0.15).round(2).tolist()
    [0.35, 0.0, 0.0]
    """
    if len(distances) < 2:
        return np.zeros(len(distances))
    others = np.array(distances, dtype=np.float64)
    np.fill_diagonal(others, np.inf)
    return np.maximum(0.0, others.min(axis=1) - margin)


def dpp(similarity: FloatArray, quality: FloatArray) -> FloatArray:
    """Determinantal rule: marginal gain in log det(I + L), given the others, beyond that of a duplicate, [n] in [0, 1].

    L = diag(q) S diag(q); similarity S [n, n] is positive semi-definite with diagonal 1; quality q [n] in [0, 1].
    gain_i = log det(I + L) - log det(I + L without i) = -log [(I + L)^-1]_ii, between 0 and log(1 + q_i^2).
    The identity makes even an exact duplicate gain log(1 + q^2 / (1 + q^2)), more than half of the bound; so
    that amount is taken off (not below 0), and the rest divided by its greatest value, log(4/3) at q = 1.
    Then a duplicate and a completion of quality 0 get 0, and a correct one unlike all others gets 1.
    Raises ValueError for a quality outside [0, 1].
    """
    q = np.asarray(quality, dtype=np.float64)
    if not ((q >= 0) & (q <= 1)).all():
        raise ValueError("quality of the determinantal rule must be in [0, 1]")
    if len(q) < 2:
        return np.zeros(len(q))
    inverse = np.linalg.inv(np.eye(len(q)) + q[:, None] * similarity * q[None, :])
    gain = -np.log(np.diag(inverse))
    duplicate = np.log1p(q**2 / (1 + q**2))
    return np.clip((gain - duplicate) / np.log(4 / 3), 0.0, 1.0)
