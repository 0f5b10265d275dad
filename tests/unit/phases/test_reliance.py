"""Reliance of rescues on their hints: which rows are measured and weighted, against closed forms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from pydantic import ValidationError

from core_hpc.config.run import RunConfig
from core_hpc.phases.reliance import with_reliance
from core_hpc.training.batching import Row
from tests.unit.phases.test_hint_leak import DATA
from tests.unit.phases.test_rescue_context import PLAIN, make_rows


@pytest.mark.parametrize("scale", [None, 0.3])
def test_reliance_compares_both_prompts_and_weights_only_correct_hinted_rescues(scale: float | None) -> None:
    rows, hinted = make_rows()

    def rate(asked: Sequence[Row]) -> list[float]:
        return [-0.1 * row.completion_token_ids[2] - (0.4 if row.prompt_token_ids == PLAIN else 0.0) for row in asked]

    found = with_reliance(rows, hinted, rate, scale=scale)
    for before, after in zip(rows, found, strict=True):
        if hinted.get(before.key):
            assert after.reliance == pytest.approx(-0.4)
            assert after.weight == pytest.approx(0.8 * (math.exp(-0.4 / 0.3) if scale else 1.0))
        else:
            assert after is before
    assert sum(row.reliance is not None for row in found) == 3


def test_a_scale_without_hints_is_a_configuration_error() -> None:
    with pytest.raises(ValidationError, match=r"update\.reliance_scale has no effect"):
        RunConfig.model_validate({**DATA, "update": {"reliance_scale": 0.3}, "protocol": {"hint_probability": 0}})
