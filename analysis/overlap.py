"""Do the models fail on the same problems? Overlap of errors for every pair of models.

In: the counts of one run. Out: one tidy frame. At level `problem` a model fails when none of its completions is correct;
at level `sample` failure is the chance that k of its completions are all wrong, so every figure is an expectation over
samples. Both give a 2 x 2 table of shares: both fail, only B solves, only A solves, both solve. This module reads no
file and formats nothing; self-overlap and noise-corrected correlations are not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from analysis.counts import Panel, iterations_of, models_of, panel
from analysis.estimators import FloatArray, fail_at_k
from analysis.intervals import ESTIMATE_COLUMNS, divide, from_draws, join_notes, resampled_means, share
from core_hpc.schema import EVALUATE

PROBLEM, SAMPLE = "problem", "sample"
MEASURES = {
    "joint_failure": "both fail (double fault)",
    "jaccard": "both fail / at least one fails",
    "b_fails_given_a": "P(B fails | A fails)",
    "a_fails_given_b": "P(A fails | B fails)",
    "only_a": "only A solves (complementarity)",
    "only_b": "only B solves (complementarity)",
    "lift": "P(both fail) / (P(A fails) P(B fails)); 1: independent errors",
    "kappa": "Cohen's kappa of failure (error consistency); 0: as by chance",
    "phi": "correlation of failure; 0: uncorrelated",
    "yule_q": "Yule's Q of failure: (ad - bc) / (ad + bc)",
}
SHARES = ("joint_failure", "jaccard", "b_fails_given_a", "a_fails_given_b", "only_a", "only_b")
"""Measures which are shares; the others are coefficients."""

OVERLAP_TABLE = pl.Schema(
    {
        "phase": pl.String(), "iteration": pl.Int32(), "model_a": pl.String(), "model_b": pl.String(), "level": pl.String(),
        "k": pl.Int32(), "measure": pl.String(), **ESTIMATE_COLUMNS,
    }
)  # fmt: skip


def coefficients(joint: FloatArray, a: FloatArray, b: FloatArray) -> dict[str, FloatArray]:
    """Lift, kappa, phi and Yule's Q from the shares P(both fail), P(A fails), P(B fails); NaN where undefined.

    >>> {name: round(float(x), 3) for name, x in coefficients(np.array(0.3), np.array(0.4), np.array(0.5)).items()}
    {'lift': 1.5, 'kappa': 0.4, 'phi': 0.408, 'yule_q': 0.714}
    """
    only_b, only_a, none = a - joint, b - joint, 1 - a - b + joint
    chance = a * b + (1 - a) * (1 - b)
    # Rounding can leave 1e-17 where a cell is empty; it must not decide whether a ratio is defined.
    joint, only_a, only_b, none = (np.where(np.abs(x) < 1e-12, 0.0, x) for x in (joint, only_a, only_b, none))
    same, other = joint * none, only_a * only_b
    spread = np.sqrt(np.maximum(a * (1 - a) * b * (1 - b), 0))
    return {
        "lift": divide(joint, a * b),
        "kappa": divide(joint + none - chance, np.where(1 - chance < 1e-12, 0.0, 1 - chance)),
        "phi": divide(same - other, np.where(spread < 1e-12, 0.0, spread)),
        "yule_q": divide(same - other, same + other),
    }


def overlap_of(a: FloatArray, b: FloatArray, *, samples: float = 1.0, note: str = "") -> list[dict[str, Any]]:
    """All measures of one pair: rows with measure and estimate columns.

    Args:
        a, b: (P,) failure of the two models on each problem: 0 or 1, or a chance.
        samples: completions behind one problem (bounds the effective n).
        note: said beside every figure.
    """
    joint = a * b
    shares = {
        "joint_failure": share(joint, samples_per_unit=samples, note=note),
        "jaccard": share(joint, a + b - joint, samples_per_unit=samples, note=note),
        "b_fails_given_a": share(joint, a, samples_per_unit=samples, note=note),
        "a_fails_given_b": share(joint, b, samples_per_unit=samples, note=note),
        "only_a": share(b - joint, samples_per_unit=samples, note=note),
        "only_b": share(a - joint, samples_per_unit=samples, note=note),
    }
    columns = np.stack([joint, a, b], axis=1)
    values = coefficients(*columns.mean(axis=0))
    draws = coefficients(*resampled_means(columns).T)
    others = {name: from_draws(float(values[name]), draws[name], num_problems=len(a), note=note) for name in values}
    figures = {**shares, **others}
    return [{"measure": name, **figures[name].row()} for name in MEASURES]


def overlap_table(
    counts: pl.DataFrame,
    *,
    ks: Sequence[int] = (1,),
    models: Sequence[str] | None = None,
    phase: str = EVALUATE,
    iterations: Sequence[int] | None = None,
) -> pl.DataFrame:
    """Error overlap of every pair of models, at problem level and at sample level for each k.

    Args:
        counts: counts of one run.
        ks: completions per model at sample level.
        models: the team; default: every model that has rows.
        phase: evaluate, or cold (training problems, without help).
        iterations: default: every published one.

    Returns:
        `OVERLAP_TABLE`; what a measure is, is said in `MEASURES`. Undefined (nothing failed, say) is null.
    """
    models = models or models_of(counts)
    rows = []
    for iteration in iterations_of(counts, models=models, phase=phase):
        if iterations is not None and iteration not in iterations:
            continue
        p = panel(counts, models=models, phase=phase, iteration=iteration)
        for i, j in combinations(range(len(models)), 2) if p.num_problems else []:
            labels = {"phase": phase, "iteration": iteration, "model_a": models[i], "model_b": models[j]}
            rows += [{**labels, **row} for row in _pair_rows(p, i, j, ks)]
    return pl.DataFrame(rows, schema=OVERLAP_TABLE)


def _pair_rows(p: Panel, i: int, j: int, ks: Sequence[int]) -> list[dict[str, Any]]:
    uneven = "the models have different numbers of completions" if (p.n[i] != p.n[j]).any() else ""
    failed = (p.c == 0).astype(np.float64)
    rows = [{"level": PROBLEM, "k": None, **row} for row in overlap_of(failed[i], failed[j], note=join_notes(p.note, uneven))]
    samples = float((p.n[i] + p.n[j]).mean())
    for k in ks:
        a, b = fail_at_k(p.n[i], p.c[i], k), fail_at_k(p.n[j], p.c[j], k)
        short = int((np.isnan(a) | np.isnan(b)).sum())
        note = join_notes(f"undefined: {short} problems have fewer than {k} completions" if short else "", p.note)
        rows += [{"level": SAMPLE, "k": k, **row} for row in overlap_of(a, b, samples=samples, note=note)]
    return rows
