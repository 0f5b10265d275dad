"""Change of the error overlap by training, with an interval of the change itself.

The input is the counts of one run, and its answer counts for `same_wrong_answer`. The output is one
tidy frame: each measure of `metrics/overlap.py` before and after training, and the difference. The
difference has its own interval, paired by problem: a draw of the bootstrap has the same problems
before and after, and for both models. It cannot be seen from the intervals of the two levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from analysis.counts.counts import Panel, models_of, paired, panel
from analysis.metrics.overlap import PROBLEM, SAMPLE, coefficients, corrected_phi, same_wrong_parts
from analysis.metrics.passk import before_and_after, too_few
from analysis.metrics.votes import ballots
from analysis.stats.estimators import FloatArray, fail_at_k
from analysis.stats.intervals import ESTIMATE_COLUMNS, divide, from_draws, join_notes, resampled_means

OVERLAP_CHANGE_TABLE = pl.Schema(
    {
        "model_a": pl.String(),
        "model_b": pl.String(),
        "level": pl.String(),
        "k": pl.Int32(),
        "measure": pl.String(),
        "iteration": pl.Int32(),  # of the later evaluation
        "before": pl.Float64(),
        "after": pl.Float64(),
        **ESTIMATE_COLUMNS,  # of after - before
    }
)


CORRECTED = "phi_corrected"


class _Sums(NamedTuple):
    """Values per problem of one evaluation, and the measures of their means."""

    columns: FloatArray  # (P, F)
    measures: Callable[[FloatArray], dict[str, FloatArray]]  # (..., F) means -> measures
    note: str = ""
    corrected_note: str = ""  # of phi_corrected, which needs more completions than the other measures


def overlap_change_table(
    counts: pl.DataFrame,
    *,
    ks: Sequence[int] = (1,),
    models: Sequence[str] | None = None,
    answers: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Compute the change of the error overlap of every pair of models.

    Args:
        counts: counts of one run.
        ks: completions per model at sample level.
        models: the team; default: all models that have rows.
        answers: answer counts of the run, for `same_wrong_answer`; default: without this measure.

    Returns:
        A frame with the schema `OVERLAP_CHANGE_TABLE`, on the problems that both evaluations have.
        It is empty unless there is an evaluation before training and one after it. A change is
        undefined if the measure is undefined before or after.
    """
    models = models or models_of(counts)
    at_before, at_after = before_and_after(counts, models) if models else (None, None)
    if at_before is None or at_after is None:
        return pl.DataFrame(schema=OVERLAP_CHANGE_TABLE)
    whole = [panel(counts, models=models, iteration=i) for i in (at_before, at_after)]
    before, after = paired(*whole)
    unpaired = whole[0].num_problems + whole[1].num_problems - 2 * before.num_problems
    note = f"{unpaired} problems left out: in one evaluation only" if unpaired else ""
    rows: list[dict[str, Any]] = []
    for i, j in combinations(range(len(models)), 2) if before.num_problems else []:
        labels = {"model_a": models[i], "model_b": models[j], "iteration": at_after}
        levels = [(PROBLEM, None), *((SAMPLE, k) for k in ks)]
        for level, k in levels:
            old, new = (_failures(p, i, j, k) for p in (before, after))
            rows += [{**labels, "level": level, "k": k, **row} for row in _changes(before, old, new, note)]
        if answers is not None:
            old, new = (_same_wrong(answers, models, at, before, i, j) for at in (at_before, at_after))
            rows += [{**labels, "level": SAMPLE, "k": 1, **row} for row in _changes(before, old, new, note)]
    return pl.DataFrame(rows, schema=OVERLAP_CHANGE_TABLE)


def _changes(p: Panel, before: _Sums, after: _Sums, note: str) -> list[dict[str, Any]]:
    """The rows of all measures of two evaluations of the same problems."""
    size = before.columns.shape[1]
    columns = np.concatenate([before.columns, after.columns], axis=1)
    means, draws = columns.mean(axis=0), resampled_means(columns, p.groups)
    values = [of.measures(part) for of, part in ((before, means[:size]), (after, means[size:]))]
    drawn = [of.measures(part) for of, part in ((before, draws[:, :size]), (after, draws[:, size:]))]
    rows = []
    for measure in values[0]:
        old, new = (float(found[measure]) for found in values)
        notes = (of.corrected_note if measure == CORRECTED else of.note for of in (before, after))
        draws_of_change, of_change = drawn[1][measure] - drawn[0][measure], join_notes(*notes, note)
        change = from_draws(new - old, draws_of_change, num_problems=p.num_problems, groups=p.groups, note=of_change)
        levels = {"before": old if np.isfinite(old) else None, "after": new if np.isfinite(new) else None}
        rows.append({"measure": measure, **levels, **change.row()})
    return rows


def _failures(p: Panel, i: int, j: int, k: int | None) -> _Sums:
    """Failures of two models: of all completions (k is None), or expected for k completions."""
    if k is None:
        a, b = ((p.c[m] == 0).astype(np.float64) for m in (i, j))
        return _Sums(np.stack([a * b, a, b], axis=1), _measures)
    a, b = (fail_at_k(p.n[m], p.c[m], k) for m in (i, j))
    twice = [fail_at_k(p.n[m], p.c[m], 2 * k) for m in (i, j)]
    notes = (too_few(np.minimum(p.n[i], p.n[j]), needed) for needed in (k, 2 * k))
    return _Sums(np.stack([a * b, a, b, *twice], axis=1), _measures, *notes)


def _measures(means: FloatArray) -> dict[str, FloatArray]:
    """All measures of the means of (joint, a, b) and, at sample level, of two disjoint draws."""
    joint, a, b, *twice = np.moveaxis(means, -1, 0)
    found = {
        "joint_failure": joint,
        "jaccard": divide(joint, a + b - joint),
        "b_fails_given_a": divide(joint, a),
        "a_fails_given_b": divide(joint, b),
        "only_a": b - joint,
        "only_b": a - joint,
        **coefficients(joint, a, b),
    }
    if twice:
        found[CORRECTED] = corrected_phi(joint, twice[0], twice[1], a, b)
    return found


def _same_wrong(answers: pl.DataFrame, models: Sequence[str], iteration: int, p: Panel, i: int, j: int) -> _Sums:
    b = ballots(answers, models=models, iteration=iteration)
    same, both_wrong, note = same_wrong_parts(b, i, j)
    at = np.searchsorted(b.problem_ids, p.problem_ids)
    columns = np.stack([same, both_wrong], axis=1)[at]
    return _Sums(columns, lambda means: {"same_wrong_answer": divide(means[..., 0], means[..., 1])}, note)
