"""Losses of the update as pure functions of tensors (METHOD.md section 5).

In: log-probabilities of completion tokens. Out: sums that may be added over micro-batches and
ranks, since each of them is divided by the size of the WHOLE optimizer step. A loss consists of the
gain of a token and the share of a completion's tokens in the sum. A new loss is a function, a line
in LOSSES, and its options in LOSS_OPTIONS of `config/update.py`. This module runs no model and no
optimizer.

Shapes: N completions of a micro-batch, M completion tokens of all of them in one flat row. `row_M`
is the index of the completion to which a token belongs.
"""

# Tensor names end in their shape.
# ruff: noqa: N803, N806, N815

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core_hpc.config.update import ImportanceSection, UpdateSection
from core_hpc.training.own_loss import own_gain
from core_hpc.training.transfer import CROSS, POLICY, SDPO, cross_gain, cross_lower_bound, sdpo_gain, with_transfer


def k3(current_M: Tensor, reference_M: Tensor) -> Tensor:
    """Schulman's estimate of KL(current || reference) per token, never negative.

    >>> k3(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -2.0])).tolist()
    [0.0, 0.3678794503211975]
    """
    difference_M = reference_M - current_M
    return difference_M.expm1() - difference_M


def completion_sum(values_M: Tensor, row_M: Tensor, num_completions: int) -> Tensor:
    """Sum over the tokens of each completion, [N]."""
    return torch.zeros(num_completions, dtype=values_M.dtype, device=values_M.device).index_add(0, row_M, values_M)


def importance_weights(
    old_M: Tensor, behaviour_M: Tensor, row_M: Tensor, lengths_N: Tensor, settings: ImportanceSection
) -> Tensor:
    """Weights of tokens that correct from the engine's distribution to the trainer's, [M].

    They carry no gradient. With d = old - behaviour of a token, `settings.kind` gives the weight:

    - token_truncate: min(exp d, cap), as in TRL;
    - sequence_mask: exp(sum of d over the completion), or 0 if that is above the cap, as in TRL;
    - geometric_truncate: min(exp(mean of d over the completion), cap);
    - token_band: exp d, or 0 outside [floor, cap] (IcePop, arXiv 2510.18855);
    - geometric_reject: 1, or 0 if exp(mean of d over the completion) is outside [floor, cap];
    - none: 1.

    A completion without behaviour log-probabilities (NaN) has weight 1.
    """
    difference_M = torch.where(behaviour_M.isnan(), 0.0, (old_M - behaviour_M).detach())
    if settings.kind == "none":
        return torch.ones_like(difference_M)
    assert settings.cap is not None
    if settings.kind == "token_truncate":
        return difference_M.exp().clamp(max=settings.cap)
    if settings.kind == "token_band":
        return _within(difference_M.exp(), settings)
    sum_N = completion_sum(difference_M, row_M, len(lengths_N))
    if settings.kind == "geometric_truncate":
        weight_N = (sum_N / lengths_N).exp().clamp(max=settings.cap)
    elif settings.kind == "geometric_reject":
        geometric_N = (sum_N / lengths_N).exp()
        # Division and not a comparison, so that NaN stays NaN.
        weight_N = _within(geometric_N, settings) / geometric_N
    else:
        weight_N = sum_N.exp()
        weight_N = weight_N.masked_fill(weight_N > settings.cap, 0.0)
    return weight_N[row_M]


def _within(weights: Tensor, settings: ImportanceSection) -> Tensor:
    """The weights, with 0 instead of those outside [floor, cap]."""
    assert settings.floor is not None
    return weights.masked_fill((weights < settings.floor) | (weights > settings.cap), 0.0)


@dataclass(frozen=True)
class StepSize:
    """Size of a whole optimizer step, over all micro-batches and ranks.

    It includes completions that need no forward pass.
    """

    num_completions: int
    num_tokens: int
    max_new_tokens: int
    """Longest completion that may be sampled: the constant length of dr_grpo."""
    index: int = 0
    """0-based step of the task."""


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """The input of a loss besides the current log-probabilities; no tensor carries a gradient."""

    old_M: Tensor
    reference_M: Tensor | None
    importance_M: Tensor
    row_M: Tensor
    lengths_N: Tensor
    advantage_N: Tensor
    weight_N: Tensor
    rescue_N: Tensor
    """Bool: sampled in the rescue phase."""
    objective_N: Tensor | None = None
    """Codes of `transfer.py`; None: every completion has the gain of the loss."""
    peer_N: Tensor | None = None
    """Mean log-probabilities of the peers that sampled completions; NaN for other completions."""
    factor_M: Tensor | None = None
    """Factors of the advantage of each token; None: 1."""
    teacher_M: Tensor | None = None
    """Log-probabilities of the model with the hint; NaN for completions without such a teacher."""

    def sum(self, values_M: Tensor) -> Tensor:
        """Sum over the tokens of each completion, [N]."""
        return completion_sum(values_M, self.row_M, len(self.lengths_N))


# --- gain of a token: what is to be maximised ----------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """The input of the gain of a token. Log-probability and ratio carry the gradient."""

    current_M: Tensor
    ratio_M: Tensor
    advantage_M: Tensor
    rescue_M: Tensor


@dataclass(frozen=True)
class Gain:
    """The gain of each token, and which tokens were clipped."""

    value_M: Tensor
    clipped_M: Tensor


def clipped_gain(tokens: Tokens, settings: UpdateSection) -> Gain:
    """min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), for both signs of A.

    Eq. 21 of the paper; PPO, arXiv 1707.06347.
    """
    assert settings.clip_low is not None
    assert settings.clip_high is not None
    plain_M = tokens.ratio_M * tokens.advantage_M
    clipped_M = tokens.ratio_M.clamp(1 - settings.clip_low, 1 + settings.clip_high) * tokens.advantage_M
    return Gain(torch.minimum(plain_M, clipped_M), clipped_M < plain_M)


def gated_gain(tokens: Tokens, settings: UpdateSection) -> Gain:
    """4/tau sigmoid(tau (r - 1)) A, differentiated through r (sapo, arXiv 2511.20347).

    Its slope at r = 1 is A. tau is `tau_rescue` for completions of the rescue phase, as the authors
    of CORE have it, and otherwise depends on the sign of A.
    """
    assert settings.tau_positive is not None
    assert settings.tau_negative is not None
    assert settings.tau_rescue is not None
    tau_M = torch.full_like(tokens.advantage_M, settings.tau_negative)
    tau_M = tau_M.masked_fill(tokens.advantage_M > 0, settings.tau_positive)
    tau_M = tau_M.masked_fill(tokens.rescue_M, settings.tau_rescue)
    gate_M = 4 / tau_M * torch.sigmoid(tau_M * (tokens.ratio_M - 1))
    return Gain(gate_M * tokens.advantage_M, torch.zeros_like(tokens.rescue_M))


def capped_weight_gain(tokens: Tokens, settings: UpdateSection) -> Gain:
    """sg(min(r, ratio_cap)) A log pi, where sg stops the gradient (cispo, arXiv 2506.13585).

    Every token keeps a gradient. The cap is the largest ratio itself, not its distance from 1, and
    there is no lower bound (arXiv 2510.13786).
    """
    assert settings.ratio_cap is not None
    weight_M = tokens.ratio_M.detach().clamp(max=settings.ratio_cap)
    capped_M = (tokens.ratio_M.detach() > settings.ratio_cap) & (tokens.advantage_M != 0)
    return Gain(weight_M * tokens.advantage_M * tokens.current_M, capped_M)


# --- share of each token of a completion in the sum over a step ----------------------------------


def completion_mean(batch: TokenBatch, step: StepSize) -> Tensor:
    """w / (completions of the step * tokens of the completion), [N].

    The sum is the mean over completions of their token means.
    """
    return batch.weight_N / (step.num_completions * batch.lengths_N)


def token_mean(batch: TokenBatch, step: StepSize) -> Tensor:
    """w / tokens of the step, [N].

    The sum is the mean over all tokens, so a longer completion has more weight.
    """
    return batch.weight_N / step.num_tokens


def constant_length(batch: TokenBatch, step: StepSize) -> Tensor:
    """w / (completions of the step * longest possible completion), [N].

    It does not depend on the sampled lengths.
    """
    return batch.weight_N / (step.num_completions * step.max_new_tokens)


# --- losses --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """The loss -sum_n share_n sum_t (importance_t gain_t - kl_weight k3_t)."""

    gain: Callable[[Tokens, UpdateSection], Gain]
    share: Callable[[TokenBatch, StepSize], Tensor]


LOSSES = {
    # Eq. 21; DeepSeekMath, arXiv 2402.03300.
    "grpo": Loss(clipped_gain, completion_mean),
    # arXiv 2503.14476: token mean over the batch, clip_high above clip_low, no KL.
    "dapo": Loss(clipped_gain, token_mean),
    # arXiv 2503.20783: no length, no standard deviation, no KL.
    "dr_grpo": Loss(clipped_gain, constant_length),
    # TRL's bnpo is a token mean over the local batch, so its value depends on how a step is cut.
    # Here the batch is the step, so bnpo is dapo with the clip and KL of grpo.
    "bnpo": Loss(clipped_gain, token_mean),
    # arXiv 2507.18071: the ratio of a completion, exp(mean log r).
    "gspo": Loss(clipped_gain, completion_mean),
    # arXiv 2511.20347.
    "sapo": Loss(gated_gain, completion_mean),
    # MiniMax-M1, arXiv 2506.13585.
    "cispo": Loss(capped_weight_gain, token_mean),
}


@dataclass(frozen=True)
class LossTerms:
    """The scalar to differentiate, and detached terms of it for the metrics."""

    loss: Tensor
    policy: Tensor
    loss_N: Tensor
    """Loss of each completion; `loss` is their sum."""
    k3_N: Tensor
    """Mean k3 of each completion, independent of its share."""
    ratio_M: Tensor
    clipped_M: Tensor


def _gain(tokens: Tokens, settings: UpdateSection) -> Gain:
    """The gain of the loss, or of the user's function."""
    if settings.loss_function is None:
        return LOSSES[settings.loss].gain(tokens, settings)
    value_M = own_gain(
        settings.loss_function,
        ratio_M=tokens.ratio_M,
        advantage_M=tokens.advantage_M,
        log_prob_M=tokens.current_M,
        rescue_M=tokens.rescue_M,
    )
    return Gain(value_M, torch.zeros_like(tokens.rescue_M))


def _ratios(
    current_M: Tensor, batch: TokenBatch, objective_M: Tensor | None, settings: UpdateSection
) -> tuple[Tensor, Tensor]:
    """The ratio of each token, and the ratio that the loss uses, [M] each."""
    log_ratio_M = current_M - (current_M.detach() if settings.ratio == "current" else batch.old_M)
    if objective_M is not None:  # other objectives have no ratio
        log_ratio_M = log_ratio_M.masked_fill(objective_M != POLICY, 0.0)
    token_ratio_M = log_ratio_M.exp()
    if settings.ratio == "sequence":
        return token_ratio_M, (batch.sum(log_ratio_M) / batch.lengths_N).exp()[batch.row_M]
    return token_ratio_M, token_ratio_M


def _with_other_objectives(
    gain: Gain, tokens: Tokens, batch: TokenBatch, objective_M: Tensor, settings: UpdateSection, step: StepSize
) -> Gain:
    """The gain of the loss, except for tokens with another objective (`transfer.py`)."""
    current_M = tokens.current_M
    gain_M = with_transfer(gain.value_M, current_M, tokens.advantage_M, objective_M)
    clipped_M = gain.clipped_M & (objective_M == POLICY)
    if batch.peer_N is not None and settings.hacpo.enabled:
        cross = cross_gain(
            batch.sum(current_M) / batch.lengths_N,
            batch.peer_N,
            batch.advantage_N,
            lower=cross_lower_bound(settings.hacpo.clip_delta, settings.hacpo.clip_step, step.index),
            alpha=settings.hacpo.alpha,
        )
        is_cross_M = objective_M == CROSS
        gain_M = cross.value_N[batch.row_M].where(is_cross_M, gain_M)
        clipped_M = cross.clipped_N[batch.row_M].where(is_cross_M, clipped_M)
    if batch.teacher_M is not None and settings.self_teacher.kind == "sdpo":
        of_teacher_M = sdpo_gain(current_M, batch.old_M, batch.teacher_M, cap=settings.self_teacher.cap)
        gain_M = of_teacher_M.where(objective_M == SDPO, gain_M)
    return Gain(gain_M, clipped_M)


def objective(current_M: Tensor, batch: TokenBatch, settings: UpdateSection, step: StepSize) -> LossTerms:
    """The loss of this micro-batch, as a summand of the loss of the whole optimizer step.

    Args:
        current_M: log-probabilities under the weights to train, with gradient.
        settings: the loss and its options.
    """
    objective_M = None if batch.objective_N is None else batch.objective_N[batch.row_M]
    token_ratio_M, ratio_M = _ratios(current_M, batch, objective_M, settings)
    advantage_M = batch.advantage_N[batch.row_M]
    if batch.factor_M is not None:
        advantage_M = advantage_M * batch.factor_M
    tokens = Tokens(current_M, ratio_M, advantage_M, batch.rescue_N[batch.row_M])
    gain = _gain(tokens, settings)
    if objective_M is not None:
        gain = _with_other_objectives(gain, tokens, batch, objective_M, settings, step)
    share_N = LOSSES[settings.loss].share(batch, step)
    policy_N = -batch.sum(gain.value_M * batch.importance_M) * share_N
    loss_N, k3_N = policy_N, torch.zeros_like(policy_N)
    if batch.reference_M is not None:
        k3_M = k3(current_M, batch.reference_M)
        if objective_M is not None:  # on a peer's completion this is no estimate of the divergence (HACPO's code)
            k3_M = k3_M.masked_fill(objective_M == CROSS, 0.0)
        k3_N = batch.sum(k3_M) / batch.lengths_N
        # The ratio of the token, even if the loss uses that of the completion: only then is the
        # gradient that of the reverse KL (DeepSeek-V3.2, arXiv 2512.02556).
        penalty_M = k3_M * token_ratio_M if settings.kl_times_ratio else k3_M
        loss_N = loss_N + settings.kl_weight * batch.sum(penalty_M) * share_N
    return LossTerms(
        loss=loss_N.sum(),
        policy=policy_N.detach().sum(),
        loss_N=loss_N.detach(),
        k3_N=k3_N.detach(),
        ratio_M=ratio_M.detach(),
        clipped_M=gain.clipped_M,
    )
