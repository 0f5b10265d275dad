"""A start that finds a finished run: writes its event files and its copy for W&B, and prints what failed.

    python -m tests.integration.copy_points RUN [--kill-service]

With `--kill-service`, the process of the package ends between the points and the end of the run.
The package wandb remembers the server of a process, so each test needs a process of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import psutil

from core_hpc.controller import wandb_copy
from core_hpc.controller.tracking import Tracking
from core_hpc.runs.folder import open_run
from core_hpc.schedule.progress import inspect_run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--kill-service", action="store_true")
    options = parser.parse_args()
    wandb_copy.TIMEOUT_S = 10.0
    progress, _ = inspect_run(open_run(options.run))
    assert progress.finished
    tracking = Tracking()
    copy = wandb_copy.WandbCopy(tracking, print)
    for listener in (tracking, copy):
        listener.on_finished(progress)
    if options.kill_service:
        (service,) = psutil.Process().children()
        service.kill()
        service.wait()
    tracking.close([progress])
    copy.close([progress])


if __name__ == "__main__":
    main()
