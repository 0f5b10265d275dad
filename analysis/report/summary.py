"""Short tables: the summary of one run, which the launcher prints at its end, and one line per run.

The input is `RunData`. The output is `ReportTable`s. All numbers are computed in
`metrics/passk.py`, `metrics/rescue.py` and `metrics/overlap.py`. The full tables are in
`report/report.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from analysis.counts.load import RunData
from analysis.layout.tables import UNDEFINED, ReportTable, coefficient, group_starts, laid_out, percent
from analysis.metrics import overlap, passk, rescue
from analysis.metrics.contrasts import arms_among
from analysis.metrics.useless import MUCH_USELESS, USELESS, percent_by_model, useless_shares
from analysis.report.evaluation_tables import BEFORE_DISABLED, ONLY_EVALUATED, left_out, missing, panels
from analysis.report.training_tables import rescue_cell
from analysis.stats.intervals import ESTIMATE_COLUMNS, FEW_PROBLEMS, METHOD_NOTE
from core_hpc.store.schema import EVALUATE

SUMMARY = "summary"
"""Name of the table of held-out problems."""


def summary_table(data: RunData) -> ReportTable:
    """Pass@k before and after training (or of the only evaluation), and error overlap of a run, in percent."""
    ks = passk.default_ks(data.num_samples)
    scores = passk.before_after_table(data.counts, ks=ks, models=data.models)
    shown: list[list[str]] = []
    for model in data.models:
        for depth in ks:
            shown.append([model, f"Pass@{depth}", *_levels(scores, passk.PASS, model, depth)])
    if len(data.models) > 1:
        for depth in ks:
            measure = f"Pass@{depth} ({depth * len(data.models)} candidates)"
            shown.append([passk.TEAM, measure, *_levels(scores, passk.TEAM_PASS, passk.TEAM, depth)])
        shown += _overlap_rows(data)
    gaps = [f"WARNING: {line}" for line in left_out(panels(data))]
    notes = [*missing(data), *gaps, METHOD_NOTE, *_useless_notes(data)]
    num_problems = scores["num_problems"].min() if scores.height else 0
    if isinstance(num_problems, int) and 0 < num_problems < FEW_PROBLEMS:
        notes.append(
            f"{num_problems} held-out problems, fewer than {FEW_PROBLEMS}: "
            "intervals are wide, and small differences are not reliable"
        )
    columns = ["model", "measure", passk.BEFORE, passk.AFTER, passk.DIFFERENCE]
    table = laid_out(columns, shown)
    if BEFORE_DISABLED in notes:
        table = table.drop(passk.BEFORE, passk.DIFFERENCE)
    if data.only_evaluates:
        table = table.drop(passk.AFTER, passk.DIFFERENCE).rename({passk.BEFORE: ONLY_EVALUATED})
    starts = group_starts([row[0] for row in shown])
    title = f"{data.title}: held-out problems (percent)"
    return ReportTable(SUMMARY, title, scores, table, notes, starts=starts)


def rescue_summary_table(data: RunData) -> ReportTable:
    """Correct rescue completions without the hint (the control), with it, and the difference, in percent."""
    rescues = rescue.rescue_table(data.counts)
    teams: list[str | None] = [*data.models, *([None] if len(data.models) > 1 else [])]
    shown = [row for student in teams for row in _rescue_rows(rescues, student)]
    starts = [len(shown) - 1] if len(shown) > 1 and shown[-1][0] == passk.TEAM else []
    notes = ["training problems that the model failed cold; attempts without the hint are the control"]
    columns = ["model", "without the hint", "with the hint", "uplift"]
    table = laid_out(columns, shown)
    title = f"{data.title}: rescue of cold-failed training problems (percent)"
    return ReportTable("rescue_summary", title, rescues, table, notes if shown else [], starts=starts)


def summary_tables(data: RunData) -> list[ReportTable]:
    """The summary of a run: held-out problems of every set and, if there are any, rescues."""
    rescues = rescue_summary_table(data)
    sets = [replace(summary_table(own), name=f"{SUMMARY}_{name}") for name, own in data.sets.items()]
    return [summary_table(data), *sets, *([rescues] if rescues.shown.height else [])]


def key_numbers(tables: Sequence[ReportTable]) -> list[tuple[str, str]]:
    """The most important numbers of `summary_tables`: (name, value). Intervals are in the tables.

    The team spends several candidates where a model spends one. So the best single model with as many
    candidates stands beside it.
    """
    found = []
    for table in tables:
        if table.name.startswith(f"{SUMMARY}_"):  # of a further set
            continue
        for row in table.shown.iter_rows(named=True):
            if row.get("measure", "").split(" ")[0] == "Pass@1":
                names = [name for name in (passk.BEFORE, passk.AFTER, ONLY_EVALUATED) if name in row]
                found.append(
                    (f"{row['model']} {row['measure']}", " → ".join(row[name].split(" ")[0] for name in names))
                )
                if row["model"] == passk.TEAM:
                    found += _best_single(table.frame, [passk.BEFORE if n == ONLY_EVALUATED else n for n in names])
            elif "uplift" in row and row["model"] == passk.TEAM:
                found.append(("rescue uplift", row["uplift"].split(" ")[0]))
    return found


def _best_single(scores: pl.DataFrame, whens: Sequence[str]) -> list[tuple[str, str]]:
    """The key number of the best model alone, with as many candidates as the team spends at k = 1.

    It may be another model before training than after it. There is none if no evaluation has enough completions.
    """
    matched = scores.filter(measure=passk.MATCHED_PASS, k=1)
    best = [max(matched.filter(when=when)["estimate"].drop_nulls().to_list(), default=None) for when in whens]
    if all(level is None for level in best):
        return []
    size = matched["candidates"][0]
    levels = [percent(level, None, None) for level in best]
    return [(f"best single model Pass@{size} ({size} candidates)", " → ".join(levels))]


def _latest(data: RunData) -> int | None:
    """The iteration of the latest evaluation; None if none is published."""
    return next((i for i in reversed(passk.before_and_after(data.counts, data.models)) if i is not None), None)


def _useless_notes(data: RunData) -> list[str]:
    """The shares of truncated and of unanswered completions in the latest evaluation, by model."""
    latest = _latest(data)
    shares = {} if latest is None else useless_shares([(data, latest)])
    notes = []
    for column, what in USELESS.items():
        of_model = shares.get(column)
        if of_model:
            warning = "WARNING: " if max(of_model.values()) > MUCH_USELESS else ""
            notes.append(f"{warning}{what} in the latest evaluation (percent): {percent_by_model(of_model)}")
    return notes


def _levels(scores: pl.DataFrame, measure: str, model: str, k: int) -> list[str]:
    """The cells before, after and difference of one measure."""
    here = scores.filter(pl.col("measure") == measure, pl.col("model") == model, pl.col("k") == k)
    rows = {row["when"]: row for row in here.iter_rows(named=True)}
    return [
        _percent(rows.get(when), signed=when == passk.DIFFERENCE)
        for when in (passk.BEFORE, passk.AFTER, passk.DIFFERENCE)
    ]


def _percent(row: dict[str, Any] | None, *, signed: bool = False) -> str:
    return percent(row["estimate"], row["low"], row["high"], signed=signed) if row else UNDEFINED


def _rescue_rows(rescues: pl.DataFrame, student: str | None) -> list[list[str]]:
    """Rescue in training: correct without the hint (the control), with it, and the difference."""
    if student is None:
        here = rescues.filter(pl.col("group") == "all")
    else:
        here = rescues.filter(pl.col("group") == "student", pl.col("student") == student)
    rows = {row["rate"]: row for row in here.iter_rows(named=True)}
    if not rows:
        return []
    cells = [rescue_cell(rows.get(rate)) for rate in (rescue.CONTROL, rescue.PER_ATTEMPT, rescue.UPLIFT)]
    return [[student or passk.TEAM, *cells]]


def _overlap_rows(data: RunData) -> list[list[str]]:
    """Joint failure and correlation of failure of every pair of models, for one completion."""
    before, after = passk.before_and_after(data.counts, data.models)
    iterations = [i for i in (before, after) if i is not None]
    table = overlap.overlap_table(data.counts, models=data.models, iterations=iterations)
    table = table.filter(pl.col("level") == overlap.SAMPLE, pl.col("model_a") != pl.col("model_b"))
    out = []
    for measure, name, form in (("joint_failure", "both fail", percent), ("phi", "error correlation", coefficient)):
        pairs = table.filter(pl.col("measure") == measure).group_by("model_a", "model_b", maintain_order=True)
        for (a, b), pair in pairs:
            cells = {
                row["iteration"]: form(row["estimate"], row["low"], row["high"]) for row in pair.iter_rows(named=True)
            }
            shown = [UNDEFINED if i is None else cells.get(i, UNDEFINED) for i in (before, after)]
            out.append([f"{a}, {b}", name, *shown, ""])
    return out


def headline_table(runs: Sequence[RunData]) -> ReportTable:
    """One line per run: its latest evaluation and its rescue uplift, in percent.

    Runs of different arms may have similar names, such as seed-1-1a2b3c4d. So the arms are shown if there are several.
    """
    rows, frames = [], []
    arms = {data.path: name for name, own in arms_among(runs).items() for data in own}
    for data in runs:
        frame = _headline(data)
        frames.append(frame.select(pl.lit(data.name).alias("run"), pl.lit(arms[data.path]).alias("arm"), pl.all()))
        cells = {row["figure"]: row for row in frame.iter_rows(named=True)}
        single, gain = cells.get("best_model", {}), cells.get("gain", {})
        iteration = max((row["iteration"] for row in cells.values() if row["iteration"] is not None), default=None)
        rows.append(
            [
                data.name,
                arms[data.path],
                UNDEFINED if iteration is None else f"iteration {iteration}",
                single.get("num_problems", UNDEFINED),
                single.get("model", UNDEFINED),
                _percent(single),
                _percent(cells.get("team")),
                _percent(gain, signed=True),
                _percent(cells.get("uplift"), signed=True),
            ]
        )
    columns = [
        "run",
        "arm",
        "evaluated",
        "problems",
        "best model",
        "its Pass@1",
        "team Pass@1",
        "gain at matched budget",
        "rescue uplift",
    ]
    notes = [
        "gain at matched budget: team Pass@1 of N models - Pass@N of the best model, in percentage points",
        *(f"WARNING: {data.name}: {line}" for data in runs for line in left_out(panels(data))),
        METHOD_NOTE,
    ]
    title = "Latest evaluation of every run (percent)"
    shown = laid_out(columns, rows)
    shown = shown if len(set(arms.values())) > 1 else shown.drop("arm")
    return ReportTable("runs", title, pl.concat(frames), shown, notes)


def _headline(data: RunData) -> pl.DataFrame:
    """The estimates of a run's line: figure, iteration, model and `ESTIMATE_COLUMNS`."""
    counts = data.counts.filter(pl.col("phase") == EVALUATE, pl.col("iteration") == pl.lit(_latest(data), pl.Int32))
    scores = passk.pass_at_k_table(counts, ks=[1], models=data.models, teams=[])
    singles = scores.filter(pl.col("measure") == passk.PASS).sort("estimate", descending=True, nulls_last=True).head(1)
    gains = passk.gain_table(counts, ks=[1], models=data.models)
    gains = gains.filter(pl.col("baseline") == passk.MATCHED_BUDGET, pl.col("against") == passk.BEST)
    uplift = rescue.rescue_table(data.counts, groups=["all"]).filter(pl.col("rate") == rescue.UPLIFT)
    parts = {
        "best_model": singles.select("iteration", "model", *ESTIMATE_COLUMNS),
        "team": scores.filter(pl.col("measure") == passk.TEAM_PASS).select("iteration", "model", *ESTIMATE_COLUMNS),
        "gain": gains.select("iteration", pl.col("best_model").alias("model"), *ESTIMATE_COLUMNS),
        "uplift": uplift.select("iteration", pl.lit(None, pl.String).alias("model"), *ESTIMATE_COLUMNS),
    }
    return pl.concat(part.select(pl.lit(name).alias("figure"), pl.all()) for name, part in parts.items())
