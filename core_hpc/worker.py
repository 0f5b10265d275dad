"""A worker process: serves phase tasks of one role, one after the other, and keeps its engine or trainer warm.

In (standard input): one JSON line per task, and {"stop": true}: no further task, and an update saves its position and
ends. Out (the pipe --events-fd): JSON lines ready, progress, done, failed, stopped. When standard input closes, because
the launcher ended or died, the worker ends at once; what it was writing is unpublished and will be made again. Standard
output and error go to the worker's log.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from core_hpc.errors import CoreHpcError, NonFiniteError, StoppedError
from core_hpc.paths import TaskKey
from core_hpc.store import DamagedError

PROGRESS_INTERVAL_S = 0.25


class Events:
    """Writes events as JSON lines; progress is thinned out."""

    def __init__(self, fd: int) -> None:
        self._file = os.fdopen(fd, "w", buffering=1, encoding="utf-8")
        self._last_progress = 0.0

    def send(self, event: str, **fields: Any) -> None:
        self._file.write(json.dumps({"event": event, **fields}) + "\n")

    def progress(self, task: str, done: int, total: int, tokens: int) -> None:
        now = time.monotonic()
        if done == total or now - self._last_progress >= PROGRESS_INTERVAL_S:
            self._last_progress = now
            self.send("progress", task=task, done=done, total=total, tokens=tokens)


def _read_commands(commands: queue.SimpleQueue[dict[str, Any]], stop: threading.Event) -> None:
    for line in sys.stdin:
        command = json.loads(line)
        if command.get("stop"):
            stop.set()
        else:
            commands.put(command)
    # The launcher is gone. A clean shutdown of engines could take long and has nothing to save.
    os._exit(0)


def _failure(error: BaseException) -> dict[str, Any]:
    """What the launcher needs to know of a failure: its kind decides what is done about it."""
    fields: dict[str, Any] = {"kind": "error", "message": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    if isinstance(error, DamagedError):
        fields |= {"kind": "damaged", "message": str(error), "manifest": str(error.manifest_path)}
    elif isinstance(error, NonFiniteError):
        fields |= {"kind": "final", "message": str(error)}
    elif isinstance(error, CoreHpcError):
        fields["message"] = str(error)
    return fields


def serve(events: Events, threads: int) -> None:
    """Run commands until the launcher goes away."""
    commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_read_commands, args=(commands, stop), daemon=True).start()
    from core_hpc.phases import TaskContext, run_task
    from core_hpc.phases.context import Warm
    from core_hpc.runs import open_run

    warm = Warm(threads=threads)
    events.send("ready")
    while True:
        command = commands.get()
        task = command["task"]
        try:
            if stop.is_set():
                raise StoppedError(f"{task}: told to stop before it began")
            context = TaskContext(
                run=open_run(Path(command["run"])),
                key=TaskKey.parse(task),
                warm=warm,
                progress=lambda done, total, tokens, task=task: events.progress(task, done, total, tokens),  # type: ignore[misc]
                should_stop=stop.is_set,
            )
            run_task(context)
        except StoppedError as error:
            events.send("stopped", task=task, message=str(error))
        except Exception as error:  # noqa: BLE001 - the boundary: every failure is reported to the launcher
            traceback.print_exc()
            events.send("failed", task=task, **_failure(error))
        else:
            events.send("done", task=task)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="core_hpc.worker")
    parser.add_argument("--role", required=True)
    parser.add_argument("--events-fd", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    print(f"--- worker {options.role}, process {os.getpid()}, {time.strftime('%Y-%m-%d %H:%M:%S')}", flush=True)
    serve(Events(options.events_fd), options.threads)


if __name__ == "__main__":
    main(sys.argv[1:])
