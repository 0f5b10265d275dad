"""What the tests of analysis share about source groups: problems that are variants of one question. No test here."""

from __future__ import annotations

import polars as pl
import pytest


def grouped(frame: pl.DataFrame, times: int) -> pl.DataFrame:
    """Every problem `times` times under other names, its copies in one source group: nothing is known that was not before."""
    copies = [
        frame.with_columns(problem_id=pl.col("problem_id") + f"-{i}", source_group="problem_id") for i in range(times)
    ]
    return pl.concat(copies)


def assert_same_figures(one: pl.DataFrame, other: pl.DataFrame) -> None:
    """Equal estimates and intervals, row by row."""
    assert one.height == other.height > 0
    for column in ("estimate", "low", "high"):
        assert one[column].is_null().to_list() == other[column].is_null().to_list(), column
        assert other[column].drop_nulls().to_list() == pytest.approx(one[column].drop_nulls().to_list(), abs=1e-12), (
            column
        )
    assert one["estimate"].null_count() < one.height
