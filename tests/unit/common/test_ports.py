"""Ports at which the ranks of an update meet."""

from __future__ import annotations

import socket

from core_hpc.common.ports import port_for


def test_jobs_get_different_ports_and_a_taken_port_is_skipped() -> None:
    assert len({port_for(job) for job in range(4_000_000, 4_000_200)}) == 200
    first = port_for(4_000_000)
    with socket.socket() as taken:
        taken.bind(("", first))
        assert port_for(4_000_000) != first
