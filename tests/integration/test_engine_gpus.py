"""A vLLM engine whose layers are divided among two processes (`cluster.engine_gpus`), on a CPU.

Its log-probabilities are compared with those of an engine in one process, and with forward passes
of plain transformers and PEFT. Each engine runs in its own process, which runs this file as a
script.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import psutil
import pytest

from core_hpc.engines import (
    AdapterRef,
    EngineSpec,
    GenerationRequest,
    SamplingSettings,
    create_engine,
    worker_environment,
)
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths, TaskKey
from tests.support.harness import ROOT, launch, the_run, wait_for
from tests.support.tiny import make_tiny_model, tiny_vllm_sweep

pytestmark = [pytest.mark.slow, pytest.mark.full(reason="an engine on several GPUs (cluster.engine_gpus)")]
PROMPTS = ([5, 6, 7, 8], [40, 41, 42, 43, 44, 45, 46], list(range(100, 140)), list(range(60, 90)))
TEMPERATURE = 0.7
TOLERANCE = 1e-3


def _complete(folder: Path, num_gpus: int) -> None:
    """The process of an engine. It ends without closing the engine, as a worker does."""
    spec = EngineSpec(
        kind="vllm", model_folder=folder / "model", max_context_tokens=128, kv_cache_gb=0.1, num_gpus=num_gpus
    )
    engine: Any = create_engine(spec)
    requests = [GenerationRequest(tuple(prompt), seed) for seed, prompt in enumerate(PROMPTS)]
    adapter = AdapterRef(folder / "adapter", "adapter")
    out: dict[str, Any] = {}
    for name, used in (("base", None), ("adapter", adapter), ("base_again", None)):
        done = engine.generate(requests, SamplingSettings(TEMPERATURE, 1.0, 12), adapter=used)
        out[name] = [[c.token_ids, c.logprobs] for c in done]
    if num_gpus > 1:
        out["replaces_functions"] = engine._llm.collective_rpc("replaces_functions")
    out["processes"] = [process.pid for process in multiprocessing.active_children()]
    (folder / f"{num_gpus}.json").write_text(json.dumps(out))
    os._exit(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a model, an adapter whose effect is large, and the reports of both engines."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("engine_gpus")
    make_tiny_model(folder / "model", hidden=256)
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    )
    torch.manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.15)
    adapted.save_pretrained(folder / "adapter")
    for num_gpus in (1, 2):
        environment = os.environ | worker_environment("vllm", 2) | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, __file__, str(folder), str(num_gpus)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def report(folder: Path, num_gpus: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{num_gpus}.json").read_text())
    return found


def expected(model: Any, prompt: list[int], completion: list[int]) -> list[float]:
    """Log-probabilities of a completion by plain transformers or PEFT."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
    found: list[float] = logits.log_softmax(-1)[range(len(completion)), completion].tolist()
    return found


@pytest.mark.parametrize("name", ["base", "adapter", "base_again"])
def test_two_processes_sample_as_one_and_as_the_model(folder: Path, name: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    if name == "adapter":
        model = PeftModel.from_pretrained(model, str(folder / "adapter")).eval()
    one, two = report(folder, 1)[name], report(folder, 2)[name]
    assert [ids for ids, _ in two] == [ids for ids, _ in one]
    for prompt, (ids, of_two), (_, of_one) in zip(PROMPTS, two, one, strict=True):
        assert of_two == pytest.approx(of_one, abs=TOLERANCE)
        assert of_two == pytest.approx(expected(model, prompt, ids), abs=TOLERANCE)


def test_the_adapter_changes_the_completions(folder: Path) -> None:
    """Otherwise the comparison with an adapter would compare base weights."""
    found = report(folder, 2)
    assert [ids for ids, _ in found["adapter"]] != [ids for ids, _ in found["base"]]
    assert found["base_again"] == found["base"]


def test_every_process_of_the_engine_is_changed_and_ends_with_its_worker(folder: Path) -> None:
    assert report(folder, 1)["processes"] == []
    found = report(folder, 2)
    assert found["replaces_functions"] == [True, True]
    assert len(found["processes"]) == 2
    wait_for(lambda: not running(found["processes"]), "the processes of the engine to end", timeout_s=10)


def test_a_run_with_engines_on_two_processes(tmp_path: Path) -> None:
    """Workers of the driver local start such an engine, and their trainers agree with it."""
    model = make_tiny_model(tmp_path / "model", hidden=256)
    sweep = tiny_vllm_sweep(
        tmp_path / "tiny.yaml",
        model,
        tmp_path / "out",
        samples=2,
        update={"max_mismatch": TOLERANCE},
        cluster={"threads": 2, "engine_gpus": 2},
    )
    done = launch(sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    paths = RunPaths(the_run(tmp_path / "out" / "tiny"))
    # The second update compares the engine, which had the first adapter, with the trainer.
    assert manifests.read_manifest(paths.task_manifest(TaskKey(2, "update", "m0"))).stats["num_gpus"] == 0
    log = next(paths.logs.glob("generate-m0-*.log")).read_text()
    pids = {int(pid) for pid in re.findall(r"VllmWorker-[01] pid=(\d+)", log)}
    assert len(pids) == 2, log[-3000:]
    wait_for(lambda: not running(pids), "the processes of the engine to end", timeout_s=10)


def running(pids: Collection[int]) -> list[int]:
    """Those of the processes that have not ended. An ended one may wait for its parent to notice."""
    return [p.pid for p in psutil.process_iter() if p.pid in pids and p.status() != psutil.STATUS_ZOMBIE]


if __name__ == "__main__":
    _complete(Path(sys.argv[1]), int(sys.argv[2]))
