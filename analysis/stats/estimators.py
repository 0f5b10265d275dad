"""Point estimates per problem: Pass@k, team Pass@k, pass^k, first-k, coverage and majority votes.

The input is integer arrays of any shape: n (completions) and c (correct completions). Votes take
the number of completions per answer. The output is float arrays with one value in [0, 1] per
problem; an undefined value is NaN. Means over problems and intervals are in `stats/intervals.py`.

All estimates except first-k and coverage are expectations over the draw of k completions without
replacement, so they are unbiased (Chen et al. 2021, arXiv 2107.03374; METHOD.md section 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_CHUNK_CELLS = 500_000
"""Maximum number of cells of the table of partial votes: 4 MB, which fits in the cache."""


def fail_table(n: int, k_max: int) -> FloatArray:
    """Chance that k of n completions, drawn without replacement, are all wrong.

    F[c, k] = C(n-c, k) / C(n, k). The recursion F(0) = 1, F(k) = F(k-1) (n-c-k+1)/(n-k+1) neither
    overflows nor loses precision.

    Args:
        n: number of completions.
        k_max: largest k.

    Returns:
        F of shape (n+1, k_max+1), with indices c and k; NaN where k > n.

    >>> fail_table(4, 2)[1].round(6).tolist()
    [1.0, 0.75, 0.5]
    """
    c = np.arange(n + 1, dtype=np.float64)[:, None]
    k = np.arange(1, k_max + 1, dtype=np.float64)[None, :]
    left = np.maximum(n - k + 1, 1)  # the entries with k > n become NaN below
    factors = np.where(k <= n, np.maximum(n - c - k + 1, 0) / left, np.nan)
    return np.concatenate([np.ones((n + 1, 1)), np.cumprod(factors, axis=1)], axis=1)


def fail_at_k(n: IntArray, c: IntArray, k: int) -> FloatArray:
    """Chance that k of the n completions are all wrong.

    Args:
        n: completions.
        c: correct completions, same shape as n.
        k: completions that are drawn.

    Returns:
        Array of the shape of n; NaN where n < k.

    Raises:
        ValueError: k is less than 1, or c is not between 0 and n.
    """
    if k < 1:
        raise ValueError(f"k is {k}, must be at least 1")
    if ((c < 0) | (c > n)).any():
        raise ValueError("the number of correct completions must be between 0 and the number of completions")
    out = np.full(np.shape(n), np.nan)
    for size in np.unique(n):
        here = n == size
        out[here] = fail_table(int(size), k)[c[here], k]
    return out


def pass_at_k(n: IntArray, c: IntArray, k: int) -> FloatArray:
    """Chance that at least one of k of the n completions is correct: 1 - C(n-c, k)/C(n, k).

    The value is NaN where n < k, also where c = n (Chen et al. 2021, equation 1).

    >>> pass_at_k(np.array([4, 4, 1]), np.array([1, 0, 1]), 2).tolist()
    [0.5, 0.0, nan]
    """
    return 1 - fail_at_k(n, c, k)


def team_pass_at_k(n: IntArray, c: IntArray, k: int) -> FloatArray:
    """Chance that at least one of k completions of each of M models is correct.

    The formula is 1 - prod_m C(n_m-c_m, k)/C(n_m, k). It is unbiased, because the models sample
    independently given the problem. A team spends M k completions per problem.

    Args:
        n: (M, P) completions.
        c: (M, P) correct completions.
        k: completions per model.

    Returns:
        (P,); NaN where some n is less than k.

    >>> team_pass_at_k(np.array([[4], [4]]), np.array([[1], [2]]), 1).tolist()
    [0.625]
    """
    all_fail: FloatArray = fail_at_k(n, c, k).prod(axis=0)
    return 1 - all_fail


def pass_hat_k(n: IntArray, c: IntArray, k: int) -> FloatArray:
    """Chance that all of k of the n completions are correct: pass^k = C(c, k)/C(n, k).

    The value is NaN where n < k (Yao et al. 2024, arXiv 2406.12045).

    >>> pass_hat_k(np.array([4, 4, 1]), np.array([4, 2, 1]), 2).round(6).tolist()
    [1.0, 0.166667, nan]
    """
    return fail_at_k(n, n - c, k)


def first_k(n: IntArray, first: IntArray, k: int) -> FloatArray:
    """1 where at least one of the first k completions is correct, else 0.

    Its mean has the same expectation as that of Pass@k, but it is noisier.

    Args:
        n: completions.
        first: smallest sample index of a correct completion (`counts.Panel.first`).
        k: completions that count.

    Returns:
        Array of the shape of n; NaN where n < k.

    >>> first_k(np.array([4, 4, 1]), np.array([1, 2, 0]), 2).tolist()
    [1.0, 0.0, nan]
    """
    return np.where(n >= k, (first < k).astype(np.float64), np.nan)


def coverage(c: IntArray) -> FloatArray:
    """1 where at least one completion of at least one model is correct, else 0.

    Args:
        c: (M, P) correct completions.

    Returns:
        (P,).

    >>> coverage(np.array([[0, 1, 0], [0, 0, 3]])).tolist()
    [0.0, 1.0, 1.0]
    """
    solved: FloatArray = np.any(c > 0, axis=0).astype(np.float64)
    return solved


def wins_at_k(target: IntArray, others: IntArray, blank: IntArray, k: int) -> FloatArray:
    """Chance that an answer wins the vote of k completions of each of M models.

    The completions are drawn without replacement, and the votes of all models are pooled. The most
    frequent answer wins. In a tie of t answers, each of them counts 1/t. Without any vote there is
    no winner. If the target is the correct answer (all its spellings together), the result is the
    expected maj@k of one model (M = 1) or of a team.

    Args:
        target: (M, P) completions with this answer.
        others: (M, P, W) completions with each of the W other answers.
        blank: (M, P) completions without an answer, which do not vote.
        k: completions per model.

    Returns:
        (P,); NaN where some model has fewer than k completions.

    Raises:
        ValueError: k is less than 1, or a count is negative.

    >>> wins_at_k(np.array([[2, 1]]), np.array([[[1, 1], [1, 0]]]), np.array([[0, 1]]), 3).round(6).tolist()
    [0.666667, 0.5]
    """
    if k < 1:
        raise ValueError(f"k is {k}, must be at least 1")
    if min(x.min(initial=0) for x in (target, others, blank)) < 0:
        raise ValueError("numbers of completions must be at least 0")
    num_models, num_problems, num_others = others.shape
    # The answers are sorted by frequency. Problems that differ only in the names of their answers
    # are then equal, and each distinct problem is computed once.
    order = np.lexsort((*others, -others.sum(axis=0)), axis=-1)
    ranked = np.take_along_axis(others, np.broadcast_to(order, others.shape), axis=2)
    profiles = np.concatenate([target[..., None], blank[..., None], ranked], axis=2).swapaxes(0, 1)
    distinct, where = np.unique(
        profiles.reshape(num_problems, num_models * (2 + num_others)), axis=0, return_inverse=True
    )
    distinct = distinct.reshape(len(distinct), num_models, 2 + num_others)
    n = distinct.sum(axis=2)
    wins = np.full(len(distinct), np.nan)
    for sizes in np.unique(n[(n >= k).all(axis=1)], axis=0):
        same = np.flatnonzero((n == sizes).all(axis=1))
        if (sizes == k).all():
            wins[same] = _wins_of_all(distinct[same])
            continue
        tables = [_binomial_table(int(size), k) for size in sizes]
        chunk = max(1, _CHUNK_CELLS // ((k + 1) ** num_models * (1 + min(num_others, num_models * k))))
        for part in np.split(same, range(chunk, len(same), chunk)):
            wins[part] = _wins(distinct[part], tables, k)
    return wins[where.reshape(-1)]


def _binomial_table(n: int, k: int) -> FloatArray:
    """Chance B[a, j] of j successes in `a` independent trials of chance k/n; shape (n+1, k+1).

    Drawing k of n without replacement has the same law as n independent trials of equal chance,
    given that k of them succeed. The chance k/n keeps all terms near 1, whereas C(n, k) overflows.
    All terms are positive, so sums of products lose no precision.
    """
    table = np.zeros((n + 1, k + 1))
    table[0, 0] = 1
    for a in range(1, n + 1):
        table[a] = table[a - 1] * (1 - k / n)
        table[a, 1:] += table[a - 1, :-1] * (k / n)
    return table


def _wins_of_all(profiles: IntArray) -> FloatArray:
    """Compute `wins_at_k` for B problems where all completions are drawn.

    profiles: (B, M, 2 + W), with target, blank and others along the last axis.
    """
    votes, others = profiles[:, :, 0].sum(axis=1), profiles[:, :, 2:].sum(axis=1)
    ties = (others == votes[:, None]).sum(axis=1)
    return np.where((votes > 0) & (votes >= others.max(axis=1, initial=0)), 1 / (1 + ties), 0.0)


def _wins(profiles: IntArray, tables: Sequence[FloatArray], k: int) -> FloatArray:
    """Compute `wins_at_k` for B problems with the same numbers of completions.

    profiles: (B, M, 2 + W), with target, blank and others along the last axis.
    """
    target, blank, others = profiles[:, :, 0], profiles[:, :, 1], profiles[:, :, 2:]
    votes, most = others.sum(axis=1), np.minimum(target, k).sum(axis=1)
    wins = np.zeros(len(profiles))
    for t in range(1, int(most.max(initial=0)) + 1):
        rows = np.flatnonzero(most >= t)
        # Only strong answers can get t votes, as many as the target. All other completions can be
        # drawn in any number.
        strong = votes[rows] >= t
        free = blank[rows] + (others[rows] * ~strong[:, None, :]).sum(axis=2)
        ties = min(int(strong.sum(axis=1).max(initial=0)), (len(tables) * k - t) // t)
        state = np.zeros((len(rows), 1 + ties, *[k + 1] * len(tables)))
        state[:, 0] = _outer([table[free[:, m]] for m, table in enumerate(tables)])
        for w in range(int(strong.sum(axis=1).max(initial=0))):
            some = np.flatnonzero(strong[:, w])
            state[some] = _with_answer(state[some], others[rows[some], :, w], tables, t)
        share = 1 / (1 + np.arange(1 + ties))
        for drawn in _draws(target[rows].max(axis=0), k, t):
            if sum(drawn) == t:
                rest: tuple[Any, ...] = (slice(None), slice(None), *(k - j for j in drawn))
                wins[rows] += _weight(tables, target[rows], drawn) * (state[rest] @ share)
    total: FloatArray = np.prod([table[-1, k] for table in tables])
    return wins / total


def _with_answer(state: FloatArray, counts: IntArray, tables: Sequence[FloatArray], t: int) -> FloatArray:
    """Add one more answer to the draw. It gets at most t votes; t votes are a tie with the target.

    state: (B, S, k+1, ..., k+1), the chance of each number of ties and of each number of
    completions drawn from each model. counts: (B, M), the completions with this answer.
    """
    k = state.shape[2] - 1
    out = np.zeros_like(state)
    for drawn in _draws(counts.max(axis=0), k, t):
        tie = int(sum(drawn) == t)
        to = (slice(None), slice(tie, None), *(slice(j, None) for j in drawn))
        of = (slice(None), slice(None, state.shape[1] - tie), *(slice(None, k + 1 - j) for j in drawn))
        weight = _weight(tables, counts, drawn)
        if weight.any():
            out[to] += weight.reshape(-1, *[1] * (state.ndim - 1)) * state[of]
    return out


def _draws(most: IntArray, k: int, t: int) -> list[tuple[int, ...]]:
    """List the numbers of completions with one answer that can be drawn from each model.

    A number is at most k and at most the model's entry of `most`. Their sum is at most t.
    """
    return [drawn for drawn in product(*(range(min(int(m), k) + 1) for m in most)) if sum(drawn) <= t]


def _weight(tables: Sequence[FloatArray], counts: IntArray, drawn: tuple[int, ...]) -> FloatArray:
    """Chance (B,) to draw these numbers of completions from the counts (B, M)."""
    chances = [table[counts[:, m], j] for m, (table, j) in enumerate(zip(tables, drawn, strict=True))]
    weight: FloatArray = np.prod(chances, axis=0)
    return weight


def _outer(rows: Sequence[FloatArray]) -> FloatArray:
    """Outer product of M arrays of shape (B, k+1); the result has shape (B, k+1, ..., k+1)."""
    out = rows[0]
    for row in rows[1:]:
        out = out[..., None] * row.reshape(len(row), *[1] * (out.ndim - 1), -1)
    return out
