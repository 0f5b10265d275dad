"""A process that imports the packages of workers once, and forks a worker for each request.

In: requests of `local/forking.py` over a socket; each has the arguments of `phases/worker.py`, the
changes of the environment, and the open files of the worker. Out: per worker, its process id and
its exit status. The workers of a team on CPU cores need the same packages, whose import takes
longer than the start of a small model. Memory that they do not change is shared.

A fork is safe only while a process has one thread. If an imported package has started another one,
or if an import fails, a worker begins as a program of its own and imports everything itself. An
error of an import is therefore raised where it is reported: in the task of the worker.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import psutil

from core_hpc.common.faults import fault_point
from core_hpc.models.imports import large_imports

REQUEST_BYTES = 1 << 16
NUM_FILES = 5
"""Open files of a request: standard input, output and error, events, status."""


def serve(connection: socket.socket, *, forks: bool) -> None:
    """Fork workers until the parent closes its end of the connection.

    Args:
        connection: a socket which keeps the limits of messages.
        forks: whether a worker continues from this process; otherwise it is a new program.
    """
    selector = selectors.DefaultSelector()
    selector.register(connection, selectors.EVENT_READ)
    statuses: dict[int, tuple[int, int]] = {}
    """Process id and status file of each living worker, by its pidfd."""
    while True:
        for key, _ in selector.select():
            if key.fileobj is connection:
                message, files, _, _ = socket.recv_fds(connection, REQUEST_BYTES, NUM_FILES)
                if not message:
                    return
                sys.stdout.flush()  # otherwise each fork would write again what the imports have printed
                process = os.fork()
                if process == 0:
                    selector.close()
                    connection.close()
                    for pidfd, (_, status) in statuses.items():
                        os.close(pidfd)
                        os.close(status)
                    _begin_worker(json.loads(message), files, forks=forks)
                *others, status = files
                for fd in others:
                    os.close(fd)
                _report(status, process)
                pidfd = os.pidfd_open(process)
                statuses[pidfd] = process, status
                selector.register(pidfd, selectors.EVENT_READ)
            else:
                selector.unregister(key.fd)
                process, status = statuses.pop(key.fd)
                code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                _report(status, code)
                os.close(status)
                os.close(key.fd)


def _report(status: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent has ended, and so will this server
        os.write(status, f"{number}\n".encode())


def _begin_worker(request: dict[str, Any], files: Sequence[int], *, forks: bool) -> NoReturn:
    """Become the worker of a request. Files and environment are those of the request."""
    code = 1
    try:
        os.setsid()
        for number in request["default_signals"]:
            signal.signal(number, signal.SIG_DFL)
        *streams, events, status = files
        for standard, fd in enumerate(streams):  # input, output and error have the numbers 0, 1 and 2
            os.dup2(fd, standard)
            os.close(fd)
        os.close(status)
        for name, value in request["environment"].items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        arguments = [*request["arguments"], "--events-fd", str(events)]
        if not forks:
            os.set_inheritable(events, True)
            os.execv(sys.executable, [sys.executable, "-m", "core_hpc.phases.worker", *arguments])
        from core_hpc.phases import worker  # here, because Polars has threads, so the server does not import it

        worker.main(arguments)
        code = 0
    except BaseException:  # noqa: BLE001 - the end of the process: nothing else can report the error
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def import_packages(names: Sequence[str]) -> bool:
    """Import packages. Returns whether a fork is safe and useful afterwards."""
    try:
        with large_imports():
            for name in names:
                importlib.import_module(name)
    except Exception:  # noqa: BLE001 - any package may raise anything; the workers raise it again
        traceback.print_exc()
        return False
    return bool(psutil.Process().num_threads() == 1)


def main() -> None:
    fault_point("fork_server.started")
    descriptor, *names = sys.argv[1:]
    serve(socket.socket(fileno=int(descriptor)), forks=import_packages(names))


if __name__ == "__main__":
    main()
