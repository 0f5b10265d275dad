"""Choice and weight of lessons against exhaustive search and exact fractions."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_hpc.protocol.lessons import choose_lessons, scheduled_weight

CANDIDATE = st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 3), st.sampled_from("xyz"))


@given(st.lists(CANDIDATE, max_size=5, unique_by=lambda c: c[1:3]), st.integers(1, 4))
def test_the_best_different_texts_are_chosen(candidates: list[tuple[int, int, int, str]], at_most: int) -> None:
    """The reference compares all ordered choices of different texts, best candidate first."""
    preference, ranks, samples, texts = ([c[n] for c in candidates] for n in range(4))

    def value(row: int) -> tuple[int, int, int]:
        return preference[row], -ranks[row], -samples[row]

    num = min(at_most, len(set(texts)))
    choices = [rows for rows in permutations(range(len(candidates)), num) if len({texts[r] for r in rows}) == num]
    best = max(choices, key=lambda rows: [value(row) for row in rows])
    found = choose_lessons(preference, ranks=ranks, sample_indices=samples, texts=texts, at_most=at_most)
    assert found == list(best)


def test_a_preference_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="candidate 1 is not finite"):
        choose_lessons([0.0, float("nan")], ranks=[0, 0], sample_indices=[0, 1], texts=["a", "b"], at_most=1)


@given(st.integers(0, 8), st.integers(0, 8), st.integers(1, 9), st.integers(1, 20))
def test_the_weight_is_linear_between_its_ends(start: int, end: int, num: int, iteration: int) -> None:
    exact = Fraction(start) + (Fraction(end) - start) * min(Fraction(iteration - 1, num), Fraction(1))
    assert scheduled_weight(start, end, num, iteration) == pytest.approx(float(exact), abs=1e-12)
    assert scheduled_weight(start, None, 0, iteration) == start
