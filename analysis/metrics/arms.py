"""Several configurations side by side, each the mean over its seeds, beside the untrained models that they began with.

In: `RunData` of the seeds of each configuration (an arm). Out: one tidy frame of levels (`ARMS_TABLE`) for each seed and
for their mean, and two tables for reading. An interval is over problems: what other problems would have said of these
runs; what other seeds would have said is seen in the range of the seeds, which are never pooled as if they were problems.
Differences between arms, paired by problem, are compare.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from analysis.counts.counts import Panel, iterations_of, panel
from analysis.counts.load import RunData
from analysis.layout.tables import UNDEFINED, ReportTable, coefficient, group_starts, laid_out, note_counts, percent
from analysis.metrics.compare import MEAN, changed_fields
from analysis.metrics.overlap import mean_phi
from analysis.metrics.pairs import check_one_configuration, check_same_problems, evaluation_of, seed_of, when
from analysis.metrics.passk import COVERAGE, MATCHED_PASS, PASS, TEAM, TEAM_PASS, Figure, main_figures
from analysis.metrics.rescue import UPLIFT, mean_uplift
from analysis.stats.intervals import ESTIMATE_COLUMNS, METHOD_NOTE, Estimate, join_notes
from core_hpc.common.errors import InputError

BASE = "base"
"""The arm of the untrained models."""
PHI = "phi"

ARMS_TABLE = pl.Schema(
    {
        "arm": pl.String(),
        "seed": pl.String(),  # or MEAN: the mean over the arm's seeds
        "measure": pl.String(),  # PASS, TEAM_PASS, MATCHED_PASS; UPLIFT (rescue in training), PHI (error correlation, one completion)
        "model": pl.String(),  # for PHI two of them
        "k": pl.Int32(),
        "candidates": pl.Int32(),
        **{name: dtype for name, dtype in ESTIMATE_COLUMNS.items() if name != "note"},
        "num_seeds": pl.Int64(),
        "seed_min": pl.Float64(),
        "seed_max": pl.Float64(),  # of the seeds' figures; MEAN only
        "note": pl.String(),
    }
)


class Arm(NamedTuple):
    """The seeds of one configuration, and which evaluation of each is shown."""

    name: str
    runs: list[RunData]
    iterations: list[int]


def arms_of(named: Mapping[str, Sequence[RunData]]) -> list[Arm]:
    """An arm for each configuration, at the latest evaluation of its runs, after that of the untrained models.

    These are evaluation 0 of the first configuration that has one, of those of its runs that have it; no such arm if none has.

    Raises:
        InputError: runs of several configurations under one name, other models or other held-out problems than in the first,
            no evaluation after training yet.
    """
    for name, runs in named.items():
        check_one_configuration(name, runs)
    check_same_problems([data for runs in named.values() for data in runs])
    first, *others = named
    for name in others:
        if named[name][0].models != named[first][0].models:
            models = [f"{arm} has {', '.join(named[arm][0].models)}" for arm in (first, name)]
            raise InputError(f"{'; '.join(models)}: arms are of the same models, in the same order")
    arms = [Arm(name, sorted(runs, key=_order), []) for name, runs in named.items()]
    for arm in arms:
        arm.iterations.extend(evaluation_of(data) for data in arm.runs)
        untrained = [
            data.path for data, at in zip(arm.runs, arm.iterations, strict=True) if data.config is not None and at == 0
        ]
        if untrained:
            raise InputError(f"{untrained[0]}: no evaluation after training is published yet")
    bases = [[data for data in arm.runs if data.config is not None and 0 in _published(data)] for arm in arms]
    return [*(Arm(BASE, runs, [0] * len(runs)) for runs in [runs for runs in bases if runs][:1]), *arms]


def _order(data: RunData) -> int:
    return -1 if data.config is None else data.config.seed


def _published(data: RunData) -> list[int]:
    return iterations_of(data.counts, models=data.models)


# --- figures -------------------------------------------------------------------------------------


def arms_table(arms: Sequence[Arm], *, ks: Sequence[int]) -> pl.DataFrame:
    """Pass@k, team Pass@k, matched budget, error correlation and rescue uplift of each arm.

    Args:
        arms: `arms_of`.
        ks: completions per model.

    Returns:
        `ARMS_TABLE`; shares and the uplift are fractions. Held-out figures stand on the problems that all runs have, and their
        means are over seeds of per-problem values. The uplift is that of all cases of training, so `BASE` has none.

    Raises:
        InputError: the runs have no held-out problem in common.
    """
    panels = [
        [
            panel(data.counts, models=data.models, iteration=at)
            for data, at in zip(arm.runs, arm.iterations, strict=True)
        ]
        for arm in arms
    ]
    common = reduce(np.intersect1d, [p.problem_ids for own in panels for p in own])
    if not len(common):
        raise InputError("the arms have no held-out problem in common: problems are matched by their id")
    most = max(p.num_problems for own in panels for p in own)
    note = f"{most - len(common)} problems left out: not in every run" if most > len(common) else ""
    rows = []
    for arm, whole in zip(arms, panels, strict=True):
        rows += _held_out_rows(arm, [p.restricted(common) for p in whole], ks, note)
        if arm.name != BASE:
            of_seeds = [mean_uplift([data.counts]) for data in arm.runs]
            rows += _rows(
                arm, {"measure": UPLIFT, "model": TEAM}, of_seeds, mean_uplift([data.counts for data in arm.runs])
            )
    return pl.DataFrame(rows, schema=ARMS_TABLE)


def _held_out_rows(arm: Arm, panels: Sequence[Panel], ks: Sequence[int], note: str) -> list[dict[str, Any]]:
    rows = []
    for own in zip(*(main_figures(p, ks) for p in panels), strict=True):
        if own[0].measure != COVERAGE:
            of_seeds = [
                figure._replace(note=join_notes(figure.note, note)).level(p)
                for figure, p in zip(own, panels, strict=True)
            ]
            rows += _rows(arm, own[0].labels(), of_seeds, _mean(own, note).level(panels[0]))
    for i, j in combinations(range(len(panels[0].models)), 2):
        labels = {"measure": PHI, "model": f"{panels[0].models[i]}, {panels[0].models[j]}", "k": 1, "candidates": 2}
        rows += _rows(arm, labels, [mean_phi([p], i, j) for p in panels], mean_phi(panels, i, j))
    return rows


def _mean(own: Sequence[Figure], note: str) -> Figure:
    """The mean over seeds, problem by problem. It stands on the completions of all of them."""
    values, samples = np.mean([figure.values for figure in own], axis=0), sum(figure.samples for figure in own)
    return own[0]._replace(values=values, samples=samples, note=join_notes(*(figure.note for figure in own), note))


def _rows(arm: Arm, labels: dict[str, Any], of_seeds: Sequence[Estimate], mean: Estimate) -> list[dict[str, Any]]:
    known = [e.estimate for e in of_seeds if e.estimate is not None]
    spread = {"seed_min": min(known), "seed_max": max(known)} if len(known) > 1 else {}
    rows = [{"seed": seed_of(data), **e.row()} for data, e in zip(arm.runs, of_seeds, strict=True)]
    return [
        {"arm": arm.name, **labels, **row}
        for row in [*rows, {"seed": MEAN, "num_seeds": len(arm.runs), **spread, **mean.row()}]
    ]


# --- for reading ---------------------------------------------------------------------------------


def arms_report(arms: Sequence[Arm], frame: pl.DataFrame) -> list[ReportTable]:
    """`arms_table` for reading: Pass@k of models and team, an arm a row for each k; then rescue uplift and error correlation."""
    means = frame.filter(pl.col("seed") == MEAN)
    cells = {(row["arm"], row["measure"], row["model"], row["k"]): _cell(row) for row in means.iter_rows(named=True)}
    models = arms[0].runs[0].models
    columns = {f"{model} Pass@k": (PASS, model) for model in models}
    if len(models) > 1:
        columns |= {"team Pass@k": (TEAM_PASS, TEAM)} | {
            f"{model} Pass@{len(models)}k": (MATCHED_PASS, model) for model in models
        }
    ks = means.filter(measure=PASS)["k"].unique().sort().to_list()
    shown = [[k, arm.name, *(cells[arm.name, *column, k] for column in columns.values())] for k in ks for arm in arms]
    scores = frame.filter(pl.col("measure").is_in([PASS, TEAM_PASS, MATCHED_PASS]))
    said = [f"team Pass@k and Pass@{len(models)}k of a model spend the same number of candidates"] * (len(models) > 1)
    notes = [
        *_arm_notes(arms),
        *said,
        *_spread_notes(means),
        *note_counts(means.filter(pl.col("measure") != UPLIFT)["note"]),
        METHOD_NOTE,
    ]
    table = laid_out(["k", "arm", *columns], shown)
    title = "Held-out problems by arm (percent)"
    return [
        ReportTable("arms", title, scores, table, notes, starts=group_starts([row[0] for row in shown])),
        _errors(arms, frame, cells),
    ]


def _errors(
    arms: Sequence[Arm], frame: pl.DataFrame, cells: Mapping[tuple[str, str, str, int | None], str]
) -> ReportTable:
    """What hints and the diversity of errors are: a row for each arm."""
    pairs = frame.filter(measure=PHI)["model"].unique(maintain_order=True).to_list()
    shown = [
        [arm.name, cells.get((arm.name, UPLIFT, TEAM, None), UNDEFINED), *(cells[arm.name, PHI, p, 1] for p in pairs)]
        for arm in arms
    ]
    own = frame.filter(pl.col("measure").is_in([UPLIFT, PHI]))
    notes = ["rescue uplift: correct with a hint minus correct without one, of cold-failed cases in training (points)"]
    notes += ["error correlation: phi of failure on held-out problems, of one completion each; 0: uncorrelated"] * bool(
        pairs
    )
    means = own.filter(seed=MEAN)
    why = [
        f"{row['arm']}: {row['note']}"
        for row in means.filter(pl.col("estimate").is_null(), measure=UPLIFT).iter_rows(named=True)
    ]
    columns = ["arm", "rescue uplift", *(f"error correlation {pair}" for pair in pairs)]
    title = "Rescues and errors by arm"
    return ReportTable(
        "arms_errors", title, own, laid_out(columns, shown), [*notes, *why, *_spread_notes(means), METHOD_NOTE]
    )


def _cell(row: Mapping[str, Any]) -> str:
    """A mean with its interval and the range of the seeds."""

    def shown(estimate: float | None, low: float | None = None, high: float | None = None) -> str:
        return (
            coefficient(estimate, low, high)
            if row["measure"] == PHI
            else percent(estimate, low, high, signed=row["measure"] == UPLIFT)
        )

    between = " to " if row["measure"] in (PHI, UPLIFT) else "–"  # which could be taken for a sign
    seeds = f" ({shown(row['seed_min'])}{between}{shown(row['seed_max'])})" if row["seed_min"] is not None else ""
    return shown(row["estimate"], row["low"], row["high"]) + seeds


def _spread_notes(means: pl.DataFrame) -> list[str]:
    several = means["seed_min"].count() > 0
    return ["mean over seeds (lowest to highest)" if several else "one run an arm: the spread over seeds is unknown"]


def _arm_notes(arms: Sequence[Arm]) -> list[str]:
    """What each arm is: its runs, which evaluation, and what its configuration has otherwise than the first one."""
    trained = [arm for arm in arms if arm.name != BASE]
    lines = []
    for arm in arms:
        evaluated = (
            " and ".join(dict.fromkeys(when(at) for at in arm.iterations))
            if arm.runs[0].config is not None
            else "imported"
        )
        lines.append(f"{arm.name}: {evaluated}, seeds {', '.join(map(seed_of, arm.runs))} of {arm.runs[0].path.parent}")
    for arm in trained[1:]:
        lines += changed_fields(trained[0].runs[0], arm.runs[0], trained[0].name, arm.name)
    return lines
