"""The runs of a sweep as a ranked table: one row per configuration, averaged over its seeds.

In: the `RunData` of a sweep. Out: a tidy frame, best first, with the fields that vary as columns, and
a report table. The levels and their intervals are those of `metrics/arms.py`. A rank is no test:
differences with their p values are in `metrics/contrasts.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import polars as pl

from analysis.counts.counts import iterations_of
from analysis.counts.load import RunData
from analysis.layout.tables import UNDEFINED, ReportTable, laid_out, note_counts, percent
from analysis.metrics.arms import BASE, Arm, arms_of, arms_table
from analysis.metrics.compare import MEAN
from analysis.metrics.fields import by_values, column_names, values_of, varied_fields
from analysis.metrics.pairs import seed_of, when
from analysis.metrics.passk import PASS, TEAM, TEAM_PASS, default_ks
from analysis.stats.intervals import METHOD_NOTE
from core_hpc.common.errors import InputError

FIGURES = ("estimate", "low", "high", "num_problems", "num_seeds", "seed_min", "seed_max", "note")
"""Columns of `ARMS_TABLE` that the table has, after the columns of the fields."""


def ranking_report(runs: Sequence[RunData], *, k: int | None = None, model: str | None = None) -> ReportTable:
    """Rank the configurations of a sweep by their latest evaluation. A note names runs of another iteration.

    Args:
        runs: the runs. Those without an evaluation after training are left out, and named.
        k: completions per model. Default: the largest of 1, 2 and 4 that the runs have.
        model: rank by Pass@k of this model. Default: team Pass@k, or Pass@k of the only model.

    Returns:
        The table. Its frame has `rank`, a column of text per varied field, `measure`, `model`, `k` and
        `FIGURES`. Ranks of equal figures are equal.

    Raises:
        InputError: no run has an evaluation after training, or there is no such model.
    """
    done = [data for data in runs if any(i > 0 for i in iterations_of(data.counts, models=data.models))]
    if not done:
        raise InputError(_why_none(runs))
    if model is not None and model not in done[0].models:
        raise InputError(f"--model: no model {model!r}; the runs have {', '.join(done[0].models)}")
    fields = varied_fields(done)
    groups = by_values(done, fields) if fields else {done[0].title: list(done)}
    chosen = k or max(default_ks(min(data.num_samples for data in done)))
    name = model or (TEAM if len(done[0].models) > 1 else done[0].models[0])
    measure = TEAM_PASS if name == TEAM else PASS
    arms = [arm for arm in arms_of(groups) if arm.name != BASE]
    levels = arms_table(arms, ks=[chosen]).filter(seed=MEAN, measure=measure, model=name, k=chosen)
    columns = column_names(fields)
    values = {arm: dict(zip(columns, map(str, values_of(own[0], fields)), strict=True)) for arm, own in groups.items()}
    schema = {"arm": pl.String, **dict.fromkeys(columns, pl.String)}
    of_fields = pl.DataFrame([{"arm": arm, **own} for arm, own in values.items()], schema=schema)
    frame = (
        levels.join(of_fields, on="arm", how="left")
        .sort("estimate", descending=True, nulls_last=True, maintain_order=True)
        .select(
            pl.col("estimate").rank("min", descending=True).cast(pl.Int64).alias("rank"),
            *columns,
            *("measure", "model", "k"),
            *FIGURES,
        )
    )
    figure = f"team Pass@{chosen}" if measure == TEAM_PASS else f"{name} Pass@{chosen}"
    return ReportTable(
        "rank",
        f"{figure} on held-out problems, averaged over seeds, best first (percent)",
        frame,
        _shown(frame, columns, figure),
        [*_iteration_notes(arms), *note_counts(frame["note"]), *_notes(runs, done, fields)],
    )


def _why_none(runs: Sequence[RunData]) -> str:
    """Why no run can be ranked."""
    if all(data.config is None for data in runs):
        return "rank: imported predictions have no training, so there are no configurations to rank; use compare"
    if all(data.only_evaluates for data in runs):
        return "rank: the runs have no training (iterations: 0); use compare"
    return "no run has an evaluation after training yet; status shows how far they are"


def _shown(frame: pl.DataFrame, columns: Sequence[str], figure: str) -> pl.DataFrame:
    rows = [
        [
            row["rank"],
            *(row[column] for column in columns),
            percent(row["estimate"], row["low"], row["high"]),
            row["num_seeds"],
            UNDEFINED if row["seed_min"] is None else f"{100 * row['seed_min']:.1f} to {100 * row['seed_max']:.1f}",
            row["num_problems"],
        ]
        for row in frame.iter_rows(named=True)
    ]
    return laid_out(["rank", *columns, figure, "seeds", "range of the seeds", "problems"], rows)


def _iteration_notes(arms: Sequence[Arm]) -> list[str]:
    """The runs whose latest evaluation is not at the iteration of most runs."""
    evaluations = [(arm.name, *own) for arm in arms for own in zip(arm.runs, arm.iterations, strict=True)]
    (usual, _), *others = Counter(at for _, _, at in evaluations).most_common()
    if not others:
        return []
    named = [f"{name} seed {seed_of(data)} {when(data, at)}" for name, data, at in evaluations if at != usual]
    return [f"not at the same iteration: {', '.join(named)}, all others after iteration {usual}"]


def _notes(runs: Sequence[RunData], done: Sequence[RunData], fields: Sequence[str]) -> list[str]:
    known = {data.path for data in done}
    waiting = [data.name for data in runs if data.path not in known]
    notes = [f"no evaluation after training yet: {', '.join(waiting)}"] if waiting else []
    if fields:
        notes.append(
            f"a rank is no test, and the best of many is partly luck; differences: compare --by {' '.join(fields)}"
        )
    return [*notes, METHOD_NOTE]
