"""The parent's end of a worker process: start it, send it commands, read its messages, end it.

In: a role, a log file, an environment. Out: the messages of `phases/worker.py`. The executor of the
driver `local` has many workers, an array element has a few. They decide which task a worker gets.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from core_hpc.common.stop_signals import ignored_by_child
from core_hpc.local.forking import ForkedProcess, ForkServer
from core_hpc.runs.worker_messages import WorkerCommand, WorkerMessage

STOP_GRACE_S = 5.0
LOG_TAIL_CHARACTERS = 4000


class WorkerProcess:
    """One worker process. `pipe` is readable when there is a message or the process has ended."""

    def __init__(
        self,
        role: str,
        log: Path | None,
        environment: Mapping[str, str],
        *,
        ignore_signals: bool = False,
        shared_engine: bool = False,
        server: ForkServer | None = None,
    ) -> None:
        """Start the process.

        Args:
            role: what it does, as in `runs/roles.py`.
            log: file for its output; None: it writes where its parent writes.
            environment: its whole environment.
            ignore_signals: it ignores the signals of a batch system. Its parent receives them, too,
                and handles them.
            shared_engine: it runs all tasks that it has received at the same time.
            server: starts it; None: it is a new program, which imports everything itself.
        """
        self.role = role
        self.log = log
        read_fd, write_fd = os.pipe()
        arguments = ["--role", role, "--threads", environment["OMP_NUM_THREADS"]]
        arguments += ["--shared-engine"] if shared_engine else []
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, write_fd)
            on_error = stack.enter_context(contextlib.ExitStack())
            on_error.callback(os.close, read_fd)
            file = stack.enter_context(log.open("ab")) if log is not None else None
            self.process: subprocess.Popen[bytes] | ForkedProcess
            if server is not None:
                self.process = server.start(
                    arguments, environment, output=file, events_fd=write_fd, ignore_signals=ignore_signals
                )
            else:
                stack.enter_context(ignored_by_child(when=ignore_signals))
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "core_hpc.phases.worker", *arguments, "--events-fd", str(write_fd)],
                    stdin=subprocess.PIPE,
                    stdout=file,
                    stderr=file,
                    env=dict(environment),
                    pass_fds=(write_fd,),
                    start_new_session=True,  # Ctrl-C reaches only the launcher, which then ends its workers
                )
            on_error.pop_all()
        self.pipe: IO[bytes] = os.fdopen(read_fd, "rb", buffering=0)
        self._buffer = b""

    def send(self, command: WorkerCommand) -> None:
        """Send a command. A dead worker does not receive it; `read` then returns None."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write((json.dumps(command.to_json()) + "\n").encode())
            self.process.stdin.flush()

    def read(self) -> list[WorkerMessage] | None:
        """Wait until there are messages, and return them; None when the process has ended."""
        data = os.read(self.pipe.fileno(), 1 << 16)
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [WorkerMessage.from_json(json.loads(line)) for line in lines]

    def ending(self) -> str:
        """Wait until the process has ended, and describe how."""
        code = self.process.wait()
        if code is None:
            return "an unknown exit status, because its fork server has ended"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def log_tail(self) -> str:
        return log_tail(self.log) if self.log is not None else ""

    def close_input(self) -> None:
        """Close the input of the worker, which then ends at once."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


def log_tail(path: Path) -> str:
    """The end of a log; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_CHARACTERS))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def end_workers(workers: Sequence[WorkerProcess]) -> None:
    """Close the inputs of workers, wait for a while, then kill those that still run."""
    for worker in workers:
        worker.pipe.close()
        worker.close_input()
    deadline = time.monotonic() + STOP_GRACE_S
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
