"""From rows to optimizer steps, to ranks, and to micro-batches.

In: the completions of one update task in a fixed order. Out: the same plan on every rank, without
communication. A micro-batch has one of two layouts: a prefix tree, in which what its rows have in
common is computed once, or padded rows, for models whose attention cannot be replaced. A completion
that cannot move the weights belongs to its step and counts in the divisor of the loss, but it is in
no micro-batch. This module holds no tensors (they are made in `micro_batch.py`) and never tokenises
a text again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from core_hpc.common.errors import InputError
from core_hpc.problems.splits import cut_into_steps
from core_hpc.training.prefix_tree import num_common

Layout = Literal["tree", "padded"]
Objective = Literal["policy", "likelihood", "shaped", "cross", "sdpo"]
OBJECTIVES: tuple[Objective, ...] = ("policy", "likelihood", "shaped", "cross", "sdpo")
"""What a row contributes: the gain of `update.loss`, or one of `transfer.py`."""
Lesson = Literal["taught", "rehearsed", "internalised", "peer", "self_taught"]
Source = Literal["cold", "rescue"] | Lesson
SOURCES: tuple[Source, ...] = ("cold", "rescue", "taught", "rehearsed", "internalised", "peer", "self_taught")
"""Where a row comes from: the model's own completions by phase, texts of peers, own texts again, own
hinted rescues that are learned on the prompt without the hint, all rollouts of peers (HACPO), and
own failures that the model with the hint corrects (sdpo)."""

MICRO_BATCH_OVERHEAD = 64
"""Fixed cost of one more forward and backward pass, in tokens (SmolLM2-135M on 2 cores)."""
KEYS_PER_TOKEN = 8
"""Largest number of keys in a tree's micro-batch, per token that it may have.

Each sequence has its own copy of its keys, and all copies are kept for the backward pass.
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One completion, with exactly the ids that the engine was given and sampled."""

    key: tuple[object, ...]
    problem_id: str
    prompt_token_ids: Sequence[int]
    completion_token_ids: Sequence[int]
    behaviour_logprobs: Sequence[float] | None
    """None: this model has not sampled it (`phases/shared_rescues.py`)."""
    advantage: float
    weight: float
    rescue: bool = False
    """Sampled in the rescue phase."""
    objective: Objective = "policy"
    lesson: Lesson | None = None
    """None: the model sampled it in this iteration and learns it as such."""
    sampled_logprobs: Sequence[float] | None = None
    """Of the engine, on the other prompt from which it was sampled; None: no correction for that."""
    peer_logprob: float | None = None
    """Mean log-probability per token of the peer that sampled it, in the peer's tokens (cross)."""
    token_factors: Sequence[float] | None = None
    """Factors of the advantage of each token (rlsd); None: 1."""
    teacher_logprobs: Sequence[float] | None = None
    """Log-probabilities of the model with the hint (sdpo)."""
    reliance: float | None = None
    """How much a correct hinted rescue relies on its hint, for the metrics."""

    @property
    def source(self) -> Source:
        """Where the row comes from, for the metrics."""
        return self.lesson or ("rescue" if self.rescue else "cold")

    @property
    def inputs(self) -> list[int]:
        """What the model reads; the last token is only predicted."""
        return [*self.prompt_token_ids, *self.completion_token_ids[:-1]]


@dataclass(frozen=True)
class MicroBatchPlan:
    """The rows of one forward pass, and how many tokens are computed for them."""

    rows: tuple[int, ...]
    """Indices of the rows, in the order of the layout."""
    num_tokens: int
    num_padded_tokens: int
    """Tokens with the padding."""
    num_keys: int
    """Tokens of all rows; the attention of a tree has a copy of each of them."""


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step: its rows, and the micro-batches of every rank (a rank may have none)."""

    problem_ids: tuple[str, ...]
    rows: tuple[int, ...]
    num_completion_tokens: int
    """Of all rows, including those that are in no micro-batch."""
    micro_batches: tuple[tuple[MicroBatchPlan, ...], ...]

    @property
    def rows_run(self) -> list[int]:
        """The rows that are in a micro-batch."""
        return [i for rank in self.micro_batches for batch in rank for i in batch.rows]

    @property
    def num_tokens(self) -> int:
        """Tokens that are computed for the step, on all ranks."""
        return sum(batch.num_tokens for rank in self.micro_batches for batch in rank)

    @property
    def num_padded_tokens(self) -> int:
        """The same with the padding."""
        return sum(batch.num_padded_tokens for rank in self.micro_batches for batch in rank)


def check_rows(rows: Sequence[Row]) -> None:
    """Check that the ids and log-probabilities of every row belong together.

    Raises:
        InputError: names the first row where they do not, or reports that there are no rows.
    """
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


def step_rows(
    rows: Sequence[Row], *, problems_per_step: int, seed: int
) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """(problem ids, row indices) of every optimizer step.

    Each problem occurs once; `seed` draws their order.
    """
    by_problem: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_problem.setdefault(row.problem_id, []).append(index)
    groups = cut_into_steps(list(by_problem), problems_per_step=problems_per_step, seed=seed)
    return [(group, tuple(i for problem in group for i in by_problem[problem])) for group in groups]


def moves_weights(row: Row, *, with_zero_signal: bool) -> bool:
    """Whether the loss of the row has a gradient.

    It needs tokens and a weight. If the rewards of a problem are all equal (zero signal), its
    completions have no advantage, and only some losses move the weights then (`plan_steps`).
    """
    return bool(row.completion_token_ids) and row.weight != 0 and (with_zero_signal or row.advantage != 0)


def plan_steps(
    rows: Sequence[Row],
    *,
    problems_per_step: int,
    seed: int,
    num_ranks: int,
    max_tokens: int,
    layout: Layout,
    with_zero_signal: bool = True,
) -> list[StepPlan]:
    """The optimizer steps of a task, with the micro-batches of every rank.

    Args:
        max_tokens: most computed tokens of a micro-batch; a longer row is a micro-batch of its own.
        with_zero_signal: completions without an advantage have a gradient, too: the loss has a KL
            term, or its gain is a function of the user.
    """
    check_rows(rows)
    plans = []
    for problems, indices in step_rows(rows, problems_per_step=problems_per_step, seed=seed):
        line = _line(rows, [i for i in indices if moves_weights(rows[i], with_zero_signal=with_zero_signal)], layout)
        micro_batches = tuple(tuple(_cut(mine, max_tokens)) for mine in _deal(line, num_ranks))
        num_completion_tokens = sum(len(rows[i].completion_token_ids) for i in indices)
        plans.append(StepPlan(problems, indices, num_completion_tokens, micro_batches))
    return plans


def plan_pass(rows: Sequence[Row], indices: Sequence[int], *, max_tokens: int, layout: Layout) -> list[MicroBatchPlan]:
    """Micro-batches for a pass over rows whose order does not matter."""
    return _cut(_line(rows, indices, layout), max_tokens)


def idle_batches(planned: Sequence[Sequence[MicroBatchPlan]], rank: int) -> list[MicroBatchPlan]:
    """What a rank computes without an effect, so that all ranks compute equally many micro-batches.

    It is the smallest micro-batch of all ranks, as often as necessary.

    Args:
        planned: the micro-batches of every rank.
    """
    num_missing = max(map(len, planned)) - len(planned[rank])
    smallest = min((batch for own in planned for batch in own), key=lambda b: b.num_padded_tokens, default=None)
    return [] if smallest is None else [smallest] * num_missing


@dataclass(frozen=True)
class _Line:
    """Rows in an order in which neighbours go well together."""

    layout: Layout
    indices: list[int]
    lengths: list[int]
    """Tokens that the model reads."""
    common: list[int]
    """How many of them the row shares with the row before it; 0 in the padded layout."""

    def part(self, start: int, end: int) -> _Line:
        return _Line(self.layout, self.indices[start:end], self.lengths[start:end], self.common[start:end])

    def micro_batch(self, start: int, end: int) -> MicroBatchPlan:
        num_keys = sum(self.lengths[start:end])
        num_tokens = num_keys - sum(self.common[start + 1 : end])
        padded = num_tokens if self.layout == "tree" else (end - start) * self.lengths[end - 1]
        return MicroBatchPlan(tuple(self.indices[start:end]), num_tokens, padded, num_keys)


def _line(rows: Sequence[Row], indices: Sequence[int], layout: Layout) -> _Line:
    """Order the rows so that neighbours go well together.

    For a tree the order is lexicographic, so that rows with a common beginning are neighbours.
    Padded rows are ordered by their length.
    """
    inputs = {i: rows[i].inputs for i in indices}
    if layout == "padded":
        order = sorted(indices, key=lambda i: (len(inputs[i]), i))
        common = [0] * len(order)
    else:
        order = sorted(indices, key=lambda i: (inputs[i], i))
        common = [num_common(inputs[order[n - 1]], inputs[i]) if n else 0 for n, i in enumerate(order)]
    return _Line(layout, order, [len(inputs[i]) for i in order], common)


def _deal(line: _Line, num_ranks: int) -> list[_Line]:
    """Consecutive rows for each rank; the largest number of tokens is as small as possible."""
    low, high = max(line.lengths, default=0), sum(line.lengths)
    while low < high:
        middle = (low + high) // 2
        if len(_ends(line, middle)) <= num_ranks:
            high = middle
        else:
            low = middle + 1
    ends = _ends(line, low)
    ends += [len(line.indices)] * (num_ranks - len(ends))
    return [line.part(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _ends(line: _Line, limit: int) -> list[int]:
    """Ends of consecutive groups of rows, each filled as long as it has at most `limit` tokens."""
    ends, num_tokens = list[int](), 0
    for n, (length, common) in enumerate(zip(line.lengths, line.common, strict=True)):
        if n and num_tokens + length - common > limit:
            ends.append(n)
            num_tokens, common = 0, 0
        num_tokens += length - common
    return [*ends, len(line.indices)]


def _cut(line: _Line, max_tokens: int) -> list[MicroBatchPlan]:
    """Cut into micro-batches of consecutive rows with the least computed tokens plus overhead.

    Dynamic programming over the end of the last micro-batch.
    """
    best: list[tuple[int, int]] = [(0, 0)]  # (cost of the first n rows, start of the last micro-batch)
    for end in range(1, len(line.indices) + 1):
        candidates, num_tokens, num_keys = list[tuple[int, int]](), 0, 0
        for start in range(end - 1, -1, -1):
            num_tokens += line.lengths[start] - (line.common[start + 1] if start + 1 < end else 0)
            num_keys += line.lengths[start]
            computed = num_tokens if line.layout == "tree" else (end - start) * line.lengths[end - 1]
            if candidates and (computed > max_tokens or num_keys > KEYS_PER_TOKEN * max_tokens):
                break
            candidates.append((best[start][0] + computed + MICRO_BATCH_OVERHEAD, start))
        best.append(min(candidates))
    batches = []
    end = len(line.indices)
    while end:
        start = best[end][1]
        batches.append(line.micro_batch(start, end))
        end = start
    return batches[::-1]
