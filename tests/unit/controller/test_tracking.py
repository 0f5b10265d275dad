"""TensorBoard's points: a continued run keeps them all, and useless completions have curves."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from core_hpc.controller.run_tracker import RunTracker
from core_hpc.runs.folder import Run
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import EVALUATE, STEPS, WARMUP
from core_hpc.store.shards import publish_frame, published_keys
from tests.support.tracked_run import make_run, publish_evaluation, tensorboard_points


def points(run: Run, model: str, tag: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run.paths.tensorboard / model))
    accumulator.Reload()
    return {event.step: pytest.approx(event.value) for event in accumulator.Scalars(tag)}


def test_the_evaluation_after_what_was_the_last_iteration_keeps_its_point(tmp_path: Path) -> None:
    # The run was evaluated after iteration 2, its last one. It then got a third iteration.
    run = make_run(tmp_path, iterations=3)
    assert run.graph().evaluated() == [0, 3]
    num_parts = len([k for k in run.graph().tasks() if k.phase == EVALUATE and k.iteration == 0]) // 2
    for part in range(num_parts):
        publish_evaluation(run, 0, part, correct=False)
        publish_evaluation(run, 2, part, correct=True)
    tracker, published = RunTracker(run), set(published_keys(run.root))
    for key in sorted(published):
        tracker.task_published(key, published)
    tracker.close(finished=False)
    assert points(run, "m0", "1_evaluation/pass/k1") == {0: 0.0, 2: 1.0}


def test_a_start_writes_each_point_of_several_parts_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, iterations=0)
    keys = [k for k in run.graph().tasks() if k.phase == EVALUATE and k.model == "m0"]
    assert len(keys) > 1
    for part in range(len(keys)):
        publish_evaluation(run, 0, part, correct=True)
    tracker, published = RunTracker(run), set(published_keys(run.root))
    for key in sorted(published):
        tracker.task_published(key, published)
    tracker.close(finished=True)
    assert set(tensorboard_points(run.paths.tensorboard).values()) == {1}


def test_the_losses_of_a_warm_up_have_a_curve_of_their_own(tmp_path: Path) -> None:
    run, key = make_run(tmp_path), TaskKey(0, WARMUP, "m0")
    numbers = {
        name: 0.5 if dtype == pl.Float64() else 1 for name, dtype in STEPS.schema.items() if dtype != pl.String()
    }
    losses = {1: 3.0, 2: 1.25}
    names = {"run_id": run.run_id, "model": "m0", "iteration": 0}
    rows = [{**numbers, **names, "step": s, "global_step": s, "loss": loss} for s, loss in losses.items()]
    frame = pl.DataFrame(rows, schema=STEPS.schema)
    publish_frame(run.paths.task_folder(key), run.paths.task_name(key), frame, STEPS)
    tracker = RunTracker(run)
    tracker.task_published(key, {key})
    tracker.close(finished=False)
    assert points(run, "m0", "2_learning/warmup/loss") == losses


def test_useless_completions_have_curves(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    keys = [k for k in run.graph().tasks() if k.phase == EVALUATE and k.iteration == 0 and k.model == "m0"]
    for part in range(len(keys)):
        cut = {"finish_reason": "length", "verdict": "no_answer", "answer": None} if part == 0 else {}
        publish_evaluation(run, 0, part, **cut)
    tracker, published = RunTracker(run), set(published_keys(run.root))
    for key in sorted(published):
        tracker.task_published(key, published)
    tracker.close(finished=False)
    for model in ("m0", TEAM):
        for name in ("truncated", "no_answer"):
            assert points(run, model, f"1_evaluation/{name}_share") == {0: 1 / len(keys)}
