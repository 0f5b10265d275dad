"""Every command of `python -m analysis`: its output, its files and its exit status."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from scipy import stats

from analysis.__main__ import TABLES, main
from analysis.layout.formats import FORMATS
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths, TaskKey
from tests.support.analysis_data import config, evaluation_rows, make_run, publish_rollouts
from tests.support.parsing import Page
from tests.support.report_data import MARKUP, full_run

Printed = Callable[..., tuple[str, str]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return full_run(tmp_path / "demo" / "demo-1")


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """Runs a command that must succeed. Returns its standard output and its standard error."""

    def call(*arguments: object) -> tuple[str, str]:
        assert main([str(a) for a in arguments]) == 0
        captured = capsys.readouterr()
        return captured.out, captured.err

    return call


@pytest.mark.parametrize("command", TABLES)
def test_all_formats_have_the_same_rows(command: str, run: Path, printed: Printed) -> None:
    out = {form: printed(command, run, "--format", form)[0] for form in FORMATS}
    rows = json.loads(out["json"])
    assert rows
    assert {row["run"] for row in rows} == {"demo-1"}
    assert pl.read_csv(out["csv"].encode()).height == len(rows)
    assert sum(line.startswith("| ") for line in out["markdown"].splitlines()) == len(rows) + 2
    assert len(Page(out["html"]).tables[0]) == len(rows) + 1
    assert TABLES[command][0] in out["table"]


@pytest.mark.parametrize("command", TABLES)
def test_latex_is_the_table_of_the_report(command: str, run: Path, tmp_path: Path, printed: Printed) -> None:
    name = {"passk": "pass", "overlap-change": "overlap_change"}.get(command, command)
    printed("report", run, "--out", tmp_path / "out")
    assert printed(command, run, "--format", "latex")[0] == (tmp_path / "out" / "tables" / f"{name}.tex").read_text()


def test_latex_of_several_runs_names_them_without_hashes(run: Path, tmp_path: Path, printed: Printed) -> None:
    for seed in (0, 1):
        shutil.copytree(run, tmp_path / "sweep" / f"seed-{seed}-0123abc{seed}")
    text = printed("passk", tmp_path / "sweep", "--format", "latex")[0]
    assert re.findall(r"caption\{(seed-\d):", text) == ["seed-0", "seed-1"]
    assert re.findall(r"label\{([^}]*)\}", text) == ["tab:pass-seed-0", "tab:pass-seed-1"]
    assert "0123abc" not in text
    assert str(tmp_path) not in text


def test_latex_of_several_sweeps_names_each_run_by_its_sweep(run: Path, tmp_path: Path, printed: Printed) -> None:
    """Their labels, for example the seeds, are often the same."""
    for arm in ("alone", "core"):
        copy = shutil.copytree(run, tmp_path / arm / f"seed-1-{'0' * 7}{len(arm)}")
        content = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**content, "name": arm}))
    text = printed("passk", tmp_path / "alone", tmp_path / "core", "--format", "latex")[0]
    assert re.findall(r"caption\{(.*?): Held", text) == ["alone: seed-1", "core: seed-1"]
    assert re.findall(r"label\{([^}]*)\}", text) == ["tab:pass-alone-seed-1", "tab:pass-core-seed-1"]
    compared = printed("compare", tmp_path / "alone", tmp_path / "core", "--format", "latex")[0]
    assert "A: alone (seed-1-00000005)" in compared
    assert str(tmp_path) not in compared


def test_tables_by_data_set(run: Path, printed: Printed) -> None:
    for command in ("passk", "gain", "votes", "rescue", "overlap"):
        out, _ = printed(command, run, "--by", "data_set", "--format", "csv")
        frame = pl.read_csv(out.encode())
        assert set(frame["value"]) == {"addition_chain"}
        whole = pl.read_csv(printed(command, run, "--format", "csv")[0].encode())
        assert frame.drop("by", "value").equals(whole), "all problems are of one data set"
    _, error = printed("passk", run, "--by", "level", "--format", "csv")
    assert "no problem has the attribute level" in error


def test_comparing_a_run_with_itself_gives_differences_of_0(run: Path, printed: Printed) -> None:
    frame = pl.read_csv(printed("compare", run, run, "--format", "csv")[0].encode())
    assert frame["estimate"].drop_nulls().abs().max() == 0
    assert "B against A" in printed("compare", run, run)[0]


def test_comparing_two_iterations_of_a_run(run: Path, printed: Printed, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = printed("compare", run, run, "--iteration", "0", "1", "--k", "1", "--format", "csv")
    frame = pl.read_csv(out.encode())
    ada = frame.filter(measure="pass", model="ada").row(0, named=True)
    assert (ada["a"], ada["b"]) == (pytest.approx(5 / 12), pytest.approx(8 / 12))
    assert "A untrained, B after iteration 1" in printed("compare", run, run, "--iteration", "0", "1")[0]
    assert "A untrained, B untrained" in printed("compare", run, run, "--iteration", "0")[0]
    assert main(["compare", str(run), str(run), "--iteration", "0", "1", "2"]) == 2
    assert "3 numbers; give one, or two" in capsys.readouterr().err


def test_parts_of_the_variance_in_all_formats(run: Path, printed: Printed) -> None:
    arguments = ("variance", run, run, "--iteration", "0", "1", "--k", "1")
    out = {form: printed(*arguments, "--format", form)[0] for form in FORMATS}
    rows = json.loads(out["json"])
    assert {row["part"] for row in rows} == {"problems", "samples", "seeds"}
    assert pl.read_csv(out["csv"].encode()).height == len(rows) == 9
    assert out["latex"].count(r" \\") == len(rows) // 3 + 1
    assert "interval with twice as many" in out["table"]


def test_the_margin_of_equivalence_is_in_points(
    run: Path, printed: Printed, capsys: pytest.CaptureFixture[str]
) -> None:
    excluded = {}
    for margin in (20, 60):
        frame = pl.read_csv(printed("compare", run, run, "--margin", margin, "--format", "csv")[0].encode())
        (excluded[margin],) = frame.filter(measure="pass", k=1, model="ada")["p_outside"]
        # Three equal problems: the standard error is sqrt(2 / 5) / sqrt(5).
        assert excluded[margin] == pytest.approx(stats.t.sf(margin / 100 / (2**0.5 / 5), 2))
    assert "margin of 20 points is" in " ".join(printed("compare", run, run, "--margin", 20)[0].split())
    of_the_sweep = " ".join(printed("compare", run, run)[0].split())
    assert "not resolved" in of_the_sweep
    assert "margin of 2 points is" in of_the_sweep
    with pytest.raises(SystemExit):
        main(["compare", str(run), str(run), "--margin", "0"])
    assert "invalid number of points between 0 and 100 value: '0'" in capsys.readouterr().err


def test_arms(run: Path, tmp_path: Path, printed: Printed) -> None:
    shutil.copytree(run.parent, tmp_path / "other" / "demo")
    out, _ = printed("arms", run.parent, tmp_path / "other" / "demo", "--out", tmp_path / "out", "--k", "1", "2")
    name = tmp_path.name
    for part in (
        "Held-out problems by arm",
        "base",
        f"{name}/demo",
        "other/demo",
        "Rescues and errors by arm",
        "+50.0",
    ):
        assert part in out
    frame = pl.read_csv(tmp_path / "out" / "tables" / "arms.csv")
    levels = frame.filter(measure="pass", model="ada", k=1, seed="mean").select("arm", "estimate").rows()
    assert levels == [
        ("base", pytest.approx(5 / 12)),
        (f"{name}/demo", pytest.approx(8 / 12)),
        ("other/demo", pytest.approx(8 / 12)),
    ]
    kinds = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    tables = {
        f"tables/{table}.{end}"
        for table in ("contrasts", "arms", "arms_errors")
        for end in ("csv", "json", "md", "tex")
    }
    assert kinds == tables | {f"figures/arms.{end}" for end in ("pdf", "svg", "png", "csv")}


def test_the_arms_of_one_sweep(run: Path, tmp_path: Path, printed: Printed) -> None:
    other = shutil.copytree(run, run.parent / "higher-2")
    config = json.loads((other / "config.json").read_text())
    config["update"]["kl_weight"] = 0.5
    (other / "config.json").write_text(json.dumps(config))
    printed("arms", run.parent, "--out", tmp_path / "out", "--k", "1")
    assert set(pl.read_csv(tmp_path / "out" / "tables" / "arms.csv")["arm"]) == {"base", "demo-1", "higher-2"}
    other.rename(run.parent / "base-00000000")
    printed("arms", run.parent, "--out", tmp_path / "out", "--k", "1")
    levels = pl.read_csv(tmp_path / "out" / "tables" / "arms.csv")["arm"]
    assert set(levels) == {"base", "demo/demo-1", "demo/base"}
    (run.parent / "base-00000000").rename(other)
    printed("arms", run.parent, run, "--out", tmp_path / "out", "--k", "1")
    arms = {"base", "demo/demo-1", "demo/higher-2", "demo-1"}
    assert set(pl.read_csv(tmp_path / "out" / "tables" / "arms.csv")["arm"]) == arms


def test_export_import_and_rescore(run: Path, tmp_path: Path, printed: Printed) -> None:
    out, _ = printed("export", run, "--out", tmp_path / "out.jsonl")
    assert "phase evaluate of iteration 1" in out
    out, _ = printed("import", tmp_path / "out.jsonl", "--out", tmp_path / "imported")
    assert "3 problems; ada (12 completions), bob (12 completions)" in out

    def pass_at_k(folder: Path, iteration: int) -> pl.DataFrame:
        frame = pl.read_csv(printed("passk", folder, "--format", "csv")[0].encode())
        return frame.filter(pl.col("iteration") == iteration).drop("run", "iteration")

    assert pass_at_k(tmp_path / "imported", 0).equals(pass_at_k(run, 1))
    out, _ = printed("rescore", run, "--out", tmp_path / "again")
    assert "verdicts changed" in out
    printed("report", tmp_path / "imported", "--out", tmp_path / "report")
    assert (tmp_path / "report" / "report.html").is_file()


def test_damaged_file_is_an_error_and_can_be_left_out(
    run: Path, printed: Printed, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifests.read_manifest(RunPaths(run).task_manifest(TaskKey(1, "cold", "ada"))).file(".parquet")
    path.write_bytes(path.read_bytes()[:-10])
    assert main(["rescue", str(run)]) != 0
    assert f"{path}: " in capsys.readouterr().err
    out, error = printed("rescue", run, "--lenient", "--format", "csv")
    assert f"left out: {path}: " in error
    assert pl.read_csv(out.encode()).height > 0


def test_an_empty_table_has_its_reason(run: Path, tmp_path: Path, printed: Printed) -> None:
    """A run that never has the data is not described as one whose data will come."""
    early = make_run(tmp_path / "early")
    without = make_run(tmp_path / "without", config(protocol={"rescue_samples": 0}))
    publish_rollouts(without, evaluation_rows({"ada": [[True]], "bob": [[False]]}, 2))
    lines = tmp_path / "lines.jsonl"
    printed("export", run, "--iteration", "0", "--out", lines)
    imported, alone = tmp_path / "imported", tmp_path / "alone"
    printed("import", lines, "--out", imported)
    one = [line for line in lines.read_text().splitlines() if '"model": "ada"' in line or '"model":"ada"' in line]
    (tmp_path / "one.jsonl").write_text("\n".join(one))
    printed("import", tmp_path / "one.jsonl", "--out", alone)
    for folder, command, reason in (
        (early, "rescue", "no rescue completions of cold-failed cases are published yet"),
        (early, "curves", "no scores are published yet"),
        (early, "passk", "no evaluation after training is published yet"),
        (without, "rescue", "the rescue phase is switched off"),
        (without, "hints", "the rescue phase is switched off"),
        (without, "teaching", "the rescue phase is switched off"),
        (without, "overlap-change", "(iteration 0) is not published yet"),
        (imported, "hints", "imported predictions have no rescue completions"),
        (imported, "teaching", "imported predictions have no rescue completions"),
        (imported, "overlap-change", "imported predictions have no evaluation before and after training"),
        (imported, "curves", "imported predictions have no training"),
        (alone, "gain", "the table needs two models or more"),
        (alone, "teaching", "the table needs two models or more"),
    ):
        _, warning = printed(command, folder, "--format", "csv")
        assert warning.startswith("the table is empty: ")
        assert reason in warning
    _, warning = printed("rescue", early, without, "--by", "level", "--format", "csv")
    assert "early: no rescue completions" in warning
    assert "without: the rescue phase is switched off" in warning
    assert "or no problem has the attribute level" in warning
    _, warning = printed("passk", imported, "--phase", "cold", "--format", "csv")
    assert "imported predictions have no completions of the phase cold" in warning


def test_bad_input_is_an_error(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.jsonl").write_text('{"example_id": "a"}\n')
    assert main(["import", str(tmp_path / "bad.jsonl"), "--out", str(tmp_path / "x")]) == 2
    assert "bad.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert main(["export", str(run), "--out", str(tmp_path / "y"), "--iteration", "9"]) == 2
    assert main(["rescore", str(run), "--out", str(run)]) == 2
    assert main(["compare", str(tmp_path), str(run)]) == 2
    with pytest.raises(SystemExit) as error:
        main(["passk", str(run), "--k", "0"])
    assert error.value.code == 2


def test_rescue_completions_are_exported_with_their_hints(run: Path, tmp_path: Path, printed: Printed) -> None:
    out = tmp_path / "rescues.jsonl"
    _, notes = printed("export", run, "--phase", "rescue", "--iteration", 1, "--out", out)
    assert "different numbers" not in notes, "bob failed nothing, and has no rescue"
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(x["problem"], x["sample"], x["hint_given"], x["correct"]) for x in lines[:3]] == [
        ("t0", 0, True, False),
        ("t0", 1, True, True),
        ("t0", 2, False, False),
    ]
    assert {(x["phase"], x["model"], x["teacher_model"], x["cold_failed"]) for x in lines} == {
        ("rescue", "ada", "bob", True)
    }
    assert [x["hint"] for x in lines] == [f"hint t{i // 3} {MARKUP}" for i in range(6)]


def test_browse_writes_a_folder_and_show_prints_a_problem(run: Path, tmp_path: Path, printed: Printed) -> None:
    out, _ = printed("browse", run.parent, "--out", tmp_path / "page")
    assert f"written: {tmp_path / 'page' / 'index.html'}: 8 of 8 entries" in out
    assert (tmp_path / "page" / "data" / "b0-train-1.js").exists()
    assert f"cold ada t1 0 {MARKUP}" in printed("show", run, "--problem", "t1")[0]


def test_browse_without_a_folder_serves_until_it_is_interrupted(run: Path) -> None:
    command = [sys.executable, "-m", "analysis", "browse", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().removeprefix("open ").strip()
        with urllib.request.urlopen(f"{address}data/index.js", timeout=60) as answer:
            assert answer.read().startswith(b'browse.put("index",')
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=60) == 0
