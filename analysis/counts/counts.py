"""The counts that all metrics are computed from, and the arrays that the formulas take.

The input is rollout rows, without the columns that are slow to read (text and token ids). The
output is the counts of completions and of correct completions per problem, model, phase, iteration
and hint (`COUNTS`), and the `Panel`: arrays of shape (model, problem) for one phase and iteration.
The counts of answers, which votes need, have the schema `ANSWERS`.

This module opens no file and computes no metric. `counts/load.py` reads runs; it adds the
attributes of the problems (`schema.ATTRIBUTES`) to the counts as further columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from analysis.stats.estimators import IntArray
from core_hpc.common.errors import StoreError
from core_hpc.store.schema import EVALUATE, NO_ANSWER, RESCUE, TIMEOUT

BATCH_ROWS = 50_000
"""Approximate number of counts that `in_batches` uses at once."""

NEVER = int(np.iinfo(np.int64).max)
"""Value of `Panel.first` for a problem without a correct completion."""

KEYS = ("iteration", "phase", "model", "problem_id", "hint_given", "cold_failed", "teacher_model")
ANSWER_KEYS = ("iteration", "phase", "model", "problem_id", "answer", "correct")

FIGURES: dict[str, pl.Expr] = {
    "n": pl.len(),
    "c": pl.col("correct").sum(),
    "num_timeout": (pl.col("verdict") == TIMEOUT).sum(),
    "num_truncated": (pl.col("finish_reason") == "length").sum(),
    "num_no_answer": (pl.col("verdict") == NO_ANSWER).sum(),
    "first_correct": pl.when("correct").then("sample_index").min(),
}
"""The aggregated columns of `COUNTS`, computed over rollout rows with the same `KEYS`."""

ROW_COLUMNS = (*KEYS, "sample_index", "correct", "verdict", "finish_reason")
"""Columns of a rollout shard that `count_rows` needs."""

COUNTS = pl.Schema(
    {
        "iteration": pl.Int32(),
        "phase": pl.String(),
        "model": pl.String(),
        "problem_id": pl.String(),
        "hint_given": pl.Boolean(),
        "cold_failed": pl.Boolean(),  # rescue rows only, else null
        "teacher_model": pl.String(),  # rescue rows only, else null
        "n": pl.Int64(),  # completions, including those whose verification timed out
        "c": pl.Int64(),  # correct completions
        "num_timeout": pl.Int64(),  # completions whose verification timed out; they may be correct
        "num_truncated": pl.Int64(),  # completions that were cut at the token limit
        "num_no_answer": pl.Int64(),  # completions in which no answer was found
        "first_correct": pl.Int32(),  # smallest sample index of a correct completion; null: none
    }
)

ANSWERS = pl.Schema(
    {
        "iteration": pl.Int32(),
        "phase": pl.String(),  # cold or evaluate, because votes use completions without hints
        "model": pl.String(),
        "problem_id": pl.String(),
        "answer": pl.String(),  # canonical text; null: the completion has no answer
        "correct": pl.Boolean(),
        "n": pl.Int64(),  # completions with this answer
    }
)


NO_MODEL = pl.lit(None, pl.String())
"""The model in the counts of a held-out problem that no model has in an evaluation (`counts/load.py`). Its n is 0."""

RESCUE_PUBLISHED = "rescue_published"
"""A further column of the counts of a run: in cold rows, whether the rescue of this problem by this
model is published. Else null."""


@dataclass(frozen=True)
class Counted:
    """The counts of a set of rollout rows."""

    counts: pl.DataFrame  # schema COUNTS; with RESCUE_PUBLISHED if the rows were just read
    answers: pl.DataFrame  # schema ANSWERS


def count_rows(rows: pl.DataFrame, *, source: str = "rows") -> pl.DataFrame:
    """Count the rollout rows of one run.

    Args:
        rows: rollout rows with at least `ROW_COLUMNS`.
        source: where the rows come from, for the error message.

    Returns:
        A frame with the schema `COUNTS`, sorted by `KEYS`.

    Raises:
        StoreError: a completion outside the rescue phase has a hint. Counting it would make the
            model look better than it is.
    """
    hinted = rows.filter(pl.col("hint_given") & (pl.col("phase") != RESCUE))
    if hinted.height:
        where = hinted.select("iteration", "phase", "model", "problem_id").row(0)
        raise StoreError(
            f"{source}: {hinted.height} hinted completions outside the rescue phase; the first is of {where}"
        )
    return as_counts(rows.group_by(KEYS).agg(**FIGURES)).sort(KEYS)


def as_counts(frame: pl.DataFrame, *more: str) -> pl.DataFrame:
    """Select the columns of `COUNTS`, cast to their types, and further columns."""
    return frame.select(*(pl.col(name).cast(dtype) for name, dtype in COUNTS.items()), *more)


def as_answers(frame: pl.DataFrame) -> pl.DataFrame:
    """Select the columns of `ANSWERS`, cast to their types."""
    return frame.select(pl.col(name).cast(dtype) for name, dtype in ANSWERS.items())


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Counts of one phase and iteration, for the problems that all M models have.

    Shapes: M is the number of models, P the number of problems.
    """

    models: tuple[str, ...]
    problem_ids: npt.NDArray[np.str_]  # (P,), sorted
    n: IntArray  # (M, P) completions
    c: IntArray  # (M, P) correct completions
    first: IntArray  # (M, P) smallest sample index of a correct completion, or NEVER
    groups: IntArray | None  # (P,) codes of source groups; None: all problems are independent
    num_left_out: int  # problems that some model does not have; in an evaluation, also those that no model has

    @property
    def num_problems(self) -> int:
        return len(self.problem_ids)

    @property
    def note(self) -> str:
        """The number of problems that were left out, as text; empty when it is 0."""
        return f"{self.num_left_out} problems left out: not published for every model" if self.num_left_out else ""

    def restricted(self, problem_ids: npt.NDArray[np.str_]) -> Panel:
        """Return the panel of these problems only. All of them must be in this panel."""
        index = np.searchsorted(self.problem_ids, problem_ids)
        arrays = {name: getattr(self, name)[:, index] for name in ("n", "c", "first")}
        return replace(
            self, problem_ids=problem_ids, groups=None if self.groups is None else self.groups[index], **arrays
        )

    def of(self, models: Sequence[int]) -> Panel:
        """Return the panel of these models only. `models` are positions in `self.models`."""
        arrays = {name: getattr(self, name)[list(models)] for name in ("n", "c", "first")}
        return replace(self, models=tuple(self.models[m] for m in models), **arrays)


_OF_PANEL = ("model", "problem_id", "n", "c", "first_correct", "source_group")


def panel(counts: pl.DataFrame, *, models: Sequence[str], phase: str = EVALUATE, iteration: int) -> Panel:
    """Build the panel of one phase and iteration from counts (`COUNTS`).

    The panel has no problems when some model has no rows.
    """
    of_panel = [name for name in _OF_PANEL if name in counts.columns]
    here = counts.lazy().filter(pl.col("phase") == phase, pl.col("iteration") == iteration).select(of_panel).collect()
    figures = {"n": pl.col("n").sum(), "c": pl.col("c").sum(), "first": pl.col("first_correct").min()}
    per_model = [
        here.filter(pl.col("model") == model)
        .group_by("problem_id")
        .agg(**{f"{name}{i}": figure for name, figure in figures.items()})
        for i, model in enumerate(models)
    ]
    joined = per_model[0]
    for frame in per_model[1:]:
        joined = joined.join(frame, on="problem_id", how="inner")
    joined = joined.sort("problem_id")
    known = pl.col("model").is_in(list(models)) | pl.col("model").is_null()
    seen = here.filter(known)["problem_id"].n_unique()

    def array(name: str) -> IntArray:
        columns = [joined[f"{name}{i}"].cast(pl.Int64).fill_null(NEVER).to_numpy() for i in range(len(models))]
        return np.stack(columns)

    return Panel(
        models=tuple(models),
        problem_ids=np.array(joined["problem_id"].to_list(), dtype=np.str_),
        n=array("n"),
        c=array("c"),
        first=array("first"),
        groups=_groups(here, joined["problem_id"]),
        num_left_out=seen - joined.height,
    )


def _groups(counts: pl.DataFrame, problem_ids: pl.Series) -> IntArray | None:
    if "source_group" not in counts.columns or counts["source_group"].null_count() == counts.height:
        return None
    known = counts.group_by("problem_id").agg(pl.col("source_group").first())
    named = problem_ids.to_frame().join(known, on="problem_id", how="left", maintain_order="left")
    return group_codes(named["source_group"], named["problem_id"])


def group_codes(source_group: pl.Series, problem_id: pl.Series) -> IntArray:
    """Number the source groups of P problems.

    Returns:
        (P,) codes that start at 0. Problems of one source group have the same code. A problem
        without a source group has a code of its own.
    """
    frame = pl.DataFrame({"source_group": source_group, "problem_id": problem_id})
    # The key is a pair, because a source group may have the same name as a problem.
    alone = pl.when(pl.col("source_group").is_null()).then("problem_id")
    return (
        frame.select(pl.struct("source_group", alone.alias("alone")).rank("dense") - 1)
        .to_series()
        .cast(pl.Int64)
        .to_numpy()
    )


def paired(a: Panel, b: Panel) -> tuple[Panel, Panel]:
    """Restrict both panels to their common problems, in the same order."""
    common = np.intersect1d(a.problem_ids, b.problem_ids)
    return a.restricted(common), b.restricted(common)


def in_batches(counts: pl.DataFrame, work: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
    """Apply `work` to the rows of a few iterations at a time, which limits the memory.

    Args:
        counts: counts of one run.
        work: its result for several iterations is the results for each of them, one below the
            other.

    Returns:
        The results, one below the other, in ascending order of the iterations.
    """
    sizes = counts.group_by("iteration").len().sort("iteration")
    batch_of = sizes.with_columns(batch=pl.col("len").cum_sum() // BATCH_ROWS)
    batches = [part["iteration"].to_list() for part in batch_of.partition_by("batch", maintain_order=True)]
    if len(batches) < 2:
        return work(counts)
    return pl.concat([work(counts.filter(pl.col("iteration").is_in(batch))) for batch in batches], rechunk=True)


def models_of(counts: pl.DataFrame) -> list[str]:
    """Return the sorted names of all models with rows. Without a configuration this is the team."""
    return sorted(counts["model"].drop_nulls().unique().to_list())


def iterations_of(counts: pl.DataFrame, *, models: Sequence[str], phase: str = EVALUATE) -> list[int]:
    """Return the iterations in which every model has rows of this phase, in ascending order."""
    present = counts.lazy().filter((pl.col("phase") == phase) & pl.col("model").is_in(list(models)))
    # The lazy query does not copy the other columns of the rows.
    per_iteration = present.group_by("iteration").agg(pl.col("model").n_unique()).collect()
    return sorted(per_iteration.filter(pl.col("model") == len(models))["iteration"].to_list())
