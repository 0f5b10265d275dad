"""Atomic publishing on a shared file system: data files first, the manifest last.

A publication is a manifest plus the files that it names. Data files carry a unique part in their names, so two
tasks that publish the same key cannot tear each other's files: the first manifest wins and the loser removes
what it wrote. Readers open only what a manifest names, and check it. What is inside the files is shards.py's.
"""

from __future__ import annotations

import errno
import getpass
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core_hpc.common.errors import InputError, StoreError
from core_hpc.common.faults import fault_point
from core_hpc.store.paths import MANIFEST_SUFFIX
from core_hpc.store.schema import SCHEMA_VERSION

VISIBILITY_DELAYS_S = (0.2, 1.0, 5.0, 25.0)
VISIBILITY_WINDOW_S = 120.0
FOLDER_MODE = 0o750  # private to user and group; the user's umask may take away more


class DamagedError(StoreError):
    """A published file differs from its manifest. `manifest_path` says which publication to make again."""

    def __init__(self, manifest_path: Path, message: str) -> None:
        super().__init__(message)
        self.manifest_path = manifest_path


@dataclass(frozen=True)
class FileEntry:
    """One file of a publication. `name` is relative to the manifest's folder; `table` names its schema, if any."""

    name: str
    bytes: int
    sha256: str
    rows: int | None = None
    table: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What was published under one name."""

    path: Path
    files: tuple[FileEntry, ...]
    stats: dict[str, Any]
    writer: dict[str, Any]

    def file(self, suffix: str) -> Path:
        """Path of the only file whose name ends so."""
        (entry,) = (f for f in self.files if f.name.endswith(suffix))
        return self.path.parent / entry.name


def make_folder(path: Path) -> None:
    """Create a folder (and its parents) private to user and group."""
    path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)


def sha256_file(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on disk."""
    with path.open("xb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def write_json(path: Path, data: Any) -> None:
    """Replace a small JSON file atomically (for files with one writer; publications never change)."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write_synced(temporary, json.dumps(data, indent=1, sort_keys=False).encode())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def read_json(path: Path) -> Any:
    """Parse a JSON file of ours; StoreError when it is not readable."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as e:
        raise StoreError(f"{path}: cannot be read ({e})") from e


def writer_identity() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "user": getpass.getuser(), "time": time.time()}


def publish(
    folder: Path,
    name: str,
    fill: Callable[[Path], dict[str, tuple[int, str]]],
    *,
    as_folder: bool,
    stats: Callable[[], dict[str, Any]] = dict,
) -> Manifest:
    """Publish what `fill` writes as `name` in `folder`; returns the manifest that won.

    `fill` is given a fresh temporary folder and returns {file name: (rows, table name)} for its Parquet files.
    With as_folder the result is `name.UID/...`; otherwise its single file becomes `name.UID.<suffix>`.
    A failure in `fill` (an error, a full disk) leaves nothing published and removes the temporary folder.
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
    manifest = Manifest(folder / f"{name}{MANIFEST_SUFFIX}", tuple(entries), stats(), writer_identity())
    if not _commit(manifest, uid):
        _discard(folder, f"{name}.{uid}", entries, as_folder=as_folder)
    fault_point("publish.done", f"{folder}/{name}")
    return read_manifest(manifest.path)


def _move_into_place(
    temporary: Path, folder: Path, stem: str, tables: dict[str, tuple[int, str]], *, as_folder: bool
) -> list[FileEntry]:
    entries = []
    for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
        _fsync(path)
        relative = path.relative_to(temporary).as_posix()
        rows, table = tables.get(relative, (None, None))
        final = f"{stem}/{relative}" if as_folder else stem + path.suffix
        entries.append(FileEntry(final, path.stat().st_size, sha256_file(path), rows, table))
    if as_folder:
        _fsync(temporary)
        temporary.rename(folder / stem)
    else:
        (only,) = entries
        next(p for p in temporary.iterdir()).rename(folder / only.name)
        temporary.rmdir()
    _fsync(folder)
    return entries


def _commit(manifest: Manifest, uid: str) -> bool:
    """Put the manifest in place; False if another writer was first."""
    body = {
        "schema_version": SCHEMA_VERSION,
        "files": [asdict(f) for f in manifest.files],
        "stats": manifest.stats,
        "writer": manifest.writer,
    }
    temporary = manifest.path.with_name(f".{manifest.path.name}.{uid}.tmp")
    write_synced(temporary, json.dumps(body, indent=1).encode())
    fault_point("publish.before_manifest", str(manifest.path))
    try:
        os.link(temporary, manifest.path)  # unlike rename, a link never replaces: the first writer wins
    except FileExistsError:
        return False
    except OSError as e:
        if e.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        temporary.replace(manifest.path)  # no hard links here: the last writer wins, with its own complete files
        return True
    finally:
        temporary.unlink(missing_ok=True)
        _fsync(manifest.path.parent)
    return True


def _discard(folder: Path, stem: str, entries: list[FileEntry], *, as_folder: bool) -> None:
    if as_folder:
        shutil.rmtree(folder / stem, ignore_errors=True)
    else:
        (folder / entries[0].name).unlink(missing_ok=True)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; DamagedError when it is torn, StoreError when it is of another schema version."""
    try:
        body = json.loads(path.read_bytes())
        files = tuple(FileEntry(**f) for f in body["files"])
        manifest = Manifest(path, files, body["stats"], body["writer"])
        version = body["schema_version"]
    except FileNotFoundError as e:
        raise StoreError(f"{path}: not published (yet)") from e
    except (ValueError, KeyError, TypeError) as e:
        raise DamagedError(path, f"{path}: torn or altered manifest ({e})") from e
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{path}: schema version {version}, this software reads {SCHEMA_VERSION}; use the version that wrote it"
        )
    return manifest


def check_files(manifest: Manifest, *, checksum: bool, tables_only: bool = False) -> None:
    """DamagedError unless every named file is there with the recorded size (and checksum; if so wished of tables only)."""
    for entry in manifest.files:
        path = manifest.path.parent / entry.name
        if not is_visible(path, published_s=manifest.writer["time"]):
            raise DamagedError(manifest.path, f"{path}: named by its manifest but missing")
        size = path.stat().st_size
        if size != entry.bytes:
            raise DamagedError(manifest.path, f"{path}: {size} bytes, its manifest says {entry.bytes}")
        if checksum and (entry.table is not None or not tables_only) and sha256_file(path) != entry.sha256:
            raise DamagedError(manifest.path, f"{path}: checksum differs from its manifest")


def is_visible(path: Path, *, published_s: float) -> bool:
    """Whether a file is there; a network file system may hide a new one for a while, so refresh its folder and retry."""
    for delay_s in VISIBILITY_DELAYS_S:
        if path.is_file():
            return True
        if time.time() - published_s > VISIBILITY_WINDOW_S:
            return False
        time.sleep(delay_s)
        if path.parent.is_dir():
            list(path.parent.iterdir())
    return path.is_file()


def set_aside(manifest_path: Path) -> Path:
    """Withdraw a damaged publication, keeping its manifest under another name for inspection."""
    aside = manifest_path.with_name(f"{manifest_path.name}.set-aside-{uuid.uuid4().hex[:8]}")
    manifest_path.rename(aside)
    _fsync(manifest_path.parent)
    return aside


def list_manifests(folder: Path) -> list[Path]:
    """Manifests directly in a folder, by name; empty when the folder does not exist."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.endswith(MANIFEST_SUFFIX) and not p.name.startswith("."))


def list_names(folder: Path) -> set[str]:
    """Names in a folder; empty when it does not exist. Unlike a look for one file, this refreshes a network file system's view."""
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def remove_leftovers(folder: Path) -> int:
    """Remove what killed writers left in a folder: temporary names and data that no manifest names.

    Only the holder of the sweep's claim may call this, while no task runs.
    """
    if not folder.is_dir():
        return 0
    manifests = [p for p in folder.iterdir() if MANIFEST_SUFFIX in p.name and not p.name.startswith(".")]
    kept = {p.name for p in manifests} | {entry.name.split("/")[0] for p in manifests for entry in _entries_or_none(p)}
    leftovers = [p for p in folder.iterdir() if p.name not in kept]
    for path in leftovers:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return len(leftovers)


def _entries_or_none(path: Path) -> tuple[FileEntry, ...]:
    try:
        return tuple(FileEntry(**f) for f in json.loads(path.read_bytes())["files"])
    except (ValueError, KeyError, TypeError):
        return ()


def require_writable(folder: Path, *, min_free_gb: float) -> None:
    """InputError when the folder cannot be created or written, or when the disk is nearly full."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{existing}: is a file; give another folder as `output`")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{existing}: no permission to write here; give another folder as `output`")
    free_gb = shutil.disk_usage(existing).free / 1e9
    if free_gb < min_free_gb:
        raise InputError(
            f"{existing}: only {free_gb:.1f} GB free, {min_free_gb:.1f} GB are needed; free space or give another `output`"
        )
