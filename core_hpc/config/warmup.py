"""The section `team[].warmup`: supervised fine-tuning of a model before the first iteration.

In: plain data. Out: a frozen section, which `run.py` uses. What it does is in `phases/warmup.py`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from core_hpc.config.base import PositiveInt, Section
from core_hpc.config.problems import ProblemSource


class WarmupSection(Section):
    """Supervised fine-tuning on worked solutions before the first iteration.

    Its result is an ordinary model, which takes the place of the base weights in the whole run.
    """

    problems: ProblemSource = Field(description="problems with worked solutions (field `solution`)")
    hinted: list[ProblemSource] = Field(
        [],
        description="sources of further problems, whose prompt shows the solution without its answer as a hint, so "
        "that the model learns to use hints",
    )
    tuning: Literal["full", "lora"] = Field(
        "full",
        description="what is trained. full: every weight; lora: an adapter with the settings of the model's `lora`, "
        "which is merged into the weights at the end",
    )
    epochs: PositiveInt = Field(1, description="how often every problem is used")
    examples_per_step: PositiveInt = Field(32, description="problems per optimizer step")
    learning_rate: float = Field(
        1e-4,
        gt=0,
        le=1,
        description="peak learning rate: it rises in the first tenth of the steps, then follows a cosine to 0",
    )
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW")
    seed: int | None = Field(
        0,
        ge=0,
        description="seed of the order of problems, and of a new adapter; null: `seed` of the run, so every seed of a "
        "grid has a warm-up of its own",
    )

    @property
    def sources(self) -> tuple[ProblemSource, ...]:
        """All sources of problems; the prompts of those after the first show the solution as a hint."""
        return self.problems, *self.hinted
