"""Checks of the output folder: whether results can be published and claimed there, and whether there is space.

In: a `Subject`. Out: `Finding`s. The checks work in a temporary folder below the nearest existing folder, and
remove it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from core_hpc.common.errors import InputError
from core_hpc.doctor.checks import FAIL, OK, WARN, Finding, Subject
from core_hpc.store import manifests, output_folder

FEW_FREE_GB = 10.0
MIN_FREE_FILES, FEW_FREE_FILES = 500, 20_000
SLOW_SYNC_S = 1.0
NUM_RENAMES = 50
LOCAL_KINDS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "ramfs", "f2fs"})
"""File systems that are usually not shared between machines."""
MEMORY_KINDS = frozenset({"tmpfs", "ramfs"})
"""File systems in memory."""


def nearest_folder(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


@contextlib.contextmanager
def probe_folder(near: Path) -> Iterator[Path]:
    """A temporary folder on the file system of the output folder."""
    folder = Path(tempfile.mkdtemp(prefix=".core_hpc-doctor-", dir=nearest_folder(near)))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_output(subject: Subject) -> Iterator[Finding]:
    """Run all checks of the output folder."""
    folder = subject.sweep.folder
    try:
        output_folder.require_writable(folder)
        with probe_folder(folder) as probe:
            yield Finding(OK, f"output folder {folder}: can be written")
            yield _kind(probe, shared=subject.submits)
            yield _space(probe)
            yield _hard_links(probe)
            yield _renames(probe)
            yield _sync(probe)
    except InputError as e:
        yield Finding(FAIL, f"output folder {e}")
        return
    except OSError as e:
        yield Finding(FAIL, f"output folder {folder}: {e}", "give another folder as `output`")
        return
    yield from _quota()


def file_system(path: Path, mounts: str | None = None) -> tuple[str, str]:
    """(kind, mount point) of the file system that holds a path, from /proc/self/mountinfo."""
    text = mounts if mounts is not None else Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    best = ("unknown", "/")
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        point = fields.split()[4].replace("\\040", " ")
        inside = path == Path(point) or Path(point) in path.parents
        if rest and inside and len(point) >= len(best[1]):  # the later of two mounts at the same place is visible
            best = (rest.split()[0], point)
    return best


def _kind(probe: Path, *, shared: bool) -> Finding:
    kind, point = file_system(probe.resolve())
    what = f"output folder is on {kind} ({point})"
    if kind in MEMORY_KINDS:
        return Finding(WARN, f"{what}: it is lost when this machine restarts", "give a folder on a disk as `output`")
    if shared and kind in LOCAL_KINDS:
        advice = (
            "give a folder on the cluster's shared file system, unless the test job shows that the nodes see this one"
        )
        return Finding(WARN, f"{what}: probably not shared with the compute nodes", advice)
    return Finding(OK, what)


def _space(probe: Path) -> Finding:
    found = os.statvfs(probe)
    free_gb = found.f_bavail * found.f_frsize / 1e9
    counted = found.f_files > 0  # some file systems create inodes when they are needed
    what = f"output folder: {free_gb:,.0f} GB free" + (f", space for {found.f_favail:,} files" if counted else "")
    if counted and found.f_favail < MIN_FREE_FILES:
        return Finding(FAIL, what, "remove files, or give another folder as `output`")
    if free_gb < FEW_FREE_GB or (counted and found.f_favail < FEW_FREE_FILES):
        return Finding(WARN, what, "--dry-run shows how much the sweep will write; free space before it starts")
    return Finding(OK, what)


def _hard_links(probe: Path) -> Finding:
    source, link = probe / "source", probe / "link"
    source.write_bytes(b"x")
    try:
        link.hardlink_to(source)
    except OSError as e:
        advice = (
            "they prevent that two controllers run the same sweep: give a folder on another file system as `output`"
        )
        return Finding(FAIL, f"output folder: no hard links here ({e.strerror})", advice)
    try:
        link.hardlink_to(source)
    except FileExistsError:
        return Finding(OK, "output folder: hard links work, and never replace a file")
    advice = "two controllers could claim one sweep: give a folder on another file system as `output`"
    return Finding(FAIL, "output folder: a hard link replaced a file", advice)


def _renames(probe: Path) -> Finding:
    """Replace a file repeatedly while another thread reads it. The reader must always see a complete file."""
    target, stop, torn = probe / "target", threading.Event(), []
    sizes = (1000, 3000)
    target.write_bytes(b"x" * sizes[0])

    def read() -> None:
        while not stop.is_set():
            try:
                if len(target.read_bytes()) not in sizes:
                    torn.append("incomplete")
            except OSError as e:
                torn.append(str(e))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for i in range(NUM_RENAMES):
            new = probe / f"new-{i}"
            new.write_bytes(b"x" * sizes[i % 2])
            new.replace(target)
    finally:
        stop.set()
        reader.join()
    if torn:
        advice = "published files could be read incompletely: give a folder on another file system as `output`"
        return Finding(FAIL, f"output folder: renaming is not atomic (a reader saw the file {torn[0]})", advice)
    return Finding(OK, "output folder: renaming is atomic")


def _sync(probe: Path) -> Finding:
    started = time.perf_counter()
    manifests.write_json(probe / "synced.json", {})  # writes, syncs, renames, syncs the folder
    seconds = time.perf_counter() - started
    what = f"output folder: fsync works ({1000 * seconds:.0f} ms for a small file)"
    if seconds > SLOW_SYNC_S:
        return Finding(
            WARN, f"{what}: slow", "the file system is busy or far away; publishing many small parts will be slow"
        )
    return Finding(OK, what)


def _quota() -> Iterator[Finding]:
    """Report the output of `quota -q`, which lists a file system only if its quota is exceeded."""
    if shutil.which("quota") is None:
        return
    try:
        done = subprocess.run(["quota", "-q"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return
    exceeded = " ".join(done.stdout.split())
    if exceeded:
        yield Finding(WARN, f"quota: {exceeded}", "free space, or ask for more, before a sweep fails because of it")
    else:
        yield Finding(OK, "quota: not exceeded")
