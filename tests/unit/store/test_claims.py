"""Claims: one holder at a time, who is named in messages; the claim of a dead holder is broken."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import psutil
import pytest

from core_hpc.common.errors import ClaimError, InputError
from core_hpc.slurm.commands import SlurmUnavailableError
from core_hpc.store import claims
from core_hpc.store.claims import claim, holder_lives

CLAIM_AND_DIE = """
import os, pathlib, sys
from core_hpc.store.claims import claim
with claim(pathlib.Path(sys.argv[1])):
    os.kill(os.getpid(), 9)
"""

CLAIM_AND_WAIT = """
import pathlib, sys
from core_hpc.store.claims import claim
with claim(pathlib.Path(sys.argv[1])):
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_a_job_id_that_is_not_a_number_is_an_error_that_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "abc")
    with pytest.raises(InputError, match=r"SLURM_JOB_ID is 'abc'.*unset SLURM_JOB_ID"), claim(tmp_path / "claim.json"):
        pass
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("SLURM_JOB_ID", "")
    with claim(tmp_path / "claim.json"):
        assert json.loads((tmp_path / "claim.json").read_text())["job"] is None


def test_the_claim_of_a_living_process_is_respected_and_its_holder_named(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    with claim(path), pytest.raises(ClaimError, match=f"process {os.getpid()}"), claim(path):
        pass
    assert list(tmp_path.iterdir()) == []
    with claim(path):
        assert path.exists()


def test_the_claim_of_a_killed_process_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    done = subprocess.run([sys.executable, "-c", CLAIM_AND_DIE, str(path)], check=False)
    assert done.returncode == -9
    assert path.exists()
    with claim(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_zombie_process_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    process = subprocess.Popen([sys.executable, "-c", CLAIM_AND_DIE, str(path)])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended and stays a zombie
    with claim(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    process.wait()


def test_the_claim_of_another_host_is_never_broken(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "user": "ann", "time": 0, "process_start": 0}))
    with pytest.raises(ClaimError, match="host elsewhere, process 1, user ann"), claim(path):
        pass
    assert path.exists()


def test_a_reused_process_id_is_not_the_holder(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    with claim(path):
        body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "start_ticks": body["start_ticks"] - 1000}))
    with claim(path):
        pass


@contextmanager
def other_holder(path: Path) -> Iterator[dict[str, Any]]:
    """The claim file of another living process."""
    process = subprocess.Popen([sys.executable, "-c", CLAIM_AND_WAIT, str(path)], stdin=PIPE, stdout=PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"claimed\n"
    try:
        yield json.loads(path.read_text())
    finally:
        process.communicate(timeout=60)


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_a_step_of_the_clock_does_not_make_a_living_holder_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    """The start in epoch seconds moves with the clock, because it is computed from the boot time."""
    path = tmp_path / "claim.json"
    with other_holder(path) as holder:
        started = psutil.Process(holder["pid"]).create_time()
        monkeypatch.setattr(psutil.Process, "create_time", lambda process: started + step_s)
        assert holder_lives(holder, None) is True
        path.write_text(json.dumps({**holder, "process_start": holder["process_start"] - step_s}))
        with pytest.raises(ClaimError, match=f"process {holder['pid']}"), claim(path):
            pass
        path.write_text(json.dumps(holder))
    assert holder_lives(holder, None) is False


def test_the_claim_of_an_earlier_version_is_understood(tmp_path: Path) -> None:
    """It has only the start in epoch seconds."""
    path = tmp_path / "claim.json"
    with other_holder(path) as holder:
        old = {name: holder[name] for name in ("host", "pid", "user", "time", "process_start", "job")}
        assert holder_lives(old, None) is True
        assert holder_lives({**old, "process_start": old["process_start"] - 1000}, None) is False
    assert holder_lives(old, None) is False


def test_a_holder_before_the_last_boot_is_dead_and_one_in_another_container_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    with other_holder(path) as holder:
        assert holder_lives({**holder, "boot_id": "of-an-earlier-boot"}, None) is False
        elsewhere = {**holder, "pid_namespace": "pid:[1]"}
        assert holder_lives(elsewhere, None) is None
        assert holder_lives({**elsewhere, "job": 7}, lambda job: True) is False
        assert holder_lives({**elsewhere, "job": 7}, lambda job: False) is True


def test_a_process_that_the_system_hides_is_not_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the mount option hidepid, /proc shows only the processes of the own user."""
    path = tmp_path / "claim.json"
    with claim(path):
        holder = json.loads(path.read_text())

    def raises(error: type[OSError]) -> Callable[..., None]:
        def fail(*args: object) -> None:
            raise error

        return fail

    monkeypatch.setattr(claims, "_start_ticks", raises(FileNotFoundError))
    monkeypatch.setattr(os, "kill", raises(PermissionError))
    assert holder_lives(holder, None) is None
    monkeypatch.setattr(os, "kill", raises(ProcessLookupError))
    assert holder_lives(holder, None) is False


def claim_of_another_host(job: int | None) -> str:
    return json.dumps({"host": "elsewhere", "pid": 1, "user": "ann", "time": 0, "process_start": 0, "job": job})


def test_a_job_of_another_host_is_dead_only_if_slurm_reports_its_end(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    path.write_text(claim_of_another_host(12))
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

    path.write_text(claim_of_another_host(12))
    with pytest.raises(SlurmUnavailableError), claim(path, has_ended=no_answer):
        pass
    path.write_text(claim_of_another_host(None))  # another login node: its death cannot be proven
    with pytest.raises(ClaimError, match="host elsewhere"), claim(path, has_ended=has_ended(True)):
        pass


def test_a_requeued_job_takes_over_its_own_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "claim.json"
    path.write_text(claim_of_another_host(12))
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with claim(path):
        assert json.loads(path.read_text())["job"] == 12
