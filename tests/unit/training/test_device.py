"""Compiling and checkpointing layers, on the CPU: that nothing changes, and what happens where it does not work. On a GPU: test_gpu.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from core_hpc.config.run import LoraSection
from core_hpc.training import device, prefix_tree, trainer
from core_hpc.training.batching import plan_steps
from core_hpc.training.device import ActivationSize, layers_to_checkpoint
from core_hpc.training.full import FullPolicy
from core_hpc.training.lora import LoraPolicy
from core_hpc.training.micro_batch import collate
from core_hpc.training.policy import Policy
from tests.unit.training.test_batching import make_rows, tiny


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy believes that it is on a GPU; layers are traced as for one, but for attention, and computed as they are."""
    monkeypatch.setattr(Policy, "_on_gpu", True)
    monkeypatch.setattr(device, "COMPILER", "aot_eager")
    monkeypatch.setattr(prefix_tree, "_one_by_one", torch._dynamo.disable(prefix_tree._one_by_one))
    torch._dynamo.reset()


def learned(policy: Policy) -> list[torch.Tensor]:
    """Log-probabilities and gradients of some rows."""
    parameters = policy.start(seed=3, from_base=True)
    rows, found = make_rows(4), []
    (step,) = plan_steps(rows, problems_per_step=4, seed=0, num_ranks=1, max_tokens=60, layout="tree")
    for planned in step.micro_batches[0]:
        logp, _ = policy.log_probs(collate(rows, planned.rows, "tree"), temperature=0.7)
        found.append(logp.detach())
        logp.sum().backward()
    return found + [p.grad for p in parameters.values() if p.grad is not None]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_compiled_and_checkpointed_layers_give_the_same(kind: str) -> None:
    def make() -> Policy:
        if kind == "lora":
            return LoraPolicy(tiny("llama"), LoraSection(rank=4), name="m")
        return FullPolicy(lambda: tiny("llama"), Path(), with_reference=True)

    plain, policy = make(), make()
    wanted = learned(plain)
    assert len(wanted) > 20
    policy.start(seed=3, from_base=True)
    policy.compile()
    assert policy.is_compiled
    for num_layers in (0, 2, 3):
        policy.checkpoint(num_layers)
        for found, value in zip(learned(policy), wanted, strict=True):
            torch.testing.assert_close(found, value, atol=1e-4, rtol=1e-3)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("failure", ["raises", "differs"])
def test_layers_stay_as_they_are_where_compiling_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, failure: str
) -> None:
    def compiler(graph: Any, inputs: Any) -> Any:
        if failure == "raises":
            raise RuntimeError("no C compiler here")
        return lambda *given: tuple(1.5 * x if isinstance(x, torch.Tensor) else x for x in graph(*given))

    monkeypatch.setattr(device, "COMPILER", compiler)
    policy = LoraPolicy(tiny("llama"), LoraSection(rank=4), name="m")
    policy.start(seed=3, from_base=True)
    policy.compile()
    assert not policy.is_compiled
    said = capsys.readouterr().out
    assert "LlamaForCausalLM is not compiled" in said
    assert ("no C compiler here" if failure == "raises" else "its results differ") in said
    for found, value in zip(
        learned(policy), learned(LoraPolicy(tiny("llama"), LoraSection(rank=4), name="m")), strict=True
    ):
        torch.testing.assert_close(found, value)


def test_no_layer_is_checkpointed_without_need() -> None:
    size = ActivationSize(token=1000.0, checkpointed_token=10.0, key=2.0)
    tokens = 10**6

    def kept(count: int) -> float:
        return tokens * (count * 10.0 + (20 - count) * 50.0 + device.WORKING_LAYERS * 50.0) + device.LOGITS_BYTES

    for count in (0, 1, 7, 20):
        assert layers_to_checkpoint(size, num_layers=20, num_tokens=tokens, num_keys=0, free=kept(count) + 1) == count
    assert layers_to_checkpoint(size, num_layers=20, num_tokens=tokens, num_keys=0, free=kept(20) - 1) is None
    assert layers_to_checkpoint(size, num_layers=20, num_tokens=tokens, num_keys=8 * tokens, free=kept(7) + 1) == 7 + 1


def test_it_pays_to_compile_for_long_updates_only() -> None:
    policy = SimpleNamespace(num_weights=4 * 10**9)

    def pays(wish: bool | None, num_tokens: int, num_alike: int = 1) -> bool:
        plans: Any = [SimpleNamespace(num_tokens=num_tokens), SimpleNamespace(num_tokens=0)]
        task: Any = SimpleNamespace(num_alike=num_alike)
        mine: Any = SimpleNamespace(compile_layers=wish, policy=policy)
        return trainer.Trainer._pays_to_compile(mine, task, plans)

    assert [pays(None, n) for n in (10**4, 10**5, 10**7)] == [False, False, True]
    assert pays(None, 10**5, num_alike=50), "a warm process compiles once"
    assert pays(True, 1)
    assert not pays(False, 10**9)
