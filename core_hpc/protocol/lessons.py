"""Which texts of peers a model learns, and with which weight (METHOD.md section 9.2).

In: the correct cold completions of a student's peers for one problem, with a preference for each.
Out: the chosen ones. These are pure functions. `phases/lessons.py` finds the candidates and makes
rows of the chosen ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def scheduled_weight(start: float, end: float | None, num_iterations: int, iteration: int) -> float:
    """A linear schedule: the weight in a 1-based iteration.

    It is `start` in iteration 1, then changes linearly, and is `end` from iteration
    `num_iterations` + 1 on.

    >>> [scheduled_weight(0.8, 0.0, 4, i) for i in (1, 3, 5, 9)]
    [0.8, 0.4, 0.0, 0.0]
    """
    if end is None:
        return start
    done = min(1.0, (iteration - 1) / num_iterations)
    return (1 - done) * start + done * end


def choose_lessons(
    preference: ArrayLike, *, ranks: Sequence[int], sample_indices: Sequence[int], texts: Sequence[str], at_most: int
) -> list[int]:
    """Rows of the most preferred candidates with different texts, the best first.

    The first one in (rank of its model, sample index) wins a tie.

    Args:
        preference: [n], for example rewards, log-probabilities, or random numbers.
        ranks: [n] place of each candidate's model in the team.
        sample_indices: [n] sample index of each candidate.
        texts: [n].
        at_most: most rows.

    Raises:
        ValueError: a preference is not finite, or the lengths differ.

    >>> candidates = {"ranks": [0, 1, 1], "sample_indices": [0, 0, 1], "texts": ["a", "b", "b"]}
    >>> choose_lessons([1.0, 2.0, 2.0], **candidates, at_most=2)
    [1, 0]
    """
    values = np.asarray(preference, dtype=np.float64)
    if not len(values) == len(ranks) == len(sample_indices) == len(texts):
        raise ValueError("preference, ranks, sample_indices and texts differ in length")
    if not np.isfinite(values).all():
        raise ValueError(f"preference of candidate {int(np.argmin(np.isfinite(values)))} is not finite")
    order = sorted(range(len(values)), key=lambda row: (-values[row], ranks[row], sample_indices[row]))
    chosen: list[int] = []
    for row in order:
        if len(chosen) < at_most and texts[row] not in {texts[other] for other in chosen}:
            chosen.append(row)
    return chosen
