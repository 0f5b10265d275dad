"""Real workers of a real fork server. The packages that it imports are small files."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from core_hpc.engines import worker_environment
from core_hpc.local import process as processes
from core_hpc.local.forking import ForkServer
from core_hpc.local.process import WorkerProcess, end_workers
from core_hpc.runs.worker_messages import MessageKind
from tests.support.harness import ROOT

IMPORTED = "imported.txt"

Starter = Callable[..., tuple[ForkServer, Callable[..., WorkerProcess]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Start a server that imports a module with some code. Returns it, and what starts its workers."""
    servers: list[ForkServer] = []
    workers: list[WorkerProcess] = []

    def begin(code: str = "", *, kind: str = "fake") -> tuple[ForkServer, Callable[..., WorkerProcess]]:
        module = f"import os\nwith open({str(tmp_path / IMPORTED)!r}, 'a') as f: print(os.getpid(), file=f)\n{code}\n"
        (tmp_path / "package_of_workers.py").write_text(module)
        paths = os.pathsep.join([str(ROOT), str(tmp_path)])
        environment = {**os.environ, **worker_environment(kind, 1), "PYTHONPATH": paths, "CORE_HPC_OF_SERVER": "1"}
        with (tmp_path / "server.log").open("ab") as log:
            servers.append(ForkServer(["package_of_workers"], environment, log))

        def worker(name: str, *, ignore_signals: bool = False, **variables: str) -> WorkerProcess:
            own = {key: value for key, value in environment.items() if key != "CORE_HPC_OF_SERVER"} | variables
            log = tmp_path / f"{name}.log"
            workers.append(WorkerProcess(name, log, own, ignore_signals=ignore_signals, server=servers[0]))
            return workers[-1]

        return servers[0], worker

    yield begin
    end_workers([worker for worker in workers if not worker.pipe.closed])
    for server in servers:
        server.close()


def await_ready(worker: WorkerProcess) -> psutil.Process:
    """Wait for the first message, and return the process, as its log names it."""
    messages = worker.read()
    assert messages is not None
    assert [message.kind for message in messages] == [MessageKind.READY]
    assert worker.log is not None
    first_line = worker.log.read_text().splitlines()[0]
    assert first_line.startswith(f"--- worker {worker.role}, process ")
    return psutil.Process(int(first_line.split()[4].rstrip(",")))


def links(process: psutil.Process) -> set[str]:
    """What the open files of a process are, such as `pipe:[1234]`."""
    found = set()
    for path in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(path.readlink()))
    return found


def test_workers_share_an_import_and_nothing_else(start: Starter, tmp_path: Path) -> None:
    _, new = start()
    first, second = new("first"), new("second")
    processes = [await_ready(first), await_ready(second)]
    assert len({process.pid for process in processes}) == 2
    (server,) = (tmp_path / IMPORTED).read_text().split()
    assert {process.ppid() for process in processes} == {int(server)}
    assert len({os.getsid(process.pid) for process in processes}) == 2, "a signal of a terminal would reach both"
    # A pipe that another worker held open would hide that its owner has ended.
    shared = links(processes[0]) & links(processes[1])
    assert not {link for link in shared if link.startswith(("pipe:", "socket:"))}
    processes[0].kill()
    assert first.read() is None
    assert first.ending() == "signal SIGKILL"
    second.close_input()
    assert second.read() is None
    assert second.ending() == "exit status 0"


def test_the_environment_of_a_worker_is_its_own(start: Starter, tmp_path: Path) -> None:
    """The module of the server replaces the call with which a worker ends, to write what it sees."""
    found = tmp_path / "environment.json"
    code = "import json\nend = os._exit\n"
    code += f"os._exit = lambda code: (open({str(found)!r}, 'w').write(json.dumps(dict(os.environ))), end(code))"
    server, new = start(code)
    worker = new("worker", CORE_HPC_TEST="of the worker")
    await_ready(worker)
    worker.close_input()
    assert worker.read() is None
    environment = json.loads(found.read_text())
    assert environment["CORE_HPC_TEST"] == "of the worker"
    assert "CORE_HPC_OF_SERVER" not in environment
    assert environment["PYTHONPATH"].endswith(str(tmp_path))
    assert server.is_alive


def test_a_worker_may_use_all_cores_of_its_server(start: Starter) -> None:
    """Intel's OpenMP, which torch then uses, would bind a forked process to the first core."""
    _, new = start("import torch", kind="transformers")
    process = await_ready(new("worker"))
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    assert "libiomp5" in maps or not Path(sys.prefix, "lib", "libiomp5.so").exists()
    assert process.cpu_affinity() == psutil.Process().cpu_affinity()


@pytest.mark.parametrize(("ignore_signals", "expected"), [(True, "exit status 0"), (False, "signal SIGTERM")])
def test_signals_of_a_batch_system(start: Starter, ignore_signals: bool, expected: str) -> None:
    _, new = start()
    worker = new("worker", ignore_signals=ignore_signals)
    process = await_ready(worker)
    psutil.Process(process.ppid()).send_signal(signal.SIGTERM)  # the server always ignores them
    process.send_signal(signal.SIGTERM)
    if ignore_signals:
        time.sleep(0.2)
        worker.close_input()
    assert worker.read() is None
    assert worker.ending() == expected


@pytest.mark.parametrize(
    "code",
    ["import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()", "raise RuntimeError"],
    ids=["a second thread", "an import that fails"],
)
def test_where_a_fork_is_not_safe_a_worker_is_a_program_of_its_own(start: Starter, code: str) -> None:
    _, new = start(code)
    worker = new("worker")
    process = await_ready(worker)
    assert "core_hpc.phases.worker" in process.cmdline()
    process.kill()
    assert worker.read() is None
    assert worker.ending() == "signal SIGKILL"


def test_a_worker_continues_when_its_server_has_ended(start: Starter) -> None:
    server, new = start()
    worker = new("worker")
    process = await_ready(worker)
    psutil.Process(process.ppid()).kill()
    too_late = new("too-late")
    assert too_late.read() is None
    assert too_late.ending() == "an unknown exit status, because its fork server has ended"
    while server.is_alive:  # its files are closed a moment before it counts as ended
        time.sleep(0.01)
    assert process.is_running()
    worker.close_input()
    assert worker.read() is None
    assert worker.ending() == "an unknown exit status, because its fork server has ended"
    process.wait()


def test_a_worker_ends_although_its_server_still_imports(start: Starter) -> None:
    _, new = start("import threading\nthreading.Event().wait()")
    end_workers([new("worker")])


def test_a_worker_that_hangs_is_killed(start: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_GRACE_S", 0.2)
    _, new = start()
    worker = new("worker")
    process = await_ready(worker)
    process.suspend()
    while process.status() != psutil.STATUS_STOPPED:  # it takes effect when a thread gets its turn
        time.sleep(0.01)
    end_workers([worker])
    assert worker.ending() == "signal SIGKILL"
