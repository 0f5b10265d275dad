"""A stopped or killed update continues from its checkpoint and publishes the usual result."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths
from tests.support.harness import ROOT, differences
from tests.support.shared_runs import KILLED

pytestmark = pytest.mark.slow
KEY = KILLED


@pytest.fixture(scope="module")
def killed(shared_runs: dict[str, Path]) -> Path:
    """A run with an update of four steps that was killed after the third step, and then continued."""
    return shared_runs["teaching"]


@pytest.fixture(scope="module")
def attempts(killed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The update again in two copies of the run, as `update_attempts.py` describes.

    Returns:
        The folders of the copies, the reports of the attempts, and the log.
    """
    copies = {
        name: Path(shutil.copytree(killed, tmp_path_factory.mktemp("runs") / name))
        for name in ("undisturbed", "interrupted")
    }
    for copy in copies.values():
        RunPaths(copy).task_manifest(KEY).unlink()
        config = RunPaths(copy).config
        config.write_text(config.read_text().replace("1e-09", "0.0"))  # checkpoints only on request
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {
        **os.environ,
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    command = [
        sys.executable,
        str(Path(__file__).with_name("update_attempts.py")),
        *map(str, copies.values()),
        str(KEY),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return {**copies, "seen": json.loads(done.stdout.splitlines()[-1]), "log": done.stderr}


def resumed_from_step(run: Path) -> int:
    found: int = manifests.read_manifest(RunPaths(run).task_manifest(KEY)).stats["resumed_from_step"]
    return found


def test_a_killed_update_loses_only_the_steps_since_its_last_checkpoint(killed: Path, attempts: dict[str, Any]) -> None:
    assert (resumed_from_step(killed), resumed_from_step(attempts["undisturbed"])) == (2, 0)
    assert differences(attempts["undisturbed"], killed) == []
    assert not RunPaths(killed).checkpoint_folder(KEY).exists()


def test_an_update_is_stopped_twice_and_finished_from_an_older_checkpoint(attempts: dict[str, Any]) -> None:
    undisturbed, first, second, third, fourth = attempts["seen"]
    assert (undisturbed["progress"], undisturbed["stored"]) == ([1, 2, 3, 4], None)
    assert first["message"] == "update: stopped on request after 2 of 4 optimizer steps"
    assert second["message"] == "update: stopped on request after 3 of 4 optimizer steps"
    assert (first["progress"], second["progress"], third["progress"], fourth["progress"]) == ([1, 2], [3], [3, 4], [])
    assert [a["published"] for a in (first, second, third, fourth)] == [False, False, True, True]
    assert [len(a["stored"]) for a in (first, second)] == [2, 4]  # a manifest and a folder each
    assert third["stored"] is None
    assert "removed a checkpoint that cannot be used" in attempts["log"]
    assert resumed_from_step(attempts["interrupted"]) == 2
    assert differences(attempts["undisturbed"], attempts["interrupted"]) == []
