"""Write and read the Parquet shards of a run as checked Polars frames.

In: run folders. Out: frames with exactly the columns of `schema.py`. Only files that a manifest
names are opened. This module does not decide the next task (`runs/graph.py`) and computes no
statistics (`analysis`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from core_hpc.store import manifests, parquet
from core_hpc.store.manifests import Manifest
from core_hpc.store.paths import MANIFEST_SUFFIX, RunPaths, TaskKey, phase_iteration
from core_hpc.store.schema import PHASES, Table, check_frame

ROW_GROUP_BYTES = 32 << 20
_MANIFEST = re.compile(rf"(?P<model>[a-z0-9][a-z0-9_.-]*)-p(?P<part>[0-9]{{3,9}}){re.escape(MANIFEST_SUFFIX)}")


def write_frame(path: Path, frame: pl.DataFrame, table: Table) -> tuple[int, str]:
    """Write one Parquet file. Returns (rows, table name) for its manifest."""
    check_frame(frame, table, source=str(path))
    bytes_per_row = max(1, int(frame.estimated_size()) // max(1, frame.height))
    frame.write_parquet(path, compression="zstd", row_group_size=max(1000, ROW_GROUP_BYTES // bytes_per_row))
    return frame.height, table.name


def publish_frame(
    folder: Path, name: str, frame: pl.DataFrame, table: Table, *, stats: Callable[[], dict[str, Any]] = dict
) -> Manifest:
    """Publish one frame as one shard."""

    def fill(temporary: Path) -> dict[str, tuple[int, str]]:
        return {"shard.parquet": write_frame(temporary / "shard.parquet", frame, table)}

    return manifests.publish(folder, name, fill, as_folder=False, stats=stats)


def read_manifest_table(
    manifest: Manifest, table: Table, *, columns: Sequence[str] | None = None, checksum: bool = False
) -> pl.DataFrame:
    """Read the rows of a table in one publication.

    Args:
        manifest: The publication.
        table: Which of its tables to read.
        columns: Decode only these columns. The key is checked if all its columns are among them.
        checksum: Compare the checksums of the files, not only sizes and numbers of rows.

    Raises:
        DamagedError: A file is missing or altered, or the manifest names no file of this table.
        UnreadableError: A file cannot be read now.
        StoreError: The rows are not a table of this schema.
    """
    manifests.check_files(manifest, checksum=checksum)
    frames = []
    for entry in manifest.files:
        if entry.table != table.name:
            continue
        path = manifest.path.parent / entry.name
        try:
            frame = _read_parquet(path, table, columns)
        except pl.exceptions.PolarsError as e:
            raise manifests.DamagedError(manifest.path, f"{path}: cannot be read as a Parquet file ({e})") from e
        except OSError as e:
            raise manifests.UnreadableError(f"{path}: cannot be read ({e})") from e
        if frame.height != entry.rows:
            raise manifests.DamagedError(
                manifest.path, f"{path}: {frame.height} rows, but its manifest records {entry.rows}"
            )
        check_frame(frame, table, source=str(path), columns=columns)
        frames.append(frame)
    if not frames:
        raise manifests.DamagedError(manifest.path, f"{manifest.path}: names no {table.name} table")
    return pl.concat(frames)


def read_problems(
    manifest_path: Path,
    table: Table,
    *,
    problem_ids: Sequence[str],
    columns: Sequence[str],
    checksum: bool = False,
) -> pl.DataFrame:
    """Read the rows of some problems in one publication, without decoding the texts of the others.

    The key is not checked.

    Args:
        manifest_path: The manifest of the publication.
        table: Which of its tables to read.
        problem_ids: The problems.
        columns: Decode only these columns. Those that the file does not have because they were
            added later are null.
        checksum: Compare the checksums of the files, not only sizes.

    Raises:
        DamagedError: A file is missing or altered.
        UnreadableError: A file cannot be read now.
    """
    manifest = manifests.read_manifest(manifest_path)
    manifests.check_files(manifest, checksum=checksum)
    frames = [pl.DataFrame(schema={name: table.schema[name] for name in columns})]
    for path in (manifest_path.parent / entry.name for entry in manifest.files if entry.table == table.name):
        try:
            rows = parquet.scan([path])
            absent = set(columns) & table.added - set(parquet.column_names(path))
            # Polars filters first, so it decodes the texts of the matching rows only.
            rows = rows.filter(pl.col("problem_id").is_in(list(problem_ids)))
            rows = rows.with_columns(pl.lit(None, table.schema[name]).alias(name) for name in absent)
            frames.append(parquet.collect(rows.select(columns)))
        except pl.exceptions.PolarsError as e:
            raise manifests.DamagedError(manifest_path, f"{path}: cannot be read as a Parquet file ({e})") from e
        except OSError as e:
            raise manifests.UnreadableError(f"{path}: cannot be read ({e})") from e
    return pl.concat(frames)


def _read_parquet(path: Path, table: Table, columns: Sequence[str] | None) -> pl.DataFrame:
    """Read a file. Columns that it does not have because they were added later are null."""
    stored = parquet.column_names(path) if table.added else []
    missing = [column for column in table.schema if column in table.added and column not in stored]
    wanted = list(columns) if columns is not None else None
    if not missing:
        return parquet.read(path, columns=wanted)
    present = [column for column in wanted or stored if column not in missing]
    frame = parquet.read(path, columns=present)
    frame = frame.with_columns(pl.lit(None, table.schema[column]).alias(column) for column in missing)
    # Unknown columns stay at the end, so that `check_frame` names them.
    known = [column for column in table.schema if column in frame.columns]
    return frame.select(wanted or [*known, *(column for column in frame.columns if column not in known)])


def _empty(table: Table, columns: Sequence[str] | None) -> pl.DataFrame:
    frame = pl.DataFrame(schema=table.schema)
    return frame if columns is None else frame.select(columns)


def read_task(run: Path, key: TaskKey, table: Table, *, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read what one task published. Checksums are compared."""
    manifest = manifests.read_manifest(RunPaths(run).task_manifest(key))
    return read_manifest_table(manifest, table, columns=columns, checksum=True)


def read_tasks(
    run: Path, keys: Sequence[TaskKey], table: Table, *, columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """Read what several tasks published, in the order of the keys. Checksums are compared."""
    frames = [read_task(run, key, table, columns=columns) for key in keys]
    return pl.concat(frames) if frames else _empty(table, columns)


def task_of_manifest(path: Path) -> TaskKey | None:
    """The task that a manifest belongs to, or None if no task has a manifest with this name.

    This is the inverse of `RunPaths.task_manifest`. A copy such as `m0-p000 (copy).manifest.json`
    belongs to no task.
    """
    match = _MANIFEST.fullmatch(path.name)
    iteration, phase = phase_iteration(path.parent.name), path.parent.parent.name
    if match is None or iteration is None or phase not in PHASES:
        return None
    key = TaskKey(iteration, phase, match["model"], int(match["part"]))
    return key if path.name == RunPaths(Path()).task_manifest(key).name else None


def published_keys(run: Path, phases: Sequence[str] = PHASES) -> list[TaskKey]:
    """Keys of the published tasks of a run, in order: of all phases, or only of these.

    Only file names are read. Names that core_hpc does not write are ignored (`leftovers.py`).
    """
    folders = [folder for folder in _phase_folders(run, phases) if phase_iteration(folder.name) is not None]
    paths = [path for folder in folders for path in manifests.list_manifests(folder)]
    return sorted(key for path in paths if (key := task_of_manifest(path)) is not None)


def set_aside_names(run: Path) -> list[str]:
    """Paths, relative to the run, of the manifests that were set aside because of damage, sorted."""
    marked = f"{MANIFEST_SUFFIX}{manifests.SET_ASIDE}"
    return sorted(
        f"{folder.parent.name}/{folder.name}/{name}"
        for folder in _phase_folders(run, PHASES)
        for name in manifests.list_names(folder)
        if marked in name
    )


def _phase_folders(run: Path, phases: Sequence[str]) -> list[Path]:
    """What the folders of some phases contain: a folder per iteration, and perhaps what a user put there."""
    return [folder for phase in phases for folder in manifests.list_folder(run / phase)]


def read_rows(run: Path, table: Table, *, phases: Sequence[str], columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read the published rows of some phases in all iterations.

    Rows are ordered by task key. Sizes and numbers of rows are checked here. Checksums are compared
    by the tasks that read a file.
    """
    frames = []
    for key in published_keys(run):
        if key.phase in phases:
            manifest = manifests.read_manifest(RunPaths(run).task_manifest(key))
            frames.append(read_manifest_table(manifest, table, columns=columns))
    return pl.concat(frames) if frames else _empty(table, columns)
