"""Completions that teach and show little: cut at the token limit, or without an answer.

The input is the statistics in the manifests of generation tasks. The output is their shares as text,
and warnings for a user who may have set the token limit too low or the instruction wrong. Nothing is
read or decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WARN_SHARE = 0.1
"""Share of truncated or of unanswered completions above which there is a warning."""


@dataclass(frozen=True)
class Useless:
    """Numbers of completions. Truncated ones without an answer count in both numbers."""

    num_completions: int
    num_truncated: int
    num_no_answer: int

    @classmethod
    def of(cls, stats: Mapping[str, Any]) -> Useless | None:
        """The numbers of a published task; None if an earlier version published it."""
        names = ("num_completions", "num_truncated", "num_no_answer")
        return cls(*(stats[name] for name in names)) if all(name in stats for name in names) else None

    def __add__(self, other: Useless) -> Useless:
        return Useless(
            self.num_completions + other.num_completions,
            self.num_truncated + other.num_truncated,
            self.num_no_answer + other.num_no_answer,
        )

    @property
    def truncated_share(self) -> float | None:
        """None if there are no completions."""
        return self.num_truncated / self.num_completions if self.num_completions else None

    @property
    def no_answer_share(self) -> float | None:
        """None if there are no completions."""
        return self.num_no_answer / self.num_completions if self.num_completions else None

    @property
    def shares(self) -> str:
        """Both shares as text.

        >>> Useless(200, 3, 30).shares
        '1.5 % truncated, 15 % without an answer'
        """
        return f"{_percent(self.truncated_share)} truncated, {_percent(self.no_answer_share)} without an answer"

    @property
    def warnings(self) -> list[str]:
        """What a user should look at, with what to do; empty if both shares are small."""
        found = []
        if (self.truncated_share or 0) > WARN_SHARE:
            found.append(
                f"{self.num_truncated} of {self.num_completions} completions were cut at the token limit; "
                "raise max_new_tokens, or ask for shorter solutions"
            )
        if (self.no_answer_share or 0) > WARN_SHARE:
            found.append(
                f"no answer was found in {self.num_no_answer} of {self.num_completions} completions; "
                "read some of them (python -m analysis browse RUN), and check problems.instruction"
            )
        return found


NOTHING_USELESS = Useless(0, 0, 0)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2g} %" if share < 0.995 else "100 %"
