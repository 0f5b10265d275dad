"""python -m core_hpc.slurm.rendezvous: prints "ADDRESS PORT", where the ranks of a SLURM job meet.

The batch script runs it on the first node of the job and passes the output to every rank in an
environment variable. The port is computed from the id of the job, so that two jobs on one node use
different ports (`common/ports.py`).
"""

from __future__ import annotations

import os
import re
import socket
import subprocess

from core_hpc.common.ports import port_for


def address_of_node(name: str) -> str:
    """The name of a node if it resolves, otherwise the address that SLURM uses for it."""
    if resolves(name):
        return name
    command = ["scontrol", "show", "node", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):  # a container may be without SLURM's commands
        return socket.gethostname()
    found = re.search(r"NodeAddr=(\S+)", done.stdout)
    return found[1] if found else socket.gethostname()


def resolves(name: str) -> bool:
    """Whether the name of a host resolves to an address on this machine."""
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    print(address_of_node(os.environ["SLURMD_NODENAME"]), port_for(int(os.environ["SLURM_JOB_ID"])))
