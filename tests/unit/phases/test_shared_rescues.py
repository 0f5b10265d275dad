"""Buddy distillation: which completions are shared, their tokens, and how they enter the loss."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import yaml
from core_hpc.common.errors import InputError
from core_hpc.config.update import ImportanceSection, UpdateSection
from core_hpc.models.prompts import PromptBuilder
from core_hpc.phases.shared_rescues import rescues, rows_of
from core_hpc.runs.sweep import load_sweep
from core_hpc.store.schema import COLD, RESCUE
from core_hpc.training.batching import Row, plan_steps
from core_hpc.training.interruption import rows_digest
from core_hpc.training.losses import StepSize, TokenBatch, importance_weights, objective
from core_hpc.training.metrics import StepTotals
from core_hpc.training.micro_batch import collate
from tests.support.tiny import byte_tokenizer

KEY = {"run_id": "r", "iteration": 1}
TOKENIZER = byte_tokenizer(template="{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}")


def test_only_rescues_of_the_peers_are_shared() -> None:
    values = itertools.product(
        (COLD, RESCUE), "abc", (True, False, None), (True, False), (True, False), (True, False), (-1.0, 0.0, 2.0)
    )
    rows = [
        {
            **KEY,
            "phase": phase,
            "model": model,
            "problem_id": "p",
            "sample_index": k,
            "cold_failed": failed,
            "hint_given": hint,
            "correct": correct,
            "truncated": truncated,
            "advantage": advantage,
        }
        for k, (phase, model, failed, hint, correct, truncated, advantage) in enumerate(values)
    ]
    found = rescues(pl.DataFrame(rows), ["b", "c"])
    wanted = [
        row["sample_index"]
        for row in rows
        if row["phase"] == RESCUE
        and row["model"] != "a"
        and row["cold_failed"]
        and row["hint_given"]
        and row["correct"]
        and not row["truncated"]
        and row["advantage"] > 0
    ]
    assert found["sample_index"].to_list() == wanted
    assert len(wanted) == 2


@pytest.mark.parametrize(("style", "stops"), [("chat", ()), ("plain", ("\n",))])
def test_a_shared_text_has_the_ids_that_the_model_would_have_sampled(style: str, stops: tuple[str, ...]) -> None:
    builder = PromptBuilder(TOKENIZER, style, "", (("1 + 1?", "2"),))
    found = pl.DataFrame(
        [
            {
                **KEY,
                "phase": RESCUE,
                "model": "b",
                "problem_id": "p",
                "sample_index": k,
                "advantage": 1.5,
                "text": text,
                "question": "3 + 4?",
            }
            for k, text in enumerate((" 3 + 4 = 7.", "It is 7\n", "It is\n7" if stops else "It is much longer" * 9))
        ]
    )
    rows = rows_of(found, builder, stops, weight=0.2, max_tokens=100)
    assert [row.key for row in rows] == [("p", RESCUE, 0, "b"), ("p", RESCUE, 1, "b")]
    lead = " " if style == "plain" else ""
    for row, text in zip(rows, ("3 + 4 = 7.", "It is 7"), strict=True):
        assert row.prompt_token_ids == builder.build("3 + 4?")
        assert builder.completion_text(row.completion_token_ids, stops) == lead + text
        end = builder.tokenizer.decode(row.completion_token_ids[-1:])
        assert end == (stops[0] if stops else "</s>")
        assert (row.behaviour_logprobs, row.advantage, row.weight, row.rescue) == (None, 1.5, 0.2, True)
    longest = max(len(row.completion_token_ids) for row in rows)
    fitting = rows_of(found, builder, stops, weight=0.2, max_tokens=longest - 1)
    assert fitting == [row for row in rows if len(row.completion_token_ids) < longest] != []


def test_shared_completions_come_after_the_models_own(tmp_path: Path) -> None:
    """Includes the score phase.

    Model b was rescued, so a also learns from b's text; b learns only from its own.
    """
    from core_hpc.phases.update import training_rows
    from core_hpc.store.paths import TaskKey
    from core_hpc.store.schema import UPDATE
    from tests.unit.phases.test_traps import context, rollout_rows, scored_run

    run = scored_run(tmp_path, share_rescues=0.2)
    rows_of_model = {}
    for model in "ab":
        task = context(run, TaskKey(1, UPDATE, model))
        task.model = run.config.model(model)
        task.prompt_builder = lambda _: PromptBuilder(TOKENIZER, "chat", "")
        task.stop_strings = lambda _: ()
        rows_of_model[model] = training_rows(task)
    shared = {model: [row for row in rows if row.behaviour_logprobs is None] for model, rows in rows_of_model.items()}
    assert [row.key for row in shared["a"]] == [("hard", RESCUE, 0, "b")]
    assert rows_of_model["a"][-1] is shared["a"][0]
    (text,) = {row["text"] for row in rollout_rows("b", RESCUE) if row["problem_id"] == "hard"}
    assert TOKENIZER.decode(shared["a"][0].completion_token_ids) == f"{text}</s>"
    assert shared["b"] == []


@pytest.mark.parametrize(("truncated", "weights"), [("keep", {1.0, 0.8}), ("mask", {0.0, 1.0})])
def test_truncated_completions_are_masked_from_the_loss_but_not_from_the_rewards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truncated: str, weights: set[float]
) -> None:
    """The rescue completions of b are cut at the limit."""
    from core_hpc.phases.update import training_rows
    from core_hpc.store.paths import TaskKey
    from core_hpc.store.schema import UPDATE
    from tests.unit.phases import test_traps
    from tests.unit.phases.test_lessons import cut

    monkeypatch.setattr(test_traps, "rollout_rows", cut(RESCUE))
    run = test_traps.scored_run(tmp_path, truncated=truncated)
    rows = training_rows(test_traps.context(run, TaskKey(1, UPDATE, "b")))
    assert {row.weight for row in rows} == weights
    assert all((row.weight == 0) == (row.rescue and truncated == "mask") for row in rows)
    assert any(row.rescue and row.advantage != 0 for row in rows)


SAMPLED = Row(
    key=("p", 0),
    problem_id="p",
    prompt_token_ids=[5, 6, 7],
    completion_token_ids=[8, 9],
    behaviour_logprobs=[-0.5, -0.7],
    advantage=1.0,
    weight=1.0,
)
SHARED = replace(
    SAMPLED,
    key=("p", 1),
    completion_token_ids=[9, 4, 3],
    behaviour_logprobs=None,
    advantage=2.0,
    weight=0.2,
    rescue=True,
    objective="likelihood",
    lesson="taught",
)


@pytest.mark.parametrize("kind", ["token_truncate", "sequence_mask", "geometric_truncate", "none"])
def test_a_shared_completion_has_no_importance_correction_and_changes_no_other(kind: Any) -> None:
    settings = ImportanceSection(kind=kind)
    (plan,) = plan_steps([SAMPLED, SHARED], problems_per_step=1, seed=0, num_ranks=1, max_tokens=100, layout="tree")
    batch = collate([SAMPLED, SHARED], plan.micro_batches[0][0].rows, "tree")
    old = torch.tensor([-0.6, -0.9, -2.0, -3.0, -1.0])
    weights = importance_weights(old, batch.behaviour_M, batch.row_M, batch.lengths_N, settings)
    alone = importance_weights(old[:2], torch.tensor([-0.5, -0.7]), torch.tensor([0, 0]), torch.tensor([2]), settings)
    assert torch.equal(weights, torch.cat([alone, torch.ones(3)]))


@pytest.mark.parametrize("learned", [0.0, 1.5])
def test_the_gradient_of_a_shared_completion_is_that_of_its_likelihood(learned: float) -> None:
    """The slope of the loss at a token is -A w / (completions x tokens).

    It stays so when the text has become more probable by e^1.5 per token, where a ratio is clipped.
    """
    settings = UpdateSection(loss="grpo", kl_weight=0.0)
    rows = [SAMPLED, SHARED]
    (plan,) = plan_steps(
        rows, problems_per_step=1, seed=0, num_ranks=1, max_tokens=100, layout="tree", with_zero_signal=False
    )
    batch = collate(rows, plan.micro_batches[0][0].rows, "tree")
    old = torch.tensor([-0.5, -0.7, -2.0, -3.0, -1.0])
    current = (old + torch.tensor([0.0, 0.0, learned, learned, learned])).requires_grad_()
    tokens = TokenBatch(
        old_M=old,
        reference_M=None,
        row_M=batch.row_M,
        lengths_N=batch.lengths_N,
        advantage_N=batch.advantage_N,
        weight_N=batch.weight_N,
        rescue_N=batch.rescue_N,
        objective_N=batch.objective_N,
        importance_M=importance_weights(old, batch.behaviour_M, batch.row_M, batch.lengths_N, settings.importance),
    )
    terms = objective(current, tokens, settings, StepSize(2, 5, 8))
    terms.loss.backward()
    assert current.grad is not None
    assert current.grad.tolist() == pytest.approx([-1.0 / (2 * 2)] * 2 + [-2.0 * 0.2 / (2 * 3)] * 3)

    totals = StepTotals(plan, rows, torch.device("cpu"))
    totals.add(batch, tokens, terms, torch.zeros(5))
    means = totals.means(with_kl=False)
    # The mismatch is measured only for completions that the model sampled.
    assert (means["mismatch_mean"], means["mismatch_max"]) == (pytest.approx(0.0), pytest.approx(0.0))
    assert rows_digest(rows) != rows_digest([SAMPLED])


@pytest.mark.parametrize("change", [{"rescue_samples": 0}, {"hint_probability": 0}])
def test_sharing_without_rescues_is_a_configuration_error(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "s.yaml"
    sweep = {
        "name": "s",
        "iterations": 1,
        "team": [{"name": n, "model": "x"} for n in "ab"],
        "update": {"share_rescues": 0.2},
        "problems": {split: {"source": "generated", "count": 40} for split in ("train", "evaluation")},
        "protocol": {},
    }
    path.write_text(yaml.safe_dump(sweep))
    assert load_sweep(path).runs[0].config.update.share_rescues == 0.2
    path.write_text(yaml.safe_dump({**sweep, "protocol": change}))
    with pytest.raises(InputError, match=r"update\.share_rescues"):
        load_sweep(path)
