"""Effects of hints, who teaches whom, and the change of the error overlap, against plain Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from analysis.counts.counts import ANSWERS
from analysis.counts.load import RunData
from analysis.metrics import hints as module
from analysis.metrics.hints import hint_table, load_reliance, teaching_matrix, teaching_table
from analysis.metrics.overlap import overlap_table
from analysis.metrics.overlap_change import overlap_change_table
from analysis.metrics.rescue import rescue_table
from analysis.report import further_tables
from analysis.report.further_tables import hints_report, teaching_report
from tests.support.analysis_data import counts_frame, pick, rescue_counts
from tests.support.source_groups import grouped

MODELS = ("ada", "bob", "cyd")
LEAKS = ("none", "anywhere", "result")


def random_cases(seed: int, num: int) -> list[dict[str, Any]]:
    """Cases of all pairs. Only hints that show the answer help."""
    rng = np.random.default_rng(seed)
    cases = []
    for i in range(num):
        student, teacher = rng.choice(MODELS, 2, replace=False)
        leak = str(rng.choice(LEAKS))
        helped = int(rng.binomial(2, 0.8 if leak == "result" else 0.3))
        control = (int(rng.binomial(1, 0.2)), 1)
        case = {"problem": f"p{i % 150}", "student": student, "teacher": teacher, "leak": leak}
        cases.append({**case, "hinted": (helped, 2), "control": control, "iteration": 1 + i // 150})
    unique = {(c["iteration"], c["student"], c["problem"]): c for c in cases}
    return list(unique.values())


def hints_of(cases: list[dict[str, Any]]) -> pl.DataFrame:
    rows = [(c["iteration"], c["student"], c["problem"], 9, c["leak"]) for c in cases]
    schema = {"iteration": pl.Int32, "model": pl.String, "problem_id": pl.String, "num_hint_tokens": pl.Int32}
    return pl.DataFrame(rows, schema={**schema, "leak": pl.String}, orient="row")


def uplift(cases: list[dict[str, Any]]) -> float:
    hinted, control = (np.array([c[kind] for c in cases]).sum(axis=0) for kind in ("hinted", "control"))
    return float(hinted[0] / hinted[1] - control[0] / control[1])


def test_uplift_and_share_by_leak() -> None:
    cases = random_cases(1, 450)
    table = hint_table(rescue_counts(cases), hints=hints_of(cases))
    for student in ("team", *MODELS):
        own = [c for c in cases if student in ("team", c["student"])]
        for leak in LEAKS:
            part = [c for c in own if c["leak"] == leak]
            at = {"student": student, "leak": leak}
            assert pick(table, measure="uplift", **at)["estimate"] == pytest.approx(uplift(part))
            assert pick(table, measure="leak_share", **at)["estimate"] == pytest.approx(len(part) / len(own))
            assert pick(table, measure="uplift", **at)["cases"] == len(part)
        contrast = pick(table, student=student, leak="result - none", measure="uplift")
        of = {leak: uplift([c for c in own if c["leak"] == leak]) for leak in LEAKS}
        assert contrast["estimate"] == pytest.approx(of["result"] - of["none"])
        assert contrast["cases"] == sum(c["leak"] in ("result", "none") for c in own) < len(own)
        assert contrast["low"] > 0, "hints with the result help more in these cases"
    rates = rescue_table(rescue_counts(cases), groups=["all"])
    same = pick(rates, rate="uplift")
    whole = pick(table, student="team", leak="all", measure="uplift")
    bounds = ("estimate", "low", "high")
    assert [whole[b] for b in bounds] == pytest.approx([same[b] for b in bounds])
    assert not set(table["measure"]) & {"reliance"}
    shown = hints_report(table)
    assert "reliance is not shown" in " ".join(shown.notes)
    assert shown.shown.height == 4 * 5


def test_reliance_is_the_mean_over_iterations() -> None:
    cases = random_cases(2, 300)
    rows = [(1, "ada", -0.4), (1, "bob", -0.1), (2, "ada", -0.2)]
    frame = pl.DataFrame(rows, schema={"iteration": pl.Int32, "model": pl.String, "reliance": pl.Float64}, orient="row")
    table = hint_table(rescue_counts(cases), hints=hints_of(cases), reliance=frame)
    for student, value in (("ada", -0.3), ("bob", -0.1), ("team", (-0.25 - 0.2) / 2)):
        row = pick(table, student=student, measure="reliance")
        assert row["estimate"] == pytest.approx(value)
        assert row["low"] is None
    assert "has no interval" in pick(table, student="ada", measure="reliance")["note"]
    assert not table.filter(student="cyd", measure="reliance").height
    assert "reliance" in hints_report(table).shown.columns


def test_a_part_of_a_run_has_no_reliance(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps record it for all problems of an iteration together."""
    cases = random_cases(2, 40)
    counts, reliance = rescue_counts(cases), pl.DataFrame({"iteration": [1], "model": ["ada"], "reliance": [-0.4]})
    monkeypatch.setattr(further_tables, "load_hints", lambda run: hints_of(cases))
    monkeypatch.setattr(module, "load_reliance", lambda run: reliance)
    data = RunData(Path("run"), None, list(MODELS), counts, pl.DataFrame(schema=ANSWERS))
    for rows, expected in ((None, True), (counts, True), (counts.filter(pl.col("problem_id") < "p2"), False)):
        measures = set(further_tables.hints_of_run(data, rows)["measure"])
        assert "uplift" in measures
        assert ("reliance" in measures) is expected


def test_runs_without_the_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reliance of an iteration is the mean of its steps that have one. Leaks may be unknown."""
    steps = [(1, "ada", -0.5), (1, "ada", float("nan")), (1, "ada", -0.1), (1, "ada", None), (2, "ada", None)]
    frame = pl.DataFrame(
        steps, schema={"iteration": pl.Int32, "model": pl.String, "reliance": pl.Float64}, orient="row"
    )
    monkeypatch.setattr(module, "read_rows", lambda run, table, phases, columns: frame.select(columns))
    found = load_reliance(tmp_path)
    assert found is not None
    assert found.rows() == [(1, "ada", pytest.approx(-0.3))]
    cases = random_cases(4, 60)
    old = hint_table(rescue_counts(cases), hints=hints_of(cases).with_columns(leak=pl.lit(None, pl.String)))
    assert set(old["leak"]) == {"all"}
    assert "leaks are not known" in " ".join(hints_report(old).notes)
    assert hints_report(old.clear()).shown.height == 0


def test_who_teaches_whom() -> None:
    cases = random_cases(5, 400)
    table = teaching_table(rescue_counts(cases), models=MODELS)
    pairs = rescue_table(rescue_counts(cases), groups=["pair"])
    for teacher in MODELS:
        for student in MODELS:
            if teacher == student:
                continue
            at = {"teacher": teacher, "student": student}
            same = pick(pairs, rate="uplift", **at)
            got = pick(table, measure="uplift", **at)
            bounds = ("estimate", "low", "high")
            assert [got[b] for b in bounds] == pytest.approx([same[b] for b in bounds])
            of_student = [c for c in cases if c["student"] == student]
            own = [c for c in of_student if c["teacher"] == teacher]
            rescued = [c for c in of_student if c["hinted"][0]]
            share = pick(table, measure="taught_share", **at)
            assert (share["numerator"], share["denominator"]) == (len(own), len(of_student))
            assert share["estimate"] == pytest.approx(len(own) / len(of_student))
            part = pick(table, measure="rescues", **at)
            assert (part["numerator"], part["denominator"]) == (
                len([c for c in rescued if c["teacher"] == teacher]),
                len(rescued),
            )
            per_case = pick(table, measure="per_case", **at)
            assert per_case["estimate"] == pytest.approx(len([c for c in own if c["hinted"][0]]) / len(own))
    matrix = teaching_matrix(table, "uplift", models=MODELS)
    assert matrix.shape == (3, 4)
    assert matrix["ada"][0] is None
    assert matrix["ada"][1] == pick(table, teacher="bob", student="ada", measure="uplift")["estimate"]
    shown = teaching_report(table, MODELS).shown
    assert shown.row(0)[:2] == ("ada", "–")
    case = pick(table, teacher="bob", student="ada", measure="per_case")
    assert shown["ada"][1].endswith(f"({case['numerator']}/{case['denominator']})")


def test_a_pair_without_hints_has_no_rates() -> None:
    cases = [
        {"problem": f"p{i}", "student": "ada", "teacher": "bob", "hinted": (1, 2), "control": (0, 1)} for i in range(9)
    ]
    table = teaching_table(rescue_counts(cases), models=MODELS)
    empty = pick(table, teacher="cyd", student="ada", measure="uplift")
    assert empty["estimate"] is None
    assert "no hint of this teacher" in empty["note"]
    assert pick(table, teacher="cyd", student="ada", measure="taught_share")["estimate"] == 0
    assert set(table["student"]) == {"ada"}


# --- change of the error overlap -----------------------------------------------------------------


def test_changes_are_differences_of_the_overlap_tables() -> None:
    rng = np.random.default_rng(6)
    counts = pl.concat(
        counts_frame(4, rng.binomial(4, rng.uniform(0.1, 0.9, (1, 120)) ** (1 if i else 2), (2, 120)), iteration=i)
        for i in (0, 3)
    )
    answers = pl.concat(
        counts.select("iteration", "phase", "model", "problem_id", answer=pl.lit(a), correct=pl.lit(a == "2"), n=n)
        for a, n in (
            ("2", pl.col("c")),
            ("3", (pl.col("n") - pl.col("c") + 1) // 2),
            ("4", (pl.col("n") - pl.col("c")) // 2),
        )
    ).filter(pl.col("n") > 0)
    answers = answers.select(pl.col(c).cast(t) for c, t in ANSWERS.items())
    change = overlap_change_table(counts, ks=[1, 2], answers=answers)
    levels = overlap_table(counts, ks=[1, 2], answers=answers).filter(pl.col("model_a") != pl.col("model_b"))
    assert change.height == levels.height / 2
    for row in change.iter_rows(named=True):
        at = {"level": row["level"], "k": row["k"], "measure": row["measure"]}
        before, after = (pick(levels, iteration=i, **at) for i in (0, 3))
        for name, level in (("before", before), ("after", after)):
            assert row[name] == (None if level["estimate"] is None else pytest.approx(level["estimate"], abs=1e-9))
        if row["estimate"] is not None:
            assert row["estimate"] == pytest.approx(after["estimate"] - before["estimate"], abs=1e-9)


def test_a_correlation_without_noise_needs_twice_the_completions_before_and_after() -> None:
    rng = np.random.default_rng(8)
    counts = pl.concat(counts_frame(4, rng.binomial(4, 0.5, (2, 120)), iteration=i) for i in (0, 3))
    change, levels = overlap_change_table(counts, ks=[4, 8]), overlap_table(counts, ks=[4, 8])
    for k, needed in ((4, 8), (8, 16)):
        own = pick(change, level="sample", k=k, measure="phi_corrected")
        assert own["note"] == f"undefined: 120 problems have fewer than {needed} completions"
        pair = {"model_a": "ada", "model_b": "bob"}
        assert own["note"] == pick(levels, level="sample", k=k, measure="phi_corrected", iteration=3, **pair)["note"]
    assert pick(change, level="sample", k=4, measure="phi")["estimate"] is not None


def test_the_interval_of_a_change_is_that_of_a_paired_bootstrap() -> None:
    rng = np.random.default_rng(7)
    base = rng.uniform(0.1, 0.9, (2, 200))
    correct = {0: rng.binomial(4, base), 1: rng.binomial(4, np.minimum(base + 0.05, 1))}
    counts = pl.concat(counts_frame(4, c, iteration=i) for i, c in correct.items())
    row = pick(overlap_change_table(counts), level="sample", k=1, measure="joint_failure")
    joint = [np.prod(1 - correct[i] / 4, axis=0) for i in (0, 1)]
    error = np.std(joint[1] - joint[0], ddof=1) / np.sqrt(200)
    assert row["low"] == pytest.approx(row["estimate"] - 1.96 * error, abs=0.25 * error)
    assert row["high"] == pytest.approx(row["estimate"] + 1.96 * error, abs=0.25 * error)
    unpaired = np.sqrt(sum(np.var(j, ddof=1) / 200 for j in joint))
    assert row["high"] - row["low"] < 0.9 * 2 * 1.96 * unpaired
    copies = pick(overlap_change_table(grouped(counts, 2)), level="sample", k=1, measure="joint_failure")
    assert (copies["low"], copies["high"]) == (pytest.approx(row["low"]), pytest.approx(row["high"]))


def test_no_change_without_both_evaluations() -> None:
    counts = counts_frame(4, [[1, 2], [3, 4]], iteration=0)
    assert overlap_change_table(counts).height == 0
    assert overlap_change_table(counts.clear()).height == 0
