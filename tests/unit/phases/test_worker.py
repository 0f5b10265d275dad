"""A worker that is told to sleep says when it does; told to stop, the task that runs hears of it at once, and no further one begins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(60)
ROOT = Path(__file__).parents[3]
WORKER = """
import sys, time
from core_hpc import phases
from core_hpc.phases import worker
from core_hpc.runs import folder
from core_hpc.common.errors import StoppedError

def run_task(context):
    context.progress(1, 1, 0)
    while context.key.phase == "update" and not context.should_stop():
        time.sleep(0.01)
    if context.key.phase == "update":
        raise StoppedError("stopped after step 1")

phases.run_task, folder.open_run = run_task, lambda root: None
worker.main(["--role", "update", "--threads", "1", "--events-fd", sys.argv[1]])
"""


def test_a_worker_told_to_stop() -> None:
    read_fd, write_fd = os.pipe()
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(write_fd)], cwd=ROOT, stdin=subprocess.PIPE, pass_fds=(write_fd,)
    )
    os.close(write_fd)
    assert worker.stdin is not None

    def send(command: dict[str, Any]) -> None:
        assert worker.stdin is not None
        worker.stdin.write((json.dumps(command) + "\n").encode())
        worker.stdin.flush()

    with os.fdopen(read_fd) as events:

        def event() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(events.readline())
            return found

        try:
            send({"sleep": True})
            assert [event()["event"] for _ in range(2)] == ["ready", "asleep"]
            send({"run": "r", "task": "cold/0001/m0/000"})
            send({"run": "r", "task": "update/0001/m0/000"})
            send({"run": "r", "task": "update/0001/m1/000"})
            assert [event()["event"] for _ in range(3)] == ["progress", "done", "progress"]
            send({"stop": True})  # overtakes the third command
            assert event() == {
                "event": "stopped",
                "run": "r",
                "task": "update/0001/m0/000",
                "message": "stopped after step 1",
            }
            answer = event()
            assert (answer["event"], answer["task"]) == ("stopped", "update/0001/m1/000")
            assert "before it began" in answer["message"]
        finally:
            worker.stdin.close()
            assert worker.wait(10) == 0


def test_only_an_update_imports_what_trains() -> None:
    code = (
        "import sys; from core_hpc import phases; steps = [phases._step(p) for p in ('cold', 'rescue', 'evaluate', 'hint', 'score')]; "
        "assert len(set(steps)) == 5; assert not {'torch', 'transformers', 'deepspeed'} & set(sys.modules); "
        "phases._step('update'); assert 'deepspeed' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
