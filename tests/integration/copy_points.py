"""A start that finds a finished run: writes its event files and its copy for W&B, and prints what failed.

    python -m tests.integration.copy_points RUN

The package wandb remembers the server of a process, so each test needs a process of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

from core_hpc.controller import wandb_copy
from core_hpc.controller.tracking import Tracking
from core_hpc.runs.folder import open_run
from core_hpc.schedule.progress import inspect_run


def main(run: Path) -> None:
    wandb_copy.TIMEOUT_S = 10.0
    progress, _ = inspect_run(open_run(run))
    assert progress.finished
    tracking = Tracking()
    copy = wandb_copy.WandbCopy(tracking, print)
    for listener in (tracking, copy):
        listener.on_finished(progress)
    tracking.close([progress])
    copy.close([progress])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
