"""python -m core_hpc.slurm.rendezvous: prints "ADDRESS PORT", where the ranks of a SLURM job meet.

The batch script runs it on the first node of the job and passes the output to every rank in an
environment variable. The port is computed from the id of the job, so that two jobs on one node use
different ports. If it is taken nevertheless, the next port of the sequence is used. All ports are
below the range from which systems assign ports to programs.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess

FIRST_PORT, NUM_PORTS = 15000, 15000
STRIDE = 7


def port_for(job: int) -> int:
    """The first free port of this node in the sequence of a job."""
    for attempt in range(100):
        port = FIRST_PORT + (job * STRIDE + attempt * 1009) % NUM_PORTS
        with socket.socket() as s:
            try:
                s.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError("no free port: the first 100 ports of this job's sequence are taken on this node")


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
