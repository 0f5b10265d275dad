"""The warm-up phase: a model learns from worked solutions before the first iteration.

In: the base weights and the frozen problems of the warm-up. Out: a published folder with an
ordinary model, which replaces the base weights in every later task of the run, and one row of
schema.STEPS per optimizer step.

A warm-up is computed once for all runs below the same `output` that need it. They share it by an
identity: a hash of the base model, of the token ids of all examples, and of the settings. The first
task that needs it publishes it in `.warmups`. The task of every run then publishes the same files
in its own run folder, as hard links where the file system has them. So all arms begin with the same
weights, and a run folder is complete by itself. Without `.warmups`, a new run would compute its
warm-up again, and on other hardware the result could differ by rounding. So it does for every user
of an `output` that several users share.

An interrupted warm-up continues from its checkpoint, like an update.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch

from core_hpc.common.errors import StoppedError, StoreError
from core_hpc.common.faults import fault_point
from core_hpc.common.seeds import stable_seed
from core_hpc.config.identity import config_hash, scientific_fields
from core_hpc.config.model import LoraSection, ModelSection
from core_hpc.config.update import UpdateSection
from core_hpc.config.warmup import WarmupSection
from core_hpc.models.loading import load_config, uses_long_factors
from core_hpc.phases.checkpoint import CheckpointStore, remove_checkpoints, write_steps
from core_hpc.phases.context import TaskContext
from core_hpc.phases.trainer_settings import trainer_settings
from core_hpc.phases.warmup_examples import Example, encode_example
from core_hpc.problems.splits import warmup_split
from core_hpc.store import manifests, shards
from core_hpc.store.leftovers import remove_leftovers
from core_hpc.store.paths import MANIFEST_SUFFIX
from core_hpc.store.schema import STEPS, WARMUP
from core_hpc.training.batching import Row
from core_hpc.training.interruption import Interruption, rows_digest
from core_hpc.training.state_io import STATE_VERSION
from core_hpc.training.supervised import SupervisedTrainer
from core_hpc.training.task import UpdateResult, UpdateTask
from core_hpc.training.zero2 import all_true, any_true, from_rank_zero, rank_and_size, start_process_group

IDENTITY_VERSION = 1
NAME = "model"
"""Name of the publication in the folder of a shared warm-up."""
LOOK_S = 0.5
ABANDONED_S = 48 * 3600.0
"""An unfinished warm-up that was not written for so long belongs to no living task. A living task holds the lock, but
on some file systems (BeeGFS, or Lustre with localflock) only its own node sees that."""


def run(context: TaskContext) -> None:
    """Make the warm-up of one model, unless another run has made it, and publish it in this run."""
    device = start_process_group()
    rank, _ = rank_and_size()
    examples = warmup_examples(context)
    rows = warmup_rows(examples, _section(context).epochs)
    context.stopwatch.lap("read")
    identity = warmup_identity(context, rows)
    shared = (
        folder_of_user(context.paths.warmups) / f"{context.model.name}-{config_hash(identity)}{identity['rows'][:8]}"
    )
    with _lock(shared) if rank == 0 else contextlib.nullcontext(lambda: False) as take:
        _wait_for(take, context.should_stop, device)
        found = _find(shared, identity) if rank == 0 else None
        is_shared = bool(from_rank_zero(int(found is not None), device))
        if not is_shared:
            num_without_hint = sum(example.lacks_hint for example in examples)
            found = _train(context, rows, identity, shared, num_without_hint=num_without_hint)
    all_true(True, device)  # no rank looks for the publication of this run before all have begun
    if rank != 0:
        return
    assert found is not None
    _publish_in_run(context, found, is_shared=is_shared)
    remove_checkpoints(context.paths, context.key)


def _section(context: TaskContext) -> WarmupSection:
    section = context.run.config.warmup_of(context.model)
    assert section is not None, f"{context.key.model} has no warm-up"
    return section


# --- examples and identity -----------------------------------------------------------------------


def warmup_examples(context: TaskContext) -> list[Example]:
    """All examples of the task's model.

    Raises:
        InputError: an example is longer than the context of the model, or the model would end inside it.
    """
    model = context.model
    builder, stops = context.prompt_builder(model), context.stop_strings(model)
    problems = context.run.split(warmup_split(model.name))
    limit = context.resolved(model).max_context_tokens
    return [encode_example(p, builder, stops, limit_tokens=limit) for p in problems.iter_rows(named=True)]


def warmup_rows(examples: Sequence[Example], epochs: int) -> list[Row]:
    """The examples as rows of an update: each once per epoch."""
    return [
        Row(
            key=(name,),
            problem_id=name,
            prompt_token_ids=example.prompt_token_ids,
            completion_token_ids=example.completion_token_ids,
            behaviour_logprobs=None,
            advantage=1.0,
            weight=1.0,
        )
        for example in examples
        for name in (f"{example.problem_id}-{epoch}" for epoch in range(epochs))
    ]


def warmup_identity(context: TaskContext, rows: list[Row]) -> dict[str, Any]:
    """What the result of a warm-up depends on. Two runs with equal identities share it."""
    model, section = context.model, _section(context)
    settings = scientific_fields(section)
    # The rows contain what these have made.
    settings = {name: value for name, value in settings.items() if name not in ("problems", "hinted", "epochs")}
    lora, resolved = _lora(model), context.resolved(model)
    config = load_config(resolved.folder, trust_remote_code=model.trust_remote_code)
    is_long, ends = uses_long_factors(config, context_tokens(context, rows)), sorted(context.end_ids(model))
    return {
        "version": [IDENTITY_VERSION, STATE_VERSION],
        "base": resolved.fingerprint,
        "dtype": model.dtype,
        "rows": rows_digest(rows),
        "settings": settings,
        "lora": scientific_fields(lora) if lora is not None else None,
        **({} if is_long is None else {"long_factors": is_long}),
        # The result has a copy of the generation settings, so an engine stops at these tokens.
        **({} if ends == [context.tokenizer(model).eos_token_id] else {"end_ids": ends}),
    }


def context_tokens(context: TaskContext, rows: Sequence[Row]) -> int:
    """The context of the run, so that a longrope has its factors; longer if an example needs more."""
    return max(context.run.facts[context.model.name].context_tokens, max(len(r.inputs) for r in rows) + 1)


# --- the shared publication ----------------------------------------------------------------------


def folder_of_user(folder: Path) -> Path:
    """The folder in which this user shares warm-ups: `folder`, or one beside it if somebody else has made that.

    Only its owner can write into a folder that core_hpc makes, so the users of a common `output` have one each.
    """
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        return folder.with_name(f"{folder.name}-{os.getuid()}")
    return folder


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[Callable[[], bool]]:
    """Let one process at a time look for a shared warm-up and make it.

    Yields:
        A function that takes the lock, and returns whether this process has it. On a file system
        without locks several processes may have it. The first publication wins, for all.
    """
    manifests.make_folder(folder)
    with (folder.parent / f"{folder.name}.lock").open("w") as f:

        def take() -> bool:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:
                return True
            remove_leftovers(folder, unchanged_since=_clock(f) - ABANDONED_S)
            return True

        yield take


def _wait_for(take: Callable[[], bool], should_stop: Callable[[], bool], device: torch.device) -> None:
    """Wait until rank 0 has the lock. Collective.

    Raises:
        StoppedError: a rank was asked to stop meanwhile. It is raised on every rank.
    """
    while True:
        is_taken, stop = any_true([take(), should_stop()], device)
        if is_taken:
            return
        if stop:
            raise StoppedError("warm-up: stopped on request while another run made it")
        time.sleep(LOOK_S)


def _clock(file: TextIO) -> float:
    """The time on the clock of the file system, in seconds since 1970."""
    os.utime(file.fileno())
    return os.fstat(file.fileno()).st_mtime


def _find(folder: Path, identity: dict[str, Any]) -> manifests.Manifest | None:
    """The shared warm-up, if it is complete. A damaged one is set aside."""
    path = folder / f"{NAME}{MANIFEST_SUFFIX}"
    if not path.exists():
        return None
    try:
        manifest = manifests.read_manifest(path)
        manifests.check_files(manifest, checksum=True)
    except manifests.DamagedError as e:
        aside = manifests.set_aside(path)
        print(f"warm-up: {e}; set aside as {aside.name}, and will be made again", flush=True)
        return None
    if manifest.stats["identity"] != identity:
        raise StoreError(f"{path}: belongs to another warm-up; remove this folder and run the same command again")
    return manifest


def _publish_in_run(context: TaskContext, shared: manifests.Manifest, *, is_shared: bool) -> None:
    """Publish the files of a shared warm-up as those of this run's task."""
    source = shared.folder
    steps = shards.read_manifest_table(shared, STEPS, columns=["loss"])["loss"]

    def fill(folder: Path) -> dict[str, tuple[int, str]]:
        tables = {}
        for entry in shared.files:
            name = Path(entry.name).relative_to(source.name).as_posix()
            _link(shared.path.parent / entry.name, folder / name)
            if entry.table is not None:
                tables[name] = (entry.rows or 0, entry.table)
        return tables

    kept = {k: v for k, v in shared.stats.items() if k not in ("seconds", "identity", "rss_gb", "threads", "num_gpus")}
    manifests.publish(
        context.paths.task_folder(context.key),
        context.paths.task_name(context.key),
        fill,
        as_folder=True,
        stats=context.stats(**kept, is_shared=is_shared, first_loss=steps[0], last_loss=steps[-1]),
    )


def _link(source: Path, target: Path) -> None:
    """A hard link to a published file, which never changes; a copy where there are no links."""
    try:
        manifests.link_new(source, target)
    except OSError:
        shutil.copyfile(source, target)


# --- training ------------------------------------------------------------------------------------


def _train(
    context: TaskContext, rows: list[Row], identity: dict[str, Any], shared: Path, *, num_without_hint: int
) -> manifests.Manifest | None:
    """Train the model. Rank 0 publishes it in the folder `shared`, and returns what won there."""
    trainer = _trainer(context, context_tokens(context, rows))
    context.stopwatch.lap("load")
    key, task = context.key, _task(context, rows)
    run_identity = {"run_id": context.run.run_id, "task": str(key), **identity}
    checkpoints = CheckpointStore(context.paths, key, run_identity)
    interval_s = 60.0 * context.run.config.update.checkpoint_min
    interruption = Interruption(should_stop=context.should_stop, interval_s=interval_s, save=checkpoints.save)
    task = replace(task, resume=checkpoints.find(trainer), interruption=interruption)
    if trainer.rank != 0:
        trainer.update(task, None)
        return None
    result: list[UpdateResult] = []

    def fill(folder: Path) -> dict[str, tuple[int, str]]:
        result.append(trainer.update(task, folder))
        context.stopwatch.lap("update")
        return {"steps.parquet": write_steps(folder, result[0].steps, _shared_name(shared), key)}

    def stats() -> dict[str, object]:
        return {
            "num_completions": len(rows),
            "num_without_hint": num_without_hint,
            "num_ranks": result[0].num_ranks,
            "resumed_from_step": task.resume.steps.height if task.resume else 0,
            "identity": identity,
            **vars(result[0].timings),
        }

    return manifests.publish(shared, NAME, fill, as_folder=True, stats=stats)


def _shared_name(shared: Path) -> str:
    """Stands for the run in the rows of a shared warm-up's steps."""
    return f"{shared.parent.name}/{shared.name}"


def _trainer(context: TaskContext, num_tokens: int) -> SupervisedTrainer:
    model = context.model
    folder = context.resolved(model).folder
    settings = trainer_settings(context, folder=folder, name=model.model, lora=_lora(model), context_tokens=num_tokens)
    trainer = context.warm.trainer((WARMUP, settings), partial(SupervisedTrainer, settings))
    assert isinstance(trainer, SupervisedTrainer)
    return trainer


def _lora(model: ModelSection) -> LoraSection | None:
    return model.lora if model.warmup is not None and model.warmup.tuning == "lora" else None


def _task(context: TaskContext, rows: list[Row]) -> UpdateTask:
    section, update = _section(context), context.run.config.update
    assert section.seed is not None, "warmup_of sets it"
    tokens = sum(len(r.completion_token_ids) for r in rows)

    def on_progress(done: int, total: int) -> None:
        context.progress(done, total, tokens * done // total)
        fault_point("warmup.step", f"{context.key} step {done}")

    return UpdateTask(
        rows=rows,
        settings=UpdateSection(
            kl_weight=0,
            problems_per_step=section.examples_per_step,
            learning_rate=section.learning_rate,
            weight_decay=section.weight_decay,
            micro_batch_tokens=update.micro_batch_tokens,
        ),
        temperature=1.0,
        max_new_tokens=max(len(r.completion_token_ids) for r in rows),
        total_steps=-(-len(rows) // section.examples_per_step),
        shuffle_seed=stable_seed(section.seed, WARMUP, "shuffle"),
        lora_seed=stable_seed(section.seed, WARMUP, "lora"),
        previous=None,
        on_progress=on_progress,
    )
