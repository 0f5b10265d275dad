"""From published shards to the report: numbers by hand, the empty case in words, formats, and the command line."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from analysis.__main__ import main
from analysis.report import main_tables, render
from tests.unit.analysis_data import config, evaluation_rows, make_run, pick, publish_rollouts, rollout

BEFORE = {"ada": [[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], "bob": [[0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]]}
AFTER = {"ada": [[1, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1]], "bob": [[0, 0, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1]]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run: two evaluations and one iteration with rescues."""
    folder = make_run(tmp_path / "demo" / "demo-1")
    cold = [rollout(model=m, problem_id="t0", sample_index=s, correct=m == "bob") for m in ("ada", "bob") for s in range(2)]
    rescues = [
        rollout(
            phase="rescue", model="ada", problem_id="t0", sample_index=s, hint_given=s < 2, correct=s == 0,
            cold_failed=True, teacher_model="bob", teacher_sample_index=0,
        )
        for s in range(3)
    ]  # fmt: skip
    publish_rollouts(folder, [*evaluation_rows(BEFORE, 0), *evaluation_rows(AFTER, 2), *cold, *rescues])
    return folder


def printed(path: Path) -> str:
    console = Console(file=io.StringIO(), width=200)
    render(main_tables(path), console)
    return console.file.getvalue()


def test_main_tables(run: Path) -> None:
    tables = {t.name: t for t in main_tables(run)}
    assert list(tables) == ["pass", "gain", "rescue", "overlap"]
    levels = tables["pass"].frame
    assert pick(levels, when="before", measure="pass", model="ada", k=1)["estimate"] == pytest.approx(5 / 12)
    assert pick(levels, when="after", measure="pass", model="ada", k=1)["estimate"] == pytest.approx(8 / 12)
    assert pick(levels, when="difference", measure="pass", model="ada", k=1)["estimate"] == pytest.approx(3 / 12)
    assert pick(levels, when="before", measure="team_pass", k=1)["estimate"] == pytest.approx((1 / 4 + 1 / 2 + 1) / 3)
    row = tables["pass"].shown.filter((pl.col("model") == "ada") & (pl.col("measure") == "Pass@1")).row(0, named=True)
    assert row["before"].startswith("41.7 [")
    assert row["difference"].startswith("+25.0 [")
    assert "seed 42" in " ".join(tables["pass"].notes)
    assert pick(tables["rescue"].frame, group="pair", teacher="bob", student="ada", rate="uplift")["estimate"] == pytest.approx(1 / 2)
    text = printed(run)
    for part in ("Pass@2, matched budget", "team Pass@2", "(1/2)", "bob -> ada", "fewer than 100 problems", "Cohen's kappa"):
        assert part in text
    assert "nan" not in text.lower()
    assert "100.0 [100.0" not in text  # no certainty from three problems


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], ["iteration 0) is not published yet", "no evaluation after training", "no rescue completions"]),
        (evaluation_rows(BEFORE, 0), ["no evaluation after training"]),
        (evaluation_rows(AFTER, 2), ["iteration 0) is not published yet"]),
        (evaluation_rows({"ada": BEFORE["ada"]}, 0), ["iteration 0) is not published yet"]),
    ],
)
def test_what_is_missing_is_said_in_words(tmp_path: Path, rows: list, said: list[str]) -> None:
    folder = make_run(tmp_path / "run")
    publish_rollouts(folder, rows) if rows else None
    text = " ".join(printed(folder).split())
    for part in said:
        assert part in text


def test_a_team_of_one_has_no_team_tables(tmp_path: Path) -> None:
    alone = config(team=[{"name": "ada", "model": "fake:any", "engine": "fake"}], protocol={"rescue_samples": 0})
    folder = make_run(tmp_path / "run", alone)
    publish_rollouts(folder, evaluation_rows({"ada": BEFORE["ada"]}, 0))
    assert [t.name for t in main_tables(folder)] == ["pass", "rescue"]
    assert "switched off" in printed(folder)


def test_report_writes_every_table(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["report", str(run.parent), "--out", str(out), "--k", "1", "8"]) == 0
    shown = capsys.readouterr().out
    assert f"written: {out / 'report.md'}" in shown
    assert {p.name for p in out.iterdir()} == {"report.md"} | {
        f"{name}.{end}" for name in ("rows", "pass", "gain", "rescue", "overlap") for end in ("csv", "md")
    }
    text = (out / "report.md").read_text()
    assert 'team.0.name: "ada"' in text
    assert "| evaluate | 0 | ada | 3 | 12 | 5 | 0 | 0 |" in text
    levels = pl.read_csv(out / "pass.csv")
    assert pick(levels, when="before", measure="pass", model="ada", k=8)["estimate"] is None
    assert "fewer than 8 completions" in text


@pytest.mark.parametrize("command", ["passk", "rescue", "overlap"])
def test_formats_hold_the_same_rows(run: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = {}
    for form in ("csv", "json", "markdown", "table"):
        assert main([command, str(run), "--format", form]) == 0
        out[form] = capsys.readouterr().out
    rows = json.loads(out["json"])
    assert rows
    assert rows[0]["run"] == "demo-1"
    assert pl.read_csv(io.StringIO(out["csv"])).height == len(rows) == len(out["markdown"].splitlines()) - 2


def test_a_wrong_folder_is_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "neither a run folder nor a sweep folder" in capsys.readouterr().err


def test_a_run_with_nothing_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run")
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert "nothing is published yet" in capsys.readouterr().out
    assert main(["passk", str(tmp_path / "run"), "--format", "csv"]) == 0
    assert "published yet" in capsys.readouterr().err


def test_import_and_help_are_light() -> None:
    """Below one second of processor time (wall time is the machine's business), and without the heavy packages."""
    code = (
        "import sys, analysis, analysis.report\n"
        "from analysis.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'submitit', 'transformers', 'vllm', 'matplotlib', 'scipy'} & set(sys.modules)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=Path(__file__).parents[2], timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
