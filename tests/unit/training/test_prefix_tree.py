"""Prefix trees against brute force, and attention in them against a dense mask."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from core_hpc.training.prefix_tree import Segments, build_tree, num_common, tree_attention


def sequences(count: int, *, seed: int = 0, letters: int = 3) -> list[list[int]]:
    """Sorted sequences of few letters, so that many have a common beginning.

    One sequence is there twice, and one is the beginning of another.
    """
    rng = random.Random(seed)
    found = [[rng.randrange(letters) for _ in range(rng.randint(1, 9))] for _ in range(count)]
    return sorted([*found, found[0], found[1][:1]])


@pytest.mark.parametrize("seed", range(5))
def test_a_tree_has_each_beginning_once(seed: int) -> None:
    given = sequences(12, seed=seed)
    tree = build_tree(given)
    beginnings = {tuple(ids[:n]) for ids in given for n in range(1, len(ids) + 1)}
    assert len(tree.token_ids_T) == len(tree.depth_T) == len(beginnings)
    found = set()
    for ids, place in zip(given, tree.places, strict=True):
        assert tree.token_ids_T[place].tolist() == ids
        assert tree.depth_T[place].tolist() == list(range(len(ids)))
        found |= {(tuple(ids[: n + 1]), int(p)) for n, p in enumerate(place)}
    assert len(found) == len(beginnings), "a beginning has the same place in all its sequences"


def test_common_beginnings() -> None:
    assert num_common([], [1]) == 0
    assert num_common([1, 2], [1, 2, 3]) == 2
    assert build_tree([[1, 2], [3]]).segments.key_index_K.tolist() == [0, 1, 2]
    assert build_tree([[1, 2], [1, 3]]).segments.key_index_K.tolist() == [0, 1, 0, 2]


def dense(
    query: Any,
    key: Any,
    value: Any,
    *,
    sequences: list[list[int]],
    places: list[torch.Tensor],
    scale: float,
    window: int | None,
) -> Any:
    """One softmax over all tokens, with a mask: a token attends to the tokens before it."""
    size = query.shape[2]
    visible = torch.zeros(size, size, dtype=torch.bool)
    for ids, place in zip(sequences, places, strict=True):
        for n in range(len(ids)):
            first = 0 if window is None else max(0, n - window + 1)
            visible[place[n], place[first : n + 1]] = True
    repeat = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(repeat, dim=1).transpose(2, 3) * scale
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return (weights @ value.repeat_interleave(repeat, dim=1)).transpose(1, 2)


def attention(tensors: Sequence[torch.Tensor], mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    """Attention in a tree, for query, key and value."""
    query, key, value = tensors
    out, _ = tree_attention(None, query, key, value, mask, **options)
    return out


@pytest.mark.parametrize("window", [None, 3, 50])
@pytest.mark.parametrize("shared", [True, False])
def test_attention_equals_a_dense_mask(window: int | None, shared: bool) -> None:
    given = sequences(9) if shared else [[k, 1, 2, 1, 2] for k in range(3)]
    tree = build_tree(given)
    assert (len(tree.segments.key_index_K) > len(tree.token_ids_T)) is shared
    torch.manual_seed(0)
    size = len(tree.token_ids_T)
    tensors = [torch.randn(1, heads, size, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    upstream = torch.randn(1, size, 4, 8, dtype=torch.float64)
    results = []
    for name in ("tree", "dense"):
        if name == "tree":
            out = attention(tensors, segments=tree.segments, scaling=0.3, sliding_window=window)
        else:
            out = dense(*tensors, sequences=given, places=tree.places, scale=0.3, window=window)
        (out * upstream).sum().backward()
        results.append([out.detach(), *(t.grad.clone() for t in tensors)])
        for t in tensors:
            t.grad = None
    for found, wanted in zip(*results, strict=True):
        # Gradients of shared keys are summed in float32, although the tensors have float64.
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


def test_unsupported_kinds_of_attention_are_refused() -> None:
    tree = build_tree([[1, 2], [1, 3]])
    tensors = [torch.randn(1, 2, 3, 8) for _ in range(3)]
    segments: dict[str, Segments] = {"segments": tree.segments}
    unsupported = [{"softcap": 30.0}, {"s_aux": torch.zeros(2)}, {"dropout": 0.1}]
    for wrong in ({}, *({**segments, **options} for options in unsupported)):
        with pytest.raises(ValueError, match="tree attention"):
            attention(tensors, **wrong)
    with pytest.raises(ValueError, match="tree attention"):
        attention(tensors, torch.zeros(1, 1, 3, 3), **segments)
