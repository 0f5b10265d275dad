"""A worker process: serves phase tasks of one role, and keeps its engine or trainer warm.

It does one task after the other, or with --shared-engine all that it is given at once (engines/sharing.py).

In (standard input): one JSON line per task, {"sleep": true}: the engine leaves the memory of its GPU until the next task, and
{"stop": true}: no further task, and an update saves its position and ends. Out (the pipe --events-fd): JSON lines ready, progress,
done, failed, stopped, asleep. When standard input closes, because the launcher
ended or died, the worker ends at once; what it was writing is unpublished and will be made again. Standard output and error go
to the worker's log.
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
from typing import TYPE_CHECKING, Any

from core_hpc.common.errors import CoreHpcError, NonFiniteError, StoppedError
from core_hpc.store.manifests import DamagedError
from core_hpc.store.paths import TaskKey

if TYPE_CHECKING:
    from core_hpc.phases.context import Warm

PROGRESS_INTERVAL_S = 0.25


class Events:
    """Writes events as JSON lines; progress is thinned out."""

    def __init__(self, fd: int) -> None:
        self._file = os.fdopen(fd, "w", buffering=1, encoding="utf-8")
        self._lock = threading.Lock()
        self._last_progress: dict[str, float] = {}

    def send(self, event: str, **fields: Any) -> None:
        with self._lock:
            self._file.write(json.dumps({"event": event, **fields}) + "\n")

    def progress(self, identity: dict[str, str], done: int, total: int, tokens: int) -> None:
        now, task = time.monotonic(), identity["task"]
        if done == total or now - self._last_progress.get(task, 0.0) >= PROGRESS_INTERVAL_S:
            self._last_progress[task] = now
            self.send("progress", **identity, done=done, total=total, tokens=tokens)


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
    fields: dict[str, Any] = {
        "kind": "error",
        "message": f"{type(error).__name__}: {error}",
        "traceback": traceback.format_exc(),
    }
    if isinstance(error, DamagedError):
        fields |= {"kind": "damaged", "message": str(error), "manifest": str(error.manifest_path)}
    elif isinstance(error, NonFiniteError):
        fields |= {"kind": "final", "message": str(error)}
    elif isinstance(error, CoreHpcError):
        fields["message"] = str(error)
    return fields


def serve(events: Events, threads: int, *, shared: bool) -> None:
    """Run commands until the launcher goes away: one after the other, or `shared`: at once, with one engine."""
    commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_read_commands, args=(commands, stop), daemon=True).start()
    from core_hpc import phases  # imported here, lest tasks that begin together do
    from core_hpc.phases.context import Warm

    assert phases
    warm = Warm(threads=threads)
    if shared:
        owner = warm.share_engine()

        def run_in_turn(command: dict[str, Any]) -> None:
            with owner.turn:
                _run(command, events, warm, stop)

        def begin_all() -> None:
            while True:
                threading.Thread(target=run_in_turn, args=(commands.get(),), daemon=True).start()

        threading.Thread(target=begin_all, daemon=True).start()
        events.send("ready")
        owner.run()
    events.send("ready")
    while True:
        command = commands.get()
        if command.get("sleep"):
            warm.sleep()
            events.send("asleep")
        else:
            _run(command, events, warm, stop)


def _run(command: dict[str, Any], events: Events, warm: Warm, stop: threading.Event) -> None:
    """One task, and what became of it."""
    from core_hpc.phases import TaskContext, run_task
    from core_hpc.runs.folder import open_run

    identity = {"run": command["run"], "task": command["task"]}
    try:
        if stop.is_set():
            raise StoppedError(f"{command['task']}: told to stop before it began")
        context = TaskContext(
            run=open_run(Path(command["run"])),
            key=TaskKey.parse(command["task"]),
            warm=warm,
            progress=lambda done, total, tokens: events.progress(identity, done, total, tokens),
            should_stop=stop.is_set,
        )
        run_task(context)
    except StoppedError as error:
        events.send("stopped", **identity, message=str(error))
    except Exception as error:  # noqa: BLE001 - the boundary: every failure is reported to the launcher
        traceback.print_exc()
        events.send("failed", **identity, **_failure(error))
    else:
        events.send("done", **identity)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="core_hpc.phases.worker")
    parser.add_argument("--role", required=True)
    parser.add_argument("--events-fd", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--shared-engine", action="store_true")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    print(f"--- worker {options.role}, process {os.getpid()}, {time.strftime('%Y-%m-%d %H:%M:%S')}", flush=True)
    serve(Events(options.events_fd), options.threads, shared=options.shared_engine)


if __name__ == "__main__":
    main(sys.argv[1:])
