"""Selectors: how a team chooses one answer without the gold answer, and what the choice costs.

The input is the completions of one phase and iteration (`counts/completions.py`). The output is one
tidy frame: for each selector the share of problems that it solves, the tokens that it spends, the
tokens per solved problem, and how far it is below the oracle. The oracle solves a problem if any
completion is correct (team Pass@k); it needs the gold answer, so nobody can deploy it.

Figures are means over draws of k completions per model (`metrics/draws.py`). With exactly k stored
completions the drawn set is always the same, and only the order is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from analysis.metrics.draws import BLANK, Drawn, Stored, drawn, stored
from analysis.metrics.passk import TEAM, too_few
from analysis.stats.estimators import FloatArray, IntArray
from analysis.stats.intervals import (
    ESTIMATE_COLUMNS,
    divide,
    from_draws,
    join_notes,
    resampled_means,
    share,
    undefined,
)

ORACLE, MAJORITY, CONFIDENCE, FIRST_AGREE, GATED = "oracle", "majority", "confidence", "first_agree", "gated"
SELECTORS = {
    ORACLE: "any completion is correct (needs the gold answer)",
    MAJORITY: "most frequent answer of all completions; a tie is decided at random",
    CONFIDENCE: "answer of the completion with the highest mean log-probability per token",
    FIRST_AGREE: "the models answer in turns until two answers agree; without agreement, the first answer",
    GATED: "the next model is asked only if the completions of a model do not all agree; at last, majority of all",
}
ACCURACY, TOKENS, PER_SOLVED, BELOW = "accuracy", "tokens", "tokens_per_solved", "below_oracle"
MEASURES = {
    ACCURACY: "share of problems that the chosen answer solves",
    TOKENS: "sampled tokens per problem",
    PER_SOLVED: "sampled tokens / solved problems",
    BELOW: "accuracy of the oracle with the same models and k, minus that of the selector",
}
SELECTOR_TABLE = pl.Schema(
    {
        "selector": pl.String(),
        "model": pl.String(),  # a model, TEAM, or the order in which a gated team answers ("a > b")
        "k": pl.Int32(),  # completions per model, at most
        "candidates": pl.Int32(),  # completions that the selector may spend per problem
        "measure": pl.String(),
        **ESTIMATE_COLUMNS,
    }
)
NUM_DRAWS_OF_COMPLETIONS = 64
_CELLS = 4_000_000  # cells of the comparison of all pairs of answers that are in memory at once
_NO_CONFIDENCE = "undefined: no log-probabilities are stored"


class _Chosen(NamedTuple):
    """The result of a selector in every draw; (P, R) each."""

    solved: FloatArray  # chance that the chosen answer is correct
    tokens: FloatArray


Selector = Callable[[Drawn], _Chosen]


def selector_table(
    completions: pl.DataFrame,
    *,
    ks: Sequence[int],
    models: Sequence[str],
    num_draws: int = NUM_DRAWS_OF_COMPLETIONS,
) -> pl.DataFrame:
    """Compute accuracy and cost of all selectors, of each model alone and of the team.

    Args:
        completions: a frame with the schema `COMPLETIONS`, of one phase and iteration.
        ks: completions per model. A single model is also shown with the completions of the whole
            team, as far as it has them.
        models: the team.
        num_draws: draws of completions per problem.

    Returns:
        A frame with the schema `SELECTOR_TABLE`. Accuracies are fractions. Prompt tokens are not
        counted. A figure is null where a problem has fewer than k completions.
    """
    s = stored(completions, models)
    rows: list[dict[str, Any]] = []
    if s.num_problems:
        for k in ks:
            for m, model in enumerate(models):
                budgets = dict.fromkeys((k, len(models) * k))
                for spent in budgets:
                    if spent == k or (s.available[m] >= spent).all():
                        rows += _rows(s, [m], model, spent, num_draws)
            if len(models) > 1:
                rows += _rows(s, list(range(len(models))), TEAM, k, num_draws)
    return pl.DataFrame(rows, schema=SELECTOR_TABLE).unique(maintain_order=True)


def _selectors(s: Stored, members: Sequence[int], name: str, k: int) -> list[tuple[str, str, Selector]]:
    """The selectors of a team or of a single model, each with its label."""
    found: list[tuple[str, str, Selector]] = [(ORACLE, name, oracle), (MAJORITY, name, majority)]
    if len(members) * k > 1:
        found += [(CONFIDENCE, name, confidence)]
    if len(members) * k > 2:
        found += [(FIRST_AGREE, name, first_agree)]
    if len(members) > 1 and k > 1:
        for first in range(len(members)):
            # Every model is first once; the others follow in the order of the team.
            order = [first, *(i for i in range(len(members)) if i != first)]
            label = " > ".join(s.models[members[i]] for i in order)
            found.append((GATED, label, partial(gated, order=order)))
    return found


def _rows(s: Stored, members: Sequence[int], name: str, k: int, num_draws: int) -> list[dict[str, Any]]:
    own = Stored(
        models=tuple(s.models[m] for m in members),
        classes=s.classes[members],
        tokens=s.tokens[members],
        confidence=s.confidence[members],
        available=s.available[members],
        groups=s.groups,
        num_left_out=s.num_left_out,
    )
    selectors = _selectors(own, range(len(members)), name, k)
    labels = [
        {"selector": selector, "model": label, "k": k, "candidates": len(members) * k}
        for selector, label, _ in selectors
    ]
    short = too_few(own.available, k) if len(members) > 1 else too_few(own.available[0], k)
    note = join_notes(short, own.note)
    if short:
        nothing = undefined(own.num_problems, note).row()
        return [{**of, "measure": measure, **nothing} for of in labels for measure in MEASURES if measure != BELOW]
    results = _applied(own, k, num_draws, [selector for _, _, selector in selectors])
    samples = float(own.available.sum(axis=0).mean())
    rows = []
    for of, (solved, tokens) in zip(labels, results, strict=True):
        why = _NO_CONFIDENCE if of["selector"] == CONFIDENCE and np.isnan(solved).any() else ""
        rows += _figures(of, solved, tokens, results[0][0], own.groups, samples, join_notes(why, note))
    return rows


def _applied(s: Stored, k: int, num_draws: int, selectors: Sequence[Selector]) -> list[tuple[FloatArray, FloatArray]]:
    """Means over draws, per problem, of solved and tokens of each selector."""
    per_problem = num_draws * (len(s.models) * k) ** 2
    step = max(1, _CELLS // per_problem)
    parts: list[list[_Chosen]] = [[] for _ in selectors]
    for start in range(0, s.num_problems, step):
        d = drawn(s, k, num_draws, problems=slice(start, min(start + step, s.num_problems)))
        for part, selector in zip(parts, selectors, strict=True):
            chosen = selector(d)
            part.append(_Chosen(chosen.solved.mean(axis=1), chosen.tokens.mean(axis=1)))
    return [(np.concatenate([c.solved for c in part]), np.concatenate([c.tokens for c in part])) for part in parts]


def _figures(
    labels: dict[str, Any],
    solved: FloatArray,
    tokens: FloatArray,
    best: FloatArray,
    groups: IntArray,
    samples: float,
    note: str,
) -> list[dict[str, Any]]:
    """The rows of one selector. `best` is what the oracle solves with the same completions."""
    size = len(solved)
    draws = resampled_means(np.stack([solved, tokens, best - solved], axis=1), groups)
    settings: dict[str, Any] = {"num_problems": size, "groups": groups, "note": note}
    spent = from_draws(float(tokens.mean()), draws[:, 1], **settings)
    ratio = float(divide(tokens.sum(), solved.sum()))
    per_solved = from_draws(ratio, divide(draws[:, 1], draws[:, 0]), **settings)
    if not solved.sum():
        per_solved = undefined(size, join_notes("undefined: no problem is solved", note))
    figures = {
        ACCURACY: share(solved, groups=groups, samples_per_unit=samples, note=note),
        TOKENS: spent,
        PER_SOLVED: per_solved,
    }
    if labels["selector"] != ORACLE:
        figures[BELOW] = from_draws(float((best - solved).mean()), draws[:, 2], **settings)
    return [{**labels, "measure": measure, **figure.row()} for measure, figure in figures.items()]


# --- selectors -----------------------------------------------------------------------------------


def _flat(array: Any) -> Any:
    """(P, R, M, k) -> (P, R, M k), in turns: the first completion of every model, then the second."""
    return np.swapaxes(array, 2, 3).reshape(*array.shape[:2], -1)


def oracle(d: Drawn) -> _Chosen:
    """Any completion is correct. All completions are spent."""
    solved = (d.classes == 0).any(axis=(2, 3)).astype(np.float64)
    return _Chosen(solved, d.tokens.sum(axis=(2, 3)))


def majority(d: Drawn) -> _Chosen:
    """The most frequent answer of all completions; a tie of t answers gives 1/t to each."""
    return _Chosen(_vote(_flat(d.classes)), d.tokens.sum(axis=(2, 3)))


def _vote(classes: IntArray) -> FloatArray:
    """Chance that the correct answer wins the vote along the last axis."""
    equal = (classes[..., :, None] == classes[..., None, :]) & (classes != BLANK)[..., None]
    votes = equal.sum(axis=-1)
    most = votes.max(axis=-1, keepdims=True)
    # An answer with v votes has v winning completions, so each of them counts 1/v of the answer.
    weight = np.where((votes == most) & (most > 0), 1 / np.maximum(votes, 1), 0.0)
    won = (weight * (classes == 0)).sum(axis=-1)
    return divide(won, np.maximum(weight.sum(axis=-1), 1e-9))


def confidence(d: Drawn) -> _Chosen:
    """The answer of the completion with the highest mean log-probability among those with an answer.

    Ties are decided by the order of the draw. The result is NaN if a log-probability is missing.
    """
    classes, known = _flat(d.classes), _flat(d.confidence)
    best = np.where(classes == BLANK, -np.inf, known).argmax(axis=-1)
    solved = (np.take_along_axis(classes, best[..., None], axis=-1)[..., 0] == 0).astype(np.float64)
    missing = (np.isnan(known) & (classes != BLANK)).any(axis=-1)
    return _Chosen(np.where(missing, np.nan, solved), d.tokens.sum(axis=(2, 3)))


def first_agree(d: Drawn) -> _Chosen:
    """The models answer in turns until two completions agree.

    Without agreement all completions are spent, and the first answer is chosen.
    """
    classes, tokens = _flat(d.classes), _flat(d.tokens)
    size = classes.shape[-1]
    earlier = np.tril(np.ones((size, size), dtype=bool), k=-1)
    repeats = ((classes[..., :, None] == classes[..., None, :]) & earlier).any(axis=-1) & (classes != BLANK)
    agreed = repeats.any(axis=-1)
    stop = np.where(agreed, repeats.argmax(axis=-1), size - 1)
    first = (classes != BLANK).argmax(axis=-1)
    chosen = np.where(agreed, stop, first)
    solved = (np.take_along_axis(classes, chosen[..., None], axis=-1)[..., 0] == 0).astype(np.float64)
    spent = np.take_along_axis(tokens.cumsum(axis=-1), stop[..., None], axis=-1)[..., 0]
    return _Chosen(solved, spent)


def gated(d: Drawn, order: Sequence[int]) -> _Chosen:
    """The models answer one after another, with k completions each, until those of a model agree.

    The first model whose completions all have the same answer decides, and the models after it are
    not asked. If the last model is asked, the majority of all completions decides.
    """
    num_problems, num_draws = d.classes.shape[:2]
    solved, spent = np.zeros((num_problems, num_draws)), np.zeros((num_problems, num_draws))
    running = np.ones((num_problems, num_draws), dtype=bool)
    for position, m in enumerate(order):
        spent += np.where(running, d.tokens[:, :, m].sum(axis=-1), 0.0)
        own = d.classes[:, :, m]
        agree = (own == own[..., :1]).all(axis=-1) & (own[..., 0] != BLANK)
        last = position == len(order) - 1
        stops = running & (agree | last)
        asked = d.classes[:, :, list(order[: position + 1])].reshape(num_problems, num_draws, -1)
        solved = np.where(stops, _vote(asked) if last else np.where(agree, own[..., 0] == 0, 0.0), solved)
        running &= ~stops
    return _Chosen(solved, spent)
