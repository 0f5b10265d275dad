"""Rescue rates and their denominators, and hints with no effect or a known effect."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from analysis.counts.counts import COUNTS, in_batches
from analysis.metrics.rescue import LEAK_SHARE, RATES, cases_of, leak_points, rescue_table, uplift_of
from analysis.metrics.strata import stratified
from tests.support.analysis_data import counts_frame, pick, rescue_counts
from tests.support.source_groups import assert_same_figures, grouped


def small() -> pl.DataFrame:
    cases: list[dict[str, Any]] = [
        {"problem": "p00000", "student": "ada", "teacher": "bob", "hinted": (1, 3), "control": (0, 1)},
        {"problem": "p00001", "student": "ada", "teacher": "bob", "hinted": (0, 2), "control": (1, 2)},
        {"problem": "p00002", "student": "bob", "teacher": "ada", "hinted": (0, 0), "control": (0, 4)},
        # With `scope: all`, models that solved the problem also sample again. That is no rescue.
        {
            "problem": "p00003",
            "student": "bob",
            "teacher": "ada",
            "hinted": (4, 4),
            "control": (0, 0),
            "cold_failed": False,
        },
    ]
    # No model solves p4, so it has no teacher.
    cold = counts_frame(2, [[0, 0, 1, 1, 0], [2, 1, 0, 1, 0]], phase="cold", iteration=1)
    return pl.concat([cold, rescue_counts(cases)])


def test_numerators_and_denominators() -> None:
    table = rescue_table(small())
    got = {rate: pick(table, group="all", rate=rate) for rate in RATES if rate != LEAK_SHARE}
    fractions = {rate: (row["numerator"], row["denominator"]) for rate, row in got.items()}
    assert fractions == {
        "per_attempt": (1, 5),
        "control": (1, 7),
        "uplift": (1, 5),
        "per_case": (1, 2),
        "recovery": (1, 5),
    }
    assert (got["uplift"]["control_numerator"], got["uplift"]["control_denominator"]) == (1, 7)
    assert got["uplift"]["estimate"] == pytest.approx(1 / 5 - 1 / 7)
    shares = [row for rate, row in got.items() if rate != "uplift"]
    assert all(row["estimate"] == row["numerator"] / row["denominator"] for row in shares)
    assert all("fewer than 100 problems" in row["note"] for row in got.values())


def test_pairs_students_and_iterations() -> None:
    table = rescue_table(small())
    pair = pick(table, group="pair", teacher="bob", student="ada", rate="per_attempt")
    assert (pair["numerator"], pair["denominator"]) == (1, 5)
    other = pick(table, group="pair", teacher="ada", student="bob", rate="uplift")
    assert other["estimate"] is None
    assert other["note"] == "no hinted rescue completions"
    assert pick(table, group="student", student="bob", rate="recovery")["denominator"] == 2
    assert table.filter((pl.col("group") == "pair") & (pl.col("rate") == "recovery")).height == 0
    assert pick(table, group="iteration", iteration=1, rate="control")["denominator"] == 7


def test_recovery_leaves_out_iterations_without_a_rescue_phase() -> None:
    later = counts_frame(2, np.zeros((2, 50), dtype=int), phase="cold", iteration=2)
    table = rescue_table(pl.concat([small(), later]))
    assert pick(table, group="all", rate="recovery")["denominator"] == 5


def test_cases_of_few_iterations_at_a_time_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    later = small().with_columns(iteration=pl.col("iteration") + 1)
    unpublished = counts_frame(2, np.zeros((2, 50), dtype=int), phase="cold", iteration=9)
    counts = pl.concat([unpublished, later, small()])
    whole = cases_of(counts)
    assert whole["iteration"].n_unique() > 1
    parts: list[pl.DataFrame] = []
    monkeypatch.setattr("analysis.counts.counts.BATCH_ROWS", 1)
    assert cases_of(counts).equals(whole)

    def kept(part: pl.DataFrame) -> pl.DataFrame:
        parts.append(part)
        return part

    assert in_batches(counts, kept).height == counts.height
    assert [part["iteration"].unique().to_list() for part in parts] == [[1], [2], [9]]


def simulated(effect: float, *, seed: int, num_problems: int = 400) -> pl.DataFrame:
    """Make rescues of students of different skill. A hint adds `effect` to their success rate."""
    rng = np.random.default_rng(seed)
    cases = []
    for p in range(num_problems):
        skill = rng.beta(0.3, 1.2) * 0.5
        for student, teacher in (("ada", "bob"), ("bob", "ada")):
            hinted = int(rng.binomial(4, 0.5))
            cases.append(
                {
                    "problem": f"p{p:05d}",
                    "student": student,
                    "teacher": teacher,
                    "hinted": (int(rng.binomial(hinted, skill + effect)), hinted),
                    "control": (int(rng.binomial(4 - hinted, skill)), 4 - hinted),
                }
            )
    return rescue_counts(cases)


def test_a_hint_without_effect_has_no_uplift_although_its_rate_is_high() -> None:
    table = rescue_table(simulated(0.0, seed=1), groups=["all"])
    uplift = pick(table, rate="uplift")
    assert uplift["low"] <= 0 <= uplift["high"]
    assert pick(table, rate="per_attempt")["low"] > 0.05  # because of regression to the mean
    assert uplift["note"] == ""


def test_a_known_effect_is_found() -> None:
    uplift = pick(rescue_table(simulated(0.3, seed=2), groups=["all"]), rate="uplift")
    assert uplift["low"] <= 0.3 <= uplift["high"]
    assert uplift["low"] > 0.2


def test_uplift_intervals_cover_no_effect() -> None:
    studies = [simulated(0.0, seed=seed, num_problems=100) for seed in range(60)]
    rows = [pick(rescue_table(counts, groups=["all"]), rate="uplift") for counts in studies]
    covered = sum(row["low"] <= 0 <= row["high"] for row in rows)
    assert covered >= 52  # the expectation is 57; fewer than 52 have probability 0.02


def test_uplift_of_independent_rates_has_the_hybrid_score_interval() -> None:
    """56/70 minus 48/80 is the example of Newcombe 1998, method 10: 0.0524 to 0.3339."""
    hinted, control = ([1.0] * good + [0.0] * bad for good, bad in ((56, 14), (48, 32)))
    rows = [(c, 1.0, 0.0, 0.0) for c in hinted] + [(0.0, 0.0, c, 1.0) for c in control]
    own = uplift_of(np.array([rows]), np.arange(150))
    assert (own.estimate, own.low, own.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    # With the first n problems of the hinted side as the first of the control, errors correlate.
    paired = [(h, 1.0, c, 1.0) for h, c in zip(hinted, control[:70], strict=False)]
    together = np.array([paired + [(0.0, 0.0, c, 1.0) for c in control[70:]]])
    narrower = uplift_of(together, np.arange(80))
    assert narrower.estimate == pytest.approx(0.2)
    assert narrower.high - narrower.low < 0.75 * (own.high - own.low)  # type: ignore[operator]
    thrice = uplift_of(np.repeat(together, 3, axis=0), np.arange(80))
    assert (thrice.low, thrice.high) == pytest.approx((narrower.low, narrower.high))


def test_a_hint_without_effect_has_no_uplift_where_the_control_is_seldom_correct() -> None:
    """A bootstrap has an interval wholly above 0 in 6 to 14 % of these studies."""
    rng = np.random.default_rng(5)
    for num, rate in ((200, 0.02), (100, 0.04), (50, 0.1)):
        above = below = 0
        for _ in range(400):
            hinted = rng.binomial(2, 0.75, num)
            control = 2 - hinted
            correct = rng.binomial(hinted, rate), rng.binomial(control, rate)
            sums = np.stack([correct[0], hinted, correct[1], control], axis=1).astype(float)
            own = uplift_of(sums[None], np.arange(num))
            assert own.low is not None
            assert own.high is not None
            above, below = above + (own.low > 0), below + (own.high < 0)
        assert max(above, below) <= 0.025 * 400, (num, rate, above, below)
    never = np.array([[(1.0, 2.0, 0.0, 1.0)] + [(0.0, 2.0, 0.0, 1.0)] * 99])
    own = uplift_of(never, np.arange(100))
    assert own.low is not None
    assert own.high is not None
    assert own.low < 0 < own.high


def test_without_a_control_there_is_no_uplift() -> None:
    case = {"problem": "p", "student": "ada", "teacher": "bob", "hinted": (1, 2), "control": (0, 0)}
    table = rescue_table(rescue_counts([case]))
    uplift = pick(table, group="all", rate="uplift")
    assert (uplift["estimate"], uplift["low"]) == (None, None)
    assert "no control" in uplift["note"]
    assert pick(table, group="all", rate="control")["estimate"] is None


def test_by_difficulty() -> None:
    """Correct cold completions of the team: 2 of 4 on p0, 1 of 4 on p1 and p2, 0 of 4 on p4.

    p3 has no case, because both models solved it.
    """
    table = rescue_table(small(), groups=["difficulty"])
    assert table["bin"].unique(maintain_order=True).to_list() == ["0", "(0, 1/4]", "(1/4, 1/2]"]
    recovery = table.filter(pl.col("rate") == "recovery").iter_rows(named=True)
    got = {row["bin"]: (row["numerator"], row["denominator"]) for row in recovery}
    assert got == {"0": (0, 2), "(0, 1/4]": (0, 2), "(1/4, 1/2]": (1, 1)}
    easy = pick(table, bin="(1/4, 1/2]", rate="uplift")
    assert (easy["numerator"], easy["denominator"]) == (1, 3)
    assert (easy["control_numerator"], easy["control_denominator"]) == (0, 1)
    mostly_correct = counts_frame(4, [[0], [4], [3]], models=("ada", "bob", "cyd"), phase="cold", iteration=1)
    case: dict[str, Any] = {"problem": "p00000", "student": "ada", "teacher": "bob"}
    rescued = rescue_counts([{**case, "hinted": (1, 1), "control": (0, 1)}])
    table = rescue_table(pl.concat([mostly_correct, rescued]), groups=["difficulty"])
    assert table["bin"].unique().to_list() == ["> 1/2"]


def test_by_length_of_the_hint() -> None:
    """8 cases make 4 bins. Only the longer hints rescue. A case without a hint has no bin."""
    tokens = [3, 9, 9, 10, 40, 41, 64, 100]
    cases: list[dict[str, Any]] = [
        {"problem": f"p{p}", "student": "ada", "teacher": "bob", "hinted": (2 * (n >= 40), 2), "control": (1, 2)}
        for p, n in enumerate(tokens)
    ]
    unhinted: dict[str, Any] = {"problem": "p8", "student": "ada", "teacher": None, "hinted": (0, 0), "control": (0, 2)}
    hints = pl.DataFrame(
        {"iteration": 1, "model": "ada", "problem_id": [f"p{p}" for p in range(9)], "num_hint_tokens": [*tokens, 0]},
        schema_overrides={"iteration": pl.Int32},
    )
    table = rescue_table(rescue_counts([*cases, unhinted]), groups=["hint_length"], hints=hints)
    attempts = table.filter(pl.col("rate") == "per_attempt")
    assert attempts.select("bin", "numerator", "denominator").rows() == [
        ("3-9 tokens", 0, 6),
        ("10-10 tokens", 0, 2),
        ("11-41 tokens", 4, 4),
        ("42-100 tokens", 4, 4),
    ]
    assert pick(table, bin="11-41 tokens", rate="uplift")["estimate"] == pytest.approx(1 - 2 / 4)
    assert "recovery" not in table["rate"].to_list()
    equal = rescue_table(rescue_counts(cases), groups=["hint_length"], hints=hints.with_columns(num_hint_tokens=7))
    assert equal["bin"].unique().to_list() == ["7-7 tokens"]
    assert rescue_table(rescue_counts(cases), groups=["hint_length"], hints=hints.clear()).height == 0
    with pytest.raises(ValueError, match="needs the hints"):
        rescue_table(rescue_counts(cases), groups=["hint_length"])


def leaking(values: list[str | None]) -> pl.DataFrame:
    """The hints of the cases of `small` for p0, p1 (ada), p2 and p3 (bob)."""
    rows = {
        "iteration": 1,
        "model": ["ada", "ada", "bob", "bob"],
        "problem_id": [f"p0000{p}" for p in range(4)],
        "num_hint_tokens": 7,
        "leak": values,
    }
    return pl.DataFrame(rows, schema_overrides={"iteration": pl.Int32, "leak": pl.String})


def test_the_share_of_leaking_hints() -> None:
    """The hint for p3 does not count, because that case is no cold failure; p4 has no hint."""
    table = rescue_table(small(), hints=leaking(["result", "anywhere", "result", "none"]))
    row = pick(table, group="all", rate=LEAK_SHARE)
    assert (row["numerator"], row["denominator"], row["estimate"]) == (2, 3, pytest.approx(2 / 3))
    assert row["low"] <= 2 / 3 <= row["high"]
    student = pick(table, group="student", student="ada", rate=LEAK_SHARE)
    assert (student["numerator"], student["denominator"]) == (1, 2)
    part = rescue_table(small(), hints=leaking(["result", None, None, None]))
    assert pick(part, group="all", rate=LEAK_SHARE)["denominator"] == 1


def test_without_known_leaks_there_is_no_share_of_leaking_hints() -> None:
    for hints in (None, leaking([None] * 4), leaking(["none"] * 4).drop("leak")):
        assert LEAK_SHARE not in rescue_table(small(), hints=hints)["rate"].to_list()


def test_points_of_leaking_hints() -> None:
    assert leak_points(leaking(["result", "none", None, None])) == {"ada": 0.5, "team": 0.5}
    assert leak_points(leaking(["result", "none", "result", "result"])) == {"ada": 0.5, "bob": 1.0, "team": 0.75}
    assert leak_points(leaking([None] * 4)) == {}


def test_an_effect_on_hard_problems_only_is_found_by_level() -> None:
    easy, hard = (simulated(effect, seed=seed, num_problems=150) for effect, seed in ((0.0, 4), (0.4, 5)))
    hard = hard.with_columns(problem_id="h" + pl.col("problem_id"))
    counts = pl.concat([easy.with_columns(level=pl.lit("1")), hard.with_columns(level=pl.lit("5"))])
    table = stratified(lambda part: rescue_table(part, groups=["all"]), counts, "level")
    without, with_effect = (pick(table, by="level", value=level, rate="uplift") for level in ("1", "5"))
    assert without["low"] <= 0 <= without["high"]
    assert with_effect["low"] > 0.2
    assert with_effect["low"] <= 0.4 <= with_effect["high"]


def test_copies_in_one_source_group_change_no_interval() -> None:
    cold = counts_frame(2, np.random.default_rng(3).integers(0, 2, (2, 150)), phase="cold", iteration=1)
    counts = pl.concat([simulated(0.2, seed=3, num_problems=150), cold])
    assert_same_figures(rescue_table(counts), rescue_table(grouped(counts, 3)))


def test_nothing_published() -> None:
    assert rescue_table(pl.DataFrame(schema=COUNTS)).height == 0
    assert rescue_table(counts_frame(2, [[0], [1]], phase="cold", iteration=1)).height == 0
