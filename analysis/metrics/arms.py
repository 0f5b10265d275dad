"""Comparison of several configurations: the mean of each over its seeds, and the models before training.

The input is the `RunData` of the seeds of each configuration. The seeds of one configuration are an
arm. The output is one tidy frame of levels (`ARMS_TABLE`), for each seed and for the mean over
seeds, and two report tables.

The interval of a seed is over problems: how much the figure of this run changes with other
problems. The interval of the mean over seeds is over problems and seeds. Seeds are never pooled as
if they were problems. Differences between configurations, paired by problem, are in
`metrics/compare.py` and `metrics/contrasts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from analysis.counts.counts import Panel, iterations_of, panel
from analysis.counts.load import RunData
from analysis.layout.tables import UNDEFINED, ReportTable, coefficient, group_starts, laid_out, note_counts, percent
from analysis.metrics.compare import MEAN
from analysis.metrics.compare_table import changed_fields
from analysis.metrics.overlap import mean_phi
from analysis.metrics.pairs import check_one_configuration, check_same_problems, evaluation_of, seed_of, when
from analysis.metrics.passk import COVERAGE, MATCHED_PASS, PASS, TEAM, TEAM_PASS, Figure, main_figures
from analysis.metrics.rescue import UPLIFT, mean_uplift
from analysis.metrics.useless import useless_notes
from analysis.stats.estimators import IntArray
from analysis.stats.intervals import ESTIMATE_COLUMNS, METHOD_NOTE, Estimate, join_notes
from analysis.stats.uncertainty import mean_over_seeds
from core_hpc.common.errors import InputError

BASE = "base"
"""Name of the arm of the models before the first iteration: untrained, or after their warm-up."""
PHI = "phi"

ARMS_TABLE = pl.Schema(
    {
        "arm": pl.String(),
        "seed": pl.String(),  # or MEAN for the mean over the seeds of the arm
        # PASS, TEAM_PASS, MATCHED_PASS, UPLIFT (of rescues in training) or PHI (error correlation
        # of one completion per model)
        "measure": pl.String(),
        "model": pl.String(),  # two models for PHI
        "k": pl.Int32(),
        "candidates": pl.Int32(),
        # low and high are over problems; for MEAN of several seeds, over problems and seeds
        **{name: dtype for name, dtype in ESTIMATE_COLUMNS.items() if name != "note"},
        "problems_low": pl.Float64(),  # bounds over problems only, for these seeds; only for MEAN
        "problems_high": pl.Float64(),
        "num_seeds": pl.Int64(),
        "seed_min": pl.Float64(),  # smallest figure of a seed; only for MEAN
        "seed_max": pl.Float64(),  # largest figure of a seed; only for MEAN
        "note": pl.String(),
    }
)


class Arm(NamedTuple):
    """The seeds of one configuration, and the iteration of the evaluation that is used of each."""

    name: str
    runs: list[RunData]
    iterations: list[int]


def arms_of(named: Mapping[str, Sequence[RunData]]) -> list[Arm]:
    """Make an arm of each configuration, and one of the models before training (BASE), which comes first.

    The arm of a configuration uses the latest evaluation of its runs. The arm BASE uses evaluation
    0 of the first configuration that has one, of all its runs that have one. If no configuration
    has one, there is no arm BASE. A run that only evaluates (`iterations: 0`) has no such arm.

    Args:
        named: the runs of each configuration, by its name.

    Raises:
        InputError: the runs of a name have different configurations, two configurations have
            different models or different held-out problems, or a run has no evaluation after
            training.
    """
    for name, runs in named.items():
        check_one_configuration(name, runs)
    check_same_problems([data for runs in named.values() for data in runs])
    first, *others = named
    for name in others:
        if named[name][0].models != named[first][0].models:
            models = [f"{arm} has {', '.join(named[arm][0].models)}" for arm in (first, name)]
            raise InputError(f"{'; '.join(models)}; all arms must have the same models in the same order")
    arms = [Arm(name, sorted(runs, key=_order), []) for name, runs in named.items()]
    for arm in arms:
        arm.iterations.extend(evaluation_of(data) for data in arm.runs)
        evaluations = zip(arm.runs, arm.iterations, strict=True)
        untrained = [data.path for data, at in evaluations if _trains(data) and at == 0]
        if untrained:
            raise InputError(f"{untrained[0]}: no evaluation after training is published yet")
    for arm in arms:
        bases = [data for data in arm.runs if _trains(data) and 0 in _published(data)]
        if bases:
            return [Arm(BASE, bases, [0] * len(bases)), *arms]
    return arms


def _order(data: RunData) -> int:
    return -1 if data.config is None else data.config.seed


def _trains(data: RunData) -> bool:
    return data.config is not None and not data.only_evaluates


def _published(data: RunData) -> list[int]:
    return iterations_of(data.counts, models=data.models)


# --- figures -------------------------------------------------------------------------------------


def arms_table(arms: Sequence[Arm], *, ks: Sequence[int]) -> pl.DataFrame:
    """Compute Pass@k, team Pass@k, matched budget, error correlation and rescue uplift of each arm.

    Args:
        arms: the result of `arms_of`.
        ks: completions per model.

    Returns:
        A frame with the schema `ARMS_TABLE`. Shares and the uplift are fractions. Held-out figures
        use the problems that all runs have; the mean over seeds is taken per problem. The uplift is
        that of all rescue cases of the training, so `BASE` has none.

    Raises:
        InputError: the runs have no held-out problem in common.
    """
    panels = [_panels(arm) for arm in arms]
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
            mean = mean_uplift([data.counts for data in arm.runs])
            rows += _rows(arm, {"measure": UPLIFT, "model": TEAM}, of_seeds, mean)
    return pl.DataFrame(rows, schema=ARMS_TABLE)


def _panels(arm: Arm) -> list[Panel]:
    evaluations = zip(arm.runs, arm.iterations, strict=True)
    return [panel(data.counts, models=data.models, iteration=at) for data, at in evaluations]


def _held_out_rows(arm: Arm, panels: Sequence[Panel], ks: Sequence[int], note: str) -> list[dict[str, Any]]:
    rows = []
    for own in zip(*(main_figures(p, ks) for p in panels), strict=True):
        if own[0].measure != COVERAGE:
            noted = [replace(figure, note=join_notes(figure.note, note)) for figure in own]
            of_seeds = [figure.level(p) for figure, p in zip(noted, panels, strict=True)]
            rows += _rows(arm, own[0].labels(), of_seeds, _mean(own, note).level(panels[0]), panels[0].groups)
    for i, j in combinations(range(len(panels[0].models)), 2):
        labels = {"measure": PHI, "model": f"{panels[0].models[i]}, {panels[0].models[j]}", "k": 1, "candidates": 2}
        rows += _rows(arm, labels, [mean_phi([p], i, j) for p in panels], mean_phi(panels, i, j))
    return rows


def _mean(own: Sequence[Figure], note: str) -> Figure:
    """Take the mean over seeds per problem. It is computed from the completions of all seeds."""
    values, samples = np.mean([figure.values for figure in own], axis=0), sum(figure.samples for figure in own)
    return replace(own[0], values=values, samples=samples, note=join_notes(*(figure.note for figure in own), note))


def _rows(
    arm: Arm, labels: dict[str, Any], of_seeds: Sequence[Estimate], mean: Estimate, groups: IntArray | None = None
) -> list[dict[str, Any]]:
    known = [e.estimate for e in of_seeds if e.estimate is not None]
    spread: dict[str, Any] = {"seed_min": min(known), "seed_max": max(known)} if len(known) > 1 else {}
    rows = [{"seed": seed_of(data), **e.row()} for data, e in zip(arm.runs, of_seeds, strict=True)]
    lowest = -1.0 if labels["measure"] in (PHI, UPLIFT) else 0.0
    over_both = mean_over_seeds(mean, of_seeds, groups, lowest=lowest)
    if over_both is not None:
        spread |= {"problems_low": mean.low, "problems_high": mean.high}
        mean = over_both
    rows.append({"seed": MEAN, "num_seeds": len(arm.runs), **spread, **mean.row()})
    return [{"arm": arm.name, **labels, **row} for row in rows]


# --- report tables -------------------------------------------------------------------------------


def arms_report(arms: Sequence[Arm], frame: pl.DataFrame) -> list[ReportTable]:
    """Format the result of `arms_table` as two report tables.

    The first table has Pass@k of the models and the team, with one row per k and arm. The second
    one has the rescue uplift and the error correlations, with one row per arm.
    """
    means = frame.filter(pl.col("seed") == MEAN)
    cells = {(row["arm"], row["measure"], row["model"], row["k"]): _cell(row) for row in means.iter_rows(named=True)}
    models = arms[0].runs[0].models
    columns = {f"{model} Pass@k": (PASS, model) for model in models}
    if len(models) > 1:
        columns |= {"team Pass@k": (TEAM_PASS, TEAM)}
        columns |= {f"{model} Pass@{len(models)}k": (MATCHED_PASS, model) for model in models}
    ks = means.filter(measure=PASS)["k"].unique().sort().to_list()
    shown = [[k, arm.name, *(cells[arm.name, *column, k] for column in columns.values())] for k in ks for arm in arms]
    scores = frame.filter(pl.col("measure").is_in([PASS, TEAM_PASS, MATCHED_PASS]))
    budget = f"team Pass@k and Pass@{len(models)}k of a model spend the same number of candidates"
    notes = [
        *_arm_notes(arms),
        *([budget] if len(models) > 1 else []),
        *useless_notes({arm.name: list(zip(arm.runs, arm.iterations, strict=True)) for arm in arms}),
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
    """The report table of rescue uplifts and error correlations, with one row per arm."""
    pairs = frame.filter(measure=PHI)["model"].unique(maintain_order=True).to_list()
    shown = [
        [arm.name, cells.get((arm.name, UPLIFT, TEAM, None), UNDEFINED), *(cells[arm.name, PHI, p, 1] for p in pairs)]
        for arm in arms
    ]
    own = frame.filter(pl.col("measure").is_in([UPLIFT, PHI]))
    notes = ["rescue uplift: correct with a hint minus correct without one, of cold-failed cases in training (points)"]
    if pairs:
        correlation = "phi of failure on held-out problems, one completion per model; 0: uncorrelated"
        notes.append(f"error correlation: {correlation}")
    means = own.filter(seed=MEAN)
    without_uplift = means.filter(pl.col("estimate").is_null(), measure=UPLIFT)
    notes += [f"{row['arm']}: {row['note']}" for row in without_uplift.iter_rows(named=True)]
    notes += [*_spread_notes(means), METHOD_NOTE]
    columns = ["arm", "rescue uplift", *(f"error correlation {pair}" for pair in pairs)]
    return ReportTable("arms_errors", "Rescues and errors by arm", own, laid_out(columns, shown), notes)


def _cell(row: Mapping[str, Any]) -> str:
    """Format a mean with its interval and the range of the seeds."""

    def shown(estimate: float | None, low: float | None = None, high: float | None = None) -> str:
        if row["measure"] == PHI:
            return coefficient(estimate, low, high)
        return percent(estimate, low, high, signed=row["measure"] == UPLIFT)

    # Next to numbers with a sign, a dash could be read as a minus.
    between = " to " if row["measure"] in (PHI, UPLIFT) else "–"
    seeds = f" ({shown(row['seed_min'])}{between}{shown(row['seed_max'])})" if row["seed_min"] is not None else ""
    return shown(row["estimate"], row["low"], row["high"]) + seeds


def _spread_notes(means: pl.DataFrame) -> list[str]:
    several = means["seed_min"].count() > 0
    if not several:
        return ["one run per arm: the spread over seeds is unknown"]
    over_both = "mean over seeds, with its interval over problems and seeds (lowest to highest seed)"
    return [over_both, *one_run_notes(means)]


def one_run_notes(frame: pl.DataFrame) -> list[str]:
    """A note for each arm with one run, for a table or figure in which other arms have several."""
    own = frame.filter(num_seeds=1)["arm"].unique(maintain_order=True)
    return [f"{arm}: one run, interval over problems only" for arm in own]


def _arm_notes(arms: Sequence[Arm]) -> list[str]:
    """Describe each arm: runs, evaluation, and differences from the configuration of the first."""
    trained = [arm for arm in arms if arm.name != BASE]
    lines = []
    for arm in arms:
        evaluations = zip(arm.runs, arm.iterations, strict=True)
        times = [when(data, at) for data, at in evaluations]
        evaluated = " and ".join(dict.fromkeys(times))
        lines.append(f"{arm.name}: {evaluated}, seeds {', '.join(map(seed_of, arm.runs))} of {arm.runs[0].path.parent}")
    for arm in trained[1:]:
        lines += changed_fields(trained[0].runs[0], arm.runs[0], trained[0].name, arm.name)
    return lines
