"""Losses of the update as pure functions of tensors (METHOD section 5).

In: log-probabilities of completion tokens. Out: sums that may be added over micro-batches and ranks, since every
one is divided by the GLOBAL normaliser of the optimizer step. This module runs no model and no optimizer.

Shapes: N completions of a micro-batch, M completion tokens of all of them in one flat row, H hidden size,
V vocabulary, C tokens of a chunk. `row_M` says which completion a token belongs to.
"""

# Tensor names end in their shape.
# ruff: noqa: N803, N806, N815

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core_hpc.config import ImportanceSection, UpdateSection

MAX_LOGITS = 2**25
"""Elements of the largest logits tensor that is held at once (128 MiB in float32)."""


class _TokenLogProbs(torch.autograd.Function):
    """Log-probabilities and entropies of single tokens, chunk by chunk.

    A token's log-probability depends on its own hidden state only, so its derivative (a vector of H) can be taken
    while the chunk's logits exist, and backward is one multiplication: no logits are kept and none are computed
    twice, as checkpointing would. The head must be frozen, which LoRA guarantees.
    """

    @staticmethod
    def forward(ctx: Any, hidden_MH: Tensor, targets_M: Tensor, head: Callable[[Tensor], Tensor], inverse_temperature: float,
                chunk: int) -> tuple[Tensor, Tensor]:  # fmt: skip
        want_grad = ctx.needs_input_grad[0]
        logp_M = torch.empty(len(targets_M), dtype=torch.float32, device=hidden_MH.device)
        entropy_M = torch.empty_like(logp_M)
        slope_MH = torch.empty_like(hidden_MH) if want_grad else hidden_MH.new_empty(0)
        for start in range(0, len(targets_M), chunk):
            part = slice(start, start + chunk)
            hidden_CH = hidden_MH[part].detach().requires_grad_(want_grad)
            with torch.set_grad_enabled(want_grad):
                logits_CV = head(hidden_CH).float() * inverse_temperature
                log_probs_CV = logits_CV.log_softmax(-1)
                logp_C = log_probs_CV.gather(1, targets_M[part, None])[:, 0]
                if want_grad:
                    (slope_MH[part],) = torch.autograd.grad(logp_C.sum(), hidden_CH)
            logp_M[part] = logp_C.detach()
            log_probs_CV = log_probs_CV.detach()
            entropy_M[part] = -(log_probs_CV.exp() * log_probs_CV).sum(-1)
        ctx.save_for_backward(slope_MH)
        ctx.mark_non_differentiable(entropy_M)
        return logp_M, entropy_M

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope_MH,) = ctx.saved_tensors
        return (slope_MH * grads[0][:, None]).to(slope_MH.dtype), None, None, None, None


def token_log_probs(
    hidden_MH: Tensor, targets_M: Tensor, head: Callable[[Tensor], Tensor], *, temperature: float, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """Float32 log-probability of each target and entropy (nats) of its distribution at the sampling temperature.

    Temperature 0 (greedy) stands for 1, as no distribution belongs to it. `head` maps [C, H] to logits [C, V], token
    by token, and has no trainable parameter. The entropy carries no gradient.
    """
    inverse = 1.0 / temperature if temperature > 0 else 1.0
    chunk = max(1, MAX_LOGITS // vocabulary)
    logp_M, entropy_M = _TokenLogProbs.apply(hidden_MH, targets_M, head, inverse, chunk)
    return logp_M, entropy_M


def k3(current_M: Tensor, reference_M: Tensor) -> Tensor:
    """Schulman's estimate of KL(current || reference) per token, never negative.

    >>> k3(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -2.0])).tolist()
    [0.0, 0.3678794503211975]
    """
    difference_M = reference_M - current_M
    return difference_M.expm1() - difference_M


def importance_weights(old_M: Tensor, behaviour_M: Tensor, settings: ImportanceSection) -> Tensor:
    """Truncated weights min(pi_old / pi_engine, cap) of tokens, without gradient; ones when switched off."""
    if settings.kind == "none":
        return torch.ones_like(old_M)
    return (old_M - behaviour_M).detach().exp().clamp(max=settings.cap)


@dataclass(frozen=True)
class TokenBatch:
    """What a loss needs besides the current log-probabilities; nothing here carries a gradient."""

    old_M: Tensor
    reference_M: Tensor | None
    importance_M: Tensor
    row_M: Tensor
    lengths_N: Tensor
    advantage_N: Tensor
    weight_N: Tensor

    def completion_mean(self, values_M: Tensor) -> Tensor:
        """Mean over the tokens of each completion, [N]."""
        sums_N = torch.zeros(len(self.lengths_N), dtype=values_M.dtype, device=values_M.device)
        return sums_N.index_add(0, self.row_M, values_M) / self.lengths_N


@dataclass(frozen=True)
class PolicyTerms:
    """What a loss function returns: one term per completion, and which tokens were held by the clip."""

    policy_N: Tensor
    clipped_M: Tensor


def grpo(ratio_M: Tensor, batch: TokenBatch, settings: UpdateSection) -> PolicyTerms:
    """Eq. 21: the token mean of min(r A, clip(r) A); the minimum holds for both signs of A."""
    advantage_M = batch.advantage_N[batch.row_M]
    plain_M = ratio_M * advantage_M
    clipped_M = ratio_M.clamp(1 - settings.clip_low, 1 + settings.clip_high) * advantage_M
    gain_M = torch.minimum(plain_M, clipped_M) * batch.importance_M
    return PolicyTerms(-batch.completion_mean(gain_M), clipped_M < plain_M)


LOSSES: dict[str, Callable[[Tensor, TokenBatch, UpdateSection], PolicyTerms]] = {"grpo": grpo}


@dataclass(frozen=True)
class LossTerms:
    """The scalar to differentiate, and detached parts of it for the metrics."""

    loss: Tensor
    policy: Tensor
    loss_N: Tensor
    k3_N: Tensor
    ratio_M: Tensor
    clipped_M: Tensor


def objective(current_M: Tensor, batch: TokenBatch, settings: UpdateSection, *, normaliser: int) -> LossTerms:
    """Weighted sum over completions of policy term + beta * mean k3, divided by `normaliser`.

    `normaliser` is the number of completions of the whole optimizer step, over all micro-batches and ranks.
    """
    ratio_M = (current_M - batch.old_M).exp()
    terms = LOSSES[settings.loss](ratio_M, batch, settings)
    loss_N = terms.policy_N
    k3_N = torch.zeros_like(loss_N)
    if batch.reference_M is not None:
        k3_N = batch.completion_mean(k3(current_M, batch.reference_M))
        loss_N = loss_N + settings.kl_weight * k3_N
    return LossTerms(
        loss=(loss_N * batch.weight_N).sum() / normaliser,
        policy=(terms.policy_N * batch.weight_N).detach().sum() / normaliser,
        loss_N=loss_N.detach(),
        k3_N=k3_N.detach(),
        ratio_M=ratio_M.detach(),
        clipped_M=terms.clipped_M,
    )
