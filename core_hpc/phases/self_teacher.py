"""The model with a hint as the teacher of its own failed cold completions (`update.self_teacher`).

In: the model's own rows, the hints of the iteration, and log-probabilities of tokens under the
weights before the update. Out: the rows, some of them with weights of tokens (rlsd) or with the
log-probabilities of the teacher (sdpo); see METHOD.md section 9.8.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import polars as pl

from core_hpc.phases.context import TaskContext
from core_hpc.phases.peers import questions_of
from core_hpc.protocol.lessons import scheduled_weight
from core_hpc.protocol.self_teacher import rlsd_factors
from core_hpc.store import shards
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import HINT, HINTS
from core_hpc.training.batching import Row

TokenRate = Callable[[Sequence[Row]], Sequence[Sequence[float]]]
"""Log-probability of each token of each row, under the weights before the update."""


def with_teacher(
    context: TaskContext, own: Sequence[Row], failed: Collection[tuple[object, ...]], rate: TokenRate
) -> list[Row]:
    """The rows in their order.

    Args:
        context: the update task.
        own: all own rows of the iteration.
        failed: keys of the wrong cold rows.
        rate: see `TokenRate`.
    """
    run, key, settings = context.run, context.key, context.run.config.update.self_teacher
    weight = scheduled_weight(settings.weight, settings.weight_end, settings.weight_iterations, key.iteration)
    hints = _hints(context)
    wanted = [r for r in own if r.key in failed and r.problem_id in hints and r.completion_token_ids]
    if not wanted or (weight == 0 and settings.kind == "rlsd"):
        return list(own)
    if weight == 0:  # as with any other weight, these rows have no policy term
        keys = {row.key for row in wanted}
        return [replace(row, weight=0.0) if row.key in keys else row for row in own]
    questions = questions_of(run)
    builder = context.prompt_builder(context.model)
    hinted = [
        replace(
            row,
            prompt_token_ids=builder.build(questions[row.problem_id], hints[row.problem_id]),
            behaviour_logprobs=None,
        )
        for row in wanted
    ]
    values = rate([*wanted, *hinted])
    plain, taught = values[: len(wanted)], values[len(wanted) :]
    new = {}
    for row, of_plain, of_hinted in zip(wanted, plain, taught, strict=True):
        if settings.kind == "rlsd":
            factors = rlsd_factors(of_plain, of_hinted, row.advantage, share=weight)
            new[row.key] = replace(row, token_factors=factors.tolist())
        else:
            new[row.key] = replace(
                row,
                advantage=1.0,
                weight=row.weight * weight,
                objective="sdpo",
                lesson="self_taught",
                teacher_logprobs=list(of_hinted),
            )
    return [new.get(row.key, row) for row in own]


def _hints(context: TaskContext) -> dict[str, str]:
    """The hint of the model for each problem that has one, whether it was shown or not."""
    run, key = context.run, context.key
    tasks = [TaskKey(key.iteration, HINT, TEAM, part) for part in range(run.graph().num_parts)]
    hints = shards.read_tasks(run.root, tasks, HINTS, columns=("model", "problem_id", "hint"))
    return dict(
        hints.filter(pl.col("model") == key.model, pl.col("hint").is_not_null()).select("problem_id", "hint").rows()
    )
