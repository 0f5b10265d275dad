"""The teacher of a student for one problem (METHOD.md section 1), and other sources of a hint.

In: the cold completions of one problem. Out: the row of the completion that becomes the hint, or
None. The other sources are controls (section 9.3). This module does not score completions (the
caller passes total or exploit rewards) and makes no hints.
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
    """Row of the best correct cold completion among the peers of `student`, or None.

    The first one in (model order, sample index) wins ties. A model never teaches itself, so in a
    team of two this is the teacher of METHOD.md section 1, and in a larger team each student has
    its own teacher.

    Args:
        model_order: the names of the team's models.
        models, sample_indices, correct, scores: the n cold completions of the problem, in any
            order.
        student: the model that needs a teacher.

    Raises:
        ValueError: a model is not in `model_order`, the lengths differ, or a score is not finite.

    >>> cold = {"models": ["a", "a", "b", "b"], "sample_indices": [0, 1, 0, 1]}
    >>> cold |= {"correct": [1, 1, 1, 0], "scores": [1, 1.5, 0.9, 2]}
    >>> choose_teacher(["a", "b"], student="b", **cold), choose_teacher(["a", "b"], student="a", **cold)
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


def best_own(*, models: Sequence[str], sample_indices: Sequence[int], scores: ArrayLike, student: str) -> int:
    """Row of the student's own cold completion with the highest score, the first one among equals.

    Args:
        models, sample_indices, scores: the n cold completions of the problem, in any order.
        student: a model with at least one of them.

    >>> best_own(models=["a", "b", "b"], sample_indices=[0, 1, 0], scores=[9, 0.2, 0.2], student="b")
    2
    """
    values = np.asarray(scores, dtype=np.float64)
    own = [row for row, model in enumerate(models) if model == student]
    return min(own, key=lambda row: (-values[row], sample_indices[row]))


def rotated(items: Sequence[str], draw: float) -> list[str]:
    """The items in their order, beginning with the one that a draw from [0, 1) selects.

    >>> rotated(["p", "q", "r"], 0.5)
    ['q', 'r', 'p']
    """
    start = int(draw * len(items))
    return [*items[start:], *items[:start]]
