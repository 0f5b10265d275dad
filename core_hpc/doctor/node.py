"""What the doctor's test job does on a compute node.

Every rank describes its node, imports the packages that tasks need, connects to the other ranks, and writes a report
into the shared folder. In: a `ProbeSpec`. Out: report-RANK.json. The reports are judged in
`doctor/probe.py`.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from core_hpc.common.environment import number_in
from core_hpc.doctor.machine import gpu_facts, torch_cuda
from core_hpc.engines import worker_environment
from core_hpc.slurm.rendezvous import resolves
from core_hpc.store import manifests

HELLO, PING, PONG = "hello.json", "ping.json", "pong.json"
PING_WAIT_S, MEETING_WAIT_S, IMPORT_WAIT_S = 120.0, 60.0, 300.0


@dataclass(frozen=True)
class ProbeSpec:
    """The instructions for one test job. `models` are folders that tasks will read."""

    folder: str
    packages: tuple[str, ...]
    models: tuple[str, ...]
    threads: int


def report_name(rank: int) -> str:
    return f"report-{rank}.json"


def examine(spec: ProbeSpec) -> None:
    """Examine this node and write the report of this rank. Every rank of the test job runs this function."""
    rank, size = number_in("SLURM_PROCID") or 0, number_in("SLURM_NTASKS") or 1
    folder = Path(spec.folder)
    answered_at = _answer_ping(folder) if rank == 0 else None
    meeting = _connect_ranks(rank, size) if size > 1 else ""
    first_here = os.environ.get("SLURM_LOCALID", "0") == "0"
    imports, torch_gpus = _imports(spec) if first_here else ({}, None)
    report = {
        **_node(),
        "rank": rank,
        "answered_at": answered_at,
        "meeting": meeting,
        "imports": imports,
        "torch_gpus": torch_gpus,
        "missing_models": [m for m in spec.models if not Path(m).is_dir()] if first_here else [],
    }
    manifests.write_json(folder / report_name(rank), report)


def _answer_ping(folder: Path) -> float | None:
    """Write a first file, wait for a file from the other side, and answer it.

    Returns:
        When it was answered, by this node's clock; None if no file came within PING_WAIT_S.
    """
    manifests.write_json(folder / HELLO, {})
    deadline = time.monotonic() + PING_WAIT_S
    while time.monotonic() < deadline:
        if PING in {p.name for p in folder.iterdir()}:
            manifests.write_json(folder / PONG, {})
            return time.time()
        time.sleep(0.1)
    return None


def _node() -> dict[str, Any]:
    """Facts about this node, and about the job's share of it."""
    name, tmp = os.environ.get("SLURMD_NODENAME", socket.gethostname()), tempfile.gettempdir()
    visible = [g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g and g != "-1"]
    gpu = gpu_facts()
    return {
        "node": name,
        "host": socket.gethostname(),
        "name_resolves": resolves(name),
        "python": platform.python_version(),
        "executable": sys.executable,
        "cpus": len(os.sched_getaffinity(0)),
        "mem_gb": psutil.virtual_memory().total / 2**30,
        "mem_limit_gb": memory_limit_gb(Path("/proc/self/cgroup").read_text(encoding="utf-8"), Path("/sys/fs/cgroup")),
        "gpu_names": visible,
        "gpus_visible": len(visible) or len((gpu or {"gpus": []})["gpus"]),
        "gpu": gpu,
        "torch_cuda": torch_cuda(),
        "tmp": tmp,
        "tmp_free_gb": shutil.disk_usage(tmp).free / 1e9,
    }


def memory_limit_gb(membership: str, root: Path) -> float | None:
    """The smallest memory limit among a process's cgroups, version 1 or 2.

    Args:
        membership: content of /proc/PID/cgroup.
        root: where the cgroup file system is mounted.

    Returns:
        None without a limit.
    """
    limits = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, file = root / "unified" if (root / "unified").is_dir() else root, "memory.max"
        elif "memory" in controllers.split(","):
            base, file = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        inside = Path(path.lstrip("/"))
        for part in [inside, *inside.parents]:
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((base / part / file).read_text(encoding="utf-8")))
    least = min(limits, default=2**62)
    return least / 2**30 if least < 2**60 else None  # version 1 writes "no limit" as a huge number


def _imports(spec: ProbeSpec) -> tuple[dict[str, tuple[float, str]], int | None]:
    """Import every package in its own process.

    Returns:
        {package: (seconds, error or '')}, and the number of GPUs that torch sees.
    """
    environment = {
        **os.environ,
        **worker_environment("vllm" if "vllm" in spec.packages else "transformers", spec.threads),
    }
    found, torch_gpus = {}, None
    for package in spec.packages:
        code = f"import {package}"
        if package == "torch":
            code += "; print('GPUS', torch.cuda.device_count())"
        started = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                timeout=IMPORT_WAIT_S,
                check=False,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            found[package] = (IMPORT_WAIT_S, f"not done after {IMPORT_WAIT_S:.0f} s")
            continue
        last_lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        error = "" if done.returncode == 0 else last_lines[-1]
        found[package] = (time.monotonic() - started, error[:500])
        for line in done.stdout.splitlines():
            if line.startswith("GPUS "):
                torch_gpus = int(line.removeprefix("GPUS "))
    return found, torch_gpus


# --- connections between ranks -------------------------------------------------------------------


def _connect_ranks(rank: int, size: int) -> str:
    """Connect every rank to rank 0 at the address that the ranks of an update would use.

    Returns:
        What went wrong, or an empty string.
    """
    where = os.environ.get("CORE_HPC_RENDEZVOUS", "")
    address, _, port = where.partition(" ")
    if not port.isdecimal():
        return f"no address for the connections between ranks was found (CORE_HPC_RENDEZVOUS is {where!r})"
    try:
        if rank == 0:
            _receive(int(port), size - 1)
        else:
            _connect(address, int(port))
    except OSError as e:
        return f"rank {rank} on {socket.gethostname()} could not connect to rank 0 at {address}:{port}: {e}"
    return ""


def _receive(port: int, count: int) -> None:
    with socket.create_server(("", port)) as server:
        server.settimeout(MEETING_WAIT_S)
        for _ in range(count):
            server.accept()[0].close()


def _connect(address: str, port: int) -> None:
    for last in _attempts():
        try:
            socket.create_connection((address, port), timeout=MEETING_WAIT_S / 4).close()
            return
        except OSError:
            if last:
                raise


def _attempts() -> Iterator[bool]:
    """Yield False until the time is over, then True once for the last attempt. Rank 0 may start to listen later."""
    deadline = time.monotonic() + MEETING_WAIT_S
    while time.monotonic() < deadline:
        yield False
        time.sleep(0.5)
    yield True
