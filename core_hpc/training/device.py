"""What a policy does for the GPU that it is on: compiled layers, and activations computed again only as far as memory demands.

In: a transformers model and how to try it. Out: the same model, computing the same but for rounding. A CPU is left alone: compiling
for it takes longer than it gains, and its memory is the machine's. This module computes no losses and knows no adapters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from core_hpc.common.errors import CoreHpcError
from core_hpc.training.token_log_probs import MAX_LOGITS

COMPILER = "inductor"
FLOP_PER_WEIGHT = 6
"""Of one token, forward and backward."""
COMPILE_FLOP = 3e16
"""Work of an update from which it pays to compile, which takes one to two minutes and saves a third (H100, models of 0.5 and 4B)."""
GRADIENT_TOLERANCE = 0.3
"""Relative, of gradients in 16 bits: a compiler rounds less often, and a random model makes much of each rounding."""
RECOMPILE_LIMIT = 64
"""Of one layer's code: it differs with and without gradients and adapter, by kind of attention, and all layers share it."""
USABLE_MEMORY = 0.92
"""Of what is free; the rest is lost between blocks."""
LOGITS_BYTES = 16 * MAX_LOGITS["cuda"]
"""Logits of a chunk, their probabilities and derivative, in bfloat16 and float32."""
WORKING_LAYERS = 3.0
"""Activations of one layer that a backward pass has at most besides what was kept: those that are computed again, and gradients."""


class GpuMemoryError(CoreHpcError):
    """A micro-batch does not fit into the memory of a GPU."""


def layers_of(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers of a model that can be compiled and checkpointed one by one."""
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def compile_layers(layers: Sequence[nn.Module], attempt: Callable[[bool], tuple[Tensor, Tensor]]) -> str | None:
    """Compile layers, and see that they give what they gave before.

    Args:
        attempt: values and gradients from all ways in which the model will be used; called with whether it is compiled.

    Returns:
        Why they were left as they were; None where they are compiled.
    """
    wanted = attempt(False)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    for layer in layers:
        layer.compile(dynamic=True, backend=COMPILER)
    try:
        found = attempt(True)
        same = is_close(found[0], wanted[0]) and is_close(found[1], wanted[1], half=GRADIENT_TOLERANCE)
        why = None if same else "its results differ"
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, OSError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if why is not None:
        for layer in layers:
            layer._compiled_call_impl = None  # as before; torch has no other way back
    return why


def is_close(left: Tensor, right: Tensor, *, half: float = 5e-2) -> bool:
    """Whether two results are the same but for rounding in the dtype that they were computed in; `half`: tolerance for 16 bits."""
    tolerance = 1e-3 if left.dtype == torch.float32 else half
    return bool((left - right).float().norm() <= tolerance * right.float().norm())


@dataclass(frozen=True)
class ActivationSize:
    """Bytes that a forward pass keeps for the backward pass."""

    token: float
    """Of a token, when no layer is checkpointed."""
    checkpointed_token: float
    """Of a token in one layer that is."""
    key: float
    """Of a key beyond the tokens (prefix_tree.py)."""


def layers_to_checkpoint(
    size: ActivationSize, *, num_layers: int, num_tokens: int, num_keys: int, free: float
) -> int | None:
    """How many layers have to compute their activations again so that a micro-batch fits; None: it fits in no way.

    >>> size = ActivationSize(token=100.0, checkpointed_token=1.0, key=0.0)
    >>> [layers_to_checkpoint(size, num_layers=10, num_tokens=1000, num_keys=0, free=LOGITS_BYTES + f) for f in (2e5, 1e5, 4e4, 1e4)]
    [0, 4, 10, None]
    """
    layer = size.token / num_layers
    kept = num_tokens * (size.token + WORKING_LAYERS * layer) + max(0, num_keys - num_tokens) * size.key
    saved = num_tokens * (layer - size.checkpointed_token)
    too_much = kept + LOGITS_BYTES - free
    count = max(0, math.ceil(too_much / saved)) if saved > 0 else (0 if too_much <= 0 else num_layers + 1)
    return count if count <= num_layers else None


def free_memory(device: torch.device) -> float:
    """Bytes of a GPU that this process can still use."""
    free, _ = torch.cuda.mem_get_info(device)
    return USABLE_MEMORY * (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
