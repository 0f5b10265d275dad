"""Does a peer's hint help a model that failed without it? Rates named by their denominator, and the control.

In: the counts of one run, and its hints where their length matters. Out: one tidy frame. A *case* is a model and a problem
of an iteration on which the model had no correct cold completion. The control are rescue completions of such cases that saw
no hint (hint dropout draws them at random): what resampling alone would have done. That some model is right where some
model is right is no rate: it is always 100 %. This module reads no file and formats nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from analysis.counts.counts import group_codes
from analysis.stats.estimators import FloatArray, IntArray
from analysis.stats.intervals import ESTIMATE_COLUMNS, Estimate, divide, from_draws, resampled_means, share, undefined
from core_hpc.store.schema import COLD, RESCUE

PER_ATTEMPT, PER_CASE, CONTROL, UPLIFT, RECOVERY = "per_attempt", "per_case", "control", "uplift", "recovery"
RATES = {
    PER_ATTEMPT: "correct hinted rescue completions / hinted rescue completions of cold-failed cases",
    CONTROL: "correct un-hinted rescue completions / un-hinted rescue completions of cold-failed cases",
    UPLIFT: "per_attempt - control",
    PER_CASE: "cases with a correct hinted rescue completion / cases with a hinted rescue completion",
    RECOVERY: "cases with a correct hinted rescue completion / all cold-failed cases, those without a hint included",
}
GROUPS = {
    "all": (),
    "student": ("student",),
    "pair": ("teacher", "student"),
    "iteration": ("iteration",),
    "hint_length": ("bin",),
    "difficulty": ("bin",),
}
MAIN_GROUPS = ("all", "student", "pair", "iteration")
_OF_HINTED = ("pair", "hint_length")
"""Groups that cases without a hint belong to in no way: they have no recovery rate."""
DIFFICULTIES = ("0", "(0, 1/4]", "(1/4, 1/2]", "> 1/2")
"""Bins of the share of the team's cold completions of the problem, in the iteration of the case, that are correct."""

RESCUE_TABLE = pl.Schema(
    {
        "group": pl.String(),
        "teacher": pl.String(),
        "student": pl.String(),
        "iteration": pl.Int32(),
        "bin": pl.String(),
        "rate": pl.String(),
        "numerator": pl.Int64(),
        "denominator": pl.Int64(),
        "control_numerator": pl.Int64(),
        "control_denominator": pl.Int64(),
        **ESTIMATE_COLUMNS,
    }
)


def cases_of(counts: pl.DataFrame) -> pl.DataFrame:
    """One row per case: iteration, student, problem_id, teacher (null: no hint existed), hinted_n/c, control_n/c,
    source_group and difficulty (a bin of `DIFFICULTIES`; null: the cold phase is not in the counts).

    Cold failures of iterations whose rescue phase is not published yet are left out.
    """
    key = ["iteration", "student", "problem_id"]
    counts = counts.rename({"model": "student", "teacher_model": "teacher"}).filter(
        pl.col("phase").is_in([COLD, RESCUE])
    )
    if "source_group" not in counts.columns:
        counts = counts.with_columns(source_group=pl.lit(None, pl.String()))
    rescue = counts.filter((pl.col("phase") == RESCUE) & pl.col("cold_failed"))
    hint = pl.col("hint_given")
    control = (
        ~hint & pl.col("teacher").is_not_null()
    )  # without a hint to be shown there is nothing to compare (even_budget)
    cases = rescue.group_by(key).agg(
        pl.col("teacher").max(),
        hinted_n=pl.col("n").filter(hint).sum(),
        hinted_c=pl.col("c").filter(hint).sum(),
        control_n=pl.col("n").filter(control).sum(),
        control_c=pl.col("c").filter(control).sum(),
    )
    last = counts.filter(pl.col("phase") == RESCUE)["iteration"].max()
    cold = counts.filter((pl.col("phase") == COLD) & (pl.col("iteration") <= pl.lit(last, pl.Int32)))
    failed = cold.group_by(key).agg(pl.col("c").sum()).filter(pl.col("c") == 0).select(key)
    cases = cases.join(failed, on=key, how="full", coalesce=True)
    cases = cases.with_columns(pl.col("hinted_n", "hinted_c", "control_n", "control_c").fill_null(0))
    cases = cases.join(counts.group_by("problem_id").agg(pl.col("source_group").first()), on="problem_id", how="left")
    return cases.join(_difficulties(cold), on=["iteration", "problem_id"], how="left").sort(key)


def _difficulties(cold: pl.DataFrame) -> pl.DataFrame:
    rate = pl.col("c").sum() / pl.col("n").sum()
    none, low, middle, high = map(pl.lit, DIFFICULTIES)
    bin_of = (
        pl.when(rate == 0).then(none).when(rate <= 1 / 4).then(low).when(rate <= 1 / 2).then(middle).otherwise(high)
    )
    return cold.group_by("iteration", "problem_id").agg(difficulty=bin_of.cast(pl.Enum(DIFFICULTIES)))


def _with_hint_length(cases: pl.DataFrame, hints: pl.DataFrame) -> pl.DataFrame:
    """Adds `hint_length`: the quarter of the hinted cases, by length of the hint, that a case is in; null without a hint."""
    key = ["iteration", "student", "problem_id"]
    hints = hints.rename({"model": "student"}).filter(pl.col("num_hint_tokens") > 0).select(*key, "num_hint_tokens")
    cases = cases.join(hints, on=key, how="left", validate="1:1")
    lengths = cases["num_hint_tokens"].drop_nulls().to_numpy()
    if not len(lengths):
        return cases.with_columns(hint_length=pl.lit(None, pl.String()))
    # Lengths that are frequent can make two edges equal: then there are fewer bins.
    highs = np.unique(np.quantile(lengths, (0.25, 0.5, 0.75, 1), method="inverted_cdf")).tolist()
    lows = [int(lengths.min()), *(high + 1 for high in highs[:-1])]
    names = [f"{low}-{high} tokens" for low, high in zip(lows, highs, strict=True)]
    within = [pl.col("num_hint_tokens").is_between(low, high) for low, high in zip(lows, highs, strict=True)]
    bins = pl.coalesce(pl.when(inside).then(pl.lit(name)) for inside, name in zip(within, names, strict=True))
    return cases.with_columns(hint_length=bins.cast(pl.Enum(names)))


def rescue_table(
    counts: pl.DataFrame, *, groups: Sequence[str] = MAIN_GROUPS, hints: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Rescue rates of cold-failed cases: all together, by student, teacher -> student pair, iteration, hint length, difficulty.

    Args:
        counts: counts of one run.
        groups: keys of `GROUPS`. `hint_length` is the quarter of the run's hinted cases, by tokens of the hint as the
            student counts them, and needs `hints`; `difficulty` a bin of `DIFFICULTIES`.
        hints: iteration, model (the student), problem_id and num_hint_tokens of the run's hints.

    Returns:
        `RESCUE_TABLE`; what each rate divides is said in `RATES`, and stands in the numerator and denominator columns
        (for uplift also the control's). Estimates are fractions, clustered by problem (or source group) over students
        and iterations.

    Raises:
        ValueError: groups ask for `hint_length` without hints.
    """
    cases = cases_of(counts)
    if "hint_length" in groups:
        if hints is None:
            raise ValueError("the group hint_length needs the hints of the run")
        cases = _with_hint_length(cases, hints)
    with_cold = counts.filter(pl.col("phase") == COLD).height > 0
    rows = []
    for group in groups:
        keys = GROUPS[group]
        recovery = with_cold and group not in _OF_HINTED
        named = cases.rename({group: "bin"}) if keys == ("bin",) else cases
        # Cases of no teacher or bin are in no part.
        parts = named.drop_nulls(keys).sort(keys).partition_by(keys, maintain_order=True) if keys else [named]
        for part in parts:
            labels = {"group": group, **{key: part[key][0] for key in keys}}
            rows += [{**labels, **row} for row in _rates(part, recovery=recovery)] if part.height else []
    return pl.DataFrame(rows, schema=RESCUE_TABLE)


def _rates(cases: pl.DataFrame, *, recovery: bool) -> list[dict[str, Any]]:
    rescued, tried = (pl.col("hinted_c") > 0), (pl.col("hinted_n") > 0)
    per_problem = cases.group_by("problem_id", maintain_order=True).agg(
        pl.col("hinted_n", "hinted_c", "control_n", "control_c").sum(),
        pl.col("source_group").first(),
        rescued=rescued.sum(),
        tried=tried.sum(),
        cases=pl.len(),
    )
    groups = group_codes(per_problem["source_group"], per_problem["problem_id"])
    hinted_c, hinted_n, control_c, control_n, won, tries, all_cases = (
        per_problem[name].to_numpy().astype(np.float64)
        for name in ("hinted_c", "hinted_n", "control_c", "control_n", "rescued", "tried", "cases")
    )
    rows = [
        _row(PER_ATTEMPT, hinted_c, hinted_n, groups),
        _row(CONTROL, control_c, control_n, groups),
        {
            "rate": UPLIFT,
            "numerator": int(hinted_c.sum()),
            "denominator": int(hinted_n.sum()),
            "control_numerator": int(control_c.sum()),
            "control_denominator": int(control_n.sum()),
            **_uplift(np.stack([hinted_c, hinted_n, control_c, control_n], axis=1)[None], groups).row(),
        },
        _row(PER_CASE, won, tries, groups),
    ]
    return [*rows, _row(RECOVERY, won, all_cases, groups)] if recovery else rows


def _row(rate: str, numerator: FloatArray, denominator: FloatArray, groups: IntArray) -> dict[str, Any]:
    counts = {"numerator": int(numerator.sum()), "denominator": int(denominator.sum())}
    return {"rate": rate, **counts, **share(numerator, denominator, groups=groups).row()}


def mean_uplift(runs: Sequence[pl.DataFrame]) -> Estimate:
    """Mean over runs, the seeds of one configuration, of their uplift over all cases; problems are drawn for all runs together.

    runs: counts of each run. Of one run it is the uplift of all in `rescue_table`.
    """
    sums = ("hinted_c", "hinted_n", "control_c", "control_n")
    cases = [cases_of(counts) for counts in runs]
    problems = pl.concat(cases).group_by("problem_id").agg(pl.col("source_group").first()).sort("problem_id")
    per_run = [
        problems.join(own.group_by("problem_id").agg(pl.col(sums).sum()), on="problem_id", how="left") for own in cases
    ]
    tried = np.stack(
        [own.sort("problem_id").select(pl.col(sums).fill_null(0).cast(pl.Float64)).to_numpy() for own in per_run]
    )
    return _uplift(tried, group_codes(problems["source_group"], problems["problem_id"]))


def _uplift(tried: FloatArray, groups: IntArray) -> Estimate:
    """Mean over runs of sum(hinted_c)/sum(hinted_n) - sum(control_c)/sum(control_n) with a bootstrap over source groups.

    tried: (R, P, 4), hinted_c, hinted_n, control_c, control_n of each run and problem; groups: (P,) codes of source groups.
    """
    seen = tried[..., [1, 3]].sum(axis=(0, 2)) > 0
    columns, groups = np.concatenate(tried[:, seen], axis=1), groups[seen]
    totals = tried.sum(axis=1)
    if not totals[:, 1].all():
        return undefined(len(columns), "no hinted rescue completions")
    if not totals[:, 3].all():
        return undefined(len(columns), "no control: every rescue completion saw the hint")

    def difference(sums: FloatArray) -> FloatArray:
        hinted_c, hinted_n, control_c, control_n = np.moveaxis(sums.reshape(*sums.shape[:-1], len(tried), 4), -1, 0)
        return (divide(hinted_c, hinted_n) - divide(control_c, control_n)).mean(axis=-1)

    value = float(difference(columns.mean(axis=0)))
    return from_draws(value, difference(resampled_means(columns, groups)), num_problems=len(columns), groups=groups)
