"""A row that is lost under a manifest that agrees is found: by its number, or by the rows themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import yaml
from core_hpc.controller.prepare import splits_of
from core_hpc.problems.splits import problems_of_iteration
from core_hpc.runs import contents
from core_hpc.runs import folder as runs
from core_hpc.runs.folder import ModelFacts, Run
from core_hpc.runs.sweep import load_sweep
from core_hpc.schedule.progress import inspect_run
from core_hpc.store import manifests, shards
from core_hpc.store.manifests import DamagedError
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, EVALUATE, HINT, HINTS, RESCUE, ROLLOUTS, SCORE, SCORES, STEPS, UPDATE
from tests.support.analysis_data import rollout

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
    (plan,) = sweep.runs
    facts = {m.name: ModelFacts("0" * 64, 512, "plain") for m in plan.config.team}
    return runs.create(plan, sweep.folder, splits_of(plan), facts)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return run_in(tmp_path)


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
    rows = [rollout(**own, problem_id=p, sample_index=k) for p, num in samples.items() for k in range(num)]
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


SAMPLED = [TaskKey(1, COLD, "a", 0), TaskKey(1, COLD, "b", 2), TaskKey(1, RESCUE, "a", 0), TaskKey(0, EVALUATE, "b", 1)]


@pytest.mark.parametrize("key", SAMPLED, ids=str)
def test_the_rows_of_a_task_are_accepted_and_a_lost_or_foreign_one_is_not(run: Run, key: TaskKey) -> None:
    publish(run, TaskKey(1, HINT, TEAM, 0), hints_of(run, 0, 1))
    frame = whole(run, key)
    publish(run, key, frame)
    contents.check_publication(run, key)
    assert contents.read_rollouts(run, [key]).equals(frame)
    others = [
        (frame[1:], "rows are lost"),
        (frame[:-1], "rows are lost"),
        (frame[:0], "rows are lost" if key.phase != RESCUE else "no row of"),
        (frame.with_columns(run_id=pl.lit("other")), "another task's"),
        (frame.with_columns(model=pl.lit("other")), "another task's"),
        (frame.with_columns(sample_index=pl.col("sample_index") + 1), "no row of"),
        (frame.with_columns(problem_id=pl.lit("p") + pl.col("problem_id")), "no row of"),
    ]
    for other, expected in others:
        manifests.set_aside(run.paths.task_manifest(key))
        manifest = publish(run, key, other)
        manifests.check_files(manifest, checksum=True)  # the manifest agrees
        with pytest.raises(DamagedError, match=expected) as caught:
            contents.check_publication(run, key)
        assert caught.value.manifest_path == manifest.path
        if "no row" in expected or "another" in expected:
            with pytest.raises(DamagedError, match=expected):
                contents.read_rollouts(run, [key])


def test_with_an_even_budget_every_problem_is_sampled_again(tmp_path: Path) -> None:
    run = run_in(tmp_path, even_budget=True)
    key = TaskKey(1, RESCUE, "a", 1)
    publish(run, key, rows_of(run, key, dict.fromkeys(problem_ids(run, key), RESCUE_SAMPLES)))
    contents.check_publication(run, key)
    manifests.set_aside(run.paths.task_manifest(key))
    publish(run, key, rows_of(run, key, dict.fromkeys(problem_ids(run, key)[:1], RESCUE_SAMPLES)))
    with pytest.raises(DamagedError, match="rows are lost"):
        contents.check_publication(run, key)


def test_lost_hints_scores_and_steps_are_found(run: Run) -> None:
    hint, score, update = TaskKey(1, HINT, TEAM, 0), TaskKey(1, SCORE, TEAM, 0), TaskKey(1, UPDATE, "a")
    publish(run, hint, hints_of(run, 0, 1))
    sampled = [TaskKey(1, phase, model, 0) for phase in (COLD, RESCUE) for model in MODELS]
    for key in sampled:
        publish(run, key, whole(run, key))
    values = {name: 0 if kind == pl.Int32 else 0.0 for name, kind in STEPS.schema.items()}
    steps = pl.DataFrame([{**values, "run_id": "r", "model": "a", "step": 1}], schema=STEPS.schema)
    frames = {hint: hints_of(run, 0, 1), score: scores_of([whole(run, k) for k in sampled]), update: steps}
    for key, frame in frames.items():
        publish(run, key, frame)
        contents.check_publication(run, key)
        manifests.set_aside(run.paths.task_manifest(key))
        publish(run, key, frame[:-1])
        with pytest.raises(DamagedError, match="rows are lost"):
            contents.check_publication(run, key)


def test_a_lost_row_is_found_at_the_start_and_set_aside(run: Run) -> None:
    good, bad = TaskKey(0, EVALUATE, "a", 0), TaskKey(1, COLD, "a", 0)
    publish(run, good, whole(run, good))
    publish(run, bad, whole(run, bad)[1:])
    progress, messages = inspect_run(run)
    assert progress.published == {good}
    assert bad in progress.open_tasks
    (message,) = messages
    assert "rows are lost" in message
    assert not run.paths.task_manifest(bad).exists()


def test_a_manifest_without_the_table_is_damage(run: Run) -> None:
    key = TaskKey(1, COLD, "a", 0)
    path = publish(run, key, whole(run, key)).path
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "files": [{**body["files"][0], "table": None, "rows": None}]}))
    for check in (lambda: contents.check_publication(run, key), lambda: shards.read_task(run.root, key, ROLLOUTS)):
        with pytest.raises(DamagedError, match="rollouts table"):
            check()
