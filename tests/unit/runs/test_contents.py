"""A row that is lost under a manifest that agrees is found: by its number, or by the rows themselves."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from core_hpc.runs import contents
from core_hpc.runs.folder import Run
from core_hpc.schedule.progress import inspect_run
from core_hpc.store import manifests, shards
from core_hpc.store.manifests import DamagedError
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, EVALUATE, HINT, RESCUE, ROLLOUTS, ROW_KEY, SCORE, UPDATE
from tests.support.whole_run import (
    MODELS,
    RESCUE_SAMPLES,
    hints_of,
    problem_ids,
    publish,
    rows_of,
    run_in,
    scores_of,
    steps_of,
    whole,
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return run_in(tmp_path)


SAMPLED = [TaskKey(1, COLD, "a", 0), TaskKey(1, COLD, "b", 2), TaskKey(1, RESCUE, "a", 0), TaskKey(0, EVALUATE, "b", 1)]


@pytest.mark.parametrize("key", SAMPLED, ids=str)
def test_the_rows_of_a_task_are_accepted_and_a_lost_or_foreign_one_is_not(run: Run, key: TaskKey) -> None:
    publish(run, TaskKey(1, HINT, TEAM, 0), hints_of(run, 0, 1))
    frame = whole(run, key)
    publish(run, key, frame)
    contents.check_publication(run, key)
    assert contents.read_rollouts(run, [key], columns=list(ROLLOUTS.schema)).equals(frame)
    few = contents.read_rollouts(run, [key], columns=["text", "model"])
    assert few.equals(frame.select(*ROW_KEY, "text"))
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
                contents.read_rollouts(run, [key], columns=["text"])


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
    scores = scores_of([whole(run, k) for k in sampled])
    frames = {hint: hints_of(run, 0, 1), score: scores, update: steps_of(run, update)}
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
