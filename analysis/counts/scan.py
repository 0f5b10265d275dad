"""Published rollout shards to counts: one scan over all files, and the search for a row when something is wrong.

In: a run folder. Out: `Shard`s that a manifest names, a tally of their rows (`TALLY`: what counts are made of and what
integrity.py checks), answer counts. Only columns that are cheap to read are decoded, and never all rows at once.
Whether the tally is as it must be is decided in integrity.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from analysis.counts.counts import ANSWER_KEYS, ANSWERS, COUNTS, FIGURES, ROW_COLUMNS
from core_hpc.common.errors import StoreError
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import RESCUE, ROLLOUTS

T = TypeVar("T")
R = TypeVar("R")

NUM_THREADS = 32  # for manifests: they wait for the file system, not for the processor
NUM_SCANS = 8  # at once, of small files: one scan has few reads under way, and small files are mostly waited for
SMALL_ROWS = 20_000  # of a small file
FILES_PER_SCAN = 16

TALLY_KEYS = (
    "run_id",
    "iteration",
    "phase",
    "model",
    "problem_id",
    "hint_given",
    "cold_failed",
    "teacher_model",
    "gold",
)
_TALLIED = {
    **FIGURES,
    "last_index": pl.col("sample_index").max(),
    "sum_index": pl.col("sample_index").cast(pl.Int64).sum(),
}
_READ = list(dict.fromkeys((*TALLY_KEYS, *ROW_COLUMNS, *ANSWER_KEYS)))
TALLY = pl.Schema(
    {
        **{name: ROLLOUTS.schema[name] for name in TALLY_KEYS},
        **{name: COUNTS.get(name, pl.Int64()) for name in _TALLIED},
    }
)


@dataclass(frozen=True)
class Shard:
    """One published file of rollouts."""

    key: TaskKey
    manifest: Path
    path: Path
    num_rows: int


def in_threads(work: Callable[[T], R], items: Iterable[T], *, num_threads: int = NUM_THREADS) -> list[R]:
    """Results in order; for work that waits."""
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(work, items))


def list_shards(run: Path, keys: Sequence[TaskKey]) -> tuple[list[Shard], list[StoreError]]:
    """The rollout shards of published tasks, and what is wrong with those that cannot be used.

    A file's size is checked. Its checksum is not: the tasks that build on it check that.
    """
    paths = RunPaths(run)

    def open_shard(key: TaskKey) -> list[Shard] | StoreError:
        try:
            manifest = manifests.read_manifest(paths.task_manifest(key))
            manifests.check_files(manifest, checksum=False)
        except StoreError as e:
            return e
        folder = manifest.path.parent
        return [
            Shard(key, manifest.path, folder / f.name, f.rows or 0) for f in manifest.files if f.table == ROLLOUTS.name
        ]

    found = in_threads(open_shard, keys)
    return [s for shards in found if isinstance(shards, list) for s in shards], [
        e for e in found if isinstance(e, StoreError)
    ]


def tally(shards: Sequence[Shard]) -> pl.DataFrame:
    """One row for each value of `TALLY_KEYS`, with the `FIGURES` of counts and sums of sample indices.

    What stands in two shards, as it never should, may have two rows.

    Raises:
        StoreError: a file is not readable, or has another number of rows than its manifest says.
    """
    if not shards:
        return pl.DataFrame(schema=TALLY)
    total = pl.concat(_scan(shards, TALLY_KEYS, _TALLIED))
    if total["n"].sum() != sum(s.num_rows for s in shards):
        _name_the_damaged(shards)
    return total.select(pl.col(name).cast(dtype) for name, dtype in TALLY.items())


def count_answers(shards: Sequence[Shard]) -> pl.DataFrame:
    """How often each answer was given (`ANSWERS`) in shards of the un-hinted phases; others are not read."""
    unhinted = [s for s in shards if s.key.phase != RESCUE]
    if not unhinted:
        return pl.DataFrame(schema=ANSWERS)
    # No problem of a task is in two shards (integrity.py), so the parts have no key in common.
    frame = pl.concat(_scan(unhinted, ANSWER_KEYS, {"n": pl.len()}))
    return frame.select(pl.col(name).cast(dtype) for name, dtype in ANSWERS.items())


def _scan(shards: Sequence[Shard], keys: Sequence[str], figures: dict[str, pl.Expr]) -> list[pl.DataFrame]:
    small = sum(s.num_rows for s in shards) < SMALL_ROWS * len(shards)
    num_scans = max(1, min(NUM_SCANS, len(shards) // FILES_PER_SCAN)) if small else 1

    def one(paths: list[Path]) -> pl.DataFrame:
        rows = pl.scan_parquet(paths, hive_partitioning=False)
        return rows.group_by(keys).agg(**figures).collect(engine="streaming")

    try:
        return in_threads(
            one, [[s.path for s in shards[i::num_scans]] for i in range(num_scans)], num_threads=num_scans
        )
    except (pl.exceptions.PolarsError, OSError):
        _name_the_damaged(shards)
        raise


def _name_the_damaged(shards: Sequence[Shard]) -> None:
    for shard in shards:
        error = damage(shard)
        if error is not None:
            raise error


def damage(shard: Shard) -> StoreError | None:
    """What is wrong with the file itself: not readable, another number of rows, missing columns."""
    try:
        rows = pl.read_parquet(shard.path, columns=_READ, hive_partitioning=False).height
    except (pl.exceptions.PolarsError, OSError) as e:
        return manifests.DamagedError(shard.manifest, f"{shard.path}: not a readable shard of rollouts ({e})")
    if rows != shard.num_rows:
        return manifests.DamagedError(shard.manifest, f"{shard.path}: {rows} rows, its manifest says {shard.num_rows}")
    return None


def find_row(shards: Sequence[Shard], where: dict[str, Any], *, twice: bool = False) -> str:
    """`FILE: row N` of the first row with these values; with `twice`, of the first whose sample came before. Rows count from 0.

    Where there is no such row, the name of the first shard's manifest: that task should have made it.
    """
    wanted = pl.all_horizontal(pl.col(name).eq_missing(pl.lit(value)) for name, value in where.items())
    if twice:
        wanted &= ~pl.struct("run_id", "iteration", "phase", "model", "problem_id", "sample_index").is_first_distinct()
    for shard in shards:
        rows = pl.read_parquet(shard.path, columns=[*TALLY_KEYS, "sample_index"], hive_partitioning=False)
        at = rows.select(wanted.arg_true()).to_series()
        if at.len():
            return f"{shard.path}: row {at[0]}"
    return str(shards[0].manifest) if shards else "?"
