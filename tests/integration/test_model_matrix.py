"""Each architecture x {lora, full} x {vllm, transformers}: sample, update, sample with the new weights.

The models are tiny and random, in float32. Each engine runs in a process of its own, which runs
this file as a script; so do the updates, which use the real trainer with DeepSpeed. Log-probabilities
of the engines are compared with those of plain transformers (and PEFT), not with the trainer's own
code; the trainer compares them as well and stops above its limit. The usual run has the
architectures of the paper that are hardest to load, and --full has all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from core_hpc.config.model import LoraSection
from core_hpc.engines import (
    AdapterRef,
    EngineSpec,
    GenerationRequest,
    SamplingSettings,
    create_engine,
    worker_environment,
)
from tests.support.architectures import (
    make_tiny_gemma3,
    make_tiny_llama,
    make_tiny_mistral3,
    make_tiny_phi3,
    make_tiny_qwen2,
    make_tiny_qwen3,
    write_torchvision_stub,
)
from tests.support.cluster import free_ports
from tests.support.harness import ROOT

pytestmark = pytest.mark.slow
MODELS = {
    "qwen2": make_tiny_qwen2,
    "qwen3": make_tiny_qwen3,
    "phi3": make_tiny_phi3,
    "mistral3": make_tiny_mistral3,
    "gemma3": make_tiny_gemma3,
    "llama": make_tiny_llama,
}
KINDS = ("vllm", "transformers")
TUNINGS = ("lora", "full")
HARDEST = ("phi3", "mistral3")
"""Joined projections and a longrope; a language model inside an image model, in Mistral's format."""
_OTHER = pytest.mark.full(reason="the usual run has the architectures phi3 and mistral3")


def _case(model: str, *rest: str) -> Any:
    return pytest.param(model, *rest, marks=() if model in HARDEST else _OTHER)


ALL_MODELS = tuple(_case(m) for m in MODELS)
CASES = tuple(_case(m, t, k) for m in MODELS for t in TUNINGS for k in KINDS)
CONTEXT = 160
"""Above the original length of the tiny Phi and Ministral, so that their long factors are used."""
NUM_NEW = 12
TOLERANCE = 1e-3
TOP_P = 0.8
PROMPTS = [[2 + (7 * i + 3 * k * k + n) % 200 for k in range(n)] for i, n in enumerate((5, 23, 50, 100))]


# --- the processes --------------------------------------------------------------------------------


def _engines(kind: str, root: Path, models: Sequence[str]) -> None:
    """Sample with the base weights, wait for the updates, and sample with the new weights.

    A process of vLLM can have only one engine at a time.
    """
    out: dict[str, Any] = {}

    def sample(name: str, folder: Path, *, adapter: Path | None = None, rank: int | None = 4) -> None:
        engine = create_engine(
            EngineSpec(
                kind=kind,  # type: ignore[arg-type]
                model_folder=folder,
                max_context_tokens=CONTEXT,
                kv_cache_gb=0.05,
                lora=LoraSection(rank=rank) if rank is not None else None,
            )
        )
        requests = [GenerationRequest(tuple(p), i) for i, p in enumerate(PROMPTS)]
        used = AdapterRef(adapter, name) if adapter is not None else None
        for top_p in (1.0, TOP_P):
            done = engine.generate(requests, SamplingSettings(1.0, top_p, NUM_NEW), adapter=used)
            out[name if top_p == 1 else f"{name} top-p"] = [[c.token_ids, c.logprobs] for c in done]
        engine.close()

    for model in models:
        sample(model, root / model)
    (root / f"{kind}.json").write_text(json.dumps(out))
    print("sampled", flush=True)
    sys.stdin.readline()
    for model in models:
        sample(f"{model} lora", root / model, adapter=root / f"{model}-lora-{kind}")
        sample(f"{model} full", root / f"{model}-full-{kind}", rank=None)
    (root / f"{kind}.json").write_text(json.dumps(out))


def _updates(root: Path, models: Sequence[str]) -> None:
    """Update every model with the completions of every engine."""
    from core_hpc.config.update import UpdateSection
    from core_hpc.training.batching import Row
    from core_hpc.training.task import TrainerSettings, UpdateTask
    from core_hpc.training.trainer import Trainer

    sampled = {kind: json.loads((root / f"{kind}.json").read_text()) for kind in KINDS}
    out = {}
    for model, tuning in ((m, t) for m in models for t in TUNINGS):
        lora = LoraSection(rank=4) if tuning == "lora" else None
        trainer = Trainer(
            TrainerSettings(model_folder=root / model, model_name=model, lora=lora, context_tokens=CONTEXT)
        )
        for kind in KINDS:
            rows = [
                Row(
                    key=(i,),
                    problem_id=f"p{i // 2}",
                    prompt_token_ids=PROMPTS[i],
                    completion_token_ids=ids,
                    behaviour_logprobs=logprobs,
                    advantage=(1.0, -1.0)[i % 2],
                    weight=1.0,
                )
                for i, (ids, logprobs) in enumerate(sampled[kind][model])
            ]
            task = UpdateTask(
                rows=rows,
                settings=UpdateSection(learning_rate=0.05 if lora else 0.01, problems_per_step=1, warmup_share=0),
                temperature=1.0,
                max_new_tokens=NUM_NEW,
                total_steps=2,
                shuffle_seed=1,
                lora_seed=2,
                previous=None,
                max_mismatch=0.02,
            )
            folder = root / f"{model}-{tuning}-{kind}"
            folder.mkdir()
            out[f"{model} {tuning} {kind}"] = trainer.update(task, folder).steps.to_dicts()
        trainer.close()
    (root / "updates.json").write_text(json.dumps(out))


# --- the tests -------------------------------------------------------------------------------------


class Matrix:
    """The completions of all engines, the published updates, and models of plain transformers."""

    def __init__(self, root: Path, models: Sequence[str]) -> None:
        self.root = root
        self.models = models
        for model in models:
            MODELS[model](root / model)
        engines = {kind: self._start(kind) for kind in KINDS}
        for kind, process in engines.items():
            assert "sampled\n" in iter(_lines(process), ""), self._log(kind)
        updates = self._start("updates")
        assert updates.wait(timeout=300) == 0, self._log("updates")
        for kind, process in engines.items():
            process.communicate("go\n", timeout=300)
            assert process.returncode == 0, self._log(kind)
        self.completions = {kind: json.loads((root / f"{kind}.json").read_text()) for kind in KINDS}
        self.steps = json.loads((root / "updates.json").read_text())
        self._loaded: dict[tuple[str, str | None, str | None], Any] = {}

    def _start(self, what: str) -> subprocess.Popen[str]:
        paths = [str(ROOT), *([str(write_torchvision_stub(self.root / "stub"))] if what == "vllm" else [])]
        if what == "updates":
            ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
            env = ranks | {"MASTER_PORT": str(free_ports(1)), "OMP_NUM_THREADS": "1"}
        else:
            env = worker_environment(what, 1)
        with (self.root / f"{what}.log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, __file__, what, str(self.root), *self.models],
                env=os.environ | env | {"PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.PIPE if what in KINDS else subprocess.DEVNULL,
                stdout=subprocess.PIPE if what in KINDS else log,
                stderr=log,
                text=True,
            )

    def _log(self, what: str) -> str:
        return (self.root / f"{what}.log").read_text()[-6000:]

    def network(self, model: str, tuning: str | None, kind: str | None) -> Any:
        """The base model or an update, loaded by transformers and PEFT."""
        key = (model, tuning, kind)
        if key not in self._loaded:
            from core_hpc.models.loading import load_model

            folder = self.root / (f"{model}-full-{kind}" if tuning == "full" else model)
            network = load_model(folder, context_tokens=CONTEXT).eval()
            if tuning == "lora":
                from peft import PeftModel

                network = PeftModel.from_pretrained(network, self.root / f"{model}-lora-{kind}").eval()
            self._loaded[key] = network
        return self._loaded[key]

    def log_probs(self, network: Any, completions: list[Any]) -> list[Any]:
        """[T, V] log-probabilities before each token of the completions, one forward pass each."""
        import torch

        found = []
        with torch.no_grad():
            for prompt, (ids, _) in zip(PROMPTS, completions, strict=True):
                logits = network(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
                found.append(logits.float().log_softmax(-1))
        return found


def _lines(process: subprocess.Popen[str]) -> Any:
    stream: IO[str] | None = process.stdout
    assert stream is not None
    return stream.readline


def difference(completions: list[Any], log_probs: list[Any]) -> float:
    """The largest difference of an engine's log-probabilities."""
    import torch

    return max(
        float((table[torch.arange(len(ids)), torch.tensor(ids)] - torch.tensor(logprobs)).abs().max())
        for (ids, logprobs), table in zip(completions, log_probs, strict=True)
    )


@pytest.fixture(scope="module")
def matrix(full: bool, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(tmp_path_factory.mktemp("matrix"), tuple(MODELS) if full else HARDEST)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ALL_MODELS)
def test_the_engine_samples_from_the_base_weights(matrix: Matrix, model: str, kind: str) -> None:
    completions = matrix.completions[kind][model]
    assert difference(completions, matrix.log_probs(matrix.network(model, None, None), completions)) < TOLERANCE


@pytest.mark.parametrize(("model", "tuning", "kind"), CASES)
def test_the_engine_samples_from_the_updated_weights(matrix: Matrix, model: str, tuning: str, kind: str) -> None:
    """And not from the base weights: the update has changed the log-probabilities clearly."""
    completions = matrix.completions[kind][f"{model} {tuning}"]
    updated, base = matrix.network(model, tuning, kind), matrix.network(model, None, None)
    assert difference(completions, matrix.log_probs(updated, completions)) < TOLERANCE
    assert difference(completions, matrix.log_probs(base, completions)) > 20 * TOLERANCE


@pytest.mark.parametrize(("model", "tuning", "kind"), CASES)
def test_trainer_and_engine_agree_in_every_step(matrix: Matrix, model: str, tuning: str, kind: str) -> None:
    steps = matrix.steps[f"{model} {tuning} {kind}"]
    assert len(steps) == 2
    assert max(step["mismatch_max"] for step in steps) < TOLERANCE
    assert [step["kept_mass"] for step in steps] == pytest.approx([1.0, 1.0], abs=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ALL_MODELS)
def test_the_kept_mass_is_the_probability_of_the_nucleus(matrix: Matrix, model: str, kind: str) -> None:
    """exp(trainer - engine) of a token is the mass of the smallest set of tokens with at least top-p."""
    import torch

    completions = matrix.completions[kind][f"{model} top-p"]
    for (ids, logprobs), table in zip(
        completions, matrix.log_probs(matrix.network(model, None, None), completions), strict=True
    ):
        sorted_probs = table.exp().sort(dim=-1, descending=True).values
        before = sorted_probs.cumsum(-1) - sorted_probs
        mass = (sorted_probs * (before < TOP_P)).sum(-1)
        ratios = (table[torch.arange(len(ids)), torch.tensor(ids)] - torch.tensor(logprobs)).exp()
        assert ratios.tolist() == pytest.approx(mass.tolist(), abs=0.01)
        assert TOP_P - 0.01 < float(ratios.mean()) < 0.99


def test_the_default_targets_are_found_in_every_architecture(matrix: Matrix) -> None:
    from core_hpc.models.folder import adapter_targets

    for model in matrix.models:
        assert adapter_targets(matrix.root / model, LoraSection().targets) == [], model
    config = json.loads((matrix.root / "phi3-lora-vllm" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]


if __name__ == "__main__":
    what, folder, models = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    if what == "updates":
        _updates(folder, models)
    else:
        _engines(what, folder, models)
