"""Selectors: how a team chooses one answer without the gold answer, and what the choice costs.

The input is the completions of one phase and iteration (`counts/completions.py`). The output is one
tidy frame: for each selector the share of problems that it solves, the tokens that it spends, the
tokens per solved problem, and how far it is below the oracle. The oracle solves a problem if any
completion is correct (team Pass@k); it needs the gold answer, so nobody can deploy it.

Figures are expectations over the draw of k completions per model. For the oracle, the majority and
the confidence they are exact. For the selectors that stop early they are means over draws
(`metrics/draws.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from analysis.metrics.draws import BLANK, Drawn, Stored, drawn, stored
from analysis.metrics.passk import TEAM, too_few
from analysis.stats.estimators import FloatArray, IntArray, fail_at_k, team_pass_at_k, wins_at_k
from analysis.stats.intervals import (
    ESTIMATE_COLUMNS,
    divide,
    from_draws,
    join_notes,
    resampled_means,
    share,
    undefined,
)

SINGLE, ORACLE, MAJORITY, CONFIDENCE = "single", "oracle", "majority", "confidence"
FIRST_AGREE, GATED = "first_agree", "gated"
SELECTORS = {
    SINGLE: "one completion, so that there is no choice",
    ORACLE: "any completion is correct (needs the gold answer)",
    MAJORITY: "most frequent answer of all completions; a tie is decided at random",
    CONFIDENCE: "answer of the completion with the highest mean log-probability per token",
    FIRST_AGREE: "the models answer in turns until two answers agree; without agreement, the first answer",
    GATED: "the next model is asked only if the completions of a model do not all agree; at last, majority of all",
}
ACCURACY, TOKENS, PER_SOLVED, BELOW = "accuracy", "tokens", "tokens_per_solved", "below_oracle"
FIGURES = {
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
        "figure": pl.String(),  # a key of FIGURES
        **ESTIMATE_COLUMNS,
    }
)
NUM_DRAWS_OF_COMPLETIONS = 128
_CELLS = 4_000_000  # cells of the comparison of all pairs of answers that are in memory at once
_NO_CONFIDENCE = "undefined: no log-probabilities are stored"
_NO_TOKENS = "undefined: token counts are not recorded"


class _Chosen(NamedTuple):
    """The result of a selector: (P,), or (P, R) in every draw."""

    solved: FloatArray  # chance that the chosen answer is correct
    tokens: FloatArray


Exact = Callable[[Stored, int], _Chosen]
Stopping = Callable[[Drawn], _Chosen]


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
        num_draws: draws of completions per problem, for the selectors that stop early.

    Returns:
        A frame with the schema `SELECTOR_TABLE`. Accuracies are fractions. Prompt tokens are not
        counted. A figure is null where a problem has fewer than k completions. Figures of tokens are
        null where a completion has no token count.
    """
    s = stored(completions, models)
    rows: list[dict[str, Any]] = []
    if s.num_problems:
        wanted, budgets = sorted(set(ks)), sorted({*ks, *(len(models) * k for k in ks)})
        for m, model in enumerate(models):
            for spent in budgets:
                if spent in wanted or (s.available[m] >= spent).all():
                    rows += _rows(s, [m], model, spent, num_draws)
        for k in wanted if len(models) > 1 else []:
            rows += _rows(s, list(range(len(models))), TEAM, k, num_draws)
    return pl.DataFrame(rows, schema=SELECTOR_TABLE)


def _exact(num: int) -> dict[str, Exact]:
    """The selectors that spend all of `num` completions."""
    if num == 1:
        return {SINGLE: oracle}
    return {ORACLE: oracle, MAJORITY: majority, CONFIDENCE: confidence}


def _stopping(s: Stored, name: str, k: int) -> list[tuple[str, str, Stopping]]:
    """The selectors that stop early, each with its label."""
    size = len(s.models)
    found: list[tuple[str, str, Stopping]] = [(FIRST_AGREE, name, first_agree)] if size * k > 2 else []
    if size > 1 and k > 1:
        for first in range(size):
            # Every model is first once; the others follow in the order of the team.
            order = [first, *(i for i in range(size) if i != first)]
            label = " > ".join(s.models[i] for i in order)
            found.append((GATED, label, partial(gated, order=order)))
    return found


def _rows(s: Stored, members: Sequence[int], name: str, k: int, num_draws: int) -> list[dict[str, Any]]:
    own = replace(
        s,
        models=tuple(s.models[m] for m in members),
        classes=s.classes[members],
        tokens=s.tokens[members],
        confidence=s.confidence[members],
        available=s.available[members],
    )
    exact, stopping = _exact(len(members) * k), _stopping(own, name, k)
    labels = [(selector, name) for selector in exact] + [(selector, label) for selector, label, _ in stopping]
    columns = [{"selector": a, "model": b, "k": k, "candidates": len(members) * k} for a, b in labels]
    short = too_few(own.available, k) if len(members) > 1 else too_few(own.available[0], k)
    note = join_notes(short, own.note)
    if short:
        nothing = undefined(own.num_problems, note).row()
        return [{**of, "figure": figure, **nothing} for of in columns for figure in FIGURES if figure != BELOW]
    results = [selector(own, k) for selector in exact.values()]
    results += _stopped(own, k, num_draws, [selector for _, _, selector in stopping])
    samples = float(own.available.sum(axis=0).mean())
    rows = []
    for of, chosen in zip(columns, results, strict=True):
        why = _NO_CONFIDENCE if of["selector"] == CONFIDENCE and np.isnan(chosen.solved).any() else ""
        rows += _figures(of, chosen, results[0].solved, own.groups, samples, join_notes(why, note))
    return rows


def _stopped(s: Stored, k: int, num_draws: int, selectors: Sequence[Stopping]) -> list[_Chosen]:
    """Apply selectors to draws, and take the mean over the draws of each problem."""
    step = max(1, _CELLS // (num_draws * (len(s.models) * k) ** 2))
    parts: list[list[_Chosen]] = [[] for _ in selectors]
    for start in range(0, s.num_problems, step) if selectors else []:
        d = drawn(s, k, num_draws, problems=slice(start, min(start + step, s.num_problems)))
        for part, selector in zip(parts, selectors, strict=True):
            chosen = selector(d)
            part.append(_Chosen(chosen.solved.mean(axis=1), chosen.tokens.mean(axis=1)))
    return [_Chosen(*(np.concatenate(arrays) for arrays in zip(*part, strict=True))) for part in parts]


def _figures(
    labels: dict[str, Any],
    chosen: _Chosen,
    best: FloatArray,
    groups: IntArray,
    samples: float,
    note: str,
) -> list[dict[str, Any]]:
    """The rows of one selector. `best` is what the oracle solves with the same completions."""
    solved, tokens = chosen
    size = len(solved)
    draws = resampled_means(np.stack([solved, tokens, best - solved], axis=1), groups)
    settings: dict[str, Any] = {"num_problems": size, "groups": groups, "note": note}
    no_tokens = _NO_TOKENS if np.isnan(tokens).any() else ""
    of_tokens = settings | {"note": join_notes(no_tokens, note)}
    spent = from_draws(float(tokens.mean()), draws[:, 1], **of_tokens)
    ratio = float(divide(tokens.sum(), solved.sum()))
    per_solved = from_draws(ratio, divide(draws[:, 1], draws[:, 0]), **of_tokens)
    if not no_tokens and not solved.sum():
        per_solved = undefined(size, join_notes("undefined: no problem is solved", note))
    figures = {
        ACCURACY: share(solved, groups=groups, samples_per_unit=samples, note=note),
        TOKENS: spent,
        PER_SOLVED: per_solved,
    }
    if labels["selector"] not in (SINGLE, ORACLE):
        figures[BELOW] = from_draws(float((best - solved).mean()), draws[:, 2], **settings)
    return [{**labels, "figure": figure, **estimate.row()} for figure, estimate in figures.items()]


# --- selectors -----------------------------------------------------------------------------------


def _spent(s: Stored, k: int) -> FloatArray:
    """Mean tokens (P,) of k completions of each model."""
    spent: FloatArray = (k * s.tokens.sum(axis=2) / s.available).sum(axis=0)
    return spent


def oracle(s: Stored, k: int) -> _Chosen:
    """Any completion is correct (`estimators.team_pass_at_k`). All completions are spent."""
    return _Chosen(team_pass_at_k(s.available, (s.classes == 0).sum(axis=2), k), _spent(s, k))


def majority(s: Stored, k: int) -> _Chosen:
    """The most frequent answer of all completions (`estimators.wins_at_k`)."""
    correct = (s.classes == 0).sum(axis=2)
    wrong = np.zeros((*correct.shape, s.classes.max(initial=0)), dtype=np.int64)
    m, p, i = np.nonzero(s.classes > 0)
    np.add.at(wrong, (m, p, s.classes[m, p, i] - 1), 1)
    blank = s.available - correct - wrong.sum(axis=2)
    return _Chosen(wins_at_k(correct, wrong, blank, k), _spent(s, k))


def confidence(s: Stored, k: int) -> _Chosen:
    """The answer of the completion with the highest mean log-probability among those with an answer.

    A completion i is chosen if it is drawn and none of the b completions of a model that are more
    confident is. For its own model the chance is k/n C(n-1-b, k-1) / C(n-1, k-1), and for another
    model C(n-b, k) / C(n, k). Equal confidences are ordered by model and sample. The result is NaN
    if a log-probability is missing.
    """
    has_answer = s.classes != BLANK
    num_models, num_problems, most = s.classes.shape
    known = np.where(has_answer, s.confidence, -np.inf)
    flat = np.swapaxes(known, 0, 1).reshape(num_problems, -1)
    rank = np.argsort(np.argsort(-flat, axis=1, kind="stable"), axis=1)
    rank = np.swapaxes(rank.reshape(num_problems, num_models, most), 0, 1)
    solved = np.zeros(num_problems)
    for m in range(num_models):
        for i in range(most):
            better = (has_answer & (rank < rank[m, :, i][None, :, None])).sum(axis=2)
            chance = np.ones(num_problems)
            for other in range(num_models):
                n, b = s.available[other], better[other]
                if other == m:
                    chance *= k / n * (fail_at_k(n - 1, np.minimum(b, n - 1), k - 1) if k > 1 else 1.0)
                else:
                    chance *= fail_at_k(n, b, k)
            solved += np.where(s.classes[m, :, i] == 0, chance, 0.0)
    missing = (np.isnan(s.confidence) & has_answer).any(axis=(0, 2))
    return _Chosen(np.where(missing, np.nan, solved), _spent(s, k))


def _flat(array: Any) -> Any:
    """(P, R, M, k) -> (P, R, M k), in turns: the first completion of every model, then the second."""
    return np.swapaxes(array, 2, 3).reshape(*array.shape[:2], -1)


def _vote(classes: IntArray) -> FloatArray:
    """Chance that the correct answer wins the vote along the last axis."""
    equal = (classes[..., :, None] == classes[..., None, :]) & (classes != BLANK)[..., None]
    votes = equal.sum(axis=-1)
    most = votes.max(axis=-1, keepdims=True)
    # An answer with v votes has v winning completions, so each of them counts 1/v of the answer.
    weight = np.where((votes == most) & (most > 0), 1 / np.maximum(votes, 1), 0.0)
    won = (weight * (classes == 0)).sum(axis=-1)
    return divide(won, np.maximum(weight.sum(axis=-1), 1e-9))


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
