"""The update phase: one model learns from its own completions (METHOD.md section 5).

In: scores of all parts, the model's cold and rescue rollouts, its previous weights. Out: a
published folder with an ordinary PEFT adapter (with `tuning: full`, an ordinary model), the
optimizer state, and one row of schema.STEPS per optimizer step. The computation is in `training/`.

With several ranks every rank runs this module, and rank 0 publishes. A request to stop makes it
raise StoppedError between two optimizer steps. The next attempt of a task that stopped or died
continues from the last checkpoint (`phases/checkpoint.py`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from core_hpc.common.errors import StoreError
from core_hpc.common.faults import fault_point
from core_hpc.common.seeds import stable_seed
from core_hpc.config.run import ModelSection, RunConfig
from core_hpc.config.update import UpdateSection
from core_hpc.engines.share import Sharing
from core_hpc.phases.checkpoint import CheckpointStore, remove_checkpoints, write_steps
from core_hpc.phases.context import TaskContext
from core_hpc.phases.shared_rescues import shared_rows
from core_hpc.runs.contents import check_counts
from core_hpc.runs.graph import horizon_at, steps_per_iteration
from core_hpc.store import manifests, shards
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, RESCUE, ROLLOUTS, ROW_KEY, SCORE, SCORES, UPDATE
from core_hpc.training.batching import Row, step_rows
from core_hpc.training.guard import default_limit
from core_hpc.training.interruption import Interruption, rows_digest
from core_hpc.training.state_io import STATE_VERSION
from core_hpc.training.task import TrainerSettings, UpdateResult, UpdateTask
from core_hpc.training.trainer import Trainer

ROLLOUT_COLUMNS = (*ROW_KEY, "prompt_token_ids", "completion_token_ids", "logprobs")


def run(context: TaskContext) -> None:
    """Update one model and publish the result."""
    rows = training_rows(context)
    context.stopwatch.lap("read")
    trainer = _trainer(context)
    context.stopwatch.lap("load")
    key, previous = context.key, context.update_manifest(context.key.iteration - 1)
    task = _task(context, rows, previous)
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
            mismatch=result[0].steps["mismatch_mean"].max(),
            max_mismatch=task.max_mismatch,
            **vars(result[0].timings),
        )()

    manifests.publish(context.paths.task_folder(key), context.paths.task_name(key), fill, as_folder=True, stats=stats)
    remove_checkpoints(context.paths, key)


def training_rows(context: TaskContext) -> list[Row]:
    """The model's completions of the iteration with advantage and weight, in a fixed order.

    After them come the rescues of peers, if `update.share_rescues` is set.

    Raises:
        StoreError: a rollout has no score, or a score no rollout.
    """
    run, key = context.run, context.key
    graph = run.graph()
    parts = range(graph.num_parts)
    phases = (COLD, RESCUE) if graph.has_rescue else (COLD,)
    own = [TaskKey(key.iteration, phase, key.model, p) for p in parts for phase in phases]
    rollouts = shards.read_tasks(run.root, own, ROLLOUTS, columns=ROLLOUT_COLUMNS)
    scores = shards.read_tasks(run.root, [TaskKey(key.iteration, SCORE, TEAM, p) for p in parts], SCORES)
    advantages = scores.filter(pl.col("model") == key.model).select(*ROW_KEY, "advantage")
    for p in parts:
        score_key = TaskKey(key.iteration, SCORE, TEAM, p)
        check_counts(run, score_key, manifests.read_manifest(run.paths.task_manifest(score_key)))
    joined = rollouts.join(advantages, on=ROW_KEY, how="left", maintain_order="left")
    if joined.height != advantages.height or joined["advantage"].null_count():
        raise StoreError(
            f"{key}: there are {rollouts.height} rollouts but {advantages.height} scores of {key.model}; remove the "
            f"score manifests of iteration {key.iteration} in {run.root} and run the same command again"
        )
    weights = {COLD: 1.0, RESCUE: run.config.update.rescue_weight}
    shared = shared_rows(context, scores) if run.config.update.share_rescues else []
    own_rows = [
        Row(
            key=(r["problem_id"], r["phase"], r["sample_index"]),
            problem_id=r["problem_id"],
            prompt_token_ids=r["prompt_token_ids"],
            completion_token_ids=r["completion_token_ids"],
            behaviour_logprobs=r["logprobs"],
            advantage=r["advantage"],
            weight=weights[r["phase"]],
            rescue=r["phase"] == RESCUE,
        )
        for r in joined.sort("problem_id", "phase", "sample_index").iter_rows(named=True)
    ]
    return own_rows + shared


def _trainer(context: TaskContext) -> Trainer:
    model, update = context.model, context.run.config.update
    settings = TrainerSettings(
        model_folder=context.resolved(model).folder,
        model_name=model.model,
        lora=model.lora,
        dtype=model.dtype,
        context_tokens=context.run.facts[model.name].context_tokens,
        four_bit=model.tuning == "qlora",
        with_reference=model.tuning == "full" and update.kl_weight > 0,
        gradient_checkpointing=update.gradient_checkpointing,
        compile_layers=update.compile,
        trust_remote_code=model.trust_remote_code,
        allow_pickle=model.allow_pickle,
    )
    return context.warm.trainer(settings, partial(Trainer, settings))


def settings_of(config: RunConfig, model: ModelSection) -> UpdateSection:
    """The settings of the update, with the model's own learning rate if it has one."""
    own = {} if model.learning_rate is None else {"learning_rate": model.learning_rate}
    return config.update.model_copy(update=own)


def _task(context: TaskContext, rows: list[Row], previous: manifests.Manifest | None) -> UpdateTask:
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
        total_steps=horizon * steps_per_iteration(run.config),
        shuffle_seed=stable_seed(run.config.seed, UPDATE, "shuffle", key.iteration),
        lora_seed=stable_seed(run.config.seed, UPDATE, "lora", key.model),
        previous=previous.file("optimizer.safetensors").parent if previous else None,
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
    return {
        "version": STATE_VERSION,
        "run_id": context.run.run_id,
        "task": str(context.key),
        "num_steps": len(step_rows(task.rows, problems_per_step=problems_per_step, seed=task.shuffle_seed)),
        "total_steps": task.total_steps,
        "shuffle_seed": task.shuffle_seed,
        "rows": rows_digest(task.rows),
        "previous": [f.sha256 for f in previous.files if f.name.endswith("optimizer.safetensors")] if previous else [],
    }
