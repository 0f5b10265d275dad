"""The score phase: all reward parts and the advantage of each completion (METHOD.md section 4).

In: the cold and rescue rollouts of all models for one part of the problems. Out: one shard of
schema.SCORES. The formulas are in `protocol`. This module provides the embeddings of the texts and
selects the rows that are compared: all completions of a problem, or with `update.group: model`
those of each model by itself, as if the model were trained alone. With `update.baseline` the rewards
stay those of the team, and only mean and standard deviation are taken over fewer rows.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core_hpc.config.run import RunConfig
from core_hpc.phases.context import TaskContext
from core_hpc.phases.own_functions import own_advantages, own_reward_parts
from core_hpc.phases.text_embeddings import Vectors, embed_texts, published_embeddings
from core_hpc.problems.splits import TRAIN, iterations_per_epoch, problems_of_steps
from core_hpc.protocol.advantages import baseline_groups, grouped_advantages, members
from core_hpc.protocol.distance import FloatArray, operation_signature
from core_hpc.protocol.failures import BoolArray
from core_hpc.protocol.lessons import scheduled_weight
from core_hpc.protocol.rewards import ProblemGroup, score_problem
from core_hpc.protocol.team_pass import team_pass_advantages
from core_hpc.runs.contents import read_rollouts, scored_tasks
from core_hpc.store import shards
from core_hpc.store.schema import COLD, REWARD_PARTS, ROLLOUTS, ROW_KEY, SCORES

COMPARED_COLUMNS = (
    *ROW_KEY,
    "num_completion_tokens",
    "finish_reason",
    "text",
    "answer",
    "gold",
    "correct",
    "hint_given",
)
"""The columns of rollouts that `score_rollouts` reads. Token ids and log-probabilities, which are most
of a shard, are not among them."""

_COPIED = tuple(name for name in SCORES.schema if name in ROLLOUTS.schema)


def run(context: TaskContext) -> None:
    """Score one part and publish the scores."""
    key = context.key
    tasks = scored_tasks(context.run.config, key)
    rollouts = read_rollouts(context.run, tasks, columns=(*COMPARED_COLUMNS, *_COPIED))
    known = published_embeddings(context)
    context.stopwatch.lap("read")
    scored = score_rollouts(context, rollouts, embeddings=embed_texts(context, rollouts["text"].to_list(), known))
    context.stopwatch.lap("score")
    frame = pl.concat([rollouts.select(_COPIED), scored], how="horizontal").with_columns(
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
        rollouts: completions of whole problems, of both phases, with `COMPARED_COLUMNS`.
        embeddings: vectors [rows, d] of the texts; None embeds them.
    """
    vectors = embed_texts(context, rollouts["text"].to_list()) if embeddings is None else embeddings
    rewards = reward_rollouts(context, rollouts, vectors)
    of_team_pass = _team_pass_advantages(context, rollouts)
    advantage, zero_signal = _advantages(context, rollouts, rewards["reward"].to_numpy(), of_team_pass)
    team_pass = pl.Series("team_pass_advantage", of_team_pass).fill_nan(None)
    return rewards.with_columns(team_pass, advantage=advantage, zero_signal=zero_signal)


def reward_rollouts(context: TaskContext, rollouts: pl.DataFrame, embeddings: Vectors) -> pl.DataFrame:
    """Reward parts and total reward of rollouts, in their order.

    Args:
        context: the task; its iteration selects the reward weights.
        rollouts: completions of whole problems, of one or both phases, with `COMPARED_COLUMNS`.
        embeddings: vectors [rows, d] of the texts.
    """
    config = context.run.config
    index = schedule_index(context)
    out = {name: np.zeros(rollouts.height) for name in (*REWARD_PARTS, "reward")}
    groups = rollouts.with_row_index("row").partition_by(_compared(config), maintain_order=True)
    own_parts = own_reward_parts(context.run, groups, index)
    for done, group in enumerate(groups, start=1):
        rows = group["row"].to_numpy()
        scored = score_problem(
            _group(config, group, embeddings[rows]),
            config.reward,
            index,
            own_parts={name: values[done - 1] for name, values in own_parts.items()},
            limit_s=config.extensions.time_limit_s,
        )
        for name in REWARD_PARTS:
            out[name][rows] = getattr(scored, name)
        out["reward"][rows] = scored.total
        context.progress(done, len(groups), 0)
    return pl.DataFrame(out)


def _compared(config: RunConfig) -> list[str]:
    """The columns in which completions agree that are compared with each other."""
    return ["problem_id", "model"] if config.update.group == "model" else ["problem_id"]


def _advantages(
    context: TaskContext, rollouts: pl.DataFrame, rewards: FloatArray, of_team_pass: FloatArray
) -> tuple[FloatArray, BoolArray]:
    """Advantage, and whether all completions of its group have the advantage 0; both [rows]."""
    config, update = context.run.config, context.run.config.update
    problems = rollouts["problem_id"].to_list()
    models = rollouts["model"].to_list()
    steps = problems_of_steps(
        sorted(set(problems)),
        problems_per_step=update.problems_per_step,
        run_seed=config.seed,
        iteration=context.key.iteration,
    )
    step_of = {problem: str(step) for step, members_of in enumerate(steps) for problem in members_of}
    groups = baseline_groups(
        update.baseline,
        compared=[f"{p}\n{m}" for p, m in zip(problems, models, strict=True)] if update.group == "model" else problems,
        batches=[step_of[problem] for problem in problems],
        models=models,
        phases=rollouts["phase"].to_list(),
    )
    if update.advantage_function is not None:
        found = own_advantages(context.run, rollouts, rewards, members(groups))
    else:
        found = grouped_advantages(rewards, groups, scale=update.advantage_scale)
    if update.team_pass.is_on:
        own = update.team_pass
        share = scheduled_weight(own.weight, own.weight_end, own.weight_iterations, context.key.iteration)
        found = (1 - share) * found + share * np.nan_to_num(of_team_pass)
    zero_signal = np.zeros(len(found), dtype=bool)
    for rows in members(groups):
        zero_signal[rows] = not found[rows].any()
    return found, zero_signal


def _team_pass_advantages(context: TaskContext, rollouts: pl.DataFrame) -> FloatArray:
    """The advantages of cold completions for team Pass@k, [rows]; NaN for other rows, or if they are off."""
    update = context.run.config.update
    found = np.full(rollouts.height, np.nan)
    if not update.team_pass.is_on:
        return found
    cold = rollouts.with_row_index("row").filter(pl.col("phase") == COLD)
    for group in cold.partition_by(_compared(context.run.config), maintain_order=True):
        right = group["correct"].to_numpy()
        found[group["row"].to_numpy()] = team_pass_advantages(group["model"].to_list(), right, k=update.team_pass.k)
    return found


def _group(config: RunConfig, group: pl.DataFrame, embeddings: Vectors) -> ProblemGroup:
    texts = group["text"].to_list()
    # Only those of one problem are in memory. Equal texts are rare among problems.
    signature_of = {text: operation_signature(text) for text in set(texts)}
    models, phases, correct = (group[name].to_list() for name in ("model", "phase", "correct"))
    return ProblemGroup(
        models=np.array(models),
        phases=np.array(phases),
        correct=np.array(correct, dtype=bool),
        answers=group["answer"].to_list(),
        gold=group["gold"][0],
        hint_given=group["hint_given"].to_numpy(),
        signatures=[signature_of[text] for text in texts],
        embeddings=embeddings,
        texts=texts,
        length_shares=_length_shares(config, group) if config.reward.overlong.weight else None,
    )


def _length_shares(config: RunConfig, group: pl.DataFrame) -> NDArray[np.float64]:
    """Completion tokens / max_new_tokens of the model, [n]; 1 for a truncated completion."""
    limits = {m.name: config.sampling_of(m, COLD).max_new_tokens for m in config.team}
    shares = group["num_completion_tokens"].to_numpy() / np.array([limits[m] for m in group["model"]])
    return np.where(group["finish_reason"].to_numpy() == "length", 1.0, shares)
