"""The rows of a micro-batch as a prefix tree of token ids, and attention in such a tree.

In: token ids of sequences, in lexicographic order. Out: the tokens to compute in one row without
padding, the places of each sequence's tokens in it, and an attention function for transformers in
which a token attends only to the tokens before it in its own sequence.

A causal model gives a token the same state if the tokens before it are the same. So every sequence
gets the results that it would get alone, except for rounding, and what sequences share is computed
once: worked examples, instructions, questions, and completions that were sampled twice. This module
knows no completions, no losses and no model.

Shapes: T tokens of the tree, S segments, K keys of all segments; Q queries, H heads, D head size. A
segment is what one sequence adds to the tree. Its queries are consecutive tokens; its keys are the
whole sequence up to its last query.
"""

# Tensor names end in their shape.
# ruff: noqa: N803, N806, N815

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

if torch.cuda.is_available():  # on a CPU it is not needed, and it loads torch's compiler, which takes a second
    from torch.nn.attention.varlen import varlen_attn

    # torch before 2.12 has no such argument and always accepts keys of fewer heads.
    _GROUPED_HEADS = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

TREE_ATTENTION = "core_hpc_tree"
"""Name of the attention function in transformers; its models need `segments` in every call."""
_FLASH_DTYPES = (torch.bfloat16, torch.float16)
_FLASH_HEAD = 256
"""Largest head size of flash attention, which needs multiples of 8."""


@dataclass(frozen=True, kw_only=True)
class Segments:
    """The keys to which the queries of each segment attend."""

    num_queries: tuple[int, ...]
    num_keys: tuple[int, ...]
    key_index_K: Tensor
    """The token of each key, an index into T."""
    query_starts: Tensor
    """[S + 1], int32."""
    key_starts: Tensor
    """[S + 1], int32."""
    most_queries: int
    most_keys: int
    """Upper bounds per segment.

    They are powers of two, so that many micro-batches share the code that is compiled for them.
    """
    masks: dict[tuple[int, int, int | None, torch.dtype], Tensor] = field(default_factory=dict)
    """Cache of additive masks, by number of queries and keys, window and dtype."""
    windows: set[int | None] | None = None
    """If this is a set, every layer adds its sliding window to it."""

    def to(self, device: torch.device) -> Segments:
        """The same segments on a device."""
        tensors = {name: getattr(self, name).to(device) for name in ("key_index_K", "query_starts", "key_starts")}
        return replace(self, **tensors, masks={})


@dataclass(frozen=True)
class Tree:
    """The tokens of some sequences, each common beginning once."""

    token_ids_T: Tensor
    depth_T: Tensor
    """Position of a token in its sequences; 0 is the first."""
    places: list[Tensor]
    """For each sequence, the indices of its tokens in T."""
    segments: Segments


def num_common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning of two sequences.

    >>> num_common([1, 2, 3], [1, 2, 4, 5]), num_common([1], [1, 2]), num_common([3], [4])
    (2, 1, 0)
    """
    length = min(len(left), len(right))
    if left[:length] == right[:length]:
        return length
    return next(i for i in range(length) if left[i] != right[i])


def build_tree(sequences: Sequence[Sequence[int]]) -> Tree:
    """The tree of sequences that are in lexicographic order; each has at least one id."""
    token_ids: list[int] = []
    depths: list[int] = []
    places: list[Tensor] = []
    num_queries, num_keys, keys = [], [], []
    for n, ids in enumerate(sequences):
        common = num_common(sequences[n - 1], ids) if n else 0
        own = torch.arange(len(token_ids), len(token_ids) + len(ids) - common)
        place = torch.cat([places[-1][:common], own]) if common else own
        token_ids += ids[common:]
        depths += range(common, len(ids))
        places.append(place)
        if len(own):
            num_queries.append(len(own))
            num_keys.append(len(ids))
            keys.append(place)
    segments = Segments(
        num_queries=tuple(num_queries),
        num_keys=tuple(num_keys),
        key_index_K=torch.cat(keys),
        query_starts=_starts(num_queries),
        key_starts=_starts(num_keys),
        most_queries=_power_of_two(max(num_queries)),
        most_keys=_power_of_two(max(num_keys)),
    )
    return Tree(torch.tensor(token_ids), torch.tensor(depths), places, segments)


def _starts(counts: Sequence[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0).to(torch.int32)


def _power_of_two(number: int) -> int:
    """The next power of two, at least 128, which is the smallest block of flash attention."""
    return max(128, 1 << (number - 1).bit_length())


class _Gather(torch.autograd.Function):  # type: ignore[misc]  # torch is not type-checked here
    """Rows of a tensor by index. Gradients of a repeated row are added in float32."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows = len(values)
        return values.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,), grad = ctx.saved_tensors, grads[0]
        summed = torch.zeros(ctx.num_rows, *grad.shape[1:], dtype=torch.float32, device=grad.device)
        return summed.index_add_(0, index, grad.float()).to(grad.dtype), None


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention in a tree, with the signature that transformers expects.

    Args:
        query: [1, H, T, D]; key and value have the same shape, with H or fewer heads.

    Returns:
        [1, T, H, D], and no attention weights.

    Raises:
        ValueError: the model asks for something that is not supported. The probes then choose
            padded batches.
    """
    if segments is None or attention_mask is not None or dropout or softcap is not None or s_aux is not None:
        raise ValueError("tree attention needs segments, and does not support masks, dropout, capped scores or sinks")
    if segments.windows is not None:
        segments.windows.add(sliding_window)
    query_QHD, key_THD, value_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    key_KHD, value_KHD = (_Gather.apply(x, segments.key_index_K) for x in (key_THD, value_THD))
    head = query.shape[-1]
    flash = query.is_cuda and query.dtype in _FLASH_DTYPES and head <= _FLASH_HEAD and head % 8 == 0
    attend = _flash if flash else _one_by_one
    return attend(query_QHD, key_KHD, value_KHD, segments, scaling, sliding_window)[None], None


def _flash(
    query_QHD: Tensor, key_KHD: Tensor, value_KHD: Tensor, segments: Segments, scale: float | None, window: int | None
) -> Tensor:
    """torch's flash attention over sequences of different lengths.

    The last query of a segment attends to its last key.
    """
    return varlen_attn(
        query_QHD,
        key_KHD,
        value_KHD,
        segments.query_starts,
        segments.key_starts,
        segments.most_queries,
        segments.most_keys,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **_GROUPED_HEADS,
    )


def _one_by_one(
    query_QHD: Tensor, key_KHD: Tensor, value_KHD: Tensor, segments: Segments, scale: float | None, window: int | None
) -> Tensor:
    """Attention segment by segment.

    `split` is used since the gradient of a slice would have the size of the whole tensor.
    """
    parts = zip(
        query_QHD.split(segments.num_queries),
        key_KHD.split(segments.num_keys),
        value_KHD.split(segments.num_keys),
        strict=True,
    )
    out = []
    for query, key, value in parts:
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
        plain = len(query) == len(key) and (window is None or window >= len(key))
        seen = {"is_causal": True} if plain else {"attn_mask": _mask(segments, len(query), len(key), window, query)}
        found = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=q.shape[1] != k.shape[1], **seen)
        out.append(found[0].transpose(0, 1))
    return torch.cat(out)


def _mask(segments: Segments, num_queries: int, num_keys: int, window: int | None, like: Tensor) -> Tensor:
    """Additive mask, [1, 1, Q, K].

    A query attends to the keys up to its own, but not to more than `window` of them.
    """
    name = (num_queries, num_keys, window if window is not None and window < num_keys else None, like.dtype)
    if name not in segments.masks:
        visible = torch.ones(num_queries, num_keys, dtype=torch.bool, device=like.device).tril(num_keys - num_queries)
        if name[2] is not None:
            visible = visible.triu(num_keys - num_queries - name[2] + 1)
        mask = torch.zeros(visible.shape, dtype=like.dtype, device=like.device)
        segments.masks[name] = mask.masked_fill_(~visible, torch.finfo(like.dtype).min)[None, None]
    return segments.masks[name]


AttentionInterface.register(TREE_ATTENTION, tree_attention)
