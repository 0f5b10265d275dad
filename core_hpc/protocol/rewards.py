"""Rewards of all completions of one problem (METHOD section 4, Eq. 2 to 7).

In: arrays over the completions of one problem, of all models and both phases, and the reward settings. Out:
every part of the paper's reward, unweighted, and the weighted sum of all parts. A part beyond the paper's is a function
of the texts in a file of its own, and a line in `EXTRA_PARTS`; its settings are the section of its name.
This module does not verify answers, embed texts or normalise rewards to advantages.

Shapes: n completions of one problem, in the same order in every array; d embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core_hpc.answers.extract import token_f1
from core_hpc.config.run import RewardSection, weight_at
from core_hpc.protocol import explore
from core_hpc.protocol.distance import FloatArray, Signature, distance_matrix, similarity_matrix
from core_hpc.protocol.format_reward import format_rewards
from core_hpc.protocol.length_reward import length_rewards
from core_hpc.store.schema import COLD, RESCUE

BoolArray = NDArray[np.bool_]
StrArray = NDArray[np.str_]

EXTRA_PARTS: dict[str, Callable[[Sequence[str], Any], FloatArray]] = {
    "format": format_rewards,
    "length": length_rewards,
}
"""Parts beyond the paper's: (texts [n], settings of that name) -> [n]. They are in the total; the texts tell them again at any time."""


@dataclass(frozen=True, eq=False)
class ProblemGroup:
    """All completions of one problem. Raises ValueError when its arrays contradict each other."""

    models: StrArray
    """[n] name of the model in the team"""
    phases: StrArray
    """[n] cold or rescue"""
    correct: BoolArray
    """[n]"""
    answers: Sequence[str | None]
    """[n] extracted answers"""
    gold: str
    hint_given: BoolArray
    """[n] the prompt contained the hint"""
    cold_failed: BoolArray
    """[n] the completion's model has cold completions of this problem, and none is correct (False in cold rows
    is as good: only rescue rows are read)"""
    signatures: Sequence[Signature]
    """[n] operation signatures of the texts"""
    embeddings: NDArray[np.floating]
    """[n, d] embeddings of the texts"""
    texts: Sequence[str] | None = None
    """[n] needed by `EXTRA_PARTS` alone"""

    def __post_init__(self) -> None:
        arrays = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "gold"}
        lengths = {name: len(values) for name, values in arrays.items() if values is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"arrays of one problem differ in length: {lengths}")
        unknown = sorted(set(self.phases) - {COLD, RESCUE})
        if unknown:
            raise ValueError(f"phases {unknown} are not rewarded; only {COLD} and {RESCUE} are")
        wrong = (self.phases == RESCUE) & (self.cold_failed != own_cold_failed(self.models, self.phases, self.correct))
        if wrong.any():
            row = int(np.argmax(wrong))
            said = bool(self.cold_failed[row])
            raise ValueError(
                f"row {row} ({self.models[row]}): cold_failed is {said}, but its model's cold rows say otherwise"
            )


@dataclass(frozen=True, eq=False)
class ScoredGroup:
    """Reward of every completion of one problem; each array is [n], parts unweighted."""

    exploit: FloatArray
    explore: FloatArray
    rescue: FloatArray
    trace_accuracy: FloatArray
    cross: FloatArray
    total: FloatArray
    """Eq. 7: the weighted sum, extra parts included"""


def own_cold_failed(models: StrArray, phases: StrArray, correct: BoolArray) -> BoolArray:
    """[n] Is there a cold completion of the same model, and none that is correct?"""
    cold = phases == COLD
    failed = {m for m in set(models[cold]) if not correct[cold & (models == m)].any()}
    return np.array([m in failed for m in models], dtype=bool)


def peer_cold_correct(models: StrArray, phases: StrArray, correct: BoolArray) -> BoolArray:
    """[n] Is there a correct cold completion of another model?"""
    solvers = models[(phases == COLD) & correct]
    return np.array([bool((solvers != m).any()) for m in models], dtype=bool)


def exploit_rewards(
    correct: BoolArray, answers: Sequence[str | None], gold: str, *, partial_weight: float
) -> FloatArray:
    """Eq. 2: 1[correct] + alpha * token F1 of answer and gold, [n]; alpha 0 switches partial credit off."""
    partial = (
        np.array([token_f1(a, gold) for a in answers], dtype=np.float64) if partial_weight else np.zeros(len(correct))
    )
    return correct.astype(np.float64) + partial_weight * partial


def rescue_rewards(group: ProblemGroup) -> FloatArray:
    """Eq. 4: 1[rescue phase, correct, hint given, own cold all wrong (and present), a peer's cold right], [n]."""
    peer = peer_cold_correct(group.models, group.phases, group.correct)
    own = own_cold_failed(group.models, group.phases, group.correct)
    return ((group.phases == RESCUE) & group.correct & group.hint_given & own & peer).astype(np.float64)


def trace_accuracy_rewards(correct: BoolArray, phases: StrArray) -> FloatArray:
    """Eq. 5: 1[correct] * (1 - share of correct completions of the same phase, all models), [n].

    >>> trace_accuracy_rewards(np.array([True, False, False, True]), np.array(["cold", "cold", "cold", "rescue"])).round(3).tolist()
    [0.667, 0.0, 0.0, 0.0]
    """
    share = np.zeros(len(correct))
    for phase in set(phases):
        share[phases == phase] = correct[phases == phase].mean()
    return correct * (1.0 - share)


def cross_rewards(
    distances: FloatArray, models: StrArray, phases: StrArray, exploit: FloatArray, *, margin: float, gate: float
) -> FloatArray:
    """Eq. 6 per phase, averaged over the partner models which have completions in the same phase, [n].

    One partner gives max(0, least distance to its completions of the phase - margin) when its best exploit in
    the phase is at least `gate`, else 0. Without a partner in the phase: 0.
    """
    rewards = np.zeros(len(models))
    for row, (model, phase) in enumerate(zip(models, phases, strict=True)):
        terms = []
        for partner in sorted(set(models[phases == phase]) - {model}):
            theirs = (models == partner) & (phases == phase)
            open_gate = exploit[theirs].max() >= gate
            terms.append(max(0.0, float(distances[row, theirs].min()) - margin) if open_gate else 0.0)
        rewards[row] = np.mean(terms) if terms else 0.0
    return rewards


def explore_rewards(
    group: ProblemGroup, exploit: FloatArray, distances: FloatArray, settings: RewardSection
) -> FloatArray:
    """Eq. 3 by the rule of the settings, over all completions of the problem, [n]."""
    rule = settings.explore
    if rule.rule == "leave_one_out":
        return explore.leave_one_out(distances, margin=rule.margin)
    if rule.rule == "greedy_outsider":
        return explore.greedy_outsider(distances, exploit, margin=rule.margin, cap=rule.cap)
    similarity = similarity_matrix(group.embeddings, group.signatures, settings.distance.embedding_weight)
    best = 1.0 + _partial_weight(settings)
    return explore.dpp(similarity, np.clip(exploit / best, 0.0, 1.0))


def _partial_weight(settings: RewardSection) -> float:
    return settings.exploit.partial_weight if settings.exploit.partial == "token_f1" else 0.0


def score_problem(group: ProblemGroup, settings: RewardSection, schedule_index: int) -> ScoredGroup:
    """All reward parts of one problem and their sum (Eq. 7) with the weights of `schedule_index` (0-based).

    The group may hold cold completions only (to find the teacher) or both phases.
    Raises ValueError for an embedding that is zero or not finite, and for an extra part without texts.
    """
    distances = distance_matrix(group.embeddings, group.signatures, settings.distance.embedding_weight)
    exploit = exploit_rewards(group.correct, group.answers, group.gold, partial_weight=_partial_weight(settings))
    parts = {
        "exploit": exploit,
        "explore": explore_rewards(group, exploit, distances, settings),
        "rescue": rescue_rewards(group),
        "trace_accuracy": trace_accuracy_rewards(group.correct, group.phases),
        "cross": cross_rewards(
            distances, group.models, group.phases, exploit, margin=settings.cross.margin, gate=settings.cross.gate
        ),
    }
    total = np.zeros(len(exploit))
    for name, values in parts.items():
        total += weight_at(getattr(settings, name).weight, schedule_index) * values
    for name, part in EXTRA_PARTS.items():
        section = getattr(settings, name)
        if weight := weight_at(section.weight, schedule_index):
            if group.texts is None:
                raise ValueError(f"reward part {name} needs the texts of the completions")
            total += weight * part(group.texts, section)
    return ScoredGroup(**parts, total=total)
