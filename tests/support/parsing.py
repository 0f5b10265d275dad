"""Parsers of HTML, LaTeX and Markdown output, independent of the code that writes it.

This module contains no tests.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "hr"}


class Page(HTMLParser):
    """Tables, text and tags of an HTML page. Fails when tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.strong: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in VOID:
            return
        self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open and {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data
        if self._open and self._open[-1] == "strong":
            self.strong.append(data)


ESCAPES = {
    r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"$\rightarrow$": "→",
    r"$-$": "-",
    r"\{": "{",
    r"\}": "}",
    r"\$": "$",
    r"\&": "&",
    r"\#": "#",
    r"\%": "%",
    r"\_": "_",
}
_TOKEN = re.compile(
    "|".join(re.escape(code) for code in sorted(ESCAPES, key=len, reverse=True)) + r"|\\[a-zA-Z]+\*?|[{}$&#%~^_\\]"
)


def latex_rows(text: str) -> list[list[str]]:
    """The rows of a tabular as plain text, header first. Fails when LaTeX could misread it."""
    assert re.findall(r"\\(begin|end)\{(\w+)\}", text) == _nested(text)
    body = re.search(r"\\toprule\n(.*)\\bottomrule", text, re.DOTALL)
    assert body is not None
    rows = []
    for line in body[1].splitlines():
        if line in (r"\midrule", r"\addlinespace"):
            continue
        assert line.endswith(r" \\"), line
        assert line[0] not in "[*", "LaTeX would read an argument of the previous line"
        rows.append([_plain(cell) for cell in re.split(r"(?<!\\)&", line.removesuffix(r"\\"))])
    return rows


def _nested(text: str) -> list[tuple[str, str]]:
    found = re.findall(r"\\(begin|end)\{(\w+)\}", text)
    stack = []
    for what, name in found:
        if what == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    return found


def _plain(cell: str) -> str:
    """The text that LaTeX shows for a cell. Fails on unknown commands and raw characters."""
    out, depth = [], 0
    position = 0
    for token in _TOKEN.finditer(cell):
        out.append(cell[position : token.start()])
        position, code = token.end(), token[0]
        if code in ESCAPES:
            out.append(ESCAPES[code])
        elif code in "{}":
            depth += 1 if code == "{" else -1
            assert depth >= 0
        else:
            assert code in (r"\textbf", r"\scriptsize"), f"{code} in {cell!r}"
    assert depth == 0
    return re.sub(r"\s+", " ", "".join(out) + cell[position:]).strip()


def markdown_rows(text: str) -> list[list[str]]:
    """The rows of the only Markdown table of a text, header first."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert all(set(cell.strip()) == {"-"} for cell in rows[1])
    return [
        [re.sub(r"\\([\\|*<`])", r"\1", re.sub(r"(?<!\\)\*\*", "", cell)).strip() for cell in row]
        for row in (rows[0], *rows[2:])
    ]
