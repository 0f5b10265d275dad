"""The choice of the teacher, against a sort that follows the rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_hpc.protocol.teacher import choose_teacher

ORDER = ["zeta", "alpha", "mid"]


def choose(rows, student, order=ORDER):
    models, samples, correct, scores = (list(c) for c in zip(*rows, strict=True)) if rows else ([], [], [], [])
    return choose_teacher(order, models=models, sample_indices=samples, correct=correct, scores=scores, student=student)


@st.composite
def cold_rows(draw):
    keys = draw(st.lists(st.tuples(st.sampled_from(ORDER), st.integers(0, 3)), unique=True, max_size=9))
    return [(m, k, draw(st.booleans()), draw(st.sampled_from([0.0, 1.0, 1.3]))) for m, k in keys]


@given(cold_rows(), st.sampled_from(ORDER))
def test_the_best_correct_peer_teaches_and_the_first_wins_ties(rows, student):
    ranked = sorted(
        (i for i, (m, _, c, _) in enumerate(rows) if c and m != student),
        key=lambda i: (-rows[i][3], ORDER.index(rows[i][0]), rows[i][1]),
    )
    assert choose(rows, student) == (ranked[0] if ranked else None)


@given(cold_rows(), st.sampled_from(ORDER), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows, student, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    a, b = choose(rows, student), choose(shuffled, student)
    assert (a is None) == (b is None)
    assert a is None or b is None or rows[a] == shuffled[b]


def test_the_first_model_is_not_always_the_teacher():
    """Trap 6."""
    rows = [("zeta", 0, True, 1.0), ("alpha", 0, True, 1.3), ("mid", 0, False, 9.0)]
    assert choose(rows, "mid") == 1
    assert choose(rows, "alpha") == 0


def test_no_model_teaches_itself():
    rows = [("zeta", 0, True, 2.0), ("alpha", 0, False, 0.0)]
    assert choose(rows, "zeta") is None
    assert choose(rows, "alpha") == 0
    assert choose([], "alpha") is None
    assert choose([("zeta", 0, True, 1.0)], "zeta", order=["zeta"]) is None


def test_invalid_input_is_an_error():
    with pytest.raises(ValueError, match="other"):
        choose([("other", 0, True, 1.0)], "zeta")
    with pytest.raises(ValueError, match="not finite"):
        choose([("zeta", 0, True, float("nan"))], "alpha")
    with pytest.raises(ValueError, match="differ in length"):
        choose_teacher(ORDER, models=["zeta"], sample_indices=[0], correct=[True, True], scores=[1.0], student="mid")
