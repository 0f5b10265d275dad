"""How a table is laid out, and how the terminal shows it.

In: frames of the other modules. Out: `ReportTable`: a tidy frame, and the same figures laid out for reading. What it
looks like in a file is formats.py's. No figure is computed here.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from string import ascii_lowercase

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from analysis.stats.intervals import ESTIMATE_COLUMNS

UNDEFINED = "–"
MARK = " "
"""Name of the column with the letters of `note_marks`: it needs none."""

_NUMBER = re.compile(r"[+-]?[\d.]|–")
_INTERVAL = re.compile(r"( \[[^\]]*\])")
_COMPARABLE = ("run", "by", "value", "phase", "iteration", "candidates")
"""Columns of a tidy frame: where they are equal, models are compared on the same problems and at the same budget."""

KIND = pl.col("measure").str.split("_").list.last().alias("kind")
"""What a measure is of: team_pass and matched_pass are a pass too."""


@dataclass(frozen=True)
class ReportTable:
    """One table of a report."""

    name: str  # stem of its files
    title: str
    frame: pl.DataFrame  # tidy: what CSV and JSON get
    shown: pl.DataFrame  # all text: what a reader gets
    notes: list[str] = field(default_factory=list)
    best: Collection[tuple[int, str]] = ()  # (row, column) of the cells of `shown` that are best of their group
    starts: Collection[int] = ()  # rows of `shown` that begin a group


def percent(estimate: float | None, low: float | None, high: float | None, *, signed: bool = False) -> str:
    """A fraction and its interval in percent; UNDEFINED where there is none.

    >>> percent(0.5, 0.25, 0.75), percent(0.031, None, None, signed=True)
    ('50.0 [25.0, 75.0]', '+3.1')
    """
    return _with_interval(estimate, low, high, scale=100, form="+.1f" if signed else ".1f")


def coefficient(estimate: float | None, low: float | None, high: float | None) -> str:
    """A number and its interval, two decimals."""
    return _with_interval(estimate, low, high, scale=1, form=".2f")


def _with_interval(estimate: float | None, low: float | None, high: float | None, *, scale: float, form: str) -> str:
    if estimate is None:
        return UNDEFINED
    text = format(estimate * scale, form)
    return text if low is None or high is None else f"{text} [{low * scale:{form}}, {high * scale:{form}}]"


def number(value: float | None) -> str:
    """Any number for reading: four decimals, or three digits where these say nothing; empty where there is none.

    >>> number(0.416666), number(4e-05), number(12345.6), number(0.0)
    ('0.4167', '4e-05', '12,346', '0')
    """
    if value is None:
        return ""
    if abs(value) < 1e-12:  # what rounding leaves of 0
        return "0"
    if not math.isfinite(value) or abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}".rstrip("0").rstrip(".")


# --- layout --------------------------------------------------------------------------------------


def laid_out(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> pl.DataFrame:
    """Rows of anything as a frame of text."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    return pl.DataFrame(cells, schema=dict.fromkeys(columns, pl.String), orient="row")


def text_frame(frame: pl.DataFrame) -> pl.DataFrame:
    """Every cell as text."""
    return laid_out(
        frame.columns, [[number(cell) if isinstance(cell, float) else cell for cell in row] for row in frame.rows()]
    )


def group_starts(keys: Sequence[object]) -> list[int]:
    """Rows whose key is not that of the row above: there a group begins. (The first row needs no line above it.)

    >>> group_starts(["a", "a", "b", "a"])
    [2, 3]
    """
    return [i for i in range(1, len(keys)) if keys[i] != keys[i - 1]]


def note_marks(notes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Letters for the notes of rows, and the lines that explain them; a note of most rows is a line without a letter.

    Args:
        notes: a note for each row, empty where there is none; several are joined by "; ".

    >>> note_marks(["few; short", "few", "few; short", "few", "none"])
    (['a', '', 'a', '', 'b'], ['4 of 5 rows: few', 'a: short', 'b: none'])
    """
    per_row = [[part for part in note.split("; ") if part] for note in notes]
    num = Counter(part for parts in per_row for part in parts)
    common = [part for part, n in num.items() if 2 * n > len(notes)]
    letters = {part: _letter(i) for i, part in enumerate(part for part in num if part not in common)}
    said = [part if num[part] == len(notes) else f"{num[part]} of {len(notes)} rows: {part}" for part in common]
    marks = [", ".join(letters[part] for part in parts if part in letters) for parts in per_row]
    return marks, [*said, *(f"{letter}: {part}" for part, letter in letters.items())]


def note_counts(notes: Iterable[str]) -> list[str]:
    """The notes of single figures, each once with its number, where a table has no room for them; the CSV has them row by row.

    >>> note_counts(["few; short", "", "few"])
    ['2 of 3 figures: few', '1 of 3 figures: short']
    """
    notes = list(notes)
    parts = Counter(part for note in notes for part in note.split("; ") if part)
    return [f"{n} of {len(notes)} figures: {part}" for part, n in parts.items()]


def _letter(i: int) -> str:
    return ascii_lowercase[i % 26] * (i // 26 + 1)


def is_best(by: Sequence[str]) -> pl.Expr:
    """True for the highest estimate of each group, to the digits shown; for none where one row alone has an estimate.

    >>> pl.DataFrame({"k": [1, 1, 2], "estimate": [0.2, 0.3, 0.1]}).select(is_best(["k"])).to_series().to_list()
    [False, True, False]
    """
    shown = pl.col("estimate").round(3)
    return ((shown == shown.max().over(by)) & (shown.count().over(by) > 1)).fill_null(value=False)


def tidy_table(frame: pl.DataFrame, *, name: str, title: str) -> ReportTable:
    """A tidy frame for reading: each figure with its interval, notes below, and no columns without a value.

    Where models are compared at the same budget (`candidates`), the best figure of each measure is marked.
    """
    labels = [c for c in frame.columns if c not in ESTIMATE_COLUMNS and frame[c].null_count() < frame.height]
    shown = text_frame(frame.select(labels))
    if not set(ESTIMATE_COLUMNS) <= set(frame.columns):
        return ReportTable(name, title, frame, shown)
    figures = [
        f"{number(estimate) or UNDEFINED}{f' [{number(low)}, {number(high)}]' if low is not None else ''}"
        for estimate, low, high in frame.select("estimate", "low", "high").iter_rows()
    ]
    marks, notes = note_marks(frame["note"].to_list())
    shown = shown.with_columns(
        pl.Series("estimate", figures, pl.String), problems=text_frame(frame.select("num_problems")).to_series()
    )
    best = pl.Series([False] * frame.height, dtype=pl.Boolean)
    if {"model", "measure", "candidates"} <= set(frame.columns):
        best = (
            frame.with_columns(KIND)
            .select(is_best(["kind", *(c for c in _COMPARABLE if c in frame.columns)]))
            .to_series()
        )
    return ReportTable(
        name, title, frame, with_marks(shown, marks), notes, {(int(row), "estimate") for row in best.arg_true()}
    )


def with_marks(shown: pl.DataFrame, marks: Sequence[str]) -> pl.DataFrame:
    """The frame with the letters of `note_marks` as its last column, if there are any."""
    return shown.with_columns(pl.Series(MARK, marks, pl.String)) if any(marks) else shown


def is_numeric(cells: Iterable[str]) -> bool:
    """Are these cells of figures, to be aligned at the right?"""
    return all(not cell or _NUMBER.match(cell) for cell in cells)


def parts(cell: str) -> tuple[str, str, str]:
    """Figure, interval, and what follows, of a cell of figures.

    >>> parts("50.0 [25.0, 75.0] (1/2)")
    ('50.0', ' [25.0, 75.0]', ' (1/2)')
    """
    figure, *rest = _INTERVAL.split(cell, maxsplit=1)
    return (figure, rest[0], rest[1]) if rest else (figure, "", "")


# --- terminal ------------------------------------------------------------------------------------


def rich_table(table: ReportTable) -> Table:
    """A terminal table; its cells are data, so markup in them is not interpreted."""
    out = Table(
        title=escape(table.title) if table.title else None,
        title_justify="left",
        title_style="bold",
        header_style="bold",
    )
    for column in table.shown.columns:
        out.add_column(escape(column), justify="right" if is_numeric(table.shown[column]) else "left", overflow="fold")
    for i, row in enumerate(table.shown.rows()):
        if i in table.starts and i > 0:
            out.add_section()
        out.add_row(
            *(
                Text(c, style="bold" if (i, n) in table.best else "")
                for n, c in zip(table.shown.columns, row, strict=True)
            )
        )
    return out


def render(tables: Sequence[ReportTable], console: Console) -> None:
    """Print tables with their notes; a table without rows is only its title and notes."""
    for table in tables:
        if table.shown.height:
            console.print(rich_table(table))
        else:
            console.print(f"[bold]{escape(table.title)}[/bold]")
        for note in table.notes:
            console.print(f"  {escape(note)}", highlight=False)
        console.print()
