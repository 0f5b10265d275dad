"""The tensors of one forward pass.

In: the rows of a micro-batch in the order of its plan. Out: ids and positions of the tokens to
compute, the input of the attention (segments of a tree, or a mask of padding), and the places where
the completion tokens are predicted. What two completions share is predicted once. This module runs
no model.

Shapes: B sequences of L tokens (a tree is one sequence), N completions, M completion tokens of all
of them, U distinct predictions.
"""

# Tensor names end in their shape.
# ruff: noqa: N806, N815

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from core_hpc.training.batching import OBJECTIVES, Layout, Row
from core_hpc.training.prefix_tree import Segments, build_tree


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Tensors of one forward pass, and what the losses need of its completions."""

    input_ids_BL: Tensor
    position_ids_BL: Tensor
    attention_mask_BL: Tensor | None
    segments: Segments | None
    source_U: Tensor
    """Index into the flat [B * L] hidden states that predict `targets_U`."""
    targets_U: Tensor
    distinct_M: Tensor
    """The prediction of each completion token, an index into U."""
    row_M: Tensor
    """The completion of each token, an index into N."""
    behaviour_M: Tensor
    """Log-probabilities of the engine; NaN for completions that have none."""
    sampled_M: Tensor
    """Those on the prompt from which a completion was sampled, if it is corrected for; else NaN."""
    lengths_N: Tensor
    advantage_N: Tensor
    weight_N: Tensor
    rescue_N: Tensor
    """Bool: sampled in the rescue phase."""
    objective_N: Tensor
    """Code of the objective, an index into OBJECTIVES."""
    peer_N: Tensor
    """Mean log-probability of the peer that sampled the completion; NaN for other completions."""
    factor_M: Tensor
    """Factor of the advantage of each token."""
    teacher_M: Tensor
    """Log-probabilities of the teacher; NaN for completions that have none."""
    rows: tuple[int, ...]
    """The row of each completion, an index into the rows of the task."""

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch on a device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor | Segments)}
        return replace(self, **moved)


def collate(rows: Sequence[Row], members: Sequence[int], layout: Layout) -> MicroBatch:
    """The micro-batch of some rows.

    Args:
        members: indices of the rows; for a tree in lexicographic order of their inputs.
    """
    inputs = [rows[i].inputs for i in members]
    if layout == "tree":
        tree = build_tree(inputs)
        ids_BL, positions_BL, mask_BL, segments = tree.token_ids_T[None], tree.depth_T[None], None, tree.segments
        places = tree.places
    else:
        ids_BL, positions_BL, mask_BL = _padded(inputs)
        segments = None
        places = [torch.arange(b * ids_BL.shape[1], b * ids_BL.shape[1] + len(ids)) for b, ids in enumerate(inputs)]
    # The last token of a prompt predicts the first one of its completion.
    source_M = torch.cat([place[len(rows[i].prompt_token_ids) - 1 :] for place, i in zip(places, members, strict=True)])
    targets_M = torch.cat([torch.as_tensor(rows[i].completion_token_ids) for i in members])
    base = int(targets_M.max()) + 1
    pairs_U, distinct_M = (source_M * base + targets_M).unique(return_inverse=True)
    lengths_N = torch.tensor([len(rows[i].completion_token_ids) for i in members])
    return MicroBatch(
        input_ids_BL=ids_BL,
        position_ids_BL=positions_BL,
        attention_mask_BL=mask_BL,
        segments=segments,
        source_U=pairs_U // base,
        targets_U=pairs_U % base,
        distinct_M=distinct_M,
        row_M=torch.repeat_interleave(torch.arange(len(members)), lengths_N),
        behaviour_M=torch.cat([_of_tokens(rows[i], rows[i].behaviour_logprobs) for i in members]),
        sampled_M=torch.cat([_of_tokens(rows[i], rows[i].sampled_logprobs) for i in members]),
        lengths_N=lengths_N,
        advantage_N=torch.tensor([rows[i].advantage for i in members], dtype=torch.float32),
        weight_N=torch.tensor([rows[i].weight for i in members], dtype=torch.float32),
        rescue_N=torch.tensor([rows[i].rescue for i in members]),
        objective_N=torch.tensor([OBJECTIVES.index(rows[i].objective) for i in members]),
        peer_N=torch.tensor([_or_nan(rows[i].peer_logprob) for i in members], dtype=torch.float32),
        factor_M=torch.cat([_of_tokens(rows[i], rows[i].token_factors) for i in members]).nan_to_num(1.0),
        teacher_M=torch.cat([_of_tokens(rows[i], rows[i].teacher_logprobs) for i in members]),
        rows=tuple(members),
    )


def _padded(inputs: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, positions and mask, padded on the right."""
    size = len(inputs), max(map(len, inputs))
    ids_BL = torch.zeros(size, dtype=torch.long)
    mask_BL = torch.zeros(size, dtype=torch.long)
    for b, ids in enumerate(inputs):
        ids_BL[b, : len(ids)] = torch.as_tensor(ids)
        mask_BL[b, : len(ids)] = 1
    return ids_BL, torch.arange(size[1]) * mask_BL, mask_BL


def _of_tokens(row: Row, values: Sequence[float] | None) -> Tensor:
    """Values of the completion tokens of a row; NaN if it has none."""
    if values is None:
        return torch.full((len(row.completion_token_ids),), torch.nan)
    return torch.as_tensor(values, dtype=torch.float32)


def _or_nan(value: float | None) -> float:
    return torch.nan if value is None else value
