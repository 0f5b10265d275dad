"""python -m core_hpc.slurm.rendezvous: prints "ADDRESS PORT" where the ranks of this SLURM job meet.

Run by the batch script on the job's first node, so that every rank gets the same words through its environment. The
port follows from the job's id, below the range from which systems hand out ports: two jobs on one node get different
ones. It is tried first; a port that is taken all the same leads on to the next.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess

FIRST_PORT, NUM_PORTS = 15000, 15000
STRIDE = 7


def port_for(job: int) -> int:
    """A free port of this node, the first of the job's own sequence."""
    for attempt in range(100):
        port = FIRST_PORT + (job * STRIDE + attempt * 1009) % NUM_PORTS
        with socket.socket() as s:
            try:
                s.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError("100 ports in a row are taken on this node")


def address_of_node(name: str) -> str:
    """The node's name if it resolves, else the address that SLURM uses for it."""
    if resolves(name):
        return name
    shown = subprocess.run(
        ["scontrol", "show", "node", name], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    found = re.search(r"NodeAddr=(\S+)", shown)
    return found[1] if found else socket.gethostname()


def resolves(name: str) -> bool:
    """Whether a host's name can be turned into an address here."""
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    print(address_of_node(os.environ["SLURMD_NODENAME"]), port_for(int(os.environ["SLURM_JOB_ID"])))
