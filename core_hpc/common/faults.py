"""Named points at which a test can kill or hold this process, to prove that nothing published is lost or torn.

`CORE_HPC_FAULT` is a list of `ACTION POINT@TEXT:FILE`, separated by semicolons. At a passage of POINT whose detail
contains TEXT, the first entry whose FILE does not exist yet creates it and acts: `kill` ends the process with SIGKILL;
`hold` waits until FILE.go exists, so that the test can do something to the outside world meanwhile. Without the
variable nothing happens.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

HOLD_LIMIT_S = 600.0


def fault_point(point: str, detail: str = "") -> None:
    """Act here if the environment asks for it."""
    for entry in filter(None, os.environ.get("CORE_HPC_FAULT", "").split(";")):
        where, _, marker = entry.partition(":")
        action, _, place = where.partition(" ")
        name, _, text = place.partition("@")
        if name == point and text in detail and _is_first(Path(marker)):
            if action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            _hold(Path(f"{marker}.go"))
            return


def _is_first(marker: Path) -> bool:
    try:
        with marker.open("x", encoding="utf-8") as file:  # says who is here
            file.write(
                " ".join(
                    [str(os.getpid()), os.environ.get("SLURM_JOB_ID", "-"), os.environ.get("SLURMD_NODENAME", "-")]
                )
            )
    except FileExistsError:
        return False
    return True


def _hold(go: Path) -> None:
    deadline = time.monotonic() + HOLD_LIMIT_S
    while not go.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
