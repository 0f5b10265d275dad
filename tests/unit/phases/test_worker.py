"""A worker process: the commands `sleep` and `stop`, and the imports of each phase."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from core_hpc.runs.outcome import Outcome, OutcomeKind
from core_hpc.runs.worker_messages import CommandKind, MessageKind, WorkerCommand, WorkerMessage

pytestmark = pytest.mark.timeout(60)
ROOT = Path(__file__).parents[3]
WORKER = """
import sys, time
from core_hpc.phases import worker
from core_hpc.common.errors import StoppedError

def run_task(context):
    context.progress(1, 1, 0)
    while context.key.phase == "update" and not context.should_stop():
        time.sleep(0.01)
    if context.key.phase == "update":
        raise StoppedError("stopped after step 1")

worker.run_task, worker.open_run = run_task, lambda root, **_: None
worker.main(["--role", "update", "--threads", "1", "--events-fd", sys.argv[1]])
"""


def test_commands_of_a_worker() -> None:
    """It reports that it sleeps.

    After `stop` the running task stops at once, and no further task starts.
    """
    read_fd, write_fd = os.pipe()
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(write_fd)], cwd=ROOT, stdin=subprocess.PIPE, pass_fds=(write_fd,)
    )
    os.close(write_fd)
    assert worker.stdin is not None

    def send(kind: CommandKind, task: str = "") -> None:
        assert worker.stdin is not None
        command = WorkerCommand(kind, "r" if task else "", task)
        worker.stdin.write((json.dumps(command.to_json()) + "\n").encode())
        worker.stdin.flush()

    with os.fdopen(read_fd) as messages:

        def receive() -> WorkerMessage:
            return WorkerMessage.from_json(json.loads(messages.readline()))

        try:
            send(CommandKind.SLEEP)
            assert [receive().kind for _ in range(2)] == ["ready", "asleep"]
            for task in ("cold/0001/m0/000", "update/0001/m0/000", "update/0001/m1/000"):
                send(CommandKind.RUN, task)
            assert [receive().kind for _ in range(3)] == ["progress", "done", "progress"]
            send(CommandKind.STOP)  # overtakes the third task
            stopped = Outcome(OutcomeKind.STOPPED, "stopped after step 1")
            assert receive() == WorkerMessage(MessageKind.STOPPED, "r", "update/0001/m0/000", outcome=stopped)
            answer = receive()
            assert (answer.kind, answer.task) == ("stopped", "update/0001/m1/000")
            assert answer.outcome is not None
            assert "before it began" in answer.outcome.message
        finally:
            worker.stdin.close()
            assert worker.wait(10) == 0


def test_only_an_update_imports_the_packages_for_training() -> None:
    code = """
        import sys
        from core_hpc import phases
        steps = {phases._step(phase) for phase in ("cold", "rescue", "evaluate", "hint", "score")}
        assert len(steps) == 5
        assert not {"torch", "transformers", "deepspeed"} & set(sys.modules)
        phases._step("update")
        assert "deepspeed" in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=True)


FULL = """
import sys
from core_hpc.phases import worker

def run_task(context):
    raise OSError(28, "No space left on device", "/run/x.parquet")

worker.run_task, worker.open_run = run_task, lambda root, **_: None
worker.main(["--role", "update", "--threads", "1", "--events-fd", sys.argv[1]])
"""


def test_a_worker_whose_log_is_on_the_full_disk_reports_its_failure() -> None:
    """The failure is final, so no further attempt follows."""
    read_fd, write_fd = os.pipe()
    with Path("/dev/full").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-c", FULL, str(write_fd)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(write_fd,),
        )
    os.close(write_fd)
    assert worker.stdin is not None
    with os.fdopen(read_fd) as messages:
        for part in range(2):
            command = WorkerCommand(CommandKind.RUN, "r", f"cold/0001/m0/00{part}")
            worker.stdin.write((json.dumps(command.to_json()) + "\n").encode())
            worker.stdin.flush()
        received = [WorkerMessage.from_json(json.loads(messages.readline())) for _ in range(3)]
        worker.stdin.close()
        worker.wait(10)
    assert [message.kind for message in received] == ["ready", "failed", "failed"]
    outcome = received[1].outcome
    assert outcome is not None
    assert outcome.kind == OutcomeKind.FINAL
    assert outcome.message.endswith("'/run/x.parquet'. Free space (or raise the quota) and start again")
    assert "Traceback" in outcome.traceback
