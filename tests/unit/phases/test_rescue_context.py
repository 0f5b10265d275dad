"""Rescues on the plain prompt, and their correction, against plain loops."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from core_hpc.config.run import RunConfig
from core_hpc.config.update import LOSS_OPTIONS, UpdateSection
from core_hpc.phases.rescue_context import in_context
from core_hpc.phases.update import training_rows
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import COLD, RESCUE, UPDATE
from core_hpc.training.batching import Row, plan_steps
from core_hpc.training.losses import StepSize, TokenBatch, objective
from core_hpc.training.micro_batch import collate
from core_hpc.training.transfer import prompt_weights
from tests.unit.phases.test_hint_leak import DATA
from tests.unit.phases.test_traps import context, scored_run

PLAIN, HINTED = [1, 2], [1, 2, 90, 91]


def make_rows() -> tuple[list[Row], dict[tuple[object, ...], bool]]:
    """A cold row, and all kinds of rescue rows: (hint, correct, advantage)."""
    rows, hinted = [], {}
    kinds: list[tuple[str, bool, bool, float]] = [(COLD, False, True, 1.0)]
    kinds += [(RESCUE, *kind) for kind in itertools.product((True, False), (True, False), (-1.0, 0.0, 1.0))]
    for k, (phase, hint, correct, advantage) in enumerate(kinds):
        rows.append(
            Row(
                key=("p", phase, k),
                problem_id="p",
                prompt_token_ids=HINTED if hint else PLAIN,
                completion_token_ids=[7, 8, k + 10],
                behaviour_logprobs=[-0.1, -0.2, -0.3],
                advantage=advantage,
                weight=0.8,
                rescue=phase == RESCUE,
            )
        )
        if hint:
            hinted["p", phase, k] = correct
    return rows, hinted


@pytest.mark.parametrize("others", ["hinted", "plain", "drop"])
@pytest.mark.parametrize("correction", ["none", "importance", "shaped"])
def test_only_correct_hinted_rescues_with_a_positive_advantage_are_internalised(correction: Any, others: Any) -> None:
    rows, hinted = make_rows()
    settings = UpdateSection(rescue_context="plain", rescue_correction=correction, rescue_others=others)
    found = {row.key: row for row in in_context(rows, hinted, settings)}
    num_internalised = 0
    for row in rows:
        if row.key not in hinted:
            assert found[row.key] is row
        elif hinted[row.key] and row.advantage > 0:
            new = found[row.key]
            assert (new.prompt_token_ids, new.behaviour_logprobs, new.source) == (PLAIN, None, "internalised")
            assert new.sampled_logprobs == (row.behaviour_logprobs if correction == "importance" else None)
            assert new.objective == ("shaped" if correction == "shaped" else "policy")
            assert (new.weight, new.advantage) == (0.8, row.advantage)
            num_internalised += 1
        elif others == "drop":
            assert row.key not in found
        else:
            wanted = HINTED if others == "hinted" else PLAIN
            assert (found[row.key].prompt_token_ids, found[row.key].source) == (wanted, "rescue")
            assert (found[row.key].behaviour_logprobs is None) == (others == "plain")
            is_corrected = (others, correction) == ("plain", "importance")
            assert found[row.key].sampled_logprobs == (row.behaviour_logprobs if is_corrected else None)
    assert num_internalised == 1
    assert in_context(rows, hinted, UpdateSection()) == rows


def test_the_plain_prompt_is_that_of_the_cold_completions(tmp_path: Path) -> None:
    run = scored_run(tmp_path, rescue_context="plain")
    rows = {row.key: row for row in training_rows(context(run, TaskKey(1, UPDATE, "b")))}
    rescue = rows["hard", RESCUE, 0]
    assert rescue.source == "internalised"
    # In this run every cold completion has other prompt ids, so that rows can be distinguished.
    assert list(rescue.prompt_token_ids) in [list(rows["hard", COLD, k].prompt_token_ids) for k in (0, 1)]
    assert 900 not in list(rescue.prompt_token_ids)


def test_the_correction_is_truncated_importance_of_the_hinted_prompt() -> None:
    """Through a micro-batch: only the corrected row has other weights than 1."""
    rows, hinted = make_rows()
    settings = UpdateSection(rescue_context="plain", rescue_correction="importance")
    chosen = [row for row in in_context(rows, hinted, settings) if row.advantage > 0]
    (plan,) = plan_steps(chosen, problems_per_step=1, seed=0, num_ranks=1, max_tokens=100, layout="tree")
    batch = collate(chosen, plan.micro_batches[0][0].rows, "tree")
    old = torch.linspace(-1.0, -0.05, len(batch.row_M))
    found = prompt_weights(old, batch.sampled_M).tolist()
    expected = []
    for n, i in enumerate(batch.rows):
        values = old[batch.row_M == n].tolist()
        sampled = chosen[i].sampled_logprobs
        expected += [1.0] * 3 if sampled is None else [
            min(math.exp(o) / math.exp(s), 1.0) for o, s in zip(values, sampled, strict=True)
        ]  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-5)
    assert any(weight < 0.99 for weight in found)


@pytest.mark.parametrize("loss", [loss for loss in LOSS_OPTIONS if loss != "gspo"])
def test_with_the_current_ratio_the_slope_does_not_depend_on_the_old_policy(loss: Any) -> None:
    """It is -A times the token's share for every loss, as in the first step with the other ratios."""
    slopes = []
    for ratio, shift in (("token", 0.0), ("current", 0.0), ("current", 5.0), ("current", -5.0)):
        current = torch.tensor([-0.5, -1.5, -0.2], dtype=torch.float64, requires_grad=True)
        batch = TokenBatch(
            old_M=current.detach() + shift,
            reference_M=None,
            importance_M=torch.ones(3, dtype=torch.float64),
            row_M=torch.tensor([0, 0, 1]),
            lengths_N=torch.tensor([2, 1]),
            advantage_N=torch.tensor([1.5, -0.5], dtype=torch.float64),
            weight_N=torch.ones(2, dtype=torch.float64),
            rescue_N=torch.tensor([False, False]),
        )
        settings = UpdateSection(loss=loss, ratio=ratio, kl_weight=0)  # type: ignore[arg-type]
        objective(current, batch, settings, StepSize(2, 3, 4)).loss.backward()
        assert current.grad is not None
        slopes.append(current.grad.tolist())
    for other in slopes[1:]:
        assert other == pytest.approx(slopes[0], abs=1e-12)
    assert slopes[0][0] < 0 < slopes[0][2]


@pytest.mark.parametrize(
    ("update", "protocol", "message"),
    [
        ({"rescue_correction": "shaped"}, {}, "have no effect with rescue_context: hinted"),
        ({"rescue_context": "plain"}, {"rescue_samples": 0}, "no effect without hinted"),
        ({"baseline": "model_batch"}, {"problems_per_part": 2}, r"set protocol\.problems_per_part to 32"),
    ],
)
def test_options_without_effect_are_configuration_errors(
    update: dict[str, Any], protocol: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate({**DATA, "update": update, "protocol": protocol})
