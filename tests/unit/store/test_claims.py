"""Claims are exclusive, name their holder, and survive crashes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core_hpc.common.errors import ClaimError
from core_hpc.slurm.commands import SlurmUnavailableError
from core_hpc.store.claims import claim


def test_a_living_claim_is_respected_and_named(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    with claim(path), pytest.raises(ClaimError, match=f"process {os.getpid()}"), claim(path):
        pass
    assert list(tmp_path.iterdir()) == []
    with claim(path):
        assert path.exists()


def test_the_claim_of_a_killed_process_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    code = "import os, pathlib, sys; from core_hpc.store.claims import claim\nwith claim(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    assert path.exists()
    with claim(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_that_nobody_waited_for_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    code = "import os, pathlib, sys; from core_hpc.store.claims import claim\nwith claim(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
    with claim(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    process.wait()


def test_a_claim_of_another_host_is_never_broken(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "user": "ann", "time": 0, "process_start": 0}))
    with pytest.raises(ClaimError, match="host elsewhere, process 1, user ann"), claim(path):
        pass
    assert path.exists()


def test_a_reused_process_id_is_not_the_holder(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    with claim(path):
        body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "process_start": body["process_start"] - 1000}))
    with claim(path):
        pass


def foreign(job: int | None) -> str:
    return json.dumps({"host": "elsewhere", "pid": 1, "user": "ann", "time": 0, "process_start": 0, "job": job})


def test_a_job_of_another_host_is_dead_only_on_slurms_word(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    path.write_text(foreign(12))
    asked: list[int] = []

    def has_ended(answer: bool) -> Callable[[int], bool]:
        return lambda job: asked.append(job) or answer

    with pytest.raises(ClaimError, match="SLURM job 12"), claim(path, has_ended=has_ended(False)):
        pass
    with claim(path, has_ended=has_ended(True)):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert asked == [12, 12]

    def no_answer(job: int) -> bool:
        raise SlurmUnavailableError("squeue: no answer")

    path.write_text(foreign(12))
    with pytest.raises(SlurmUnavailableError), claim(path, has_ended=no_answer):
        pass
    path.write_text(foreign(None))  # an attached controller on another login node: nobody can prove its death
    with pytest.raises(ClaimError, match="host elsewhere"), claim(path, has_ended=has_ended(True)):
        pass


def test_a_job_that_slurm_has_put_back_takes_its_own_claim_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "claim.json"
    path.write_text(foreign(12))
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with claim(path):
        assert json.loads(path.read_text())["job"] == 12
