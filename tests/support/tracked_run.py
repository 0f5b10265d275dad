"""A made-up run with published evaluations, and readers of the points that are written about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core_hpc.runs.folder import Run
from core_hpc.runs.sweep import load_sweep
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import EVALUATE, ROLLOUTS
from core_hpc.store.shards import publish_frame
from tests.support.analysis_data import rollout, rollouts
from tests.support.created_run import create_run
from tests.support.tiny import tiny_sweep

Point = tuple[str, str, int, float]
"""Model or team, tag, step, value."""
NOT_POINTS = ("step", "_step", "_timestamp", "_runtime", "_wandb")
"""Columns of W&B that are no points."""


def make_run(folder: Path, **changes: Any) -> Run:
    """Create a run folder as it is after a start, with nothing published."""
    sweep = load_sweep(tiny_sweep(folder / "tiny.yaml", [Path("/m0"), Path("/m1")], folder / "out", **changes))
    return create_run(sweep)


def publish_evaluation(run: Run, iteration: int, part: int, **values: Any) -> None:
    """Publish one part of an evaluation: two problems with two completions per model."""
    for model in ("m0", "m1"):
        rows = [
            rollout(
                phase=EVALUATE, model=model, iteration=iteration, problem_id=f"p{part}{p}", sample_index=s, **values
            )
            for p in range(2)
            for s in range(2)
        ]
        key = TaskKey(iteration, EVALUATE, model, part)
        publish_frame(run.paths.task_folder(key), run.paths.task_name(key), rollouts(rows), ROLLOUTS)


def evaluated_run(folder: Path, **tracking: str) -> Run:
    """Make a run whose evaluation, of three parts, is published."""
    run = make_run(folder, iterations=0, tracking=tracking)
    for part in range(3):
        publish_evaluation(run, 0, part, correct=True)
    return run


def point(model: str, tag: str, step: int, value: float) -> Point:
    """A point in a form in which those of different files can be compared. TensorBoard has 32 bits per value."""
    return model, tag, step, float(f"{value:.5g}")


def copied_points(rows: Iterable[Mapping[str, Any]]) -> Counter[Point]:
    """Count the points in rows that were written for W&B. The model is the last part of a key."""
    found: Counter[Point] = Counter()
    for row in rows:
        for key, value in row.items():
            if key not in NOT_POINTS:
                tag, _, model = key.rpartition("/")
                found[point(model, tag, row["step"], value)] += 1
    return found


def written_points(run: Run) -> Counter[Point]:
    """How often every (folder, tag, step, value) is in the event files, read one after the other."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return Counter(
        (path.parent.name, value.tag, event.step, value.simple_value)
        for path in sorted(run.paths.tensorboard.glob("*/events.out.tfevents.*"))
        for event in LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.HasField("simple_value")
    )


def tensorboard_points(folder: Path) -> Counter[Point]:
    """Count all scalars in the event files of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Counter[Point] = Counter()
    for model in ("m0", "m1", TEAM):
        events = EventAccumulator(str(folder / model), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found.update(point(model, tag, e.step, e.value) for e in events.Scalars(tag))
    return found
