"""Open Parquet files: the only module that calls the readers of Polars.

In: paths. Out: frames. Polars would read `*`, `?` and `[` in a path as a pattern, and
`iteration=0001` as a column. Here a path is the name of one file, whatever characters it has. Damage
that makes Polars panic is an error like other damage; its exception would pass `except Exception`.
A few altered bytes (0.06 % in an experiment with every byte of a small file) make Polars ask for so
much memory that the process is aborted. Processes that must not end, such as a controller, therefore
check the checksum first. Schemas and manifests are checked in `shards.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
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
    with _panics_as_errors():
        return pl.read_parquet(path, columns=wanted, n_rows=num_rows, hive_partitioning=False, glob=False)


def scan(paths: Sequence[Path]) -> pl.LazyFrame:
    """Scan files with the same columns. They are opened by `collect`."""
    return pl.scan_parquet(list(paths), hive_partitioning=False, glob=False)


def collect(rows: pl.LazyFrame, *, streaming: bool = False) -> pl.DataFrame:
    """The rows of a scan. Errors as in `read`."""
    with _panics_as_errors():
        return rows.collect(engine="streaming" if streaming else "auto")


def column_names(path: Path) -> list[str]:
    """Names of the columns of a file. Only its footer is read. Errors as in `read`."""
    with _panics_as_errors():
        return scan([path]).collect_schema().names()


@contextlib.contextmanager
def _panics_as_errors() -> Iterator[None]:
    try:
        yield
    except pl.exceptions.PanicException as e:
        raise pl.exceptions.ComputeError(f"Polars failed inside the file: {e}") from e
