"""Warm-ups through the real task graph: two runs share them, and a killed one continues.

The published weights are compared with a plain training loop of torch.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl
import pytest

from core_hpc.common.errors import StoppedError
from core_hpc.common.seeds import stable_seed
from core_hpc.config.update import UpdateSection
from core_hpc.models.prompts import PromptBuilder
from core_hpc.models.resolve import resolve_model
from core_hpc.phases import warmup
from core_hpc.phases.context import TaskContext, Warm
from core_hpc.runs.folder import list_runs
from core_hpc.runs.sweep import load_sweep
from core_hpc.store import manifests, shards
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import EVALUATE, PHASES, PROBLEMS, ROLLOUTS, STEPS, UPDATE, WARMUP
from core_hpc.training.learning_rate import learning_rate
from tests.support.cluster import free_ports
from tests.support.created_run import create_run
from tests.support.harness import ROOT, launch, leftovers
from tests.support.ranks import weights
from tests.support.tiny import tiny_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SAMPLING = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0}
RATE, DECAY, PER_STEP = 0.01, 0.1, 8
SOURCE = {"source": "generated", "task": "skills", "options": {"num_digits": 1}}
WARM: dict[str, Any] = {
    "problems": {**SOURCE, "count": 24},
    "hinted": [{**SOURCE, "count": 8, "seed": 1}],
    "examples_per_step": PER_STEP,
    "learning_rate": RATE,
    "weight_decay": DECAY,
    "seed": 5,
}


@pytest.fixture(scope="module")
def runs(tiny_models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("warmup")
    team = [
        {"name": "m0", "model": str(tiny_models[0]), "engine": "transformers", "tuning": "full", "warmup": WARM},
        {
            "name": "m1",
            "model": str(tiny_models[1]),
            "engine": "transformers",
            "lora": {"rank": 2},
            "warmup": {**WARM, "tuning": "lora"},
        },
    ]
    protocol = {"problems_per_iteration": 2, "cold_samples": 2, "rescue_samples": 0, "sampling": SAMPLING}
    sweep = tiny_sweep(
        folder / "tiny.yaml",
        [],
        folder / "out",
        team=team,
        iterations=1,
        protocol=protocol,
        evaluation={"samples": 1, "sampling": SAMPLING},
        update={"problems_per_step": 1, "learning_rate": 0.02, "checkpoint_min": 1e-9},
        runs=[{"label": "a"}, {"label": "b", "update.group": "model"}],
    )
    fault = f"kill warmup.step@{TaskKey(0, WARMUP, 'm0')} step 3:{folder / 'marker'}"
    done = launch(sweep, env={"CORE_HPC_FAULT": fault})
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "marker").exists()
    return list_runs(folder / "out" / "tiny")


def test_a_request_to_one_rank_ends_the_wait_of_all_for_another_run(tiny_models: list[Path], tmp_path: Path) -> None:
    ranks = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1))}
    env = {**os.environ, **ranks, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(tiny_models[0]), str(tmp_path / rank)],
            env={**env, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        found = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert all("stopped on request while another run made it" in output for output in found), found


def _wait_as_rank(model: Path, folder: Path) -> None:
    """One of two ranks of a warm-up that another run makes. Only rank 1 is asked to stop."""
    team = [{"name": "m0", "model": str(model), "engine": "transformers", "warmup": WARM}]
    folder.mkdir()
    run = create_run(load_sweep(tiny_sweep(folder / "tiny.yaml", [], folder / "out", team=team)))
    facts = {"m0": replace(run.facts["m0"], fingerprint=resolve_model(str(model)).fingerprint)}
    context = TaskContext(
        run=replace(run, facts=facts),
        key=TaskKey(0, WARMUP, "m0"),
        warm=Warm(),
        should_stop=lambda: os.environ["RANK"] == "1",
    )
    with patch("fcntl.flock", side_effect=BlockingIOError):
        try:
            warmup.run(context)
        except StoppedError as error:
            print(error)


def manifest_of(run: Path, model: str) -> manifests.Manifest:
    return manifests.read_manifest(RunPaths(run).task_manifest(TaskKey(0, WARMUP, model)))


def folder_of(run: Path, model: str) -> Path:
    return manifest_of(run, model).file("steps.parquet").parent


def problems_of(run: Path, model: str) -> pl.DataFrame:
    manifest = manifests.read_manifest(run / "problems" / f"warmup-{model}.manifest.json")
    return shards.read_manifest_table(manifest, PROBLEMS)


def test_two_runs_share_one_computation_of_each_warm_up(runs: list[Path]) -> None:
    assert len(runs) == 2
    for model in ("m0", "m1"):
        folders = [folder_of(run, model) for run in runs]
        assert (folders[0] / "model.safetensors").samefile(folders[1] / "model.safetensors")
        assert sorted(manifest_of(run, model).stats["is_shared"] for run in runs) == [False, True]
        assert len(list(runs[0].parents[1].glob(f".warmups/{model}-*/model.manifest.json"))) == 1
    for run in runs:
        assert leftovers(run, PHASES) == []
        assert not (run / "checkpoint").exists() or not list((run / "checkpoint").rglob("*.json"))


def plain_training(base: Path, problems: pl.DataFrame) -> tuple[Any, list[float]]:
    """The model after the same steps in plain torch, one example at a time, and the loss of every step."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base).eval()
    instruction = "Solve the problem step by step. End with a line that has '#### ' and the final number only."
    examples = {}
    for row in problems.iter_rows(named=True):
        metadata = json.loads(row["metadata"])
        hint = metadata["solution"].partition(" ####")[0] if metadata.get("hinted") else None
        prompt = PromptBuilder(tokenizer, "plain", instruction, EXAMPLES).build(row["question"], hint)
        text = tokenizer(f" {metadata['solution']}\nQuestion:", add_special_tokens=False)["input_ids"]
        examples[f"{row['problem_id']}-0"] = (list(prompt), text)
    order = list(examples)
    random.Random(stable_seed(5, WARMUP, "shuffle")).shuffle(order)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    losses, num_steps = [], len(order) // PER_STEP
    for step in range(num_steps):
        chosen = [examples[name] for name in order[step * PER_STEP : (step + 1) * PER_STEP]]
        num_tokens = sum(len(text) for _, text in chosen)
        optimizer.zero_grad()
        total = 0.0
        for prompt, text in chosen:
            logits = model(torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(text), reduction="sum") / num_tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        settings = UpdateSection(learning_rate=RATE)
        optimizer.param_groups[0]["lr"] = learning_rate(settings, steps_done=step, total_steps=num_steps)
        optimizer.step()
        losses.append(total)
    return model, losses


EXAMPLES: tuple[tuple[str, str], ...] = ()
"""The worked examples of every prompt; set from the run."""


def test_the_weights_are_those_of_a_plain_training_loop(
    runs: list[Path], tiny_models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = manifests.read_manifest(runs[0] / "problems" / "examples.manifest.json")
    examples = shards.read_manifest_table(shown, PROBLEMS)
    pairs = [(q, json.loads(m)["solution"]) for q, m in examples.select("question", "metadata").rows()]
    monkeypatch.setattr(f"{__name__}.EXAMPLES", tuple(pairs))
    model, losses = plain_training(tiny_models[0], problems_of(runs[0], "m0"))
    found = weights(folder_of(runs[0], "m0"), "model.safetensors")
    expected = dict(model.named_parameters())
    for name, tensor in found.items():
        assert (tensor - expected[name]).abs().max() < 2e-4, name
    steps = shards.read_manifest_table(manifest_of(runs[0], "m0"), STEPS, columns=["loss", "step"])
    assert steps["loss"].to_list() == pytest.approx(losses, abs=1e-4)
    assert losses[-1] < losses[0] - 0.5


def test_an_adapter_is_merged_into_its_layers_and_into_nothing_else(runs: list[Path], tiny_models: list[Path]) -> None:
    import torch

    base = weights(tiny_models[1], "model.safetensors")
    found = weights(folder_of(runs[0], "m1"), "model.safetensors")
    assert found.keys() == base.keys()
    for name, tensor in base.items():
        difference = found[name] - tensor
        if name.endswith("_proj.weight"):
            assert torch.linalg.matrix_rank(difference.double(), rtol=1e-4) == 2, name
        else:
            assert not difference.any(), name
    losses = shards.read_manifest_table(manifest_of(runs[0], "m1"), STEPS, columns=["loss"])["loss"]
    assert losses[-1] < losses[0]


def test_engine_and_update_begin_with_the_warm_up(runs: list[Path]) -> None:
    """The first completions have the probabilities of the published model; an adapter names it as its base."""
    import torch
    from transformers import AutoModelForCausalLM

    run = runs[0]
    rows = shards.read_rows(run, ROLLOUTS, phases=[EVALUATE]).filter(iteration=0)
    for name in ("m0", "m1"):
        model = AutoModelForCausalLM.from_pretrained(folder_of(run, name)).eval()
        for row in rows.filter(pl.col("model") == name, pl.col("num_completion_tokens") > 0).head(3).to_dicts():
            prompt, completion = row["prompt_token_ids"], row["completion_token_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1)[torch.arange(len(completion)), completion]
            assert row["logprobs"] == pytest.approx(expected.tolist(), abs=1e-3)
    updated = manifests.read_manifest(RunPaths(run).task_manifest(TaskKey(1, UPDATE, "m1")))
    config = json.loads(updated.file("adapter_config.json").read_text())
    assert run / config["base_model_name_or_path"] == folder_of(run, "m1")


def test_held_out_problems_are_not_in_a_warm_up(runs: list[Path]) -> None:
    warm = problems_of(runs[0], "m0")
    assert warm.height == 32
    assert sum(json.loads(m).get("hinted", False) for m in warm["metadata"]) == 8


def test_a_killed_warm_up_continued_from_its_checkpoint(runs: list[Path]) -> None:
    assert {manifest_of(run, "m0").stats["resumed_from_step"] for run in runs} == {2}


if __name__ == "__main__":
    _wait_as_rank(Path(sys.argv[1]), Path(sys.argv[2]))
