"""Capabilities and advantages of HACPO (arXiv 2603.02604; METHOD.md section 9.7).

In: rewards of the completions of all models. Out: how capable each model is, and the advantages of
all completions from the view of one learner. These are pure functions, after the paper's equations
5 and 6 and the authors' released code; the gain of a peer's completion is in `training/transfer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from core_hpc.protocol.distance import FloatArray

RATIO_MIN, RATIO_MAX = 0.1, 10.0
SMALLEST_CAPABILITY = 1e-8
EPSILON = 1e-6


def capability(positive_shares: Sequence[float]) -> float:
    """Mean of a model's shares of positive rewards in the last iterations, never 0.

    >>> capability([0.25, 0.75])
    0.5
    """
    return max(float(np.mean([max(share, SMALLEST_CAPABILITY) for share in positive_shares])), SMALLEST_CAPABILITY)


def capability_ratio(first: float, second: float) -> float:
    """first / second, within [0.1, 10].

    >>> capability_ratio(0.2, 0.4), capability_ratio(0.9, 0.001)
    (0.5, 10.0)
    """
    return min(max(first / second, RATIO_MIN), RATIO_MAX)


def hacpo_advantages(
    rewards: ArrayLike, models: Sequence[str], *, learner: str, capabilities: Mapping[str, float]
) -> FloatArray:
    """(R_i - baseline) / (sample standard deviation + 1e-6) of one problem, [n].

    The baseline is the mean over all completions of w_j R_j, with w_j the ratio of the learner's
    capability to that of the completion's model: what the learner would get. If all rewards are
    equal it is their mean. If it is above 1, the largest reward, it is the mean of the learner's
    own rewards.

    Args:
        rewards: [n] of the cold completions of all models; HACPO assumes 0 or 1.
        models: [n].
        learner: the model that is updated.
        capabilities: `capability` of each model.

    >>> equal = {"a": 0.5, "b": 0.5}
    >>> hacpo_advantages([1, 0, 0, 0], ["a", "a", "b", "b"], learner="a", capabilities=equal).tolist()
    [1.499997000006, -0.499999000002, -0.499999000002, -0.499999000002]
    """
    values = np.asarray(rewards, dtype=np.float64)
    if np.ptp(values) == 0:
        return np.zeros(len(values))
    own = np.asarray(models) == learner
    weights = np.array([capability_ratio(capabilities[learner], capabilities[model]) for model in models])
    baseline = float(np.mean(weights * values))
    if baseline > 1:
        baseline = float(values[own].mean())
    advantages: FloatArray = (values - baseline) / (values.std(ddof=1) + EPSILON)
    return advantages
