"""Compiled layers of a policy on a GPU, and their comparison with the plain layers.

In: a policy after `start`, and its checkpointed layers. Out: the same policy, which computes the
same results except for rounding. Layers whose results differ, or that the compiler cannot handle,
are left as they were. On a CPU nothing is compiled: it takes longer than it gains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core_hpc.training.memory import ActivationMemory, layers_of
from core_hpc.training.policy import Policy
from core_hpc.training.probes import is_close, probe_batch

COMPILER = "inductor"
FLOP_PER_WEIGHT = 6
"""Floating-point operations per weight and token, forward and backward."""
COMPILE_FLOP = 3e16
"""Work of an update from which it pays to compile.

To compile takes one to two minutes and saves a third (measured on an H100, models of 0.5 and 4B).
"""
GRADIENT_TOLERANCE = 0.3
"""Relative tolerance of gradients in 16 bits.

A compiler rounds less often, and a random model makes much of each rounding.
"""
RECOMPILE_LIMIT = 64
"""Versions of one layer's code.

It differs with and without gradients and adapter, and by kind of attention; all layers share it.
"""
NUM_COMPARED = 64
"""Parameters whose gradients are compared.

A few are enough, and with `tuning: full` memory does not hold the gradients of all of them twice.
"""


def pays_to_compile(num_weights: int, num_tokens: int) -> bool:
    """Whether training on so many tokens is worth the time that compiling takes."""
    return FLOP_PER_WEIGHT * num_weights * num_tokens > COMPILE_FLOP


def compile_policy(policy: Policy, memory: ActivationMemory) -> None:
    """Compile the layers of a policy on a GPU; to be called once, after `start`.

    If compiling fails, the policy computes as before, and a line on stdout gives the reason.
    """
    if not policy.on_gpu or policy.layout != "tree":
        return
    # Without this hook the input of the first layer needs no gradient, and the compiler would treat
    # that layer as a different one.
    policy.base.get_input_embeddings().register_forward_hook(_require_gradient)
    layers = [layer for network in policy.networks() for layer in layers_of(network)]
    why = compile_layers(layers, lambda compiled: _results(policy, memory, compiled=compiled))
    policy.is_compiled = why is None
    if why is not None:
        print(f"update: {type(policy.base).__name__} is not compiled: {why}", flush=True)


def compile_layers(layers: Sequence[nn.Module], attempt: Callable[[bool], tuple[Tensor, Tensor]]) -> str | None:
    """Compile layers, and compare their results with those of the plain layers.

    Args:
        attempt: called with whether the layers are compiled; returns the values and gradients of
            all ways in which the model will be used.

    Returns:
        The reason why the layers are left as they were; None if they are compiled.
    """
    expected = attempt(False)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    for layer in layers:
        layer.compile(dynamic=True, backend=COMPILER)
    try:
        found = attempt(True)
        same = is_close(found[0], expected[0]) and is_close(found[1], expected[1], half=GRADIENT_TOLERANCE)
        why = None if same else "its results differ"
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, OSError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if why is not None:
        for layer in layers:
            layer._compiled_call_impl = None  # torch has no public function that undoes `compile`
    return why


def _results(policy: Policy, memory: ActivationMemory, *, compiled: bool) -> tuple[Tensor, Tensor]:
    """Log-probabilities and gradients of the probe's rows, in all ways that the update uses.

    These are: with gradients, checkpointed and not; without gradients; and the reference policy.
    """
    policy.is_compiled = compiled
    batch = probe_batch(policy.base, "tree")
    values: list[Tensor] = []
    gradients: list[Tensor] = []
    trained = sorted((p for p in policy.base.parameters() if p.requires_grad), key=Tensor.numel)[:NUM_COMPARED]
    count_before = memory.num_checkpointed
    for count in memory.extreme_counts():
        memory.checkpoint(count)
        logp_M, _ = policy.log_probs(batch, temperature=1.0)  # noqa: N806 - M: completion tokens
        values.append(logp_M.detach())
        found = torch.autograd.grad(logp_M.sum(), trained, allow_unused=True)
        gradients += [gradient.flatten() for gradient in found if gradient is not None]
    memory.checkpoint(count_before)
    with torch.no_grad():
        for reference in (False, True) if policy.has_reference else (False,):
            values.append(policy.log_probs(batch, temperature=1.0, reference=reference)[0])
    return torch.cat(values).to(policy.dtype), torch.cat(gradients).to(policy.dtype)


def _require_gradient(module: nn.Module, inputs: Any, output: Tensor) -> None:
    if torch.is_grad_enabled():
        output.requires_grad_(True)
