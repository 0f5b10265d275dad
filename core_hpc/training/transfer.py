"""Gains of completions that the policy has not sampled from the prompt that it learns them for.

In: current log-probabilities of such texts: of a peer, or of the model itself under a hint. Out:
the gain of each token, which is to be maximised (METHOD.md section 9.2). There is no ratio and no
clip: the weights before the update give these tokens small probabilities, so the ratio passes the
clip after a few steps, and a clipped gain has no gradient from then on. Only HACPO (section 9.7) has
a ratio, to the probability that the peer itself gave its text.

Shapes: N completions of a micro-batch, M completion tokens of all of them.
"""

# Tensor names end in their shape.
# ruff: noqa: N803, N806, N815

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from core_hpc.training.batching import OBJECTIVES

POLICY, LIKELIHOOD, SHAPED, CROSS, SDPO = range(len(OBJECTIVES))
"""Codes of the objectives, in the order of `batching.OBJECTIVES`."""
SHAPE = 0.1
"""The constant gamma of the shaped gain (LUFFY, arXiv 2504.14945)."""


def likelihood_gain(current_M: Tensor, advantage_M: Tensor) -> Tensor:
    """A log pi(y_t). Its slope with respect to log pi is A, whatever the probability is."""
    return advantage_M * current_M


def shaped_gain(current_M: Tensor, advantage_M: Tensor) -> Tensor:
    """A p / (p + 0.1) with p = pi(y_t) (LUFFY, arXiv 2504.14945).

    Its slope with respect to log pi is A 0.1 p / (p + 0.1)^2: largest at p = 0.1, and small for
    tokens that are known already or nearly impossible.
    """
    probability_M = current_M.exp()
    return advantage_M * probability_M / (probability_M + SHAPE)


def with_transfer(gain_M: Tensor, current_M: Tensor, advantage_M: Tensor, objective_M: Tensor) -> Tensor:
    """The gains of the loss, except for tokens with another objective, [M].

    Args:
        gain_M: gain of every token by `update.loss`.
        current_M: current log-probabilities, with gradient.
        advantage_M: advantages.
        objective_M: codes of objectives.
    """
    gain_M = likelihood_gain(current_M, advantage_M).where(objective_M == LIKELIHOOD, gain_M)
    return shaped_gain(current_M, advantage_M).where(objective_M == SHAPED, gain_M)


def prompt_weights(old_M: Tensor, sampled_M: Tensor) -> Tensor:
    """min(pi_old(y_t | x) / pi_old(y_t | x, h), 1), [M]: truncated importance of another prompt.

    Args:
        old_M: log-probabilities before the update, on the prompt of the row.
        sampled_M: those on the prompt with the hint h, as sampled; NaN gives the weight 1.
    """
    return (old_M - sampled_M).where(~sampled_M.isnan(), 0.0).exp().clamp(max=1.0).detach()


@dataclass(frozen=True)
class CrossGain:
    """The gain of a peer's completion and whether its ratio was clipped, [N]."""

    value_N: Tensor
    clipped_N: Tensor


def cross_gain(mean_current_N: Tensor, peer_N: Tensor, advantage_N: Tensor, *, lower: float, alpha: float) -> CrossGain:
    """c sg(c)^alpha A with c = clip(r, lower, 1) (HACPO, arXiv 2603.02604), [N].

    r = exp(mean log pi - mean log pi_peer) is the ratio of a completion; each mean is over the tokens
    of its own model. A ratio outside the bounds has no gradient.

    Args:
        mean_current_N: mean log-probability per token, with gradient.
        peer_N: that of the peer before its update, in the peer's tokens; NaN for other completions.
        advantage_N: advantages, times the ratio of the capabilities.
        lower: smallest ratio.
        alpha: exponent of the weight.
    """
    ratio_N = (mean_current_N - peer_N).masked_fill(peer_N.isnan(), 0.0).exp()
    kept_N = ratio_N.clamp(lower, 1.0)
    clipped_N = ((ratio_N < lower) | (ratio_N > 1.0)) & ~peer_N.isnan()
    return CrossGain(kept_N * kept_N.detach().pow(alpha) * advantage_N, clipped_N)


def cross_lower_bound(delta: float, step: float, index: int) -> float:
    """min(1, 1 - delta + index step): HACPO trusts a peer's completions less with each step.

    `index` is the 0-based optimizer step of the iteration.

    >>> [round(cross_lower_bound(0.2, 0.025, index), 3) for index in (0, 4, 20)]
    [0.8, 0.9, 1.0]
    """
    return min(1.0, 1.0 - delta + index * step)


def sdpo_gain(current_M: Tensor, old_M: Tensor, teacher_M: Tensor, *, cap: float) -> Tensor:
    """sg((log pi_T - log pi) min(r, cap)) log pi (SDPO, arXiv 2601.20802), [M].

    The teacher pi_T is the model before the update with the hint in its prompt: tokens that it finds
    more probable become more probable, and the others less. r is the ratio to the weights before the
    update without the hint.

    Args:
        current_M: current log-probabilities, with gradient.
        old_M: before the update, without the hint.
        teacher_M: before the update, with the hint; NaN for other completions.
        cap: largest ratio.
    """
    fixed_M = current_M.detach()
    gap_M = (teacher_M - fixed_M).masked_fill(teacher_M.isnan(), 0.0)
    return gap_M * (fixed_M - old_M).exp().clamp(max=cap) * current_M
