"""How many layers compute their activations again. On a GPU: `integration/test_gpu.py`."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pytest
import torch

from core_hpc.training import memory as memory_module
from core_hpc.training.full import FullPolicy
from core_hpc.training.memory import (
    LOGITS_BYTES,
    MEASURED_TOKENS,
    WORKING_LAYERS,
    ActivationMemory,
    ActivationSize,
    GpuMemoryError,
    layers_to_checkpoint,
)
from tests.support.ranks import tiny_llama

SIZE = ActivationSize(token=1000.0, checkpointed_token=10.0, key=2.0)
NUM_LAYERS = 20
NUM_TOKENS = 10**6


def kept_bytes(count: int) -> float:
    """Memory of the micro-batch with `count` checkpointed layers of 50 bytes per token."""
    layers = count * 10.0 + (NUM_LAYERS - count) * 50.0 + WORKING_LAYERS * 50.0
    return NUM_TOKENS * layers + LOGITS_BYTES


def count_for(free: float, *, num_keys: int = 0) -> int | None:
    return layers_to_checkpoint(SIZE, num_layers=NUM_LAYERS, num_tokens=NUM_TOKENS, num_keys=num_keys, free=free)


def test_no_layer_is_checkpointed_without_need() -> None:
    for count in (0, 1, 7, 20):
        assert count_for(kept_bytes(count) + 1) == count
    assert count_for(kept_bytes(20) - 1) is None


def test_copies_of_keys_need_memory() -> None:
    """14 bytes per token more, which is a third of what one layer saves."""
    assert count_for(kept_bytes(7) + 1, num_keys=8 * NUM_TOKENS) == 8


def test_a_micro_batch_is_refused_if_checkpointing_saves_nothing() -> None:
    size = ActivationSize(token=1000.0, checkpointed_token=50.0, key=0.0)
    found = [
        layers_to_checkpoint(size, num_layers=20, num_tokens=1, num_keys=1, free=LOGITS_BYTES + free)
        for free in (1150.0, 1149.0)
    ]
    assert found == [0, None]


def test_memory_that_something_else_will_use_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """NOT a GPU: the free memory and the measured activations are numbers of the test."""
    allocated = cycle((0, 20_000 * MEASURED_TOKENS))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(allocated))
    monkeypatch.setattr(FullPolicy, "on_gpu", True)
    model = tiny_llama(num_hidden_layers=20).requires_grad_(False)
    memory = ActivationMemory(FullPolicy(lambda: model, Path(), with_reference=False))

    def count(free: float, reserved: int) -> int:
        monkeypatch.setattr(memory_module, "free_memory", lambda device: LOGITS_BYTES + free)
        memory.make_room(NUM_TOKENS, NUM_TOKENS, reserved=reserved)
        return memory.num_checkpointed

    assert count(24e9, 0) == 0
    assert 0 < count(24e9, 8 * 10**9) == count(16e9, 0) < 20
    with pytest.raises(GpuMemoryError, match="gradients and the optimizer leave free"):
        count(24e9, 24 * 10**9)
