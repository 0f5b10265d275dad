"""The parent's end of a worker process: start it, send it tasks, read its events, end it.

In: a role, a log file, an environment. Out: the events of worker.py as dictionaries. Used by the local driver (many
workers) and inside a SLURM job (one). Which task goes where is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

STOP_GRACE_S = 5.0
LOG_TAIL_CHARACTERS = 4000
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


class WorkerProcess:
    """One worker. `pipe` becomes readable when it has events or has ended."""

    def __init__(
        self,
        role: str,
        log: Path | None,
        environment: Mapping[str, str],
        *,
        deaf: bool = False,
        shared_engine: bool = False,
    ) -> None:
        """Start it; without a log it writes where its parent writes.

        A deaf worker ignores the signals of a batch system: its parent gets them too and decides. With a shared engine it does all
        tasks at once that it is sent.
        """
        self.role = role
        self.log = log
        read_fd, write_fd = os.pipe()
        command = [
            sys.executable,
            "-m",
            "core_hpc.phases.worker",
            "--role",
            role,
            "--events-fd",
            str(write_fd),
            "--threads",
            environment["OMP_NUM_THREADS"],
            *(["--shared-engine"] if shared_engine else []),
        ]
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(log.open("ab")) if log is not None else None
            stack.enter_context(_ignored(STOP_SIGNALS if deaf else ()))
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                env=dict(environment),
                pass_fds=(write_fd,),
                start_new_session=True,  # Ctrl-C is for the launcher, which then ends its workers
            )
        os.close(write_fd)
        self.pipe: IO[bytes] = os.fdopen(read_fd, "rb", buffering=0)
        self._buffer = b""

    def send(self, command: Mapping[str, Any]) -> None:
        """Give it a line; a dead worker does not get it, which `read` tells."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write((json.dumps(command) + "\n").encode())
            self.process.stdin.flush()

    def read(self) -> list[dict[str, Any]] | None:
        """Events that have come; None when it has ended. Waits when there is nothing yet."""
        data = os.read(self.pipe.fileno(), 1 << 16)
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def ending(self) -> str:
        """How it ended, in words; waits for it."""
        code = self.process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def log_tail(self) -> str:
        return log_tail(self.log) if self.log is not None else ""

    def close_input(self) -> None:
        """A worker ends at once when its input closes."""
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
    """Let them end, then make them."""
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


@contextlib.contextmanager
def _ignored(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Ignore signals for a moment: what a process ignores when it starts another one, that one ignores as well."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
