"""Checks whether other users can change what a job loads: its folders, and the code of this software.

In: a `Subject`. Out: `Finding`s. The run folders themselves are writable by their owner alone
(`common/ownership.py`). This module looks at the folders above them, which core_hpc did not make.
"""

from __future__ import annotations

import grp
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from core_hpc.common.ownership import OTHERS_MAY_WRITE, user_name
from core_hpc.doctor.checks import OK, WARN, Finding, Subject
from core_hpc.doctor.storage import nearest_folder

OWN_CODE = Path(__file__).parents[1]


def check_sharing(subject: Subject) -> Iterator[Finding]:
    """Warn about folders in which others can exchange the sweep or the code."""
    above = nearest_folder(subject.sweep.folder).resolve()
    if above == subject.sweep.folder.resolve():
        above = above.parent
    found = exchangeable(above)
    if found is None:
        yield Finding(OK, "output folder: nobody else can exchange the folder of the sweep")
    else:
        advice = f"run `chmod +t {found}`, after which only owners rename what is in it, or give another `output`"
        what = f"output folder: {who(found)} can rename what is in {found}, and put another folder in its place"
        yield Finding(WARN, f"{what}; jobs refuse files of others, but the sweep then stops", advice)
    for name, path in (("core_hpc", OWN_CODE), ("the Python environment", Path(sys.prefix))):
        path = path.resolve()
        found = path if changeable(path.stat()) else exchangeable(path.parent)
        if found is not None:
            advice = f"run `chmod -R go-w {found}`, or install into a folder of your own"
            yield Finding(WARN, f"{name}: {who(found)} can change {found}, whose code runs in your jobs", advice)


def exchangeable(folder: Path) -> Path | None:
    """The first folder, from this one upwards, in which others can rename what is not theirs."""
    for path in (folder, *folder.parents):
        found = path.stat()
        if changeable(found) and not found.st_mode & stat.S_ISVTX:
            return path
    return None


def changeable(found: os.stat_result) -> bool:
    """Whether others may write. A group that has the name of its only user does not count."""
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & OTHERS_MAY_WRITE) and _group(found.st_gid) != user_name(os.geteuid())


def who(path: Path) -> str:
    """Who besides its owner may write into a folder."""
    found = path.stat()
    return "everybody" if found.st_mode & stat.S_IWOTH else f"the group {_group(found.st_gid)}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"#{gid}"
