"""Rescue rates: how much the hint of another model helps a model that failed without it.

The input is the counts of one run, and its hints for their length and leaks. The output is one tidy
frame. A case is a model and a problem in an iteration in which the model had no correct cold
completion. Every rate is defined by its numerator and denominator (`RATES`).

The control is the rescue completions of such cases that saw no hint. Hint dropout draws them at
random, so they show what sampling again achieves without a hint. There is no rate for the team on
the problems that some model has solved, because it is always 100 %. This module reads no file and
formats no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from analysis.counts.counts import RESCUE_PUBLISHED, group_codes, in_batches
from analysis.stats.estimators import FloatArray, IntArray
from analysis.stats.intervals import ESTIMATE_COLUMNS, Estimate, difference_of_shares, share, undefined
from core_hpc.store.paths import TEAM
from core_hpc.store.schema import COLD, LEAK_RESULT, RESCUE

PER_ATTEMPT, PER_CASE, CONTROL, UPLIFT, RECOVERY = "per_attempt", "per_case", "control", "uplift", "recovery"
LEAK_SHARE = "leak_share"
RATES = {
    PER_ATTEMPT: "correct hinted rescue completions / hinted rescue completions of cold-failed cases",
    CONTROL: (
        "correct un-hinted rescue completions / un-hinted rescue completions of cold-failed cases for which a hint "
        "existed"
    ),
    UPLIFT: "per_attempt - control",
    PER_CASE: "cases with a correct hinted rescue completion / cases with a hinted rescue completion",
    RECOVERY: "cases with a correct hinted rescue completion / all cold-failed cases, including those without a hint",
    LEAK_SHARE: "cases with a hint in which the gold answer is the result of a step / cases with a hint",
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
"""Groups that contain only cases with a hint. They have no recovery rate."""
DIFFICULTIES = ("0", "(0, 1/4]", "(1/4, 1/2]", "> 1/2")
"""Bins of the share of correct cold completions of the team on the problem in the iteration."""

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


_OF_CASES = (
    *("iteration", "phase", "model", "problem_id", "hint_given", "cold_failed", "teacher_model"),
    *("n", "c", RESCUE_PUBLISHED, "source_group"),
)
"""The columns of the counts that `cases_of` uses."""


def cases_of(counts: pl.DataFrame) -> pl.DataFrame:
    """Find the cases of a run.

    Cold failures whose rescue is not published yet are left out. A case without a hint has no
    rescue rows, and it counts when the rescue task of its part is published.

    Args:
        counts: counts of one run. Without the column RESCUE_PUBLISHED, the rescues of all
            iterations up to the last one with rescue rows count as published.

    Returns:
        One row per case. The columns are iteration, student, problem_id, teacher (null if there was
        no hint), hinted_n and hinted_c, control_n and control_c (completions and correct
        completions), source_group, and difficulty (a bin of `DIFFICULTIES`; null if the counts have
        no cold phase).
    """
    if "source_group" not in counts.columns:
        counts = counts.with_columns(source_group=pl.lit(None, pl.String()))
    if RESCUE_PUBLISHED not in counts.columns:
        last = counts.select(pl.col("iteration").filter(pl.col("phase") == RESCUE).max()).item()
        is_published = pl.col("iteration") <= pl.lit(last, pl.Int32)
        counts = counts.with_columns(is_published.alias(RESCUE_PUBLISHED))
    return in_batches(counts, _cases_of_iterations)


def _cases_of_iterations(counts: pl.DataFrame) -> pl.DataFrame:
    key = ["iteration", "student", "problem_id"]
    counts = counts.lazy().filter(pl.col("phase").is_in([COLD, RESCUE])).select(_OF_CASES).collect()
    counts = counts.rename({"model": "student", "teacher_model": "teacher"})
    rescue = counts.filter((pl.col("phase") == RESCUE) & pl.col("cold_failed"))
    hint = pl.col("hint_given")
    # With protocol.even_budget, completions of problems without any hint have no teacher. They are
    # no control, because no hinted completion corresponds to them.
    control = ~hint & pl.col("teacher").is_not_null()
    cases = rescue.group_by(key).agg(
        pl.col("teacher").max(),
        hinted_n=pl.col("n").filter(hint).sum(),
        hinted_c=pl.col("c").filter(hint).sum(),
        control_n=pl.col("n").filter(control).sum(),
        control_c=pl.col("c").filter(control).sum(),
    )
    cold = counts.filter(pl.col("phase") == COLD)
    failed = cold.filter(RESCUE_PUBLISHED).group_by(key).agg(pl.col("c").sum()).filter(pl.col("c") == 0).select(key)
    cases = cases.join(failed, on=key, how="full", coalesce=True)
    cases = cases.with_columns(pl.col("hinted_n", "hinted_c", "control_n", "control_c").fill_null(0))
    cases = cases.join(counts.group_by("problem_id").agg(pl.col("source_group").first()), on="problem_id", how="left")
    return cases.join(_difficulties(cold), on=["iteration", "problem_id"], how="left").sort(key)


def _difficulties(cold: pl.DataFrame) -> pl.DataFrame:
    rate = pl.col("c").sum() / pl.col("n").sum()
    none, low, middle, high = map(pl.lit, DIFFICULTIES)
    hard = pl.when(rate == 0).then(none).when(rate <= 1 / 4).then(low)
    bin_of = hard.when(rate <= 1 / 2).then(middle).otherwise(high)
    return cold.group_by("iteration", "problem_id").agg(difficulty=bin_of.cast(pl.Enum(DIFFICULTIES)))


def _with_hint_length(cases: pl.DataFrame, hints: pl.DataFrame) -> pl.DataFrame:
    """Add `hint_length`: the quarter of the cases by length of the hint; null without a hint."""
    key = ["iteration", "student", "problem_id"]
    hints = hints.rename({"model": "student"}).filter(pl.col("num_hint_tokens") > 0).select(*key, "num_hint_tokens")
    cases = cases.join(hints, on=key, how="left", validate="1:1")
    lengths = cases["num_hint_tokens"].drop_nulls().to_numpy()
    if not len(lengths):
        return cases.with_columns(hint_length=pl.lit(None, pl.String()))
    # If one length is frequent, two edges can be equal. There are then fewer bins.
    highs = np.unique(np.quantile(lengths, (0.25, 0.5, 0.75, 1), method="inverted_cdf")).tolist()
    lows = [int(lengths.min()), *(high + 1 for high in highs[:-1])]
    names = [f"{low}-{high} tokens" for low, high in zip(lows, highs, strict=True)]
    within = [pl.col("num_hint_tokens").is_between(low, high) for low, high in zip(lows, highs, strict=True)]
    bins = pl.coalesce(pl.when(inside).then(pl.lit(name)) for inside, name in zip(within, names, strict=True))
    return cases.with_columns(hint_length=bins.cast(pl.Enum(names)))


def _with_leaks(cases: pl.DataFrame, hints: pl.DataFrame | None) -> pl.DataFrame:
    """Add `leaked`: whether the hint shows the gold answer as a result; null without this information."""
    if hints is None or "leak" not in hints.columns:
        return cases.with_columns(leaked=pl.lit(None, pl.Boolean()))
    key = ["iteration", "student", "problem_id"]
    leaks = hints.rename({"model": "student"}).select(*key, leaked=pl.col("leak") == LEAK_RESULT)
    return cases.join(leaks, on=key, how="left", validate="1:1")


def rescue_table(
    counts: pl.DataFrame, *, groups: Sequence[str] = MAIN_GROUPS, hints: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Compute the rescue rates of cold-failed cases.

    Args:
        counts: counts of one run.
        groups: keys of `GROUPS`: all cases, by student, by pair of teacher and student, by
            iteration, by `hint_length` or by `difficulty`. `hint_length` is the quarter of the
            hinted cases of the run, by length of the hint in tokens of the student, and needs
            `hints`. `difficulty` is a bin of `DIFFICULTIES`.
        hints: columns iteration, model (the student), problem_id, num_hint_tokens and leak of the
            hints of the run (`load.load_hints`). Without hints, or if no hint of a group has a
            value of leak (runs of an earlier version), there is no leak_share.

    Returns:
        A frame with the schema `RESCUE_TABLE`. `RATES` defines the rates. The columns numerator and
        denominator have the counts of a rate; for the uplift, control_numerator and
        control_denominator have those of the control. Estimates are fractions. Their intervals are
        clustered by problem (or source group) over students and iterations.

    Raises:
        ValueError: `groups` contains `hint_length`, and `hints` is None.
    """
    cases = cases_of(counts)
    if "hint_length" in groups:
        if hints is None:
            raise ValueError("the group hint_length needs the hints of the run")
        cases = _with_hint_length(cases, hints)
    cases = _with_leaks(cases, hints)
    with_cold = (counts["phase"] == COLD).any()
    rows = []
    for group in groups:
        keys = GROUPS[group]
        recovery = with_cold and group not in _OF_HINTED
        named = cases.rename({group: "bin"}) if keys == ("bin",) else cases
        # Cases without a teacher or bin are left out.
        parts = named.drop_nulls(keys).sort(keys).partition_by(keys, maintain_order=True) if keys else [named]
        for part in parts:
            labels = {"group": group, **{key: part[key][0] for key in keys}}
            rows += [{**labels, **row} for row in _rates(part, recovery=recovery)] if part.height else []
    return pl.DataFrame(rows, schema=RESCUE_TABLE)


def _rates(cases: pl.DataFrame, *, recovery: bool) -> list[dict[str, Any]]:
    rescued, hinted = (pl.col("hinted_c") > 0), (pl.col("hinted_n") > 0)
    per_problem = cases.group_by("problem_id", maintain_order=True).agg(
        pl.col("hinted_n", "hinted_c", "control_n", "control_c").sum(),
        pl.col("source_group").first(),
        rescued=rescued.sum(),
        leaked=pl.col("leaked").sum(),
        examined=pl.col("leaked").count(),
        hinted=hinted.sum(),
        cases=pl.len(),
    )
    groups = group_codes(per_problem["source_group"], per_problem["problem_id"])
    names = ("hinted_c", "hinted_n", "control_c", "control_n", "rescued", "hinted", "cases", "leaked", "examined")
    hinted_c, hinted_n, control_c, control_n, num_rescued, num_hinted, num_cases, leaked, examined = (
        per_problem[name].to_numpy().astype(np.float64) for name in names
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
            **uplift_of(np.stack([hinted_c, hinted_n, control_c, control_n], axis=1)[None], groups).row(),
        },
        _row(PER_CASE, num_rescued, num_hinted, groups),
    ]
    if recovery:
        rows.append(_row(RECOVERY, num_rescued, num_cases, groups))
    if examined.any():
        rows.append(_row(LEAK_SHARE, leaked, examined, groups))
    return rows


def _row(rate: str, numerator: FloatArray, denominator: FloatArray, groups: IntArray) -> dict[str, Any]:
    counts = {"numerator": int(numerator.sum()), "denominator": int(denominator.sum())}
    return {"rate": rate, **counts, **share(numerator, denominator, groups=groups).row()}


def leak_points(hints: pl.DataFrame) -> dict[str, float]:
    """Compute the share of hints in which the gold answer is the result of a step.

    Args:
        hints: columns model (the student) and leak, of one iteration.

    Returns:
        The share by student, and for all students under the name TEAM. A student without a hint is
        left out.
    """
    known = hints.drop_nulls("leak").select("model", leaked=pl.col("leak") == LEAK_RESULT)
    of_all = known.with_columns(model=pl.lit(TEAM))
    shares = pl.concat([known, of_all]).group_by("model", maintain_order=True).agg(pl.col("leaked").mean())
    return dict(shares.rows())


def mean_uplift(runs: Sequence[pl.DataFrame]) -> Estimate:
    """Mean over seeds of the uplift over all cases.

    Args:
        runs: counts of each run. All runs are seeds of one configuration. The interval takes
            the completions of a problem in all runs as dependent.

    Returns:
        The mean. For one run it is the uplift of the group `all` in `rescue_table`.
    """
    sums = ("hinted_c", "hinted_n", "control_c", "control_n")
    cases = [cases_of(counts) for counts in runs]
    problems = pl.concat(cases).group_by("problem_id").agg(pl.col("source_group").first()).sort("problem_id")
    per_run = []
    for own in cases:
        per_problem = own.group_by("problem_id").agg(pl.col(sums).sum())
        joined = problems.join(per_problem, on="problem_id", how="left").sort("problem_id")
        per_run.append(joined.select(pl.col(sums).fill_null(0).cast(pl.Float64)).to_numpy())
    return uplift_of(np.stack(per_run), group_codes(problems["source_group"], problems["problem_id"]))


def uplift_of(sums: FloatArray, groups: IntArray) -> Estimate:
    """Mean over runs of the uplift, with the interval of the difference of two dependent shares.

    The uplift of a run is sum(hinted_c)/sum(hinted_n) - sum(control_c)/sum(control_n). Its interval
    is made from those of the two rates (`stats.intervals.difference_of_shares`). A bootstrap takes
    a control without a correct completion as exactly 0, and finds an uplift where there is none.

    Args:
        sums: (R, P, 4), with hinted_c, hinted_n, control_c and control_n of each run and problem.
        groups: (P,) codes of source groups.
    """
    sampled = sums[..., [1, 3]].sum(axis=(0, 2)) > 0
    sums, groups = sums[:, sampled], groups[sampled]
    totals = sums.sum(axis=1)
    if not totals[:, 1].all():
        return undefined(len(groups), "no hinted rescue completions")
    if not totals[:, 3].all():
        return undefined(len(groups), "no control: every rescue completion saw the hint")
    return difference_of_shares(sums[..., 0], sums[..., 1], sums[..., 2], sums[..., 3], groups=groups)
