"""Rewards of all completions of one problem (Eq. 2 to 7, METHOD.md section 4).

In: arrays over the completions of one problem (all models, both phases) and the reward settings.
Out: every part of the paper's reward, unweighted, and the weighted sum of all parts. A part that is
not in the paper is a function of the texts in its own file and an entry of `EXTRA_PARTS`; the
settings section with the same name configures it. This module does not verify answers, embed texts
or compute advantages.

Shapes: n completions of one problem, in the same order in every array; d embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core_hpc.answers.extract import token_f1
from core_hpc.config.reward import RewardSection, weight_at
from core_hpc.extensions.workers import TIME_LIMIT_S, shared_workers
from core_hpc.protocol import explore
from core_hpc.protocol.distance import FloatArray, Signature, distance_matrix, similarity_matrix
from core_hpc.protocol.failures import BoolArray, cold_failed
from core_hpc.protocol.format_reward import format_rewards
from core_hpc.protocol.length_reward import length_rewards, overlong_rewards
from core_hpc.store.schema import COLD, RESCUE

StrArray = NDArray[np.str_]

EXTRA_PARTS: dict[str, Callable[[Sequence[str], Any], FloatArray]] = {
    "format": format_rewards,
    "length": length_rewards,
}
"""Parts that are not in the paper: name -> function of (texts [n], settings) that returns [n].

They are added to the total but not stored, because they can be recomputed from the texts.
"""


@dataclass(frozen=True, eq=False, kw_only=True)
class ProblemGroup:
    """All completions of one problem.

    Attributes:
        models: [n] names of the models.
        phases: [n] cold or rescue.
        correct: [n] whether the answer is correct.
        answers: [n] extracted answers.
        gold: the gold answer.
        hint_given: [n] whether the prompt contained the hint.
        signatures: [n] operation signatures of the texts.
        embeddings: [n, d] embeddings of the texts.
        texts: [n]; needed only by `EXTRA_PARTS`.
        length_shares: [n] completion tokens / max_new_tokens, 1 if truncated; needed only by the
            part `overlong`.

    Raises:
        ValueError: the arrays contradict each other.
    """

    models: StrArray
    phases: StrArray
    correct: BoolArray
    answers: Sequence[str | None]
    gold: str
    hint_given: BoolArray
    signatures: Sequence[Signature]
    embeddings: NDArray[np.floating]
    texts: Sequence[str] | None = None
    length_shares: FloatArray | None = None

    def __post_init__(self) -> None:
        arrays = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "gold"}
        lengths = {name: len(values) for name, values in arrays.items() if values is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"arrays of one problem differ in length: {lengths}")
        unknown = sorted(set(self.phases) - {COLD, RESCUE})
        if unknown:
            raise ValueError(f"phases {unknown} are not rewarded; only {COLD} and {RESCUE} are")

    @cached_property
    def cold_failed(self) -> BoolArray:
        """Whether the model of each completion failed the problem in the cold phase, [n]."""
        return cold_failed(list(self.models), self.phases, self.correct)


@dataclass(frozen=True, eq=False)
class ScoredGroup:
    """Rewards of the completions of one problem. Arrays are [n], and the parts are unweighted."""

    exploit: FloatArray
    explore: FloatArray
    rescue: FloatArray
    trace_accuracy: FloatArray
    cross: FloatArray
    total: FloatArray
    """Eq. 7: the weighted sum, including `EXTRA_PARTS` and the user's own parts."""


def peer_cold_correct(models: StrArray, phases: StrArray, correct: BoolArray) -> BoolArray:
    """Whether another model has a correct cold completion, [n]."""
    solvers = set(models[(phases == COLD) & correct])
    return np.array([bool(solvers - {m}) for m in models], dtype=bool)


def exploit_rewards(
    correct: BoolArray, answers: Sequence[str | None], gold: str, *, partial_weight: float
) -> FloatArray:
    """Eq. 2: 1[correct] + alpha * token F1 of answer and gold, [n].

    `partial_weight` is alpha; 0 disables it.
    """
    partial = np.zeros(len(correct))
    if partial_weight:
        scores = {answer: token_f1(answer, gold) for answer in set(answers)}
        partial = np.array([scores[answer] for answer in answers], dtype=np.float64)
    return correct.astype(np.float64) + partial_weight * partial


def rescue_rewards(group: ProblemGroup) -> FloatArray:
    """Eq. 4: 1[rescue phase, correct, hint given, model failed cold, a peer correct cold], [n]."""
    peer = peer_cold_correct(group.models, group.phases, group.correct)
    rescued: BoolArray = (group.phases == RESCUE) & group.correct & group.hint_given & group.cold_failed & peer
    return rescued.astype(np.float64)


def trace_accuracy_rewards(correct: BoolArray, phases: StrArray) -> FloatArray:
    """Eq. 5: 1[correct] * (1 - share of correct completions of the same phase, all models), [n].

    >>> phases = np.array(["cold", "cold", "cold", "rescue"])
    >>> trace_accuracy_rewards(np.array([True, False, False, True]), phases).round(3).tolist()
    [0.667, 0.0, 0.0, 0.0]
    """
    share = np.zeros(len(correct))
    for phase in set(phases):
        share[phases == phase] = correct[phases == phase].mean()
    return correct * (1.0 - share)


def cross_rewards(
    distances: FloatArray, models: StrArray, phases: StrArray, exploit: FloatArray, *, margin: float, gate: float
) -> FloatArray:
    """Eq. 6 per phase, averaged over the partners with completions in the same phase, [n].

    A partner contributes max(0, smallest distance to its completions of the phase - margin) if its
    best exploit reward in the phase is at least `gate`, and 0 otherwise. Without a partner the
    reward is 0.
    """
    rewards = np.zeros(len(models))
    for phase in set(phases):
        here = phases == phase
        names = sorted(set(models[here]))
        rows = {name: np.flatnonzero(here & (models == name)) for name in names}
        for model, own in rows.items():
            partners = [rows[name] for name in names if name != model]
            terms = np.zeros((len(own), len(partners)))
            for column, theirs in enumerate(partners):
                if exploit[theirs].max() >= gate:
                    nearest = distances[np.ix_(own, theirs)].min(axis=1)
                    terms[:, column] = np.maximum(0.0, nearest - margin)
            if partners:
                rewards[own] = terms.mean(axis=1)
    return rewards


def explore_rewards(
    group: ProblemGroup,
    exploit: FloatArray,
    distances: FloatArray,
    settings: RewardSection,
    *,
    limit_s: float = TIME_LIMIT_S,
) -> FloatArray:
    """Eq. 3 with the configured rule, over all completions of the problem, [n]."""
    rule = settings.explore
    if rule.rule_function is not None:
        own = rule.rule_function
        (values,) = shared_workers().call_many(
            own.function, "explore_rule", [(distances, exploit)], own.options, limit_s=limit_s
        )
        return np.array(values)
    if rule.rule == "leave_one_out":
        return explore.leave_one_out(distances, margin=rule.margin)
    if rule.rule == "greedy_outsider":
        return explore.greedy_outsider(distances, exploit, margin=rule.margin, cap=rule.cap)
    similarity = similarity_matrix(group.embeddings, group.signatures, settings.distance.embedding_weight)
    best = 1.0 + _partial_weight(settings)
    return explore.dpp(similarity, np.clip(exploit / best, 0.0, 1.0))


def _partial_weight(settings: RewardSection) -> float:
    return settings.exploit.partial_weight if settings.exploit.partial == "token_f1" else 0.0


def score_problem(
    group: ProblemGroup,
    settings: RewardSection,
    schedule_index: int,
    *,
    own_parts: Mapping[str, FloatArray] | None = None,
    limit_s: float = TIME_LIMIT_S,
) -> ScoredGroup:
    """All reward parts of one problem and their weighted sum (Eq. 7).

    Args:
        group: cold completions only (to find the teacher), or the completions of both phases.
        settings: the reward settings.
        schedule_index: 0-based epoch or iteration that selects the weights.
        own_parts: for each name in `settings.parts`, the values of the user's function, [n].
        limit_s: wall-clock limit of the user's explore rule, in seconds.

    Raises:
        ValueError: an embedding is zero or not finite, or a part has no texts or lengths.
    """
    distances = distance_matrix(group.embeddings, group.signatures, settings.distance.embedding_weight)
    exploit = exploit_rewards(group.correct, group.answers, group.gold, partial_weight=_partial_weight(settings))
    parts = {
        "exploit": exploit,
        "explore": explore_rewards(group, exploit, distances, settings, limit_s=limit_s),
        "rescue": rescue_rewards(group),
        "trace_accuracy": trace_accuracy_rewards(group.correct, group.phases),
        "cross": cross_rewards(
            distances, group.models, group.phases, exploit, margin=settings.cross.margin, gate=settings.cross.gate
        ),
    }
    return ScoredGroup(**parts, total=_total(parts, group, settings, schedule_index, own_parts or {}))


def _total(
    parts: Mapping[str, FloatArray],
    group: ProblemGroup,
    settings: RewardSection,
    schedule_index: int,
    own_parts: Mapping[str, FloatArray],
) -> FloatArray:
    """The weighted sum of `parts`, `EXTRA_PARTS`, the part `overlong` and the user's own parts, [n]."""
    total = np.zeros(len(group.correct))
    for name, values in parts.items():
        total += weight_at(getattr(settings, name).weight, schedule_index) * values
    for name, part in EXTRA_PARTS.items():
        section = getattr(settings, name)
        if weight := weight_at(section.weight, schedule_index):
            if group.texts is None:
                raise ValueError(f"reward part {name} needs the texts of the completions")
            total += weight * part(group.texts, section)
    if weight := weight_at(settings.overlong.weight, schedule_index):
        if group.length_shares is None:
            raise ValueError("reward part overlong needs the lengths of the completions")
        total += weight * overlong_rewards(group.length_shares, settings.overlong)
    for name, values in own_parts.items():
        total += weight_at(settings.parts[name].weight, schedule_index) * values
    return total
