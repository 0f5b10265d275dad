"""Helpers for tests of source groups: problems that are variants of one question."""

from __future__ import annotations

import polars as pl
import pytest


def grouped(frame: pl.DataFrame, times: int) -> pl.DataFrame:
    """Copy every problem `times` times under new names, with its copies in one source group.

    The result has no more information than the frame, so no interval may get narrower.
    """
    ids = pl.col("problem_id")
    return pl.concat(frame.with_columns(problem_id=ids + f"-{i}", source_group="problem_id") for i in range(times))


def assert_same_figures(one: pl.DataFrame, other: pl.DataFrame) -> None:
    """Assert that the estimates and intervals of two tables are equal, row by row."""
    assert one.height == other.height > 0
    for column in ("estimate", "low", "high"):
        assert one[column].is_null().to_list() == other[column].is_null().to_list(), column
        expected = pytest.approx(one[column].drop_nulls().to_list(), abs=1e-12)
        assert other[column].drop_nulls().to_list() == expected, column
    assert one["estimate"].null_count() < one.height
