"""Parts of scoring in their plainest form: one completion and one pattern at a time.

Tests compare `core_hpc/protocol` with them bit by bit, and `tests.benchmarks.scoring_scale` measures
how much faster it is. In: what the functions of the same names get. Out: the same results.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from core_hpc.answers.extract import token_f1
from core_hpc.protocol.distance import _SOURCES, FloatArray, Signature
from core_hpc.protocol.failures import BoolArray
from core_hpc.protocol.rewards import StrArray
from core_hpc.store.schema import COLD

_IGNORING_CASE = {name: re.compile(source, re.IGNORECASE) for name, source in _SOURCES.items()}


def operation_signature(text: str) -> Signature:
    """Search every pattern in the whole text."""
    return frozenset(name for name, pattern in _IGNORING_CASE.items() if pattern.search(text))


def peer_cold_correct(models: StrArray, phases: StrArray, correct: BoolArray) -> BoolArray:
    """Compare every completion with all solvers."""
    solvers = models[(phases == COLD) & correct]
    return np.array([bool((solvers != m).any()) for m in models], dtype=bool)


def exploit_rewards(
    correct: BoolArray, answers: Sequence[str | None], gold: str, *, partial_weight: float
) -> FloatArray:
    """Compare every answer with the gold answer."""
    partial = np.array([token_f1(a, gold) for a in answers]) if partial_weight else np.zeros(len(correct))
    return correct.astype(np.float64) + partial_weight * partial


def cross_rewards(
    distances: FloatArray, models: StrArray, phases: StrArray, exploit: FloatArray, *, margin: float, gate: float
) -> FloatArray:
    """Find the partners of every completion."""
    rewards = np.zeros(len(models))
    for row, (model, phase) in enumerate(zip(models, phases, strict=True)):
        terms = []
        for partner in sorted(set(models[phases == phase]) - {model}):
            theirs = (models == partner) & (phases == phase)
            open_gate = exploit[theirs].max() >= gate
            terms.append(max(0.0, float(distances[row, theirs].min()) - margin) if open_gate else 0.0)
        rewards[row] = np.mean(terms) if terms else 0.0
    return rewards
