"""Scans of published rollout shards: tallies, answer counts, and the search for an incorrect row.

The input is a run folder. The output is the list of shards that the manifests name, a tally of
their rows (`TALLY`), and the answer counts. The tally has what `counts/counts.py` and
`counts/integrity.py` need. Only columns that are fast to read are decoded, and the rows of all
shards are never in memory at once.

This module does not decide whether a tally is correct; `counts/integrity.py` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from analysis.counts.counts import ANSWER_KEYS, ANSWERS, COUNTS, FIGURES, ROW_COLUMNS, as_answers
from core_hpc.common.errors import StoreError
from core_hpc.store import manifests, parquet
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import RESCUE, ROLLOUTS

T = TypeVar("T")
R = TypeVar("R")

NUM_THREADS = 32
"""Threads that read manifests. These threads mostly wait for the file system."""
NUM_SCANS = 8
"""Scans of small files that run at the same time. One scan reads few files in parallel, and the
time of small files is mostly waiting."""
SMALL_ROWS = 20_000
"""Mean number of rows of a file below which files are small."""
FILES_PER_SCAN = 16
"""Minimum number of small files per scan."""

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
TALLIED = {
    **FIGURES,
    "last_index": pl.col("sample_index").max(),
    "sum_index": pl.col("sample_index").cast(pl.Int64).sum(),
    "sum_squares": (pl.col("sample_index").cast(pl.Int64) ** 2).sum(),
}
_READ = list(dict.fromkeys((*TALLY_KEYS, *ROW_COLUMNS, *ANSWER_KEYS)))
TALLY = pl.Schema(
    {
        **{name: ROLLOUTS.schema[name] for name in TALLY_KEYS},
        **{name: COUNTS.get(name, pl.Int64()) for name in TALLIED},
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
    """Apply `work` to all items in threads and return the results in order. For work that waits."""
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(work, items))


def list_shards(run: Path, keys: Sequence[TaskKey], *, checksum: bool = False) -> tuple[list[Shard], list[StoreError]]:
    """List the rollout shards of published tasks.

    Args:
        run: the run folder.
        keys: keys of the tasks.
        checksum: also check the checksums of the files, not only their sizes. Analysis does not, because
            it would read whole files for a few columns, and the tasks that use the shards check them.

    Returns:
        The shards, and one error per task whose shards cannot be used.
    """
    paths = RunPaths(run)

    def open_shard(key: TaskKey) -> list[Shard] | StoreError:
        try:
            manifest = manifests.read_manifest(paths.task_manifest(key))
            manifests.check_files(manifest, checksum=checksum)
        except StoreError as e:
            return e
        folder = manifest.path.parent
        files = [f for f in manifest.files if f.table == ROLLOUTS.name]
        return [Shard(key, manifest.path, folder / f.name, f.rows or 0) for f in files]

    found = in_threads(open_shard, keys)
    shards = [shard for of_task in found if isinstance(of_task, list) for shard in of_task]
    errors = [error for error in found if isinstance(error, StoreError)]
    return shards, errors


def tally(shards: Sequence[Shard]) -> pl.DataFrame:
    """Aggregate the rows of shards.

    Returns:
        A frame with the schema `TALLY`: one row per value of `TALLY_KEYS`, with the `FIGURES` of
        the counts and the maximum and sum of the sample indices. A key that occurs in two shards
        may have two rows; this happens only when the shards are incorrect.

    Raises:
        StoreError: a file is not readable, or its number of rows differs from its manifest.
    """
    if not shards:
        return pl.DataFrame(schema=TALLY)
    total = pl.concat(_scan(shards, TALLY_KEYS, TALLIED))
    if total["n"].sum() != sum(s.num_rows for s in shards):
        _raise_if_damaged(shards)
    return total.select(pl.col(name).cast(dtype) for name, dtype in TALLY.items())


def count_answers(shards: Sequence[Shard]) -> pl.DataFrame:
    """Count the answers in the shards of the phases without hints (schema `ANSWERS`).

    Shards of the rescue phase are not read.
    """
    unhinted = [s for s in shards if s.key.phase != RESCUE]
    if not unhinted:
        return pl.DataFrame(schema=ANSWERS)
    # No problem of a task is in two shards (`counts/integrity.py` checks it), so the results of the
    # scans have no key in common.
    return as_answers(pl.concat(_scan(unhinted, ANSWER_KEYS, {"n": pl.len()})))


def num_scans(shards: Sequence[Shard]) -> int:
    """The number of scans that should run at the same time: several if the files are small."""
    return NUM_SCANS if sum(s.num_rows for s in shards) < SMALL_ROWS * len(shards) else 1


def _scan(shards: Sequence[Shard], keys: Sequence[str], figures: dict[str, pl.Expr]) -> list[pl.DataFrame]:
    num = max(1, min(num_scans(shards), len(shards) // FILES_PER_SCAN))

    def scan(paths: list[Path]) -> pl.DataFrame:
        rows = parquet.scan(paths)
        return parquet.collect(rows.group_by(keys).agg(**figures), streaming=True)

    batches = [[s.path for s in shards[i::num]] for i in range(num)]
    try:
        return in_threads(scan, batches, num_threads=num)
    except (pl.exceptions.PolarsError, OSError):
        _raise_if_damaged(shards)
        raise


def _raise_if_damaged(shards: Sequence[Shard]) -> None:
    """Raise an error that names the first damaged shard."""
    for shard in shards:
        error = damage(shard)
        if error is not None:
            raise error


def damage(shard: Shard) -> StoreError | None:
    """Check the file of a shard: it is readable, and has the right columns and number of rows.

    Returns:
        The error, or None when the file is correct.
    """
    try:
        rows = parquet.read(shard.path, columns=_READ).height
    except (pl.exceptions.PolarsError, OSError) as e:
        return manifests.DamagedError(shard.manifest, f"{shard.path}: not a readable shard of rollouts ({e})")
    if rows != shard.num_rows:
        what = f"{rows} rows, but {shard.num_rows} rows according to its manifest"
        return manifests.DamagedError(shard.manifest, f"{shard.path}: {what}")
    return None


def find_row(shards: Sequence[Shard], where: dict[str, Any], *, twice: bool = False) -> str:
    """Find the first row with these column values.

    Args:
        shards: the shards to search.
        where: column values of the row.
        twice: find the first row that repeats the sample of an earlier row.

    Returns:
        `FILE: row N`, where N counts from 0. If there is no such row, the manifest of the first
        shard, whose task should have written it.
    """
    wanted = pl.all_horizontal(pl.col(name).eq_missing(pl.lit(value)) for name, value in where.items())
    if twice:
        wanted &= ~pl.struct("run_id", "iteration", "phase", "model", "problem_id", "sample_index").is_first_distinct()
    for shard in shards:
        rows = parquet.read(shard.path, columns=[*TALLY_KEYS, "sample_index"])
        at = rows.select(wanted.arg_true()).to_series()
        if at.len():
            return f"{shard.path}: row {at[0]}"
    return str(shards[0].manifest) if shards else "?"
