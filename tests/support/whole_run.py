"""A small run whose publications are complete and correct in every row, without any model.

In: a folder. Out: a run, and what each of its tasks must publish.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

import yaml
from core_hpc.problems.splits import problems_of_iteration
from core_hpc.runs import contents
from core_hpc.runs.folder import Run
from core_hpc.runs.sweep import load_sweep
from core_hpc.store import manifests, shards
from core_hpc.store.paths import OPTIMIZER_STATE, TEAM, TaskKey
from core_hpc.store.schema import COLD, EVALUATE, HINT, HINTS, RESCUE, ROLLOUTS, SCORE, SCORES, STEPS, UPDATE
from tests.support.analysis_data import rollout
from tests.support.created_run import create_run

MODELS = ("a", "b")
NUM_TRAIN, NUM_HELD_OUT, PART = 5, 3, 2
COLD_SAMPLES, RESCUE_SAMPLES, EVALUATION_SAMPLES = 3, 2, 4


def run_in(folder: Path, **protocol: Any) -> Run:
    """A run with parts of two problems, of which the last part has one."""
    sampling = {"problems_per_iteration": NUM_TRAIN, "problems_per_part": PART, "cold_samples": COLD_SAMPLES}
    data = {
        "name": "s",
        "iterations": 1,
        "output": str(folder),
        "team": [{"name": name, "model": "x"} for name in MODELS],
        "problems": {
            "train": {"source": "generated", "count": 9},
            "evaluation": {"source": "generated", "count": NUM_HELD_OUT},
        },
        "protocol": {**sampling, "rescue_samples": RESCUE_SAMPLES, **protocol},
        "evaluation": {"samples": EVALUATION_SAMPLES},
    }
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(data))
    sweep = load_sweep(path)
    return create_run(sweep)


def problem_ids(run: Run, key: TaskKey) -> list[str]:
    """The problems of a task, found independently of the code under test."""
    if key.phase == EVALUATE:
        own = run.split("evaluation")["problem_id"].to_list()
    else:
        train = run.split("train")["problem_id"].to_list()
        own = [train[i] for i in problems_of_iteration(len(train), NUM_TRAIN, key.iteration, run.config.seed)]
    return own[key.part * PART : (key.part + 1) * PART]


def rows_of(run: Run, key: TaskKey, samples: dict[str, int]) -> pl.DataFrame:
    """Rollouts with a number of samples per problem."""
    own = {"run_id": run.run_id, "iteration": key.iteration, "phase": key.phase, "model": key.model}
    golds = dict(run.split("evaluation" if key.phase == EVALUATE else "train").select("problem_id", "gold").rows())
    rows = [
        rollout(**own, problem_id=p, sample_index=k, gold=golds[p]) for p, num in samples.items() for k in range(num)
    ]
    return pl.DataFrame(rows, schema=ROLLOUTS.schema)


def publish(run: Run, key: TaskKey, frame: pl.DataFrame) -> manifests.Manifest:
    table = contents.TABLE_OF[key.phase]
    return shards.publish_frame(run.paths.task_folder(key), run.paths.task_name(key), frame, table)


def hints_of(run: Run, part: int, sampled_again: int) -> pl.DataFrame:
    """Hints with which every model samples the first problems of a part again."""
    key = TaskKey(1, HINT, TEAM, part)
    rows = [
        {
            "run_id": run.run_id,
            "iteration": 1,
            "model": model,
            "problem_id": p,
            "cold_failed": True,
            "num_hint_tokens": 0,
            "reason": "no_teacher",
            "hint_draws": [False] * RESCUE_SAMPLES if i < sampled_again else [],
        }
        for model in MODELS
        for i, p in enumerate(problem_ids(run, key))
    ]
    return pl.DataFrame(rows, schema=HINTS.schema)


def whole(run: Run, key: TaskKey) -> pl.DataFrame:
    """What a task that samples must publish; half of the problems of a part are sampled again."""
    ids = problem_ids(run, key)
    num = {COLD: COLD_SAMPLES, RESCUE: RESCUE_SAMPLES, EVALUATE: EVALUATION_SAMPLES}[key.phase]
    return rows_of(run, key, dict.fromkeys(ids[:1] if key.phase == RESCUE else ids, num))


def scores_of(rollouts: list[pl.DataFrame]) -> pl.DataFrame:
    frame = pl.concat(rollouts).select(name for name in SCORES.schema if name in ROLLOUTS.schema)
    known = {name: pl.lit(0.0) for name, kind in SCORES.schema.items() if kind == pl.Float64}
    flags = {"truncated": pl.lit(False), "zero_signal": pl.lit(False)}
    return frame.with_columns(**known, **flags).select(list(SCORES.schema))


def steps_of(run: Run, key: TaskKey) -> pl.DataFrame:
    """The steps of an update."""
    values = {name: 0 if kind == pl.Int32 else 0.0 for name, kind in STEPS.schema.items()}
    own = {"run_id": run.run_id, "iteration": key.iteration, "model": key.model}
    num = contents.expected_rows(run.config, key, NUM_TRAIN) or 0
    return pl.DataFrame(
        [{**values, **own, "step": s, "global_step": s} for s in range(1, num + 1)], schema=STEPS.schema
    )


def frame_of(run: Run, key: TaskKey) -> pl.DataFrame:
    """What a task must publish. In every part the first problem is sampled again by all models."""
    if key.phase == HINT:
        return hints_of(run, key.part, 1)
    if key.phase == UPDATE:
        return steps_of(run, key)
    if key.phase == SCORE:
        phases = [TaskKey(key.iteration, phase, model, key.part) for phase in (COLD, RESCUE) for model in MODELS]
        return scores_of([whole(run, sampled) for sampled in phases])
    return whole(run, key)


def publish_task(run: Run, key: TaskKey) -> None:
    """Publish a task as its phase does. The weights of an update are a few bytes."""
    frame, table = frame_of(run, key), contents.TABLE_OF[key.phase]

    def fill(folder: Path) -> dict[str, tuple[int, str]]:
        if key.phase == UPDATE:
            for name in ("adapter_model.safetensors", OPTIMIZER_STATE):
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(str(key).encode())
        return {"rows.parquet": shards.write_frame(folder / "rows.parquet", frame, table)}

    as_folder = key.phase in (HINT, UPDATE)
    stats = statistics(key, frame.height)
    manifests.publish(run.paths.task_folder(key), run.paths.task_name(key), fill, as_folder=as_folder, stats=stats)


def statistics(key: TaskKey, num_rows: int) -> Callable[[], dict[str, Any]]:
    """The statistics of a manifest, with the names that the phases use."""
    work = "generate" if key.phase in (COLD, RESCUE, EVALUATE) else key.phase
    named: dict[str, Any] = {
        "num_completions": num_rows,
        "num_prompt_tokens": num_rows,
        "num_completion_tokens": num_rows,
    }
    if key.phase == HINT:
        named = {"num_cases": num_rows, "num_rescues": 1}
    elif key.phase == UPDATE:
        named |= {"num_ranks": 1, "num_tokens": num_rows, "num_padded_tokens": num_rows}
        named |= {"train_s": 1.0, "prepare_s": 1.0, "reference_s": 0.0, "save_s": 0.0}
    return lambda: {"seconds": {"load": 1.0, work: 2.0}, "rss_gb": 1.0, "threads": 1, "num_gpus": 0, **named}
