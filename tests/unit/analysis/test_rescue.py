"""Rescue rates with their denominators; a hint without effect and one with a known effect."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from analysis.counts.counts import COUNTS
from analysis.metrics.rescue import RATES, rescue_table
from analysis.metrics.strata import stratified
from tests.support.analysis_data import counts_frame, pick, rescue_counts
from tests.support.source_groups import assert_same_figures, grouped


def small() -> pl.DataFrame:
    cases: list[dict[str, Any]] = [
        {"problem": "p00000", "student": "ada", "teacher": "bob", "hinted": (1, 3), "control": (0, 1)},
        {"problem": "p00001", "student": "ada", "teacher": "bob", "hinted": (0, 2), "control": (1, 2)},
        {"problem": "p00002", "student": "bob", "teacher": "ada", "hinted": (0, 0), "control": (0, 4)},
        # scope: all lets models that had solved the problem sample again; that is no rescue
        {
            "problem": "p00003",
            "student": "bob",
            "teacher": "ada",
            "hinted": (4, 4),
            "control": (0, 0),
            "cold_failed": False,
        },
    ]
    cold = counts_frame(
        2, [[0, 0, 1, 1, 0], [2, 1, 0, 1, 0]], phase="cold", iteration=1
    )  # nobody solves p4: no teacher
    return pl.concat([cold, rescue_counts(cases)])


def test_numerators_and_denominators() -> None:
    table = rescue_table(small())
    got = {rate: pick(table, group="all", rate=rate) for rate in RATES}
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
    assert all(
        row["estimate"] == row["numerator"] / row["denominator"] for rate, row in got.items() if rate != "uplift"
    )
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


def test_an_iteration_without_its_rescue_phase_does_not_dilute_recovery() -> None:
    later = counts_frame(2, np.zeros((2, 50), dtype=int), phase="cold", iteration=2)
    table = rescue_table(pl.concat([small(), later]))
    assert pick(table, group="all", rate="recovery")["denominator"] == 5


def simulated(effect: float, *, seed: int, num_problems: int = 400) -> pl.DataFrame:
    """Students of very different skill; the hint adds `effect` to the chance of success of every case."""
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
    assert pick(table, rate="per_attempt")["low"] > 0.05  # regression to the mean alone
    assert uplift["note"] == ""


def test_a_known_effect_is_found() -> None:
    uplift = pick(rescue_table(simulated(0.3, seed=2), groups=["all"]), rate="uplift")
    assert uplift["low"] <= 0.3 <= uplift["high"]
    assert uplift["low"] > 0.2


def test_uplift_covers_no_effect_as_often_as_it_says() -> None:
    rows = [
        pick(rescue_table(simulated(0.0, seed=s, num_problems=100), groups=["all"]), rate="uplift") for s in range(60)
    ]
    covered = sum(row["low"] <= 0 <= row["high"] for row in rows)
    assert covered >= 52  # 57 expected; fewer than 52 has probability 0.02 at 95 %


def test_no_control_no_uplift() -> None:
    table = rescue_table(
        rescue_counts([{"problem": "p", "student": "ada", "teacher": "bob", "hinted": (1, 2), "control": (0, 0)}])
    )
    uplift = pick(table, group="all", rate="uplift")
    assert (uplift["estimate"], uplift["low"]) == (None, None)
    assert "no control" in uplift["note"]
    assert pick(table, group="all", rate="control")["estimate"] is None


def test_by_difficulty() -> None:
    """p0: 2 of 4 cold completions of the team are correct, p1 and p2: 1 of 4, p3: its student was no case, p4: none."""
    table = rescue_table(small(), groups=["difficulty"])
    assert table["bin"].unique(maintain_order=True).to_list() == ["0", "(0, 1/4]", "(1/4, 1/2]"]
    got = {
        row["bin"]: (row["numerator"], row["denominator"])
        for row in table.filter(pl.col("rate") == "recovery").iter_rows(named=True)
    }
    assert got == {"0": (0, 2), "(0, 1/4]": (0, 2), "(1/4, 1/2]": (1, 1)}
    easy = pick(table, bin="(1/4, 1/2]", rate="uplift")
    assert (easy["numerator"], easy["denominator"], easy["control_numerator"], easy["control_denominator"]) == (
        1,
        3,
        0,
        1,
    )
    mostly_right = [counts_frame(4, [[0], [4], [3]], models=("ada", "bob", "cyd"), phase="cold", iteration=1)]
    case: dict[str, Any] = {
        "problem": "p00000",
        "student": "ada",
        "teacher": "bob",
        "hinted": (1, 1),
        "control": (0, 1),
    }
    assert rescue_table(pl.concat([*mostly_right, rescue_counts([case])]), groups=["difficulty"])[
        "bin"
    ].unique().to_list() == ["> 1/2"]


def test_by_length_of_the_hint() -> None:
    """Quarters of 8 cases by tokens; the longer half of the hints rescues. A case without a hint is in no bin."""
    tokens = [3, 9, 9, 10, 40, 41, 64, 100]
    cases: list[dict[str, Any]] = [
        {"problem": f"p{p}", "student": "ada", "teacher": "bob", "hinted": (2 * (n >= 40), 2), "control": (1, 2)}
        for p, n in enumerate(tokens)
    ]
    nobody: dict[str, Any] = {"problem": "p8", "student": "ada", "teacher": None, "hinted": (0, 0), "control": (0, 2)}
    hints = pl.DataFrame(
        {"iteration": 1, "model": "ada", "problem_id": [f"p{p}" for p in range(9)], "num_hint_tokens": [*tokens, 0]},
        schema_overrides={"iteration": pl.Int32},
    )
    table = rescue_table(rescue_counts([*cases, nobody]), groups=["hint_length"], hints=hints)
    attempts = table.filter(pl.col("rate") == "per_attempt")
    assert attempts.select("bin", "numerator", "denominator").rows() == [
        ("3-9 tokens", 0, 6),
        ("10-10 tokens", 0, 2),
        ("11-41 tokens", 4, 4),
        ("42-100 tokens", 4, 4),
    ]
    assert pick(table, bin="11-41 tokens", rate="uplift")["estimate"] == pytest.approx(1 - 2 / 4)
    assert "recovery" not in table["rate"].to_list()
    alike = rescue_table(rescue_counts(cases), groups=["hint_length"], hints=hints.with_columns(num_hint_tokens=7))
    assert alike["bin"].unique().to_list() == ["7-7 tokens"]
    assert rescue_table(rescue_counts(cases), groups=["hint_length"], hints=hints.clear()).height == 0
    with pytest.raises(ValueError, match="needs the hints"):
        rescue_table(rescue_counts(cases), groups=["hint_length"])


def test_an_effect_that_only_hard_problems_have_is_found_there() -> None:
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
