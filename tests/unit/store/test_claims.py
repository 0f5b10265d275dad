"""Claims: one holder at a time, who is named in messages; the claim of a dead holder is broken."""

import errno
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import psutil
import pytest

from core_hpc.common.errors import ClaimError, ClaimLostError, InputError, StoreError
from core_hpc.slurm.commands import SlurmUnavailableError
from core_hpc.store import claims
from core_hpc.store.claims import HasEnded, claim, holder_lives, own_job, read_holder
from tests.support.harness import link_with_lost_reply


def enter_job(monkeypatch: pytest.MonkeyPatch, *, restarts: int) -> None:
    """Set what SLURM sets in a batch script of job 12."""
    for name, value in {"JOB_ID": "12", "RESTART_COUNT": str(restarts)}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURMD_NODENAME", "n1")


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
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    monkeypatch.setenv("SLURM_JOB_ID", "abc")
    with pytest.raises(InputError, match=r"SLURM_JOB_ID is 'abc'.*unset SLURM_JOB_ID"), claim(tmp_path / "claim.json"):
        pass
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("SLURM_JOB_ID", "")
    with claim(tmp_path / "claim.json"):
        assert json.loads((tmp_path / "claim.json").read_text())["job"] is None


def test_a_shell_of_salloc_on_the_login_node_is_not_inside_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may outlive the job, for example in tmux. The end of the job then does not prove that the holder is dead."""
    path = tmp_path / "claim.json"
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with claim(path) as held:
        assert json.loads(path.read_text())["job"] is None
        monkeypatch.setattr(socket, "gethostname", lambda: "login2")
        with pytest.raises(ClaimError, match="on another machine"), claim(path, has_ended=lambda job, user: True):
            pass
        held.require()
    assert own_job() is None
    monkeypatch.setenv("SLURMD_NODENAME", "n1")  # as slurmd does for batch scripts and for tasks of srun
    assert own_job() == 12


def test_the_claim_of_a_living_process_is_respected_and_its_holder_named(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    with claim(path), pytest.raises(ClaimError, match=f"process {os.getpid()}"), claim(path):
        pass
    assert list(tmp_path.iterdir()) == []
    with claim(path):
        assert path.exists()


def test_a_claim_whose_reply_was_lost_is_the_own_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", link_with_lost_reply)
    path = tmp_path / "claim.json"
    with claim(path) as held:
        held.require()
        with pytest.raises(ClaimError, match=f"process {os.getpid()}"), claim(path):
            pass
    assert list(tmp_path.iterdir()) == []


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
        assert holder_lives({**elsewhere, "job": 7}, lambda job, user: True) is False
        assert holder_lives({**elsewhere, "job": 7}, lambda job, user: False) is True


def test_a_holder_on_another_machine_of_the_same_name_is_not_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has another boot, too. A claim of an earlier version does not name its machine."""
    machine_id, path = tmp_path / "machine-id", tmp_path / "claim.json"
    monkeypatch.setattr(claims, "MACHINE_ID", machine_id)
    for there, here in (("0123abcd\n", "4567ef89\n"), ("0123abcd\n", ""), ("", "4567ef89\n")):
        machine_id.write_text(there)
        with claim(path):
            holder = json.loads(path.read_text()) | {"boot_id": "of-another-machine"}
        assert "0123abcd" not in json.dumps(holder)  # it is confidential
        assert holder_lives(holder, None) is False
        machine_id.write_text(here)
        assert holder_lives(holder, None) is None
        assert holder_lives({k: v for k, v in holder.items() if k != "machine"}, None) is False
    machine_id.unlink()
    assert holder_lives({**holder, "machine": ""}, None) is False


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
    asked: list[tuple[int, str]] = []

    def has_ended(answer: bool) -> HasEnded:
        return lambda job, user: asked.append((job, user)) or answer

    with pytest.raises(ClaimError, match="SLURM job 12"), claim(path, has_ended=has_ended(False)):
        pass
    with claim(path, has_ended=has_ended(True)):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert asked == [(12, "ann")] * 2

    def no_answer(job: int, user: str) -> bool:
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
    enter_job(monkeypatch, restarts=1)
    with claim(path):
        assert json.loads(path.read_text())["job"] == 12


def test_two_controllers_inside_one_job_are_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in two terminals of one allocation: the job alone does not tell who is alive."""
    path = tmp_path / "claim.json"
    enter_job(monkeypatch, restarts=0)
    with other_holder(path) as holder:
        assert holder["job"] == 12
        answers: list[HasEnded | None] = [None, lambda job, user: False]
        for has_ended in answers:
            with (
                pytest.raises(ClaimError, match=f"process {holder['pid']}, SLURM job 12"),
                claim(path, has_ended=has_ended),
            ):
                pass
        path.write_text(json.dumps({**holder, "restarts": None}))  # a claim of an earlier version
        with pytest.raises(ClaimError, match=f"process {holder['pid']}, SLURM job 12"), claim(path):
            pass
        elsewhere = {**holder, "host": "elsewhere"}  # on another node of the same allocation
        path.write_text(json.dumps(elsewhere))
        with pytest.raises(ClaimError, match="host elsewhere"), claim(path, has_ended=lambda job, user: False):
            pass
        path.write_text(json.dumps(holder))
    path.write_text(json.dumps(holder))  # its holder is dead now
    with claim(path):
        pass


def test_a_requeued_job_knows_its_earlier_execution_by_the_number_of_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "claim.json"
    enter_job(monkeypatch, restarts=1)
    with claim(path):
        holder = json.loads(path.read_text())
    path.write_text(json.dumps({**holder, "host": "elsewhere", "restarts": 1}))
    with pytest.raises(ClaimError, match="host elsewhere"), claim(path, has_ended=lambda job, user: False):
        pass
    path.write_text(json.dumps({**holder, "host": "elsewhere", "restarts": 0}))
    with claim(path, has_ended=lambda job, user: False):
        assert json.loads(path.read_text())["restarts"] == 1


def test_the_holder_notices_that_it_has_lost_the_claim(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    with claim(path) as held:
        held.require()
        path.unlink()
        with pytest.raises(ClaimLostError, match="was removed"):
            held.require()
        with other_holder(path) as holder:
            with pytest.raises(ClaimLostError, match=f"process {holder['pid']}"):
                held.require()
            held.release()
            assert json.loads(path.read_text()) == holder
        path.write_text("{")
        with pytest.raises(ClaimLostError, match="overwritten"):
            held.require()
    assert path.read_text() == "{"


def test_a_claim_by_the_same_process_is_another_claim(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    with claim(path) as held:
        earlier, token = path.read_text(), held.require()
    with claim(path) as second:
        assert second.require() not in ("", token)
        with pytest.raises(ClaimLostError):
            held.require()
        assert path.read_text() != earlier


def failing_read(number: int) -> Callable[[Path], bytes]:
    def read(path: Path) -> bytes:
        raise OSError(number, os.strerror(number))

    return read


def test_a_file_system_that_fails_proves_no_loss_and_hides_no_other_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "claim.json"

    def work() -> None:
        with claim(path) as held:
            monkeypatch.setattr(Path, "read_bytes", failing_read(errno.EIO))
            held.require()
            raise OSError(errno.EIO, "Input/output error", "shard.parquet")

    with pytest.raises(OSError, match=r"shard\.parquet"):
        work()
    monkeypatch.undo()
    assert path.exists()  # it could not be proven that the claim is still the own one


HOLDER: dict[str, Any] = {"host": "elsewhere", "pid": 1, "user": "ann", "time": 0}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        "{}",
        "[" * 3000,
        *(json.dumps({**HOLDER, name: None}) for name in HOLDER),
        *(json.dumps({**HOLDER, "pid": pid}) for pid in ("1", 1.5, True, [1])),
        *(json.dumps({**HOLDER, "job": job}) for job in ("12", 1.5, True, {})),
        json.dumps({**HOLDER, "start_ticks": 7}),
        json.dumps({**HOLDER, "process_start": "now"}),
    ],
)
def test_a_claim_of_a_wrong_shape_is_an_error_that_names_the_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "claim.json"
    path.write_text(content)
    with pytest.raises(StoreError, match=re.escape(str(path))):
        read_holder(path)
    with pytest.raises(ClaimError, match="remove this file"), claim(path):
        pass
    assert path.read_text() == content


def test_a_user_without_a_name_can_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container in which the user's id has no entry in /etc/passwd."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with claim(tmp_path / "claim.json"):
        assert read_holder(tmp_path / "claim.json")["user"] == f"#{os.getuid()}"


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_a_holder_in_another_pid_namespace_is_neither_alive_nor_dead(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", CLAIM_AND_WAIT, str(path)]
    process = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    if process.stdout.readline() != b"claimed\n":
        error = process.communicate(timeout=60)[1].decode()
        assert "Operation not permitted" in error, error
        pytest.skip("this container may not create namespaces")
    holder = read_holder(path)
    assert holder["pid"] < 10  # process ids are counted anew
    assert holder_lives(holder, None) is None
    with pytest.raises(ClaimError, match="in another container"), claim(path):
        pass
    process.communicate(timeout=60)
    assert not path.exists()


def test_a_file_system_without_hard_links_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ClaimError, match="this file system has no hard links"), claim(tmp_path / "claim.json"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_was_taken_between_the_look_and_the_removal_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, looks = tmp_path / "claim.json", list[int]()
    path.write_text(json.dumps(HOLDER))
    taken = json.dumps({**HOLDER, "pid": 2})

    def look(holder: dict[str, Any], has_ended: HasEnded | None) -> bool:
        looks.append(holder["pid"])
        path.write_text(taken)
        return holder["pid"] == 2

    monkeypatch.setattr(claims, "holder_lives", look)
    with pytest.raises(ClaimError, match="process 2, user ann"), claim(path):
        pass
    assert looks == [1, 2]
    assert path.read_text() == taken
    assert list(tmp_path.iterdir()) == [path]


def test_a_claim_that_is_away_for_a_moment_is_not_lost(tmp_path: Path) -> None:
    """Another start takes it away to look whether it is that of a dead holder."""
    path, aside = tmp_path / "claim.json", tmp_path / "aside"
    with claim(path) as held:
        path.rename(aside)
        timer = threading.Timer(0.2, aside.rename, [path])
        timer.start()
        assert held.require() == held.content["token"]
        timer.join()


CLAIM_AT_ONCE = """
import multiprocessing, os, pathlib, random, sys, time
from core_hpc.common.errors import ClaimError
from core_hpc.store import claims
from core_hpc.store.claims import claim

look = claims.holder_lives
def slowly(holder, has_ended):  # so that another start takes the sweep between the look and what follows from it
    lives = look(holder, has_ended)
    time.sleep(random.Random(os.getpid()).uniform(0, 0.02))
    return lives
claims.holder_lives = slowly

def start(path, begin, end, outcomes):
    begin.wait()
    try:
        with claim(path) as held:
            for _ in range(20):  # as a controller does before everything it changes
                token = held.require()
                time.sleep(0.001)
            outcomes.put(token)
            end.wait()
    except ClaimError as e:  # also ClaimLostError
        outcomes.put(f"refused: {e}")
        end.wait()

path, dead = pathlib.Path(sys.argv[1]), sys.argv[2]
fork = multiprocessing.get_context("fork")
for _ in range(25):
    path.write_text(dead)
    outcomes, begin, end = fork.Queue(), fork.Barrier(6), fork.Barrier(6)
    starts = [fork.Process(target=start, args=(path, begin, end, outcomes)) for _ in range(6)]
    for process in starts: process.start()
    found = [outcomes.get(timeout=30) for _ in starts]
    for process in starts: process.join()
    holders = [text for text in found if not text.startswith("refused")]
    if len(holders) != 1: sys.exit(f"{len(holders)} holders: {found}")
    if path.exists() or list(path.parent.glob(".*")): sys.exit(f"left over: {list(path.parent.iterdir())}")
"""


def test_of_many_starts_over_a_dead_claim_exactly_one_has_the_sweep(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    subprocess.run([sys.executable, "-c", CLAIM_AND_DIE, str(path)], check=False)
    code = [sys.executable, "-c", CLAIM_AT_ONCE, str(path), path.read_text()]
    done = subprocess.run(code, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
