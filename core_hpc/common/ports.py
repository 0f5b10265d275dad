"""Ports at which the ranks of an update meet.

In: a number that no other group of ranks of this node has. Out: a free port. All ports are below the
range from which systems assign ports to programs (on Linux from 32768 on), since a port is chosen
some time before rank 0 opens it.
"""

from __future__ import annotations

import socket

FIRST_PORT, NUM_PORTS = 15000, 15000
STRIDE = 7


def port_for(seed: int) -> int:
    """The first free port of this node in the sequence of a seed."""
    for attempt in range(100):
        port = FIRST_PORT + (seed * STRIDE + attempt * 1009) % NUM_PORTS
        with socket.socket() as s:
            try:
                s.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port: the first 100 ports of the sequence of {seed} are taken on this node")
