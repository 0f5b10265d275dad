"""Comparison of two runs, or of the seeds of two configurations, on the same held-out problems.

The input is the `RunData` of both sides, A and B. The output is one tidy frame (`COMPARE_TABLE`) of
differences B - A, paired by problem, for each pair of seeds and for the mean over seeds.

With one pair of runs, an interval is over problems: how much the difference between these runs
changes with other problems. With several seeds, the interval of the mean is over problems and
seeds: how much it changes with other problems and other seeds. The interval for these seeds alone
is given beside it. Seeds are never pooled as if they were problems. `metrics/pairs.py` decides
which runs can be compared, `metrics/sides.py` has the measures, `metrics/compare_table.py` the
table for a reader.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import polars as pl

from analysis.counts.load import RunData
from analysis.metrics.pairs import Pair, is_primary, on_common_problems, pairs_of, primary_of
from analysis.metrics.passk import COVERAGE, MATCHED_PASS, PASS, TEAM_PASS
from analysis.metrics.sides import GAIN, TwoSided, two_sided
from analysis.stats.decisions import MARGIN, holm, verdict
from analysis.stats.estimators import FloatArray, IntArray
from analysis.stats.intervals import CONFIDENCE, ESTIMATE_COLUMNS, join_notes, resampled_means, undefined
from analysis.stats.uncertainty import (
    Uncertainty,
    estimate_of,
    grouped,
    largest_difference,
    of_differences,
    of_interval,
    over_seeds,
    pseudo_groups,
)
from core_hpc.common.errors import InputError

MEAN = "mean"
OVER_BOTH = "interval over problems and seeds"
OVER_PROBLEMS = "one pair of seeds: interval over problems only"
"""Note of a row beside others with `OVER_BOTH`."""

COMPARE_TABLE = pl.Schema(
    {
        "seed": pl.String(),  # of the pair (two if they differ), or MEAN for the mean over all pairs
        "measure": pl.String(),
        "model": pl.String(),
        "k": pl.Int32(),
        "candidates": pl.Int32(),  # completions spent per problem; null: A and B differ
        "a": pl.Float64(),  # level of A on the common problems
        "b": pl.Float64(),  # level of B on the common problems
        # of b - a; low and high are over problems, and in a row MEAN over problems and seeds
        **{name: dtype for name, dtype in ESTIMATE_COLUMNS.items() if name != "note"},
        "problems_low": pl.Float64(),  # bounds over problems only, for these seeds; only for MEAN
        "problems_high": pl.Float64(),
        # The following columns are of the tested rows: MEAN if there are several seeds, else all.
        "primary": pl.Boolean(),  # the comparison that the sweep declares
        "p": pl.Float64(),  # of the hypothesis that A and B are equal
        "p_holm": pl.Float64(),  # corrected for all tests but the primary one
        "p_outside": pl.Float64(),  # of the hypothesis that the difference is not within the margin
        "p_outside_holm": pl.Float64(),
        "chance_b_better": pl.Float64(),  # if all differences were equally likely before
        "verdict": pl.String(),  # from the corrected p values
        "num_seeds": pl.Int64(),
        "seed_sd": pl.Float64(),  # standard deviation of the differences of the seeds; only for MEAN
        "seed_min": pl.Float64(),  # smallest difference of a seed; only for MEAN
        "seed_max": pl.Float64(),  # largest difference of a seed; only for MEAN
        "note": pl.String(),
    }
)


@dataclass(frozen=True, kw_only=True)
class _Context:
    """What the rows of one table have in common."""

    groups: IntArray | None
    margin: float
    tested: bool  # the rows get p values


def compare(
    a: Sequence[RunData],
    b: Sequence[RunData],
    *,
    ks: Sequence[int],
    iterations: tuple[int, int] | None = None,
    margin: float | None = None,
) -> pl.DataFrame:
    """Compute the differences B - A of all measures.

    The measures are Pass@k, team Pass@k, matched budget, collaboration gain and coverage.

    Args:
        a: one run, or several seeds of one configuration (`pairs_of`).
        b: the other side, as `a`.
        ks: completions per model. The declared primary comparison is added if its k is another one.
        iterations: the iterations of the evaluations of A and of B; 0 is the evaluation of the
            untrained models. With the same run as both sides, the difference is the effect of
            training. Default: the latest evaluation of each run. Imported predictions have only
            one.
        margin: margin of equivalence, a fraction. Default: `analysis.margin` of the runs.

    Returns:
        A frame with the schema `COMPARE_TABLE`; figures are fractions. Models are matched by name.
        With different teams, the frame has only the common models and the teams as a whole. If
        there are two or more pairs, the rows with seed MEAN have the mean over seeds. The mean of a
        gain is that of the gains of the seeds. The primary comparison is the first of the tested
        rows, if the runs are its arms.

    Raises:
        InputError: the runs cannot be compared; the message gives the reason (see `pairs_of`).
    """
    primary = None if iterations else primary_of(a, b)
    asked, ks = set(ks), sorted({*ks, primary.k}) if primary else ks
    pairs = pairs_of(a, b, iterations)
    margin = margin_of([*a, *b]) if margin is None else margin
    rows: list[dict[str, Any]] = []
    for pair in pairs:
        context = _Context(groups=pair.groups, margin=margin, tested=len(pairs) == 1)
        rows += [_row(pair.seed, f, context, pair.note) for f in two_sided(pair.a, pair.b, ks)]
    if len(pairs) > 1:
        rows += _mean_rows(pairs, ks, margin)
    if primary:
        rows = [row for row in rows if row["k"] is None or row["k"] in asked or is_primary(row, primary)]
    for row in rows:
        row["primary"] = None if row.get("p") is None else primary is not None and is_primary(row, primary)
    rows.sort(key=lambda row: not row["primary"])
    return decided(pl.DataFrame(rows, schema=COMPARE_TABLE), margin)


def margin_of(runs: Sequence[RunData]) -> float:
    """The margin of equivalence that the runs declare; `MARGIN` if they declare none, or this one.

    Raises:
        InputError: two runs declare different margins.
    """
    declared = {data.config.analysis.margin: data.path for data in runs if data.config is not None}
    declared.pop(MARGIN, None)
    if len(declared) > 1:
        where = ", ".join(f"{margin:g} in {path}" for margin, path in sorted(declared.items()))
        raise InputError(f"the runs declare different margins of equivalence (analysis.margin): {where}; give --margin")
    return next(iter(declared), MARGIN)


def decided(frame: pl.DataFrame, margin: float) -> pl.DataFrame:
    """Add the corrected p values and the verdicts to tested rows of one report.

    Args:
        frame: a frame with the columns of `COMPARE_TABLE`, and others that distinguish comparisons.
            All its tests but the primary one are corrected together (Holm). Rows of the same
            quantity are one test (`tests_of`); each of them has the result of this test.
        margin: margin of equivalence, a fraction.
    """
    rows = frame.rows(named=True)
    tests = tests_of(rows)
    others = [row for row in tests.values() if not row["primary"]]
    for name in ("p", "p_outside"):
        found = {key: row[name] for key, row in tests.items()}
        corrected = holm([row[name] for row in others])
        found |= {_quantity(row): p for row, p in zip(others, corrected, strict=True)}
        for row in rows:
            row[f"{name}_holm"] = None if row["p"] is None else found[_quantity(row)]
    for row in rows:
        if row["p"] is not None:
            row["verdict"] = verdict(row["p_holm"], row["p_outside_holm"], margin)
    return pl.DataFrame(rows, schema=frame.schema)


def tests_of(rows: Iterable[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The tests among the rows of a comparison: for each quantity the primary row, or else the first one.

    Rows with different names can be of the same quantity, with equal values for each problem. For a
    team of two, the matched budget of k = 1 is Pass@2 of the model. Coverage is team Pass@k of all
    completions. Both rows are shown, because a reader looks for them in two places, but a correction
    for two tests would be too strict.
    """
    tests: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted((row for row in rows if row["p"] is not None), key=lambda row: not row["primary"]):
        tests.setdefault(_quantity(row), row)
    return tests


def _quantity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The quantity of a row: with the same number of candidates, all kinds of Pass@k of a model (team) are equal."""
    solved = row["candidates"] is not None and row["measure"] in (PASS, MATCHED_PASS, TEAM_PASS, COVERAGE)
    of_what = (PASS, row["candidates"]) if solved else (row["measure"], row["k"])
    return (*(row.get(name) for name in ("arm_a", "arm_b", "problems", "seed", "model")), *of_what)


# --- differences ---------------------------------------------------------------------------------


def _row(seed: str, f: TwoSided, context: _Context, note: str, **spread: Any) -> dict[str, Any]:
    """Make a row of `COMPARE_TABLE` from a measure of one pair or of all pairs of seeds."""
    levels = {side: None if np.isnan(level) else level for side, level in zip("ab", f.levels(), strict=True)}
    labels = {"seed": seed, "measure": f.measure, "model": f.model, "k": f.k, "candidates": f.candidates}
    row = {**labels, **levels, "num_seeds": len(f.a), **spread}
    num_problems = f.a.shape[2]
    if f.why_undefined:
        return {**row, **undefined(num_problems, join_notes(f.why_undefined, note)).row()}
    known = _gain(f, context.groups) if f.measure in GAIN.values() else of_differences(_only(f), context.groups)
    row |= estimate_of(known, num_problems=num_problems, groups=context.groups, note=note).row()
    if len(f.a) > 1:
        row["problems_low"], row["problems_high"] = known.given_seeds.interval()
    if context.tested:
        row["p"], row["p_outside"] = known.p_value(), known.p_not_within(context.margin)
        row["chance_b_better"] = known.chance_above()
    return row


def _only(f: TwoSided) -> FloatArray:
    """The differences (S, P) of a measure with one row per side."""
    differences: FloatArray = f.b[:, 0] - f.a[:, 0]
    return differences


def _gain(f: TwoSided, groups: IntArray | None) -> Uncertainty:
    """Estimate the difference of two gains over the best model.

    It is also uncertain which model is the best. The interval over problems is therefore the union
    of the percentile intervals of all pairs of models that are the best in at least 2.5 % of the
    bootstrap draws. In 300 studies with four models, equal in A only, this interval covered the
    truth in 98 %. A percentile interval of the difference of the two smallest gains covered it in
    72 to 80 %. When the best models are certain, the two intervals are the same.

    With several seeds, every seed has its own best models. The bounds are those of the mean over
    seeds of the pairs with the lowest (highest) bounds, because trying every combination of pairs
    takes too long.
    """
    level_a, level_b = f.levels()
    best = [(int(a.mean(axis=1).argmin()), int(b.mean(axis=1).argmin())) for a, b in zip(f.a, f.b, strict=True)]
    values = np.stack([b[j] - a[i] for a, b, (i, j) in zip(f.a, f.b, best, strict=True)])
    draws_a, draws_b = _drawn(f, largest_difference(values.mean(axis=0), groups), groups)
    bounds = [
        np.quantile(drawn, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)) for drawn in _choices(f, draws_a, draws_b)
    ]
    low, high = min(float(low) for low, _ in bounds), max(float(high) for _, high in bounds)
    num_units = len(grouped(values.T, groups)[1])
    known = of_interval(level_b - level_a, low, high, num_units=num_units)
    return known if len(values) == 1 else over_seeds(known, values, groups)


def _drawn(f: TwoSided, extreme: float, groups: IntArray | None) -> tuple[FloatArray, FloatArray]:
    """Bootstrap means (NUM_DRAWS, S, I) of A and (NUM_DRAWS, S, J) of B.

    The draws include two pseudo-problems, on which B (or A) is better by `extreme`, as in
    `stats/uncertainty.py`. So there is an interval when all problems are alike.
    """
    sides = [side.reshape(-1, side.shape[-1]) for side in (f.a, f.b)]
    repeats, groups = pseudo_groups(groups)
    pseudo = [np.repeat([0.0, extreme], repeats), np.repeat([extreme, 0.0], repeats)]
    columns = np.concatenate(
        [np.hstack([side, np.tile(extra, (len(side), 1))]) for side, extra in zip(sides, pseudo, strict=True)]
    ).T
    flat = resampled_means(columns, groups)
    split = len(sides[0])
    return flat[:, :split].reshape(-1, *f.a.shape[:2]), flat[:, split:].reshape(-1, *f.b.shape[:2])


def _choices(f: TwoSided, draws_a: FloatArray, draws_b: FloatArray) -> list[FloatArray]:
    """Return the draws of the mean difference for the choices of best models that bound it.

    The choices are the best models in the data, and those with the lowest and the highest bounds.
    """
    best, lowest, highest = [], [], []
    for s in range(len(f.a)):
        in_data = draws_b[:, s, f.b[s].mean(axis=1).argmin()] - draws_a[:, s, f.a[s].mean(axis=1).argmin()]
        pairs = product(_best(f.a[s], draws_a[:, s]), _best(f.b[s], draws_b[:, s]))
        drawn = np.stack([draws_b[:, s, j] - draws_a[:, s, i] for i, j in pairs])
        low, high = np.quantile(drawn, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2), axis=1)
        best.append(in_data)
        lowest.append(drawn[low.argmin()])
        highest.append(drawn[high.argmax()])
    return [np.mean(choice, axis=0) for choice in (best, lowest, highest)]


def _best(values: FloatArray, draws: FloatArray) -> list[int]:
    """Return the rows that are the smallest in the data, or in at least 2.5 % of the draws."""
    won = np.bincount(draws.argmin(axis=1), minlength=len(values)) / len(draws)
    return sorted({int(values.mean(axis=1).argmin()), *np.flatnonzero(won >= (1 - CONFIDENCE) / 2).tolist()})


def _mean_rows(pairs: Sequence[Pair], ks: Sequence[int], margin: float) -> list[dict[str, Any]]:
    """Make the rows of the mean over seeds, with the spread, on the problems of all seeds."""
    restricted = on_common_problems(pairs)
    by_figure = list(zip(*(two_sided(pair.a, pair.b, ks) for pair in restricted), strict=True))
    num_left_out = max(pair.a.num_problems for pair in pairs) - restricted[0].a.num_problems
    left_out = f"{num_left_out} problems left out: not in every seed" if num_left_out else ""
    note = join_notes(OVER_BOTH, *(pair.note for pair in pairs), left_out)
    context = _Context(groups=restricted[0].groups, margin=margin, tested=True)
    rows = []
    for own in by_figure:
        why = join_notes(*(f.why_undefined for f in own))
        differences = np.array([b - a for a, b in (f.levels() for f in own)])
        spread: dict[str, Any] = {}
        if not why:
            spread = {"seed_sd": float(differences.std(ddof=1))}
            spread |= {"seed_min": float(differences.min()), "seed_max": float(differences.max())}
        a, b = (np.concatenate(sides) for sides in ([f.a for f in own], [f.b for f in own]))
        rows.append(_row(MEAN, replace(own[0], a=a, b=b, why_undefined=why), context, note, **spread))
    return rows
