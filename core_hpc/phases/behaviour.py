"""The guard against another model where the weights that sampled are not those that are updated.

With `protocol.staleness: 1` the engine samples with weights that are one update older than those
from which the trainer starts. Their log-probabilities differ for this reason alone, so an optimizer
step cannot compare them. This module loads the weights that sampled into the trainer and compares
the log-probabilities of some completions under them (METHOD.md section 5).

In: the update task, and the folder of the weights that sampled. Out: the difference, or
MismatchError. It trains nothing; the update resets the trainer's weights anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from core_hpc.training.batching import Row
from core_hpc.training.guard import Mismatch, check_mismatch
from core_hpc.training.task import UpdateTask
from core_hpc.training.trainer import Trainer

NUM_PROBED = 16
"""Completions that are compared. A pass over them takes a few percent of the time of an update."""


def check_behaviour(
    trainer: Trainer, task: UpdateTask, *, sampler: Path | None, adapter: Path | None, where: str
) -> float:
    """Compare the engine with the weights with which it should have sampled. Collective.

    Args:
        trainer: of the model of the task.
        task: with the limit (`max_mismatch`).
        sampler: folder of the update whose weights sampled; None: those of the start.
        adapter: adapter with which the model begins, if `sampler` is None.
        where: the task, for messages.

    Returns:
        The mean difference in nats per token.

    Raises:
        MismatchError: trainer and engine are not the same model.
    """
    assert task.max_mismatch is not None
    rows = probed(task.rows)
    if not rows:
        return 0.0
    stale = replace(task, rows=rows, previous=sampler, adapter=adapter)
    policy = _differences(rows, trainer.token_log_probs(stale))
    base = None
    if trainer.settings.lora is not None and not stale.begins_at_base:
        base = _differences(rows, trainer.token_log_probs(replace(stale, previous=None, adapter=None)))
    num_tokens = dict.fromkeys(policy, 0)
    for row in rows:
        num_tokens[row.problem_id] += len(row.completion_token_ids)
    found = Mismatch(policy, base, num_tokens)
    warning = check_mismatch(found, task.max_mismatch, where=where)
    if warning and trainer.rank == 0:
        print(f"warning: {warning}", flush=True)
    return found.mean(policy)


def probed(rows: Sequence[Row]) -> list[Row]:
    """At most NUM_PROBED rows that the model's engine sampled, spread evenly over their order."""
    sampled = [row for row in rows if row.behaviour_logprobs is not None]
    num = min(len(sampled), NUM_PROBED)
    return [sampled[n * len(sampled) // num] for n in range(num)]


def _differences(rows: Sequence[Row], found: Sequence[Sequence[float]]) -> dict[str, float]:
    """|trainer - engine| summed over tokens, per problem."""
    sums: dict[str, float] = {}
    for row, own in zip(rows, found, strict=True):
        assert row.behaviour_logprobs is not None
        differences = (abs(a - b) for a, b in zip(own, row.behaviour_logprobs, strict=True))
        sums[row.problem_id] = sums.get(row.problem_id, 0.0) + sum(differences)
    return sums
