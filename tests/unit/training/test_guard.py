"""The guard against another model in the engine: limits, messages, and the adapter that is ignored."""

from __future__ import annotations

import math
from typing import Literal

import pytest

from core_hpc.common.errors import MismatchError
from core_hpc.controller.display import describe_stats
from core_hpc.store.paths import TaskKey
from core_hpc.training.guard import Mismatch, check_mismatch, default_limit

TOKENS = {"p0": 100, "p1": 300}


def differing(policy: float, base: float | None = None) -> Mismatch:
    """A step in which every token differs by so much, three times as much in the first problem."""
    weights = {"p0": 3.0, "p1": 1.0 / 3.0}  # 100 x 3 + 300 / 3 = 400 tokens
    sums = {p: policy * weights[p] * num for p, num in TOKENS.items()}
    return Mismatch(sums, None if base is None else {p: base * num for p, num in TOKENS.items()}, TOKENS)


def test_the_mean_is_over_tokens() -> None:
    assert differing(0.05).mean(differing(0.05).policy) == pytest.approx(0.05)
    assert Mismatch({"p": 0.0}, None, {"p": 0}).mean({"p": 0.0}) == 0.0


def test_below_half_of_the_limit_nothing_is_reported() -> None:
    assert check_mismatch(differing(0.049), 0.1, where="step 1") is None


def test_between_half_of_the_limit_and_the_limit_a_warning_is_logged() -> None:
    warning = check_mismatch(differing(0.08), 0.1, where="step 1")
    assert warning is not None
    assert "0.08 nats" in warning


def test_above_the_limit_the_run_stops_and_the_worst_problems_are_named() -> None:
    with pytest.raises(MismatchError, match=r"step 7: .*0\.2 nats.*limit is 0\.1.*p0 \(0\.6\), p1 \(0\.0667\)"):
        check_mismatch(differing(0.2), 0.1, where="step 7")


def test_a_difference_that_is_not_a_number_is_above_every_limit() -> None:
    with pytest.raises(MismatchError, match="differ by nan nats"):
        check_mismatch(differing(math.nan), 0.1, where="step 7")


@pytest.mark.parametrize(
    ("policy", "base", "ignored"),
    [
        (0.01, 0.0001, True),
        (0.0001, 0.01, False),  # the engine follows the adapter
        (0.012, 0.011, False),  # noise of bfloat16 hides a small adapter
        (3e-6, 1e-7, False),  # rounding of float32
    ],
)
def test_an_ignored_adapter_is_found_far_below_the_limit(policy: float, base: float, ignored: bool) -> None:
    found = differing(policy, base)
    if ignored:
        with pytest.raises(MismatchError, match="seems to ignore the adapter"):
            check_mismatch(found, 0.1, where="step 1")
    else:
        assert check_mismatch(found, 0.1, where="step 1") is None


@pytest.mark.parametrize(
    ("dtype", "tuning", "top_p", "expected"),
    [("float32", "lora", 1.0, 0.02), ("auto", "full", 1.0, 0.1), ("bfloat16", "qlora", 1.0, 0.5)],
)
def test_default_limits(dtype: str, tuning: Literal["lora", "full", "qlora"], top_p: float, expected: float) -> None:
    assert default_limit(dtype, tuning, top_p) == pytest.approx(expected)
    assert default_limit(dtype, tuning, 0.9) == pytest.approx(expected - math.log(0.9))


@pytest.mark.parametrize(("mismatch", "shown"), [(0.04, False), (0.07, True), (math.nan, False), (None, False)])
def test_the_display_shows_a_large_mismatch(mismatch: float | None, shown: bool) -> None:
    stats = {
        "seconds": {"update": 2.0},
        "num_tokens": 10,
        "num_completions": 3,
        "mismatch": mismatch,
        "max_mismatch": 0.1,
    }
    assert ("WARNING" in describe_stats(TaskKey(1, "update", "m"), stats)) is shown
