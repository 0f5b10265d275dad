"""Pass@k and team Pass@k against brute-force enumeration in exact fractions."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest

from analysis.estimators import coverage, fail_table, pass_at_k, team_pass_at_k


def enumerated_draws(n: int, c: int, k: int) -> list[bool]:
    """For each way to draw k of n completions of which c are correct: does it hold a correct one?"""
    completions = [True] * c + [False] * (n - c)
    return [any(draw) for draw in combinations(completions, k)]


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_all_draws(n: int) -> None:
    for c, k in product(range(n + 1), range(1, n + 1)):
        draws = enumerated_draws(n, c, k)
        assert pass_at_k(np.array([n]), np.array([c]), k)[0] == pytest.approx(float(Fraction(sum(draws), len(draws))), abs=1e-14)


def test_team_pass_at_k_is_the_share_of_all_joint_draws() -> None:
    rng = np.random.default_rng(0)
    for _ in range(25):
        n = rng.integers(2, 5, size=3)
        c = rng.integers(0, n + 1)
        k = int(rng.integers(1, n.min() + 1))
        joint = [any(draw) for draw in product(*(enumerated_draws(int(a), int(b), k) for a, b in zip(n, c, strict=True)))]
        got = team_pass_at_k(n[:, None], c[:, None], k)
        assert got.shape == (1,)
        assert got[0] == pytest.approx(float(Fraction(sum(joint), len(joint))), abs=1e-14)


def test_fewer_completions_than_k_is_undefined_and_never_one() -> None:
    assert np.isnan(pass_at_k(np.array([2, 2]), np.array([2, 0]), 3)).all()
    assert np.isnan(team_pass_at_k(np.array([[4], [2]]), np.array([[4], [0]]), 3)).all()


def test_large_n_neither_overflows_nor_cancels() -> None:
    n, k = 2000, 1000
    exact = Fraction(1)
    for j in range(k):
        exact *= Fraction(n - 3 - j, n - j)
    assert fail_table(n, k)[3, k] == pytest.approx(float(exact), rel=1e-11)


def test_mixed_numbers_of_completions_keep_their_places() -> None:
    n, c = np.array([[4, 2, 8], [1, 4, 4]]), np.array([[1, 1, 0], [1, 0, 2]])
    got = pass_at_k(n, c, 1)
    assert got == pytest.approx(c / n)


def test_coverage_counts_a_problem_once() -> None:
    assert coverage(np.array([[0, 2, 1], [0, 0, 3]])).tolist() == [0, 1, 1]


@pytest.mark.parametrize(("n", "c", "k"), [(2, 3, 1), (2, -1, 1), (2, 1, 0)])
def test_impossible_counts_are_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        pass_at_k(np.array([n]), np.array([c]), k)
