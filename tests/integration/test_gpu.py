"""The update on a real GPU against the same update on the CPU. Skipped on a machine without a GPU.

python -m pytest tests/integration/test_gpu.py -s
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from core_hpc.config.model import LoraSection
from core_hpc.training import memory as memory_module
from core_hpc.training.batching import Row, plan_steps
from core_hpc.training.compilation import compile_policy
from core_hpc.training.lora import LoraPolicy
from core_hpc.training.memory import ActivationMemory, GpuMemoryError
from core_hpc.training.micro_batch import collate
from core_hpc.training.prefix_tree import build_tree
from tests.support.ranks import largest_difference, launch, plain_adapters, prepare, tiny_llama, weights
from tests.unit.training.test_batching import make_rows, tiny
from tests.unit.training.test_prefix_tree import attention, dense, sequences

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine shows no GPU")]
GPU = torch.device("cuda", 0)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative error of all elements together."""
    found, wanted = (x.detach().double().cpu() for x in (found, wanted))
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("window", [None, 3, 50])
@pytest.mark.parametrize("shared", [True, False])
def test_flash_attention_of_trees_equals_a_dense_mask(window: int | None, shared: bool) -> None:
    given = sequences(40, letters=2) if shared else [[k, 1, 2, 1, 2] for k in range(3)]
    tree = build_tree(given)
    torch.manual_seed(0)
    size = len(tree.token_ids_T)
    exact = [torch.randn(1, heads, size, 16, dtype=torch.bfloat16).double().requires_grad_() for heads in (4, 2, 2)]
    upstream = torch.randn(1, size, 4, 16, dtype=torch.bfloat16).double()
    wanted = dense(*exact, sequences=given, places=tree.places, scale=0.3, window=window)
    (wanted * upstream).sum().backward()
    tensors = [x.detach().to(GPU, torch.bfloat16).requires_grad_() for x in exact]
    found = attention(tensors, segments=tree.segments.to(GPU), scaling=0.3, sliding_window=window)
    (found * upstream.to(GPU, torch.bfloat16)).sum().backward()
    assert error(found, wanted) < 1e-2
    for x, y in zip(tensors, exact, strict=True):
        assert error(x.grad, y.grad) < 2e-2


def learned(
    kind: str,
    device: torch.device,
    dtype: torch.dtype,
    rows: list[Row],
    *,
    compiled: bool = False,
    checkpointing: bool | None = None,
    max_tokens: int = 10**6,
) -> dict[str, torch.Tensor]:
    """Log-probabilities under policy and reference by row, and gradients."""
    policy = LoraPolicy(tiny(kind).to(device, dtype), LoraSection(rank=4), name="m")
    memory = ActivationMemory(policy, checkpointing=checkpointing)
    assert policy.layout == "tree"
    parameters = policy.start(seed=3, from_base=True)
    if compiled:
        began = time.perf_counter()
        compile_policy(policy, memory)
        print(f"compiled in {time.perf_counter() - began:.0f} s")
        assert policy.is_compiled
        torch._dynamo.utils.counters.clear()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        for name, p in parameters.items():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape) * 0.05)
    found: dict[str, dict[int, torch.Tensor]] = {"logp": {}, "reference": {}}
    for step in plan_steps(rows, problems_per_step=5, seed=0, num_ranks=1, max_tokens=max_tokens, layout="tree"):
        for planned in step.micro_batches[0]:
            batch = collate(rows, planned.rows, "tree").to(device)
            logp, _ = policy.log_probs(batch, temperature=0.7)
            (logp * batch.advantage_N[batch.row_M]).sum().backward()
            with torch.no_grad():
                reference, _ = policy.log_probs(batch, temperature=0.7, reference=True)
            for n, i in enumerate(batch.rows):
                found["logp"][i], found["reference"][i] = (x.detach()[batch.row_M == n] for x in (logp, reference))
    if compiled:
        assert not torch._dynamo.utils.counters["frames"], "all ways have been compiled before"
    gradient = torch.cat([p.grad.flatten() for p in parameters.values()])
    return {
        "gradient": gradient,
        **{name: torch.cat([values[i] for i in sorted(values)]) for name, values in found.items()},
    }


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_policies_on_a_gpu_equal_those_on_the_cpu(kind: str) -> None:
    rows = make_rows(12)
    exact = learned(kind, torch.device("cpu"), torch.float32, rows)
    half = learned(kind, torch.device("cpu"), torch.bfloat16, rows)
    for name, value in learned(kind, GPU, torch.float32, rows).items():
        assert error(value, exact[name]) < 1e-4, name
    ways: list[dict[str, Any]] = [{}]
    if kind == "llama":  # only one kind, since compiling takes a minute
        ways += [{"compiled": True}, {"compiled": True, "checkpointing": True}, {"compiled": True, "max_tokens": 60}]
    for options in ways:
        for name, value in learned(kind, GPU, torch.bfloat16, rows, **options).items():
            print(kind, options, name, f"{error(value, exact[name]):.1e}", f"CPU {error(half[name], exact[name]):.1e}")
            assert error(value, exact[name]) < 2 * error(half[name], exact[name]) + 1e-3, (options, name)


def test_no_more_layers_are_checkpointed_than_memory_demands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak stays below the memory that is reported as free."""
    monkeypatch.setattr(memory_module, "LOGITS_BYTES", 0)
    shape = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    }
    config = transformers.Qwen3Config(**shape, num_hidden_layers=12, vocab_size=512)
    with torch.device(GPU):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).requires_grad_(False)
    policy = LoraPolicy(model, LoraSection(), name="m")
    memory = ActivationMemory(policy)
    policy.start(seed=0, from_base=True)
    rows = [
        Row(
            key=(k,),
            problem_id="p",
            prompt_token_ids=[k],
            completion_token_ids=[(k * t) % 500 for t in range(1, 1024)],
            behaviour_logprobs=None,
            advantage=1.0,
            weight=1.0,
        )
        for k in range(1, 9)
    ]
    batch = collate(rows, sorted(range(8), key=lambda k: rows[k].inputs), "tree").to(GPU)

    def peak() -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        policy.log_probs(batch, temperature=1.0)[0].sum().backward()
        return int(torch.cuda.max_memory_allocated() - before)

    peak()
    plain = peak()
    counts = []
    for share in (1.3, 0.7, 0.5):
        monkeypatch.setattr(memory_module, "free_memory", lambda _, share=share: share * plain)
        memory.make_room(8 * 1024, 8 * 1024, reserved=0)
        counts.append(memory.num_checkpointed)
        assert peak() < share * plain
    print("layers checkpointed:", counts)
    assert counts[0] == 0
    assert 0 < counts[1] < counts[2] <= 12
    monkeypatch.setattr(memory_module, "free_memory", lambda _: 0.01 * plain)
    with pytest.raises(GpuMemoryError, match="micro_batch_tokens"):
        memory.make_room(8 * 1024, 8 * 1024, reserved=0)


def test_zero2_with_nccl_equals_plain_torch(tmp_path: Path) -> None:
    """Two tasks in float32, and a resumed one."""
    order = prepare(tmp_path, tiny_llama())
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or "0"
    (seen,) = launch(tmp_path, "one", 1, "both", "interrupted", gpus=gpus)
    for number, (state, metrics) in enumerate(plain_adapters(tmp_path, order), start=1):
        assert largest_difference(weights(tmp_path / f"one.{number}"), state) < 1e-5
        for found, wanted in zip(seen["both"]["steps"][number - 1], metrics, strict=True):
            assert {k: found[k] for k in wanted} == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    timings: dict[str, Any] = seen["both"]["timings"][0]
    assert timings["peak_gpu_mb"] > 0
    assert largest_difference(weights(tmp_path / "one.resumed"), weights(tmp_path / "one.2")) < 1e-6
