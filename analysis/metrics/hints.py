"""Effects of hints: uplift by leak, reliance on the hint, and who teaches whom.

The input is the counts, the hints and the scores of one run. The output is tidy frames. The rates
are those of `metrics/rescue.py`, which defines cases and the control.

Reliance compares the log-probability of a correct rescue without the hint and with it (METHOD.md
section 9.6): the mean per token on the plain prompt minus that on the hinted prompt, near 0 for a
completion that needs no hint and negative for one that does. A rollout records only the prompt that
it was sampled with, so the shards of completions do not have it. The update measures it, and its
steps record the mean of each step. It is read from there: by student and without an interval over
problems, and absent for runs whose steps do not have the column. This module does not run a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from analysis.counts.counts import group_codes
from analysis.metrics import rescue
from analysis.stats.estimators import FloatArray, IntArray
from analysis.stats.intervals import (
    ESTIMATE_COLUMNS,
    Estimate,
    divide,
    from_draws,
    resampled_means,
    share,
    undefined,
)
from core_hpc.store.paths import TEAM
from core_hpc.store.schema import LEAK_ANYWHERE, LEAK_NONE, LEAK_RESULT, LEAKS, STEPS, UPDATE
from core_hpc.store.shards import read_rows

ALL = "all"
LEAK_CONTRAST = f"{LEAK_RESULT} - {LEAK_NONE}"
RELIANCE = "reliance"
EFFECTS = {
    rescue.PER_ATTEMPT: rescue.RATES[rescue.PER_ATTEMPT],
    rescue.CONTROL: rescue.RATES[rescue.CONTROL],
    rescue.UPLIFT: "per_attempt - control",
    rescue.LEAK_SHARE: "cases of this leak / cases with a hint",
    RELIANCE: "mean log-probability per token of the correct rescues, without the hint minus with it (nats)",
}
LEAK_NAMES = {
    ALL: "all hints",
    LEAK_NONE: "without the gold answer",
    LEAK_ANYWHERE: "gold answer as a value",
    LEAK_RESULT: "gold answer as a result",
    LEAK_CONTRAST: "as a result minus without",
}
HINT_TABLE = pl.Schema(
    {
        "student": pl.String(),  # a model, or TEAM
        "leak": pl.String(),  # a key of LEAK_NAMES
        "measure": pl.String(),  # a key of EFFECTS
        "cases": pl.Int64(),  # cases with a hint of this leak; of a difference: of both kinds
        **ESTIMATE_COLUMNS,
    }
)
TEACHING_TABLE = pl.Schema(
    {
        "teacher": pl.String(),
        "student": pl.String(),
        "measure": pl.String(),  # UPLIFT, PER_CASE, TAUGHT_SHARE or RESCUES
        "numerator": pl.Int64(),
        "denominator": pl.Int64(),
        **ESTIMATE_COLUMNS,
    }
)
TAUGHT_SHARE, RESCUES = "taught_share", "rescues"
TEACHING = {
    rescue.UPLIFT: "per_attempt - control of the cases of this teacher and student",
    rescue.PER_CASE: rescue.RATES[rescue.PER_CASE],
    TAUGHT_SHARE: "cases of the student with a hint of this teacher / all its cold-failed cases",
    RESCUES: "cases of the student rescued by this teacher / all its rescued cases",
}
_KEY = ("iteration", "model", "problem_id")
_CASE = ("iteration", "student", "problem_id")


def load_reliance(run: Path) -> pl.DataFrame:
    """Read the mean reliance of the correct hinted rescues of every iteration.

    Returns:
        Columns iteration, model (the student) and reliance, the mean over the optimizer steps with
        such rescues.
    """
    rows = read_rows(run, STEPS, phases=[UPDATE], columns=["iteration", "model", RELIANCE])
    known = rows.with_columns(pl.col(RELIANCE).fill_nan(None)).drop_nulls(RELIANCE)
    return known.group_by("iteration", "model").agg(pl.col(RELIANCE).mean()).sort("iteration", "model")


# --- by leak -------------------------------------------------------------------------------------


def hint_table(
    counts: pl.DataFrame,
    *,
    hints: pl.DataFrame,
    reliance: pl.DataFrame | None = None,
    models: Sequence[str] | None = None,
) -> pl.DataFrame:
    """Compute uplift, leak share and reliance of each student, by how the hint shows the answer.

    Args:
        counts: counts of one run.
        hints: the hints of the run (`load.load_hints`). Hints without a value of `leak` (runs of an
            earlier version) count only in the rows of all hints.
        reliance: the result of `load_reliance`; None: no rows of reliance.
        models: the students; default: all that have cases.

    Returns:
        A frame with the schema `HINT_TABLE`. Shares and the uplift are fractions, reliance is in
        nats per token and has no interval. The leak `result - none` has the difference of the uplifts with a bootstrap
        interval; both uplifts are of the same problems in every draw.
    """
    cases = _cases(counts, hints)
    students = list(models) if models is not None else cases["student"].unique().sort().to_list()
    rows: list[dict[str, Any]] = []
    for student in dict.fromkeys([TEAM, *students]):
        own = cases if student == TEAM else cases.filter(student=student)
        relied = None if reliance is None else _reliance_row(own, reliance, student)
        found = [*_student_rows(own), *([relied] if relied else [])] if own.height else []
        rows += [{"student": student, **row} for row in found]
    return pl.DataFrame(rows, schema=HINT_TABLE)


def _cases(counts: pl.DataFrame, hints: pl.DataFrame) -> pl.DataFrame:
    """The cases with a hint, with the column `leak`."""
    cases = rescue.cases_of(counts).filter(pl.col("teacher").is_not_null())
    leaks = hints.rename({"model": "student"}).select(*_CASE, "leak")
    return cases.join(leaks, on=_CASE, how="left", validate="1:1")


def _student_rows(cases: pl.DataFrame) -> list[dict[str, Any]]:
    rows = []
    known = [leak for leak in LEAKS if leak in set(cases["leak"])]
    for leak in [ALL, *known]:
        own = cases if leak == ALL else cases.filter(leak=leak)
        found = _rates(own)
        if leak != ALL:
            found[rescue.LEAK_SHARE] = _share_of(cases, pl.col("leak") == leak, pl.col("leak").is_not_null())
        rows += [{"leak": leak, "measure": m, "cases": own.height, **e.row()} for m, e in found.items()]
    if {LEAK_NONE, LEAK_RESULT} <= set(known):
        both = cases.filter(pl.col("leak").is_in([LEAK_RESULT, LEAK_NONE]))
        rows.append({"leak": LEAK_CONTRAST, "measure": rescue.UPLIFT, "cases": both.height, **_contrast(both).row()})
    return rows


def _rates(cases: pl.DataFrame) -> dict[str, Estimate]:
    columns, groups = _per_problem(cases, [pl.col(name).sum() for name in _SUMS])
    hinted_c, hinted_n, control_c, control_n = columns.T
    return {
        rescue.PER_ATTEMPT: share(hinted_c, hinted_n, groups=groups),
        rescue.CONTROL: share(control_c, control_n, groups=groups),
        rescue.UPLIFT: rescue.uplift_of(columns[None], groups),
    }


_SUMS = ("hinted_c", "hinted_n", "control_c", "control_n")


def _per_problem(rows: pl.DataFrame, sums: Sequence[pl.Expr]) -> tuple[FloatArray, IntArray]:
    """Sums per problem as an array (P, F), and the codes of the source groups (P,)."""
    named = [expression.cast(pl.Float64).alias(f"x{i}") for i, expression in enumerate(sums)]
    found = rows.group_by("problem_id").agg(*named, pl.col("source_group").first()).sort("problem_id")
    columns = found.select(f"x{i}" for i in range(len(sums))).to_numpy()
    return columns, group_codes(found["source_group"], found["problem_id"])


def _difference(means: FloatArray) -> FloatArray:
    hinted_c, hinted_n, control_c, control_n = np.moveaxis(means, -1, 0)
    return divide(hinted_c, hinted_n) - divide(control_c, control_n)


def _contrast(cases: pl.DataFrame) -> Estimate:
    """Uplift of hints that show the answer as a result, minus that of hints without the answer.

    The interval is a bootstrap. In simulated studies in which few completions are correct it covers in 90 to 95 %;
    one made from the intervals of the two uplifts covers in 96 to 100 %, and is up to four times as wide.

    cases: the cases with a hint of one of these two kinds.
    """
    sums = [pl.col(name).filter(pl.col("leak") == leak).sum() for leak in (LEAK_RESULT, LEAK_NONE) for name in _SUMS]
    columns, groups = _per_problem(cases, sums)

    def contrast(means: FloatArray) -> FloatArray:
        difference: FloatArray = _difference(means[..., :4]) - _difference(means[..., 4:])
        return difference

    value = float(contrast(columns.mean(axis=0)))
    draws = contrast(resampled_means(columns, groups))
    return from_draws(value, draws, num_problems=len(columns), groups=groups)


def _share_of(rows: pl.DataFrame, numerator: pl.Expr, denominator: pl.Expr) -> Estimate:
    columns, groups = _per_problem(rows, [(numerator & denominator).sum(), denominator.sum()])
    return share(columns[:, 0], columns[:, 1], groups=groups)


def _reliance_row(cases: pl.DataFrame, reliance: pl.DataFrame, student: str) -> dict[str, Any] | None:
    """Mean reliance over iterations; None if the student has none."""
    own = reliance if student == TEAM else reliance.filter(model=student)
    values = own.group_by("iteration").agg(pl.col(RELIANCE).mean())[RELIANCE].to_list()
    if not values:
        return None
    note = "reliance has no interval, because the steps record means"
    estimate = Estimate(sum(values) / len(values), None, None, cases["problem_id"].n_unique(), note)
    return {"leak": ALL, "measure": RELIANCE, "cases": cases.height, **estimate.row()}


# --- who teaches whom ----------------------------------------------------------------------------


def teaching_table(counts: pl.DataFrame, *, models: Sequence[str] | None = None) -> pl.DataFrame:
    """Compute what each teacher achieves with each student.

    Args:
        counts: counts of one run.
        models: the team; default: all models that teach or have cases.

    Returns:
        A frame with the schema `TEACHING_TABLE` with the measures of `TEACHING`, for every pair of
        different models. A pair without a hint has undefined rates and the shares 0. Intervals are
        clustered by problem over iterations.
    """
    cases = rescue.cases_of(counts)
    names = [name for column in ("teacher", "student") for name in cases[column].drop_nulls().unique().to_list()]
    models = list(models) if models is not None else sorted(set(names))
    rows: list[dict[str, Any]] = []
    for teacher in models:
        for student in models:
            own = cases.filter(student=student)
            if teacher != student and own.height:
                rows += [{"teacher": teacher, "student": student, **row} for row in _pair_rows(own, teacher)]
    return pl.DataFrame(rows, schema=TEACHING_TABLE)


def _pair_rows(of_student: pl.DataFrame, teacher: str) -> list[dict[str, Any]]:
    """The rows of one teacher. of_student: all cases of the student."""
    is_pair = (pl.col("teacher") == teacher).fill_null(False)
    pair, rescued = of_student.filter(is_pair), pl.col("hinted_c") > 0
    columns, groups = _per_problem(pair, [pl.col(name).sum() for name in _SUMS])
    uplift = (
        rescue.uplift_of(columns[None], groups)
        if pair.height
        else undefined(0, "no hint of this teacher for this student")
    )
    found = {
        rescue.UPLIFT: (int(columns[:, 0].sum()), int(columns[:, 1].sum()), uplift),
        rescue.PER_CASE: _counted(pair, rescued, pl.col("hinted_n") > 0),
        TAUGHT_SHARE: _counted(of_student, is_pair, pl.lit(True)),
        RESCUES: _counted(of_student, is_pair & rescued, rescued),
    }
    return [
        {"measure": measure, "numerator": numerator, "denominator": denominator, **estimate.row()}
        for measure, (numerator, denominator, estimate) in found.items()
    ]


def _counted(rows: pl.DataFrame, numerator: pl.Expr, denominator: pl.Expr) -> tuple[int, int, Estimate]:
    within = rows.filter(denominator)
    top, bottom = within.filter(numerator).height, within.height
    if not bottom:
        return top, bottom, undefined(0, "denominator is 0")
    columns, groups = _per_problem(within, [numerator.sum(), pl.len()])
    return top, bottom, share(columns[:, 0], columns[:, 1], groups=groups)


def teaching_matrix(table: pl.DataFrame, measure: str, *, models: Sequence[str]) -> pl.DataFrame:
    """Arrange one measure as a matrix: a column `teacher`, and one column for each student."""
    cells = {(r["teacher"], r["student"]): r["estimate"] for r in table.filter(measure=measure).iter_rows(named=True)}
    schema = {"teacher": pl.String(), **dict.fromkeys(models, pl.Float64())}
    return pl.DataFrame([{"teacher": t, **{s: cells.get((t, s)) for s in models}} for t in models], schema=schema)
