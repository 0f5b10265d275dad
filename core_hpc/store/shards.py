"""Write and read the Parquet shards of a run: what is published, as checked Polars frames.

In: run folders. Out: frames with exactly the columns of schema.py. Only files that a manifest names are opened.
Nothing here decides what is to be done (state.py) or computes statistics (analysis).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from core_hpc.store import manifests
from core_hpc.store.manifests import Manifest
from core_hpc.store.paths import MANIFEST_SUFFIX, RunPaths, TaskKey
from core_hpc.store.schema import PHASES, Table, check_frame

ROW_GROUP_BYTES = 32 << 20


def write_frame(path: Path, frame: pl.DataFrame, table: Table) -> tuple[int, str]:
    """Write one Parquet file; returns (rows, table name) for its manifest."""
    check_frame(frame, table, source=str(path))
    bytes_a_row = max(1, int(frame.estimated_size()) // max(1, frame.height))
    frame.write_parquet(path, compression="zstd", row_group_size=max(1000, ROW_GROUP_BYTES // bytes_a_row))
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
    """The rows of a table in one publication. With `columns`, only these are decoded (and the key is not checked)."""
    manifests.check_files(manifest, checksum=checksum)
    frames = []
    for entry in manifest.files:
        if entry.table != table.name:
            continue
        path = manifest.path.parent / entry.name
        try:
            frame = pl.read_parquet(
                path, columns=list(columns) if columns is not None else None, hive_partitioning=False
            )
        except (pl.exceptions.PolarsError, OSError) as e:
            raise manifests.DamagedError(manifest.path, f"{path}: not a readable Parquet file ({e})") from e
        if frame.height != entry.rows:
            raise manifests.DamagedError(manifest.path, f"{path}: {frame.height} rows, its manifest says {entry.rows}")
        if columns is None:
            check_frame(frame, table, source=str(path))
        frames.append(frame)
    return pl.concat(frames) if frames else _empty(table, columns)


def _empty(table: Table, columns: Sequence[str] | None) -> pl.DataFrame:
    frame = pl.DataFrame(schema=table.schema)
    return frame if columns is None else frame.select(columns)


def read_task(run: Path, key: TaskKey, table: Table, *, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """What one task published, fully checked (checksum included)."""
    manifest = manifests.read_manifest(RunPaths(run).task_manifest(key))
    return read_manifest_table(manifest, table, columns=columns, checksum=True)


def read_tasks(
    run: Path, keys: Sequence[TaskKey], table: Table, *, columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """What several tasks published, in the order of the keys."""
    frames = [read_task(run, key, table, columns=columns) for key in keys]
    return pl.concat(frames) if frames else _empty(table, columns)


def key_of_manifest(path: Path) -> TaskKey:
    """The task that a manifest belongs to; inverse of RunPaths.task_manifest."""
    model, _, part = path.name.removesuffix(MANIFEST_SUFFIX).rpartition("-p")
    return TaskKey(int(path.parent.name.partition("=")[2]), path.parent.parent.name, model, int(part))


def published_keys(run: Path) -> list[TaskKey]:
    """Keys of all published tasks of a run, in order. Looks at names only."""
    folders = [folder for phase in PHASES for folder in (run / phase).glob("iteration=*")]
    return sorted(key_of_manifest(path) for folder in folders for path in manifests.list_manifests(folder))


def read_rows(run: Path, table: Table, *, phases: Sequence[str], columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Published rows of these phases over all iterations, in the order of their task keys.

    Files are checked by size and row count; their checksums are checked by the tasks that build on them.
    """
    frames = []
    for key in published_keys(run):
        if key.phase in phases:
            manifest = manifests.read_manifest(RunPaths(run).task_manifest(key))
            frames.append(read_manifest_table(manifest, table, columns=columns))
    return pl.concat(frames) if frames else _empty(table, columns)
