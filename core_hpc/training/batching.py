"""From rows to optimizer steps, to ranks, to padded micro-batches.

In: the completions of one update task in a fixed order. Out: the same plan on every rank, without communication.
Completions of one problem which have the very same prompt ids may share one copy of the prompt in a *sequence*
(prompt, completion, completion, ...): a mask keeps the completions from seeing each other, so the result is that
of separate sequences with fewer tokens. A completion that cannot move the weights belongs to its step, and counts in
what the losses divide by, but is in no micro-batch. This module runs no model and never re-tokenises.

Shapes: B sequences of a micro-batch, L padded length, N completions, M completion tokens of all of them.
"""

# Tensor names end in their shape.
# ruff: noqa: N803, N806, N815

from __future__ import annotations

import random
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from core_hpc.errors import InputError

MICRO_BATCH_OVERHEAD = 64
"""Fixed cost of one more forward and backward pass, in padded tokens (SmolLM2-135M on 2 cores)."""


@dataclass(frozen=True)
class Row:
    """One completion, with exactly the ids that the engine was given and sampled."""

    key: tuple[object, ...]
    problem_id: str
    prompt_token_ids: Seq[int]
    completion_token_ids: Seq[int]
    behaviour_logprobs: Seq[float] | None
    """None: this model has not sampled it (phases/shared_rescues.py)."""
    advantage: float
    weight: float
    rescue: bool = False
    """Sampled in the rescue phase."""


@dataclass(frozen=True)
class Sequence:
    """Rows (indices) that share one copy of their prompt; `num_tokens` in all."""

    rows: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step: which rows, and which micro-batches every rank runs (a rank may have none)."""

    problem_ids: tuple[str, ...]
    rows: tuple[int, ...]
    num_completion_tokens: int
    """Of all rows, those that are not run included."""
    micro_batches: tuple[tuple[tuple[Sequence, ...], ...], ...]

    @property
    def rows_run(self) -> list[int]:
        """The rows that are in a micro-batch."""
        return [i for rank in self.micro_batches for batch in rank for s in batch for i in s.rows]

    @property
    def num_tokens(self) -> int:
        return sum(s.num_tokens for rank in self.micro_batches for batch in rank for s in batch)

    @property
    def num_padded_tokens(self) -> int:
        return sum(len(batch) * max(s.num_tokens for s in batch) for rank in self.micro_batches for batch in rank)


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one forward pass. `source_M` indexes the flat [B * L] hidden states which predict the targets."""

    input_ids_BL: Tensor
    position_ids_BL: Tensor
    attention_mask: Tensor
    source_M: Tensor
    targets_M: Tensor
    row_M: Tensor
    behaviour_M: Tensor
    """NaN where there are none."""
    lengths_N: Tensor
    advantage_N: Tensor
    weight_N: Tensor
    rescue_N: Tensor
    rows: tuple[int, ...]

    def to(self, device: torch.device) -> MicroBatch:
        return MicroBatch(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()})


def check_rows(rows: Seq[Row]) -> None:
    """Raise InputError, naming the row, where ids and log-probabilities do not belong together."""
    if not rows:
        raise InputError("update: there is no completion to learn from; were the rollouts of this iteration published?")
    for row in rows:
        if row.behaviour_logprobs is not None and len(row.behaviour_logprobs) != len(row.completion_token_ids):
            raise InputError(
                f"update: row {row.key}: {len(row.behaviour_logprobs)} log-probabilities for "
                f"{len(row.completion_token_ids)} completion tokens; sample this shard again"
            )
        if not row.prompt_token_ids:
            raise InputError(f"update: row {row.key}: no prompt ids; sample this shard again")


def step_rows(rows: Seq[Row], *, problems_per_step: int, seed: int) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """(problem ids, row indices) of every optimizer step: each problem once, in an order drawn by `seed`."""
    by_problem: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_problem.setdefault(row.problem_id, []).append(index)
    order = list(by_problem)
    random.Random(seed).shuffle(order)
    groups = [tuple(order[i : i + problems_per_step]) for i in range(0, len(order), problems_per_step)]
    return [(group, tuple(i for problem in group for i in by_problem[problem])) for group in groups]


def moves_weights(row: Row, *, with_kl: bool) -> bool:
    """Whether the row's part of a loss has a gradient: it has tokens, a weight, and an advantage or a KL term.

    Without KL, the completions of a problem whose rewards are all equal (zero signal) have none.
    """
    return bool(row.completion_token_ids) and row.weight != 0 and (with_kl or row.advantage != 0)


def plan_steps(
    rows: Seq[Row], *, problems_per_step: int, seed: int, num_ranks: int, max_tokens: int, max_shared_length: int, with_kl: bool = True
) -> list[StepPlan]:
    """The optimizer steps of a task, dealt to ranks.

    Args:
        max_tokens: padded tokens of a micro-batch at most; a longer sequence is a micro-batch of its own.
        max_shared_length: prompt + completion up to which prompts may be shared; 0 switches sharing off.
        with_kl: the loss has a KL term, so completions without advantage have a gradient too.
    """
    check_rows(rows)
    plans = []
    for problems, indices in step_rows(rows, problems_per_step=problems_per_step, seed=seed):
        run = [i for i in indices if moves_weights(rows[i], with_kl=with_kl)]
        total = sum(_row_tokens(rows[i]) for i in run)
        sequences = _share_prompts(rows, run, min(max_tokens, -(-total // num_ranks)), max_shared_length)
        dealt = _deal(sequences, num_ranks)
        micro_batches = tuple(tuple(_cut(mine, max_tokens)) for mine in dealt)
        num_completion_tokens = sum(len(rows[i].completion_token_ids) for i in indices)
        plans.append(StepPlan(problems, indices, num_completion_tokens, micro_batches))
    return plans


def _row_tokens(row: Row) -> int:
    return len(row.prompt_token_ids) + len(row.completion_token_ids)


def _share_prompts(rows: Seq[Row], indices: Seq[int], limit: int, max_shared_length: int) -> list[Sequence]:
    """Sequences of up to `limit` tokens.

    Prompts are shared where the prompt is at least as long as the completion: with longer completions the saving
    is small, and attention over the joint sequence costs more than it saves.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    sequences = []
    for i in indices:
        row = rows[i]
        if len(row.completion_token_ids) > len(row.prompt_token_ids) or _row_tokens(row) > max_shared_length:
            sequences.append(Sequence((i,), _row_tokens(row)))
        else:
            groups.setdefault(tuple(row.prompt_token_ids), []).append(i)
    for prompt, members in groups.items():
        taken: list[int] = []
        size = len(prompt)
        for i in members:
            more = len(rows[i].completion_token_ids)
            if taken and size + more > limit:
                sequences.append(Sequence(tuple(taken), size))
                taken, size = [], len(prompt)
            taken.append(i)
            size += more
        sequences.append(Sequence(tuple(taken), size))
    return sequences


def _deal(sequences: Seq[Sequence], num_ranks: int) -> list[list[Sequence]]:
    """Longest first, each to the rank with the fewest tokens so far (ties: lowest rank)."""
    dealt: list[list[Sequence]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for sequence in sorted(sequences, key=lambda s: (-s.num_tokens, s.rows)):
        rank = loads.index(min(loads))
        dealt[rank].append(sequence)
        loads[rank] += sequence.num_tokens
    return dealt


def _cut(sequences: Seq[Sequence], max_tokens: int) -> list[tuple[Sequence, ...]]:
    """Micro-batches of length-sorted sequences: the cut of least padded tokens plus overhead (dynamic programme)."""
    ordered = sorted(sequences, key=lambda s: (s.num_tokens, s.rows))
    best: list[tuple[int, int]] = [(0, 0)]  # (cost of the first j sequences, start of the last micro-batch)
    for j, last in enumerate(ordered, start=1):
        candidates = [(best[j - 1][0] + last.num_tokens + MICRO_BATCH_OVERHEAD, j - 1)]
        for i in range(j - 2, -1, -1):
            padded = (j - i) * last.num_tokens
            if padded > max_tokens:
                break
            candidates.append((best[i][0] + padded + MICRO_BATCH_OVERHEAD, i))
        best.append(min(candidates))
    batches = []
    end = len(ordered)
    while end:
        start = best[end][1]
        batches.append(tuple(ordered[start:end]))
        end = start
    return batches[::-1]


def collate(rows: Seq[Row], sequences: Seq[Sequence], *, dtype: torch.dtype) -> MicroBatch:
    """Right-padded tensors of one micro-batch; `dtype` is that of the additive mask where prompts are shared."""
    length = max(s.num_tokens for s in sequences)
    size = (len(sequences), length)
    input_ids_BL = torch.zeros(size, dtype=torch.long)
    position_ids_BL = torch.zeros(size, dtype=torch.long)
    # Segment 0 is the prompt, k the k-th completion, -1 padding.
    segment_BL = torch.full(size, -1, dtype=torch.long)
    source: list[Tensor] = []
    targets: list[Tensor] = []
    for b, sequence in enumerate(sequences):
        prompt = torch.as_tensor(rows[sequence.rows[0]].prompt_token_ids, dtype=torch.long)
        prompt_length = len(prompt)
        input_ids_BL[b, :prompt_length] = prompt
        position_ids_BL[b, :prompt_length] = torch.arange(prompt_length)
        segment_BL[b, :prompt_length] = 0
        start = prompt_length
        for k, index in enumerate(sequence.rows, start=1):
            completion = torch.as_tensor(rows[index].completion_token_ids, dtype=torch.long)
            end = start + len(completion)
            input_ids_BL[b, start:end] = completion
            position_ids_BL[b, start:end] = torch.arange(prompt_length, prompt_length + len(completion))
            segment_BL[b, start:end] = k
            # The last prompt token predicts the first token of every completion.
            source.append(b * length + torch.cat([torch.tensor([prompt_length - 1]), torch.arange(start, end - 1)]))
            targets.append(completion)
            start = end
    shared = any(len(s.rows) > 1 for s in sequences)
    members = tuple(i for s in sequences for i in s.rows)
    lengths_N = torch.tensor([len(rows[i].completion_token_ids) for i in members])
    return MicroBatch(
        input_ids_BL=input_ids_BL,
        position_ids_BL=position_ids_BL,
        attention_mask=_shared_mask(segment_BL, dtype) if shared else (segment_BL >= 0).long(),
        source_M=torch.cat(source),
        targets_M=torch.cat(targets),
        row_M=torch.repeat_interleave(torch.arange(len(members)), lengths_N),
        behaviour_M=torch.cat([_behaviour(rows[i]) for i in members]),
        lengths_N=lengths_N,
        advantage_N=torch.tensor([rows[i].advantage for i in members], dtype=torch.float32),
        weight_N=torch.tensor([rows[i].weight for i in members], dtype=torch.float32),
        rescue_N=torch.tensor([rows[i].rescue for i in members]),
        rows=members,
    )


def _behaviour(row: Row) -> Tensor:
    if row.behaviour_logprobs is None:
        return torch.full((len(row.completion_token_ids),), torch.nan)
    return torch.as_tensor(row.behaviour_logprobs, dtype=torch.float32)


def _shared_mask(segment_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, L, L]: a token sees the prompt and its own segment, up to itself."""
    query, key = segment_BL[:, :, None], segment_BL[:, None, :]
    causal = torch.ones(segment_BL.shape[1], segment_BL.shape[1], dtype=torch.bool).tril()
    # Padding sees padding, so that no row is empty: a softmax over nothing is NaN.
    visible = causal & ((key == query) | (key == 0))
    return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)[:, None]
