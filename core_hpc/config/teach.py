"""Sections of `update` that are not in the paper.

In: plain data. Out: a frozen `TeachSection` (METHOD.md section 9.2), `TeamPassSection` (section 9.4),
`HacpoSection` (section 9.7) or `SelfTeacherSection` (section 9.8). The modules `lessons`,
`team_pass`, `hacpo` and `self_teacher` of `protocol`, and `training/transfer.py`, compute with them.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from core_hpc.config.base import PositiveInt, Section


class _Scheduled(Section):
    """A section whose weight may change linearly."""

    weight: float
    weight_end: float | None = None
    weight_iterations: int = Field(0, ge=0, description="iterations in which the weight changes to `weight_end`")

    @property
    def is_on(self) -> bool:
        """Whether some iteration has a weight."""
        return self.weight > 0 or bool(self.weight_end)

    @model_validator(mode="after")
    def _whole_schedule(self) -> Self:
        if (self.weight_end is None) != (self.weight_iterations == 0):
            raise ValueError("weight_end and weight_iterations belong together; set both, or leave both out")
        return self


class TeachSection(_Scheduled):
    """Learning from a peer's correct cold completion (METHOD.md section 9.2).

    It concerns the problems on which the model failed and a peer did not. The model learns the
    peer's text for its own prompt without a hint.

    >>> TeachSection(weight=0.8).is_on, TeachSection().is_on
    (True, False)
    """

    weight: float = Field(0.0, ge=0, description="weight of a peer's text in the loss in iteration 1; 0: off")
    weight_end: float | None = Field(
        None, ge=0, description="weight after `weight_iterations` iterations, reached linearly; null: as `weight`"
    )
    objective: Literal["likelihood", "shaped"] = Field(
        "likelihood",
        description="gain of a token with probability p. likelihood: log p; shaped: p / (p + 0.1), which learns less "
        "from tokens that are nearly impossible",
    )
    teacher: Literal["score", "likelihood", "random"] = Field(
        "score",
        description="which correct completion of the peers is learned. score: the one with the highest reward; "
        "likelihood: the one to which the model itself gives the highest mean log-probability per token; random: any",
    )
    max_per_problem: PositiveInt = Field(1, description="most different texts of peers per problem")
    rehearsal: float = Field(
        0.0,
        ge=0,
        description="own correct cold completions that are learned with the same objective and weight, per text of a "
        "peer; 1: as many. They keep the model's own skill",
    )


class TeamPassSection(_Scheduled):
    """Training for team Pass@k, beside the reward (METHOD.md section 9.4)."""

    weight: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the advantage for team Pass@k in iteration 1; the reward has the rest; 0: off",
    )
    weight_end: float | None = Field(
        None, ge=0, le=1, description="share after `weight_iterations` iterations, reached linearly; null: as `weight`"
    )
    k: PositiveInt = Field(2, description="completions per model of team Pass@k; at most protocol.cold_samples - 1")


class HacpoSection(Section):
    """Every model learns from the rollouts of all models (HACPO, METHOD.md section 9.7).

    The defaults are those of the authors' code.
    """

    enabled: bool = Field(False, description="whether models also learn from the cold completions of their peers")
    window: PositiveInt = Field(
        5, description="iterations over which the share of positive rewards of a model is taken"
    )
    alpha: float = Field(1.0, ge=0, description="exponent of the weight sg(ratio)^alpha of a peer's completion")
    clip_delta: float = Field(
        0.2, gt=0, le=1, description="ratios of a peer's completion below 1 - clip_delta are clipped"
    )
    clip_step: float = Field(
        0.025,
        ge=0,
        description="by how much this bound rises with each optimizer step of an iteration; below 1 until the last one",
    )


class SelfTeacherSection(_Scheduled):
    """The model with a hint as the teacher of its own failures without it (METHOD.md section 9.8)."""

    kind: Literal["none", "rlsd", "sdpo"] = Field(
        "none",
        description="what the model with the hint does for a failed cold completion. rlsd: weights the tokens of the "
        "advantage; sdpo: gives each token an advantage of its own; none: off",
    )
    weight: float = Field(
        0.5, ge=0, description="rlsd: share of the token weights, at most 1; sdpo: weight in the loss; in iteration 1"
    )
    weight_end: float | None = Field(
        None, ge=0, description="weight after `weight_iterations` iterations, reached linearly; null: as `weight`"
    )
    cap: float = Field(2.0, ge=1, description="sdpo: largest ratio to the weights before the update")

    @property
    def is_on(self) -> bool:
        """Whether some completions have a teacher."""
        return self.kind != "none"

    @model_validator(mode="after")
    def _share(self) -> SelfTeacherSection:
        if self.kind == "rlsd" and max(self.weight, self.weight_end or 0) > 1:
            raise ValueError("the weight of rlsd is a share; choose a number from 0 to 1")
        return self
