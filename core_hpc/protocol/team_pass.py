"""Advantages whose gradient is that of team Pass@k (METHOD.md section 9.4).

In: which cold completions of a problem are correct, and the model of each. Out: one advantage per
completion. This is a pure function; the score phase mixes the result with the advantages of the
reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, prod

import numpy as np

from core_hpc.protocol.distance import FloatArray
from core_hpc.protocol.failures import BoolArray


def all_fail(n: int, c: int, k: int) -> float:
    """The chance that k of n completions, drawn without replacement, are all wrong; c are correct.

    >>> all_fail(4, 1, 2), all_fail(4, 3, 2), all_fail(4, 1, 0)
    (0.5, 0.0, 1.0)
    """
    return comb(n - c, k) / comb(n, k)


def team_pass_advantages(models: Sequence[str], correct: BoolArray, *, k: int) -> FloatArray:
    """k (the gain of team Pass@k by completion i over its absence), [n].

    With n and c the completions of a model and the correct ones, and c' those without i,

        A_i = k prod over peers of all_fail(n, c, k)
              (all_fail(n - 1, c', k) - (1 - correct_i) all_fail(n - 1, c', k - 1)).

    The mean over the n completions of A_i grad log pi(y_i) is an unbiased estimate of the gradient
    of 1 - prod over models of (1 - p)^k with respect to the weights of the completions' model.

    Args:
        models: [n] model of each cold completion of a problem.
        correct: [n].
        k: completions per model of Pass@k.

    Raises:
        ValueError: a model has not more than k completions.

    >>> team_pass_advantages(["a", "a", "a"], np.array([True, False, False]), k=1).tolist()
    [1.0, -0.5, -0.5]
    """
    names = np.asarray(models)
    counts = {
        model: (int((names == model).sum()), int(correct[names == model].sum())) for model in dict.fromkeys(models)
    }
    found = np.zeros(len(names))
    for row, model in enumerate(models):
        n, c = counts[model]
        if n <= k:
            raise ValueError(f"{model} has {n} completions; Pass@{k} as an objective needs {k + 1}")
        peers_fail = prod(all_fail(*counts[peer], k) for peer in counts if peer != model)
        others = c - int(correct[row])
        without = all_fail(n - 1, others, k)
        found[row] = k * peers_fail * (without - (not correct[row]) * all_fail(n - 1, others, k - 1))
    return found
