"""Who may change a file: what a job loads must be writable by its submitter alone.

On many clusters the umask is 002 and project folders pass their group on, so a new file can be
changed by the whole group. A job reads its configuration from the run folder and runs what it
names. Somebody who can change this file therefore runs code as the submitter. This module sets the
umask of the commands, withdraws write permissions of folders that earlier versions made, and reads
files only if nobody else can have written them. Reading stays open to the group.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from pathlib import Path

from core_hpc.common.errors import RepeatingError

FOLDER_MODE, FILE_MODE = 0o750, 0o640
"""The owner writes, the group reads. A stricter umask of the user is respected."""
OTHERS_MAY_WRITE = 0o022


class OwnershipError(RepeatingError):
    """A file or folder belongs to somebody else, or somebody else may change it."""


def deny_writing_by_others() -> None:
    """Set the umask so that no file of this process and its children is writable by others.

    Libraries create files with the umask alone. SLURM passes it on to jobs.
    """
    os.umask(os.umask(OTHERS_MAY_WRITE) | OTHERS_MAY_WRITE)


def withdraw_from(path: Path) -> bool:
    """Withdraw the write permission of group and others from one file or folder of this user.

    Returns:
        Whether it was changed.
    """
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode) or found.st_uid != os.geteuid() or not found.st_mode & OTHERS_MAY_WRITE:
            return False
        path.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS_MAY_WRITE)
    except OSError:  # removed meanwhile, or a file system without modes: `read_own` decides about what is loaded
        return False
    return True


def share_as(path: Path, folder: Path) -> None:
    """Let the group read a file if it may read the folder. Nobody but the owner may write it.

    Libraries choose modes of their own: some files are for their owner alone, others for everybody.
    """
    with contextlib.suppress(OSError):  # a file system without modes, as in `withdraw_from`
        wanted = FILE_MODE & (0o700 | stat.S_IMODE(folder.stat().st_mode))
        if stat.S_IMODE(path.stat().st_mode) != wanted:
            path.chmod(wanted)


def user_name(uid: int) -> str:
    """The login name of a user, or `#ID` if the system has no name for it.

    >>> user_name(0), user_name(4_000_000)
    ('root', '#4000000')
    """
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def read_own(path: Path) -> bytes:
    """The content of a file that only this user (or root) can have written.

    The open file is checked, not its path, so a folder that is replaced meanwhile changes nothing.

    Raises:
        OwnershipError: somebody else owns the file or may change it.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        _require_own(path, os.fstat(file.fileno()))
        return file.read()


def require_owner(path: Path) -> None:
    """Check that a file or folder belongs to this user (or root).

    Raises:
        OwnershipError: it belongs to somebody else.
        OSError: it cannot be examined.
    """
    _require_owner(path, path.stat())


def _require_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise OwnershipError(
            f"{path}: belongs to {user_name(found.st_uid)}, but this process runs as {user_name(os.geteuid())}, and "
            "would run what the file names. Only its owner can continue this sweep. Ask the owner, or start the sweep "
            "in another folder (--output)"
        )


def _require_own(path: Path, found: os.stat_result) -> None:
    _require_owner(path, found)
    if found.st_mode & OTHERS_MAY_WRITE:
        who = "group" if found.st_mode & stat.S_IWGRP else "all users"
        raise OwnershipError(
            f"{path}: the {who} may change it (mode {stat.S_IMODE(found.st_mode):04o}, owner "
            f"{user_name(found.st_uid)}), and this process would run what it names. Check that its content is yours, "
            f"then run `chmod -R go-w {path.parent}` and start again"
        )


def withdraw_writing(root: Path) -> int:
    """Withdraw the write permission of group and others from a folder and all that it contains.

    Only what belongs to this user is changed. Links are not followed. A folder that others cannot
    write is taken as it is, with its content, because this function has seen it before.

    Returns:
        Number of files and folders that were changed.
    """
    if not root.stat().st_mode & OTHERS_MAY_WRITE:
        return 0
    count = 0
    # The root comes last, so an interrupted call is repeated.
    for folder, names, files in os.walk(root, topdown=False):
        for name in (*files, *names):
            count += withdraw_from(Path(folder, name))
    return count + withdraw_from(root)
