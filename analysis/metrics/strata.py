"""Any table by data set, subject or level of the problems.

In: a table function of a frame of counts or answers, and the frame with its attributes. Out: the table of each stratum,
one below the other. This module knows no metric.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from core_hpc.store.schema import ATTRIBUTES


def stratified(table: Callable[[pl.DataFrame], pl.DataFrame], frame: pl.DataFrame, by: str) -> pl.DataFrame:
    """The table of each value of an attribute, with leading columns `by` and `value`.

    Args:
        table: counts or answers to a tidy frame, such as `lambda part: pass_at_k_table(part, ks=[1])`.
        frame: counts or answers of one run, with ATTRIBUTES.
        by: data_set, subject or level. Problems without a value are in no stratum.

    Raises:
        ValueError: `by` is no attribute that the frame has.
    """
    if by not in ATTRIBUTES or by not in frame.columns:
        known = ", ".join(name for name in ATTRIBUTES if name in frame.columns) or "none"
        raise ValueError(f"the problems have no attribute {by}; known: {known}")
    parts = [(value, table(part)) for value, part in _strata(frame, by)] or [("", table(frame.clear()))]
    return pl.concat(
        part.select(pl.lit(by).alias("by"), pl.lit(value).alias("value"), pl.all()) for value, part in parts
    )


def _strata(frame: pl.DataFrame, by: str) -> list[tuple[str, pl.DataFrame]]:
    """The rows of each value of an attribute, values ascending."""
    parts = frame.filter(pl.col(by).is_not_null()).partition_by(by, as_dict=True)
    return [(str(key[0]), parts[key]) for key in sorted(parts)]
