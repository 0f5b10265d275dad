"""Named points at which a test can kill this process, to prove that nothing published is lost or torn.

`CORE_HPC_FAULT="POINT@TEXT:FILE"` kills the process with SIGKILL at the first passage of POINT whose detail contains
TEXT; FILE is created first, and while it exists the fault does not fire again. Without the variable nothing happens.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path


def fault_point(point: str, detail: str = "") -> None:
    """Die here if the environment asks for it."""
    wanted = os.environ.get("CORE_HPC_FAULT")
    if not wanted:
        return
    where, _, marker = wanted.partition(":")
    name, _, text = where.partition("@")
    if name == point and text in detail:
        try:
            Path(marker).touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)
