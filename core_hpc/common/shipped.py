"""Where the shipped sweep files, cluster profiles and SLURM scripts are.

In a checkout they are the folders `yaml/` and `slurm/`. An ordinary installation has copies of both in
`core_hpc/shipped/`, where the build puts them (`tool.setuptools.package-dir` in pyproject.toml).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

INSTALLED = Path(__file__).parents[1] / "shipped"
CHECKOUT = Path(__file__).parents[2]


def checkout_folder() -> Path | None:
    """The root of the checkout that this code runs from, or None for an ordinary installation."""
    return None if INSTALLED.is_dir() else CHECKOUT


def shipped_folder(name: Literal["yaml", "slurm"]) -> Path:
    """The folder of shipped sweep files and profiles (`yaml`), or of SLURM scripts (`slurm`)."""
    return (checkout_folder() or INSTALLED) / name
