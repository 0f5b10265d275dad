"""Formats: all have the same numbers, read by independent parsers; texts are escaped."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from analysis.layout.formats import table_text, to_html, to_latex, to_markdown
from analysis.layout.tables import ReportTable, laid_out, note_marks, number, percent, render, tidy_table
from analysis.metrics.passk import PASS_TABLE
from tests.support.parsing import Page, latex_rows, markdown_rows

NAMES = [
    "a_b",
    "50% $x$",
    "<script>alert(1)</script>",
    "A & B",
    r"\input{x}",
    "[x] *y*",
    "#1 {z}",
    "~^|`",
    "-",
    "plain",
]


@pytest.fixture
def frame() -> pl.DataFrame:
    """Pass@k of models with difficult names; one estimate is undefined, two are equal."""
    draw = random.Random(1)
    rows = []
    for k in (1, 2):
        for name in NAMES:
            estimate = round(draw.random(), 6)
            rows.append(
                {
                    "phase": "evaluate",
                    "iteration": 3,
                    "measure": "pass",
                    "model": name,
                    "k": k,
                    "candidates": k,
                    "estimate": estimate,
                    "low": estimate / 2,
                    "high": (1 + estimate) / 2,
                    "num_problems": 120,
                    "note": "",
                }
            )
    rows[3] |= {
        "estimate": None,
        "low": None,
        "high": None,
        "note": "undefined: 7 problems have fewer than 1 completions",
    }
    rows[5]["estimate"] = rows[6]["estimate"] = 0.9999
    return pl.DataFrame(rows, schema=PASS_TABLE)


def to_format(frame: pl.DataFrame, form: str, *, title: str = "A title") -> str:
    return table_text(tidy_table(frame, name="t", title=title), form)


def numbers(cell: str) -> list[float]:
    return [float(x) for x in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", cell)]


def test_formats_agree(frame: pl.DataFrame) -> None:
    rows = list(csv.DictReader(io.StringIO(to_format(frame, "csv"))))
    decoded = json.loads(to_format(frame, "json"))
    shown = {
        "latex": latex_rows(to_format(frame, "latex")),
        "markdown": markdown_rows(to_format(frame, "markdown")),
        "html": Page(to_format(frame, "html")).tables[0],
    }
    assert len(rows) == len(decoded) == frame.height
    for form, (head, *body) in shown.items():
        assert len(body) == frame.height, form
        for cells, row, other in zip(body, rows, decoded, strict=True):
            cell = dict(zip(head, cells, strict=True))
            assert cell["model"] == row["model"] == other["model"], form
            assert cell["k"] == row["k"] == str(other["k"])
            if other["estimate"] is None:
                assert row["estimate"] == ""
                assert cell["estimate"] in ("–", "--")
            else:
                assert [float(row[name]) for name in ("estimate", "low", "high")] == [
                    other[name] for name in ("estimate", "low", "high")
                ]
                expected = [other[n] for n in ("estimate", "low", "high")]
                assert numbers(cell["estimate"]) == pytest.approx(expected, abs=6e-5), form


def test_best_at_each_budget_is_bold(frame: pl.DataFrame) -> None:
    expected = []
    for k in (1, 2):
        rows = [row for row in frame.iter_rows(named=True) if row["k"] == k and row["estimate"] is not None]
        highest = max(round(row["estimate"], 3) for row in rows)
        expected += [
            f"{row['estimate']:.4f}".rstrip("0").rstrip(".") for row in rows if round(row["estimate"], 3) == highest
        ]
    assert len(expected) == 3  # a tie at k = 1
    assert re.findall(r"\\textbf\{([^}]*)\}", to_format(frame, "latex")) == expected
    assert Page(to_format(frame, "html")).strong == expected
    assert re.findall(r"\*\*([\d.]+)\*\*", to_format(frame, "markdown")) == expected


def test_single_estimates_and_other_measures_are_not_bold(frame: pl.DataFrame) -> None:
    single = frame.filter(pl.col("model") == "plain")
    assert not tidy_table(single, name="t", title="").best
    mixed = pl.concat([single, single.with_columns(measure=pl.lit("pass_hat"), model=pl.lit("other"))])
    assert not tidy_table(mixed, name="t", title="").best
    team = single.with_columns(measure=pl.lit("team_pass"), model=pl.lit("team"), estimate=pl.lit(0.0))
    table = tidy_table(pl.concat([single, team]), name="t", title="")
    assert table.best == {(0, "estimate"), (1, "estimate")}


def test_markup_in_a_table_is_escaped() -> None:
    text = "<script>x</script> & [bold]b[/bold] `c` |d|\n**e** $f$ \\g"
    table = ReportTable("t", text, pl.DataFrame(), laid_out([text], [[text], ["[y"], ["*z"]]), [text])
    page = Page(to_html(table))
    assert {tag for tag, _ in page.tags} == {"table", "caption", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert page.tables[0][1] == [text]
    one_line = text.replace("\n", " ")
    assert latex_rows(to_latex(table))[1:] == [[one_line], ["[y"], ["*z"]]
    assert markdown_rows(to_markdown(table))[1] == [one_line]
    console = Console(file=io.StringIO(), width=200)
    render([table], console)
    assert "[bold]b[/bold]" in console.file.getvalue()


def test_links_and_images_are_no_markup_in_markdown() -> None:
    """A viewer would load an image, and thereby report who reads the table."""
    for text in ("![x](http://example.org/x.png)", "[x](javascript:y)", "[x][y]", "[x]: http://example.org"):
        table = ReportTable("t", text, pl.DataFrame(), laid_out(["a"], [[text]]), [text])
        assert not re.search(r"(?<!\\)\][(\[:]", to_markdown(table))
    interval = ReportTable("t", "", pl.DataFrame(), laid_out(["a"], [["50.0 [25.0, 75.0]"]]))
    assert "50.0 [25.0, 75.0]" in to_markdown(interval)


CELLS = {
    "=1+2": "'=1+2",
    '=HYPERLINK("http://example.org")': '\'=HYPERLINK("http://example.org")',
    "+cmd|' /C calc'!A0": "'+cmd|' /C calc'!A0",
    "-2+3": "'-2+3",
    "@SUM(1)": "'@SUM(1)",
    "\t=1": "'\t=1",
    "\r=1": "'\r=1",
    "\n=1": "'\n=1",
    "-": "-",
    "--x": "'--x",
    "-0.5": "-0.5",
    "+1e-5": "+1e-5",
    "algebra = easy": "algebra = easy",
    "": "",
}
"""A cell of text, and what CSV has for it."""


def test_no_cell_of_csv_is_a_formula() -> None:
    frame = pl.DataFrame({"=name": list(CELLS), "n": [-1.5] * len(CELLS), "i": [-3] * len(CELLS)}).with_columns(
        empty=pl.lit(None, dtype=pl.String)
    )
    text = table_text(ReportTable("t", "", frame, laid_out(["a"], [])), "csv")
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["'=name"] for row in read] == list(CELLS.values())
    assert {(row["n"], row["i"], row["empty"]) for row in read} == {("-1.5", "-3", "")}


def test_only_one_function_writes_csv() -> None:
    root = Path(__file__).parents[3]
    calls = [p for top in ("analysis", "core_hpc") for p in (root / top).rglob("*.py") if "write_csv(" in p.read_text()]
    assert [p.name for p in calls] == ["formats.py"]


def test_characters_that_latex_fonts_do_not_have() -> None:
    table = ReportTable("t", "é 数 Ж → – ł", pl.DataFrame(), laid_out(["x"], [["-1.5 [-2.0, +3.0]"]]))
    text = to_latex(table)
    assert r"\caption{é [U+6570] [U+0416] $\rightarrow$ -- [U+0142]}" in text
    assert r"$-$1.5 {\scriptsize [$-$2.0, +3.0]}" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX on this machine")
def test_latex_compiles_with_booktabs_only(frame: pl.DataFrame, tmp_path: Path) -> None:
    all_letters = "".join(map(chr, range(32, 0x180)))
    difficult = ReportTable(
        "u", all_letters, pl.DataFrame(), laid_out(["[", "*"], [["[1]", "*"], ["*", "["]]), ["[low]"]
    )
    tables = to_format(frame, "latex", title=" ".join(NAMES)) + to_latex(difficult)
    (tmp_path / "a.tex").write_text(
        f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{tables}\\end{{document}}",
        encoding="utf-8",
    )
    done = subprocess.run(
        ["pdflatex", "-draftmode", "-halt-on-error", "a.tex"],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


def test_a_table_without_rows() -> None:
    table = tidy_table(pl.DataFrame(schema=PASS_TABLE), name="t", title="Nothing")
    assert Page(to_html(table)).tables == [[]]
    assert to_markdown(table) == "Nothing\n"
    assert latex_rows(to_latex(table))[1:] == []
    assert json.loads(table_text(table, "json")) == []


def test_an_unknown_format() -> None:
    with pytest.raises(ValueError, match="unknown format 'xlsx'"):
        to_format(pl.DataFrame(), "xlsx")


def test_curves_have_no_interval_and_keep_small_numbers() -> None:
    frame = pl.DataFrame({"iteration": [1], "measure": ["loss/learning_rate"], "value": [4e-05]})
    assert latex_rows(to_format(frame, "latex"))[1] == ["1", "loss/learning_rate", "4e-05"]


def test_numbers() -> None:
    assert [number(x) for x in (0.12345, 1234.5, 1e-20, float("nan"), None)] == ["0.1235", "1,234", "0", "nan", ""]
    assert percent(None, None, None) == "–"


def test_note_marks_explain_each_note_once() -> None:
    notes = ["x", "", "x; y", "y; z", "w", "w", "w", "w", "w", "w; x"]
    marks, legend = note_marks(notes)
    assert legend[0] == "6 of 10 rows: w"
    explained = dict(line.split(": ") for line in legend[1:])
    for note, mark in zip(notes, marks, strict=True):
        assert {explained[letter] for letter in mark.split(", ") if letter} == {
            part for part in note.split("; ") if part not in ("", "w")
        }
