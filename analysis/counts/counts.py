"""The sufficient statistics: completions and correct ones per problem, model, phase, iteration and hint; and answers.

In: rollout rows (only columns that are cheap to scan: no text, no token ids). Out: the counts frame (`COUNTS`), the
answer counts that votes need (`ANSWERS`), and `Panel`, the (model x problem) arrays of one phase and iteration on which
the formulae work. A reader of runs (data.py) adds what is known of the problems (`schema.ATTRIBUTES`) as further columns.
This module knows no formula of a metric and opens no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from analysis.stats.estimators import IntArray
from core_hpc.common.errors import StoreError
from core_hpc.store.schema import EVALUATE, RESCUE, TIMEOUT

NEVER = int(np.iinfo(np.int64).max)
"""`Panel.first` of a problem without a correct completion."""

KEYS = ("iteration", "phase", "model", "problem_id", "hint_given", "cold_failed", "teacher_model")
ANSWER_KEYS = ("iteration", "phase", "model", "problem_id", "answer", "correct")

FIGURES: dict[str, pl.Expr] = {
    "n": pl.len(),
    "c": pl.col("correct").sum(),
    "num_timeout": (pl.col("verdict") == TIMEOUT).sum(),
    "num_truncated": (pl.col("finish_reason") == "length").sum(),
    "first_correct": pl.when("correct").then("sample_index").min(),
}
"""The figures of `COUNTS`, over rollout rows with the same `KEYS`."""

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
        "n": pl.Int64(),  # completions, verification time-outs included
        "c": pl.Int64(),  # correct ones
        "num_timeout": pl.Int64(),  # completions whose verification timed out: not known to be wrong
        "num_truncated": pl.Int64(),  # completions cut at the token limit
        "first_correct": pl.Int32(),  # smallest sample index that is correct; null when none is
    }
)

ANSWERS = pl.Schema(
    {
        "iteration": pl.Int32(),
        "phase": pl.String(),  # cold and evaluate: votes are taken without hints
        "model": pl.String(),
        "problem_id": pl.String(),
        "answer": pl.String(),  # canonical; null: the completion had none
        "correct": pl.Boolean(),
        "n": pl.Int64(),  # completions with this answer
    }
)


@dataclass(frozen=True)
class Counted:
    """What rows are reduced to."""

    counts: pl.DataFrame  # COUNTS
    answers: pl.DataFrame  # ANSWERS


def count_rows(rows: pl.DataFrame, *, source: str = "rows") -> pl.DataFrame:
    """Counts (`COUNTS`, sorted) of the rollout rows of one run.

    Raises:
        StoreError: a hinted completion outside the rescue phase; it would count help as ability.
    """
    hinted = rows.filter(pl.col("hint_given") & (pl.col("phase") != RESCUE))
    if hinted.height:
        where = hinted.select("iteration", "phase", "model", "problem_id").row(0)
        raise StoreError(f"{source}: {hinted.height} hinted completions outside the rescue phase, the first in {where}")
    return as_counts(rows.group_by(KEYS).agg(**FIGURES)).sort(KEYS)


def as_counts(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns of `COUNTS` in their types."""
    return frame.select(pl.col(name).cast(dtype) for name, dtype in COUNTS.items())


@dataclass(frozen=True)
class Panel:
    """Counts of one phase and iteration, for the problems that every model of the team has."""

    models: tuple[str, ...]
    problem_ids: npt.NDArray[np.str_]  # (P,), sorted
    n: IntArray  # (M, P) completions
    c: IntArray  # (M, P) correct ones
    first: IntArray  # (M, P) smallest sample index that is correct; NEVER when none is
    groups: IntArray | None  # (P,) codes of the source groups; None: every problem is independent
    num_left_out: int  # problems that are missing for some model

    @property
    def num_problems(self) -> int:
        return len(self.problem_ids)

    @property
    def note(self) -> str:
        """Says what was left out; empty when nothing was."""
        return f"{self.num_left_out} problems left out: not published for every model" if self.num_left_out else ""

    def restricted(self, problem_ids: npt.NDArray[np.str_]) -> Panel:
        """The same panel for these problems only (each must be in it)."""
        index = np.searchsorted(self.problem_ids, problem_ids)
        arrays = {name: getattr(self, name)[:, index] for name in ("n", "c", "first")}
        return replace(
            self, problem_ids=problem_ids, groups=None if self.groups is None else self.groups[index], **arrays
        )

    def of(self, models: Sequence[int]) -> Panel:
        """The same panel for a part of the team, by position."""
        arrays = {name: getattr(self, name)[list(models)] for name in ("n", "c", "first")}
        return replace(self, models=tuple(self.models[m] for m in models), **arrays)


def panel(counts: pl.DataFrame, *, models: Sequence[str], phase: str = EVALUATE, iteration: int) -> Panel:
    """The panel of one phase and iteration; without problems when some model has none."""
    here = counts.filter((pl.col("phase") == phase) & (pl.col("iteration") == iteration))
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
    seen = here.filter(pl.col("model").is_in(list(models)))["problem_id"].n_unique()

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
    """(P,) codes from 0 on: equal for problems of one source group, and its own for each problem without one."""
    frame = pl.DataFrame({"source_group": source_group, "problem_id": problem_id})
    # A pair, not a text: a group may be called as some problem is.
    alone = pl.when(pl.col("source_group").is_null()).then("problem_id")
    return (
        frame.select(pl.struct("source_group", alone.alias("alone")).rank("dense") - 1)
        .to_series()
        .cast(pl.Int64)
        .to_numpy()
    )


def paired(a: Panel, b: Panel) -> tuple[Panel, Panel]:
    """Both panels for their common problems, in the same order."""
    common = np.intersect1d(a.problem_ids, b.problem_ids)
    return a.restricted(common), b.restricted(common)


def models_of(counts: pl.DataFrame) -> list[str]:
    """Names of all models with rows, sorted: the team, where no configuration names it."""
    return sorted(counts["model"].unique().to_list())


def iterations_of(counts: pl.DataFrame, *, models: Sequence[str], phase: str = EVALUATE) -> list[int]:
    """Iterations in which every model has some rows of this phase, ascending."""
    present = counts.filter((pl.col("phase") == phase) & pl.col("model").is_in(list(models)))
    per_iteration = present.group_by("iteration").agg(pl.col("model").n_unique())
    return sorted(per_iteration.filter(pl.col("model") == len(models))["iteration"].to_list())
