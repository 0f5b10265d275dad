"""vLLM loads what `tuning: full` publishes, and samples with the trained weights.

The update is that of a run with the fake engine. vLLM runs in its own process, which runs this file
as a script. Its log-probabilities are compared with a forward pass of plain transformers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core_hpc.engines import EngineSpec, GenerationRequest, SamplingSettings, create_engine, worker_environment
from core_hpc.store import manifests
from core_hpc.store.paths import EARLIER_OPTIMIZER_STATE, OPTIMIZER_STATE, RunPaths, TaskKey
from tests.support.harness import ROOT, launch, the_run
from tests.support.tiny import make_tiny_model, tiny_sweep

pytestmark = [pytest.mark.slow, pytest.mark.full(reason="test_export.py loads a model of `tuning: full` in vLLM")]
PROMPTS = ([5, 6, 7, 8], [40, 41, 42, 43, 44, 45, 46], list(range(100, 140)))


def _complete(folder: Path, out_file: Path) -> None:
    """The process of vLLM."""
    spec = EngineSpec(kind="vllm", model_folder=folder, max_context_tokens=128, lora=None, kv_cache_gb=0.25)
    engine = create_engine(spec)
    requests = [GenerationRequest(tuple(prompt), seed) for seed, prompt in enumerate(PROMPTS)]
    done = engine.generate(requests, SamplingSettings(1.0, 1.0, 12), adapter=None)
    engine.close()
    out_file.write_text(json.dumps([[c.token_ids, c.logprobs] for c in done]))


def start(folder: Path, out_file: Path) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, str(folder), str(out_file)]
    env = os.environ | worker_environment("vllm", 1) | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a model and of its second update, which continued from the first one."""
    folder = tmp_path_factory.mktemp("full_vllm")
    model = make_tiny_model(folder / "model", hidden=256)
    sweep = tiny_sweep(
        folder / "tiny.yaml",
        [model],
        folder / "out",
        team=[{"name": "m0", "model": str(model), "engine": "fake", "tuning": "full"}],
        protocol={
            "problems_per_iteration": 4,
            "cold_samples": 3,
            "rescue_samples": 0,
            "sampling": {"max_new_tokens": 48, "temperature": 1.0, "top_p": 1.0},
        },
    )
    done = launch(sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    paths = RunPaths(the_run(folder / "out" / "tiny"))
    manifest = manifests.read_manifest(paths.task_manifest(TaskKey(2, "update", "m0")))
    manifests.check_files(manifest, checksum=True)
    return model, manifest.folder


def expected(folder: Path, prompt: list[int], completion: list[int]) -> list[float]:
    """Log-probabilities of a completion by plain transformers."""
    import torch
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    found: list[float] = logits.log_softmax(-1)[range(len(completion)), completion].tolist()
    return found


def test_vllm_samples_with_the_published_weights(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Also from a folder of an earlier version, with the optimizer state beside the weights."""
    (base, update), earlier = folders, tmp_path / "earlier"
    shutil.copytree(update, earlier)
    (earlier / OPTIMIZER_STATE).rename(earlier / EARLIER_OPTIMIZER_STATE)
    started = {folder: start(folder, tmp_path / f"{i}.json") for i, folder in enumerate((update, earlier))}
    for i, (folder, process) in enumerate(started.items()):
        log = process.communicate(timeout=300)[0]
        assert process.returncode == 0, f"{folder}: {log[-6000:]}"
        for prompt, (tokens, logprobs) in zip(PROMPTS, json.loads((tmp_path / f"{i}.json").read_text()), strict=True):
            assert logprobs == pytest.approx(expected(update, prompt, tokens), abs=1e-3)
            assert logprobs != pytest.approx(expected(base, prompt, tokens), abs=1e-2)


if __name__ == "__main__":
    _complete(Path(sys.argv[1]), Path(sys.argv[2]))
