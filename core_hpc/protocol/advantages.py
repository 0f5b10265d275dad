"""Advantages of the completions of one problem (METHOD.md section 4).

In: rewards [n] of the completions that are compared with each other. Out: advantages [n]. The score
phase selects whose rewards know each other: the completions of all models and both phases
(METHOD.md section 8, trap 5), or with `update.group: model` those of one model. `update.baseline`
selects over which of them the mean and the standard deviation are taken. Only `baseline:
model_batch` normalises rewards over several problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from core_hpc.protocol.distance import FloatArray

EPSILON = 1e-8


def advantages(rewards: ArrayLike, *, scale: Literal["std", "none"] = "std") -> FloatArray:
    """(R - mean) / (population standard deviation + 1e-8), [n]; exactly 0 if all rewards are equal.

    Args:
        rewards: [n].
        scale: "none" leaves out the division (Dr. GRPO, arXiv 2503.20783). With the division, a
            problem with almost equal rewards counts as much as any other.

    Raises:
        ValueError: a reward is not finite.

    >>> advantages([1.0, 0.0, 0.0, 1.0]).round(6).tolist(), advantages([0.3, 0.3, 0.3]).tolist()
    ([1.0, -1.0, -1.0, 1.0], [0.0, 0.0, 0.0])
    >>> advantages([1.0, 0.0, 0.0, 1.0], scale="none").tolist()
    [0.5, -0.5, -0.5, 0.5]
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"rewards have {values.ndim} axes, not one")
    if not np.isfinite(values).all():
        raise ValueError(f"reward of row {int(np.argmin(np.isfinite(values)))} is not finite")
    if not len(values) or np.ptp(values) == 0:
        return np.zeros(len(values))
    centred: FloatArray = values - values.mean()
    return centred / (values.std() + EPSILON) if scale == "std" else centred


def baseline_groups(
    baseline: Literal["team", "model", "model_phase", "model_batch"],
    *,
    compared: Sequence[str],
    batches: Sequence[str],
    models: Sequence[str],
    phases: Sequence[str],
) -> list[tuple[str, ...]]:
    """The group of each completion (METHOD.md section 9.1), [n].

    Completions of one group share mean and standard deviation.

    Args:
        baseline: the field of the configuration.
        compared: [n] the completions whose rewards know each other: those of a problem.
        batches: [n] the optimizer step of the problem.
        models: [n].
        phases: [n].

    >>> same = {"compared": ["p"] * 3, "batches": ["0"] * 3}
    >>> baseline_groups("model", models=["a", "b", "a"], phases=["cold", "cold", "rescue"], **same)
    [('p', 'a'), ('p', 'b'), ('p', 'a')]
    """
    parts: dict[str, tuple[Sequence[str], ...]] = {
        "team": (compared,),
        "model": (compared, models),
        "model_phase": (compared, models, phases),
        "model_batch": (batches, models),
    }
    return list(zip(*parts[baseline], strict=True))


def grouped_advantages(
    rewards: ArrayLike, groups: Sequence[tuple[str, ...]], *, scale: Literal["std", "none"] = "std"
) -> FloatArray:
    """`advantages` within each group by itself, [n].

    Args:
        rewards: [n].
        groups: the group of each completion, [n]. A completion that is alone in its group gets 0.
        scale: see `advantages`.

    Raises:
        ValueError: a reward is not finite, or the lengths differ.

    >>> grouped_advantages([1.0, 0.0, 5.0, 5.0], [("a",), ("a",), ("b",), ("b",)]).round(6).tolist()
    [1.0, -1.0, 0.0, 0.0]
    """
    values = np.asarray(rewards, dtype=np.float64)
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} rewards, but {len(groups)} groups")
    found = np.zeros(len(values))
    for rows in members(groups):
        found[rows] = advantages(values[rows], scale=scale)
    return found


def members(groups: Sequence[tuple[str, ...]]) -> list[list[int]]:
    """The rows of each group, in the order of their first rows.

    >>> members([("a",), ("b",), ("a",)])
    [[0, 2], [1]]
    """
    rows: dict[tuple[str, ...], list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return list(rows.values())
