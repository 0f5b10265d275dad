"""A table as text of a file: CSV, JSON, Markdown, LaTeX, HTML, all from one frame.

In: a `ReportTable`. Out: text. CSV and JSON hold the tidy frame as it is; the other formats hold what
is laid out for reading (tables.py). Everything in a table is data: no cell can end its table or add markup.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence

from analysis.layout.tables import ReportTable, is_numeric, parts

FORMATS = ("table", "csv", "json", "markdown", "latex", "html")
"""Formats of the command line; `table` is the terminal's (tables.render)."""

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
    """A table as csv, json (its tidy frame), markdown, latex or html text (as it is laid out).

    Raises:
        ValueError: unknown format.
    """
    if form == "csv":
        return table.frame.write_csv()
    if form == "json":
        return table.frame.write_json() + "\n"
    if form not in ("markdown", "latex", "html"):
        raise ValueError(f"unknown format {form!r}")
    return {"markdown": to_markdown, "latex": to_latex, "html": to_html}[form](table)


def to_markdown(table: ReportTable) -> str:
    """Title, a Markdown table and its notes."""

    def text(content: str) -> str:
        return re.sub(r"([\\|*<`])", r"\\\1", content).replace("\n", " ")

    def cell(row: int, column: str, content: str) -> str:
        if (row, column) not in table.best:
            return text(content)
        figure, interval, rest = parts(content)
        return f"**{text(figure)}**{text(interval + rest)}"

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
    """Text as LaTeX shows it in any encoding; what it has no letter for becomes the letter's number.

    >>> print(latex_text("a_b -> 50 % {x} 数"))
    a\\_b $\\rightarrow$ 50 \\% \\{x\\} [U+6570]
    """
    return "".join(_LATEX.get(c) or (c if _is_plain(c) else f"[U+{ord(c):04X}]") for c in text.replace("->", "→"))


def _is_plain(c: str) -> bool:
    """Is this in every font: ASCII, or a letter of Latin-1 that is an ASCII one with an accent?"""
    return (c.isascii() and c.isprintable()) or ("\xa0" < c < "\u0100" and unicodedata.normalize("NFD", c)[0].isascii())


def to_latex(table: ReportTable) -> str:
    """A table environment that needs the package booktabs and no other."""
    columns = table.shown.columns
    numeric = [is_numeric(table.shown[c]) for c in columns]

    def cell(row: int, index: int, content: str) -> str:
        if not numeric[index]:
            return latex_text(content)
        figure, interval, rest = (re.sub(r"(^|[\s\[])-(?=\d)", r"\1$-$", latex_text(part)) for part in parts(content))
        figure = rf"\textbf{{{figure}}}" if (row, columns[index]) in table.best else figure
        return figure + (rf" {{\scriptsize {interval.strip()}}}" if interval else "") + rest

    def line(cells: Sequence[str]) -> str:
        # After \\ or a rule, a [ would begin an optional argument, a * a starred form.
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
        lines += [r"\addlinespace"] * (i in table.starts and i > 0) + [
            line([cell(i, j, content) for j, content in enumerate(row)])
        ]
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.notes:
        lines += [
            r"\begin{flushleft}\footnotesize",
            "\\par\n".join(latex_text(note) for note in table.notes),
            r"\end{flushleft}",
        ]
    return "\n".join([*lines, r"\end{table}", ""])


def to_html(table: ReportTable) -> str:
    """A plain table with its title as caption, and its notes below."""
    columns = table.shown.columns
    numeric = [is_numeric(table.shown[c]) for c in columns]

    def element(tag: str, index: int, inner: str) -> str:
        return f'<{tag} class="number">{inner}</{tag}>' if numeric[index] else f"<{tag}>{inner}</{tag}>"

    def cell(row: int, index: int, content: str) -> str:
        figure, interval, rest = (
            html.escape(part) for part in (parts(content) if numeric[index] else (content, "", ""))
        )
        figure = f"<strong>{figure}</strong>" if (row, columns[index]) in table.best else figure
        return element("td", index, f"{figure}{f'<small>{interval}</small>' if interval else ''}{rest}")

    lines = ["<table>", f"<caption>{html.escape(table.title)}</caption>"]
    if table.shown.height:
        lines.append(
            f"<thead><tr>{''.join(element('th', j, html.escape(c)) for j, c in enumerate(columns))}</tr></thead>"
        )
        lines.append("<tbody>")
        for i, row in enumerate(table.shown.rows()):
            start = ' class="start"' if i in table.starts else ""
            lines.append(f"<tr{start}>{''.join(cell(i, j, content) for j, content in enumerate(row))}</tr>")
        lines.append("</tbody>")
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    return "\n".join([*lines, "</table>", *([f"<ul>{notes}</ul>"] if notes else []), ""])
