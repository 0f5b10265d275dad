"""Tables about selectors, hints, teachers and the change of the error overlap.

The input is `RunData`. The output is tidy frames of a whole run, for the command line, and
`ReportTable`s for a report. All numbers are computed in `metrics/selectors.py`, `metrics/hints.py`
and `metrics/overlap_change.py`; this module reads what they need, names and arranges it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from analysis.counts.completions import load_completions
from analysis.counts.counts import iterations_of
from analysis.counts.load import RunData, load_hints
from analysis.layout.tables import (
    UNDEFINED,
    ReportTable,
    coefficient,
    group_starts,
    laid_out,
    note_counts,
    percent,
)
from analysis.metrics import hints as hint_effects
from analysis.metrics import rescue, selectors
from analysis.metrics.overlap import MEASURES, SHARES
from analysis.metrics.overlap_change import overlap_change_table
from analysis.metrics.passk import TEAM
from analysis.metrics.pilot import pilot_of_runs
from analysis.metrics.plan import resolution_report
from core_hpc.common.errors import InputError
from core_hpc.store.schema import EVALUATE

SELECTORS_OF_RUN = pl.Schema({"phase": pl.String(), "iteration": pl.Int32(), **selectors.SELECTOR_TABLE})
_SELECTOR_NAMES = {
    selectors.SINGLE: "one completion",
    selectors.ORACLE: "oracle: any correct",
    selectors.MAJORITY: "majority",
    selectors.GATED: "gated",
    selectors.CONFIDENCE: "most confident",
    selectors.FIRST_AGREE: "first two that agree",
}
_NO_CASES = "no rescue completions of cold-failed cases are published yet"


# --- tidy frames of a run ------------------------------------------------------------------------


def selectors_of_run(
    data: RunData,
    *,
    ks: Sequence[int],
    phase: str = EVALUATE,
    iterations: Sequence[int] | None = None,
    counts: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Compute the selectors of every evaluation of a run.

    Args:
        data: the run.
        ks: completions per model.
        phase: evaluate (held-out problems) or cold (training problems, without hints).
        iterations: default: all published iterations.
        counts: a part of the counts of the run; only its problems are used. Default: all.

    Returns:
        A frame with the schema `SELECTORS_OF_RUN`.
    """
    frames = [pl.DataFrame(schema=SELECTORS_OF_RUN)]
    for iteration in iterations_of(data.counts if counts is None else counts, models=data.models, phase=phase):
        if iterations is None or iteration in iterations:
            rows = load_completions(data, phase=phase, iteration=iteration)
            if counts is not None:
                here = counts.filter(pl.col("phase") == phase, pl.col("iteration") == iteration)
                rows = rows.join(here, on="problem_id", how="semi")
            frame = selectors.selector_table(rows, ks=ks, models=data.models)
            labels = [pl.lit(phase).alias("phase"), pl.lit(iteration, pl.Int32()).alias("iteration")]
            frames.append(frame.select(*labels, pl.all()))
    return pl.concat(frames)


def hints_of_run(data: RunData, counts: pl.DataFrame | None = None) -> pl.DataFrame:
    """Compute the effects of the hints of a run (`HINT_TABLE`), or of the problems of `counts`.

    A part of the problems has no reliance, because the steps record it for all problems together.
    """
    counts = data.counts if counts is None else counts
    reliance = hint_effects.load_reliance(data.path) if counts.height == data.counts.height else None
    return hint_effects.hint_table(counts, hints=load_hints(data.path), reliance=reliance, models=data.models)


def selectors_of_latest(data: RunData, ks: Sequence[int]) -> pl.DataFrame:
    """Compute the selectors of the latest evaluation of a run (`SELECTORS_OF_RUN`)."""
    published = iterations_of(data.counts, models=data.models)
    return selectors_of_run(data, ks=ks, iterations=published[-1:])


# --- report tables -------------------------------------------------------------------------------


def selectors_report(frame: pl.DataFrame) -> ReportTable:
    """Format the selectors of one evaluation: a row per selector, grouped by candidates.

    Args:
        frame: a frame with the columns of `SELECTORS_OF_RUN`, of one evaluation.
    """
    shown: list[list[object]] = []
    ordered = frame.sort("candidates", maintain_order=True)
    for part in ordered.partition_by("candidates", "k", "model", "selector", maintain_order=True):
        row = part.row(0, named=True)
        cells = {r["figure"]: r for r in part.iter_rows(named=True)}
        spent, below = cells[selectors.TOKENS], cells.get(selectors.BELOW)
        shown.append(
            [
                row["candidates"],
                row["model"],
                _SELECTOR_NAMES[row["selector"]],
                _percent(cells[selectors.ACCURACY]),
                UNDEFINED if below is None else _percent(below),
                _amount(spent),
                _amount(cells[selectors.PER_SOLVED]),
            ]
        )
    notes = ["no evaluation of all models is published yet"]
    if shown:
        notes = [
            *(
                f"{_SELECTOR_NAMES[name]}: {text}"
                for name, text in selectors.SELECTORS.items()
                if name != selectors.SINGLE
            ),
            "below the oracle: with the same models and k, paired by problem (points); "
            "tokens: sampled, without prompts",
            "candidates: completions per problem, at most",
            *note_counts(frame["note"]),
        ]
    columns = [
        "candidates",
        "models",
        "selector",
        "solved",
        "below the oracle",
        "tokens per problem",
        "tokens per solved problem",
    ]
    title = "Answers without gold: accuracy and cost (percent, tokens)"
    starts = group_starts([row[0] for row in shown])
    return ReportTable("selectors", title, frame, laid_out(columns, shown), notes, starts=starts)


def _percent(row: Mapping[str, Any], *, signed: bool = False) -> str:
    return percent(row["estimate"], row["low"], row["high"], signed=signed)


def _amount(row: Mapping[str, Any]) -> str:
    """Tokens with their interval, without decimals."""
    return coefficient(row["estimate"], row["low"], row["high"], digits=0)


def hints_report(frame: pl.DataFrame) -> ReportTable:
    """Format the effects of hints: a row per student and kind of leak."""
    rates = [rescue.LEAK_SHARE, rescue.PER_ATTEMPT, rescue.CONTROL, rescue.UPLIFT]
    relied = [m for m in (hint_effects.RELIANCE,) if m in set(frame["measure"])]
    shown = []
    for part in frame.partition_by("student", "leak", maintain_order=True):
        row, cells = part.row(0, named=True), {r["measure"]: r for r in part.iter_rows(named=True)}
        texts = [_percent(cells[m], signed=m == rescue.UPLIFT) if m in cells else UNDEFINED for m in rates]
        texts += [_coefficient(cells.get(m)) for m in relied]
        shown.append([row["student"], hint_effects.LEAK_NAMES[row["leak"]], row["cases"], *texts])
    notes = [_NO_CASES]
    if shown:
        notes = [f"{name.replace('_', ' ')}: {hint_effects.EFFECTS[name]}" for name in (*rates, *relied)]
        if not relied:
            notes.append("reliance is not shown: the steps of this run do not record it")
        if not frame.filter(pl.col("leak") != hint_effects.ALL).height:
            notes.append("leaks are not known: the hints of this run do not have the column leak")
        notes += note_counts(frame["note"])
    columns = ["student", "hints", "cases", *(name.replace("_", " ") for name in (*rates, *relied))]
    title = "Effect of hints by leak of the gold answer (percent, points)"
    starts = group_starts([row[0] for row in shown])
    return ReportTable("hints", title, frame, laid_out(columns, shown), notes, starts=starts)


def _coefficient(row: Mapping[str, Any] | None) -> str:
    return UNDEFINED if row is None else coefficient(row["estimate"], row["low"], row["high"])


def teaching_tables(data: RunData) -> list[ReportTable]:
    """The effects of hints and, for a team, who teaches whom; nothing without rescues."""
    if data.config is None or not data.config.protocol.rescue_samples:
        return []
    tables = [hints_report(hints_of_run(data))]
    if len(data.models) > 1:
        matrix = hint_effects.teaching_table(data.counts, models=data.models)
        tables.append(teaching_report(matrix, data.models))
    return tables


def resolution_tables(data: RunData, k: int) -> list[ReportTable]:
    """What differences a comparison with runs like this one can find; nothing if it is not known."""
    try:
        pilot = pilot_of_runs([data], k=k, model=TEAM if len(data.models) > 1 else data.models[0])
    except InputError:  # nothing is evaluated, or there are too few completions per problem
        return []
    return [resolution_report(pilot)]


def teaching_report(frame: pl.DataFrame, models: Sequence[str]) -> ReportTable:
    """Format who teaches whom as a matrix: teachers in rows, students in columns."""
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for row in frame.iter_rows(named=True):
        cells.setdefault((row["teacher"], row["student"]), {})[row["measure"]] = row
    shown = [
        [teacher, *(_lesson(cells.get((teacher, student))) for student in models)] for teacher in models if frame.height
    ]
    notes = [_NO_CASES]
    if shown:
        notes = [
            "cell: uplift in points with its interval (cases rescued by this teacher / its cases with the hint)",
            f"uplift: {hint_effects.TEACHING[rescue.UPLIFT]}",
            *note_counts(frame["note"]),
        ]
    title = "Who teaches whom: uplift of the hints of a teacher (row) for a student (column)"
    return ReportTable("teaching", title, frame, laid_out(["teacher", *models], shown), notes)


def _lesson(rows: Mapping[str, Mapping[str, Any]] | None) -> str:
    if rows is None:
        return UNDEFINED
    case = rows[rescue.PER_CASE]
    return f"{_percent(rows[rescue.UPLIFT], signed=True)} ({case['numerator']}/{case['denominator']})"


def overlap_change_report(data: RunData) -> ReportTable:
    """Every measure of error overlap before and after training, and its change."""
    frame = overlap_change_table(data.counts, models=data.models, answers=data.answers)
    shown = []
    for row in frame.iter_rows(named=True):
        form = percent if row["measure"] in SHARES else coefficient
        change = form(row["estimate"], row["low"], row["high"], signed=True)
        levels = [form(row[when], None, None) for when in ("before", "after")]
        shown.append([f"{row['model_a']}, {row['model_b']}", row["level"], row["measure"], *levels, change])
    notes = ["both evaluations, before and after training, are needed"]
    if shown:
        notes = [
            "change: after - before, with its own interval, paired by problem; shares in percent and points",
            *(f"{name}: {MEASURES[name]}" for name in MEASURES if name in set(frame["measure"])),
            *note_counts(frame["note"]),
        ]
    columns = ["models A, B", "level", "measure", "before", "after", "change"]
    starts = group_starts([row[:2] for row in shown])
    title = "Change of the error overlap by training"
    return ReportTable("overlap_change", title, frame, laid_out(columns, shown), notes, starts=starts)
