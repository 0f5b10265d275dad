"""A started run keeps its id, also if its label or its hash would be another one now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core_hpc.common.errors import RunConflictError
from core_hpc.config.identity import scientific_fields
from core_hpc.runs.conflicts import check_conflicts, check_iterations, with_started_ids
from core_hpc.runs.sweep import Sweep, load_sweep
from tests.unit.config.test_sweep import MINIMAL


def sweep_in(tmp_path: Path) -> Sweep:
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps({**MINIMAL, "output": str(tmp_path)}))
    return load_sweep(path)


def start(sweep: Sweep, run_id: str, *, alpha: float) -> None:
    """Make the identity of a run as an earlier version did."""
    (plan,) = sweep.runs
    fields = scientific_fields(plan.config)
    fields["team"][0]["lora"]["alpha"] = alpha
    folder = sweep.folder / run_id
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"run_id": run_id, "label": plan.label, "scientific": fields}))


def test_a_run_whose_numbers_were_written_in_another_form_is_continued(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    assert with_started_ids(sweep) == sweep
    start(sweep, "run-0000abcd", alpha=32.0)
    continued = with_started_ids(sweep)
    assert [plan.run_id for plan in continued.runs] == ["run-0000abcd"]
    check_conflicts(continued)


def test_a_run_with_other_values_is_not_continued(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    start(sweep, "run-0000abcd", alpha=16.0)
    assert with_started_ids(sweep) == sweep
    with pytest.raises(RunConflictError, match=r"team\.0\.lora\.alpha: 16\.0 -> 32"):
        check_conflicts(sweep)


def test_a_run_is_a_seed_of_a_grid_that_is_added_later(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    (plan,) = sweep.runs
    start(sweep, plan.run_id, alpha=32.0)
    more = with_started_ids(load_sweep(sweep.source, [f"grid={{seed: [{plan.config.seed}, 7]}}"]))
    assert [run.run_id.rpartition("-")[0] for run in more.runs] == ["run", "seed-7"]
    assert more.runs[0].run_id == plan.run_id
    renamed = load_sweep(sweep.source, ["runs=[{label: other}]"])  # another arm: its name decides what is compared
    assert with_started_ids(renamed) == renamed


def test_a_run_cannot_become_shorter_than_what_is_trained(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    (plan,) = sweep.runs
    start(sweep, plan.run_id, alpha=32.0)
    last = plan.config.iterations

    def publish(phase: str, iteration: int) -> None:
        folder = sweep.folder / plan.run_id / phase / f"iteration={iteration:04d}"
        folder.mkdir(parents=True)
        (folder / "m-p000.manifest.json").write_text("{}")

    publish("update", last)
    publish("cold", last + 1)  # this iteration may be left unfinished
    check_iterations(sweep)
    publish("update", last + 1)
    expected = f"{plan.run_id}: iterations: {last}, but iteration {last + 1} is trained"
    with pytest.raises(RunConflictError, match=expected):
        check_iterations(sweep)
