"""The sufficient statistic: how many completions, how many correct, per problem, model, phase, iteration and hint.

In: rollout rows (only columns that are cheap to scan: no text, no token ids). Out: the counts frame (`COUNTS`), and
`Panel`, the (model x problem) arrays of one phase and iteration on which the formulae work.
This module knows no formula of a metric and opens no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from core_hpc.errors import StoreError
from core_hpc.schema import EVALUATE, RESCUE, TIMEOUT

IntArray = npt.NDArray[np.int64]

_KEYS = ("iteration", "phase", "model", "problem_id", "hint_given", "cold_failed", "teacher_model")

ROW_COLUMNS = (*_KEYS, "correct", "verdict", "finish_reason")
"""Columns of a rollout shard that counting needs."""

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
    }
)


def count_rows(rows: pl.DataFrame, *, source: str = "rows") -> pl.DataFrame:
    """Counts (`COUNTS`, sorted) of the rollout rows of one run.

    Raises:
        StoreError: a hinted completion outside the rescue phase; it would count help as ability.
    """
    hinted = rows.filter(pl.col("hint_given") & (pl.col("phase") != RESCUE))
    if hinted.height:
        where = hinted.select("iteration", "phase", "model", "problem_id").row(0)
        raise StoreError(f"{source}: {hinted.height} hinted completions outside the rescue phase, the first in {where}")
    counts = rows.group_by(_KEYS).agg(
        n=pl.len(),
        c=pl.col("correct").sum(),
        num_timeout=(pl.col("verdict") == TIMEOUT).sum(),
        num_truncated=(pl.col("finish_reason") == "length").sum(),
    )
    return counts.select(pl.col(name).cast(dtype) for name, dtype in COUNTS.items()).sort(_KEYS)


@dataclass(frozen=True)
class Panel:
    """Counts of one phase and iteration, for the problems that every model of the team has."""

    models: tuple[str, ...]
    problem_ids: npt.NDArray[np.str_]  # (P,), sorted
    n: IntArray  # (M, P) completions
    c: IntArray  # (M, P) correct ones
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
        return replace(self, problem_ids=problem_ids, n=self.n[:, index], c=self.c[:, index])


def panel(counts: pl.DataFrame, *, models: Sequence[str], phase: str = EVALUATE, iteration: int) -> Panel:
    """The panel of one phase and iteration; without problems when some model has none."""
    here = counts.filter((pl.col("phase") == phase) & (pl.col("iteration") == iteration))
    per_model = [
        here.filter(pl.col("model") == model).group_by("problem_id").agg(pl.col("n").sum().alias(f"n{i}"), pl.col("c").sum().alias(f"c{i}"))
        for i, model in enumerate(models)
    ]
    joined = per_model[0]
    for frame in per_model[1:]:
        joined = joined.join(frame, on="problem_id", how="inner")
    joined = joined.sort("problem_id")
    seen = here.filter(pl.col("model").is_in(list(models)))["problem_id"].n_unique()
    return Panel(
        models=tuple(models),
        problem_ids=np.array(joined["problem_id"].to_list(), dtype=np.str_),
        n=np.stack([joined[f"n{i}"].to_numpy() for i in range(len(models))]).astype(np.int64),
        c=np.stack([joined[f"c{i}"].to_numpy() for i in range(len(models))]).astype(np.int64),
        num_left_out=seen - joined.height,
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
