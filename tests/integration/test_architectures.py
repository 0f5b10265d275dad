"""Ministral-3 and Phi-4-mini: trainer, transformers engine and the real vLLM have one distribution.

The models are tiny and random, in float32. Each engine runs in its own process, which runs this
file as a script. The trainer computes the log-probabilities of what the engines sampled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core_hpc.config.model import LoraSection
from core_hpc.engines import (
    AdapterRef,
    Completion,
    EngineSpec,
    GenerationRequest,
    SamplingSettings,
    create_engine,
    worker_environment,
)
from tests.support.architectures import (
    ORIGINAL_TOKENS,
    add_mistral_files,
    make_tiny_mistral3,
    make_tiny_phi3,
    write_torchvision_stub,
)

pytestmark = [pytest.mark.slow, pytest.mark.full(reason="test_model_matrix.py compares trainer and engines")]
KINDS = ("vllm", "transformers")
SHORT_CONTEXT, LONG_CONTEXT = ORIGINAL_TOKENS, 192
TOLERANCE = 1e-3
TARGETS = {
    "mistral3": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
}
ENGINES = {"mistral3": ("mistral3", LONG_CONTEXT), "short": ("phi3", SHORT_CONTEXT), "long": ("phi3", LONG_CONTEXT)}
"""Name -> (model, context of the run)."""
CASES = tuple((name, adapted) for name in ENGINES for adapted in (False, True))


def _prompts(context: int) -> list[list[int]]:
    """Prompts whose completions stay below, cross and exceed the original length, if it fits."""
    lengths = (5, 23, ORIGINAL_TOKENS - 16) if context == SHORT_CONTEXT else (5, 23, ORIGINAL_TOKENS - 6, 150)
    return [[2 + (7 * i + 3 * k * k + n) % 200 for k in range(n)] for i, n in enumerate(lengths)]


def _run_engines(kind: str, root: Path) -> None:
    """The engine process: all engines one after the other, as a warm worker would load them."""
    out: dict[str, Any] = {}
    for name, (model, context) in ENGINES.items():
        spec = EngineSpec(
            kind=kind,  # type: ignore[arg-type]
            model_folder=root / model,
            max_context_tokens=context,
            kv_cache_gb=0.05,
            lora=LoraSection(rank=8, targets=TARGETS[model]),
        )
        engine = create_engine(spec)
        requests = [GenerationRequest(tuple(p), i) for i, p in enumerate(_prompts(context))]
        for adapted in (False, True):
            adapter = AdapterRef(root / f"{name}-adapter", name) if adapted else None
            done = engine.generate(requests, SamplingSettings(1.0, 1.0, 16), adapter=adapter)
            out[f"{name} {adapted}"] = [[c.token_ids, c.logprobs, c.finish_reason] for c in done]
        engine.close()
    (root / f"{kind}.json").write_text(json.dumps(out))


class Setup:
    """The models, their adapters, the trainer's policies and the completions of both engines."""

    def __init__(self, root: Path) -> None:
        import torch

        from core_hpc.training.lora import LoraPolicy
        from core_hpc.training.policy import load_base_model

        make_tiny_mistral3(root / "mistral3")
        add_mistral_files(root / "mistral3")
        make_tiny_phi3(root / "phi3")
        self.policies: dict[str, LoraPolicy] = {}
        self.adapters = {name: root / f"{name}-adapter" for name in ENGINES}
        for name, (model, context) in ENGINES.items():
            base = load_base_model(root / model, dtype="float32", device=torch.device("cpu"), context_tokens=context)
            policy = LoraPolicy(base, LoraSection(rank=4, targets=TARGETS[model]), name=model)
            weights = policy.start(seed=1, from_base=True)
            with torch.no_grad():
                for i, (parameter, weight) in enumerate(sorted(weights.items())):
                    if "lora_B" in parameter:
                        weight.normal_(std=0.05, generator=torch.Generator().manual_seed(i))
            policy.write(self.adapters[name], {n: w.detach() for n, w in weights.items()})
            self.policies[name] = policy
        processes = {kind: self._start(kind, root) for kind in KINDS}
        self.results: dict[str, dict[str, Any]] = {}
        for kind, process in processes.items():
            log = process.communicate(timeout=300)[0]
            assert process.returncode == 0, log[-6000:]
            self.results[kind] = json.loads((root / f"{kind}.json").read_text())

    def _start(self, kind: str, root: Path) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, kind, str(root)]
        paths = [Path(__file__).parents[2], *([write_torchvision_stub(root / "stub")] if kind == "vllm" else [])]
        env = os.environ | worker_environment(kind, 1) | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def completions(self, kind: str, name: str, adapted: bool) -> list[Completion]:
        return [Completion(tuple(t), tuple(p), r) for t, p, r in self.results[kind][f"{name} {adapted}"]]

    def trained(self, name: str, adapted: bool, completions: list[Completion], *, together: bool) -> list[list[float]]:
        """Log-probabilities by the trainer, in one micro-batch or in one for each completion."""
        import torch

        from core_hpc.training.batching import Row
        from core_hpc.training.micro_batch import collate

        policy = self.policies[name]
        rows = [
            Row(
                key=(i,),
                problem_id="problem",
                prompt_token_ids=prompt,
                completion_token_ids=c.token_ids,
                behaviour_logprobs=c.logprobs,
                advantage=0.0,
                weight=1.0,
            )
            for i, (prompt, c) in enumerate(zip(_prompts(ENGINES[name][1]), completions, strict=True))
        ]
        order = sorted(range(len(rows)), key=lambda i: rows[i].inputs)
        out: list[list[float]] = [[] for _ in rows]
        with torch.no_grad():
            for members in [order] if together else [[i] for i in order]:
                found, _ = policy.log_probs(
                    collate(rows, members, policy.layout), temperature=1.0, reference=not adapted
                )
                for i, part in zip(
                    members, found.split([len(rows[i].completion_token_ids) for i in members]), strict=True
                ):
                    out[i] = part.tolist()
        return out


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(tmp_path_factory.mktemp("architectures"))


def difference(left: list[Any], right: list[Any]) -> float:
    """The largest difference of two lists of log-probabilities."""
    return max(abs(a - b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("together", [True, False], ids=["one micro-batch", "alone"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "adapted"), CASES)
def test_engine_and_trainer_agree(setup: Setup, name: str, adapted: bool, kind: str, together: bool) -> None:
    completions = setup.completions(kind, name, adapted)
    trained = setup.trained(name, adapted, completions, together=together)
    worst = difference([c.logprobs for c in completions], trained)
    assert worst < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "adapted"), CASES)
def test_the_adapter_matters(setup: Setup, name: str, adapted: bool, kind: str) -> None:
    completions = setup.completions(kind, name, adapted)
    other = setup.trained(name, not adapted, completions, together=True)
    assert difference([c.logprobs for c in completions], other) > 0.05


def test_only_the_language_model_has_an_adapter(setup: Setup) -> None:
    from safetensors import safe_open

    with safe_open(setup.adapters["mistral3"] / "adapter_model.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert len(names) == 2 * 7 * 2  # A and B of seven linear layers in two layers
    assert all(n.startswith("base_model.model.model.language_model.layers.") for n in names)


if __name__ == "__main__":
    _run_engines(sys.argv[1], Path(sys.argv[2]))
