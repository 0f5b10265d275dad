"""`tuning: full` in one process: masters and their gradients against plain copies of the model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from core_hpc.models.loading import load_model
from core_hpc.training.batching import Row
from core_hpc.training.full import FullPolicy
from core_hpc.training.memory import ActivationMemory
from core_hpc.training.micro_batch import MicroBatch, collate
from tests.support.tiny import make_tiny_model

VOCABULARY = 48


def tiny(dtype: torch.dtype, *, kind: str = "llama") -> torch.nn.Module:
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    if kind == "gemma3":
        config = transformers.Gemma3TextConfig(
            **shape,
            head_dim=8,
            vocab_size=VOCABULARY,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention"],
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    else:
        config = transformers.LlamaConfig(**shape, vocab_size=VOCABULARY, tie_word_embeddings=kind == "llama")
    return transformers.AutoModelForCausalLM.from_config(config).to(dtype).requires_grad_(False)


def loader(dtype: torch.dtype, kind: str = "llama") -> Callable[[], torch.nn.Module]:
    return lambda: tiny(dtype, kind=kind)


def batches() -> list[MicroBatch]:
    """Two micro-batches of one completion each."""
    rows = [
        Row(
            key=(k,),
            problem_id="p",
            prompt_token_ids=range(5 + k),
            completion_token_ids=range(20, 26 + k),
            behaviour_logprobs=[0.0] * (6 + k),
            advantage=1.0,
            weight=1.0,
        )
        for k in range(2)
    ]
    return [collate(rows, [k], "tree") for k in range(2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "untied", "gemma3"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_masters_get_the_sum_of_the_gradients_in_float32(dtype: torch.dtype, kind: str, checkpointing: bool) -> None:
    policy = FullPolicy(loader(dtype, kind), Path(), with_reference=True)
    ActivationMemory(policy, checkpointing=checkpointing)
    assert policy.layout == "tree"
    masters = policy.start(seed=0, from_base=True)
    plain = tiny(dtype, kind=kind).requires_grad_(True).eval()
    assert masters.keys() == dict(plain.named_parameters()).keys()
    assert ("lm_head.weight" in masters) is (kind == "untied")
    wanted = {name: torch.zeros(p.shape) for name, p in plain.named_parameters()}
    for batch in batches():
        policy.log_probs(batch, temperature=1.0)[0].sum().backward()
        logits = plain(input_ids=batch.input_ids_BL, use_cache=False).logits[0]
        log_probs = logits[batch.source_U].float().log_softmax(-1)
        log_probs[torch.arange(len(batch.targets_U)), batch.targets_U].sum().backward()
        for name, p in plain.named_parameters():
            wanted[name] += p.grad.float()
            p.grad = None
    for name, master in masters.items():
        assert master.dtype == torch.float32
        assert master.grad is not None
        scale = float(wanted[name].abs().max())
        assert scale > 0
        # Other rows are computed together, so in bfloat16 some logits are rounded differently.
        tolerance = scale * (1e-5 if dtype == torch.float32 else 3e-2)
        torch.testing.assert_close(master.grad, wanted[name], atol=tolerance, rtol=0)
    assert all(p.grad is None for p in policy.base.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_computes_with_the_masters_and_the_reference_with_the_base(dtype: torch.dtype) -> None:
    policy = FullPolicy(loader(dtype), Path(), with_reference=True)
    masters = policy.start(seed=0, from_base=True)
    (batch, _) = batches()
    with torch.no_grad():
        before, _ = policy.log_probs(batch, temperature=1.0)
        torch.testing.assert_close(before, policy.log_probs(batch, temperature=1.0, reference=True)[0], atol=0, rtol=0)
        for master in masters.values():
            master.add_(torch.randn(master.shape), alpha=0.03)
        policy.synchronise()
        after, _ = policy.log_probs(batch, temperature=1.0)
        other = FullPolicy(lambda: _with(tiny(dtype), masters), Path(), with_reference=False)
        torch.testing.assert_close(after, other.log_probs(batch, temperature=1.0)[0], atol=0, rtol=0)
        assert float((after - before).abs().max()) > 0.1
        torch.testing.assert_close(before, policy.log_probs(batch, temperature=1.0, reference=True)[0], atol=0, rtol=0)


@pytest.mark.parametrize("with_reference", [True, False])
def test_a_new_task_from_the_base_starts_from_the_base_weights(with_reference: bool) -> None:
    """A warm trainer that begins another run must not start from the weights of the run before."""
    policy = FullPolicy(loader(torch.float32), Path(), with_reference=with_reference)
    first = policy.start(seed=0, from_base=True)
    base = {name: p.detach().clone() for name, p in first.items()}
    with torch.no_grad():
        for master in first.values():
            master.add_(1.0)
    policy.synchronise()
    again = policy.start(seed=1, from_base=True)
    assert all(torch.equal(again[name], p) for name, p in base.items())
    assert all(torch.equal(p, base[name]) for name, p in policy.base.named_parameters())
    assert all(again[name] is not first[name] and again[name].grad is None for name in base)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.9, "top_p": 0.6, "eos_token_id": [1, 5]},
        {"do_sample": False, "temperature": 0.6, "eos_token_id": 5},
        {"max_new_tokens": 7, "eos_token_id": 5},
        None,
    ],
)
def test_the_generation_settings_of_the_base_are_published_as_they_are(settings: Any, tmp_path: Path) -> None:
    """Also those that transformers reads but does not write. If the base has none, its end tokens are written."""
    base, published = make_tiny_model(tmp_path / "base"), tmp_path / "published"
    path = base / "generation_config.json"
    path.write_text(json.dumps(settings)) if settings else path.unlink()
    policy = FullPolicy(partial(load_model, base, context_tokens=64), base, with_reference=False)
    own = policy.base.generation_config
    policy.write(published, policy.start(seed=0, from_base=True))
    assert policy.base.generation_config is own
    assert not settings or (published / path.name).read_bytes() == path.read_bytes()
    found = transformers.GenerationConfig.from_pretrained(published)
    assert (found.eos_token_id, found.temperature) == (own.eos_token_id, own.temperature)
    assert found.eos_token_id is not None


def _with(model: torch.nn.Module, values: dict[str, torch.nn.Parameter]) -> torch.nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])
    return model
