"""The sweeps of yaml/examples, made small: with the fake engine and tiny models, run in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from core_hpc.controller.prepare import prepare, splits_of
from core_hpc.phases import run_task
from core_hpc.phases.context import TaskContext, Warm
from core_hpc.runs import creation
from core_hpc.runs import folder as runs
from core_hpc.runs.folder import Run
from core_hpc.runs.sweep import load_sweep
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, HINT, RESCUE, SCORE
from tests.support.harness import ROOT

EXAMPLES = ROOT / "yaml" / "examples"


def overrides(models: Sequence[Path], output: Path) -> list[str]:
    """Values of `--set` that make a sweep small."""
    team = [
        {"name": f"m{i}", "model": str(model), "engine": "fake", "lora": {"rank": 4}} for i, model in enumerate(models)
    ]
    sampling = "{temperature: 1.0, top_p: 1.0, max_new_tokens: 48}"
    return [
        f"team={json.dumps(team)}",
        f"output={output}",
        "iterations=1",
        "problems.train.count=12",
        "problems.evaluation.count=4",
        "problems.num_examples=1",
        "protocol.problems_per_iteration=6",
        "protocol.cold_samples=3",
        "protocol.hint_tokens=64",
        f"protocol.sampling={sampling}",
        "reward.distance.embedder=fake:hashing",
        "update.problems_per_step=3",
        "evaluation.samples=1",
        "evaluation.before=false",
        f"evaluation.sampling={sampling}",
        "cluster.num_running=2",
        "cluster.threads=1",
    ]


def run_example(name: str, models: Sequence[Path], output: Path) -> Run:
    """Run the first iteration of a shipped example up to its scores."""
    return run_to_scores(EXAMPLES / f"{name}.yaml", models, output)


def run_to_scores(path: Path, models: Sequence[Path], output: Path) -> Run:
    """Run the first iteration of a sweep file up to its scores, with the `overrides`."""
    sweep = load_sweep(path, overrides(models, output))
    (plan,) = sweep.runs
    splits = splits_of(plan)
    run = creation.create(plan, sweep.folder, splits, prepare(plan.config, splits))
    team, warm = [model.name for model in plan.config.team], Warm()
    tasks = [(COLD, m) for m in team] + [(HINT, TEAM)] + [(RESCUE, m) for m in team] + [(SCORE, TEAM)]
    for phase, model in tasks:
        run_task(TaskContext(run=runs.open_run(run.root), key=TaskKey(1, phase, model), warm=warm))
    return run
