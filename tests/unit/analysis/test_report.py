"""Reports: known numbers, messages about missing data, files, several runs, commands."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from analysis.__main__ import main
from analysis.counts.counts import ANSWERS
from analysis.counts.load import RunData, load_run
from analysis.exchange.export import export_predictions
from analysis.exchange.folder import import_predictions
from analysis.layout.tables import MARK, ReportTable, render
from analysis.report import evaluation_tables
from analysis.report.facts import facts_of
from analysis.report.main_tables import report_tables
from analysis.report.reader_warnings import warnings_of
from analysis.report.report import report_lead, write_report, write_reports
from analysis.report.summary import headline_table, key_numbers, rescue_summary_table, summary_table
from analysis.report.training_tables import rescue_table, rows_table
from analysis.timing.cost import cost_of
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths
from core_hpc.store.schema import ROLLOUTS, STEPS
from core_hpc.store.shards import publish_frame
from tests.support.analysis_data import (
    config,
    counts_frame,
    evaluated_run,
    evaluation_rows,
    make_run,
    pick,
    publish_rollouts,
    rescue_counts,
    rollout,
    rollouts,
)
from tests.support.parsing import Page
from tests.support.report_data import AFTER, BEFORE, full_run, step

TABLES = [
    "summary",
    "rescue_summary",
    "pass",
    "gain",
    "reliability",
    "votes",
    "rescue",
    "overlap",
    "curves",
    "cost",
    "rows",
]
TABLES += ["time_iterations", "time_waited", "time_speed"]
TABLES += ["selectors", "learning", "hints", "teaching", "overlap_change", "resolution"]
FIGURES = ["pass_at_k", "overlap", "rescue", "rewards", "training", "selectors", "learning"]


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures. Drawing takes most of the time, and is tested in test_figures.py."""
    monkeypatch.setattr("analysis.report.figures.write", lambda figure, folder: "<svg/>")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two evaluations and one iteration with rescues."""
    folder = make_run(tmp_path / "demo" / "demo-1")
    cold = [
        rollout(model=m, problem_id="t0", sample_index=s, correct=m == "bob") for m in ("ada", "bob") for s in range(2)
    ]
    rescues = [
        rollout(
            phase="rescue",
            model="ada",
            problem_id="t0",
            sample_index=s,
            hint_given=s < 2,
            correct=s == 0,
            cold_failed=True,
            teacher_model="bob",
            teacher_sample_index=0,
        )
        for s in range(3)
    ]
    publish_rollouts(folder, [*evaluation_rows(BEFORE, 0), *evaluation_rows(AFTER, 2), *cold, *rescues])
    return folder


def printed(tables: list[ReportTable]) -> str:
    console = Console(file=io.StringIO(), width=200)
    render(tables, console)
    return console.file.getvalue()


def row_of(table: ReportTable, **where: str) -> dict[str, Any]:
    return table.shown.row(by_predicate=pl.all_horizontal(pl.col(k) == v for k, v in where.items()), named=True)


# --- the main tables -----------------------------------------------------------------------------


def test_main_tables(run: Path) -> None:
    tables = {t.name: t for t in report_tables(load_run(run))}
    assert list(tables) == ["pass", "gain", "rescue", "overlap"]
    levels = tables["pass"].frame
    assert pick(levels, when="before", measure="pass", model="ada", k=1)["estimate"] == pytest.approx(5 / 12)
    assert pick(levels, when="after", measure="pass", model="ada", k=1)["estimate"] == pytest.approx(8 / 12)
    assert pick(levels, when="difference", measure="pass", model="ada", k=1)["estimate"] == pytest.approx(3 / 12)
    assert pick(levels, when="before", measure="team_pass", k=1)["estimate"] == pytest.approx((1 / 4 + 1 / 2 + 1) / 3)
    row = row_of(tables["pass"], model="ada", measure="Pass@1")
    assert row["before"].startswith("41.7 [")
    assert row["difference"].startswith("+25.0 [")
    assert "seed 42" in " ".join(tables["pass"].notes)
    assert pick(tables["rescue"].frame, group="pair", teacher="bob", student="ada", rate="uplift")[
        "estimate"
    ] == pytest.approx(1 / 2)
    text = printed(list(tables.values()))
    for part in ("team Pass@2", "matched budget", "(1/2)", "bob -> ada", "fewer than 100 problems", "Cohen's kappa"):
        assert part in text
    assert "nan" not in text.lower()
    assert "100.0 [100.0" not in text  # no certainty from three problems


def test_best_is_marked_among_equal_budgets(run: Path) -> None:
    (table,) = [t for t in report_tables(load_run(run)) if t.name == "pass"]
    rows = table.shown.rows(named=True)
    # Before training, the models solve 5 and 6 of 12 with one candidate.
    # With two candidates, the 7/12 of the team are below the (5/6 + 1) / 3 of bob.
    marked = {(rows[i]["candidates"], rows[i]["model"]) for i, when in table.best if when == "before"}
    assert marked == {("1", "bob"), ("2", "bob"), ("4", "team")}
    assert {when for _, when in table.best} == {"before", "after"}
    assert [(rows[i]["candidates"], rows[i]["measure"]) for i in table.starts] == [
        ("2", "Pass@2"),
        ("4", "Pass@4"),
        ("8", "Pass@8"),
        ("8", "coverage"),
    ]


def test_each_measure_of_a_budget_appears_once(run: Path) -> None:
    (table,) = [t for t in report_tables(load_run(run)) if t.name == "pass"]
    keys = table.shown.select("candidates", "model", "measure")
    assert keys.is_unique().all()
    assert row_of(table, model="ada", candidates="2")["measure"] == "Pass@2"
    assert row_of(table, model="team", candidates="2")["measure"] == "team Pass@1"


@pytest.mark.usefixtures("no_pictures")
def test_votes_and_reliability(run: Path, tmp_path: Path) -> None:
    write_report(load_run(run), tmp_path / "out")
    reliability = pl.read_csv(tmp_path / "out" / "tables" / "reliability.csv")
    # pass^2 of ada before training: only the third problem has two correct completions.
    assert pick(reliability, when="before", measure="pass_hat", model="ada", k=2)["estimate"] == pytest.approx(1 / 3)
    assert pick(reliability, when="before", measure="first", model="bob", k=1)["estimate"] == pytest.approx(1 / 3)
    votes = pl.read_csv(tmp_path / "out" / "tables" / "votes.csv")
    # All completions answer 2, but it is correct in some rows only; those vote together.
    assert pick(votes, when="before", measure="maj", model="bob", k=1)["estimate"] == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("rows", "messages"),
    [
        ([], ["iteration 0) is not published yet", "no evaluation after training"]),
        (evaluation_rows(BEFORE, 0), ["no evaluation after training"]),
        (evaluation_rows(AFTER, 2), ["iteration 0) is not published yet"]),
        (
            evaluation_rows({"ada": BEFORE["ada"]}, 0),
            ["iteration 0) is not published yet", "no evaluation after training"],
        ),
    ],
)
def test_tables_name_missing_data(tmp_path: Path, rows: list[dict[str, Any]], messages: list[str]) -> None:
    folder = make_run(tmp_path / "run")
    if rows:
        publish_rollouts(folder, rows)
    text = " ".join(printed(report_tables(load_run(folder))).split())
    possible = ("iteration 0) is not published yet", "no evaluation after training")
    assert [message for message in possible if message in text] == messages
    assert "no rescue completions" in text


def test_a_run_that_does_not_evaluate_the_untrained_models(tmp_path: Path) -> None:
    """The tables explain what is missing. The summary drops the columns that would be empty."""
    folder = make_run(tmp_path / "run", config(evaluation={"samples": 4, "before": False}))
    publish_rollouts(folder, evaluation_rows(AFTER, 2))
    text = " ".join(printed(report_tables(load_run(folder))).split())
    assert "the models before the first iteration are not evaluated in this run (evaluation.before)" in text
    assert "Held-out problems after training (percent)" in text
    assert "not published yet" not in text.replace("no rescue completions of cold-failed cases are published yet", "")
    data = load_run(folder)
    assert "The models before the first iteration are not evaluated in this run (evaluation.before)." in warnings_of(
        data
    )
    table = summary_table(data)
    assert table.shown.columns == ["model", "measure", "after"]
    assert table.shown.filter(model="ada", measure="Pass@1")["after"][0].startswith("66.7 [")
    cases = [{"problem": "t0", "student": "ada", "teacher": "bob", "hinted": (1, 2), "control": (0, 1)}]
    rescued = RunData(
        data.path,
        data.config,
        data.models,
        pl.concat([data.counts, rescue_counts(cases)], how="diagonal"),
        data.answers,
    )
    row = row_of(rescue_summary_table(rescued), model="ada")
    shown = [row[column].split()[0] for column in ("without the hint", "with the hint", "uplift")]
    assert shown == ["0.0", "50.0", "+50.0"]
    assert summary_table(rescued).shown.columns == ["model", "measure", "after"]
    requested = RunData(data.path, config(evaluation={"samples": 4}), data.models, data.counts, data.answers)
    assert summary_table(requested).shown.columns == ["model", "measure", "before", "after", "difference"]
    assert evaluation_tables.NO_BEFORE in summary_table(requested).notes


def test_a_rescue_rate_without_an_estimate_has_its_reason_in_its_row() -> None:
    """Ada has no control, so its row has no uplift; bob's has."""
    cases: list[dict[str, Any]] = [
        {"problem": "t0", "student": "ada", "teacher": "bob", "hinted": (1, 2), "control": (0, 0)},
        {"problem": "t1", "student": "bob", "teacher": "ada", "hinted": (1, 2), "control": (0, 1)},
    ]
    counts = rescue_counts([{**case, "iteration": i} for i in (1, 2) for case in cases])
    data = RunData(Path("run"), config(), ["ada", "bob"], counts, pl.DataFrame(schema=ANSWERS))
    table = rescue_table(data)
    without, others = row_of(table, cases="bob -> ada"), table.shown.filter(pl.col("cases") != "bob -> ada")
    assert (without["control"], without["uplift"]) == ("– (0/0)", "–")
    reasons = dict(note.split(": ", 1) for note in table.notes if note[:3] in ("a: ", "b: "))
    assert [reasons[mark] for mark in without[MARK].split(", ")] == [
        "control: denominator is 0",
        "uplift: no control: every rescue completion saw the hint",
    ]
    assert set(others[MARK]) == {""}


def test_a_run_that_only_evaluates(tmp_path: Path) -> None:
    """Its only evaluation is neither before nor after a training."""
    folder = make_run(tmp_path / "run", config(iterations=0))
    publish_rollouts(folder, evaluation_rows(AFTER, 0))
    data = load_run(folder)
    tables = report_tables(data)
    text = " ".join(printed(tables).split())
    assert "Held-out problems (percent), by candidates spent" in text
    assert not any(word in text for word in ("before training", "after training", "untrained"))
    assert not any("finished" in warning or "training" in warning for warning in warnings_of(data))
    shown = next(table for table in tables if table.name == "pass").shown
    assert shown.columns[:5] == ["candidates", "model", "measure", "evaluation", "problems"]
    table = summary_table(data)
    assert table.shown.columns == ["model", "measure", "evaluation"]
    assert table.shown.filter(model="ada", measure="Pass@1")["evaluation"][0].startswith("66.7 [")
    assert ("ada Pass@1", "66.7") in key_numbers([table])
    write_report(data, tmp_path / "report")
    assert "evaluated without training on" in (tmp_path / "report" / "report.md").read_text()


def test_key_numbers_of_the_team_and_of_a_model_have_the_same_number_of_candidates() -> None:
    # ada solves half of the problems always, bob the others half of the time.
    before, after = [[4] * 3 + [0] * 3, [0] * 6], [[4] * 3 + [0] * 3, [0] * 3 + [2] * 3]
    counts = pl.concat([counts_frame(4, c, models=("ada", "bob"), iteration=i) for i, c in ((0, before), (2, after))])
    table = summary_table(RunData(Path("run"), config(), ["ada", "bob"], counts, pl.DataFrame()))
    assert key_numbers([table]) == [
        ("ada Pass@1", "50.0 → 50.0"),
        ("bob Pass@1", "0.0 → 25.0"),
        ("team Pass@1 (2 candidates)", "50.0 → 75.0"),
        ("best single model Pass@2 (2 candidates)", "50.0 → 50.0"),
    ]
    one = [counts_frame(1, [[1, 0], [0, 1]], models=("ada", "bob"), iteration=i) for i in (0, 2)]
    table = summary_table(RunData(Path("run"), config(), ["ada", "bob"], pl.concat(one), pl.DataFrame()))
    assert key_numbers([table])[-1] == ("team Pass@1 (2 candidates)", "100.0 → 100.0")


def test_a_team_of_one_has_no_team_tables(tmp_path: Path) -> None:
    single = config(team=[{"name": "ada", "model": "fake:any", "engine": "fake"}], protocol={"rescue_samples": 0})
    folder = make_run(tmp_path / "run", single)
    publish_rollouts(folder, evaluation_rows({"ada": BEFORE["ada"]}, 0))
    assert [t.name for t in report_tables(load_run(folder))] == ["pass", "rescue"]
    assert "switched off" in printed(report_tables(load_run(folder)))


def three_models() -> RunData:
    """Two completions of six problems: ada and bob solve data set one, cy solves two."""
    first, last = [2, 2, 2, 0, 0, 0], [0, 0, 0, 2, 2, 1]
    models = ("ada", "bob", "cy")
    counts = counts_frame(2, [first, first, last], models=models)
    in_first = pl.col("problem_id") < "p00003"
    counts = counts.with_columns(
        data_set=pl.when(in_first).then(pl.lit("one")).otherwise(pl.lit("two")), level=pl.lit("hard")
    )
    team = [{"name": name, "model": "fake:any", "engine": "fake"} for name in models]
    return RunData(Path("run"), config(team=team, evaluation={"samples": 2}), list(models), counts, pl.DataFrame())


def test_sub_teams() -> None:
    table = evaluation_tables.teams_table(three_models(), [1])
    rows = {(row["candidates"], row["model"]): row["before"] for row in table.shown.iter_rows(named=True)}
    assert list(rows) == [
        ("1", "ada"),
        ("1", "bob"),
        ("1", "cy"),
        ("2", "ada"),
        ("2", "bob"),
        ("2", "cy"),
        ("2", "ada+bob"),
        ("2", "ada+cy"),
        ("2", "bob+cy"),
        ("3", "ada"),
        ("3", "bob"),
        ("3", "cy"),
        ("3", "team"),
    ]
    expected = {("2", "ada+bob"): 3 / 6, ("2", "ada+cy"): 5.5 / 6, ("2", "cy"): 3 / 6, ("3", "team"): 5.5 / 6}
    assert {key: float(rows[key].split()[0]) for key in expected} == pytest.approx(
        {k: 100 * v for k, v in expected.items()}, abs=0.05
    )
    assert rows["3", "ada"] == "–"
    shown = table.shown.rows(named=True)
    assert {(shown[i]["candidates"], shown[i]["model"]) for i, _ in table.best} == {
        ("1", "ada"),
        ("1", "bob"),
        ("2", "ada+cy"),
        ("2", "bob+cy"),
    }


def test_gain_over_each_model() -> None:
    row = evaluation_tables.gain_table(three_models(), [1]).shown.row(0, named=True)
    assert (row["comparison"], row["best model"]) == ("equal k", "ada")
    assert [row[f"over {name}"].split()[0] for name in ("the best", "ada", "bob", "cy")] == [
        "+41.7",
        "+41.7",
        "+41.7",
        "+50.0",
    ]


def test_strata_of_attributes_with_several_values() -> None:
    table = evaluation_tables.strata_table(three_models(), [1])
    assert table.shown["by"].unique().to_list() == ["data_set"]  # all problems have one level
    found = {
        (row["value"], row["model"], row["measure"]): row["before"].split()[0]
        for row in table.shown.iter_rows(named=True)
    }
    assert found["one", "ada", "Pass@1"] == "100.0"
    assert found["two", "ada", "Pass@1"] == "0.0"
    assert found["two", "cy", "Pass@1"] == "83.3"
    assert found["two", "team", "coverage"] == "100.0"


# --- the folder ----------------------------------------------------------------------------------


def test_report_writes_every_table_and_figure(tmp_path: Path) -> None:
    data, out = load_run(full_run(tmp_path / "run")), tmp_path / "out"
    assert write_report(data, out, [1, 8]) == out / "report.html"
    assert {p.name for p in out.iterdir()} == {"report.md", "report.html", "tables", "figures", "browse"}
    assert {p.name for p in (out / "tables").iterdir()} == {
        f"{n}.{end}" for n in TABLES for end in ("csv", "json", "md", "tex")
    }
    assert {p.name for p in (out / "figures").iterdir()} == {
        f"{n}.{end}" for n in FIGURES for end in ("pdf", "svg", "png", "csv")
    }
    text = (out / "report.md").read_text()
    assert 'team.0.name: "ada"' in text
    assert "| evaluate | 0 | ada | 3 | 12 | 5 | 0 | 0 |" in text
    assert all(f"](figures/{name}.svg)" in text for name in FIGURES)
    levels = pl.read_csv(out / "tables" / "pass.csv")
    assert pick(levels, when="before", measure="pass", model="ada", k=8)["estimate"] is None
    assert "fewer than 8 completions" in text
    assert json.loads((out / "tables" / "pass.json").read_text()) == [
        {k: v if v != "" else None for k, v in row.items()} | {"note": row["note"] or ""} for row in levels.to_dicts()
    ]


def test_the_command_shows_what_a_full_load_shows(tmp_path: Path) -> None:
    """The command reads the answers of two evaluations only. Its votes and overlap are those of all answers."""
    run = full_run(tmp_path / "run")
    write_report(load_run(run), tmp_path / "whole")
    assert main(["report", str(run), "--out", str(tmp_path / "few")]) == 0
    whole, few = ((tmp_path / name / "report.md").read_text() for name in ("whole", "few"))
    assert "maj@" in few
    assert "same wrong answer" in few
    assert few == whole
    assert (tmp_path / "few" / "report.html").read_text() == (tmp_path / "whole" / "report.html").read_text()


def test_a_run_with_nothing_published(tmp_path: Path) -> None:
    data = load_run(make_run(tmp_path / "run"))
    write_report(data, tmp_path / "out")
    text = Page((tmp_path / "out" / "report.html").read_text()).text
    for part in (
        "nothing is published yet",
        "no scores are published yet",
        "No examples of rescues",
        "not evaluated yet",
        "0 of 2 iterations",
    ):
        assert part in text
    assert not (tmp_path / "out" / "figures").exists()


@pytest.mark.usefixtures("no_pictures")
def test_imported_predictions(tmp_path: Path) -> None:
    lines = [
        {
            "example_id": f"q{i}",
            "model": model,
            "gold": "2",
            "completions": ["#### 2" if (i + m) % 3 else "#### 3", "#### 2"],
        }
        for m, model in enumerate(("a & b", "c"))
        for i in range(6)
    ]
    (tmp_path / "file.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    import_predictions(tmp_path / "file.jsonl", tmp_path / "run")
    data = load_run(tmp_path / "run")
    write_report(data, tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "training" not in {row[0] for table in page.tables for row in table if row}
    assert f"Imported predictions of {', '.join(data.models)} on 6 problems." in page.text
    assert str(tmp_path / "file.jsonl") in page.text
    (table,) = [t for t in page.tables if t and t[0][:4] == ["candidates", "model", "measure", "predictions"]][:1]
    # The first model: 4 of 6 first completions and all second ones are correct.
    assert table[1][3].startswith("83.3 [")
    assert "before" not in page.text.split("Configuration")[0]


@pytest.mark.usefixtures("no_pictures")
def test_the_index_begins_with_the_differences_between_arms(tmp_path: Path) -> None:
    runs = [full_run(tmp_path / "demo" / f"{label}-0a1b2c3d") for label in ("alone", "core")]
    for run, weight in zip(runs, (0.0, 0.1), strict=True):
        plain = manifests.read_json(RunPaths(run).config)
        plain["update"]["kl_weight"] = weight
        plain["analysis"] = {"primary": {"arms": ["core", "alone"], "metric": "team_pass@2"}, "margin": 0.02}
        manifests.write_json(RunPaths(run).config, plain)
    *_, index = write_reports([load_run(r) for r in runs], tmp_path / "out", [1])
    page = Page(index.read_text())
    head, first, *_ = page.tables[0]
    assert dict(zip(head, first, strict=True))["arms"] == "core - alone"
    assert dict(zip(head, first, strict=True))["measure"] == "primary: team Pass@2"
    assert "primary comparison, declared in the sweep file: core - alone, team_pass@2" in page.text
    assert "Where the uncertainty of B - A comes from (B: core, A: alone)" in page.text
    runs_table = page.tables[-1]
    assert [row[:2] for row in runs_table] == [["run", "arm"], ["alone-0a1b2c3d", "alone"], ["core-0a1b2c3d", "core"]]
    assert set(pl.read_csv(tmp_path / "out" / "runs.csv")["arm"]) == {"alone", "core"}
    for table in ("contrasts", "variance", "runs"):
        assert all((tmp_path / "out" / f"{table}.{end}").is_file() for end in ("csv", "json", "md", "tex"))


@pytest.mark.usefixtures("no_pictures")
def test_several_runs_get_an_index(tmp_path: Path) -> None:
    runs = [full_run(tmp_path / sweep / "run-1") for sweep in ("one", "two")] + [make_run(tmp_path / "two" / "run-2")]
    pages = write_reports([load_run(r) for r in runs], tmp_path / "out", [1])
    assert [str(p.relative_to(tmp_path / "out")) for p in pages] == [
        "one-run-1/report.html",
        "two-run-1/report.html",
        "run-2/report.html",
        "index.html",
    ]
    assert all(path.is_file() for path in pages)
    index = Page(pages[-1].read_text())
    links = [a["href"] for tag, a in index.tags if tag == "a"]
    assert [tmp_path / "out" / str(link) for link in links] == pages[:-1]
    head, first, _, empty = index.tables[0]
    # After training, both models solve 8 of 12.
    assert dict(zip(head, first, strict=True))["best model"] in ("ada", "bob")
    assert dict(zip(head, first, strict=True))["its Pass@1"].startswith("66.7 [")
    assert empty == ["run-2", "run-2", *["–"] * 7]
    frame = pl.read_csv(tmp_path / "out" / "runs.csv")
    assert frame["run"].to_list() == ["run-1"] * 8
    assert pick(frame.head(4), figure="team")["estimate"] == pytest.approx(
        (1 - 1 / 4 * 3 / 4 + 1 - 3 / 4 * 1 / 4 + 1) / 3
    )


def test_warnings(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", config(protocol={"hint_probability": 1.0}))
    rows = evaluation_rows(BEFORE, 0)
    rows[0] |= {"verdict": "timeout", "correct": False}
    for row in rows[:6]:
        row["finish_reason"] = "length"
    publish_rollouts(folder, rows)
    data = load_run(folder)
    text = "\n".join(warnings_of(data))
    for part in (
        "Not finished: 0 of 2 iterations",
        "No evaluation after training",
        "Verification of 1 of 24",
        "6 of 24 completions were cut",
        "3 problems, fewer than 100",
        "has no control",
    ):
        assert part in text
    assert warnings_of(load_run(full_run(tmp_path / "done")))[0].startswith("Not finished: 1 of 2 iterations are done")


def test_an_evaluation_that_is_published_in_part_is_shown_on_the_problems_of_both(tmp_path: Path) -> None:
    """All models have the same three of the six problems of the latest evaluation."""
    folder = evaluated_run(tmp_path / "run")
    plain = config(protocol={"problems_per_part": 3}).model_dump(mode="json")
    manifests.write_json(RunPaths(folder).config, plain)
    for manifest in (folder / "evaluate" / "iteration=0002").glob("*-p001.manifest.json"):
        manifest.unlink()
    data = load_run(folder)
    summary, table = summary_table(data), evaluation_tables.pass_table(data, [1])
    warning = "valuation 2: 3 problems left out: not published for every model"
    for lines in (warnings_of(data), summary.notes, headline_table([data]).notes):
        assert any(warning in line for line in lines)
    assert set(table.shown["problems"]) == {"3"}
    (level,) = (
        row for row in summary.shown.iter_rows(named=True) if (row["model"], row["measure"]) == ("ada", "Pass@1")
    )
    assert [level[name].split(" ")[0] for name in ("before", "after", "difference")] == ["66.7", "16.7", "-50.0"]
    assert set(table.frame["note"].str.contains("3 problems left out: in one evaluation only")) == {True}
    assert "evaluated before training and after iteration 2 on 3 of 6 held-out problems" in report_lead(data)
    exported = export_predictions(folder, tmp_path / "out.jsonl")
    assert exported.notes == ["not all of the 6 problems are published yet: ada 3, bob 3"]
    assert rows_table(data).frame.select("iteration", "problems").unique().sort("iteration").rows() == [(0, 6), (2, 3)]


@pytest.mark.usefixtures("no_pictures")
def test_in_a_lenient_report_damaged_files_become_warnings(tmp_path: Path) -> None:
    folder = full_run(tmp_path / "run")
    (shard,) = folder.glob("score/iteration=0001/*.parquet")
    shard.write_bytes(shard.read_bytes()[:-1])
    data = load_run(folder)
    with pytest.raises(manifests.DamagedError, match=shard.name):
        write_report(data, tmp_path / "strict")
    (cold,) = folder.glob("cold/iteration=0001/ada*.parquet")
    cold.write_bytes(b"")
    data = load_run(folder, lenient=True)
    assert data.left_out
    write_report(data, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Left out: " in text
    assert shard.name in text


# --- cost and facts ------------------------------------------------------------------------------


def test_cost(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    manifests.write_json(
        RunPaths(folder).identity, {"run_id": "demo", "provenance": {"packages": {"torch": "2.13.0+cu130"}}}
    )
    paths = RunPaths(folder)
    tokens = {"num_prompt_tokens": 50, "num_completion_tokens": 20}
    gpu = {"seconds": {"load": 600.0, "generate": 3000.0}, "threads": 4, "num_gpus": 1, **tokens}
    publish_frame(
        paths.phase_folder("cold", 1),
        "ada-p000",
        rollouts([rollout(), rollout(sample_index=1)]),
        ROLLOUTS,
        stats=lambda: gpu,
    )
    update = {"seconds": {"update": 1800.0}, "threads": 2, "num_gpus": 1, "num_ranks": 8, "num_completion_tokens": 1}
    steps = pl.DataFrame([step(num_tokens=30), step(step=2, num_tokens=12)], schema=STEPS.schema)
    publish_frame(paths.phase_folder("update", 1), "ada-p000", steps, STEPS, stats=lambda: update)
    cost = cost_of(folder)
    cold = pick(cost.table, phase="cold")
    assert (cold["tasks"], cold["completions"], cold["prompt_tokens"], cold["sampled_tokens"]) == (1, 2, 50, 20)
    assert (cold["process_hours"], cold["core_hours"], cold["gpu_hours"]) == pytest.approx((1, 4, 1))
    assert cold["trained_tokens"] is None
    total = pick(cost.table, phase="all")
    assert (total["process_hours"], total["core_hours"], total["gpu_hours"]) == pytest.approx((1 + 4, 4 + 8, 1 + 4))
    # All steps count, also those before an interruption.
    assert (total["sampled_tokens"], total["trained_tokens"]) == (20, 42)
    assert cost.ended is not None
    assert cost.began == pytest.approx(cost.ended - 3600, abs=1800)


def test_an_engine_that_samples_several_parts_at_once_is_counted_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    hour = {"seconds": {"generate": 3600.0}, "threads": 1, "num_gpus": 1}
    for model, part in (("ada", 0), ("ada", 1), ("bob", 0)):  # all published now, by this process
        frame = rollouts([rollout(model=model)])
        publish_frame(
            RunPaths(folder).phase_folder("cold", 1), f"{model}-p{part:03d}", frame, ROLLOUTS, stats=lambda: hour
        )
    cold = pick(cost_of(folder).table, phase="cold")
    assert cold["tasks"] == 3
    assert cold["gpu_hours"] == pytest.approx(1 + 1, abs=0.01)  # one hour per engine


@pytest.mark.parametrize(("torch", "hours"), [("2.13.0+cpu", 0.0), ("2.13.0+cu130", None)])
def test_gpu_hours_without_recorded_gpus(tmp_path: Path, torch: str, hours: float | None) -> None:
    folder = make_run(tmp_path / "run")
    manifests.write_json(RunPaths(folder).identity, {"run_id": "demo", "provenance": {"packages": {"torch": torch}}})
    publish_rollouts(folder, [rollout()])
    assert pick(cost_of(folder).table, phase="all")["gpu_hours"] == hours


def test_facts_contain_the_origin_of_a_run(tmp_path: Path) -> None:
    folder = full_run(tmp_path / "run")
    provenance = {
        "core_hpc": "0.1.0",
        "git_commit": "abc123",
        "git_modified": True,
        "packages": {"torch": "2.13.0+cpu"},
        "python": "3.11.7",
        "platform": "Linux-x",
        "num_cores": 2,
        "mem_gb": 23.5,
        "command": ["launch.py", "a file.yaml"],
    }
    manifests.write_json(
        RunPaths(folder).identity,
        {
            "run_id": "demo",
            "models": {"ada": {"fingerprint": "f" * 64, "context_tokens": 64, "prompt_style": "chat"}},
            "provenance": provenance,
        },
    )
    text = "\n".join(": ".join(fact) for fact in facts_of(load_run(folder), cost_of(folder)))
    for part in (
        "git abc123, with uncommitted changes",
        "torch 2.13.0+cpu",
        "23.5 GB",
        "launch.py 'a file.yaml'",
        "fake:any",
        "weights ffffffffffff",
        "2 from addition_chain",
        "3 from addition_chain",
        "60 trained on",
        "0.00 GPU-hours",
    ):
        assert part in text


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
def test_the_command_prints_tables_and_writes_the_report(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["report", str(run.parent), "--out", str(out), "--k", "1", "8"]) == 0
    shown = capsys.readouterr().out
    assert "demo-1" in shown
    assert "team Pass@1" in shown
    assert f"written: {out / 'report.html'}" in shown
    assert (out / "report.md").is_file()


def test_a_wrong_folder_gives_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "neither a run folder nor a sweep folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["report", "arms"])
def test_an_out_that_is_a_file_is_named_at_once(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "out").write_text("")
    assert main([command, str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2
    assert f"{tmp_path / 'out'}: is a file, not a folder; choose another folder for --out" in capsys.readouterr().err


def test_commands_on_a_run_with_nothing_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run")
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert "nothing is published yet" in capsys.readouterr().out
    assert main(["passk", str(tmp_path / "run"), "--format", "csv"]) == 0
    assert "published yet" in capsys.readouterr().err


def test_help_loads_no_heavy_packages() -> None:
    code = (
        "import sys, analysis, analysis.report.report\n"
        "from analysis.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'submitit', 'transformers', 'vllm', 'matplotlib', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=Path(__file__).parents[3])
