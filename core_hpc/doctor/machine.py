"""Checks of this machine: cores and memory, GPUs and their driver, ports.

In: a `Subject`. Out: `Finding`s. The facts about GPUs are also collected on compute nodes
(`doctor/node.py`).
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from core_hpc.doctor.checks import FAIL, OK, WARN, Finding, Subject
from core_hpc.engines import has_gpu
from core_hpc.local.executor import LocalLimits


def check_machine(subject: Subject) -> Iterator[Finding]:
    """Report cores and memory, and check how many tasks the driver `local` would run at once."""
    cores, mem_gb = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 2**30
    here = f"this machine ({socket.gethostname()}): {cores} cores, {mem_gb:.0f} GB of memory"
    if subject.submits:
        yield Finding(OK, f"{here}; tasks run elsewhere")
        return
    limits = LocalLimits.of(subject.cluster, subject.sweep.largest_team)
    plan = f"{limits.num_running} task(s) at a time with {limits.threads} thread(s) each"
    if limits.num_running * limits.threads > cores:
        yield Finding(WARN, f"{here}; {plan}: more threads than cores", "lower cluster.num_running or cluster.threads")
    else:
        yield Finding(OK, f"{here}; {plan}")


def check_port(subject: Subject) -> Iterator[Finding]:
    """Check that the ranks of an update can connect to each other on this machine."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except OSError as e:
        advice = "the ranks of an update need one; ask the administrator whether sockets are limited on this machine"
        yield Finding(FAIL, f"no port of 127.0.0.1 can be used: {e}", advice)
        return
    yield Finding(OK, f"ranks can connect to each other on this machine (tested port {port})")


def gpu_facts() -> dict[str, Any] | None:
    """The output of nvidia-smi: {gpus: [name, ...], mem_gb: [...], driver, cuda}; None if it is missing or fails."""
    if shutil.which("nvidia-smi") is None:
        return None
    fields = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        rows = subprocess.run(["nvidia-smi", *fields], capture_output=True, text=True, timeout=60, check=True).stdout
        head = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    gpus = [tuple(part.strip() for part in row.split(",")) for row in rows.splitlines() if row.count(",") == 2]
    if not gpus:
        return None
    cuda = re.search(r"CUDA\D{0,20}Version\s*:\s*(\d+\.\d+)", head)
    mem_gb = [round(float(g[1]) / 1024, 1) if g[1].replace(".", "").isdecimal() else None for g in gpus]
    return {"gpus": [g[0] for g in gpus], "mem_gb": mem_gb, "driver": gpus[0][2], "cuda": cuda[1] if cuda else None}


def torch_cuda() -> str | None:
    """The CUDA version that the installed torch was built with, without importing torch.

    Returns:
        None for a CPU build, or without torch.
    """
    spec = find_spec("torch")
    path = Path(spec.submodule_search_locations[0], "version.py") if spec and spec.submodule_search_locations else None
    if path is None or not path.is_file():
        return None
    match = re.search(r"^cuda.*=\s*'([\d.]+)'", path.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else None


def judge_gpus(where: str, facts: dict[str, Any], built_for: str | None) -> Finding:
    """Compare the driver with the CUDA version of torch. Within a major version of CUDA an older driver is enough."""
    cuda = facts["cuda"] or "unknown"
    gpus = f"{where}: {len(facts['gpus'])} x {facts['gpus'][0]}, driver {facts['driver']} (CUDA {cuda})"
    if built_for is None:
        return Finding(
            WARN,
            f"{gpus}, but torch is a build for CPU only",
            "install the extra `gpu` instead of `cpu`, in a new environment",
        )
    if facts["cuda"] and int(facts["cuda"].split(".")[0]) < int(built_for.split(".")[0]):
        return Finding(
            FAIL,
            f"{gpus} is too old for torch, which was built for CUDA {built_for}",
            f"ask for a newer driver, or install a torch built for CUDA {facts['cuda']}",
        )
    return Finding(OK, f"{gpus}; torch was built for CUDA {built_for}")


def check_gpu(subject: Subject) -> Iterator[Finding]:
    """Report the GPUs of this machine, and whether torch can use them."""
    facts = gpu_facts()
    if facts is not None:
        yield judge_gpus("GPU", facts, torch_cuda())
    elif has_gpu() and not subject.submits:
        yield Finding(WARN, "there are GPU devices, but nvidia-smi does not answer", "check the driver: run nvidia-smi")
    elif subject.submits:
        yield Finding(OK, "no GPU on this machine; the test job checks the nodes")
    else:
        yield Finding(OK, "no GPU on this machine: everything runs on the CPU")
