"""Fast counts of tasks whose rows are exactly what the configuration asks for.

The input is the published shards of one model, phase and iteration, and the problems of these
tasks. The output is their counts, or None if any row is missing, added or altered.

Nearly all tasks are correct, and for them this is faster than the general `scan.tally`: the rows are
grouped by the columns that may differ, outside the rescue phase by the problem alone. Every other
key column has one correct value, with which all its rows are compared in the same pass. This module
does not find the incorrect row. The caller counts the shards again with `scan.tally`, and
`integrity.findings` names the row.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from analysis.counts.counts import COUNTS, RESCUE_PUBLISHED, as_answers, as_counts
from analysis.counts.integrity import whole
from analysis.counts.scan import TALLIED, Shard
from core_hpc.store import parquet
from core_hpc.store.schema import RESCUE

_OF_HINTS = {"hint_given": False, "cold_failed": None, "teacher_model": None}
"""Key columns that vary only in the rescue phase, and their values in the other phases."""


def count_whole(
    shards: Sequence[Shard], expected: pl.DataFrame, *, run_id: str, num_samples: pl.Expr
) -> pl.DataFrame | None:
    """Count the rows of correct tasks.

    Args:
        shards: the shards of all published tasks of one model, phase and iteration.
        expected: the problems of these tasks; the results of `TaskProblems.of`.
        run_id: the run that all rows must belong to.
        num_samples: completions per problem, as an expression on the column `problem_id`.

    Returns:
        The columns `COUNTS` and RESCUE_PUBLISHED. None if a file is not readable, or if any row is
        not as expected.
    """
    may_hint = shards[0].key.phase == RESCUE
    constants = {"run_id": run_id, **_labels(shards[0]), **({} if may_hint else _OF_HINTS)}
    keys = ["problem_id", *(_OF_HINTS if may_hint else ())]
    is_right = [pl.col(name).eq_missing(pl.lit(value)) for name, value in constants.items()]
    golds = {"least_gold": pl.col("gold").min(), "greatest_gold": pl.col("gold").max()}
    rows = parquet.scan([s.path for s in shards]).filter(*is_right, pl.col("gold").is_not_null())
    try:
        found = parquet.collect(rows.group_by(keys).agg(**golds, **TALLIED), streaming=True)
    except (pl.exceptions.PolarsError, OSError):
        return None
    known = found.join(expected, on="problem_id")
    # Rows that are not right were filtered out, so that their number is missing here.
    all_rows = known["n"].sum() == sum(s.num_rows for s in shards)
    all_problems = may_hint or known.height == expected.height
    same_gold = pl.all_horizontal(pl.col(name) == pl.col("expected_gold") for name in golds)
    samples = _totals(known) if may_hint else known
    is_correct = known.select(same_gold.all()).item() and samples.select(whole(num_samples).all()).item()
    if not (all_rows and all_problems and is_correct):
        return None
    labels = {name: pl.lit(value) for name, value in constants.items() if name in COUNTS}
    return as_counts(known.with_columns(**labels), RESCUE_PUBLISHED)


def _totals(rows: pl.DataFrame) -> pl.DataFrame:
    """Combine the rows of a problem, hinted or not."""
    return rows.group_by("problem_id").agg(pl.col("n", "sum_index", "sum_squares").sum(), pl.col("last_index").max())


def count_answers_of_whole(shards: Sequence[Shard]) -> pl.DataFrame | None:
    """Count the answers in shards for which `count_whole` has found that they are correct.

    Returns:
        A frame with the schema `ANSWERS`. None if a file is not readable: `count_whole` does not
        read the answers.
    """
    rows = parquet.scan([s.path for s in shards])
    try:
        counted = rows.group_by("problem_id", "answer", "correct").agg(n=pl.len())
        frame = parquet.collect(counted, streaming=True)
    except (pl.exceptions.PolarsError, OSError):
        return None
    return as_answers(frame.with_columns(**{name: pl.lit(value) for name, value in _labels(shards[0]).items()}))


def _labels(shard: Shard) -> dict[str, str | int]:
    return {"iteration": shard.key.iteration, "phase": shard.key.phase, "model": shard.key.model}
