"""HACPO: a model learns from the cold completions of all models (`update.hacpo`).

In: the scores of the last iterations, the model's own rows, and the cold rollouts of its peers. Out:
the own rows with the advantages of HACPO, and the peers' completions as rows in the model's own
tokens (METHOD.md section 9.7). The column `advantage` of the scores is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from core_hpc.phases.context import TaskContext
from core_hpc.phases.peers import peer_tasks, questions_of, row_of_peer
from core_hpc.protocol.hacpo import capability, capability_ratio, hacpo_advantages
from core_hpc.store import shards
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, ROLLOUTS, ROW_KEY, SCORE, SCORES
from core_hpc.training.batching import Row


def hacpo_rows(context: TaskContext, scores: pl.DataFrame, own: Sequence[Row]) -> list[Row]:
    """The rows of the update: own ones in their order, then those of the peers.

    Args:
        context: the update task of the learner.
        scores: rows of SCORES of the iteration, of all models.
        own: the model's own rows.
    """
    run, key = context.run, context.key
    capabilities = _capabilities(context)
    advantages = _advantages(scores, key.model, capabilities)
    mine = [replace(row, advantage=advantages[key.model, row.problem_id, _sample(row)]) for row in own]
    columns = (*ROW_KEY, "text", "logprobs", "finish_reason")
    rollouts = shards.read_tasks(run.root, peer_tasks(run, key, COLD), ROLLOUTS, columns=columns)
    questions = questions_of(run)
    builder, stops = context.prompt_builder(context.model), context.stop_strings(context.model)
    max_tokens = run.config.sampling_of(context.model, COLD).max_new_tokens
    masks = run.config.update.truncated == "mask"
    theirs = []
    for r in rollouts.sort("problem_id", "model", "sample_index").iter_rows(named=True):
        if not r["logprobs"]:
            continue
        ratio = capability_ratio(capabilities[r["model"]], capabilities[key.model])
        is_cut = r["finish_reason"] == "length"
        row = row_of_peer(
            {**r, "question": questions[r["problem_id"]]},
            builder,
            stops,
            ends=not is_cut,
            advantage=ratio * advantages[r["model"], r["problem_id"], r["sample_index"]],
            weight=0.0 if is_cut and masks else 1.0,
            objective="cross",
            lesson="peer",
            peer_logprob=float(np.mean(r["logprobs"])),
        )
        if row is not None:
            theirs.append(replace(row, completion_token_ids=row.completion_token_ids[:max_tokens]))
    return mine + theirs


def _sample(row: Row) -> int:
    index = row.key[2]
    assert isinstance(index, int)
    return index


def _capabilities(context: TaskContext) -> dict[str, float]:
    """Capability of each model, from the scores of the last iterations including this one."""
    run, last = context.run, context.key.iteration
    first = max(1, last - run.config.update.hacpo.window + 1)
    shares: dict[str, list[float]] = {model.name: [] for model in run.config.team}
    for iteration in range(first, last + 1):
        tasks = [TaskKey(iteration, SCORE, TEAM, part) for part in range(run.graph().num_parts)]
        scores = shards.read_tasks(run.root, tasks, SCORES, columns=("model", "reward"))
        for model, share in scores.group_by("model").agg((pl.col("reward") > 0).mean()).rows():
            shares[model].append(share)
    return {model: capability(values) for model, values in shares.items()}


def _advantages(
    scores: pl.DataFrame, learner: str, capabilities: dict[str, float]
) -> dict[tuple[str, str, int], float]:
    """Advantage of each (model, problem, sample index) from the view of the learner."""
    found: dict[tuple[str, str, int], float] = {}
    for group in scores.partition_by("problem_id", maintain_order=True):
        models = group["model"].to_list()
        values = hacpo_advantages(group["reward"].to_numpy(), models, learner=learner, capabilities=capabilities)
        keys = group.select("model", "problem_id", "sample_index").rows()
        found |= dict(zip(keys, values.tolist(), strict=True))
    return found
