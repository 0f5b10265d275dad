"""A start that finds a finished run: writes its event files and its copy for W&B, and prints what it did.

    python -m tests.integration.copy_points RUN [--kill-service]

With `--kill-service`, the process of the package ends between the points and the end of the run.
The package wandb remembers the server of a process, so each test needs a process of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import psutil
from rich.console import Console

from core_hpc.controller import wandb_copy
from core_hpc.controller.control import control
from core_hpc.controller.start import Start
from core_hpc.runs.sweep import load_sweep


def kill_the_service_before_the_end() -> None:
    complete = wandb_copy._RunCopy.complete

    def killed(copy: wandb_copy._RunCopy) -> None:
        (service,) = psutil.Process().children()
        service.kill()
        service.wait()
        complete(copy)

    wandb_copy._RunCopy.complete = killed  # type: ignore[method-assign, assignment]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--kill-service", action="store_true")
    options = parser.parse_args()
    wandb_copy.TIMEOUT_S = 10.0
    if options.kill_service:
        kill_the_service_before_the_end()
    sweep = load_sweep(options.run.parents[2] / "tiny.yaml")
    control(sweep, Start.new(verify=False), {}, Console())


if __name__ == "__main__":
    main()
