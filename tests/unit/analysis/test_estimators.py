"""All point estimates against brute-force enumeration in exact fractions."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import combinations, permutations, product
from math import comb

import numpy as np
import pytest

from analysis.stats import estimators
from analysis.stats.estimators import coverage, fail_table, first_k, pass_at_k, pass_hat_k, team_pass_at_k, wins_at_k


def enumerated_draws(n: int, c: int, k: int) -> list[bool]:
    """For each draw of k of n completions, c of them correct: whether it has a correct one."""
    completions = [True] * c + [False] * (n - c)
    return [any(draw) for draw in combinations(completions, k)]


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_all_draws(n: int) -> None:
    for c, k in product(range(n + 1), range(1, n + 1)):
        draws = enumerated_draws(n, c, k)
        expected = float(Fraction(sum(draws), len(draws)))
        assert pass_at_k(np.array([n]), np.array([c]), k)[0] == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_hat_k_is_the_share_of_draws_without_an_error(n: int) -> None:
    for c, k in product(range(n + 1), range(1, n + 1)):
        draws = [all(draw) for draw in combinations([True] * c + [False] * (n - c), k)]
        expected = float(Fraction(sum(draws), len(draws)))
        assert pass_hat_k(np.array([n]), np.array([c]), k)[0] == pytest.approx(expected, abs=1e-14)


def test_first_k_looks_at_the_first_completions_and_is_unbiased() -> None:
    """The mean over all orders of the completions is Pass@k."""
    for n, c in ((4, 0), (4, 1), (4, 3), (5, 2)):
        orders = list(permutations([True] * c + [False] * (n - c)))
        first = np.array([order.index(True) if any(order) else 10**9 for order in orders])
        for k in range(1, n + 1):
            got = first_k(np.full(len(orders), n), first, k)
            assert got.tolist() == [any(order[:k]) for order in orders]
            assert got.mean() == pytest.approx(pass_at_k(np.array([n]), np.array([c]), k)[0], abs=1e-12)


def test_team_pass_at_k_is_the_share_of_all_joint_draws() -> None:
    rng = np.random.default_rng(0)
    for _ in range(25):
        n = rng.integers(2, 5, size=3)
        c = rng.integers(0, n + 1)
        k = int(rng.integers(1, n.min() + 1))
        of_models = [enumerated_draws(int(a), int(b), k) for a, b in zip(n, c, strict=True)]
        joint = [any(draw) for draw in product(*of_models)]
        got = team_pass_at_k(n[:, None], c[:, None], k)
        assert got.shape == (1,)
        assert got[0] == pytest.approx(float(Fraction(sum(joint), len(joint))), abs=1e-14)


def test_fewer_completions_than_k_is_undefined_and_never_one() -> None:
    assert np.isnan(pass_at_k(np.array([2, 2]), np.array([2, 0]), 3)).all()
    assert np.isnan(pass_hat_k(np.array([2, 2]), np.array([2, 0]), 3)).all()
    assert np.isnan(first_k(np.array([2, 2]), np.array([0, 1]), 3)).all()
    wins = wins_at_k(np.array([[2, 3]]), np.zeros((1, 2, 0), dtype=int), np.zeros((1, 2), dtype=int), 3)
    assert np.isnan(wins).tolist() == [True, False]
    assert np.isnan(team_pass_at_k(np.array([[4], [2]]), np.array([[4], [0]]), 3)).all()


def test_large_n_neither_overflows_nor_loses_precision() -> None:
    n, k = 2000, 1000
    exact = Fraction(1)
    for j in range(k):
        exact *= Fraction(n - 3 - j, n - j)
    assert fail_table(n, k)[3, k] == pytest.approx(float(exact), rel=1e-11)


def test_different_numbers_of_completions_keep_their_order() -> None:
    n, c = np.array([[4, 2, 8], [1, 4, 4]]), np.array([[1, 1, 0], [1, 0, 2]])
    got = pass_at_k(n, c, 1)
    assert got == pytest.approx(c / n)


def test_coverage_counts_a_problem_once() -> None:
    assert coverage(np.array([[0, 2, 1], [0, 0, 3]])).tolist() == [0, 1, 1]


@pytest.mark.parametrize(("n", "c", "k"), [(2, 3, 1), (2, -1, 1), (2, 1, 0)])
def test_impossible_counts_are_errors(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        pass_at_k(np.array([n]), np.array([c]), k)


def enumerated_wins(target: list[int], others: list[list[int]], blank: list[int], k: int) -> Fraction:
    """Share of the votes that the target wins, over all joint draws of k completions per model."""
    completions = [
        ["target"] * t + [None] * b + [w for w, count in enumerate(row) for _ in range(count)]
        for t, row, b in zip(target, others, blank, strict=True)
    ]
    won, draws = Fraction(0), list(product(*(combinations(answers, k) for answers in completions)))
    for draw in draws:
        votes = Counter(answer for part in draw for answer in part if answer is not None)
        if votes and votes["target"] == max(votes.values()):
            won += Fraction(1, sum(count == votes["target"] for count in votes.values()))
    return won / len(draws)


@pytest.mark.parametrize(("num_models", "n_max", "k_max"), [(1, 9, 9), (2, 6, 4), (3, 4, 2)])
def test_votes_are_the_share_of_all_joint_draws(num_models: int, n_max: int, k_max: int) -> None:
    """The problems have different numbers of completions, and their order must be kept."""
    rng = np.random.default_rng(num_models)
    sizes = rng.integers(1, n_max + 1, (num_models, 40))
    counts = np.array([[rng.multinomial(n, rng.dirichlet(np.full(6, 0.5))) for n in row] for row in sizes])
    target, blank, others = counts[..., 0], counts[..., 1], counts[..., 2:]
    for k in range(1, k_max + 1):
        got = wins_at_k(target, others, blank, k)
        for p in range(40):
            if sizes[:, p].min() < k:
                assert np.isnan(got[p])
            else:
                expected = enumerated_wins(target[:, p].tolist(), others[:, p].tolist(), blank[:, p].tolist(), k)
                assert got[p] == pytest.approx(float(expected), abs=1e-14)


@pytest.mark.parametrize(("n", "k"), [(64, 16), (64, 63), (64, 64), (400, 20)])
def test_votes_stay_exact_for_many_completions(n: int, k: int) -> None:
    """The reference counts draws with t votes for the target and at most t for other answers."""
    rng = np.random.default_rng(n + k)
    for _ in range(3):
        target, blank, *others = rng.multinomial(n, rng.dirichlet(np.full(8, 0.7))).tolist()
        won = Fraction(0)
        for t in range(1, min(target, k) + 1):
            ways = {(0, 0): 1}  # (completions drawn, ties)
            for count, votes in [*((other, True) for other in others), (blank, False)]:
                further: Counter[tuple[int, int]] = Counter()
                for (drawn, ties), number in ways.items():
                    for j in range(min(count, k - t - drawn, t if votes else k) + 1):
                        further[drawn + j, ties + (votes and j == t)] += number * comb(count, j)
                ways = further
            won += sum(
                Fraction(comb(target, t) * number, 1 + ties) for (drawn, ties), number in ways.items() if drawn == k - t
            )
        got = wins_at_k(np.array([[target]]), np.array([[others]]), np.array([[blank]]), k)[0]
        assert got == pytest.approx(float(won / comb(n, k)), rel=1e-12, abs=1e-15)


def test_votes_do_not_depend_on_the_size_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many problems are computed in blocks that fit in the cache; here each block has one problem."""
    counts = np.random.default_rng(4).multinomial(6, np.full(5, 0.2), (2, 30))
    arguments = (counts[..., 0], counts[..., 2:], counts[..., 1], 3)
    expected = wins_at_k(*arguments)
    monkeypatch.setattr(estimators, "_CHUNK_CELLS", 1)
    assert wins_at_k(*arguments).tolist() == expected.tolist()
    assert len(set(expected)) > 10


def test_a_vote_of_one_is_pass_at_1() -> None:
    counts = np.random.default_rng(3).multinomial(8, np.full(5, 0.2), (1, 50))
    assert wins_at_k(counts[..., 0], counts[..., 2:], counts[..., 1], 1) == pytest.approx(counts[0, :, 0] / 8)


def test_no_problems_no_answers_and_impossible_votes() -> None:
    none = np.zeros((2, 0), dtype=int)
    assert wins_at_k(none, np.zeros((2, 0, 3), dtype=int), none, 2).shape == (0,)
    blanks = wins_at_k(np.array([[0, 1, 4]]), np.zeros((1, 3, 0), dtype=int), np.array([[4, 3, 0]]), 2)
    assert blanks == pytest.approx([0, 1 / 2, 1])
    with pytest.raises(ValueError, match="at least 1"):
        wins_at_k(none, np.zeros((2, 0, 3), dtype=int), none, 0)
    with pytest.raises(ValueError, match="at least 0"):
        wins_at_k(np.array([[-1]]), np.zeros((1, 1, 0), dtype=int), np.array([[4]]), 1)
