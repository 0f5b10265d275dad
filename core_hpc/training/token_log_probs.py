"""Log-probabilities of single tokens from hidden states, without ever holding the logits of a whole micro-batch.

In: hidden states and the tokens that they should predict. Out: float32 log-probabilities that carry a gradient, and entropies that
do not. Losses are losses.py's.

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
"""Elements of the largest logits tensor that is held at once (in float32 128 MiB, and 1 GiB), by kind of device."""

Head = Callable[[Tensor], Tensor]
"""Hidden states [C, H] to logits [C, V] of their own memory, token by token."""


class _TokenLogProbs(torch.autograd.Function):
    """Log-probabilities and entropies of single tokens, chunk by chunk.

    A token's log-probability depends on its own hidden state only, so its derivative (a vector of H) can be taken
    while the chunk's logits exist, and backward is one multiplication: no logits are kept and none are computed
    twice, as checkpointing would. The head must be frozen, which LoRA guarantees: it gets no gradient.
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
        # A tensor, as compiled code would be made for one temperature only.
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
    """Log-probability and entropy of each token, and the derivative of the former by the logits: (1[v = target] - p_v) / temperature."""
    log_probs_CV = (logits_CV.float() * inverse_temperature).log_softmax(-1)
    logp_C = log_probs_CV.gather(1, targets_C[:, None])[:, 0]
    probs_CV = log_probs_CV.exp()
    entropy_C = -log_probs_CV.mul_(probs_CV).sum(-1)
    slope_CV = probs_CV.mul_(-inverse_temperature)
    slope_CV.scatter_add_(1, targets_C[:, None], inverse_temperature.expand(len(targets_C), 1))
    return logp_C, entropy_C, slope_CV.to(logits_CV.dtype)


@cache
def _compiled_terms() -> Any:
    """`_terms` as one kernel that reads the logits three times; as single operations it moves ten times the memory."""
    return torch.compile(_terms, dynamic=True)


def _chunk(hidden_CH: Tensor, targets_C: Tensor, head: Head, inverse_temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability, with a gradient for everything that it depends on, and entropy of each token."""
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
    """Float32 log-probability of each target and entropy (nats) of its distribution at the sampling temperature.

    Temperature 0 (greedy) stands for 1, as no distribution belongs to it. With `trains_head` the head's parameters get gradients,
    and the logits of a chunk are computed again in the backward pass, as what a token's gradient is multiplied by is known only
    then. The entropy carries no gradient; it is NaN where no gradient is asked for, as only optimizer steps report it. `compiled`:
    what follows the head is one kernel.
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
        again = {"use_reentrant": False, "preserve_rng_state": False}
        chunks = [
            checkpoint(_chunk, hidden_MH[p], targets_M[p], head, inverse, **again)
            for p in _parts(len(targets_M), chunk)
        ]
        return torch.cat([logp_C for logp_C, _ in chunks]), torch.cat([entropy_C for _, entropy_C in chunks])
    logp_M, entropy_M = _TokenLogProbs.apply(hidden_MH, targets_M, head, inverse, chunk, compiled)
    return logp_M, entropy_M


def _parts(count: int, size: int) -> list[slice]:
    """At least one."""
    return [slice(start, start + size) for start in range(0, max(count, 1), size)]
