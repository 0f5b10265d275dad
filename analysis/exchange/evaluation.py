"""One evaluation in a log of other software: what it is about, and its figures.

In: completions of one model on one set of problems, problem by problem. Out: Pass@1 with its
standard error, and the numbers of completions and tokens. The logs are written in
`exchange/inspect_log.py` and `exchange/lm_eval.py`.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

OWN = "core_hpc"
"""Marks a log that core_hpc wrote, so that an import takes its verdicts and names as they are."""

Fields = dict[str, Any]


@dataclass
class Figures:
    """Sums over the completions that were written so far."""

    shares: list[float] = field(default_factory=list)  # per problem: share of correct completions
    num_completions: int = 0
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    most_samples: int = 0  # completions of the problem with the most

    def add(self, completions: Sequence[Fields]) -> None:
        """Count all completions of one problem."""
        self.shares.append(sum(row["correct"] for row in completions) / len(completions))
        self.num_completions += len(completions)
        self.num_prompt_tokens += sum(row["num_prompt_tokens"] for row in completions)
        self.num_tokens += sum(row["num_completion_tokens"] for row in completions)
        self.most_samples = max(self.most_samples, len(completions))

    @property
    def pass_at_1(self) -> float:
        """Mean over problems of the share of correct completions."""
        return statistics.fmean(self.shares)

    @property
    def standard_error(self) -> float | None:
        """Of `pass_at_1`, over problems; None for a single problem.

        Both programs compute it like this. The intervals of this package are others
        (`stats/intervals.py`).
        """
        if len(self.shares) < 2:
            return None
        return statistics.stdev(self.shares) / math.sqrt(len(self.shares))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model on one set of problems, after some iteration."""

    run_id: str
    model: str  # name in the team
    source: str | None  # `team[].model`; None: imported predictions
    phase: str
    iteration: int
    task: str  # name of the set of problems
    problem_ids: list[str]  # in the order of the split
    num_expected: int | None  # completions when all tasks are published; None: not known
    num_examples: int  # worked examples in a prompt
    sampling: dict[str, float]  # temperature, top_p, max_new_tokens; empty for imported predictions
    started_s: float  # of the first and of the last publication
    finished_s: float
    version: str  # of core_hpc
    git_commit: str | None
    figures: Figures = field(default_factory=Figures)

    @property
    def origin(self) -> Fields:
        """What the completions are, for a reader of the log and for an import."""
        return {"run": self.run_id, "model": self.model, "phase": self.phase, "iteration": self.iteration}

    @property
    def is_complete(self) -> bool:
        return self.num_expected in (None, self.figures.num_completions)

    def identifier(self, *parts: str | int) -> str:
        """An id of 22 characters, the same for every export of the same completions."""
        text = "\0".join(map(str, (self.run_id, self.model, self.phase, self.iteration, self.task, *parts)))
        return hashlib.sha256(text.encode()).hexdigest()[:22]


def utc(time_s: float) -> datetime:
    """A time of the epoch as a date."""
    return datetime.fromtimestamp(time_s, UTC)
