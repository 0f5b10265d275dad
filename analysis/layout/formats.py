"""A table as text: CSV, JSON, Markdown, LaTeX and HTML.

The input is a `ReportTable`. CSV and JSON contain its tidy frame; the other formats contain the
cells as `layout/tables.py` formats them. All special characters of a format are escaped: no cell
can end its table or add markup.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence

import polars as pl

from analysis.layout.tables import ReportTable, is_numeric, parts

FORMATS = ("table", "csv", "json", "markdown", "latex", "html")
"""Values of the option --format; `table` is printed by `tables.render`."""

_FORMULA = r"^([=+\-@].|[\t\r\n])"
_NUMBER = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "→": r"$\rightarrow$",
    "\n": " ",
}


def table_text(table: ReportTable, form: str) -> str:
    """A table as csv or json (the tidy frame), or as markdown, latex or html (the formatted cells).

    Raises:
        ValueError: unknown format.
    """
    if form == "csv":
        return csv_text(table.frame)
    if form == "json":
        return table.frame.write_json() + "\n"
    if form not in ("markdown", "latex", "html"):
        raise ValueError(f"unknown format {form!r}")
    return {"markdown": to_markdown, "latex": to_latex, "html": to_html}[form](table)


def csv_text(frame: pl.DataFrame) -> str:
    """A frame as CSV in which a spreadsheet takes no text for a formula.

    Spreadsheets run cells that begin with one of `=+-@`, a tab or a line break. Such text gets an
    apostrophe before it, as spreadsheets write text themselves. Numbers stay as they are, also where
    they are text. The names of columns are treated in the same way.
    """
    safe = {}
    for name in (name for name, kind in frame.schema.items() if kind == pl.String):
        text = pl.col(name)
        runs = text.str.contains(_FORMULA) & ~text.str.contains(_NUMBER)
        safe[name] = pl.when(runs).then(pl.concat_str(pl.lit("'"), text)).otherwise(text)
    names = {name: f"'{name}" for name in frame.columns if re.match(_FORMULA, name)}
    return frame.with_columns(**safe).rename(names).write_csv()


def to_markdown(table: ReportTable) -> str:
    """The title, a Markdown table and the notes."""

    def text(content: str) -> str:
        # A closing bracket matters only in a link or an image; those of intervals stay readable.
        return re.sub(r"([\\|*<`]|\](?=[(\[:]))", r"\\\1", content).replace("\n", " ")

    def cell(row: int, column: str, content: str) -> str:
        if (row, column) not in table.best:
            return text(content)
        value, interval, rest = parts(content)
        return f"**{text(value)}**{text(interval + rest)}"

    columns = table.shown.columns
    lines = [[text(column) for column in columns], ["---"] * len(columns)]
    lines += [
        [cell(i, c, content) for c, content in zip(columns, row, strict=True)]
        for i, row in enumerate(table.shown.rows())
    ]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines) if table.shown.height else ""
    notes = "\n".join(f"- {text(note)}" for note in table.notes)
    return "\n\n".join(part for part in (text(table.title), body, notes) if part) + "\n"


def latex_text(text: str) -> str:
    """Text escaped for LaTeX. A character that not every font has becomes its code point.

    >>> print(latex_text("a_b -> 50 % {x} 数"))
    a\\_b $\\rightarrow$ 50 \\% \\{x\\} [U+6570]
    """
    return "".join(_LATEX.get(c) or (c if _is_plain(c) else f"[U+{ord(c):04X}]") for c in text.replace("->", "→"))


def _is_plain(c: str) -> bool:
    """Whether every font has the character: ASCII, or a Latin-1 letter with an accent."""
    return (c.isascii() and c.isprintable()) or ("\xa0" < c < "\u0100" and unicodedata.normalize("NFD", c)[0].isascii())


def to_latex(table: ReportTable) -> str:
    """A LaTeX table environment; it needs the package booktabs only."""
    columns = table.shown.columns
    numeric = [is_numeric(table.shown[c]) for c in columns]

    def cell(row: int, index: int, content: str) -> str:
        if not numeric[index]:
            return latex_text(content)
        value, interval, rest = (re.sub(r"(^|[\s\[])-(?=\d)", r"\1$-$", latex_text(part)) for part in parts(content))
        value = rf"\textbf{{{value}}}" if (row, columns[index]) in table.best else value
        return value + (rf" {{\scriptsize {interval.strip()}}}" if interval else "") + rest

    def line(cells: Sequence[str]) -> str:
        # After \\ or a rule, LaTeX reads [ as an optional argument and * as a starred form.
        guard = "{}" if cells[0][:1] in ("[", "*") else ""
        return f"{guard}{' & '.join(cells)} \\\\"

    alignment = "".join("r" if n else "l" for n in numeric)
    lines = [
        r"\begin{table}[htbp]",
        r"\centering",
        rf"\caption{{{latex_text(table.title)}}}",
        rf"\label{{tab:{table.name}}}",
    ]
    lines += [r"\footnotesize\setlength{\tabcolsep}{3pt}", rf"\begin{{tabular}}{{{alignment}}}", r"\toprule"]
    lines += [line([latex_text(c) for c in columns]), r"\midrule"]
    for i, row in enumerate(table.shown.rows()):
        if i in table.starts and i > 0:
            lines.append(r"\addlinespace")
        lines.append(line([cell(i, j, content) for j, content in enumerate(row)]))
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.notes:
        lines += [
            r"\begin{flushleft}\footnotesize",
            "\\par\n".join(latex_text(note) for note in table.notes),
            r"\end{flushleft}",
        ]
    return "\n".join([*lines, r"\end{table}", ""])


def to_html(table: ReportTable) -> str:
    """An HTML table with its title as caption, and a list of its notes."""
    columns = table.shown.columns
    numeric = [is_numeric(table.shown[c]) for c in columns]

    def element(tag: str, index: int, inner: str) -> str:
        return f'<{tag} class="number">{inner}</{tag}>' if numeric[index] else f"<{tag}>{inner}</{tag}>"

    def cell(row: int, index: int, content: str) -> str:
        value, interval, rest = map(html.escape, parts(content) if numeric[index] else (content, "", ""))
        value = f"<strong>{value}</strong>" if (row, columns[index]) in table.best else value
        if index == 0 and row in table.links:
            value = f'<a href="{html.escape(table.links[row])}">{value}</a>'
        return element("td", index, f"{value}{f'<small>{interval}</small>' if interval else ''}{rest}")

    lines = ["<table>", f"<caption>{html.escape(table.title)}</caption>"]
    if table.shown.height:
        head = "".join(element("th", j, html.escape(c)) for j, c in enumerate(columns))
        lines.append(f"<thead><tr>{head}</tr></thead>")
        lines.append("<tbody>")
        for i, row in enumerate(table.shown.rows()):
            start = ' class="start"' if i in table.starts else ""
            lines.append(f"<tr{start}>{''.join(cell(i, j, content) for j, content in enumerate(row))}</tr>")
        lines.append("</tbody>")
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    return "\n".join([*lines, "</table>", *([f"<ul>{notes}</ul>"] if notes else []), ""])
