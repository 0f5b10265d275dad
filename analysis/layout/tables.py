"""The layout of a table for a reader, and its output on the terminal.

The input is a tidy frame of another module. The output is a `ReportTable`: the tidy frame, and
the same numbers formatted as text. Text formats for files are in `layout/formats.py`. This module
computes no estimate.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from string import ascii_lowercase

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from analysis.stats.intervals import ESTIMATE_COLUMNS

UNDEFINED = "–"
MARK = " "
"""Name of the column that holds the letters of `note_marks`. The column needs no title."""

_NUMBER = re.compile(r"[+-]?[\d.]|–")
_INTERVAL = re.compile(r"( \[[^\]]*\])")
_COMPARABLE = ("run", "by", "value", "phase", "iteration", "candidates")
"""Rows that agree in these columns compare models on the same problems and at the same budget."""

KIND = pl.col("measure").str.split("_").list.last().alias("kind")
"""Kind of a measure: team_pass and matched_pass are of the kind pass."""


@dataclass(frozen=True)
class ReportTable:
    """One table of a report."""

    name: str  # stem of its file names
    title: str
    frame: pl.DataFrame  # tidy; written to CSV and JSON
    shown: pl.DataFrame  # text only; written to all other formats
    notes: list[str] = field(default_factory=list)
    _: KW_ONLY
    best: Collection[tuple[int, str]] = ()  # (row, column) of the best cells of `shown`
    starts: Collection[int] = ()  # rows of `shown` that begin a group
    links: Mapping[int, str] = field(default_factory=dict)  # row of `shown` -> address of a page about it


def percent(estimate: float | None, low: float | None, high: float | None, *, signed: bool = False) -> str:
    """A fraction and its interval in percent; UNDEFINED when the estimate is None.

    >>> percent(0.5, 0.25, 0.75), percent(0.031, None, None, signed=True)
    ('50.0 [25.0, 75.0]', '+3.1')
    """
    return _with_interval(estimate, low, high, scale=100, form="+.1f" if signed else ".1f")


def coefficient(
    estimate: float | None, low: float | None, high: float | None, *, signed: bool = False, digits: int = 2
) -> str:
    """A number and its interval; UNDEFINED when the estimate is None. `signed`: a plus sign is shown."""
    return _with_interval(estimate, low, high, scale=1, form=f"{'+' if signed else ''}.{digits}f")


def _with_interval(estimate: float | None, low: float | None, high: float | None, *, scale: float, form: str) -> str:
    if estimate is None:
        return UNDEFINED
    text = format(estimate * scale, form)
    return text if low is None or high is None else f"{text} [{low * scale:{form}}, {high * scale:{form}}]"


def number(value: float | None) -> str:
    """A number as text: four decimals, three digits if it is very small; empty when it is None.

    >>> number(0.416666), number(4e-05), number(12345.6), number(0.0)
    ('0.4167', '4e-05', '12,346', '0')
    """
    if value is None:
        return ""
    if abs(value) < 1e-12:  # 0, up to rounding
        return "0"
    if not math.isfinite(value) or abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}".rstrip("0").rstrip(".")


# --- layout --------------------------------------------------------------------------------------


def laid_out(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> pl.DataFrame:
    """Rows of any values as a frame of text; None becomes an empty cell."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    return pl.DataFrame(cells, schema=dict.fromkeys(columns, pl.String), orient="row")


def text_frame(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with every cell as text."""
    rows = [[number(cell) if isinstance(cell, float) else cell for cell in row] for row in frame.rows()]
    return laid_out(frame.columns, rows)


def group_starts(keys: Sequence[object]) -> list[int]:
    """Rows whose key differs from the row above, where a group begins. The first row is not one.

    >>> group_starts(["a", "a", "b", "a"])
    [2, 3]
    """
    return [i for i in range(1, len(keys)) if keys[i] != keys[i - 1]]


def note_marks(notes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Letters that mark the notes of rows, and the lines that explain the letters.

    A note of more than half of the rows gets a line without a letter.

    Args:
        notes: one text per row. Several notes are joined by "; "; an empty text means no note.

    Returns:
        The mark of each row, and the explanations.

    >>> note_marks(["few; short", "few", "few; short", "few", "none"])
    (['a', '', 'a', '', 'b'], ['4 of 5 rows: few', 'a: short', 'b: none'])
    >>> note_marks(["few; few", "few", ""])
    (['', '', ''], ['2 of 3 rows: few'])
    """
    # A row that has a note twice, for two of its estimates, counts once.
    per_row = [list(dict.fromkeys(part for part in note.split("; ") if part)) for note in notes]
    num = Counter(part for parts in per_row for part in parts)
    common = [part for part, n in num.items() if 2 * n > len(notes)]
    letters = {part: _letter(i) for i, part in enumerate(part for part in num if part not in common)}
    lines = [part if num[part] == len(notes) else f"{num[part]} of {len(notes)} rows: {part}" for part in common]
    marks = [", ".join(letters[part] for part in parts if part in letters) for parts in per_row]
    return marks, [*lines, *(f"{letter}: {part}" for part, letter in letters.items())]


def note_counts(notes: Iterable[str]) -> list[str]:
    """Each note once, with the number of estimates that have it.

    For tables without room for a note per row; the CSV file has the notes row by row.

    >>> note_counts(["few; short", "", "few"])
    ['2 of 3 estimates: few', '1 of 3 estimates: short']
    """
    notes = list(notes)
    parts = Counter(part for note in notes for part in note.split("; ") if part)
    return [f"{n} of {len(notes)} estimates: {part}" for part, n in parts.items()]


def _letter(i: int) -> str:
    return ascii_lowercase[i % 26] * (i // 26 + 1)


def is_best(by: Sequence[str]) -> pl.Expr:
    """True for the highest estimate of each group, rounded to the digits that are shown.

    No row of a group is best when only one of its rows has an estimate.

    >>> pl.DataFrame({"k": [1, 1, 2], "estimate": [0.2, 0.3, 0.1]}).select(is_best(["k"])).to_series().to_list()
    [False, True, False]
    """
    shown = pl.col("estimate").round(3)
    return ((shown == shown.max().over(by)) & (shown.count().over(by) > 1)).fill_null(value=False)


def tidy_table(frame: pl.DataFrame, *, name: str, title: str) -> ReportTable:
    """A tidy frame as a `ReportTable`, without the columns that have no value.

    Each estimate is shown with its interval, and notes are listed below the table. Where models are
    compared at the same budget (`candidates`), the best estimate of each kind of measure is marked.
    """
    labels = [c for c in frame.columns if c not in ESTIMATE_COLUMNS and frame[c].null_count() < frame.height]
    shown = text_frame(frame.select(labels))
    if not set(ESTIMATE_COLUMNS) <= set(frame.columns):
        return ReportTable(name, title, frame, shown)
    cells = [
        f"{number(estimate) or UNDEFINED}{f' [{number(low)}, {number(high)}]' if low is not None else ''}"
        for estimate, low, high in frame.select("estimate", "low", "high").iter_rows()
    ]
    marks, notes = note_marks(frame["note"].to_list())
    num_problems = text_frame(frame.select("num_problems")).to_series()
    shown = shown.with_columns(pl.Series("estimate", cells, pl.String), problems=num_problems)
    best = pl.Series([False] * frame.height, dtype=pl.Boolean)
    if {"model", "measure", "candidates"} <= set(frame.columns):
        group = ["kind", *(c for c in _COMPARABLE if c in frame.columns)]
        best = frame.with_columns(KIND).select(is_best(group)).to_series()
    best_cells = {(int(row), "estimate") for row in best.arg_true()}
    return ReportTable(name, title, frame, with_marks(shown, marks), notes, best=best_cells)


def with_marks(shown: pl.DataFrame, marks: Sequence[str]) -> pl.DataFrame:
    """The frame with the letters of `note_marks` as its last column, if any row has one."""
    return shown.with_columns(pl.Series(MARK, marks, pl.String)) if any(marks) else shown


def is_numeric(cells: Iterable[str]) -> bool:
    """Whether all cells are numbers or empty, so that the column is aligned at the right."""
    return all(not cell or _NUMBER.match(cell) for cell in cells)


def parts(cell: str) -> tuple[str, str, str]:
    """The number, the interval and the remaining text of a numeric cell.

    >>> parts("50.0 [25.0, 75.0] (1/2)")
    ('50.0', ' [25.0, 75.0]', ' (1/2)')
    """
    value, *rest = _INTERVAL.split(cell, maxsplit=1)
    return (value, rest[0], rest[1]) if rest else (value, "", "")


# --- terminal ------------------------------------------------------------------------------------


def rich_table(table: ReportTable) -> Table:
    """A terminal table. Markup in a cell is not interpreted."""
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
        cells = zip(table.shown.columns, row, strict=True)
        out.add_row(*(Text(cell, style="bold" if (i, column) in table.best else "") for column, cell in cells))
    return out


def render(tables: Sequence[ReportTable], console: Console) -> None:
    """Print tables with their notes. A table without rows is printed as its title and notes."""
    for table in tables:
        if table.shown.height:
            console.print(rich_table(table))
        else:
            console.print(f"[bold]{escape(table.title)}[/bold]")
        for note in table.notes:
            console.print(f"  {escape(note)}", highlight=False)
        console.print()
