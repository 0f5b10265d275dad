"""The score phase: all reward parts and the advantage of each completion (METHOD.md section 4).

In: the cold and rescue rollouts of all models for one part of the problems. Out: one shard of
schema.SCORES. The formulas are in `protocol`. This module provides the embeddings of the texts and
selects the rows that are compared: all completions of a problem, or with `update.group: model`
those of each model by itself, as if the model were trained alone.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from core_hpc.phases.context import TaskContext
from core_hpc.phases.text_embeddings import Vectors, embed_texts, published_embeddings
from core_hpc.problems.splits import TRAIN, iterations_per_epoch
from core_hpc.protocol.advantages import advantages
from core_hpc.protocol.distance import operation_signature
from core_hpc.protocol.failures import cold_failed
from core_hpc.protocol.rewards import ProblemGroup, score_problem
from core_hpc.runs.contents import read_rollouts
from core_hpc.store import shards
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import COLD, RESCUE, REWARD_PARTS, ROLLOUTS, SCORES


def run(context: TaskContext) -> None:
    """Score one part and publish the scores."""
    config, key = context.run.config, context.key
    phases = (COLD, RESCUE) if config.protocol.rescue_samples else (COLD,)
    keys = [TaskKey(key.iteration, phase, m.name, key.part) for phase in phases for m in config.team]
    rollouts = read_rollouts(context.run, keys)
    known = published_embeddings(context)
    context.stopwatch.lap("read")
    scored = score_rollouts(context, rollouts, embeddings=embed_texts(context, rollouts["text"].to_list(), known))
    context.stopwatch.lap("score")
    same = [name for name in SCORES.schema if name in ROLLOUTS.schema]
    frame = pl.concat([rollouts.select(same), scored], how="horizontal").with_columns(
        truncated=rollouts["finish_reason"] == "length"
    )
    shards.publish_frame(
        context.paths.task_folder(key),
        context.paths.task_name(key),
        frame.select(list(SCORES.schema)),
        SCORES,
        stats=context.stats(num_completions=frame.height),
    )


def schedule_index(context: TaskContext) -> int:
    """The 0-based epoch or iteration that selects the reward weights of this task's iteration."""
    config = context.run.config
    if config.reward.schedule_by == "iteration":
        return context.key.iteration - 1
    per_epoch = iterations_per_epoch(context.run.num_problems(TRAIN), config.protocol.problems_per_iteration)
    return (context.key.iteration - 1) // per_epoch


def score_rollouts(context: TaskContext, rollouts: pl.DataFrame, *, embeddings: Vectors | None = None) -> pl.DataFrame:
    """Reward parts, total reward, advantage and zero_signal of rollouts, in their order.

    Args:
        context: the task; its iteration selects the reward weights.
        rollouts: completions of whole problems, of one or both phases.
        embeddings: vectors [rows, d] of the texts; None embeds them.
    """
    reward, update = context.run.config.reward, context.run.config.update
    texts = rollouts["text"].to_list()
    vectors = embed_texts(context, texts) if embeddings is None else embeddings
    signatures = [operation_signature(text) for text in texts]
    index = schedule_index(context)
    out = {name: np.zeros(rollouts.height) for name in (*REWARD_PARTS, "reward", "advantage")}
    zero_signal = np.zeros(rollouts.height, dtype=bool)
    compared = ["problem_id", "model"] if update.group == "model" else ["problem_id"]
    groups = rollouts.with_row_index("row").partition_by(compared, maintain_order=True)
    for done, group in enumerate(groups, start=1):
        rows = group["row"].to_numpy()
        scored = score_problem(_group(group, vectors[rows], [signatures[r] for r in rows]), reward, index)
        for name in REWARD_PARTS:
            out[name][rows] = getattr(scored, name)
        out["reward"][rows] = scored.total
        out["advantage"][rows] = advantages(scored.total, scale=update.advantage_scale)
        zero_signal[rows] = not out["advantage"][rows].any()
        context.progress(done, len(groups), 0)
    return pl.DataFrame({**out, "zero_signal": zero_signal})


def _group(group: pl.DataFrame, embeddings: Vectors, signatures: list[frozenset[str]]) -> ProblemGroup:
    models, phases, correct = (group[name].to_list() for name in ("model", "phase", "correct"))
    return ProblemGroup(
        models=np.array(models),
        phases=np.array(phases),
        correct=np.array(correct, dtype=bool),
        answers=group["answer"].to_list(),
        gold=group["gold"][0],
        hint_given=group["hint_given"].to_numpy(),
        cold_failed=cold_failed(models, phases, correct),
        signatures=signatures,
        embeddings=embeddings,
        texts=group["text"].to_list(),
    )
