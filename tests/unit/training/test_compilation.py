"""Compiled and checkpointed layers on the CPU: nothing changes, also where compiling fails.

On a GPU: `integration/test_gpu.py`.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from core_hpc.config.model import LoraSection
from core_hpc.training import compilation, prefix_tree
from core_hpc.training.batching import plan_steps
from core_hpc.training.compilation import compile_policy, pays_to_compile
from core_hpc.training.full import FullPolicy
from core_hpc.training.lora import LoraPolicy
from core_hpc.training.memory import ActivationMemory
from core_hpc.training.micro_batch import collate
from core_hpc.training.policy import Policy
from core_hpc.training.trainer import Trainer
from tests.unit.training.test_batching import make_rows, tiny


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy takes the CPU for a GPU.

    Layers without their attention are traced as for a GPU, and computed as on a CPU.
    """
    monkeypatch.setattr(Policy, "on_gpu", True)
    monkeypatch.setattr(compilation, "COMPILER", "aot_eager")
    monkeypatch.setattr(prefix_tree, "_one_by_one", torch._dynamo.disable(prefix_tree._one_by_one))
    torch._dynamo.reset()


def lora_policy() -> LoraPolicy:
    return LoraPolicy(tiny("llama"), LoraSection(rank=4), name="m")


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
def test_compiled_and_checkpointed_layers_compute_the_same(kind: str) -> None:
    def make() -> Policy:
        if kind == "lora":
            return lora_policy()
        return FullPolicy(lambda: tiny("llama"), Path(), with_reference=True)

    plain, policy = make(), make()
    memory = ActivationMemory(policy)
    wanted = learned(plain)
    assert len(wanted) > 20
    policy.start(seed=3, from_base=True)
    compile_policy(policy, memory)
    assert policy.is_compiled
    for num_layers in (0, 2, 3):
        memory.checkpoint(num_layers)
        for found, value in zip(learned(policy), wanted, strict=True):
            torch.testing.assert_close(found, value, atol=1e-4, rtol=1e-3)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("failure", "message"), [("error", "no C compiler here"), ("result", "its results differ")])
def test_layers_stay_as_they_are_if_compiling_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: str, message: str
) -> None:
    def compiler(graph: Any, inputs: Any) -> Any:
        if failure == "error":
            raise RuntimeError("no C compiler here")
        return lambda *given: tuple(1.5 * x if isinstance(x, torch.Tensor) else x for x in graph(*given))

    monkeypatch.setattr(compilation, "COMPILER", compiler)
    policy = lora_policy()
    memory = ActivationMemory(policy)
    policy.start(seed=3, from_base=True)
    compile_policy(policy, memory)
    assert not policy.is_compiled
    assert memory.num_checkpointed == 0
    printed = capsys.readouterr().out
    assert "LlamaForCausalLM is not compiled" in printed
    assert message in printed
    for found, value in zip(learned(policy), learned(lora_policy()), strict=True):
        torch.testing.assert_close(found, value)


@pytest.mark.usefixtures("gpu")
def test_passes_before_an_update_use_plain_layers_in_a_warm_process_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of an update depend on them, and the first update of a process has not compiled yet."""
    calls = []

    def compiler(graph: Any, inputs: Any) -> Any:
        return lambda *given: calls.append(1) or graph(*given)

    monkeypatch.setattr(compilation, "COMPILER", compiler)
    policy = lora_policy()
    policy.start(seed=3, from_base=True)
    compile_policy(policy, ActivationMemory(policy))
    calls.clear()
    with torch.no_grad(), policy.uncompiled():
        plain = learned_without_gradients(policy)
    assert not calls
    assert policy.is_compiled
    with torch.no_grad():
        torch.testing.assert_close(learned_without_gradients(policy), plain)
    assert calls


def learned_without_gradients(policy: Policy) -> torch.Tensor:
    """Log-probabilities of some rows."""
    rows = make_rows(4)
    (step,) = plan_steps(rows, problems_per_step=4, seed=0, num_ranks=1, max_tokens=60, layout="tree")
    return torch.cat(
        [policy.log_probs(collate(rows, p.rows, "tree"), temperature=0.7)[0] for p in step.micro_batches[0]]
    )


def test_it_pays_to_compile_only_for_long_updates() -> None:
    assert [pays_to_compile(4 * 10**9, num_tokens) for num_tokens in (10**4, 10**5, 10**7)] == [False, False, True]


@pytest.mark.parametrize(
    ("wish", "num_tokens", "num_similar_tasks", "compiles"),
    [(None, 10**5, 1, False), (None, 10**5, 50, True), (True, 1, 1, True), (False, 10**9, 1, False)],
)
def test_a_trainer_compiles_by_wish_or_for_all_its_tasks(
    wish: bool | None, num_tokens: int, num_similar_tasks: int, compiles: bool
) -> None:
    """A warm process compiles once for all its tasks."""
    settings = SimpleNamespace(compile_layers=wish)
    mine: Any = SimpleNamespace(settings=settings, policy=SimpleNamespace(num_weights=4 * 10**9, is_sharded=False))
    task: Any = SimpleNamespace(num_similar_tasks=num_similar_tasks)
    plans: Any = [SimpleNamespace(num_tokens=num_tokens), SimpleNamespace(num_tokens=0)]
    assert Trainer._wants_to_compile(mine, task, plans) is compiles
