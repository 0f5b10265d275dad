"""The cache folder of this project: each entry is made by one process, and appears as a whole.

In: the name of an entry and a function that makes it. Out: its folder. `resolve.py` decides which
models are kept here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from core_hpc.common.errors import InputError

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
"""Errors of a cache that is full, or in which this user may not write."""


def cache_folder() -> Path:
    """$CORE_HPC_CACHE, or core_hpc in the user's cache folder."""
    if own := os.environ.get("CORE_HPC_CACHE"):
        return Path(own).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "core_hpc"
    except RuntimeError as e:  # neither HOME nor a passwd entry, as in some containers
        raise InputError("this user has no home folder; name a folder for caches in CORE_HPC_CACHE") from e


def make_once(target: Path, name: str, make: Callable[[Path], None]) -> None:
    """Let one process make a folder of the cache, which appears there as a whole.

    `name` is part of the name of the lock.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.parent / f".{name}.lock"):
            if not target.is_dir():
                temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
                try:
                    make(temporary)
                    _publish(temporary, target)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
    except OSError as e:
        if e.errno in UNWRITABLE:
            raise InputError(f"model {name}: {unwritable(e, target.parent, 'CORE_HPC_CACHE')}") from e
        raise


def unwritable(error: OSError, cache: Path | str, variable: str) -> str:
    """What to do about a cache that is full, or in which this user may not write."""
    return (
        f"{error.filename or cache}: {error.strerror}; free space or correct the permissions there, or set {variable} "
        "to another folder"
    )


def _publish(temporary: Path, target: Path) -> None:
    """Rename the finished folder. If another process was faster, its folder stays."""
    temporary.chmod(0o755)  # mkdtemp makes private folders, but a cache may be shared
    for path in temporary.iterdir():
        path.chmod(0o644)
        with path.open("rb") as f:
            os.fsync(f.fileno())
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():
            raise


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let only one process convert, to save memory.

    On a file system without locks, and where the lock belongs to another user, several processes may
    convert; one result is kept.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            f = stack.enter_context(path.open("w"))
            fcntl.flock(f, fcntl.LOCK_EX)
        yield
