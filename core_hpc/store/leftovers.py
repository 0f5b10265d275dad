"""Names in the folders of a run: which are ours, and what killed writers left.

In: folders. Out: removed leftovers, and the names that nobody but a user can have written. A file
is ours if its name has the form that `manifests.py` writes; everything else is never removed.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from core_hpc.store import manifests
from core_hpc.store.manifest_body import parse_files
from core_hpc.store.paths import MANIFEST_SUFFIX, phase_iteration
from core_hpc.store.schema import PHASES
from core_hpc.store.shards import task_of_manifest

_UID = r"[0-9a-f]{12}"
DATA = re.compile(rf".+\.{_UID}(\.[a-z]+)?")
"""A data file or a folder with data files."""
TEMPORARY = re.compile(rf"\..+\.{_UID}\.tmp")
"""A folder that is being filled, or a manifest that is being written."""
SET_ASIDE = re.compile(rf".+{re.escape(MANIFEST_SUFFIX + manifests.SET_ASIDE)}[0-9a-f]{{8}}")


def remove_leftovers(folder: Path, *, unchanged_since: float = math.inf) -> int:
    """Remove what killed writers left: temporary files, and data that no manifest names.

    Only the holder of the sweep's claim may call this, and only while no task is running.

    Args:
        folder: Where they are.
        unchanged_since: Keep what was written later, because its writer may be alive. In seconds
            since 1970 on the clock of the file system.

    Returns:
        Number of files and folders that were removed.
    """
    paths = manifests.list_folder(folder)
    named = {name for path in paths if MANIFEST_SUFFIX in path.name for name in _names_in(path)}
    unnamed = [p for p in paths if p.name not in named and not p.is_symlink() and _may_be_removed(p.name)]
    leftovers = [p for p in unnamed if unchanged_since == math.inf or _last_written(p) < unchanged_since]
    for path in leftovers:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return len(leftovers)


def _last_written(path: Path) -> float:
    """When a file, or anything in a folder, was written last; infinity if its writer has just moved it."""
    try:
        return max(p.lstat().st_mtime for p in (path, *path.rglob("*")))
    except FileNotFoundError:
        return math.inf


def _may_be_removed(name: str) -> bool:
    is_temporary = TEMPORARY.fullmatch(name) is not None
    return is_temporary or (DATA.fullmatch(name) is not None and MANIFEST_SUFFIX not in name)


def _names_in(manifest: Path) -> set[str]:
    """First parts of the paths that a manifest names; empty if it cannot be read."""
    if manifest.name.startswith(".") or not manifests.is_file(manifest):
        return set()
    try:
        files = parse_files(json.loads(manifest.read_bytes()))
    except (ValueError, RecursionError):
        return set()
    return {entry.name.split("/")[0] for entry in files}


def foreign_names(run: Path) -> list[Path]:
    """Names in the phase folders of a run that core_hpc does not write, sorted. Nothing reads them."""
    return sorted(path for phase in PHASES for path in _foreign_in(run / phase))


def _foreign_in(phase_folder: Path) -> Iterator[Path]:
    for folder in manifests.list_folder(phase_folder):
        if phase_iteration(folder.name) is None or not folder.is_dir():
            yield folder
            continue
        for path in folder.iterdir():
            is_ours = any(form.fullmatch(path.name) for form in (DATA, TEMPORARY, SET_ASIDE))
            if not is_ours and task_of_manifest(path) is None:
                yield path
