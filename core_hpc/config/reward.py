"""The section `reward` of the configuration: parts of the reward, and distance of completions.

METHOD.md section 4 has the formulas, and `protocol/rewards.py` computes them. Equation numbers are
those of the paper.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from core_hpc.config.base import Section, added_later
from core_hpc.config.extensions import (
    FUNCTION,
    OWN_NAME_PATTERN,
    ExploreFunction,
    FunctionReference,
    OwnFunction,
    function_of,
)

Weight = Annotated[float, Field(ge=0, le=100)]
Schedule = Weight | Annotated[list[Weight], Field(min_length=1)]
"""A weight, or one weight per epoch (or iteration), of which the last one holds from then on."""

_WEIGHT = "weight of this part of the reward; a list: one per epoch or iteration"


class ExploitSection(Section):
    """The part of the reward for correctness (Eq. 2)."""

    weight: Schedule = Field(1.0, description=_WEIGHT)
    partial_weight: float = Field(0.3, ge=0, lt=1, description="alpha of Eq. 2: weight of the partial score")
    partial: Literal["token_f1", "none"] = Field(
        "token_f1", description="partial score: F1 between the tokens of answer and gold answer, or none"
    )


class ExploreSection(Section):
    """The part of the reward for being different (Eq. 3 or another rule)."""

    weight: Schedule = Field([0.2, 0.05], description=_WEIGHT)
    rule: Literal["leave_one_out", "greedy_outsider", "dpp"] = Field(
        "leave_one_out", description="how the part is computed (METHOD.md section 4); greedy_outsider is Eq. 3"
    )
    margin: float = Field(0.15, ge=0, description="delta of Eq. 3: distance that is not paid for")
    cap: int = Field(10, ge=1, description="largest chosen set of greedy_outsider, in completions")
    rule_function: ExploreFunction | None = added_later(
        None, description="a function of your own, instead of `rule`; null: none"
    )


class WeightSection(Section):
    """A part of the reward that has only a weight."""

    weight: Schedule = Field(description=_WEIGHT)


class CrossSection(Section):
    """The part of the reward for being different from correct partners (Eq. 6)."""

    weight: Schedule = Field([0.0, 0.1], description=_WEIGHT)
    margin: float = Field(0.15, ge=0, description="distance to the partner that is not paid for")
    gate: float = Field(0.1, ge=0, description="a partner counts if its best exploit reward is at least this")


class DistanceSection(Section):
    """The distance of two completions (Eq. 13)."""

    embedder: str = Field(
        "pypi:all-minilm-l6-v2",
        description="sentence embedder: folder, hub name, pypi:all-minilm-l6-v2, or fake:hashing (for tests)",
    )
    embedding_weight: float = Field(
        0.6, ge=0, le=1, description="weight of the embeddings; the operation signatures have the rest"
    )


class FormatSection(Section):
    """A part of the reward for the form that the style `strategies` asks for.

    It is in the authors' code, not in the paper.
    """

    weight: Schedule = Field(0.0, description=f"{_WEIGHT}; 0.1 in the authors' runs with strategies")
    per_strategy: float = Field(0.2, ge=0, le=1, description="reward of each closed strategy block")
    final_answer: float = Field(
        0.5, ge=0, le=1, description="reward of a closed <final_answer>; both together give at most 1"
    )


class LengthSection(Section):
    """A part of the reward for long completions, in words, which are the same for all models.

    It is in the authors' code, not in the paper.
    """

    weight: Schedule = Field(0.0, description=f"{_WEIGHT}; 0.05 in the authors' runs with strategies")
    min_words: int = Field(128, ge=0, description="words up to which the part is 0")
    max_words: int = Field(1024, validate_default=True, ge=1, description="words from which the part is 1")

    @field_validator("max_words")
    @classmethod
    def _above_min(cls, max_words: int, info: ValidationInfo) -> int:
        if max_words <= info.data.get("min_words", 0):
            raise ValueError("must be greater than min_words")
        return max_words


class OverlongSection(Section):
    """A part of the reward against completions near the token limit (DAPO, arXiv 2503.14476, Eq. 13).

    The part is 0 up to max_new_tokens - buffer, falls linearly to -1 at max_new_tokens, and is -1
    for a truncated completion. It is not in the paper of CORE.
    """

    weight: Schedule = added_later(0.0, description=f"{_WEIGHT}; 1 in DAPO")
    buffer_share: float = added_later(
        0.2, gt=0, le=1, description="share of max_new_tokens in which the part falls; 0.2 in DAPO"
    )


PartName = Annotated[str, Field(pattern=OWN_NAME_PATTERN)]


class OwnPartSection(OwnFunction):
    """A part of the reward that a function of the user computes. It enters the column `reward`."""

    function: FunctionReference = function_of("reward_part", description=FUNCTION)
    weight: Schedule = Field(1.0, description=_WEIGHT)


class RewardSection(Section):
    """The reward of a completion (METHOD.md section 4), with the paper's weights.

    `format` and `length` are in the authors' code, and `overlong` is from DAPO. All three are off
    by default. They enter the column `reward` of the scores but have no columns of their own. The
    reward for different thoughts of that code is not implemented: it gives every completion with
    thoughts the same amount, so it cancels out in the advantages if all models think. What a single
    completion contributes is not defined.
    """

    schedule_by: Literal["epoch", "iteration"] = Field(
        "epoch", description="what an entry in a list of weights stands for"
    )
    exploit: ExploitSection = Field(ExploitSection(), description="correctness (Eq. 2)")
    explore: ExploreSection = Field(ExploreSection(), description="being different (Eq. 3)")
    rescue: WeightSection = Field(WeightSection(weight=0.15), description="success after a hint (Eq. 4)")
    trace_accuracy: WeightSection = Field(WeightSection(weight=0.2), description="success where others fail (Eq. 5)")
    cross: CrossSection = Field(CrossSection(), description="being different from correct partners (Eq. 6)")
    format: FormatSection = Field(FormatSection(), description="form of the style strategies")
    length: LengthSection = Field(LengthSection(), description="long completions")
    overlong: OverlongSection = added_later(OverlongSection(), description="completions near the token limit")
    parts: dict[PartName, OwnPartSection] = added_later({}, description="parts of your own, by name")
    distance: DistanceSection = Field(DistanceSection(), description="distance of two completions (Eq. 13)")

    @field_validator("parts")
    @classmethod
    def _names_of_their_own(cls, parts: dict[str, OwnPartSection]) -> dict[str, OwnPartSection]:
        if taken := sorted(set(parts).intersection(cls.model_fields)):
            raise ValueError(f"{taken[0]} is the name of another field of reward; give your part another name")
        return parts


def weight_at(schedule: float | list[float], index: int) -> float:
    """Weight of a part of the reward in epoch or iteration `index` (0-based)."""
    if isinstance(schedule, list):
        return schedule[min(index, len(schedule) - 1)]
    return schedule
