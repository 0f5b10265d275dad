"""Damage while a sweep runs, and a sweep that another controller takes: real launches of a tiny run.

The output path has the characters of a pattern, and the run folder has files of a user.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from core_hpc.store import manifests
from core_hpc.store.paths import TEAM, RunPaths, SweepPaths, TaskKey
from core_hpc.store.schema import SCORE, UPDATE
from tests.support.harness import differences, flip_a_byte, launch, launched_and_held, the_run, wait_for
from tests.support.shared_runs import PLAIN
from tests.support.tiny import tiny_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
OUTPUT = "out [1]*?"


def test_a_damaged_sweep_whose_controller_loses_its_claim_ends_with_the_same_results(
    shared_runs: dict[str, Path], tiny_models: list[Path], tmp_path: Path
) -> None:
    """The controller reads the scores for TensorBoard, updates train on them, and both find the damage.

    Then the controller loses its claim in the middle of an update and stops, and the next one finishes.
    """
    sweep = tiny_sweep(tmp_path / "tiny.yaml", tiny_models, tmp_path / OUTPUT, runs=[PLAIN])
    folder, holds = tmp_path / OUTPUT / "tiny", [tmp_path / "hold0", tmp_path / "hold1"]
    claim, heartbeat = SweepPaths(folder).claim, SweepPaths(folder).controller
    step = f"publish.before_manifest@/{SCORE}/iteration=0001/team-p001"
    later = {f"update.step@{UPDATE}/0001": holds[1]}
    with launched_and_held(sweep, step, holds[0], env={}, later=later) as first:
        run = the_run(folder)
        scores = RunPaths(run).task_manifest(TaskKey(1, SCORE, TEAM, 0))
        wait_for(scores.exists, "the scores of the other part")
        flip_a_byte(manifests.read_manifest(scores).file(".parquet"))
        flip_a_byte(manifests.read_manifest(RunPaths(run).problems / "evaluation.manifest.json").file(".parquet"))
        notes = [run / "README.txt", scores.parent / "README.txt", scores.parent / "notes.manifest.json"]
        for path in notes:
            path.write_text("mine")
        Path(f"{holds[0]}.go").touch()
        wait_for(holds[1].exists, "an update")
        refused = launch(sweep)
        assert refused.returncode == 3, refused.stdout + refused.stderr
        assert f"process {first.pid}" in refused.stderr
        claim.unlink()  # as a user does who believes that the process is dead
        since = time.monotonic()
        output, _ = first.communicate(timeout=60)
        assert first.returncode == 3, output
        assert time.monotonic() - since < 30
        left = json.loads(heartbeat.read_text())
    assert "Tracking of" in output
    assert "checksum differs" in output
    assert not claim.exists()
    done = launch(sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "core_hpc did not write them: score/iteration=0001/README.txt, score/iteration=0001/notes" in done.stdout
    assert json.loads(heartbeat.read_text())["pid"] != left["pid"]
    assert differences(shared_runs["plain"], run) == []
    flip_a_byte(manifests.read_manifest(RunPaths(run).problems / "train.manifest.json").file(".parquet"))
    repaired = launch(sweep)
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert "made again from the same source" in repaired.stdout
    assert all(path.read_text() == "mine" for path in notes)
