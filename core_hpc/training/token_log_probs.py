"""Log-probabilities of single tokens from hidden states, chunk by chunk.

The logits of a whole micro-batch are never in memory at once. In: hidden states and the tokens that
they should predict. Out: float32 log-probabilities that carry a gradient, and entropies that carry
none. This module computes no losses.

Shapes: M predicted tokens, H hidden size, V vocabulary, C tokens of a chunk.
"""

# Tensor names end in their shape.
# ruff: noqa: N803, N806

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = {"cpu": 2**25, "cuda": 2**28}
"""Elements of the largest logits tensor, by kind of device (in float32 128 MiB and 1 GiB)."""

Head = Callable[[Tensor], Tensor]
"""Hidden states [C, H] to new logits [C, V], which depend on the token's own hidden state only."""


class _TokenLogProbs(torch.autograd.Function):  # type: ignore[misc]  # torch is not type-checked here
    """Log-probabilities and entropies of single tokens, chunk by chunk.

    The log-probability of a token depends on its own hidden state only. So its derivative (a vector
    of H) is taken while the logits of the chunk exist, and the backward pass is one multiplication.
    No logits are kept, and none are computed twice, unlike with checkpointing. The head gets no
    gradient, so it must be frozen, which LoRA guarantees.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MH: Tensor,
        targets_M: Tensor,
        head: Head,
        inverse_temperature: float,
        chunk: int,
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        logp_M = torch.empty(len(targets_M), dtype=torch.float32, device=hidden_MH.device)
        entropy_M = torch.empty_like(logp_M)
        slope_MH = torch.empty_like(hidden_MH)
        terms = _compiled_terms() if compiled else _terms
        # A tensor, because with a number the code would be compiled for this temperature only.
        inverse = torch.tensor(inverse_temperature, dtype=torch.float32, device=hidden_MH.device)
        for part in _parts(len(targets_M), chunk):
            hidden_CH = hidden_MH[part].detach().requires_grad_()
            with torch.enable_grad():
                logits_CV = head(hidden_CH)
            logp_M[part], entropy_M[part], slope_CV = terms(logits_CV.detach(), targets_M[part], inverse)
            (slope_MH[part],) = torch.autograd.grad(logits_CV, hidden_CH, slope_CV)
        ctx.save_for_backward(slope_MH)
        ctx.mark_non_differentiable(entropy_M)
        return logp_M, entropy_M

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope_MH,) = ctx.saved_tensors
        return (slope_MH * grads[0][:, None]).to(slope_MH.dtype), None, None, None, None, None


def _terms(logits_CV: Tensor, targets_C: Tensor, inverse_temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability and entropy of each token, and the derivative of the former by the logits.

    The derivative is (1[v = target] - p_v) / temperature.
    """
    log_probs_CV = (logits_CV.float() * inverse_temperature).log_softmax(-1)
    logp_C = log_probs_CV.gather(1, targets_C[:, None])[:, 0]
    probs_CV = log_probs_CV.exp()
    entropy_C = -log_probs_CV.mul_(probs_CV).sum(-1)
    slope_CV = probs_CV.mul_(-inverse_temperature)
    slope_CV.scatter_add_(1, targets_C[:, None], inverse_temperature.expand(len(targets_C), 1))
    return logp_C, entropy_C, slope_CV.to(logits_CV.dtype)


@cache
def _compiled_terms() -> Any:
    """`_terms` as one kernel.

    It reads the logits three times; separate operations move ten times as much memory.
    """
    return torch.compile(_terms, dynamic=True)


def _chunk(hidden_CH: Tensor, targets_C: Tensor, head: Head, inverse_temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability, with gradients for hidden states and head, and entropy of each token."""
    log_probs_CV = (head(hidden_CH).float() * inverse_temperature).log_softmax(-1)
    logp_C = log_probs_CV.gather(1, targets_C[:, None])[:, 0]
    log_probs_CV = log_probs_CV.detach()
    return logp_C, -(log_probs_CV.exp() * log_probs_CV).sum(-1)


def token_log_probs(
    hidden_MH: Tensor,
    targets_M: Tensor,
    head: Head,
    *,
    temperature: float,
    vocabulary: int,
    trains_head: bool = False,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and entropy (nats) of its distribution, in float32.

    The entropy carries no gradient. Without gradients it is not computed but NaN, since only
    optimizer steps report it.

    Args:
        temperature: the sampling temperature; 0 (greedy) has no distribution and is treated as 1.
        vocabulary: number of logits per token, for the size of a chunk.
        trains_head: the parameters of the head get gradients. Then the logits of a chunk are
            computed again in the backward pass, because only there the factor of a token's
            gradient is known.
        compiled: run everything after the head as one kernel.
    """
    inverse = 1.0 / temperature if temperature > 0 else 1.0
    chunk = max(1, MAX_LOGITS[hidden_MH.device.type] // vocabulary)
    if not torch.is_grad_enabled():
        parts = _parts(len(targets_M), chunk)
        found = [
            -F.cross_entropy(head(hidden_MH[p]).float().mul_(inverse), targets_M[p], reduction="none") for p in parts
        ]
        return torch.cat(found), hidden_MH.new_full((len(targets_M),), torch.nan, dtype=torch.float32)
    if trains_head:
        options = {"use_reentrant": False, "preserve_rng_state": False}
        parts = _parts(len(targets_M), chunk)
        chunks = [checkpoint(_chunk, hidden_MH[p], targets_M[p], head, inverse, **options) for p in parts]
        return torch.cat([logp_C for logp_C, _ in chunks]), torch.cat([entropy_C for _, entropy_C in chunks])
    logp_M, entropy_M = _TokenLogProbs.apply(hidden_MH, targets_M, head, inverse, chunk, compiled)
    return logp_M, entropy_M


def _parts(count: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size`; at least one, which may be empty."""
    return [slice(start, start + size) for start in range(0, max(count, 1), size)]
