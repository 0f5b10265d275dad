"""Which models failed a problem in the cold phase (METHOD.md sections 1 and 4).

In: the completions of one problem. Out: the models with cold completions none of which is correct.
A failed model may be taught (hint phase), and only a failed model can earn the rescue reward (score
phase).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from core_hpc.store.schema import COLD

BoolArray = NDArray[np.bool_]


def failed_models(models: Iterable[str], phases: Iterable[str], correct: Iterable[bool]) -> frozenset[str]:
    """The models that have cold completions of the problem, none of which is correct.

    Args:
        models, phases, correct: one entry per completion of the problem, in the same order.

    >>> sorted(failed_models("aabc", ["cold", "cold", "cold", "rescue"], [False, True, False, False]))
    ['b']
    """
    cold = [(model, right) for model, phase, right in zip(models, phases, correct, strict=True) if phase == COLD]
    return frozenset({model for model, _ in cold} - {model for model, right in cold if right})


def cold_failed(models: Sequence[str], phases: Iterable[str], correct: Iterable[bool]) -> BoolArray:
    """Whether the model of each completion failed the problem, [n].

    A model without cold completions has not failed.

    >>> cold_failed("aba", ["cold", "cold", "rescue"], [False, True, True]).tolist()
    [True, False, True]
    """
    failed = failed_models(models, phases, correct)
    return np.array([model in failed for model in models], dtype=bool)
