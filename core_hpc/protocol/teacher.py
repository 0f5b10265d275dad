"""The teacher of a student on one problem (METHOD 1.2).

In: the cold completions of one problem. Out: the row of the completion that the hint is taken from, or None.
This module does not score completions (the caller gives total or exploit rewards) and does not write hints.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def choose_teacher(
    model_order: Sequence[str],
    *,
    models: Sequence[str],
    sample_indices: Sequence[int],
    correct: ArrayLike,
    scores: ArrayLike,
    student: str,
) -> int | None:
    """Row of the correct cold completion with the highest score among the peers of `student`, or None.

    models, sample_indices, correct and scores describe the n cold completions of one problem, in any order.
    Ties: first in (model order, sample index). A model never teaches itself, so with two models this is the
    teacher of METHOD 1.2, and with more each student has its own. Raises ValueError for a model that is not
    in `model_order`, lengths that differ, or a score that is not finite.

    >>> order = ["a", "b"]
    >>> cold = dict(models=["a", "a", "b", "b"], sample_indices=[0, 1, 0, 1], correct=[1, 1, 1, 0], scores=[1, 1.5, 0.9, 2])
    >>> choose_teacher(order, student="b", **cold), choose_teacher(order, student="a", **cold)
    (1, 2)
    """
    unknown = sorted({*models, student} - set(model_order))
    if unknown:
        raise ValueError(f"models {unknown} are not in the team {list(model_order)}")
    right = np.asarray(correct, dtype=bool)
    values = np.asarray(scores, dtype=np.float64)
    if not len(models) == len(sample_indices) == len(right) == len(values):
        raise ValueError("models, sample_indices, correct and scores differ in length")
    candidates = [row for row, model in enumerate(models) if right[row] and model != student]
    if not np.isfinite(values[candidates]).all():
        raise ValueError(f"score of a correct completion of a peer of {student} is not finite")
    rank = {model: i for i, model in enumerate(model_order)}
    return min(candidates, key=lambda row: (-values[row], rank[models[row]], sample_indices[row]), default=None)
