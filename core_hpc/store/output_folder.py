"""Whether results can be written to an output folder: its permissions, and free space."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from core_hpc.common.errors import InputError
from core_hpc.common.ownership import user_name

MIN_FREE_GB = 1.0
"""Free space without which nothing is started."""
ANOTHER_OUT = "choose another folder for --out"
"""The advice of commands with `--out`."""


def require_writable(
    folder: Path, *, min_free_gb: float = MIN_FREE_GB, advice: str = "set `output` to another folder"
) -> None:
    """Raise InputError if the folder cannot be created or written, or the disk is nearly full.

    Args:
        folder: the folder, which need not exist.
        min_free_gb: free space that is needed.
        advice: how the user chooses another folder.
    """
    existing = folder
    while not existing.exists():
        if existing.is_symlink():
            raise InputError(
                f"{existing}: is a link to {existing.readlink()}, which does not exist; make it, or {advice}"
            )
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{existing}: is a file, not a folder; {advice}")
    if not os.access(existing, os.W_OK | os.X_OK):
        found = existing.stat()
        owner = f"it belongs to {user_name(found.st_uid)}, mode {stat.S_IMODE(found.st_mode):04o}"
        raise InputError(f"{existing}: no permission to write here ({owner}); {advice}")
    free_gb = shutil.disk_usage(existing).free / 1e9
    if free_gb < min_free_gb:
        raise InputError(
            f"{existing}: only {free_gb:.1f} GB free, but {min_free_gb:.1f} GB are needed; free space, or {advice}"
        )
