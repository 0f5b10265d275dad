"""A worker process: runs phase tasks of one role, and keeps its engine or trainer warm.

It runs one task after the other, or with --shared-engine all tasks that it is given at once (`engines/shared.py`).

In (standard input): `WorkerCommand`s as JSON lines. Out (the pipe --events-fd): `WorkerMessage`s as
JSON lines; both are in `runs/worker_messages.py`. When standard input closes, because the launcher
ended or died, the worker ends at once: what it was writing is not published and will be made again.
Standard output and standard error go to the worker's log.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path

from core_hpc.common.errors import CoreHpcError, ExtensionAttemptError, ExtensionError, RepeatingError, StoppedError
from core_hpc.common.ownership import deny_writing_by_others
from core_hpc.phases import TaskContext, run_task
from core_hpc.phases.context import Warm
from core_hpc.runs.folder import open_run
from core_hpc.runs.outcome import Outcome, OutcomeKind, Progress, final_on_full_disk
from core_hpc.runs.worker_messages import CommandKind, MessageKind, WorkerCommand, WorkerMessage
from core_hpc.store.claims import own_job
from core_hpc.store.manifests import DamagedError
from core_hpc.store.paths import TaskKey

PROGRESS_INTERVAL_S = 0.25


class Messages:
    """Writes messages as JSON lines; progress is thinned out."""

    def __init__(self, fd: int) -> None:
        self._file = os.fdopen(fd, "w", buffering=1, encoding="utf-8")
        self._lock = threading.Lock()
        self._last_progress: dict[str, float] = {}

    def send(self, message: WorkerMessage) -> None:
        with self._lock:
            self._file.write(json.dumps(message.to_json()) + "\n")

    def progress(self, command: WorkerCommand, progress: Progress) -> None:
        now, task = time.monotonic(), command.task
        is_last = progress.done == progress.total
        if is_last or now - self._last_progress.get(task, 0.0) >= PROGRESS_INTERVAL_S:
            self._last_progress[task] = now
            self.send(WorkerMessage(MessageKind.PROGRESS, command.run, task, progress))


def _read_commands(commands: queue.SimpleQueue[WorkerCommand], stop: threading.Event) -> None:
    for line in sys.stdin:
        command = WorkerCommand.from_json(json.loads(line))
        if command.kind == CommandKind.STOP:
            stop.set()
        else:
            commands.put(command)
    # The launcher is gone. A clean shutdown of engines could take long and has nothing to save.
    os._exit(0)


def _outcome_of(error: Exception) -> Outcome:
    """What the launcher needs to know about a failure: its kind decides what is done about it."""
    # The message about a function of the user names its line; the frames of core_hpc would hide it.
    trace = "" if isinstance(error, (ExtensionError, ExtensionAttemptError)) else traceback.format_exc()
    if isinstance(error, DamagedError):
        return Outcome(OutcomeKind.DAMAGED, str(error), traceback=trace, manifest=str(error.manifest_path))
    if isinstance(error, RepeatingError):
        return Outcome(OutcomeKind.FINAL, str(error), traceback=trace)
    message = str(error) if isinstance(error, CoreHpcError) else f"{type(error).__name__}: {error}"
    return Outcome(OutcomeKind.ERROR, message, traceback=trace)


def serve(messages: Messages, threads: int, *, shared: bool) -> None:
    """Run tasks until the launcher goes away: one after the other, or (`shared`) at once with one engine."""
    commands: queue.SimpleQueue[WorkerCommand] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_read_commands, args=(commands, stop), daemon=True).start()
    warm = Warm(threads=threads)
    if shared:
        owner = warm.share_engine()

        def run_in_turn(command: WorkerCommand) -> None:
            with owner.turn:
                _run(command, messages, warm, stop)

        def begin_all() -> None:
            while True:
                threading.Thread(target=run_in_turn, args=(commands.get(),), daemon=True).start()

        threading.Thread(target=begin_all, daemon=True).start()
        messages.send(WorkerMessage(MessageKind.READY))
        owner.run()
    messages.send(WorkerMessage(MessageKind.READY))
    while True:
        command = commands.get()
        if command.kind == CommandKind.SLEEP:
            warm.sleep()
            messages.send(WorkerMessage(MessageKind.ASLEEP))
        else:
            _run(command, messages, warm, stop)


def _run(command: WorkerCommand, messages: Messages, warm: Warm, stop: threading.Event) -> None:
    """Run one task and report how it ended."""

    def report(kind: MessageKind, outcome: Outcome | None = None) -> None:
        messages.send(WorkerMessage(kind, command.run, command.task, outcome=outcome))

    try:
        if stop.is_set():
            raise StoppedError(f"{command.task}: was asked to stop before it began")
        context = TaskContext(
            run=open_run(Path(command.run), own=own_job() is not None),
            key=TaskKey.parse(command.task),
            warm=warm,
            progress=lambda done, total, tokens: messages.progress(command, Progress(done, total, tokens)),
            should_stop=stop.is_set,
        )
        run_task(context)
    except StoppedError as error:
        report(MessageKind.STOPPED, Outcome(OutcomeKind.STOPPED, str(error)))
    except Exception as error:  # noqa: BLE001 - the boundary: every failure is reported to the launcher
        report(MessageKind.FAILED, final_on_full_disk(_outcome_of(error)))
        with contextlib.suppress(OSError):  # the log may be on the full disk
            traceback.print_exc()
    else:
        report(MessageKind.DONE)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="core_hpc.phases.worker")
    parser.add_argument("--role", required=True)
    parser.add_argument("--events-fd", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--shared-engine", action="store_true")
    options = parser.parse_args(arguments)
    deny_writing_by_others()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with contextlib.suppress(OSError):  # a full disk; a task then reports it
        print(f"--- worker {options.role}, process {os.getpid()}, {time.strftime('%Y-%m-%d %H:%M:%S')}", flush=True)
    serve(Messages(options.events_fd), options.threads, shared=options.shared_engine)


if __name__ == "__main__":
    main(sys.argv[1:])
