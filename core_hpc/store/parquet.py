"""Open Parquet files: the only module that calls the readers of Polars.

In: paths. Out: frames. Polars would read `*`, `?` and `[` in a path as a pattern, and
`iteration=0001` as a column. Here a path is the name of one file, whatever characters it has.
Schemas and manifests are checked in `shards.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl


def read(path: Path, *, columns: Sequence[str] | None = None, num_rows: int | None = None) -> pl.DataFrame:
    """Read a file.

    Args:
        path: The file.
        columns: Decode only these columns.
        num_rows: Read at most this many rows.

    Raises:
        polars.exceptions.PolarsError: The file is not a Parquet file, or a column is missing.
        OSError: The file cannot be opened.
    """
    wanted = list(columns) if columns is not None else None
    return pl.read_parquet(path, columns=wanted, n_rows=num_rows, hive_partitioning=False, glob=False)


def scan(paths: Sequence[Path]) -> pl.LazyFrame:
    """Scan files with the same columns. They are opened when the result is collected."""
    return pl.scan_parquet(list(paths), hive_partitioning=False, glob=False)


def column_names(path: Path) -> list[str]:
    """Names of the columns of a file. Only its footer is read. Errors as in `read`."""
    return scan([path]).collect_schema().names()
