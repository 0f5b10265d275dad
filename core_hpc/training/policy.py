"""The policy: a causal language model that is trained, and its token log-probabilities.

In: a Hugging Face model. Out: log-probabilities of completion tokens under the current weights, or
under the reference policy, which has the base weights. `Policy` is what every kind of tuning
shares; `lora.py` trains an adapter on frozen base weights, `full.py` trains every weight. A policy
computes no losses, runs no optimizer, and keeps nothing of a task except what `start` has made.

Shapes: M completion tokens of a micro-batch, U distinct predictions among them.
"""

# Tensor names end in their shape.
# ruff: noqa: N806

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core_hpc.models.loading import load_model
from core_hpc.models.quantization import four_bit_options, require_four_bit
from core_hpc.training.batching import Layout
from core_hpc.training.forward import all_logits, head_logits, hidden_states
from core_hpc.training.micro_batch import MicroBatch
from core_hpc.training.probes import find_capabilities
from core_hpc.training.sharding import is_sharded
from core_hpc.training.token_log_probs import token_log_probs

Dtype = Literal["auto", "float32", "bfloat16"]


def load_base_model(
    folder: Path,
    *,
    dtype: Dtype,
    device: torch.device,
    context_tokens: int | None = None,
    four_bit: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    move: bool = True,
) -> nn.Module:
    """Load the frozen base weights of a model folder.

    Args:
        dtype: `auto` is bfloat16 on a GPU and float32 on a CPU.
        context_tokens: context of the run; see `load_model`.
        four_bit: load weights of 4 bits; needs a GPU.
        allow_pickle: accept weight files that are not in the safetensors format.
        move: move the model to the device; otherwise it stays on the CPU.

    Raises:
        InputError: 4 bits are asked for, and there is no GPU or no bitsandbytes.
    """
    options: dict[str, Any] = {
        "context_tokens": context_tokens,
        "trust_remote_code": trust_remote_code,
        "use_safetensors": None if allow_pickle else True,
    }
    if four_bit:
        require_four_bit()
        model = load_model(folder, **four_bit_options(device), **options)
    else:
        default = torch.bfloat16 if device.type == "cuda" else torch.float32
        chosen = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(dtype, default)
        model = load_model(folder, dtype=chosen, **options)
        model = model.to(device) if move else model
    frozen: nn.Module = model.requires_grad_(False).eval()
    return frozen


class Policy(ABC):
    """A model that is trained as a whole or in part; `start` begins a task."""

    trains_head = False
    """Whether the output embeddings are trained."""
    has_reference = True
    """Whether `log_probs` can use the reference policy."""

    def __init__(self, base: nn.Module) -> None:
        """Probe the base model for what it can do."""
        self.base = base.eval()
        self.device = next(base.parameters()).device
        self.dtype = next(base.parameters()).dtype
        self.vocabulary: int = base.config.get_text_config().vocab_size
        self.num_weights: int = sum(p.numel() for p in base.parameters())
        self.is_sharded = is_sharded(base)
        self.capabilities = find_capabilities(base)
        self.is_compiled = False

    @property
    def layout(self) -> Layout:
        """How rows are laid out in the micro-batches of this model."""
        return self.capabilities.layout

    @property
    def on_gpu(self) -> bool:
        """Whether the model is on a GPU."""
        return bool(self.device.type == "cuda")

    @abstractmethod
    def start(self, *, seed: int, from_base: bool) -> dict[str, nn.Parameter]:
        """Begin a task.

        The caller calls `synchronise` after every change of the values of the parameters.

        Args:
            seed: of the initial adapter.
            from_base: the parameters get the values of the first task of a run. Otherwise the
                caller gives values to all of them.

        Returns:
            The trainable parameters by name, in float32.
        """

    @abstractmethod
    def synchronise(self) -> None:
        """Let the model compute with the present values of the trainable parameters."""

    @abstractmethod
    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write the files that other programs load, with these values of the parameters."""

    @abstractmethod
    def network(self, *, reference: bool) -> AbstractContextManager[Any]:
        """The model, computing with the current weights or with those of the reference policy."""

    def networks(self) -> list[nn.Module]:
        """All models that compute log-probabilities."""
        return [self.base]

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Compute with the plain layers meanwhile, as before they were compiled."""
        is_compiled, self.is_compiled = self.is_compiled, False
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self.is_compiled = is_compiled

    def features(self, network: Any, batch: MicroBatch) -> Tensor:
        """The input of the log-probabilities: hidden states, or logits without a separate head.

        The result has the shape [batch size, length, hidden size or vocabulary].
        """
        return hidden_states(network, batch) if self.capabilities.separate_head else all_logits(network, batch)

    def log_probs(self, batch: MicroBatch, *, temperature: float, reference: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of every completion token, [M] each.

        Args:
            temperature: the sampling temperature.
            reference: compute with the base weights.
        """
        with self.network(reference=reference) as network:
            features = self.features(network, batch).flatten(0, 1)[batch.source_U]
            logp_U, entropy_U = token_log_probs(
                features,
                batch.targets_U,
                partial(head_logits, network) if self.capabilities.separate_head else torch.clone,
                temperature=temperature,
                vocabulary=self.vocabulary,
                trains_head=self.trains_head,
                compiled=self.is_compiled,
            )
            return logp_U[batch.distinct_M], entropy_U[batch.distinct_M]
