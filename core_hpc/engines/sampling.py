"""Sampling tokens from logits: temperature, top-p, and one random stream per row.

In: logits and one generator per row. Out: tokens and their log-probabilities under the distribution
from which they were drawn. Only the generators have state. The transformers engine uses this
module; vLLM has its own sampler.

Shapes: B rows, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

_NUM_CANDIDATES = 1024


def sample_tokens(
    logits: Tensor, generators: Sequence[Generator], temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """Sample one token per row.

    Args:
        logits: [B, V].
        generators: B CPU generators; each call draws one number from each, or none if greedy.
        temperature: 0 takes the most likely token and returns log-probabilities at temperature 1.
        top_p: the nucleus is the smallest set of most likely tokens with at least this probability
            mass.

    Returns:
        Tokens [B] and their log-probabilities [B] after temperature and top-p, renormalized.
    """
    import torch

    logits = logits.float()
    if temperature == 0:
        logprobs, tokens = logits.log_softmax(dim=-1).max(dim=-1)
        return tokens, logprobs
    logprobs = (logits / temperature).log_softmax(dim=-1)
    uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators]).to(logits.device)
    if top_p >= 1:
        tokens = _inverse_cdf(logprobs, uniform)
        return tokens, logprobs.gather(1, tokens[:, None])[:, 0]
    values, candidates = nucleus(logprobs, top_p)
    chosen = _inverse_cdf(values, uniform)[:, None]
    return candidates.gather(1, chosen)[:, 0], values.gather(1, chosen)[:, 0]


def nucleus(logprobs: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The nucleus as renormalized log-probabilities [B, C] (-inf outside) and tokens [B, C].

    The most likely token comes first. Sorting a vocabulary of 262k takes 20 ms per row on a CPU, so
    only the top candidates are sorted, unless their probability mass is too small.
    """
    import torch

    num = min(_NUM_CANDIDATES, logprobs.shape[-1])
    values, candidates = logprobs.topk(num, dim=-1)
    if num < logprobs.shape[-1] and bool((values.exp().sum(dim=-1) < top_p).any()):
        values, candidates = logprobs.sort(dim=-1, descending=True, stable=True)
    probs = values.double().exp()
    before = probs.cumsum(dim=-1) - probs
    outside = before >= top_p
    outside[:, 0] = False
    kept = values.masked_fill(outside, -torch.inf)
    return kept.log_softmax(dim=-1), candidates


def _inverse_cdf(logprobs: Tensor, uniform: Tensor) -> Tensor:
    """Index [B] of the first entry whose cumulative probability exceeds `uniform` [B] in [0, 1).

    The sum is in float64 because V is large.
    """
    import torch

    cdf = logprobs.double().exp().cumsum(dim=-1)
    point = (uniform * cdf[:, -1])[:, None]
    return torch.searchsorted(cdf, point, right=True)[:, 0].clamp(max=logprobs.shape[-1] - 1)
