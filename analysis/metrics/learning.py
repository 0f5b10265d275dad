"""Learning curves: held-out figures by iteration and over seeds, and the area under each curve.

The input is the `RunData` of the seeds of one configuration; one run is enough. The output is one
tidy frame: the level of each evaluation, the area under the curve and its part above the untrained
models, for each seed and for the mean over seeds.

The curve is linear between evaluations. Its area is divided by the number of iterations that it
spans, so it is the mean height of the curve and has the unit of the figure:

    area = sum_i (x_i + x_(i+1)) / 2 (t_(i+1) - t_i) / (t_last - t_first)

It is a weighted sum of the levels of one problem, so its interval is that of a mean over problems.
The interval of a mean over seeds is over seeds and problems (`stats/uncertainty.py`). For a level it is
the same one as in `metrics/arms.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import polars as pl

from analysis.counts.counts import Panel, iterations_of, panel
from analysis.counts.load import RunData
from analysis.layout.tables import UNDEFINED, ReportTable, group_starts, laid_out, note_counts, percent
from analysis.metrics.compare import MEAN
from analysis.metrics.pairs import check_one_configuration, check_same_problems, seed_of
from analysis.metrics.passk import COVERAGE, TEAM_PASS, Figure, main_figures
from analysis.stats.estimators import FloatArray
from analysis.stats.intervals import ESTIMATE_COLUMNS, join_notes, share
from analysis.stats.uncertainty import difference, mean_over_seeds
from core_hpc.common.errors import InputError

LEVEL, AREA, AREA_GAIN = "level", "area", "area_gain"
FIGURES = {
    LEVEL: "the figure at one evaluation",
    AREA: "area under the curve, divided by the iterations that it spans: the mean height",
    AREA_GAIN: "area minus the level before the first iteration, paired by problem",
}
LEARNING_TABLE = pl.Schema(
    {
        "arm": pl.String(),
        "seed": pl.String(),  # or MEAN
        "measure": pl.String(),  # PASS, TEAM_PASS or MATCHED_PASS
        "model": pl.String(),
        "k": pl.Int32(),
        "candidates": pl.Int32(),
        "figure": pl.String(),  # LEVEL, AREA or AREA_GAIN
        "iteration": pl.Int32(),  # of a level; null for an area
        **{name: dtype for name, dtype in ESTIMATE_COLUMNS.items() if name != "note"},
        "num_seeds": pl.Int64(),
        "seed_min": pl.Float64(),  # smallest figure of a seed; only for MEAN
        "seed_max": pl.Float64(),
        "note": pl.String(),
    }
)


def area_weights(iterations: Sequence[int]) -> FloatArray:
    """Weights of the levels in the area under the curve; they add up to 1.

    >>> area_weights([0, 2, 8]).tolist()
    [0.125, 0.5, 0.375]
    """
    at = np.asarray(iterations, dtype=np.float64)
    gaps = np.diff(at)
    weights = np.zeros(len(at))
    weights[:-1] += gaps / 2
    weights[1:] += gaps / 2
    normalized: FloatArray = weights / (at[-1] - at[0])
    return normalized


def learning_table(runs: Sequence[RunData], *, ks: Sequence[int], arm: str = "") -> pl.DataFrame:
    """Compute the learning curves of one configuration.

    Args:
        runs: its seeds; one run is enough.
        ks: completions per model.
        arm: name of the configuration, for the column `arm`.

    Returns:
        A frame with the schema `LEARNING_TABLE`. It has the evaluations that all runs have, and the
        problems that all evaluations have. With one run there are no rows with seed MEAN. There is
        no area with fewer than two evaluations.

    Raises:
        InputError: the runs differ in more than their seed, or have no problem in common.
    """
    check_one_configuration(arm or "the configuration", runs)
    check_same_problems(runs)
    published = [iterations_of(data.counts, models=data.models) for data in runs]
    iterations = sorted(set.intersection(*map(set, published)))
    if not iterations:
        return pl.DataFrame(schema=LEARNING_TABLE)
    panels = [[panel(data.counts, models=data.models, iteration=i) for i in iterations] for data in runs]
    common = reduce(np.intersect1d, [p.problem_ids for own in panels for p in own])
    if not len(common):
        raise InputError("the evaluations have no held-out problem in common: problems are matched by their id")
    most = max(p.num_problems for own in panels for p in own)
    left_out = [f"{most - len(common)} problems left out: not in every evaluation"] if most > len(common) else []
    if max(map(len, published)) > len(iterations):
        left_out.append("evaluations that some seed does not have are left out")
    restricted = [[p.restricted(common) for p in own] for own in panels]
    by_run = [[main_figures(p, ks) for p in own] for own in restricted]
    names, note = [seed_of(data) for data in runs], join_notes(*left_out)
    rows: list[dict[str, Any]] = []
    for f, first in enumerate(by_run[0][0]):
        if first.measure != COVERAGE:
            curves = [[of_evaluation[f] for of_evaluation in own] for own in by_run]
            found = _curve_rows(curves, iterations, names, restricted[0][0], note)
            rows += [{"arm": arm, **first.labels(), **row} for row in found]
    return pl.DataFrame(rows, schema=LEARNING_TABLE)


def _curve_rows(
    curves: Sequence[Sequence[Figure]], iterations: Sequence[int], names: Sequence[str], p: Panel, note: str
) -> list[dict[str, Any]]:
    """The rows of one measure.

    curves: one figure per seed and evaluation. names: the seeds. p: a panel with the same problems.
    """
    values = np.array([[figure.values for figure in own] for own in curves])  # (S, T, P)
    samples = np.array([[figure.samples for figure in own] for own in curves])  # (S, T)
    note = join_notes(*(figure.note for own in curves for figure in own), note)
    rows = []
    for figure, iteration, columns in _figures(values, iterations):
        labels = {"figure": figure, "iteration": iteration}
        counts = samples.sum(axis=1) if iteration is None else samples[:, iterations.index(iteration)]
        if figure == AREA_GAIN:
            of_seeds = [difference(column, groups=p.groups, note=note) for column in columns]
        else:
            of_seeds = [
                share(column, groups=p.groups, samples_per_unit=count, note=note)
                for column, count in zip(columns, counts, strict=True)
            ]
        rows += [{**labels, "seed": seed, **e.row()} for seed, e in zip(names, of_seeds, strict=True)]
        if len(names) > 1:
            if figure == AREA_GAIN:
                mean = difference(columns, groups=p.groups, note=note)
            else:
                # The mean over seeds is taken per problem. It is computed from the completions of all seeds.
                own = share(columns.mean(axis=0), groups=p.groups, samples_per_unit=counts.sum(), note=note)
                mean = mean_over_seeds(own, of_seeds, p.groups) or own
            known = [e.estimate for e in of_seeds if e.estimate is not None]
            spread = {"seed_min": min(known), "seed_max": max(known)} if known else {}
            rows.append({**labels, "seed": MEAN, "num_seeds": len(names), **spread, **mean.row()})
    return rows


def _figures(values: FloatArray, iterations: Sequence[int]) -> list[tuple[str, int | None, FloatArray]]:
    """Each figure with its iteration and its values (S, P). values: (S, T, P)."""
    found: list[tuple[str, int | None, FloatArray]] = [(LEVEL, at, values[:, t]) for t, at in enumerate(iterations)]
    if len(iterations) > 1:
        area: FloatArray = np.einsum("t,stp->sp", area_weights(iterations), values)
        found.append((AREA, None, area))
        if iterations[0] == 0:
            found.append((AREA_GAIN, None, area - values[:, 0]))
    return found


def learning_report(
    frame: pl.DataFrame, *, title: str = "Learning curves on held-out problems (percent)", at_start: str = "untrained"
) -> ReportTable:
    """Format learning curves: one row per measure, one column per evaluation, and the areas.

    Of an arm with several seeds the table shows the mean with the range of the seeds; the tidy frame has each.

    Args:
        frame: one or several results of `learning_table`.
        title: title of the table.
        at_start: name of the evaluation of iteration 0 (`when`), which an import also has.
    """
    is_mean = pl.col("seed") == MEAN
    visible = frame.filter(is_mean | ~is_mean.any().over("arm"))
    iterations = visible["iteration"].drop_nulls().unique().sort().to_list()
    columns = [(LEVEL, i) for i in iterations] + [(AREA, None), (AREA_GAIN, None)]
    lead = ["arm", "k", "model"] if frame["arm"].n_unique() > 1 else ["k", "model"]
    shown = []
    keys = ["arm", "k", "model", "candidates", "measure"]
    for part in visible.partition_by(keys, maintain_order=True):
        first = part.row(0, named=True)
        cells = {(row["figure"], row["iteration"]): _cell(row) for row in part.iter_rows(named=True)}
        name = f"team Pass@{first['k']}" if first["measure"] == TEAM_PASS else f"Pass@{first['candidates']}"
        shown.append([*(first[c] for c in lead), name, *(cells.get(column, UNDEFINED) for column in columns)])
    names = [(at_start if i == 0 else f"iteration {i}") for i in iterations]
    notes = [
        "area: area under the curve / iterations that it spans (mean height); gain: area - level of iteration 0, paired"
    ]
    notes += [*_problem_notes(visible), *_seed_notes(visible), *note_counts(visible["note"])]
    if not frame.height:
        notes = ["no evaluation of all models is published yet"]
    table = laid_out([*lead, "measure", *names, "area", "area gain"], shown)
    return ReportTable(
        "learning", title, frame, table, notes, starts=group_starts([row[: len(lead) - 1] for row in shown])
    )


def _problem_notes(visible: pl.DataFrame) -> list[str]:
    """The number of problems of each arm, if they differ: then the levels of the arms cannot be compared."""
    sizes = visible.group_by("arm", maintain_order=True).agg(pl.col("num_problems").max()).rows()
    if len({size for _, size in sizes}) < 2:
        return []
    return [f"WARNING: the arms are on different problems: {', '.join(f'{arm} on {size}' for arm, size in sizes)}"]


def _seed_notes(visible: pl.DataFrame) -> list[str]:
    """What the intervals are over: once for all arms, or for each arm if their numbers of seeds differ."""
    num_seeds = dict(visible.select("arm", "num_seeds").unique(maintain_order=True).iter_rows())
    if len(set(num_seeds.values())) == 1:
        return [_seed_note(next(iter(num_seeds.values())))]
    return [f"{arm}: {_seed_note(number)}" for arm, number in num_seeds.items()]


def _seed_note(num_seeds: int | None) -> str:
    if num_seeds is None:
        return "one run, interval over problems; the spread over seeds is unknown"
    return f"mean over {num_seeds} seeds, interval over seeds and problems (lowest to highest seed)"


def _cell(row: dict[str, Any]) -> str:
    signed = row["figure"] == AREA_GAIN
    text = percent(row["estimate"], row["low"], row["high"], signed=signed)
    if row["seed_min"] is None:
        return text
    between = " to " if signed else "–"
    low, high = (percent(row[name], None, None, signed=signed) for name in ("seed_min", "seed_max"))
    return f"{text} ({low}{between}{high})"
