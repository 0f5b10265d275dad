"""The parent's end of a fork server (`local/fork_server.py`): start it, and start workers with it.

In: packages and an environment. Out: `ForkedProcess`es, which are used like `subprocess.Popen`.
Workers that need the same packages share a server.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from core_hpc.common.stop_signals import STOP_SIGNALS, ignored_by_child


def can_fork_workers() -> bool:
    """Whether the system has the descriptors of processes that a server waits for (Linux 5.3)."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


class ForkedProcess:
    """A process that a fork server starts, with those parts of `subprocess.Popen` that workers need."""

    def __init__(self, stdin: IO[bytes], status_fd: int) -> None:
        self.stdin = stdin
        self._status = os.fdopen(status_fd, "rb", buffering=0)
        self._lines: list[bytes] = []
        """From the server: the process id, and at the end the exit status."""

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end of the process.

        Returns:
            The exit status, negative for a signal. None if it is not known: the server has ended, or
            the process has not begun, although its input is closed. It then ends when it begins.

        Raises:
            subprocess.TimeoutExpired: the process still runs.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._status.closed:
            if self._read(0):
                continue
            if self.stdin.closed and not self._lines:
                self._status.close()
                break
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._read(left):
                raise subprocess.TimeoutExpired("worker", timeout or 0.0)
        return int(self._lines[1]) if len(self._lines) == 2 else None

    def kill(self) -> None:
        """Kill the process, unless it has ended or not begun."""
        while not self._status.closed and self._read(0):
            pass
        if not self._status.closed and len(self._lines) == 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(self._lines[0]), signal.SIGKILL)

    def _read(self, timeout: float | None) -> bool:
        """Read what the server has written. Returns whether there was something, or the end."""
        if not select.select([self._status], [], [], timeout)[0]:
            return False
        data = self._status.read(1 << 10)
        self._lines += data.split()  # a line of a few bytes is written at once, so it is never cut
        if not data:
            self._status.close()
        return True


class ForkServer:
    """One fork server. It ends with its parent; its workers do not end with it."""

    def __init__(self, packages: Sequence[str], environment: Mapping[str, str], log: IO[bytes] | None) -> None:
        """Start the server, which then imports the packages.

        Args:
            packages: names of modules.
            environment: the whole environment of the imports.
            log: where it writes what it prints; None: where its parent writes.
        """
        self._environment = dict(environment)
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "core_hpc.local.fork_server", str(theirs.fileno()), *packages]
        with theirs, ignored_by_child():
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        output: IO[bytes] | None,
        events_fd: int,
        ignore_signals: bool,
    ) -> ForkedProcess:
        """Start a worker, as soon as the packages are imported.

        If the server has ended, the worker seems to end at once, with an unknown exit status.

        Args:
            arguments: of `phases/worker.py`, except for the events.
            environment: its whole environment. What packages read when they are imported cannot
                differ from the environment of the server.
            output: standard output and standard error; None: where the parent writes.
            events_fd: the end of a pipe to which the worker writes.
            ignore_signals: it ignores the signals of a batch system.
        """
        changes: dict[str, str | None] = {n: v for n, v in environment.items() if self._environment.get(n) != v}
        changes |= dict.fromkeys(self._environment.keys() - environment.keys())
        request = {
            "arguments": list(arguments),
            "environment": changes,
            "default_signals": [] if ignore_signals else [int(number) for number in STOP_SIGNALS],
        }
        stdin_read, stdin_write = os.pipe()
        status_read, status_write = os.pipe()
        out, error = (output.fileno(),) * 2 if output is not None else (1, 2)
        try:
            with contextlib.suppress(ConnectionError):
                files = [stdin_read, out, error, events_fd, status_write]
                socket.send_fds(self._connection, [json.dumps(request).encode()], files)
        finally:
            os.close(stdin_read)
            os.close(status_write)
        return ForkedProcess(os.fdopen(stdin_write, "wb"), status_read)

    def close(self) -> None:
        """End the server. It has nothing to save."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


class ForkServers:
    """The fork servers of an executor, by the packages that they have imported.

    Packages may ask for GPUs when they are imported, and a process cannot use CUDA if its parent has.
    So there are servers only if no worker has a GPU.
    """

    def __init__(self, *, with_gpus: bool) -> None:
        self._with_gpus = with_gpus
        self._servers: dict[tuple[str, ...], ForkServer] = {}

    def of(self, packages: tuple[str, ...], environment: Mapping[str, str], log: Path) -> ForkServer | None:
        """The living server for workers with these packages; None: they start by themselves.

        Args:
            packages: names of modules.
            environment: the whole environment of the imports, if the server must be started.
            log: file to which a new server writes.
        """
        if not packages or self._with_gpus or not can_fork_workers():
            return None
        server = self._servers.get(packages)
        if server is not None and not server.is_alive:
            server.close()
            server = None
        if server is None:
            with log.open("ab") as file:
                server = self._servers[packages] = ForkServer(packages, environment, file)
        return server

    def close(self) -> None:
        """End all servers."""
        for server in self._servers.values():
            server.close()
