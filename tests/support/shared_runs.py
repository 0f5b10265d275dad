"""One sweep with runs for several test files, because a launch costs more than a tiny run.

The driver `local` runs them in the same warm workers. Each run has options that need a whole run
to be tested; the test file of these options describes and reads it. The label of the run is the
key. An update is killed once in the run `teaching`, and one in the run `full`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core_hpc.runs.folder import list_runs, read_identity
from core_hpc.runs.sweep import load_sweep
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import UPDATE
from tests.support.harness import launch
from tests.support.tiny import tiny_sweep

KILLED = TaskKey(2, UPDATE, "m0")
"""The update of `teaching` that is killed after its third of four steps. The other runs have no third step in it."""
NUM_ROLES = 13
"""Four engines of m0 (`recorded`, `full` and `hacpo` have other settings or another context), two of m1, as many
trainers, and one worker that scores."""
NUM_KILLED = 2
"""Trainers that are killed once, after they have published."""

PLAIN: dict[str, Any] = {"label": "plain", "iterations": 1}
"""Tests that disturb a run of one iteration compare with it: a sweep with `runs: [PLAIN]` has the same run."""
ONE_PART: dict[str, Any] = {"label": "one-part", "iterations": 1, "protocol.problems_per_part": 8}
"""The same for runs with fewer tasks, for SLURM."""
RECORDED: dict[str, Any] = {"label": "recorded", "team.m0.engine": "transformers"}
SETS: list[dict[str, Any]] = [
    {
        "name": "greedy",
        "problems": {"source": "generated", "task": "addition_chain", "count": 6, "seed": 2},
        "samples": 1,
        "sampling": {"temperature": 0},
    },
    {
        "name": "long",
        "problems": {"source": "generated", "task": "addition_chain", "count": 2, "seed": 5},
        "samples": 3,
        "instruction": "Write only the sum.",
    },
]
WITH_SETS: dict[str, Any] = {"label": "sets", "iterations": 1, "protocol.problems_per_part": 4}
"""The only run with the evaluation sets `SETS`. One of its tasks has problems of two sets."""
CHOOSE: dict[str, Any] = {
    "label": "choose",
    "iterations": 3,
    "protocol": {"choose": "pass_rate", "cold_samples": 2, "rescue_samples": 1, "hint_probability": 0.75},
    "evaluation": {"samples": 1, "every": 0, "before": False},
}
TEACHING: dict[str, Any] = {
    "label": "teaching",
    "protocol": {
        "problems_per_iteration": 8,
        "problems_per_part": 8,
        "cold_samples": 2,
        "rescue_samples": 3,
        "hint_probability": 0.75,
        "hint_source": "shuffled",
        "sampling.max_new_tokens": 64,
    },
    "update": {
        "baseline": "model",
        "rescue_context": "plain",
        "rescue_correction": "importance",
        "teach": {"weight": 2, "teacher": "likelihood", "rehearsal": 1},
        "team_pass": {"weight": 0.5, "k": 1},
        "self_teacher": {"kind": "rlsd"},
        "problems_per_step": 2,
        "learning_rate": 0.05,
        "schedule": "constant",
        "warmup_share": 0,
        "checkpoint_min": 1e-9,
    },
}
FULL: dict[str, Any] = {
    "label": "full",
    "team.m0.engine": "transformers",
    "team.m0.tuning": "full",
    "team.m0.lora": None,
    "update": {"learning_rate": 0.02, "checkpoint_min": 1e-9},
}
"""m0 trains all its weights. Its second update is killed after its two steps, while it publishes."""
OTHER_OBJECTIVES: list[dict[str, Any]] = [
    {
        "label": "hacpo",
        "iterations": 1,
        "protocol": {"rescue_samples": 0},
        "update": {"loss": "gspo", "hacpo": {"enabled": True}},
    },
    {
        "label": "sdpo",
        "iterations": 1,
        "protocol": {"rescue_samples": 1, "hint_probability": 0.75},
        "update.self_teacher.kind": "sdpo",
    },
]
"""Objectives that exclude options of `teaching`."""


def make_shared_runs(folder: Path, models: list[Path]) -> None:
    """Launch the sweep. What it printed is in `printed.txt`.

    The tests of `teaching` and `full` find in their updates that these were killed.
    """
    others = [PLAIN, ONE_PART, RECORDED, CHOOSE, TEACHING, FULL, *OTHER_OBJECTIVES]
    sampling = {"max_new_tokens": 48, "temperature": 1.0, "top_p": 1.0}
    sweep = tiny_sweep(
        folder / "tiny.yaml",
        models,
        folder / "out",
        evaluation={"samples": 2, "sampling": sampling, "sets": SETS},
        cluster={"num_running": 2, "threads": 1, "num_alive": NUM_ROLES},
        runs=[WITH_SETS, *({**run, "evaluation.sets": []} for run in others)],
    )
    ids = {plan.label: plan.run_id for plan in load_sweep(sweep).runs}
    places = {
        "teaching": f"update.step@{KILLED} step 3",
        "full": f"publish.data_in_place@{ids['full']}/update/iteration=0002/m0",
    }
    faults = ";".join(f"kill {place}:{folder / f'killed-{label}'}" for label, place in places.items())
    done = launch(sweep, env={"CORE_HPC_FAULT": faults}, timeout_s=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "printed.txt").write_text(done.stdout)


def runs_by_label(folder: Path) -> dict[str, Path]:
    """The folders of the runs, by label."""
    return {read_identity(run)["label"]: run for run in list_runs(folder / "out" / "tiny")}
