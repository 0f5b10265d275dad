"""`tuning: full` on one and two real ranks: against plain torch, resume, the published folder."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from core_hpc.store.paths import OPTIMIZER_STATE
from tests.support.ranks import (
    largest_difference,
    log_probs,
    make_rows,
    plain_updates,
    reports,
    seed_and_order,
    weights,
)

pytestmark = pytest.mark.slow
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def runs(updates_on_ranks: Path) -> dict[str, Any]:
    """The launches on a model with tied embeddings; `half_one` has bfloat16 weights.

    `full_later` only resumes, in a process of its own.
    """
    folder = updates_on_ranks / "full"
    ranks = {"full_one": 1, "full_two": 2, "half_one": 1}
    found = {name: reports(folder, name, num_ranks) for name, num_ranks in ranks.items()}
    return {"folder": folder, "order": seed_and_order()[1], **found}


def load(folder: Path, **options: Any) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def masters(folder: Path) -> dict[str, torch.Tensor]:
    tensors = weights(folder, OPTIMIZER_STATE)
    return {name.removeprefix("weight:"): t for name, t in tensors.items() if name.startswith("weight:")}


def plain_torch(runs: dict[str, Any], dtype: torch.dtype) -> list[tuple[Any, list[dict[str, float]]]]:
    """Copies of the model after each of the two tasks, with the metrics of their steps."""
    model = load(runs["folder"] / "model", dtype=dtype).eval()
    base = copy.deepcopy(model)

    def reference(row: dict[str, Any]) -> torch.Tensor:
        return log_probs(base, row)

    return [(copy.deepcopy(model), metrics) for metrics in plain_updates(model, reference, runs["order"])]


def test_equals_plain_adamw_on_one_and_two_ranks(runs: dict[str, Any]) -> None:
    """Every weight moves as in a loop over rows, with several micro-batches and an empty rank."""
    base = load(runs["folder"] / "model", dtype=torch.float32)
    expected = plain_torch(runs, torch.float32)
    assert any(0 in ranks for ranks in runs["full_two"][0]["both"]["micro_batches"])
    for name in ("full_one", "full_two"):
        for number, (model, metrics) in enumerate(expected, start=1):
            found = masters(runs["folder"] / f"{name}.{number}")
            wanted = {n: p.detach() for n, p in model.named_parameters()}
            assert largest_difference(found, wanted) < 5e-5
            for parameter, before in base.named_parameters():
                assert float((found[parameter] - before.detach()).abs().max()) > 1e-3, parameter
            for step, plain in zip(runs[name][0]["both"]["steps"][number - 1], metrics, strict=True):
                assert {k: step[k] for k in plain} == pytest.approx(plain, rel=1e-3, abs=1e-6)
                assert step["grad_norm"] > 0.05
    assert runs["full_two"][0]["both"]["steps"] == runs["full_two"][1]["both"]["steps"]


def test_gradients_and_moments_have_a_place_in_the_plan_of_the_memory(runs: dict[str, Any]) -> None:
    """DeepSpeed makes the moments of a fresh optimizer in the first step, and gradients are whole on every rank."""
    num_bytes = sum(t.nbytes for t in masters(runs["folder"] / "full_one.1").values())
    for name, num_ranks in (("full_one", 1), ("full_two", 2)):
        for rank in runs[name]:
            for task in rank["memory"]:
                assert task["held"] == task["planned"] == pytest.approx(num_bytes * (1 + 2 / num_ranks), rel=0.01)


def test_kl_is_to_the_base_weights(runs: dict[str, Any]) -> None:
    for name in ("full_one", "full_two", "half_one"):
        first, second = runs[name][0]["both"]["steps"]
        assert (first[0]["kl"], first[0]["ratio_max"], second[0]["ratio_max"]) == (0.0, 1.0, 1.0)
        assert second[0]["kl"] > 0.0


def test_published_folder_is_an_ordinary_model_with_the_trainers_logits(runs: dict[str, Any]) -> None:
    for name, tolerance in (("full_one", 1e-5), ("full_two", 1e-5), ("half_one", 5e-3)):
        folder = runs["folder"] / f"{name}.2"
        assert {p.name for p in folder.iterdir()} == {
            "config.json",
            "generation_config.json",
            "chat_template.jinja",
            "model.safetensors",
            "optimizer",
            "trainer_state.json",
        }
        assert all(p.stat().st_mode & 0o044 == 0o044 for p in folder.rglob("*"))
        assert EMBEDDING in weights(folder, "model.safetensors")
        assert HEAD not in weights(folder, "model.safetensors")
        model = load(folder).eval()
        assert model.dtype == (torch.bfloat16 if name == "half_one" else torch.float32)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        for index, found in runs[name][0]["both"]["logp"].items():
            with torch.no_grad():
                assert found == pytest.approx(log_probs(model, make_rows(2)[int(index)]).tolist(), abs=tolerance)


def test_bfloat16_models_train_by_float32_masters(runs: dict[str, Any]) -> None:
    """The published weights are the rounded masters (gradients: `test_full_policy.py`)."""
    for number, (_, metrics) in enumerate(plain_torch(runs, torch.bfloat16), start=1):
        folder = runs["folder"] / f"half_one.{number}"
        found, published = masters(folder), weights(folder, "model.safetensors")
        assert all(t.dtype == torch.float32 for t in found.values())
        assert all(torch.equal(published[n], t.to(torch.bfloat16)) for n, t in found.items())
        assert any(not torch.equal(published[n].float(), t) for n, t in found.items())
        for step, other in zip(runs["half_one"][0]["both"]["steps"][number - 1], metrics, strict=True):
            # Rows are batched, hence rounded, in another way.
            assert step["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.1)


def test_resume_is_exact(runs: dict[str, Any]) -> None:
    """From a published folder in a fresh process, and from a checkpoint between two steps.

    With another number of ranks the results are close.
    """
    folder = runs["folder"]
    for file in ("model.safetensors", OPTIMIZER_STATE):
        assert (folder / "full_one.2" / file).read_bytes() == (folder / "full_later.2" / file).read_bytes()
        for name in ("full_one", "full_two", "half_one"):
            for attempt in ("resumed", "damaged", "fresh"):
                assert (folder / f"{name}.{attempt}" / file).read_bytes() == (folder / f"{name}.2" / file).read_bytes()
        tensors = [weights(folder / f"full_two.{kind}", file) for kind in ("by_full_later", "2")]
        assert largest_difference(*tensors) < 5e-5
    for name in ("full_one", "full_two", "half_one"):
        seen = runs[name][0]["interrupted"]
        assert seen["stopped"]["stopped"] == "update: stopped on request after 1 of 3 optimizer steps"
        assert [seen[attempt]["from"] for attempt in ("resumed", "damaged", "foreign")] == [1, 1, 0]
        assert seen["resumed"]["steps"] == runs[name][0]["both"]["steps"][1]
    state = json.loads((folder / "full_one.2" / "trainer_state.json").read_text())
    assert (state["lora"], state["steps_done"]) == (None, 6)
