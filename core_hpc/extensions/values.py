"""What the functions of users get: a problem, and a completion.

A function needs no import from this package, because it only reads attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem. `metadata` has everything else that its source has about it."""

    id: str
    question: str
    gold: str
    answer_kind: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One completion of a problem."""

    problem_id: str
    model: str
    """Name of the model in the team."""
    phase: str
    """`cold` or `rescue`."""
    sample_index: int
    text: str
    answer: str | None
    """The extracted answer."""
    correct: bool
    hint_given: bool
    """Whether the prompt contained a hint."""
    num_tokens: int
    truncated: bool = False
    """Whether it was cut at max_new_tokens."""
