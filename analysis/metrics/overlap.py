"""Error overlap: whether the models fail on the same problems, for every pair of models.

The input is the counts of one run, and its answer counts if answers are compared. The output is one
tidy frame, and matrices for the whole team. There are two levels. At level `problem`, a model fails
when none of its completions is correct. At level `sample`, failure is the chance that k of its
completions are all wrong, so every figure is an expectation over samples. Both levels give the
shares of a 2 x 2 table: both models fail, only B solves, only A solves, both solve.

A model that is sampled twice also does not fail on the same problems both times. The self-overlap
of a model (model_a = model_b, level `sample`) compares two draws of k completions that have no
completion in common. It is the overlap with a perfect copy of the model. The correlation of two
models, divided by the geometric mean of their self-correlations, is free of the sampling noise
(Spearman's correction for attenuation).

This module reads no file and formats no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import polars as pl

from analysis.counts.counts import Panel, iterations_of, models_of, panel
from analysis.metrics.passk import too_few
from analysis.metrics.votes import Ballots, ballots
from analysis.stats.estimators import FloatArray, IntArray, fail_at_k
from analysis.stats.intervals import ESTIMATE_COLUMNS, Estimate, divide, from_draws, join_notes, resampled_means, share
from core_hpc.store.schema import EVALUATE

PROBLEM, SAMPLE = "problem", "sample"
MEASURES = {
    "joint_failure": "both fail (double fault)",
    "jaccard": "both fail / at least one fails",
    "b_fails_given_a": "P(B fails | A fails)",
    "a_fails_given_b": "P(A fails | B fails)",
    "only_a": "only A solves (complementarity)",
    "only_b": "only B solves (complementarity)",
    "lift": "P(both fail) / (P(A fails) P(B fails)); 1: independent errors",
    "kappa": "Cohen's kappa of failure (error consistency); 0: agreement by chance",
    "phi": "correlation of failure; 0: uncorrelated",
    "yule_q": "Yule's Q of failure: (ad - bc) / (ad + bc)",
    "phi_corrected": "phi_AB / sqrt(phi_AA phi_BB): correlation of failure without the sampling noise",
    "same_wrong_answer": "P(same answer | both wrong) of one completion each; a missing answer equals no other answer",
}
SHARES = ("joint_failure", "jaccard", "b_fails_given_a", "a_fails_given_b", "only_a", "only_b", "same_wrong_answer")
"""The measures that are shares. All others are coefficients."""
_MIRRORED = {"b_fails_given_a": "a_fails_given_b", "only_a": "only_b"}
_MIRRORED |= {b: a for a, b in _MIRRORED.items()}
"""Name of a directed measure after A and B are exchanged. Other measures keep their names."""

OVERLAP_TABLE = pl.Schema(
    {
        "phase": pl.String(),
        "iteration": pl.Int32(),
        "model_a": pl.String(),
        "model_b": pl.String(),
        "level": pl.String(),
        "k": pl.Int32(),
        "measure": pl.String(),
        **ESTIMATE_COLUMNS,
    }
)


def coefficients(joint: FloatArray, a: FloatArray, b: FloatArray) -> dict[str, FloatArray]:
    """Compute lift, kappa, phi and Yule's Q; NaN where undefined.

    Args:
        joint: P(both fail).
        a: P(A fails).
        b: P(B fails).

    >>> {name: round(float(x), 3) for name, x in coefficients(np.array(0.3), np.array(0.4), np.array(0.5)).items()}
    {'lift': 1.5, 'kappa': 0.4, 'phi': 0.408, 'yule_q': 0.714}
    """
    only_b, only_a, none = a - joint, b - joint, 1 - a - b + joint
    chance = a * b + (1 - a) * (1 - b)
    joint, only_a, only_b, none = map(_zeroed, (joint, only_a, only_b, none))
    same, other = joint * none, only_a * only_b
    spread = np.sqrt(np.maximum(a * (1 - a) * b * (1 - b), 0))
    return {
        "lift": divide(joint, a * b),
        "kappa": divide(joint + none - chance, _zeroed(1 - chance)),
        "phi": divide(same - other, _zeroed(spread)),
        "yule_q": divide(same - other, same + other),
    }


def overlap_of(
    a: FloatArray,
    b: FloatArray,
    joint: FloatArray | None = None,
    *,
    groups: IntArray | None = None,
    samples: float = 1.0,
    note: str = "",
) -> list[dict[str, Any]]:
    """Compute all measures of one pair of models that need only their failures.

    Args:
        a: (P,) failure of model A on each problem: 0, 1 or a chance.
        b: (P,) failure of model B on each problem.
        joint: (P,) failure of both models; default: a b, because the models are sampled
            independently.
        groups: (P,) codes of source groups, whose problems are dependent; default: every problem is
            a group of its own.
        samples: completions per problem, which bound the effective number of observations.
        note: note of every figure.

    Returns:
        Rows with the measure and the columns of an estimate.
    """
    joint = a * b if joint is None else joint
    parts: dict[str, tuple[FloatArray, FloatArray | None]] = {
        "joint_failure": (joint, None),
        "jaccard": (joint, a + b - joint),
        "b_fails_given_a": (joint, a),
        "a_fails_given_b": (joint, b),
        "only_a": (b - joint, None),
        "only_b": (a - joint, None),
    }
    shares = {name: share(x, of, groups=groups, samples_per_unit=samples, note=note) for name, (x, of) in parts.items()}
    columns = np.stack([joint, a, b], axis=1)
    values = coefficients(*columns.mean(axis=0))
    draws = coefficients(*resampled_means(columns, groups).T)
    others = {
        name: from_draws(float(values[name]), draws[name], num_problems=len(a), groups=groups, note=note)
        for name in values
    }
    return [{"measure": name, **figure.row()} for name, figure in {**shares, **others}.items()]


def overlap_table(
    counts: pl.DataFrame,
    *,
    ks: Sequence[int] = (1,),
    models: Sequence[str] | None = None,
    phase: str = EVALUATE,
    iterations: Sequence[int] | None = None,
    answers: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Compute the error overlap of every pair of models, at problem level and at sample level.

    Args:
        counts: counts of one run.
        ks: completions per model at sample level.
        models: the team; default: all models that have rows.
        phase: evaluate (held-out problems) or cold (training problems, without hints).
        iterations: default: all published iterations.
        answers: answer counts of the run, for `same_wrong_answer`, which uses one completion of
            each model (k = 1); default: without this measure.

    Returns:
        A frame with the schema `OVERLAP_TABLE`. `MEASURES` defines the measures. An undefined
        figure is null, for example when no model fails. Rows with model_a = model_b are the
        self-overlap (sample level only), which is undefined where a problem has fewer than 2 k
        completions.
    """
    models = models or models_of(counts)
    rows = []
    for iteration in iterations_of(counts, models=models, phase=phase):
        if iterations is not None and iteration not in iterations:
            continue
        p = panel(counts, models=models, phase=phase, iteration=iteration)
        b = None if answers is None else ballots(answers, models=models, phase=phase, iteration=iteration)
        for i, j in combinations_with_replacement(range(len(models)), 2) if p.num_problems else []:
            labels = {"phase": phase, "iteration": iteration, "model_a": models[i], "model_b": models[j]}
            rows += [{**labels, **row} for row in _pair_rows(p, i, j, ks)]
            rows += [{**labels, **same_wrong_answer(b, i, j)}] if b is not None else []
    return pl.DataFrame(rows, schema=OVERLAP_TABLE)


def _pair_rows(p: Panel, i: int, j: int, ks: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    if i != j:  # at problem level, a model overlaps completely with itself
        uneven = "the models have different numbers of completions" if (p.n[i] != p.n[j]).any() else ""
        failed = (p.c == 0).astype(np.float64)
        found = overlap_of(failed[i], failed[j], groups=p.groups, note=join_notes(p.note, uneven))
        rows += [{"level": PROBLEM, "k": None, **row} for row in found]
    for k in ks:
        a, b = (fail_at_k(p.n[m], p.c[m], k) for m in (i, j))
        samples = float((p.n[i] + p.n[j]).mean()) if i != j else float(p.n[i].mean())
        note = join_notes(too_few(np.minimum(p.n[i], p.n[j]), k if i != j else 2 * k), p.note)
        joint = fail_at_k(p.n[i], p.c[i], 2 * k) if i == j else None
        found = overlap_of(a, b, joint, groups=p.groups, samples=samples, note=note)
        rows += [{"level": SAMPLE, "k": k, **row} for row in found]
        rows += [{"level": SAMPLE, "k": k, **_corrected(p, i, j, k)}] if i != j else []
    return rows


def mean_phi(panels: Sequence[Panel], i: int, j: int) -> Estimate:
    """Mean over seeds of the correlation of failure of two models, with one completion of each.

    Args:
        panels: one panel per run. All runs are seeds of one configuration and have the same
            problems. The bootstrap draws a problem for all runs together.
        i: position of the first model.
        j: position of the second model.

    Returns:
        The mean. For one run it is `phi` of `overlap_table` at level sample and k = 1.
    """
    fails = [(fail_at_k(p.n[i], p.c[i], 1), fail_at_k(p.n[j], p.c[j], 1)) for p in panels]
    columns = np.stack([column for a, b in fails for column in (a * b, a, b)], axis=1)

    def phi(means: FloatArray) -> FloatArray:
        of_run = coefficients(*np.moveaxis(means.reshape(*means.shape[:-1], len(panels), 3), -1, 0))["phi"]
        mean: FloatArray = of_run.mean(axis=-1)
        return mean

    groups, note = panels[0].groups, join_notes(*(p.note for p in panels))
    value, draws = float(phi(columns.mean(axis=0))), phi(resampled_means(columns, groups))
    return from_draws(value, draws, num_problems=len(columns), groups=groups, note=note)


def _corrected(p: Panel, i: int, j: int, k: int) -> dict[str, Any]:
    """Compute phi without the sampling noise; undefined if a self-correlation is not positive."""
    a, b = (fail_at_k(p.n[m], p.c[m], k) for m in (i, j))
    twice_a, twice_b = (fail_at_k(p.n[m], p.c[m], 2 * k) for m in (i, j))
    columns = np.stack([a * b, twice_a, twice_b, a, b], axis=1)

    value = float(corrected_phi(*columns.mean(axis=0)))
    not_positive = "" if np.isfinite(value) else "undefined: a self-correlation is not positive"
    note = too_few(np.minimum(p.n[i], p.n[j]), 2 * k) or not_positive
    draws = corrected_phi(*resampled_means(columns, p.groups).T)
    estimate = from_draws(value, draws, num_problems=p.num_problems, groups=p.groups, note=join_notes(note, p.note))
    return {"measure": "phi_corrected", **estimate.row()}


def corrected_phi(
    joint: FloatArray, both_a: FloatArray, both_b: FloatArray, a: FloatArray, b: FloatArray
) -> FloatArray:
    """Compute phi_AB / sqrt(phi_AA phi_BB); NaN where a self-correlation is not positive.

    The variances of single draws cancel.

    Args:
        joint: P(both fail).
        both_a: P(A fails in both of two draws without a completion in common).
        both_b: the same for B.
        a: P(A fails).
        b: P(B fails).
    """
    self_a, self_b = (np.maximum(_zeroed(both - one * one), 0) for both, one in ((both_a, a), (both_b, b)))
    return divide(joint - a * b, np.sqrt(self_a * self_b))


def _zeroed(x: FloatArray) -> FloatArray:
    """Replace rounding errors by 0, because they must not decide whether a ratio is defined."""
    return np.where(np.abs(x) < 1e-12, 0.0, x)


def same_wrong_answer(b: Ballots, i: int, j: int) -> dict[str, Any]:
    """Chance that two wrong completions have the same answer, one of model i and one of model j.

    For i = j these are two different completions of the model. A completion without an answer is
    wrong, but its answer equals no other answer.
    """
    same, both_wrong, note = same_wrong_parts(b, i, j)
    samples = float(b.n[[i, j]].mean())
    estimate = share(same, both_wrong, groups=b.groups, samples_per_unit=samples, note=note)
    return {"level": SAMPLE, "k": 1, "measure": "same_wrong_answer", **estimate.row()}


def same_wrong_parts(b: Ballots, i: int, j: int) -> tuple[FloatArray, FloatArray, str]:
    """Chances (P,) that two completions have the same wrong answer, and that both are wrong.

    They are NaN where a problem has too few completions; the last item is the note about it.
    """
    n, wrong, answers = b.n[[i, j]], (b.n - b.correct)[[i, j]], b.wrong[[i, j]]
    own = int(i == j)  # a completion is not compared with itself
    pairs = (n[0] * (n[1] - own)).astype(np.float64)
    same = divide((answers[0] * (answers[1] - own)).sum(axis=1).astype(np.float64), pairs)
    both_wrong = divide((wrong[0] * (wrong[1] - own)).astype(np.float64), pairs)
    return same, both_wrong, join_notes(too_few(b.n[[i, j]].min(axis=0), 1 + own), b.note)


def matrix(table: pl.DataFrame, measure: str, *, level: str, k: int | None, iteration: int) -> pl.DataFrame:
    """Arrange one measure of all pairs of models as a matrix.

    Args:
        table: rows of `overlap_table`, of one phase.
        measure: a key of `MEASURES`. The cell [A, B] of a directed measure follows its definition:
            b_fails_given_a is P(B fails | A fails).
        level: level of the rows.
        k: k of the rows; None at level `problem`.
        iteration: iteration of the rows.

    Returns:
        The estimates: a column `model` with A, and one column for each model B, in the order of the
        team. An undefined estimate is null. The diagonal is null where there is no self-overlap.
    """
    here = table.filter((pl.col("level") == level) & pl.col("k").eq_missing(k) & (pl.col("iteration") == iteration))
    models = list(dict.fromkeys(name for pair in here.select("model_a", "model_b").rows() for name in pair))
    figures = {(row["model_a"], row["model_b"], row["measure"]): row["estimate"] for row in here.iter_rows(named=True)}
    mirrored = _MIRRORED.get(measure, measure)

    def cell(a: str, b: str) -> float | None:
        return figures.get((a, b, measure)) if (a, b, measure) in figures else figures.get((b, a, mirrored))

    schema = {"model": pl.String(), **dict.fromkeys(models, pl.Float64())}
    return pl.DataFrame([{"model": a, **{b: cell(a, b) for b in models}} for a in models], schema=schema)
