"""The section `evaluation` of the configuration, and how completions are sampled in any phase.

In: plain data. Out: frozen sections, which `run.py` uses. The problems of further sets are made in
`problems/sets.py`.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from core_hpc.config.base import NAME_PATTERN, PositiveInt, Section, added_later, operational
from core_hpc.config.problems import ProblemSource

_TEMPERATURE = "sampling temperature; 0: greedy"
_TOP_P = "nucleus sampling: smallest set of tokens with this probability; 1: all tokens"
_MAX_NEW_TOKENS = "most tokens per completion"


class SamplingSection(Section):
    """How completions are sampled."""

    temperature: float = Field(0.7, ge=0, le=5, description=_TEMPERATURE)
    top_p: float = Field(0.9, gt=0, le=1, description=_TOP_P)
    max_new_tokens: int = Field(3072, ge=1, description=_MAX_NEW_TOKENS)


class OwnSamplingSection(Section):
    """How one model samples if it differs from the team. An omitted field has the team's value."""

    temperature: float | None = Field(None, ge=0, le=5, description=f"{_TEMPERATURE}; null: as the team")
    top_p: float | None = Field(None, gt=0, le=1, description=f"{_TOP_P}; null: as the team")
    max_new_tokens: int | None = Field(None, ge=1, description=f"{_MAX_NEW_TOKENS}; null: as the team")


class EvaluationSetSection(Section):
    """A further problem set of the evaluation."""

    name: str = Field(pattern=NAME_PATTERN, description="name of the set in tables and plots")
    problems: ProblemSource = Field(description="its problems")
    samples: PositiveInt | None = Field(None, description="completions per problem and model; null: evaluation.samples")
    sampling: OwnSamplingSection = Field(
        OwnSamplingSection(), description="sampling of all models; null: as in the rest of the evaluation"
    )
    instruction: str | None = Field(
        None, description="text after each question; null: problems.instruction, if the answers are of the same kind"
    )


class EvaluationSection(Section):
    """Evaluation on held-out problems, at least after the last iteration."""

    before: bool = operational(
        True, description="evaluate the untrained models too; of several arms with the same seed, one is enough"
    )
    every: int = operational(
        0, ge=0, description="evaluate after every n-th iteration; 0: only after the last (and before the first)"
    )
    samples: PositiveInt = Field(8, description="completions per held-out problem and model")
    sampling: SamplingSection = Field(SamplingSection(max_new_tokens=4096), description="sampling in evaluation")
    sets: list[EvaluationSetSection] = added_later(
        [], description="further problem sets, each with its own samples; `problems.evaluation` stays the main one"
    )

    @field_validator("sets")
    @classmethod
    def _distinct_sets(cls, sets: list[EvaluationSetSection]) -> list[EvaluationSetSection]:
        names = [own.name for own in sets]
        if repeated := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"two sets have the name {', '.join(repeated)}; give each set its own name")
        return sets
