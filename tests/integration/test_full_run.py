"""Two iterations of a model with `tuning: full` and the local driver; one update is killed once.

`test_export.py` has a run with such a model and one with adapters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core_hpc.store import manifests, shards
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import COLD, EVALUATE, PHASES, ROLLOUTS, STEPS, UPDATE
from tests.support.harness import leftovers
from tests.support.ranks import weights

pytestmark = pytest.mark.slow


@pytest.fixture
def run(shared_runs: dict[str, Path]) -> Path:
    return shared_runs["full"]


def folder_of(run: Path, iteration: int) -> Path:
    path = RunPaths(run).task_manifest(TaskKey(iteration, UPDATE, "m0"))
    return manifests.read_manifest(path).file("trainer_state.json").parent


def test_each_iteration_publishes_a_model_and_continues_from_the_last_one(run: Path, tiny_models: list[Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    first, second = (weights(folder_of(run, i), "model.safetensors") for i in (1, 2))
    base = weights(tiny_models[0], "model.safetensors")
    assert base.keys() == first.keys() == second.keys()
    for before, after in ((base, first), (first, second)):
        assert all(float((after[n] - before[n]).abs().max()) > 1e-3 for n in base)
    num_weights = sum(t.numel() for t in base.values())
    token_ids = AutoTokenizer.from_pretrained(tiny_models[0])("2 + 3")
    for i in (1, 2):
        assert AutoModelForCausalLM.from_pretrained(folder_of(run, i)).num_parameters() == num_weights
        assert AutoTokenizer.from_pretrained(folder_of(run, i))("2 + 3") == token_ids
    assert json.loads((folder_of(run, 2) / "trainer_state.json").read_text())["steps_done"] == 4
    steps = shards.read_rows(run, STEPS, phases=[UPDATE]).filter(model="m0").sort("global_step")
    assert steps["global_step"].to_list() == [1, 2, 3, 4]
    assert steps["kl"][0] == 0.0
    assert steps["kl"][2] > 0.0


def test_a_killed_update_continued_from_its_checkpoint(run: Path) -> None:
    stats = manifests.read_manifest(RunPaths(run).task_manifest(TaskKey(2, UPDATE, "m0"))).stats
    assert stats["resumed_from_step"] == 1
    assert leftovers(run, PHASES) == []


def test_the_engine_samples_with_the_weights_of_its_iteration(run: Path, tiny_models: list[Path]) -> None:
    """Its log-probabilities are those of a forward pass with the published model, and no other."""
    import torch
    from transformers import AutoModelForCausalLM

    folders = [tiny_models[0], folder_of(run, 1), folder_of(run, 2)]
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in folders]

    def log_probs(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1)[torch.arange(len(completion)), completion]

    rows = shards.read_rows(run, ROLLOUTS, phases=[COLD, EVALUATE])
    rows = rows.filter(pl.col("model") == "m0", pl.col("num_completion_tokens") > 0)
    assert set(rows["adapter_iteration"]) == {0, 1, 2}
    for (iteration,), part in rows.group_by("adapter_iteration"):
        for row in part.head(3).iter_rows(named=True):
            found = [log_probs(model, row["prompt_token_ids"], row["completion_token_ids"]) for model in models]
            errors = [float((logprobs - torch.tensor(row["logprobs"])).abs().max()) for logprobs in found]
            assert errors[iteration] < 1e-4
            assert all(error > 1e-2 for i, error in enumerate(errors) if i != iteration)
