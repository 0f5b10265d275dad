"""The tables of a report about held-out problems: Pass@k, gain, votes, strata, error overlap.

The input is `RunData`. The output is `ReportTable`s, with notes about what is not published yet.
All numbers are computed in `metrics/passk.py`, `metrics/votes.py` and `metrics/overlap.py`; this
module selects, names and arranges them. The best estimate is marked among estimates with the same
number of candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from analysis.counts.counts import Panel, panel
from analysis.counts.load import RunData
from analysis.layout.tables import (
    KIND,
    UNDEFINED,
    ReportTable,
    coefficient,
    group_starts,
    is_best,
    laid_out,
    note_counts,
    note_marks,
    percent,
    with_marks,
)
from analysis.metrics import overlap, passk, votes
from analysis.metrics.strata import stratified
from analysis.stats.intervals import METHOD_NOTE, join_notes
from core_hpc.store.schema import EVALUATE

PREDICTIONS = "predictions"
ONLY_EVALUATED = "evaluation"
"""Name of the only evaluation of a run without training (`iterations: 0`)."""
NO_BEFORE = "the evaluation before training (iteration 0) is not published yet"
BEFORE_DISABLED = "the models before the first iteration are not evaluated in this run (evaluation.before)"
NO_AFTER = "no evaluation after training is published yet"
NO_PREDICTIONS = "no predictions on held-out problems"
_CANDIDATES = (
    "candidates: completions spent per problem; bold: highest estimate at the same number of candidates "
    "(its interval is not considered)"
)
_WHOLE = "coverage"
_PASS_NAMES = {
    passk.PASS: "Pass@{spent}",
    passk.MATCHED_PASS: "Pass@{spent}",
    passk.TEAM_PASS: "team Pass@{k}",
    passk.COVERAGE: _WHOLE,
}
_FURTHER_NAMES = {passk.PASS_HAT: "pass^{k}", passk.FIRST: "first-{k}"}
_VOTE_NAMES = {
    votes.MAJ: "maj@{spent}",
    votes.MATCHED_MAJ: "maj@{spent}",
    votes.TEAM_MAJ: "team maj@{k}",
    votes.GATED_ANSWERED: "gated, k = {k}: answered",
    votes.GATED_ACCURACY: "gated, k = {k}: correct of answered",
    votes.GATED_CORRECT: "gated, k = {k}: correct of all",
}
_OVERLAP_NAMES = {
    "joint_failure": "both fail",
    "jaccard": "Jaccard",
    "b_fails_given_a": "B fails where A fails",
    "a_fails_given_b": "A fails where B fails",
    "only_a": "only A solves",
    "only_b": "only B solves",
    "lift": "lift",
    "kappa": "Cohen's kappa",
    "phi": "phi",
    "yule_q": "Yule's Q",
    "phi_corrected": "phi, corrected",
    "same_wrong_answer": "same wrong answer",
}


def missing(data: RunData) -> list[str]:
    """Messages about missing evaluations; empty when there are none."""
    before, after = passk.before_and_after(data.counts, data.models)
    if data.config is None:
        return [] if (before, after) != (None, None) else [NO_PREDICTIONS]
    no_before = NO_BEFORE if data.config.evaluation.before else BEFORE_DISABLED
    return [no_before] * (before is None) + [NO_AFTER] * (after is None and not data.only_evaluates)


def evaluations(data: RunData) -> dict[int, str]:
    """The iterations of the evaluations that are shown, with their names."""
    before, after = passk.before_and_after(data.counts, data.models)
    names = (passk.BEFORE, passk.AFTER) if data.config is not None else (PREDICTIONS, PREDICTIONS)
    names = (ONLY_EVALUATED, passk.AFTER) if data.only_evaluates else names
    return {iteration: name for iteration, name in zip((before, after), names, strict=True) if iteration is not None}


def panels(data: RunData) -> dict[int, Panel]:
    """The panels of the evaluations that are shown, by their iteration."""
    return {i: panel(data.counts, models=data.models, iteration=i) for i in evaluations(data)}


def left_out(shown: Mapping[int, Panel]) -> list[str]:
    """Messages about the problems that are left out of these evaluations; empty when there are none."""
    return [f"evaluation {i}: {p.note}" for i, p in shown.items() if p.note]


def evaluated(data: RunData) -> pl.DataFrame:
    """The counts of the evaluations that are shown."""
    return data.counts.filter(pl.col("phase") == EVALUATE, pl.col("iteration").is_in(list(evaluations(data))))


# --- Pass@k and votes ----------------------------------------------------------------------------


def pass_table(data: RunData, ks: Sequence[int]) -> ReportTable:
    """Pass@k of models and team before and after training, and the difference."""
    frame = passk.before_after_table(data.counts, ks=ks, models=data.models)
    notes = missing(data)
    if frame.height:
        _, after = passk.before_and_after(data.counts, data.models)
        notes += [f"after: {after} of {data.config.iterations} iterations"] if after and data.config is not None else []
        notes += [_CANDIDATES, "coverage: solved by at least one of all completions", METHOD_NOTE]
    if data.config is None or data.only_evaluates:
        when = ""
    else:
        when = " after training" if BEFORE_DISABLED in notes else ", before and after training"
    title = f"Held-out problems{when} (percent), by candidates spent"
    return _levels(data, frame, _PASS_NAMES, name="pass", title=title, notes=notes)


def gain_table(data: RunData, ks: Sequence[int]) -> ReportTable:
    """The team minus the best model, and minus each model, at equal k and at matched budget."""
    frame = passk.gain_table(data.counts, ks=ks, models=data.models)
    frame = frame.filter(pl.col("iteration").is_in(list(evaluations(data))))
    rows, row_notes = [], []
    for part in frame.partition_by("iteration", "k", "baseline", maintain_order=True):
        cells = {row["against"]: row for row in part.iter_rows(named=True)}
        best = cells[passk.BEST]
        comparison = "equal k" if best["baseline"] == passk.EQUAL_K else "matched budget"
        over = [cells[name] for name in (passk.BEST, *data.models)]
        gains = [percent(cell["estimate"], cell["low"], cell["high"], signed=True) for cell in over]
        rows.append(
            [
                evaluations(data)[best["iteration"]],
                comparison,
                f"team Pass@{best['k']} - Pass@{best['candidates']}",
                best["best_model"] or UNDEFINED,
                *gains,
                best["num_problems"],
            ]
        )
        row_notes.append(join_notes(*part["note"]))
    marks, legend = note_marks(row_notes)
    columns = [
        "when",
        "comparison",
        "difference",
        "best model",
        "over the best",
        *(f"over {m}" for m in data.models),
        "problems",
    ]
    notes = missing(data)
    if rows:
        notes.append("the interval over the best model includes the uncertainty about which model is best")
    shown = with_marks(laid_out(columns, rows), marks)
    title = "Collaboration gain of the team (percentage points)"
    return ReportTable("gain", title, frame, shown, notes + legend)


def further_table(data: RunData, ks: Sequence[int]) -> ReportTable:
    """pass^k (all k completions are correct) and first-k (one of the first k is correct)."""
    frame = passk.pass_at_k_table(evaluated(data), ks=ks, models=data.models, teams=[])
    frame = frame.filter(pl.col("measure").is_in(list(_FURTHER_NAMES)))
    notes = [
        *missing(data),
        "pass^k: all of k completions are correct",
        "first-k: one of the first k completions is correct (no average over all choices of k)",
    ]
    return _levels(data, frame, _FURTHER_NAMES, name="reliability", title="Reliability (percent)", notes=notes)


def teams_table(data: RunData, ks: Sequence[int]) -> ReportTable:
    """Every sub-team of at least two models, with the single models at the same budget."""
    frame = passk.pass_at_k_table(evaluated(data), ks=ks, models=data.models)
    frame = frame.filter(pl.col("measure").is_in([passk.PASS, passk.TEAM_PASS, passk.MATCHED_PASS]))
    title = "Sub-teams (percent), by candidates spent"
    return _levels(data, frame, _PASS_NAMES, name="teams", title=title, notes=[*missing(data), _CANDIDATES])


def votes_table(data: RunData, ks: Sequence[int]) -> ReportTable:
    """Majority votes of the models and of the team, and the agreement-gated vote of the team."""
    answers = data.answers.filter(pl.col("phase") == EVALUATE, pl.col("iteration").is_in(list(evaluations(data))))
    frame = votes.vote_table(answers, ks=ks, models=data.models)
    notes = missing(data)
    if frame.height:
        notes += [
            "maj@k: expected majority vote of k completions; a tie is decided at random",
            "team maj@k: majority vote of k completions of each model, all votes together",
            "gated: the team answers only when the votes of all models agree; otherwise it abstains",
            _CANDIDATES,
        ]
    return _levels(data, frame, _VOTE_NAMES, name="votes", title="Votes (percent)", notes=notes)


def strata_table(data: RunData, ks: Sequence[int]) -> ReportTable:
    """Pass@k by data set, subject and level; an attribute with one value only is left out."""
    counts = data.counts.filter(pl.col("phase") == EVALUATE)
    frames = [
        stratified(lambda part: passk.before_after_table(part, ks=ks, models=data.models), counts, by)
        for by in ("data_set", "subject", "level")
        if by in counts.columns and counts[by].drop_nulls().n_unique() > 1
    ]
    empty = pl.DataFrame(schema={"by": pl.String, "value": pl.String, **passk.BEFORE_AFTER_TABLE})
    frame = pl.concat(frames) if frames else empty
    title = "Held-out problems by data set, subject and level (percent)"
    return _levels(data, frame, _PASS_NAMES, name="strata", title=title, notes=[_CANDIDATES], lead=("by", "value"))


def _levels(
    data: RunData,
    frame: pl.DataFrame,
    names: Mapping[str, str],
    *,
    name: str,
    title: str,
    notes: Sequence[str],
    lead: Sequence[str] = (),
) -> ReportTable:
    """A table with one row per measure and one column per evaluation.

    Args:
        data: the run.
        frame: estimates, with the columns of `PASS_TABLE` or `BEFORE_AFTER_TABLE`.
        names: measure -> its name in the table; other measures are left out.
        name: stem of the file names.
        title: title of the table.
        notes: notes that come before those of the rows.
        lead: columns of `frame` that come first.
    """
    if "when" not in frame.columns:
        frame = frame.with_columns(pl.Series("when", map(evaluations(data).get, frame["iteration"]), pl.String))
    elif data.config is None:
        frame = frame.with_columns(when=pl.lit(PREDICTIONS))
    elif data.only_evaluates:
        frame = frame.with_columns(when=pl.lit(ONLY_EVALUATED))
    columns = (passk.BEFORE, PREDICTIONS, ONLY_EVALUATED, passk.AFTER, passk.DIFFERENCE)
    order = [when for when in columns if when in set(frame["when"])]
    shown: list[list[object]] = []
    row_notes, best = [], set()
    ordered = _in_order(data, frame, names, lead)
    for part in ordered.partition_by(*lead, "candidates", "model", "label", maintain_order=True):
        cells = {row["when"]: row for row in part.iter_rows(named=True)}
        texts = [_level(cells.get(when)) for when in order]
        shown.append([*part.select(*lead, "candidates", "model", "label").row(0), *texts, part["num_problems"].min()])
        row_notes.append(join_notes(*part["note"]))
        best |= {(len(shown) - 1, when) for when, row in cells.items() if row["best"]}
    marks, legend = note_marks(row_notes)
    table = with_marks(laid_out([*lead, "candidates", "model", "measure", *order, "problems"], shown), marks)
    budget = len(lead) + 1
    starts = group_starts([(row[:budget], row[budget + 1] == _WHOLE) for row in shown])
    return ReportTable(name, title, frame, table, [*notes, *legend], best=best, starts=starts)


def _in_order(data: RunData, frame: pl.DataFrame, names: Mapping[str, str], lead: Sequence[str]) -> pl.DataFrame:
    """The rows of the named measures, each once and ordered, with columns `label` and `best`."""
    rows = frame.filter(pl.col("measure").is_in(list(names))).with_columns(KIND)
    labels = [names[row["measure"]].format(k=row["k"], spent=row["candidates"]) for row in rows.iter_rows(named=True)]
    kinds = list(dict.fromkeys(name.split("_")[-1] for name in names))
    # Sub-teams get a position between the single models and the team.
    positions = {model: i for i, model in enumerate(data.models)} | {passk.TEAM: 1 << 30}
    rows = rows.with_columns(pl.Series("label", labels, pl.String))
    # Pass@2 of a model can appear twice: for k = 2, and as the matched budget for k = 1.
    rows = rows.unique([*lead, "candidates", "model", "label", "when"], keep="first", maintain_order=True)
    rows = rows.with_columns(best=is_best([*lead, "candidates", "kind", "when"]) & (pl.col("when") != passk.DIFFERENCE))
    return rows.sort(
        *lead,
        pl.col("label") == _WHOLE,  # coverage uses all completions, so it belongs to no budget
        "candidates",
        pl.col("kind").replace_strict({kind: i for i, kind in enumerate(kinds)}, return_dtype=pl.Int64),
        pl.col("model").replace_strict(positions, default=1 << 20, return_dtype=pl.Int64),
        maintain_order=True,
    )


def _level(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return UNDEFINED
    return percent(row["estimate"], row["low"], row["high"], signed=row["when"] == passk.DIFFERENCE)


# --- overlap -------------------------------------------------------------------------------------


def overlap_table(data: RunData) -> ReportTable:
    """All measures of error overlap for every pair of models."""
    named = evaluations(data)
    frame = overlap.overlap_table(data.counts, models=data.models, iterations=list(named), answers=data.answers)
    cells: dict[tuple[str, str], dict[tuple[str, int], str]] = {}
    for row in frame.filter(pl.col("model_a") != pl.col("model_b")).iter_rows(named=True):
        form = percent if row["measure"] in overlap.SHARES else coefficient
        label = (f"{row['model_a']}, {row['model_b']}", row["measure"])
        cells.setdefault(label, {})[row["level"], row["iteration"]] = form(row["estimate"], row["low"], row["high"])
    order = [(level, i) for level in (overlap.PROBLEM, overlap.SAMPLE) for i in named]
    columns = ["models A, B", "measure", *(f"{level}, {named[i]}" for level, i in order)]
    keys = sorted(cells, key=lambda key: ([k[0] for k in cells].index(key[0]), list(overlap.MEASURES).index(key[1])))
    shown = [
        [pair, _OVERLAP_NAMES[measure], *(cells[pair, measure].get(o, UNDEFINED) for o in order)]
        for pair, measure in keys
    ]
    starts = group_starts([pair for pair, _ in keys])
    notes = missing(data)
    if shown:
        notes += [
            "problem: a model fails when all its completions are wrong; sample: expected failure of one completion",
            "shares are in percent; the other measures are coefficients",
        ]
        notes += [
            f"{name}: {overlap.MEASURES[measure]}"
            for measure, name in _OVERLAP_NAMES.items()
            if name not in overlap.MEASURES[measure]
        ]
        notes += note_counts(frame["note"])
    title = "Error overlap on held-out problems"
    return ReportTable("overlap", title, frame, laid_out(columns, shown), notes, starts=starts)
