"""The score phase: every reward part and the advantage of each completion of a part.

In: cold and rescue rollouts of a part, of all models. Out: one shard of schema.SCORES. The formulae are protocol/'s; this
module embeds the texts and says which rows are compared: all of a problem, or with `update.group: model` those of each
model by itself, as if it were trained alone.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from core_hpc.phases.context import TaskContext
from core_hpc.problems.splits import TRAIN, iterations_per_epoch
from core_hpc.protocol.advantages import advantages
from core_hpc.protocol.distance import operation_signature
from core_hpc.protocol.rewards import ProblemGroup, score_problem
from core_hpc.store import shards
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import COLD, RESCUE, REWARD_PARTS, ROLLOUTS, SCORES


def run(context: TaskContext) -> None:
    """Score one part and publish it."""
    config, key = context.run.config, context.key
    phases = (COLD, RESCUE) if config.protocol.rescue_samples else (COLD,)
    keys = [TaskKey(key.iteration, phase, m.name, key.part) for phase in phases for m in config.team]
    rollouts = shards.read_tasks(context.run.root, keys, ROLLOUTS)
    context.stopwatch.lap("read")
    scored = score_rollouts(context, rollouts)
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
    """0-based epoch or iteration that the weights of this task's iteration belong to."""
    config = context.run.config
    if config.reward.schedule_by == "iteration":
        return context.key.iteration - 1
    per_epoch = iterations_per_epoch(context.run.num_problems(TRAIN), config.protocol.problems_per_iteration)
    return (context.key.iteration - 1) // per_epoch


def score_rollouts(context: TaskContext, rollouts: pl.DataFrame) -> pl.DataFrame:
    """Reward parts, total, advantage and zero_signal of rollouts, row by row in their order."""
    reward, update = context.run.config.reward, context.run.config.update
    texts = rollouts["text"].to_list()
    embeddings = np.asarray(context.warm.embed(reward.distance.embedder, texts))
    signatures = [operation_signature(text) for text in texts]
    index = schedule_index(context)
    out = {name: np.zeros(rollouts.height) for name in (*REWARD_PARTS, "reward", "advantage")}
    zero_signal = np.zeros(rollouts.height, dtype=bool)
    compared = ["problem_id", "model"] if update.group == "model" else ["problem_id"]
    groups = rollouts.with_row_index("row").partition_by(compared, maintain_order=True)
    for done, group in enumerate(groups, start=1):
        rows = group["row"].to_numpy()
        scored = score_problem(_group(group, embeddings[rows], [signatures[r] for r in rows]), reward, index)
        for name in REWARD_PARTS:
            out[name][rows] = getattr(scored, name)
        out["reward"][rows] = scored.total
        out["advantage"][rows] = advantages(scored.total, scale=update.advantage_scale)
        zero_signal[rows] = not out["advantage"][rows].any()
        context.progress(done, len(groups), 0)
    return pl.DataFrame({**out, "zero_signal": zero_signal})


def _group(group: pl.DataFrame, embeddings: np.ndarray, signatures: list[frozenset[str]]) -> ProblemGroup:
    models, phases = group["model"].to_list(), group["phase"].to_list()
    solved_cold = {m for m, p, c in zip(models, phases, group["correct"], strict=True) if p == COLD and c}
    cold_present = {m for m, p in zip(models, phases, strict=True) if p == COLD}
    return ProblemGroup(
        models=np.array(models),
        phases=np.array(phases),
        correct=group["correct"].to_numpy(),
        answers=group["answer"].to_list(),
        gold=group["gold"][0],
        hint_given=group["hint_given"].to_numpy(),
        cold_failed=np.array([m in cold_present and m not in solved_cold for m in models]),
        signatures=signatures,
        embeddings=embeddings,
        texts=group["text"].to_list(),
    )
