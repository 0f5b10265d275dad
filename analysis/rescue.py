"""Does a peer's hint help a model that failed without it? Rates named by their denominator, and the control.

In: the counts of one run. Out: one tidy frame. A *case* is a model and a problem of an iteration on which the model had
no correct cold completion. The control are rescue completions of such cases that saw no hint (hint dropout draws them at
random): what resampling alone would have done. This module reads no file and formats nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from analysis.estimators import FloatArray
from analysis.intervals import ESTIMATE_COLUMNS, Estimate, divide, from_draws, resampled_means, share, undefined
from core_hpc.schema import COLD, RESCUE

PER_ATTEMPT, PER_CASE, CONTROL, UPLIFT, RECOVERY = "per_attempt", "per_case", "control", "uplift", "recovery"
RATES = {
    PER_ATTEMPT: "correct hinted rescue completions / hinted rescue completions of cold-failed cases",
    CONTROL: "correct un-hinted rescue completions / un-hinted rescue completions of cold-failed cases",
    UPLIFT: "per_attempt - control",
    PER_CASE: "cases with a correct hinted rescue completion / cases with a hinted rescue completion",
    RECOVERY: "cases with a correct hinted rescue completion / all cold-failed cases, those without a hint included",
}
GROUPS = {"all": (), "student": ("student",), "pair": ("teacher", "student"), "iteration": ("iteration",)}

RESCUE_TABLE = pl.Schema(
    {
        "group": pl.String(), "teacher": pl.String(), "student": pl.String(), "iteration": pl.Int32(), "rate": pl.String(),
        "numerator": pl.Int64(), "denominator": pl.Int64(),
        "control_numerator": pl.Int64(), "control_denominator": pl.Int64(), **ESTIMATE_COLUMNS,
    }
)  # fmt: skip


def cases_of(counts: pl.DataFrame) -> pl.DataFrame:
    """One row per case: iteration, student, problem_id, teacher (null: no hint existed), hinted_n/c, control_n/c.

    Cold failures of iterations whose rescue phase is not published yet are left out.
    """
    key = ["iteration", "student", "problem_id"]
    counts = counts.rename({"model": "student", "teacher_model": "teacher"})
    rescue = counts.filter((pl.col("phase") == RESCUE) & pl.col("cold_failed"))
    hint = pl.col("hint_given")
    cases = rescue.group_by(key).agg(
        pl.col("teacher").max(),
        hinted_n=pl.col("n").filter(hint).sum(),
        hinted_c=pl.col("c").filter(hint).sum(),
        control_n=pl.col("n").filter(~hint).sum(),
        control_c=pl.col("c").filter(~hint).sum(),
    )
    last = counts.filter(pl.col("phase") == RESCUE)["iteration"].max()
    cold = counts.filter((pl.col("phase") == COLD) & (pl.col("iteration") <= pl.lit(last, pl.Int32)))
    failed = cold.group_by(key).agg(pl.col("c").sum()).filter(pl.col("c") == 0).select(key)
    joined = cases.join(failed, on=key, how="full", coalesce=True)
    return joined.with_columns(pl.col("hinted_n", "hinted_c", "control_n", "control_c").fill_null(0)).sort(key)


def rescue_table(counts: pl.DataFrame, *, groups: Sequence[str] = tuple(GROUPS)) -> pl.DataFrame:
    """Rescue rates of cold-failed cases: all together, by student, by teacher -> student pair, by iteration.

    Args:
        counts: counts of one run.
        groups: keys of `GROUPS`.

    Returns:
        `RESCUE_TABLE`; what each rate divides is said in `RATES`, and stands in the numerator and denominator columns
        (for uplift also the control's). Estimates are fractions, clustered by problem over students and iterations.
    """
    cases = cases_of(counts)
    with_cold = counts.filter(pl.col("phase") == COLD).height > 0
    rows = []
    for group in groups:
        keys = GROUPS[group]
        part = cases.filter(pl.col("teacher").is_not_null()) if group == "pair" else cases
        parts = part.partition_by(keys, as_dict=True, maintain_order=False) if keys else {(): part}
        for values in sorted(parts):
            labels = {"group": group, **dict(zip(keys, values, strict=True))}
            # Cases without a teacher belong to no pair, so a pair has no recovery rate.
            figures = _rates(parts[values], recovery=with_cold and group != "pair")
            rows += [{**labels, **figure} for figure in figures if parts[values].height]
    return pl.DataFrame(rows, schema=RESCUE_TABLE)


def _rates(cases: pl.DataFrame, *, recovery: bool) -> list[dict[str, Any]]:
    rescued, tried = (pl.col("hinted_c") > 0), (pl.col("hinted_n") > 0)
    per_problem = cases.group_by("problem_id", maintain_order=True).agg(
        pl.col("hinted_n", "hinted_c", "control_n", "control_c").sum(), rescued=rescued.sum(), tried=tried.sum(), cases=pl.len()
    )
    hinted_c, hinted_n, control_c, control_n, won, tries, all_cases = (
        per_problem[name].to_numpy().astype(np.float64)
        for name in ("hinted_c", "hinted_n", "control_c", "control_n", "rescued", "tried", "cases")
    )
    rows = [
        _row(PER_ATTEMPT, hinted_c, hinted_n),
        _row(CONTROL, control_c, control_n),
        {
            "rate": UPLIFT, "numerator": int(hinted_c.sum()), "denominator": int(hinted_n.sum()),
            "control_numerator": int(control_c.sum()), "control_denominator": int(control_n.sum()),
            **uplift(hinted_c, hinted_n, control_c, control_n).row(),
        },
        _row(PER_CASE, won, tries),
    ]  # fmt: skip
    return [*rows, _row(RECOVERY, won, all_cases)] if recovery else rows


def _row(rate: str, numerator: FloatArray, denominator: FloatArray) -> dict[str, Any]:
    counts = {"numerator": int(numerator.sum()), "denominator": int(denominator.sum())}
    return {"rate": rate, **counts, **share(numerator, denominator).row()}


def uplift(hinted_c: FloatArray, hinted_n: FloatArray, control_c: FloatArray, control_n: FloatArray) -> Estimate:
    """sum(hinted_c)/sum(hinted_n) - sum(control_c)/sum(control_n) with a bootstrap over problems. All (P,), counts."""
    columns = np.stack([hinted_c, hinted_n, control_c, control_n], axis=1)
    columns = columns[(columns[:, 1] + columns[:, 3]) > 0]
    if not len(columns) or not columns[:, 1].sum():
        return undefined(len(columns), "no hinted rescue completions")
    if not columns[:, 3].sum():
        return undefined(len(columns), "no control: every rescue completion saw the hint")

    def difference(sums: FloatArray) -> FloatArray:
        return divide(sums[..., 0], sums[..., 1]) - divide(sums[..., 2], sums[..., 3])

    value = float(difference(columns.mean(axis=0)))
    return from_draws(value, difference(resampled_means(columns)), num_problems=len(columns))
