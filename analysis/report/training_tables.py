"""The tables of a report about the training: rescue, training curves, cost, published completions.

The input is the `RunData`, the curves and the cost of a run. The output is `ReportTable`s, with
notes about what is not published yet. All numbers are computed in `metrics/rescue.py`,
`metrics/curves.py` and `timing/cost.py`; this module selects, names and arranges them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from analysis.counts.counts import in_batches
from analysis.counts.load import RunData
from analysis.layout.tables import (
    UNDEFINED,
    ReportTable,
    group_starts,
    laid_out,
    note_marks,
    number,
    percent,
    with_marks,
)
from analysis.metrics import rescue
from analysis.stats.intervals import join_notes
from core_hpc.store.paths import TEAM


def rescue_table(data: RunData, hints: pl.DataFrame | None = None) -> ReportTable:
    """Rescue rates of all cases, and by student, pair, iteration and difficulty.

    With `hints` (`load_hints`), the rates by the length of the hint and the share of leaking hints
    are added.
    """
    groups = [group for group in rescue.GROUPS if group != "hint_length" or (hints is not None and hints.height)]
    frame = rescue.rescue_table(data.counts, groups=groups, hints=hints)
    # In a team of two, a student has one teacher, so the pairs contain the same numbers.
    visible = frame.filter(pl.col("group") != "student") if len(data.models) == 2 else frame
    # Without hints, or in runs of an earlier version, no leaks are known.
    known = set(frame["rate"]) | set(rescue.RATES) - {rescue.LEAK_SHARE}
    shown_rates = [rate for rate in rescue.RATES if rate in known]
    shown, groups_shown, row_notes = [], [], []
    for part in visible.partition_by("group", "teacher", "student", "iteration", "bin", maintain_order=True):
        row = part.row(0, named=True)
        who = {
            "all": "all",
            "student": f"all -> {row['student']}",
            "pair": f"{row['teacher']} -> {row['student']}",
            "iteration": f"iteration {row['iteration']}",
            "hint_length": f"hint of {row['bin']}",
            "difficulty": f"cold pass rate {row['bin']}",
        }
        rates = {r["rate"]: r for r in part.iter_rows(named=True)}
        shown.append([who[row["group"]], *(rescue_cell(rates.get(rate)) for rate in shown_rates)])
        groups_shown.append(row["group"])
        row_notes.append(join_notes(*(_rate_note(r) for r in rates.values())))
    marks, legend = note_marks(row_notes)
    if shown:
        notes = [*(f"{rate.replace('_', ' ')}: {rescue.RATES[rate]}" for rate in shown_rates), *legend]
    else:
        notes = [no_rescues(data)]
    columns = ["cases", *(rate.replace("_", " ") for rate in shown_rates)]
    title = "Rescue of cold-failed cases (percent, counts)"
    table = with_marks(laid_out(columns, shown), marks)
    return ReportTable("rescue", title, frame, table, notes, starts=group_starts(groups_shown))


def _rate_note(row: Mapping[str, Any]) -> str:
    """The note of a rate. Without an estimate or an interval, the note names the rate that it is about."""
    if row["low"] is not None:
        return str(row["note"])
    return join_notes(*(f"{row['rate'].replace('_', ' ')}: {part}" for part in row["note"].split("; ") if part))


def no_rescues(data: RunData) -> str:
    """Return why a run without a rescue case has none."""
    if data.config is None:
        return "imported predictions have no rescue completions"
    if data.config.protocol.rescue_samples == 0:
        return "the rescue phase is switched off (protocol.rescue_samples: 0)"
    return "no rescue completions of cold-failed cases are published yet"


def rescue_cell(row: Mapping[str, Any] | None) -> str:
    """A rate of `rescue.rescue_table` with interval and counts; UNDEFINED for None."""
    if row is None:
        return UNDEFINED
    if row["rate"] == rescue.UPLIFT:  # its counts are those of per_attempt and control
        return percent(row["estimate"], row["low"], row["high"], signed=True)
    return f"{percent(row['estimate'], row['low'], row['high'])} ({row['numerator']}/{row['denominator']})"


def rows_table(data: RunData) -> ReportTable:
    """Published problems and completions by phase, iteration and model."""
    names = {"n": "completions", "c": "correct", "num_timeout": "verification time-outs", "num_truncated": "truncated"}
    groups, problems = ("phase", "iteration", "model"), pl.col("problem_id").n_unique().alias("problems")
    frame = in_batches(
        data.counts, lambda part: part.filter(pl.col("n") > 0).group_by(groups).agg(problems, pl.col(list(names)).sum())
    )
    frame = frame.sort(groups).rename(names)
    notes = [] if frame.height else ["nothing is published yet"]
    return ReportTable("rows", "Published completions", frame, laid_out(frame.columns, frame.rows()), notes)


def curves_table(data: RunData, curves: pl.DataFrame) -> ReportTable:
    """Training curves at the first and the last iteration. The CSV file has all iterations."""
    iterations = curves["iteration"].unique().sort().to_list()
    ends = [*iterations[:1], *iterations[1:][-1:]]
    cells: dict[str, dict[str, str]] = {}
    for part in curves.partition_by("measure", "model", maintain_order=True):
        values = dict(part.select("iteration", "value").rows())
        cell = " → ".join(number(values.get(i)) or UNDEFINED for i in ends)
        cells.setdefault(part["measure"][0], {})[part["model"][0]] = cell
    models = [*data.models, TEAM]
    shown = [[measure, *(row.get(model, UNDEFINED) for model in models)] for measure, row in cells.items()]
    notes = [] if shown else [no_curves(data)]
    title = f"Training curves, iteration {' → '.join(map(str, ends))}" if shown else "Training curves"
    starts = group_starts([measure.split("/")[0] for measure in cells])
    return ReportTable("curves", title, curves, laid_out(["measure", *models], shown), notes, starts=starts)


def no_curves(data: RunData) -> str:
    """Return why a run without training curves has none."""
    if data.config is None:
        return "imported predictions have no training"
    return "the run has no training (iterations: 0)" if data.only_evaluates else "no scores are published yet"


def cost_table(cost: pl.DataFrame) -> ReportTable:
    """Hours and tokens by phase.

    Args:
        cost: `Cost.table` of `timing/cost.py`.
    """
    names = [name.replace("_", " ") for name in cost.columns]
    shown = [[UNDEFINED if cell is None else _amount(cell) for cell in row] for row in cost.rows()]
    notes = [
        "cost of published results, from the start of a task to its publication; "
        "failed attempts and waiting workers are not included"
    ]
    if cost["gpu_hours"].null_count():
        notes.append("GPU-hours: not all tasks recorded them")
    return ReportTable("cost", "Cost by phase", cost, laid_out(names, shown), notes, starts=[cost.height - 1])


def _amount(cell: float | str) -> str:
    return f"{cell:,.2f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else cell
