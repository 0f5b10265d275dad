"""Atomic publishing on a shared file system: data files first, the manifest last.

A publication is a manifest and the files that it names. The names of data files have a unique
part, so two tasks that publish the same key cannot damage each other's files. The first manifest
wins, and the other task removes what it wrote. Readers open only files that a manifest names, and
check them. The content of Parquet files is in `shards.py`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from core_hpc.common.errors import StoreError
from core_hpc.common.faults import fault_point
from core_hpc.common.ownership import FILE_MODE, FOLDER_MODE, read_own, share_as, user_name
from core_hpc.store.manifest_body import FileEntry, checked_field, parse_body
from core_hpc.store.paths import MANIFEST_SUFFIX
from core_hpc.store.schema import SCHEMA_VERSION

T = TypeVar("T")

SET_ASIDE = ".set-aside-"
"""In the name of a manifest that was withdrawn because of damage."""
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of a file system that has no hard links."""
VISIBILITY_DELAYS_S = (0.2, 1.0, 5.0, 25.0)
VISIBILITY_WINDOW_S = 120.0


class DamagedError(StoreError):
    """A published file differs from its manifest, whose path is `manifest_path`."""

    def __init__(self, manifest_path: Path, message: str) -> None:
        super().__init__(message)
        self.manifest_path = manifest_path


class UnreadableError(StoreError):
    """A file cannot be read now. The file system may be ill for a moment, so this is no damage."""


@dataclass(frozen=True)
class Manifest:
    """What was published under one name."""

    path: Path
    files: tuple[FileEntry, ...]
    stats: dict[str, Any]
    writer: dict[str, Any]

    def file(self, suffix: str) -> Path:
        """Path of the only file whose name ends with `suffix`."""
        (entry,) = (f for f in self.files if f.name.endswith(suffix))
        return self.path.parent / entry.name

    @property
    def folder(self) -> Path:
        """The folder of a publication that is a folder."""
        (name,) = {entry.name.split("/")[0] for entry in self.files}
        return self.path.parent / name


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents: the user writes, the group reads, others do neither."""
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    for folder in reversed(missing):
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)


def sha256_file(path: Path) -> str:
    """Checksum of a file, in hex digits."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file that only this user may change, and wait until it is on disk."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def link_new(source: Path, target: Path) -> None:
    """Make a hard link. FileExistsError if the target is another file.

    NFS repeats a request whose reply was lost, and then reports that the link, which the first
    request has made, exists already.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        if not is_same_file(source, target):
            raise


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same existing file or folder."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def write_json(path: Path, data: Any) -> None:
    """Replace a small JSON file atomically.

    This is for files with one writer that may change. A publication never changes.
    """
    replace_file(path, json.dumps(data, indent=1, sort_keys=False).encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write a small file atomically, over an earlier one if there is one."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write_synced(temporary, content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def read_json(path: Path) -> Any:
    """Parse a JSON file of a run or sweep folder. StoreError if it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise StoreError(f"{path}: cannot be read ({e})") from e


def read_own_json(path: Path) -> Any:
    """Parse a JSON file from which a job learns what to run.

    Raises:
        OwnershipError: Somebody else owns it or may change it.
        StoreError: It cannot be read.
    """
    try:
        return json.loads(read_own(path))
    except (OSError, ValueError, RecursionError) as e:
        raise StoreError(f"{path}: cannot be read ({e})") from e


def read_record(path: Path, parse: Callable[[Any], T], *, own: bool = False) -> T:
    """Read a JSON file and convert it. StoreError if it cannot be read, or is not such a record.

    Args:
        path: The file.
        parse: Converts the parsed JSON.
        own: Refuse a file that somebody else may have written (OwnershipError).
    """
    data = read_own_json(path) if own else read_json(path)
    try:
        return parse(data)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        what = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise StoreError(f"{path}: torn, altered or of another version ({type(e).__name__}: {what})") from e


def writer_identity() -> dict[str, Any]:
    """Host, process, user and time of this process, as recorded in manifests and claims."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "user": user_name(os.getuid()), "time": time.time()}


def publish(
    folder: Path,
    name: str,
    fill: Callable[[Path], dict[str, tuple[int, str]]],
    *,
    as_folder: bool,
    stats: Callable[[], dict[str, Any]] = dict,
) -> Manifest:
    """Publish what `fill` writes.

    If `fill` fails (an error, a full disk), nothing is published and nothing is left in the folder.

    Args:
        folder: Where to publish.
        name: Under which name.
        fill: Writes files into the empty folder that it receives. It returns
            {file name: (rows, table name)} for the Parquet files among them.
        as_folder: The result is the folder `name.UID/`. Otherwise the single file becomes
            `name.UID.SUFFIX`.
        stats: Called after `fill`; its result is stored in the manifest.

    Returns:
        The manifest that won: this one, or that of another task that published earlier.
    """
    make_folder(folder)
    uid = uuid.uuid4().hex[:12]
    temporary = folder / f".{name}.{uid}.tmp"
    temporary.mkdir(mode=FOLDER_MODE)
    fault_point("publish.started", f"{folder}/{name}")
    try:
        tables = fill(temporary)
        entries = _move_into_place(temporary, folder, f"{name}.{uid}", tables, as_folder=as_folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fault_point("publish.data_in_place", f"{folder}/{name}")
    try:
        manifest = Manifest(folder / f"{name}{MANIFEST_SUFFIX}", tuple(entries), stats(), writer_identity())
        written = _write_manifest(manifest, uid)
    except BaseException:
        _discard(folder, f"{name}.{uid}", entries, as_folder=as_folder)
        raise
    if not _commit(written, manifest.path):
        _discard(folder, f"{name}.{uid}", entries, as_folder=as_folder)
    fault_point("publish.done", f"{folder}/{name}")
    return read_manifest(manifest.path)


def _move_into_place(
    temporary: Path, folder: Path, stem: str, tables: dict[str, tuple[int, str]], *, as_folder: bool
) -> list[FileEntry]:
    entries = []
    for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
        share_as(path, temporary)
        _fsync(path)
        relative = path.relative_to(temporary).as_posix()
        rows, table = tables.get(relative, (None, None))
        final = f"{stem}/{relative}" if as_folder else stem + path.suffix
        entries.append(FileEntry(final, path.stat().st_size, sha256_file(path), rows, table))
    if as_folder:
        for inner in (temporary, *(p for p in temporary.rglob("*") if p.is_dir())):
            _fsync(inner)
        temporary.rename(folder / stem)
    else:
        (only,) = entries
        next(p for p in temporary.iterdir()).rename(folder / only.name)
        temporary.rmdir()
    _fsync(folder)
    return entries


def _write_manifest(manifest: Manifest, uid: str) -> Path:
    """Write a manifest under a temporary name. On an error nothing is left."""
    body = {
        "schema_version": SCHEMA_VERSION,
        "files": [asdict(f) for f in manifest.files],
        "stats": manifest.stats,
        "writer": manifest.writer,
    }
    temporary = manifest.path.with_name(f".{manifest.path.name}.{uid}.tmp")
    try:
        write_synced(temporary, json.dumps(body, indent=1).encode())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _commit(temporary: Path, path: Path) -> bool:
    """Put a manifest in place. False if another writer was first."""
    fault_point("publish.before_manifest", str(path))
    try:
        link_new(temporary, path)  # a link never replaces a file, so the first writer wins
    except FileExistsError:
        return False
    except OSError as e:
        if e.errno not in NO_HARD_LINKS:
            raise
        # This file system has no hard links: the last writer wins, and its files are complete too.
        temporary.replace(path)
        return True
    finally:
        temporary.unlink(missing_ok=True)
        _fsync(path.parent)
    return True


def _discard(folder: Path, stem: str, entries: list[FileEntry], *, as_folder: bool) -> None:
    if as_folder:
        shutil.rmtree(folder / stem, ignore_errors=True)
    else:
        (folder / entries[0].name).unlink(missing_ok=True)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        DamagedError: The manifest is torn or altered.
        UnreadableError: It cannot be read now.
        StoreError: It does not exist, or has another schema version.
    """
    try:
        body = json.loads(path.read_bytes())
        version = checked_field(body, "schema_version", int)
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"{path}: schema version {version}, but this core_hpc reads version {SCHEMA_VERSION}; "
                "use the core_hpc that wrote it"
            )
        files, stats, writer = parse_body(body)
    except FileNotFoundError as e:
        raise StoreError(f"{path}: not published yet") from e
    except OSError as e:
        raise UnreadableError(f"{path}: cannot be read ({e})") from e
    except (ValueError, RecursionError) as e:
        raise DamagedError(path, f"{path}: the manifest is torn or altered ({e})") from e
    name = path.name.partition(MANIFEST_SUFFIX)[0]  # also of a manifest that was set aside
    if foreign := [f.name for f in files if not f.name.startswith(f"{name}.")]:
        raise DamagedError(path, f"{path}: the manifest is torn or altered (it names {foreign[0]!r})")
    return Manifest(path, files, stats, writer)


def check_files(manifest: Manifest, *, checksum: bool, tables_only: bool = False, unread: Collection[str] = ()) -> None:
    """Check that every file of a publication exists and has the recorded size.

    Args:
        manifest: The publication.
        checksum: Compare checksums too.
        tables_only: Compare only the checksums of tables.
        unread: Names of large files, below the published folder, that the caller does not read: without checksums.

    Raises:
        DamagedError: A file is missing or differs.
    """
    for entry in manifest.files:
        path = manifest.path.parent / entry.name
        if not is_visible(path, published_s=manifest.writer["time"]):
            raise DamagedError(manifest.path, f"{path}: named by its manifest but missing")
        size = path.stat().st_size
        if size != entry.bytes:
            raise DamagedError(manifest.path, f"{path}: {size} bytes, but its manifest records {entry.bytes}")
        compared = checksum and entry.name.partition("/")[2] not in unread
        if compared and (entry.table is not None or not tables_only) and sha256_file(path) != entry.sha256:
            raise DamagedError(manifest.path, f"{path}: checksum differs from its manifest")


def is_visible(path: Path, *, published_s: float) -> bool:
    """Whether a file exists.

    A network file system may hide a new file for a while. So for some time after its publication,
    the folder is refreshed and the file is looked up again.

    Args:
        path: The file.
        published_s: When it was published, in seconds since the epoch.
    """
    for delay_s in VISIBILITY_DELAYS_S:
        if is_file(path):
            return True
        if time.time() - published_s > VISIBILITY_WINDOW_S:
            return False
        time.sleep(delay_s)
        list_folder(path.parent)
    return is_file(path)


def set_aside(manifest_path: Path) -> Path:
    """Withdraw a damaged publication. Its manifest is kept under another name for inspection."""
    aside = manifest_path.with_name(f"{manifest_path.name}{SET_ASIDE}{uuid.uuid4().hex[:8]}")
    manifest_path.rename(aside)
    _fsync(manifest_path.parent)
    return aside


def list_manifests(folder: Path) -> list[Path]:
    """Manifests directly in a folder, sorted by name. Empty if the folder does not exist."""
    return sorted(p for p in list_folder(folder) if p.name.endswith(MANIFEST_SUFFIX) and not p.name.startswith("."))


def list_names(folder: Path) -> set[str]:
    """Names in a folder. Empty if it does not exist.

    Reading a folder refreshes the view of a network file system. Testing for one file does not.
    """
    return {path.name for path in list_folder(folder)}


def list_folder(folder: Path) -> list[Path]:
    """What is in a folder; nothing if it does not exist, or is none.

    An error of the file system is raised. `Path.is_dir` and `Path.exists` hide it since Python 3.14.
    """
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_file(path: Path) -> bool:
    """Whether a file exists. An error of the file system is raised, as by `list_folder`."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as e:
        if e.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
