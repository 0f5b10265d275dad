"""Pass@k of the models and of the team, before and after training, and the collaboration gain.

The input is the counts of one run. The output is tidy frames. A team of N models at k spends N k
completions per problem. Every figure of a team is therefore reported together with its matched
budget, which is the Pass@(N k) of the single models. This module reads no file and formats no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from analysis.counts.counts import Panel, iterations_of, models_of, paired, panel
from analysis.stats.estimators import FloatArray, IntArray, coverage, first_k, pass_at_k, pass_hat_k, team_pass_at_k
from analysis.stats.intervals import (
    ESTIMATE_COLUMNS,
    Estimate,
    join_notes,
    resampled_means,
    share,
    smallest_from_draws,
    undefined,
)
from analysis.stats.uncertainty import difference, with_pseudo_problems
from core_hpc.store.schema import EVALUATE

TEAM = "team"
PASS, TEAM_PASS, MATCHED_PASS, COVERAGE = "pass", "team_pass", "matched_pass", "coverage"
FIRST, PASS_HAT = "first", "pass_hat"
EQUAL_K, MATCHED_BUDGET = "equal_k", "matched_budget"
BEST = "best"
BEFORE, AFTER, DIFFERENCE = "before", "after", "difference"
DEFAULT_KS = (1, 2, 4)
OTHER_NUMBERS = "not comparable: different numbers of completions"

_FIGURE = {"measure": pl.String(), "model": pl.String(), "k": pl.Int32(), "candidates": pl.Int32()}
PASS_TABLE = pl.Schema({"phase": pl.String(), "iteration": pl.Int32(), **_FIGURE, **ESTIMATE_COLUMNS})
BEFORE_AFTER_TABLE = pl.Schema({"when": pl.String(), "iteration": pl.Int32(), **_FIGURE, **ESTIMATE_COLUMNS})
GAIN_TABLE = pl.Schema(
    {
        "phase": pl.String(),
        "iteration": pl.Int32(),
        "baseline": pl.String(),
        "k": pl.Int32(),
        "candidates": pl.Int32(),
        "against": pl.String(),
        "best_model": pl.String(),
        **ESTIMATE_COLUMNS,
    }
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of the Pass@k tables, with its value for each of P problems."""

    measure: str
    model: str  # or TEAM
    k: int | None  # completions per model; None for coverage, which uses all completions
    candidates: int | None  # completions of all models that the figure spends per problem
    values: FloatArray  # (P,)
    samples: float  # mean number of completions per problem that the value is computed from
    note: str

    def labels(self) -> dict[str, Any]:
        """The columns that identify the figure."""
        return {"measure": self.measure, "model": self.model, "k": self.k, "candidates": self.candidates}

    def level(self, p: Panel) -> Estimate:
        """The mean over problems with its interval. `p` is the panel that the values are from."""
        return share(self.values, groups=p.groups, samples_per_unit=self.samples, note=join_notes(self.note, p.note))


def default_ks(num_samples: int) -> list[int]:
    """Return the values of `DEFAULT_KS` up to the number of completions, or [1]."""
    return [k for k in DEFAULT_KS if k <= num_samples] or [1]


def too_few(n: IntArray, k: int) -> str:
    """Note for a figure that is undefined because some problems have fewer than k completions.

    Args:
        n: (P,) completions of one model, or (M, P) completions of all models of the figure.
        k: completions that the figure needs from each model.

    Returns:
        The note; empty when all problems have enough completions.
    """
    short = int((np.atleast_2d(n) < k).any(axis=0).sum())
    some = " of some model" if n.ndim == 2 else ""
    return f"undefined: {short} problems have fewer than {k} completions{some}" if short else ""


def _single(p: Panel, m: int, k: int, *, spent: int, measure: str) -> Figure:
    """Pass@spent of model m, as a figure of the group of k."""
    return Figure(
        measure=measure,
        model=p.models[m],
        k=k,
        candidates=spent,
        values=pass_at_k(p.n[m], p.c[m], spent),
        samples=float(p.n[m].mean()),
        note=too_few(p.n[m], spent),
    )


def _team(p: Panel, k: int, *, name: str = TEAM) -> Figure:
    """Team Pass@k of all models of the panel."""
    return Figure(
        measure=TEAM_PASS,
        model=name,
        k=k,
        candidates=len(p.models) * k,
        values=team_pass_at_k(p.n, p.c, k),
        samples=float(p.n.sum(axis=0).mean()),
        note=too_few(p.n, k),
    )


def main_figures(p: Panel, ks: Sequence[int]) -> list[Figure]:
    """Return the figures of the models, the team and the matched budgets, and the coverage.

    The panel must have at least one problem.
    """
    size = len(p.models)
    out: list[Figure] = []
    for k in ks:
        out += [_single(p, m, k, spent=k, measure=PASS) for m in range(size)]
        if size > 1:
            out.append(_team(p, k))
            out += [_single(p, m, k, spent=size * k, measure=MATCHED_PASS) for m in range(size)]
    spent = p.n.sum(axis=0)
    covered = Figure(
        measure=COVERAGE,
        model=TEAM,
        k=None,
        candidates=int(spent.max()),
        values=coverage(p.c),
        samples=1.0,  # all completions of a problem give one value: it is one observation
        note="" if spent.min() == spent.max() else "candidates vary",
    )
    return [*out, covered]


def _further_figures(p: Panel, ks: Sequence[int], parts: Sequence[Sequence[int]]) -> list[Figure]:
    """Return the figures of parts of the team with their matched budgets, first-k and pass^k.

    parts: positions of the models of each part.
    """
    out: list[Figure] = []
    for k in ks:
        out += [_team(p.of(part), k, name="+".join(p.models[m] for m in part)) for part in parts]
        budgets = sorted({(m, len(part) * k) for part in parts for m in part})
        out += [_single(p, m, k, spent=spent, measure=MATCHED_PASS) for m, spent in budgets]
        for model, n, c, first in zip(p.models, p.n, p.c, p.first, strict=True):
            labels: dict[str, Any] = {"model": model, "k": k, "candidates": k, "note": too_few(n, k)}
            # First-k is one observation per problem, for any number of completions.
            out.append(Figure(measure=FIRST, values=first_k(n, first, k), samples=1.0, **labels))
            out.append(Figure(measure=PASS_HAT, values=pass_hat_k(n, c, k), samples=float(n.mean()), **labels))
    return out


def pass_at_k_table(
    counts: pl.DataFrame,
    *,
    ks: Sequence[int],
    models: Sequence[str] | None = None,
    phase: str = EVALUATE,
    teams: Sequence[Sequence[str]] | None = None,
) -> pl.DataFrame:
    """Compute the Pass@k table of every iteration of a phase.

    The measures are Pass@k, first-k, pass^k, team Pass@k, matched budgets and coverage.

    Args:
        counts: counts of one run.
        ks: completions per model.
        models: the team; default: all models that have rows.
        phase: evaluate (held-out problems) or cold (training problems, without hints).
        teams: parts of the team that also get a team Pass@k, each with two models or more. The
            column `model` then has their names, joined by "+"; for the whole team it is "team".
            Default: all parts.

    Returns:
        A frame with the schema `PASS_TABLE`. Estimates are fractions; they are null where a problem
        has fewer than k completions. `matched_pass` is the Pass@(size k) of a model, at the budget
        of a team of this size. `candidates` is the number of completions spent per problem.
    """
    models = models or models_of(counts)
    if teams is None:
        teams = [part for size in range(2, len(models)) for part in combinations(models, size)]
    parts = [sorted(models.index(model) for model in part) for part in teams]
    rows = []
    for iteration in iterations_of(counts, models=models, phase=phase):
        p = panel(counts, models=models, phase=phase, iteration=iteration)
        for figure in [*main_figures(p, ks), *_further_figures(p, ks, parts)] if p.num_problems else []:
            rows.append({"phase": phase, "iteration": iteration, **figure.labels(), **figure.level(p).row()})
    return pl.DataFrame(rows, schema=PASS_TABLE)


def before_and_after(counts: pl.DataFrame, models: Sequence[str]) -> tuple[int | None, int | None]:
    """Find the evaluation before training and the latest evaluation after it.

    Returns:
        Their iterations (the first one is 0); None where the evaluation is not published.
    """
    published = iterations_of(counts, models=models)
    later = [i for i in published if i > 0]
    return (0 if 0 in published else None), (later[-1] if later else None)


def before_after_table(counts: pl.DataFrame, *, ks: Sequence[int], models: Sequence[str] | None = None) -> pl.DataFrame:
    """Compute the figures before and after training, and their difference paired by problem.

    Args:
        counts: counts of one run.
        ks: completions per model.
        models: the team; default: all models that have rows.

    Returns:
        A frame with the schema `BEFORE_AFTER_TABLE`. `when` is before, after or difference (after -
        before, a fraction). The iteration of a difference is that of the later evaluation. With
        two evaluations, all rows are of their common problems. Evaluations that are not published
        have no rows.
    """
    models = models or models_of(counts)
    evaluations = before_and_after(counts, models) if models else (None, None)
    shown = [when for when, iteration in zip((BEFORE, AFTER), evaluations, strict=True) if iteration is not None]
    iterations = [iteration for iteration in evaluations if iteration is not None]
    panels, note = [panel(counts, models=models, iteration=iteration) for iteration in iterations], ""
    if len(panels) == 2:
        sizes = [p.num_problems for p in panels]
        panels = list(paired(*panels))
        unpaired = sum(sizes) - 2 * panels[0].num_problems
        note = f"{unpaired} problems left out: in one evaluation only" if unpaired else ""
    rows = [
        {"when": when, "iteration": iteration, **figure.labels(), **figure.level(p).row()}
        for when, iteration, p in zip(shown, iterations, panels, strict=True)
        if p.num_problems
        for figure in main_figures(p, ks)
    ]
    for row in rows:
        row["note"] = join_notes(row["note"], note)
    if len(panels) == 2 and panels[0].num_problems:
        rows += _difference_rows(panels[0], panels[1], ks, iteration=iterations[1], note=note)
    return pl.DataFrame(rows, schema=BEFORE_AFTER_TABLE)


def _difference_rows(a: Panel, b: Panel, ks: Sequence[int], *, iteration: int, note: str) -> list[dict[str, Any]]:
    pairs = list(zip(main_figures(a, ks), main_figures(b, ks), strict=True))
    rows = []
    for x, y in pairs:
        change = join_notes(x.note, y.note, a.note, b.note, note)
        if x.measure == COVERAGE and x.candidates != y.candidates:
            estimate = undefined(a.num_problems, join_notes(change, OTHER_NUMBERS))
        else:
            estimate = difference(y.values - x.values, groups=a.groups, note=change)
        rows.append({"when": DIFFERENCE, "iteration": iteration, **y.labels(), **estimate.row()})
    return rows


def gain_table(
    counts: pl.DataFrame, *, ks: Sequence[int], models: Sequence[str] | None = None, phase: str = EVALUATE
) -> pl.DataFrame:
    """Collaboration gain: team Pass@k minus a single model, at equal k and at matched budget.

    At matched budget the single model has Pass@(N k), for a team of N models. It is uncertain which
    single model is the best, and the interval includes this uncertainty (`smallest_from_draws`).

    Args:
        counts: counts of one run.
        ks: completions per model.
        models: the team; default: all models that have rows.
        phase: evaluate (held-out problems) or cold (training problems, without hints).

    Returns:
        A frame with the schema `GAIN_TABLE`; empty for a team of one model. Estimates are
        fractions. `against` is a model, or "best" for the best single model, whose name is in
        `best_model`. `candidates` is the number of completions that the single model spends per
        problem.
    """
    models = models or models_of(counts)
    rows = []
    for iteration in iterations_of(counts, models=models, phase=phase) if len(models) > 1 else []:
        p = panel(counts, models=models, phase=phase, iteration=iteration)
        if p.num_problems:
            rows += [{"phase": phase, "iteration": iteration, **row} for row in _gain_rows(p, ks)]
    return pl.DataFrame(rows, schema=GAIN_TABLE)


def _gain_rows(p: Panel, ks: Sequence[int]) -> list[dict[str, Any]]:
    size = len(p.models)
    plan = [(k, baseline, spent) for k in ks for baseline, spent in ((EQUAL_K, k), (MATCHED_BUDGET, size * k))]
    singles = [[_single(p, m, k, spent=spent, measure=PASS) for m in range(size)] for k, _, spent in plan]
    teams = [team_pass_at_k(p.n, p.c, k) for k, _, _ in plan]
    # One column per gain and model: the value of the team minus the value of the model.
    columns = np.stack([team - s.values for team, row in zip(teams, singles, strict=True) for s in row], axis=1)
    values, draws = columns.mean(axis=0), resampled_means(*with_pseudo_problems(columns, p.groups))
    rows = []
    for i, (k, baseline, spent) in enumerate(plan):
        block = slice(i * size, (i + 1) * size)
        labels = {"baseline": baseline, "k": k, "candidates": spent}
        notes = [join_notes(s.note, p.note) for s in singles[i]]
        best, estimate = _over_best(p, values[block], draws[:, block], note=join_notes(*notes))
        rows.append({**labels, "against": BEST, "best_model": best, **estimate.row()})
        for m, (model, note) in enumerate(zip(p.models, notes, strict=True)):
            estimate = difference(columns[:, block][:, m], groups=p.groups, note=note)
            rows.append({**labels, "against": model, **estimate.row()})
    return rows


def _over_best(p: Panel, values: FloatArray, draws: FloatArray, *, note: str) -> tuple[str | None, Estimate]:
    """Return the name of the best single model, and the gain over it.

    values: (M,) gains over each model. draws: (NUM_DRAWS, M), their bootstrap draws.
    """
    if np.isnan(values).any():
        return None, undefined(p.num_problems, note)
    gain = smallest_from_draws(values, draws, num_problems=p.num_problems, groups=p.groups, note=note)
    return p.models[int(values.argmin())], gain
