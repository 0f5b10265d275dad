"""Applies a table function separately to the problems of each data set, subject or level.

The input is a table function, and a frame of counts or answer counts with the attributes of the
problems. The output is the tables of all strata in one frame. This module knows no metric.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from core_hpc.store.schema import ATTRIBUTES


def stratified(table: Callable[[pl.DataFrame], pl.DataFrame], frame: pl.DataFrame, by: str) -> pl.DataFrame:
    """Compute a table for each value of an attribute.

    Args:
        table: function from counts, or answer counts, to a tidy frame, such as
            `lambda part: pass_at_k_table(part, ks=[1])`.
        frame: counts or answer counts of one run, with ATTRIBUTES.
        by: data_set, subject or level. Problems without a value are left out.

    Returns:
        The rows of all tables, with the additional first columns `by` and `value`.

    Raises:
        ValueError: the frame has no attribute `by`.
    """
    if by not in ATTRIBUTES or by not in frame.columns:
        known = ", ".join(name for name in ATTRIBUTES if name in frame.columns) or "none"
        raise ValueError(f"the problems have no attribute {by}; known attributes: {known}")
    parts = [(value, table(part)) for value, part in _strata(frame, by)] or [("", table(frame.clear()))]
    return pl.concat(
        part.select(pl.lit(by).alias("by"), pl.lit(value).alias("value"), pl.all()) for value, part in parts
    )


def _strata(frame: pl.DataFrame, by: str) -> list[tuple[str, pl.DataFrame]]:
    """Return the rows of each value of an attribute, sorted by value."""
    parts = frame.filter(pl.col(by).is_not_null()).partition_by(by, as_dict=True)
    return [(str(key[0]), parts[key]) for key in sorted(parts)]
