"""Memory of the update on a GPU: how many layers compute their activations again.

In: a policy and the size of its largest micro-batch. Out: the number of checkpointed layers (their
activations are not kept, but computed again in the backward pass), which is as small as the free
memory allows, without what gradients and the optimizer will use. A micro-batch that does not fit
even so is refused. On a CPU nothing is checkpointed unless the user asks for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from core_hpc.common.errors import CoreHpcError
from core_hpc.models.loading import language_model
from core_hpc.training.batching import Row
from core_hpc.training.micro_batch import collate
from core_hpc.training.policy import Policy
from core_hpc.training.probes import probe_ids
from core_hpc.training.token_log_probs import MAX_LOGITS

MEASURED_TOKENS = 1024
"""Tokens of the forward pass that measures how much memory activations take."""
USABLE_MEMORY = 0.92
"""Share of the free memory; the rest is lost between blocks of the allocator."""
LOGITS_BYTES = 16 * MAX_LOGITS["cuda"]
"""Logits of a chunk, their probabilities and derivatives, in bfloat16 and float32."""
WORKING_LAYERS = 3.0
"""Memory of the backward pass besides the kept activations, in activations of one layer.

It holds the activations that are computed again, and gradients.
"""


class GpuMemoryError(CoreHpcError):
    """A micro-batch does not fit into the memory of a GPU."""


@dataclass(frozen=True)
class ActivationSize:
    """Bytes that a forward pass keeps for the backward pass."""

    token: float
    """Per token, when no layer is checkpointed."""
    checkpointed_token: float
    """Per token and checkpointed layer."""
    key: float
    """Per key beyond the number of tokens (`Segments` of `prefix_tree.py`)."""


def layers_of(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers of the language model that can be checkpointed and compiled one by one."""
    _, part = language_model(model)
    return [m for m in part.modules() if isinstance(m, GradientCheckpointingLayer)]


def layers_to_checkpoint(
    size: ActivationSize, *, num_layers: int, num_tokens: int, num_keys: int, free: float
) -> int | None:
    """How many layers have to be checkpointed so that a micro-batch fits into `free` bytes.

    Returns:
        The smallest such number; None if the micro-batch does not fit with all layers checkpointed.

    >>> size = ActivationSize(token=100.0, checkpointed_token=1.0, key=0.0)
    >>> def count(free: float) -> int | None:
    ...     return layers_to_checkpoint(size, num_layers=10, num_tokens=1000, num_keys=0, free=LOGITS_BYTES + free)
    >>> [count(free) for free in (2e5, 1e5, 4e4, 1e4)]
    [0, 4, 10, None]
    """
    layer = size.token / num_layers
    kept = num_tokens * (size.token + WORKING_LAYERS * layer) + max(0, num_keys - num_tokens) * size.key
    saved = num_tokens * (layer - size.checkpointed_token)
    too_much = kept + LOGITS_BYTES - free
    if too_much <= 0:
        return 0
    if saved <= 0:
        return None
    count = math.ceil(too_much / saved)
    return count if count <= num_layers else None


def free_memory(device: torch.device) -> float:
    """Bytes of a GPU that this process can still use."""
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(USABLE_MEMORY * (free + unused))


class ActivationMemory:
    """The checkpointed layers of one policy."""

    def __init__(self, policy: Policy, *, checkpointing: bool | None = None) -> None:
        """Prepare the layers; before the first `start` of the policy.

        Args:
            checkpointing: of all layers, or of none. None: of as many as memory demands, on a GPU.
        """
        base = policy.base
        self._policy = policy
        self._layers = layers_of(base)
        self._size: ActivationSize | None = None
        can_adapt = policy.on_gpu and base.supports_gradient_checkpointing and bool(self._layers)
        self._adapts: bool = checkpointing is None and can_adapt
        if checkpointing or self._adapts:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            base.disable_input_require_grads()
        self.checkpoint(len(self._layers) if checkpointing else 0)

    def checkpoint(self, num_layers: int) -> None:
        """Checkpoint the first `num_layers` layers, and no other ones.

        transformers checkpoints a layer whose `training` is true. Everything else stays in eval
        mode, so that a dropout of the base model never makes old and current log-probabilities
        differ.
        """
        self.num_checkpointed = num_layers
        for n, layer in enumerate(self._layers):
            layer.training = n < num_layers

    def extreme_counts(self) -> list[int]:
        """The fewest and the most checkpointed layers that `make_room` may choose."""
        return sorted({0, len(self._layers)}) if self._adapts else [self.num_checkpointed]

    def make_room(self, num_tokens: int, num_keys: int, *, reserved: int) -> None:
        """Checkpoint as many layers as a micro-batch of this size needs.

        It does nothing if the user has decided the number, and on a CPU.

        Args:
            num_tokens: tokens of the largest micro-batch, with padding.
            num_keys: the largest number of keys of a micro-batch.
            reserved: bytes that are free now, and that gradients and the optimizer will use.

        Raises:
            GpuMemoryError: it does not fit with all layers checkpointed.
        """
        if not self._adapts:
            return
        if self._size is None:
            self._size = self._measure()
        free = max(0.0, free_memory(self._policy.device) - reserved)
        count = layers_to_checkpoint(
            self._size, num_layers=len(self._layers), num_tokens=num_tokens, num_keys=num_keys, free=free
        )
        if count is None:
            raise GpuMemoryError(
                f"update: a micro-batch of {num_tokens} tokens does not fit into the {free / 2**30:.1f} GiB that "
                "gradients and the optimizer leave free on the GPU, even when all activations are computed again; "
                "lower update.micro_batch_tokens, or leave the update more of the GPU"
            )
        self.checkpoint(count)

    def _measure(self) -> ActivationSize:
        """Measure the size of activations by a forward pass without checkpointed layers."""
        policy, base, device = self._policy, self._policy.base, self._policy.device
        count_before = self.num_checkpointed
        self.checkpoint(0)
        ids = probe_ids(base, MEASURED_TOKENS + 1)
        row = Row(
            key=(),
            problem_id="probe",
            prompt_token_ids=ids[:1],
            completion_token_ids=ids[1:],
            behaviour_logprobs=None,
            advantage=0.0,
            weight=1.0,
        )
        batch = collate([row], [0], policy.layout).to(device)
        bytes_before = torch.cuda.memory_allocated(device)
        with policy.network(reference=False) as network:
            features = policy.features(network, batch)
        per_token = (torch.cuda.memory_allocated(device) - bytes_before) / MEASURED_TOKENS
        del features
        self.checkpoint(count_before)
        config = base.config.get_text_config()
        bytes_per_number = torch.finfo(policy.dtype).bits // 8
        num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return ActivationSize(
            token=per_token,
            checkpointed_token=config.hidden_size * bytes_per_number,
            key=2 * num_heads * head_size * bytes_per_number * len(self._layers),
        )
