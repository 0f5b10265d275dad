"""Attempts of an update task in one warm process, on two copies of a run.

    RANK=0 WORLD_SIZE=1 .. python update_attempts.py UNDISTURBED INTERRUPTED TASK

The task runs without interruption in the first copy. In the second copy it is stopped twice, loses
its newest checkpoint, and continues until it is finished. The last line of stdout is a JSON report.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

from core_hpc.common.errors import StoppedError
from core_hpc.phases import TaskContext, run_task
from core_hpc.phases.context import Warm
from core_hpc.runs.folder import open_run
from core_hpc.store.paths import OPTIMIZER_STATE, RunPaths, TaskKey


def attempt(root: Path, key: TaskKey, warm: Warm, *, stop_at: int = -1) -> dict[str, Any]:
    """Run the task, which is stopped when it asks for the `stop_at`-th time, counted from 0."""
    questions, progress = itertools.count(), []
    context = TaskContext(
        run=open_run(root),
        key=key,
        warm=warm,
        should_stop=lambda: next(questions) == stop_at,
        progress=lambda done, total, tokens: progress.append(done),
    )
    message = ""
    try:
        run_task(context)
    except StoppedError as error:
        message = str(error)
    folder = RunPaths(root).checkpoint_folder(key)
    stored = sorted(p.name for p in folder.iterdir()) if folder.exists() else None
    return {
        "message": message,
        "progress": progress,
        "published": context.paths.task_manifest(key).exists(),
        "stored": stored,
    }


def main() -> None:
    undisturbed, root, key, warm = Path(sys.argv[1]), Path(sys.argv[2]), TaskKey.parse(sys.argv[3]), Warm()
    seen = [attempt(undisturbed, key, warm)]
    seen += [attempt(root, key, warm, stop_at=2), attempt(root, key, warm, stop_at=1)]
    newest = max(RunPaths(root).checkpoint_folder(key).glob(f"*/{OPTIMIZER_STATE}"))
    newest.write_bytes(newest.read_bytes()[:-1])
    seen += [attempt(root, key, warm), attempt(root, key, warm)]
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
