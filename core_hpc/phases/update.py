"""The update phase: one model learns from its own completions (METHOD.md section 5).

In: scores of all parts, the model's cold and rescue rollouts, and its previous weights; with some
options also rollouts of its peers (`peers.py`). Out: a published folder with an ordinary PEFT
adapter (with `tuning: full`, an ordinary model), the optimizer state, and one row of schema.STEPS
per optimizer step. The computation is in `training/`.

With several ranks every rank runs this module, and rank 0 publishes. A request to stop makes it
raise StoppedError between two optimizer steps. The next attempt of a task that stopped or died
continues from the last checkpoint (`phases/checkpoint.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from core_hpc.common.errors import StoreError
from core_hpc.common.faults import fault_point
from core_hpc.common.seeds import stable_seed
from core_hpc.config.model import ModelSection
from core_hpc.config.run import RunConfig
from core_hpc.config.update import UpdateSection
from core_hpc.engines.share import Sharing
from core_hpc.phases.behaviour import check_behaviour
from core_hpc.phases.checkpoint import CheckpointStore, remove_checkpoints, write_steps
from core_hpc.phases.context import TaskContext
from core_hpc.phases.lessons import lesson_rows
from core_hpc.phases.peer_rollouts import hacpo_rows
from core_hpc.phases.reliance import Rate, with_reliance
from core_hpc.phases.rescue_context import in_context
from core_hpc.phases.self_teacher import TokenRate, with_teacher
from core_hpc.phases.shared_rescues import shared_rows
from core_hpc.phases.trainer_settings import trainer_settings
from core_hpc.problems.splits import shuffle_seed
from core_hpc.runs.contents import check_counts
from core_hpc.runs.graph import horizon_at, sampler_of
from core_hpc.store import manifests, shards
from core_hpc.store.paths import OPTIMIZER_STATES, TEAM, TaskKey
from core_hpc.store.schema import COLD, RESCUE, ROLLOUTS, ROW_KEY, SCORE, SCORES, UPDATE
from core_hpc.training.batching import Row, step_rows
from core_hpc.training.guard import default_limit
from core_hpc.training.interruption import Interruption, rows_digest
from core_hpc.training.state_io import STATE_VERSION
from core_hpc.training.task import UpdateResult, UpdateTask
from core_hpc.training.trainer import Trainer

ROLLOUT_COLUMNS = (
    *ROW_KEY,
    "prompt_token_ids",
    "completion_token_ids",
    "logprobs",
    "finish_reason",
    "hint_given",
    "correct",
)
SCORE_COLUMNS = (*ROW_KEY, "correct", "truncated", "cold_failed", "hint_given", "reward", "advantage")
"""What the update and the options for lessons read of the scores of all models."""


def run(context: TaskContext) -> None:
    """Update one model and publish the result."""
    trainer = _trainer(context)
    context.stopwatch.lap("load")
    key, previous = context.key, context.update_manifest(context.key.iteration - 1, optimizer=True)
    rows = training_rows(
        context,
        lambda rows: trainer.mean_log_probs(_task(context, rows, previous)),
        lambda rows: trainer.token_log_probs(_task(context, rows, previous)),
    )
    context.stopwatch.lap("read")
    task = _task(context, rows, previous)
    limit, mismatch = task.max_mismatch, _compare_with_sampler(context, trainer, task)
    if mismatch is not None:
        context.stopwatch.lap("compare")
    if _has_stale_samples(context):
        task = replace(task, max_mismatch=None)
    checkpoints = CheckpointStore(context.paths, key, _identity(context, task, previous))
    task = replace(task, resume=checkpoints.find(trainer), interruption=_interruption(context, checkpoints))
    if trainer.rank != 0:
        trainer.update(task, None)
        return
    result: list[UpdateResult] = []

    def fill(folder: Path) -> dict[str, tuple[int, str]]:
        result.append(trainer.update(task, folder))
        context.stopwatch.lap("update")
        return {"steps.parquet": write_steps(folder, result[0].steps, context.run.run_id, key)}

    def stats() -> dict[str, object]:
        return context.stats(
            num_completions=len(rows),
            num_ranks=result[0].num_ranks,
            resumed_from_step=task.resume.steps.height if task.resume else 0,
            mismatch=result[0].steps["mismatch_mean"].max() if mismatch is None else mismatch,
            max_mismatch=limit,
            **vars(result[0].timings),
        )()

    manifests.publish(context.paths.task_folder(key), context.paths.task_name(key), fill, as_folder=True, stats=stats)
    remove_checkpoints(context.paths, key)


def training_rows(context: TaskContext, rate: Rate | None = None, token_rate: TokenRate | None = None) -> list[Row]:
    """The model's completions of the iteration with advantage and weight, in a fixed order.

    After them come the rescues of peers, if `update.share_rescues` is set, and the lessons of
    `update.teach`.

    Args:
        context: the update task.
        rate: log-probabilities under the weights before the update, for `teach.teacher: likelihood`
            and the reliance of rescues, which is not measured without it.
        token_rate: the same for each token, for `update.self_teacher`.

    Raises:
        StoreError: a rollout has no score, or a score no rollout.
    """
    rollouts, scores = _scored_rollouts(context)
    update = context.run.config.update
    own = _with_options(context, rollouts, _own_rows(rollouts, update), rate, token_rate)
    if update.hacpo.enabled:
        own = hacpo_rows(context, scores, own)
    shared = shared_rows(context, scores) if update.share_rescues else []
    lessons = lesson_rows(context, scores, own, rate) if update.teach.is_on else []
    return own + shared + lessons


def _scored_rollouts(context: TaskContext) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The model's own rollouts of the iteration with their advantages, and the scores of all models.

    Raises:
        StoreError: a rollout has no score, or a score no rollout.
    """
    run, key = context.run, context.key
    graph = run.graph()
    parts = range(graph.num_parts)
    phases = (COLD, RESCUE) if graph.has_rescue else (COLD,)
    own = [TaskKey(key.iteration, phase, key.model, p) for p in parts for phase in phases]
    rollouts = shards.read_tasks(run.root, own, ROLLOUTS, columns=ROLLOUT_COLUMNS)
    scored = [TaskKey(key.iteration, SCORE, TEAM, p) for p in parts]
    scores = shards.read_tasks(run.root, scored, SCORES, columns=SCORE_COLUMNS)
    advantages = scores.filter(pl.col("model") == key.model).select(*ROW_KEY, "advantage")
    for score_key in scored:
        check_counts(run, score_key, manifests.read_manifest(run.paths.task_manifest(score_key)))
    joined = rollouts.join(advantages, on=ROW_KEY, how="left", maintain_order="left")
    if joined.height != advantages.height or joined["advantage"].null_count():
        raise StoreError(
            f"{key}: there are {rollouts.height} rollouts but {advantages.height} scores of {key.model}; remove the "
            f"score manifests of iteration {key.iteration} in {run.root} and run the same command again"
        )
    return joined, scores


def _own_rows(rollouts: pl.DataFrame, update: UpdateSection) -> list[Row]:
    """The model's own rollouts as rows, in a fixed order."""
    weights = {COLD: 1.0, RESCUE: update.rescue_weight}
    masked = "length" if update.truncated == "mask" else None
    return [
        Row(
            key=(r["problem_id"], r["phase"], r["sample_index"]),
            problem_id=r["problem_id"],
            prompt_token_ids=r["prompt_token_ids"],
            completion_token_ids=r["completion_token_ids"],
            behaviour_logprobs=r["logprobs"],
            advantage=r["advantage"],
            weight=0.0 if r["finish_reason"] == masked else weights[r["phase"]],
            rescue=r["phase"] == RESCUE,
        )
        for r in rollouts.sort("problem_id", "phase", "sample_index").iter_rows(named=True)
    ]


def _with_options(
    context: TaskContext, rollouts: pl.DataFrame, own: list[Row], rate: Rate | None, token_rate: TokenRate | None
) -> list[Row]:
    """The own rows as the options of METHOD.md sections 9.5, 9.6 and 9.8 have them.

    Args:
        context: the update task.
        rollouts: the own rollouts.
        own: their rows.
        rate: see `training_rows`.
        token_rate: see `training_rows`.
    """
    update = context.run.config.update
    key = ("problem_id", "phase", "sample_index")
    given = rollouts.filter(pl.col("phase") == RESCUE, pl.col("hint_given"))
    hinted: dict[tuple[object, ...], bool] = {(*row,): right for *row, right in given.select(*key, "correct").rows()}
    if rate is not None:
        own = with_reliance(own, hinted, rate, scale=update.reliance_scale)
    own = in_context(own, hinted, update)
    if update.self_teacher.is_on:
        assert token_rate is not None
        wrong = rollouts.filter(pl.col("phase") == COLD, ~pl.col("correct"))
        own = with_teacher(context, own, frozenset(wrong.select(key).rows()), token_rate)
    return own


def _trainer(context: TaskContext) -> Trainer:
    model, update = context.model, context.run.config.update
    folder = context.base_folder(model)
    settings = trainer_settings(
        context,
        folder=folder,
        name=model.model if model.warmup is None else folder.relative_to(context.run.root).as_posix(),
        lora=model.lora,
        context_tokens=context.run.facts[model.name].context_tokens,
        four_bit=model.tuning == "qlora",
        shard_base=context.run.config.cluster.zero_stage == 3,
        with_reference=model.tuning == "full" and update.kl_weight > 0,
    )
    return context.warm.trainer(settings, partial(Trainer, settings))


def settings_of(config: RunConfig, model: ModelSection) -> UpdateSection:
    """The settings of the update, with the model's own learning rate if it has one."""
    own = {} if model.learning_rate is None else {"learning_rate": model.learning_rate}
    return config.update.model_copy(update=own)


def _task(context: TaskContext, rows: Sequence[Row], previous: manifests.Manifest | None) -> UpdateTask:
    run, key = context.run, context.key
    horizon = horizon_at(run.horizons(), key.iteration)
    tokens = sum(len(r.completion_token_ids) for r in rows)

    def on_progress(done: int, total: int) -> None:
        context.progress(done, total, tokens * done // total)
        fault_point("update.step", f"{key} step {done}")

    return UpdateTask(
        rows=rows,
        settings=settings_of(run.config, context.model),
        temperature=run.config.sampling_of(context.model, COLD).temperature,
        max_new_tokens=run.config.sampling_of(context.model, COLD).max_new_tokens,
        total_steps=horizon * run.config.steps_per_iteration,
        shuffle_seed=shuffle_seed(run.config.seed, key.iteration),
        lora_seed=stable_seed(run.config.seed, UPDATE, "lora", key.model),
        previous=previous.folder if previous else None,
        adapter=None if previous else context.first_adapter(),
        on_progress=on_progress,
        max_mismatch=_max_mismatch(context),
        num_similar_tasks=_num_similar_tasks(run.config),
    )


def _max_mismatch(context: TaskContext) -> float | None:
    """The largest mismatch; None for the fake engine, whose log-probabilities are made up."""
    model, config = context.model, context.run.config
    if model.engine == "fake":
        return None
    if config.update.max_mismatch is not None:
        return config.update.max_mismatch
    return default_limit(model.dtype, model.tuning, config.sampling_of(model, COLD).top_p)


def _has_stale_samples(context: TaskContext) -> bool:
    """Whether the weights that sampled are older than those before the update, so that steps cannot compare them."""
    return sampler_of(context.key.iteration, context.run.config.protocol.staleness) != context.key.iteration - 1


def _compare_with_sampler(context: TaskContext, trainer: Trainer, task: UpdateTask) -> float | None:
    """The difference between engine and trainer, where the first step does not measure it; None: it does."""
    key = context.key
    if task.max_mismatch is None or (task.first_step_shows_engine and not _has_stale_samples(context)):
        return None
    sampler = sampler_of(key.iteration, context.run.config.protocol.staleness)
    folder = context.update_folder(sampler, optimizer=True)
    adapter = None if folder else context.first_adapter()
    where = f"{key}: weights after iteration {sampler}, which sampled"
    return check_behaviour(trainer, task, sampler=folder, adapter=adapter, where=where)


def _num_similar_tasks(config: RunConfig) -> int:
    """Updates that one process is likely to do: all of a run, unless workers end between iterations."""
    cluster = config.cluster
    stays = cluster.driver != "arrays" and Sharing.of_worker(cluster).trainers_stay
    return config.iterations if stays else 1


def _interruption(context: TaskContext, checkpoints: CheckpointStore) -> Interruption:
    interval_s = 60.0 * context.run.config.update.checkpoint_min
    return Interruption(should_stop=context.should_stop, interval_s=interval_s, save=checkpoints.save)


def _identity(context: TaskContext, task: UpdateTask, previous: manifests.Manifest | None) -> dict[str, Any]:
    """What two attempts must have in common so that one can continue from the other's checkpoint.

    The number of ranks may differ.
    """
    problems_per_step = task.settings.problems_per_step
    # Passes of the trainer compute these (reliance, self-teacher); their last digits depend on the hardware.
    rows = [replace(row, weight=0.0, token_factors=None, teacher_logprobs=None) for row in task.rows]
    return {
        "version": STATE_VERSION,
        "run_id": context.run.run_id,
        "task": str(context.key),
        "num_steps": len(step_rows(task.rows, problems_per_step=problems_per_step, seed=task.shuffle_seed)),
        "total_steps": task.total_steps,
        "shuffle_seed": task.shuffle_seed,
        "rows": rows_digest(rows),
        "previous": _optimizer_checksum(previous) if previous else [],
    }


def _optimizer_checksum(previous: manifests.Manifest) -> list[str]:
    """The checksum of the optimizer state of an update, in a list."""
    return [f.sha256 for f in previous.files if f.name.partition("/")[2] in OPTIMIZER_STATES]
