"""Damage while a sweep runs, and a sweep that another controller takes: real launches of a tiny run.

The output path has the characters of a pattern, and the run folder has files of a user.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core_hpc.store import manifests
from core_hpc.store.paths import TEAM, RunPaths, SweepPaths, TaskKey
from core_hpc.store.schema import SCORE, UPDATE
from tests.support.harness import differences, flip_a_byte, launch, launched_and_held, the_run, wait_for
from tests.support.tiny import tiny_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SMALL = {"iterations": 1}
OUTPUT = "out [1]*?"


@pytest.fixture(scope="module")
def undisturbed(undisturbed_run: Callable[[int], Path]) -> Path:
    return undisturbed_run(SMALL["iterations"])


def test_damaged_scores_and_problems_are_made_again_while_the_sweep_runs(
    undisturbed: Path, tiny_models: list[Path], tmp_path: Path
) -> None:
    """The controller reads the scores for TensorBoard, and the tasks read the problems."""
    sweep = tiny_sweep(tmp_path / "tiny.yaml", tiny_models, tmp_path / OUTPUT, **SMALL)
    hold, folder = tmp_path / "hold", tmp_path / OUTPUT / "tiny"
    step = f"publish.before_manifest@/{SCORE}/iteration=0001/team-p001"
    with launched_and_held(sweep, step, hold, env={}) as process:
        run = the_run(folder)
        scores = RunPaths(run).task_manifest(TaskKey(1, SCORE, TEAM, 0))
        wait_for(scores.exists, "the scores of the other part")
        flip_a_byte(manifests.read_manifest(scores).file(".parquet"))
        flip_a_byte(manifests.read_manifest(RunPaths(run).problems / "evaluation.manifest.json").file(".parquet"))
        notes = [run / "README.txt", scores.parent / "README.txt", scores.parent / "notes.manifest.json"]
        for path in notes:
            path.write_text("mine")
        (tmp_path / "hold.go").touch()
        output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    assert "Tracking of" in output
    assert "checksum differs" in output
    assert differences(undisturbed, run) == []
    assert all(path.read_text() == "mine" for path in notes)
    again = launch(sweep)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "core_hpc did not write them: score/iteration=0001/README.txt, score/iteration=0001/notes" in again.stdout
    assert differences(undisturbed, run) == []
    flip_a_byte(manifests.read_manifest(RunPaths(run).problems / "train.manifest.json").file(".parquet"))
    repaired = launch(sweep)
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert "made again from the same source" in repaired.stdout
    assert all(path.read_text() == "mine" for path in notes)


def test_a_controller_that_loses_its_claim_stops_and_the_other_one_finishes(
    undisturbed: Path, tiny_models: list[Path], tmp_path: Path
) -> None:
    sweep = tiny_sweep(tmp_path / "tiny.yaml", tiny_models, tmp_path / OUTPUT, **SMALL)
    hold, folder = tmp_path / "hold", tmp_path / OUTPUT / "tiny"
    with launched_and_held(sweep, f"update.step@{UPDATE}/0001", hold, env={}) as first:
        refused = launch(sweep)
        assert refused.returncode == 3, refused.stdout + refused.stderr
        assert f"process {first.pid}" in refused.stderr
        claim, heartbeat = SweepPaths(folder).claim, SweepPaths(folder).controller
        claim.unlink()  # as a user does who believes that the process is dead
        since = time.monotonic()
        output, _ = first.communicate(timeout=60)
        assert first.returncode == 3, output
        assert time.monotonic() - since < 30
        left = json.loads(heartbeat.read_text())
    assert not claim.exists()
    done = launch(sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(heartbeat.read_text())["pid"] != left["pid"]
    assert differences(undisturbed, the_run(folder)) == []
