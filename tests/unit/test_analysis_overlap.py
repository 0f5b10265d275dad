"""Error overlap against scikit-learn, set arithmetic, and data whose overlap is known."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, jaccard_score, matthews_corrcoef

from analysis.overlap import MEASURES, overlap_of, overlap_table
from tests.unit.analysis_data import counts_frame, pick


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
    only_a_fails, only_b_fails, none = len(failed_a - failed_b), len(failed_b - failed_a), 250 - len(failed_a | failed_b)
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


def test_undefined_is_null_not_a_number() -> None:
    nobody_fails = figures(np.zeros(150), np.zeros(150))
    assert nobody_fails["joint_failure"]["estimate"] == 0
    for name in ("jaccard", "b_fails_given_a", "lift", "kappa", "phi", "yule_q"):
        assert nobody_fails[name]["estimate"] is None, name
        assert nobody_fails[name]["note"]
    everybody_fails = figures(np.ones(150), np.ones(150))
    assert everybody_fails["phi"]["estimate"] is None
    assert everybody_fails["lift"]["estimate"] == 1


def test_sample_level_is_the_expectation_over_samples() -> None:
    """Against enumeration: draw one completion of each model on each problem, in every way, with exact fractions."""
    n, c = 3, np.array([[0, 1, 3, 2], [1, 1, 0, 3]])
    joint = [Fraction((n - int(a)) * (n - int(b)), n * n) for a, b in c.T]
    fail_a, fail_b = (sum(Fraction(n - int(x), n) for x in row) / 4 for row in c)
    expected_joint = sum(joint) / 4
    table = overlap_table(counts_frame(n, c))
    got = {m: pick(table, level="sample", k=1, measure=m)["estimate"] for m in MEASURES}
    assert got["joint_failure"] == pytest.approx(float(expected_joint))
    assert got["b_fails_given_a"] == pytest.approx(float(expected_joint / fail_a))
    assert got["lift"] == pytest.approx(float(expected_joint / (fail_a * fail_b)))
    assert got["only_a"] == pytest.approx(float(fail_b - expected_joint))


def test_problem_level_means_no_completion_is_correct() -> None:
    table = overlap_table(counts_frame(4, [[0, 1, 4, 0], [0, 0, 4, 3]]))
    assert pick(table, level="problem", measure="joint_failure")["estimate"] == 1 / 4
    assert pick(table, level="problem", measure="only_a")["estimate"] == 1 / 4


def test_every_pair_and_too_large_k() -> None:
    c = np.random.default_rng(0).integers(0, 3, (3, 120))
    table = overlap_table(counts_frame(2, c, models=("a", "b", "c")), ks=[1, 3])
    assert set(zip(table["model_a"], table["model_b"], strict=True)) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert table.height == 3 * 3 * len(MEASURES)
    too_large = table.filter(table["k"] == 3)
    assert too_large["estimate"].null_count() == too_large.height
    assert too_large["note"].str.contains("120 problems have fewer than 3 completions").all()
