"""How a table looks: from a tidy frame to the terminal, Markdown, CSV and JSON.

In: frames of the other modules. Out: `ReportTable` (a tidy frame, and the same figures laid out for reading) and text.
Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

FORMATS = ("table", "csv", "json", "markdown")
UNDEFINED = "–"


@dataclass(frozen=True)
class ReportTable:
    """One table of a report."""

    name: str  # stem of its files
    title: str
    frame: pl.DataFrame  # tidy: what CSV gets
    shown: pl.DataFrame  # all text: what a reader gets
    notes: list[str] = field(default_factory=list)


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


def text_frame(frame: pl.DataFrame) -> pl.DataFrame:
    """Every cell as text, fractions with four decimals."""
    return frame.select(
        (pl.col(c).round(4).cast(pl.String) if dtype.is_float() else pl.col(c).cast(pl.String)).fill_null("")
        for c, dtype in frame.schema.items()
    )


def laid_out(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> pl.DataFrame:
    """Rows of anything as a frame of text."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    return pl.DataFrame(cells, schema=dict.fromkeys(columns, pl.String), orient="row")


def to_markdown(frame: pl.DataFrame) -> str:
    """A Markdown table of a frame of text."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(frame.columns), line(["---"] * frame.width), *(line(row) for row in frame.rows())])


def to_format(frame: pl.DataFrame, form: str) -> str:
    """A tidy frame as csv, json or markdown text.

    Raises:
        ValueError: unknown format.
    """
    if form == "csv":
        return frame.write_csv()
    if form == "json":
        return frame.write_json() + "\n"
    if form == "markdown":
        return to_markdown(text_frame(frame)) + "\n"
    raise ValueError(f"unknown format {form!r}")


def rich_table(frame: pl.DataFrame, title: str | None = None) -> Table:
    """A frame of text as a terminal table; it is data, so markup in it is not interpreted."""
    table = Table(title=escape(title) if title else None, title_justify="left", title_style="bold", header_style="bold")
    for column in frame.columns:
        numeric = all(not cell or cell == UNDEFINED or cell[0] in "+-0123456789" for cell in frame[column])
        table.add_column(escape(column), justify="right" if numeric else "left", overflow="fold")
    for row in frame.rows():
        table.add_row(*(escape(cell) for cell in row))
    return table


def render(tables: Sequence[ReportTable], console: Console) -> None:
    """Print tables with their notes; a table without rows is only its title and notes."""
    for table in tables:
        if table.shown.height:
            console.print(rich_table(table.shown, table.title))
        else:
            console.print(f"[bold]{escape(table.title)}[/bold]")
        for note in table.notes:
            console.print(f"  {escape(note)}", highlight=False)
        console.print()
