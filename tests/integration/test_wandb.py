"""The copy of TensorBoard's points with the real package wandb: written, killed, continued, and uploaded.

The server is a stand-in that records what `wandb sync` sends (`tests/support/wandb_server.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from core_hpc.runs.folder import list_runs
from tests.support.harness import ROOT, launch, launch_and_kill
from tests.support.tiny import tiny_sweep
from tests.support.tracked_run import evaluated_run, tensorboard_points
from tests.support.wandb_server import RecordingServer, recording_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        getattr(find_spec("wandb"), "origin", None) is None,
        reason="the package wandb is not installed (pip install 'core_hpc[wandb]')",
    ),
]


def _python(arguments: list[str], env: dict[str, str], *, cwd: Path) -> str:
    """What a Python process prints. It must end without an error and without a traceback."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def sync(run: Path, server: RecordingServer) -> None:
    """Upload what `wandb sync` finds in the folder of a run."""
    _python(["-m", "wandb", "sync", "--yes"], server.environment, cwd=run)


def offline_folders(run: Path) -> list[Path]:
    return sorted(run.glob("wandb/offline-run-*"))


def test_a_killed_and_continued_run_has_the_points_of_tensorboard_once(tiny_models: list[Path], tmp_path: Path) -> None:
    sweep = tiny_sweep(tmp_path / "tiny.yaml", tiny_models, tmp_path / "out", tracking={"wandb": "a-project"})
    folder = tmp_path / "out" / "tiny"

    def scored() -> bool:
        return any(folder.glob("*/score/iteration=0001/*.manifest.json")) and any(folder.glob("*/wandb/offline-run-*"))

    assert launch_and_kill(sweep, scored, tmp_path / "log")
    (run,) = list_runs(folder)
    uid = json.loads((run / "wandb.json").read_text())["id"]
    with recording_server() as server:
        sync(run, server)  # of what the killed controller has left
        done = launch(sweep)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(offline_folders(run)) == 1
        sync(run, server)
    assert server.uploads[-1] == uid
    assert set(server.uploads) == {uid}
    copied, written = server.points(uid), tensorboard_points(run / "tensorboard")
    assert copied == written
    assert set(written.values()) == {1}
    assert {tag for _, tag, _, _ in written} >= {"1_evaluation/pass/k1", "2_learning/loss/total", "final/pass/k1/m0"}
    assert server.configs[uid]["seed"]["value"] == 7


def start_again(run: Path, *options: str, **env: str) -> list[str]:
    """The lines that the controller of a finished run prints."""
    return _python(["-m", "tests.integration.copy_points", str(run), *options], env, cwd=ROOT).splitlines()


def test_a_server_that_cannot_be_reached_is_reported_once_and_tensorboard_is_complete(tmp_path: Path) -> None:
    run = evaluated_run(tmp_path, wandb="a-project", wandb_mode="online").root
    message, end = start_again(run, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="0" * 40)
    assert "the sweep continues" in message
    assert "W&B copies of 1 run(s) are still incomplete" in end
    assert set(tensorboard_points(run / "tensorboard").values()) == {1}


def test_a_service_that_is_killed_is_reported_once_and_the_next_start_is_complete(tmp_path: Path) -> None:
    run = evaluated_run(tmp_path, wandb="a-project", wandb_mode="offline").root
    message, end = start_again(run, "--kill-service")
    assert "the sweep continues" in message
    assert "W&B copies of 1 run(s) are still incomplete" in end
    for changed in ("copied 1 run(s) for W&B.", "nothing was changed."):
        (end,) = start_again(run)
        assert end.endswith(changed)
    with recording_server() as server:
        sync(run, server)
    assert server.points(server.uploads[-1]) == tensorboard_points(run / "tensorboard")


def test_the_online_mode_replaces_what_an_earlier_start_has_uploaded(tmp_path: Path) -> None:
    run = evaluated_run(tmp_path, wandb="a-project", wandb_mode="online").root
    with recording_server() as server:
        for _ in range(2):
            (end,) = start_again(run, **server.environment)
            assert end.endswith("copied 1 run(s) for W&B.")
            uid = json.loads((run / "wandb.json").read_text())["id"]
            (run / "wandb.json").write_text(json.dumps({"id": uid}))  # as of an earlier version
    assert server.uploads == [uid, uid]
    assert server.points(uid) == tensorboard_points(run / "tensorboard")


def test_the_online_mode_without_a_key_is_refused_before_anything_is_created(tmp_path: Path) -> None:
    sweep = tiny_sweep(
        tmp_path / "tiny.yaml", [Path("/m0")], tmp_path / "out", tracking={"wandb": "p", "wandb_mode": "online"}
    )
    env = {"HOME": str(tmp_path), "WANDB_API_KEY": "", "NETRC": str(tmp_path / "none")}
    done = launch(sweep, env=env)
    assert done.returncode == 2
    assert "tracking.wandb_mode: online needs a key" in done.stderr
    assert not (tmp_path / "out").exists()
