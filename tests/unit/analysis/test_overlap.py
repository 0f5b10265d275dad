"""Error overlap against scikit-learn, set arithmetic, and data with a known overlap."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import combinations, permutations, product
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import cohen_kappa_score, jaccard_score, matthews_corrcoef

from analysis.counts.counts import ANSWERS
from analysis.metrics.overlap import MEASURES, matrix, overlap_of, overlap_table
from tests.support.analysis_data import counts_frame, pick
from tests.support.source_groups import assert_same_figures, grouped

OF_FAILURES = tuple(m for m in MEASURES if m not in ("phi_corrected", "same_wrong_answer"))


def figures(a: np.ndarray, b: np.ndarray) -> dict[str, dict[str, Any]]:
    return {row["measure"]: row for row in overlap_of(np.asarray(a, dtype=float), np.asarray(b, dtype=float))}


@pytest.mark.parametrize("seed", range(4))
def test_against_scikit_learn_and_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.random(250) < 0.4
    b = np.where(rng.random(250) < 0.5, a, rng.random(250) < 0.6)
    got = {name: row["estimate"] for name, row in figures(a, b).items()}
    failed_a, failed_b = set(np.flatnonzero(a)), set(np.flatnonzero(b))
    both = len(failed_a & failed_b)
    only_a_fails, only_b_fails = len(failed_a - failed_b), len(failed_b - failed_a)
    none = 250 - len(failed_a | failed_b)
    assert got == pytest.approx(
        {
            "joint_failure": both / 250,
            "jaccard": jaccard_score(a, b),
            "b_fails_given_a": both / len(failed_a),
            "a_fails_given_b": both / len(failed_b),
            "only_a": only_b_fails / 250,
            "only_b": only_a_fails / 250,
            "lift": float(Fraction(both * 250, len(failed_a) * len(failed_b))),
            "kappa": cohen_kappa_score(a, b),
            "phi": matthews_corrcoef(a, b),
            "yule_q": (both * none - only_a_fails * only_b_fails) / (both * none + only_a_fails * only_b_fails),
        }
    )


def test_independent_errors() -> None:
    rng = np.random.default_rng(7)
    got = figures(rng.random(2000) < 0.5, rng.random(2000) < 0.3)
    for name, truth in (("lift", 1.0), ("kappa", 0.0), ("phi", 0.0), ("yule_q", 0.0), ("joint_failure", 0.15)):
        assert got[name]["low"] <= truth <= got[name]["high"], name
    assert got["lift"]["estimate"] == pytest.approx(1, abs=0.1)


def test_identical_errors() -> None:
    a = np.arange(200) < 50
    got = figures(a, a)
    for name in ("jaccard", "b_fails_given_a", "kappa", "phi", "yule_q"):
        assert got[name]["estimate"] == pytest.approx(1), name
    assert got["lift"]["estimate"] == pytest.approx(4)
    assert got["only_a"]["estimate"] == got["only_b"]["estimate"] == 0


def test_disjoint_errors() -> None:
    a, b = np.arange(200) < 50, np.arange(200) >= 150
    got = figures(a, b)
    for name in ("joint_failure", "jaccard", "lift", "b_fails_given_a"):
        assert got[name]["estimate"] == 0, name
    assert got["yule_q"]["estimate"] == -1
    assert got["phi"]["estimate"] == pytest.approx(-1 / 3)
    assert got["joint_failure"]["high"] > 0


def test_undefined_figures_are_null() -> None:
    no_failures = figures(np.zeros(150), np.zeros(150))
    assert no_failures["joint_failure"]["estimate"] == 0
    for name in ("jaccard", "b_fails_given_a", "lift", "kappa", "phi", "yule_q"):
        assert no_failures[name]["estimate"] is None, name
        assert no_failures[name]["note"]
    all_fail = figures(np.ones(150), np.ones(150))
    assert all_fail["phi"]["estimate"] is None
    assert all_fail["lift"]["estimate"] == 1


def test_sample_level_is_the_expectation_over_samples() -> None:
    """The reference enumerates all draws of one completion per model, with exact fractions."""
    n, c = 3, np.array([[0, 1, 3, 2], [1, 1, 0, 3]])
    joint = [Fraction((n - int(a)) * (n - int(b)), n * n) for a, b in c.T]
    fail_a, fail_b = (sum(Fraction(n - int(x), n) for x in row) / 4 for row in c)
    expected_joint = sum(joint) / 4
    table = overlap_table(counts_frame(n, c))
    got = {
        m: pick(table, level="sample", k=1, measure=m, model_a="ada", model_b="bob")["estimate"] for m in OF_FAILURES
    }
    assert got["joint_failure"] == pytest.approx(float(expected_joint))
    assert got["b_fails_given_a"] == pytest.approx(float(expected_joint / fail_a))
    assert got["lift"] == pytest.approx(float(expected_joint / (fail_a * fail_b)))
    assert got["only_a"] == pytest.approx(float(fail_b - expected_joint))


def test_problem_level_means_no_completion_is_correct() -> None:
    table = overlap_table(counts_frame(4, [[0, 1, 4, 0], [0, 0, 4, 3]]))
    assert pick(table, level="problem", measure="joint_failure")["estimate"] == 1 / 4
    assert pick(table, level="problem", measure="only_a")["estimate"] == 1 / 4


def test_self_overlap_is_that_of_two_disjoint_draws() -> None:
    """The reference enumerates all draws of k completions and k other ones of the same model."""
    n, c, k = 5, np.array([[0, 1, 2, 5], [1, 1, 3, 4]]), 2
    table = overlap_table(counts_frame(n, c), ks=[k])
    for model, row in zip(("ada", "bob"), c, strict=True):
        both, one = Fraction(0), Fraction(0)
        for correct in row:
            completions = [True] * int(correct) + [False] * int(n - correct)
            draws = [(order[:k], order[k : 2 * k]) for order in permutations(completions, 2 * k)]
            both += Fraction(sum(not any(x) and not any(y) for x, y in draws), len(draws)) / 4
            one += Fraction(sum(not any(x) for x, _ in draws), len(draws)) / 4
        got = {
            m: pick(table, model_a=model, model_b=model, level="sample", k=k, measure=m)["estimate"]
            for m in OF_FAILURES
        }
        assert got["joint_failure"] == pytest.approx(float(both), abs=1e-12)
        assert got["b_fails_given_a"] == got["a_fails_given_b"] == pytest.approx(float(both / one), abs=1e-12)
        assert got["only_a"] == pytest.approx(float(one - both), abs=1e-12)
        assert got["phi"] == pytest.approx(float((both - one * one) / (one * (1 - one))), abs=1e-12)
    assert table.filter((pl.col("model_a") == pl.col("model_b")) & (pl.col("level") == "problem")).height == 0


def sampled(skill: np.ndarray, *, n: int, seed: int) -> pl.DataFrame:
    return counts_frame(n, np.random.default_rng(seed).binomial(n, skill))


def test_correlation_with_a_copy_is_the_self_correlation_and_1_without_the_noise() -> None:
    skill = np.random.default_rng(0).beta(0.8, 0.8, 3000)
    table = overlap_table(sampled(np.stack([skill, skill]), n=8, seed=1), ks=[1, 2])
    for k in (1, 2):
        own, copy = (pick(table, level="sample", k=k, measure="phi", model_a="ada", model_b=b) for b in ("ada", "bob"))
        # For one draw it is Var(skill) / (mean (1 - mean)), which is 1 / (a + b + 1) for a beta
        # distribution.
        assert k == 2 or own["low"] <= 1 / 2.6 <= own["high"]
        assert copy["low"] <= own["estimate"] <= copy["high"]
        corrected = pick(table, level="sample", k=k, measure="phi_corrected")
        assert corrected["low"] <= 1 <= corrected["high"]
        assert corrected["estimate"] == pytest.approx(1, abs=0.05)


def test_corrected_correlation_is_that_of_the_skills() -> None:
    """The two skills are equal on half of the problems and independent on the other half."""
    rng = np.random.default_rng(5)
    first, second = rng.beta(1, 1, (2, 4000))
    skill = np.stack([first, np.where(np.arange(4000) % 2, first, second)])
    row = pick(overlap_table(sampled(skill, n=4, seed=6)), measure="phi_corrected")
    assert row["low"] <= 0.5 <= row["high"]
    independent = pick(overlap_table(sampled(np.stack([first, second]), n=4, seed=7)), measure="phi_corrected")
    assert independent["low"] <= 0 <= independent["high"]


def test_corrected_correlation_can_be_undefined() -> None:
    c = np.random.default_rng(1).integers(0, 3, (2, 150))
    short = pick(overlap_table(counts_frame(3, c), ks=[2]), measure="phi_corrected")
    assert (short["estimate"], short["note"]) == (None, "undefined: 150 problems have fewer than 4 completions")
    alike = pick(overlap_table(counts_frame(2, np.ones((2, 150), dtype=int))), measure="phi_corrected")
    assert (alike["estimate"], alike["note"]) == (None, "undefined: a self-correlation is not positive")


def test_same_wrong_answer_is_the_share_of_all_pairs_of_wrong_completions() -> None:
    rng = np.random.default_rng(2)
    choices = np.array(["right", "3", "4", "5", None], dtype=object)
    answers = {m: [rng.choice(choices, n).tolist() for _ in range(5)] for m, n in (("ada", 4), ("bob", 3))}
    rows = [
        (0, "evaluate", m, f"p{p:05d}", a, a == "right", n)
        for m, problems in answers.items()
        for p, given in enumerate(problems)
        for a, n in Counter(given).items()
    ]
    counted = pl.DataFrame(rows, schema=ANSWERS, orient="row")
    c = [[row.count("right") for row in answers[m]] for m in ("ada", "bob")]
    table = overlap_table(counts_frame([[4], [3]], c), ks=[2], answers=counted)
    for a, b in (("ada", "bob"), ("ada", "ada"), ("bob", "bob")):
        same, both = Fraction(0), Fraction(0)
        for x, y in zip(answers[a], answers[b], strict=True):
            pairs = list(combinations(x, 2)) if a == b else list(product(x, y))
            both += Fraction(sum("right" not in pair for pair in pairs), len(pairs))
            same += Fraction(sum(u == v and u not in ("right", None) for u, v in pairs), len(pairs))
        row = pick(table, model_a=a, model_b=b, measure="same_wrong_answer")
        assert row["estimate"] == pytest.approx(float(same / both), abs=1e-12)
        assert (row["level"], row["k"]) == ("sample", 1)


def test_matrix_rows_are_the_first_model_of_a_pair() -> None:
    c = np.random.default_rng(3).integers(0, 5, (3, 120))
    names = ("zoe", "ada", "mia")
    table = overlap_table(counts_frame(4, c, models=names), models=names)
    failed = c == 0
    given = matrix(table, "b_fails_given_a", level="problem", k=None, iteration=0)
    assert given.columns == ["model", *names]
    assert given["model"].to_list() == list(names)
    for i, j in permutations(range(3), 2):
        assert given[names[j]][i] == pytest.approx((failed[i] & failed[j]).sum() / failed[i].sum())
        only_a = matrix(table, "only_a", level="problem", k=None, iteration=0)
        assert only_a[names[j]][i] == pytest.approx((failed[j] & ~failed[i]).mean())
        reverse = matrix(table, "a_fails_given_b", level="problem", k=None, iteration=0)
        assert reverse[names[i]][j] == given[names[j]][i]
    assert [given[name][i] for i, name in enumerate(names)] == [None] * 3
    phi = matrix(table, "phi", level="sample", k=1, iteration=0)
    expected = pick(table, level="sample", measure="phi", model_a="zoe", model_b="ada")["estimate"]
    assert phi["ada"][0] == phi["zoe"][1] == expected
    assert phi["mia"][2] == pick(table, level="sample", measure="phi", model_a="mia", model_b="mia")["estimate"]


def test_copies_in_one_source_group_change_no_interval() -> None:
    rng = np.random.default_rng(8)
    counts = counts_frame(4, rng.integers(0, 4, (2, 120)))
    keys = ("iteration", "phase", "model", "problem_id")
    wrong_answers = pl.Series(rng.integers(0, 3, 240)).cast(pl.String)
    wrong = counts.select(*keys, answer=wrong_answers, correct=False, n="n")
    right = wrong.with_columns(answer=pl.lit("right"), correct=pl.lit(True), n=counts["c"])
    answers = pl.concat([wrong.with_columns(n=counts["n"] - counts["c"]), right], how="vertical_relaxed")
    once = overlap_table(counts, answers=answers, ks=[1, 2])
    assert_same_figures(once, overlap_table(grouped(counts, 3), answers=grouped(answers, 3), ks=[1, 2]))


def test_every_pair_and_too_large_k() -> None:
    c = np.random.default_rng(0).integers(0, 3, (3, 120))
    table = overlap_table(counts_frame(2, c, models=("a", "b", "c")), ks=[1, 3])
    between = table.filter(pl.col("model_a") != pl.col("model_b"))
    assert set(zip(between["model_a"], between["model_b"], strict=True)) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert between.height == 3 * (3 * len(OF_FAILURES) + 2)
    assert set(between["measure"]) == set(MEASURES) - {"same_wrong_answer"}  # it needs the answers
    too_large = between.filter(pl.col("k") == 3)
    assert too_large["estimate"].null_count() == too_large.height
    assert too_large["note"].str.contains("120 problems have fewer than [36] completions").all()
