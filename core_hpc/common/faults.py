"""Named points in the code where a test can kill or hold this process.

The fault tests use them to prove that nothing published is lost or torn. The environment variable
`CORE_HPC_FAULT` holds entries of the form `ACTION POINT@TEXT:FILE`, separated by semicolons. When
the process passes POINT and the detail of that passage contains TEXT, the first entry whose FILE
does not exist creates FILE and acts:

- `kill` ends the process with SIGKILL.
- `hold` waits until `FILE.go` exists, so that the test can change something outside meanwhile.

An entry with the action `log` acts at every passage: it appends a line to FILE with the time, the
process id, that of the parent, and the detail.

Without the variable nothing happens.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

HOLD_LIMIT_S = 600.0


def fault_point(point: str, detail: str = "") -> None:
    """Kill or hold this process if `CORE_HPC_FAULT` has an entry for this point.

    Args:
        point: Name of the point, for example `publish.started`.
        detail: What is being done, for example a path. The TEXT of an entry is searched in it.
    """
    for entry in filter(None, os.environ.get("CORE_HPC_FAULT", "").split(";")):
        where, _, marker = entry.partition(":")
        action, _, place = where.partition(" ")
        name, _, text = place.partition("@")
        if name == point and text in detail and action == "log":
            _append(Path(marker), detail)
        elif name == point and text in detail and _create_marker(Path(marker)):
            if action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            _hold(Path(f"{marker}.go"))
            return


def _append(log: Path, detail: str) -> None:
    line = f"{time.time():.3f} {os.getpid()} {os.getppid()} {detail}\n"
    with log.open("ab", buffering=0) as file:  # one write per line, so that lines of processes do not mix
        file.write(line.encode())


def _create_marker(marker: Path) -> bool:
    """Create the file of an entry; False if another process has already acted on this entry."""
    identity = [str(os.getpid()), os.environ.get("SLURM_JOB_ID", "-"), os.environ.get("SLURMD_NODENAME", "-")]
    try:
        with marker.open("x", encoding="utf-8") as file:
            file.write(" ".join(identity))  # the test reads which process is being held
    except FileExistsError:
        return False
    return True


def _hold(go: Path) -> None:
    deadline = time.monotonic() + HOLD_LIMIT_S
    while not go.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
