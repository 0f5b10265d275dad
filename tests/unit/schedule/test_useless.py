"""Shares of truncated and of unanswered completions, and when they are a warning."""

from __future__ import annotations

from typing import Any

import pytest

from core_hpc.controller.display import describe_stats
from core_hpc.schedule.useless import NOTHING_USELESS, Useless
from core_hpc.store.paths import TaskKey

STATS = {"num_completions": 40, "num_completion_tokens": 400, "seconds": {"generate": 4.0}}


@pytest.mark.parametrize(
    ("truncated", "no_answer", "shares", "warnings"),
    [
        (0, 0, ("0", "0"), []),
        (4, 4, ("10", "10"), []),  # a share of exactly a tenth is no warning
        (5, 0, ("12", "0"), ["5 of 40 completions were cut at the token limit"]),
        (0, 33, ("0", "82"), ["no answer was found in 33 of 40 completions"]),
        (40, 40, ("100", "100"), ["40 of 40 completions were cut", "no answer was found in 40 of 40"]),
    ],
)
def test_a_finished_task_shows_its_shares_and_warnings(
    truncated: int, no_answer: int, shares: tuple[str, str], warnings: list[str]
) -> None:
    stats: dict[str, Any] = {**STATS, "num_truncated": truncated, "num_no_answer": no_answer}
    text = describe_stats(TaskKey(0, "evaluate", "m"), stats)
    assert f", {shares[0]} % truncated, {shares[1]} % without an answer" in text
    assert text.count("WARNING") == len(warnings)
    for warning in warnings:
        assert warning in text


def test_a_task_of_an_earlier_version_has_no_shares() -> None:
    assert describe_stats(TaskKey(0, "evaluate", "m"), STATS) == ", 40 completions (10.0/s, 100 tokens/s)"


def test_numbers_of_tasks_add_up() -> None:
    total = sum([Useless(10, 1, 2), Useless(30, 0, 10)], NOTHING_USELESS)
    assert (total.truncated_share, total.no_answer_share) == (1 / 40, 12 / 40)
    assert NOTHING_USELESS.truncated_share is None
    assert Useless(1000, 974, 996).shares == "97 % truncated, 100 % without an answer"
    assert NOTHING_USELESS.shares == "- truncated, - without an answer"
