"""Pass@k of models and of the team, before against after training, and the collaboration gain.

In: the counts of one run. Out: tidy frames. A team of N at k spends N k candidates per problem, so each team figure
stands beside the matched budget: the single models' Pass@(N k). This module reads no file and formats nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from analysis.counts.counts import Panel, iterations_of, models_of, paired, panel
from analysis.stats.estimators import FloatArray, IntArray, coverage, first_k, pass_at_k, pass_hat_k, team_pass_at_k
from analysis.stats.intervals import (
    ESTIMATE_COLUMNS,
    Estimate,
    from_draws,
    join_notes,
    resampled_means,
    share,
    smallest_from_draws,
    undefined,
)
from core_hpc.store.schema import EVALUATE

TEAM = "team"
PASS, TEAM_PASS, MATCHED_PASS, COVERAGE = "pass", "team_pass", "matched_pass", "coverage"
FIRST, PASS_HAT = "first", "pass_hat"
EQUAL_K, MATCHED_BUDGET = "equal_k", "matched_budget"
BEST = "best"
BEFORE, AFTER, DIFFERENCE = "before", "after", "difference"
DEFAULT_KS = (1, 2, 4)

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


class Figure(NamedTuple):
    """One figure of the Pass@k tables, with its value for each problem."""

    measure: str
    model: str  # or the team
    k: int | None  # completions of one model; null for coverage, which takes all there are
    candidates: int | None  # completions of all models that the figure spends on a problem
    values: FloatArray  # (P,)
    samples: float  # completions behind the value of one problem, mean
    note: str

    def labels(self) -> dict[str, Any]:
        return {"measure": self.measure, "model": self.model, "k": self.k, "candidates": self.candidates}

    def level(self, p: Panel) -> Estimate:
        return share(self.values, groups=p.groups, samples_per_unit=self.samples, note=join_notes(self.note, p.note))


def default_ks(num_samples: int) -> list[int]:
    """The k that are shown unless others are asked for: those of `DEFAULT_KS` that there are completions for, at least 1."""
    return [k for k in DEFAULT_KS if k <= num_samples] or [1]


def too_few(n: IntArray, k: int) -> str:
    """Says that a figure is undefined because some problem has fewer than k completions; empty when none has.

    n: (P,) of one model, or (M, P) of all that the figure needs.
    """
    short = int((np.atleast_2d(n) < k).any(axis=0).sum())
    some = " of some model" if n.ndim == 2 else ""
    return f"undefined: {short} problems have fewer than {k} completions{some}" if short else ""


def _single(p: Panel, m: int, k: int, *, spent: int, measure: str) -> Figure:
    """Pass@spent of model m, shown in the group of k."""
    values = pass_at_k(p.n[m], p.c[m], spent)
    return Figure(measure, p.models[m], k, spent, values, float(p.n[m].mean()), too_few(p.n[m], spent))


def _team(p: Panel, k: int, *, name: str = TEAM) -> Figure:
    """Team Pass@k of all models of the panel."""
    values, samples = team_pass_at_k(p.n, p.c, k), float(p.n.sum(axis=0).mean())
    return Figure(TEAM_PASS, name, k, len(p.models) * k, values, samples, too_few(p.n, k))


def main_figures(p: Panel, ks: Sequence[int]) -> list[Figure]:
    """Models, team and matched budget of a panel with at least one problem."""
    size = len(p.models)
    out: list[Figure] = []
    for k in ks:
        out += [_single(p, m, k, spent=k, measure=PASS) for m in range(size)]
        if size > 1:
            out.append(_team(p, k))
            out += [_single(p, m, k, spent=size * k, measure=MATCHED_PASS) for m in range(size)]
    spent = p.n.sum(axis=0)
    # All completions of a problem give one answer here, so a problem counts as one observation at most.
    out.append(
        Figure(
            COVERAGE,
            TEAM,
            None,
            int(spent.max()),
            coverage(p.c),
            1.0,
            "" if spent.min() == spent.max() else "candidates vary",
        )
    )
    return out


def _further_figures(p: Panel, ks: Sequence[int], parts: Sequence[Sequence[int]]) -> list[Figure]:
    """Parts of the team (by position) with their matched budgets, first-k and pass^k."""
    out: list[Figure] = []
    for k in ks:
        out += [_team(p.of(part), k, name="+".join(p.models[m] for m in part)) for part in parts]
        budgets = sorted({(m, len(part) * k) for part in parts for m in part})
        out += [_single(p, m, k, spent=spent, measure=MATCHED_PASS) for m, spent in budgets]
        for m, (model, n, c, first) in enumerate(zip(p.models, p.n, p.c, p.first, strict=True)):
            note = too_few(n, k)
            # First-k is one observation of a problem, however many completions there are.
            out.append(Figure(FIRST, model, k, k, first_k(n, first, k), 1.0, note))
            out.append(Figure(PASS_HAT, model, k, k, pass_hat_k(n, c, k), float(p.n[m].mean()), note))
    return out


def pass_at_k_table(
    counts: pl.DataFrame,
    *,
    ks: Sequence[int],
    models: Sequence[str] | None = None,
    phase: str = EVALUATE,
    teams: Sequence[Sequence[str]] | None = None,
) -> pl.DataFrame:
    """Pass@k, first-k and pass^k per model, team Pass@k, matched budgets and coverage for every iteration of a phase.

    Args:
        counts: counts of one run.
        ks: completions per model.
        models: the team; default: every model that has rows.
        phase: evaluate (held-out problems) or cold (training problems, without help).
        teams: parts of the team, of two models or more, which get a team Pass@k too (their `model` is the names joined
            by "+"; the whole team is called team); default: every such part.

    Returns:
        `PASS_TABLE`: estimates are fractions; null where a problem has fewer than k completions. `matched_pass` is a
        model's Pass@(size k) at the budget of a team of that size; `candidates` says what is spent.
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
    """Iterations of the evaluation before training (0) and of the latest one after it; None where not published."""
    published = iterations_of(counts, models=models)
    later = [i for i in published if i > 0]
    return (0 if 0 in published else None), (later[-1] if later else None)


def before_after_table(counts: pl.DataFrame, *, ks: Sequence[int], models: Sequence[str] | None = None) -> pl.DataFrame:
    """Evaluation before training, the latest after it, and their difference paired by problem.

    Returns:
        `BEFORE_AFTER_TABLE`; `when` is before, after or difference (after - before, a fraction; its iteration is the
        later one). Levels stand on all problems of their evaluation, the difference on the common ones. Rows of what is
        not published are absent.
    """
    models = models or models_of(counts)
    panels = {
        when: (iteration, panel(counts, models=models, iteration=iteration))
        for when, iteration in zip(
            (BEFORE, AFTER), before_and_after(counts, models) if models else (None, None), strict=True
        )
        if iteration is not None
    }
    rows = [
        {"when": when, "iteration": iteration, **figure.labels(), **figure.level(p).row()}
        for when, (iteration, p) in panels.items()
        if p.num_problems
        for figure in main_figures(p, ks)
    ]
    if len(panels) == 2:
        rows += _difference_rows(panels[BEFORE][1], panels[AFTER][1], ks, iteration=panels[AFTER][0])
    return pl.DataFrame(rows, schema=BEFORE_AFTER_TABLE)


def _difference_rows(before: Panel, after: Panel, ks: Sequence[int], *, iteration: int) -> list[dict[str, Any]]:
    a, b = paired(before, after)
    if not a.num_problems:
        return []
    unpaired = before.num_problems + after.num_problems - 2 * a.num_problems
    note = f"{unpaired} problems left out: in one evaluation only" if unpaired else ""
    pairs = list(zip(main_figures(a, ks), main_figures(b, ks), strict=True))
    columns = np.stack([y.values - x.values for x, y in pairs], axis=1)
    draws = resampled_means(columns, a.groups)
    rows = []
    for i, (x, y) in enumerate(pairs):
        change = join_notes(x.note, y.note, note)
        if x.measure == COVERAGE and x.candidates != y.candidates:
            estimate = undefined(a.num_problems, join_notes(change, "not comparable: other numbers of completions"))
        else:
            mean = float(columns[:, i].mean())
            estimate = from_draws(mean, draws[:, i], num_problems=a.num_problems, groups=a.groups, note=change)
        rows.append({"when": DIFFERENCE, "iteration": iteration, **y.labels(), **estimate.row()})
    return rows


def gain_table(
    counts: pl.DataFrame, *, ks: Sequence[int], models: Sequence[str] | None = None, phase: str = EVALUATE
) -> pl.DataFrame:
    """Collaboration gain: team Pass@k minus a single model, at equal k and at matched budget (its Pass@(N k)).

    `against` is best (of the single models, named in `best_model`) or the name of a model. Which model is best is itself
    uncertain, and the interval holds that (`smallest_from_draws`).
    Returns `GAIN_TABLE`, estimates are fractions; empty for a team of one. `candidates` is what the single model spends.
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
    # One column per gain and model: the team's value minus the model's.
    columns = np.stack([team - s.values for team, row in zip(teams, singles, strict=True) for s in row], axis=1)
    values, draws = columns.mean(axis=0), resampled_means(columns, p.groups)
    rows = []
    for i, (k, baseline, spent) in enumerate(plan):
        block = slice(i * size, (i + 1) * size)
        labels = {"baseline": baseline, "k": k, "candidates": spent}
        notes = [join_notes(s.note, p.note) for s in singles[i]]
        best, estimate = _over_best(p, values[block], draws[:, block], note=join_notes(*notes))
        rows.append({**labels, "against": BEST, "best_model": best, **estimate.row()})
        for m, (model, note) in enumerate(zip(p.models, notes, strict=True)):
            value, drawn = float(values[block][m]), draws[:, block][:, m]
            estimate = from_draws(value, drawn, num_problems=p.num_problems, groups=p.groups, note=note)
            rows.append({**labels, "against": model, **estimate.row()})
    return rows


def _over_best(p: Panel, values: FloatArray, draws: FloatArray, *, note: str) -> tuple[str | None, Estimate]:
    """Name of the best single model, and the gain over it. values: (M,) gains over each; draws: (NUM_DRAWS, M)."""
    if np.isnan(values).any():
        return None, undefined(p.num_problems, note)
    gain = smallest_from_draws(values, draws, num_problems=p.num_problems, groups=p.groups, note=note)
    return p.models[int(values.argmin())], gain
