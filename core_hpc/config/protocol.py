"""The section `protocol`: completions per problem, who samples again, and what a hint is.

In: plain data of a sweep file. Out: a frozen `ProtocolSection`. The method itself is in `protocol/` and
`phases/`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from core_hpc.config.base import PositiveInt, Section, added_later
from core_hpc.config.evaluation import SamplingSection
from core_hpc.config.extensions import HintFunction, PromptFunction


class ProtocolSection(Section):
    """The CORE protocol: cold samples, teacher, hint, rescue samples (METHOD.md section 1)."""

    problems_per_iteration: PositiveInt = Field(32, description="training problems per iteration")
    problems_per_part: PositiveInt = Field(
        256, description="problems per generation task; changes the last digits of engines"
    )
    cold_samples: PositiveInt = Field(2, description="K: cold completions per problem and model")
    rescue_samples: int = Field(1, ge=0, description="K': rescue completions per problem and model; 0: no rescue phase")
    scope: Literal["failed", "all"] = Field(
        "failed",
        description="models that sample again. failed: those without a correct cold completion; all: every model "
        "with a teacher",
    )
    even_budget: bool = Field(
        False,
        description="models that get no hint also sample again, without one, so that every problem costs K + K' "
        "completions per model",
    )
    hint_probability: float = Field(
        0.75, ge=0, le=1, description="probability that a rescue completion sees the hint; the others are the control"
    )
    hint_tokens: PositiveInt = Field(1536, description="longest hint, in tokens of the student")
    hint_style: Literal["full", "strategy", "compressed"] = Field(
        "full",
        description="full: the teacher's text without thoughts and answers, or its first correct strategy if it has "
        "strategies; strategy: such a strategy, or no hint; compressed: only the approach and the computing sentences",
    )
    hint_leak: Literal["keep", "cut", "reject"] = added_later(
        "keep",
        description="a hint in which the gold answer is the result of a step. keep: used as it is; cut: ends before "
        "this step; reject: no hint",
    )
    hint_source: Literal["peer", "shuffled", "own"] = added_later(
        "peer",
        description="whose text the hint of a case is. peer: of the teacher (the method); controls, in the same cases: "
        "shuffled: of the teacher of another problem; own: of the student's own best cold completion",
    )
    hint_function: HintFunction | None = added_later(
        None, description="a function of your own that rewrites the teacher's text; null: the text as it is"
    )
    prompt_function: PromptFunction | None = added_later(
        None, description="a function of your own that builds the prompts; null: question, hint and instruction"
    )
    teacher_score: Literal["total", "exploit"] = Field(
        "total", description="which reward of the cold completions chooses the teacher: the total, or exploit only"
    )
    sampling: SamplingSection = Field(SamplingSection(), description="sampling in training")
    choose: Literal["order", "pass_rate"] = added_later(
        "order",
        description="training problems of an iteration. order: epoch by epoch in a seeded order; pass_rate: drawn with "
        "a weight of 4 r (1 - r), at least 0.1, where r is the team's last share of correct cold completions; problems "
        "without one have the weight 1",
    )
    staleness: Literal[0, 1] = added_later(
        0,
        description="updates by which the weights that sample are older than those that are updated. 0: an iteration "
        "samples with the newest weights; 1: with those before, while the iteration before is scored and updated",
    )

    @model_validator(mode="after")
    def _hints_of_another_source(self) -> ProtocolSection:
        if self.hint_source != "peer" and (self.rescue_samples == 0 or self.hint_probability == 0):
            raise ValueError(
                "hint_source has no effect without hints; leave it out, or set rescue_samples and hint_probability"
            )
        if self.hint_source == "own" and self.hint_style == "strategy":
            raise ValueError(
                "hint_source: own has no hints with hint_style: strategy, because only a correct strategy is a hint; "
                "set hint_style to full"
            )
        return self
