"""No text from a file or a model controls the terminal."""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path

import polars as pl
import pytest
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from analysis.layout.tables import ReportTable, laid_out, render
from core_hpc.common.terminal import PlainConsole, printable, show_error

ROOT = Path(__file__).parents[3]
HOSTILE = [
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\x1b]52;c;aGVsbG8=\x1b\\",
    "a\rb",
    "a\x08b",
    "\x9b31m",
    "a\x00b\x7f",
    "\u202eabc\u2066",
    "a\u2028b",
]
RICHS_OWN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""Colours and cursor movements that rich itself writes."""


def console() -> PlainConsole:
    return PlainConsole(file=io.StringIO(), force_terminal=True, color_system="standard", width=100)


def printed(to: PlainConsole) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_printable_text_has_no_control_characters_and_shows_them(text: str) -> None:
    shown = printable(f"{text}\t\n")
    assert printable(shown) == shown
    assert all(c.isprintable() or c in "\t\n" for c in shown)
    assert "\\" in shown
    assert printable("é 数 -> ümlaut\tx\n") == "é 数 -> ümlaut\tx\n"


@pytest.mark.parametrize("text", HOSTILE)
def test_every_kind_of_output_shows_control_characters_as_text(text: str) -> None:
    table = Table(title=escape(text))
    table.add_column(escape(text))
    table.add_row(escape(text))
    table.add_row(Text(text, style="bold"))
    report = ReportTable("t", text, pl.DataFrame(), laid_out([text], [[text]]), [text])
    out = console()
    out.print(text, markup=False)
    out.print(f"[red]{escape(text)}[/red]", soft_wrap=True)
    out.print(Group(table, Text(text)))
    out.rule(escape(text))
    render([report], out)
    with Live(Text(text), console=out, auto_refresh=False) as live:
        live.refresh()
    rest = RICHS_OWN.sub("", printed(out)).replace("\r", "")
    assert printable(rest) == rest
    first = re.escape(printable(text)[:8])
    assert len(re.findall(first, rest)) >= 9
    assert "\x1b[31m" in printed(out), "rich's own colour stays"


def test_columns_are_as_wide_as_what_is_shown() -> None:
    table = Table(box=None)
    table.add_column("a")
    table.add_column("b")
    table.add_row("\x1b[31mx", "y")
    table.add_row("zz", "y")
    out = PlainConsole(file=io.StringIO(), width=100)
    out.print(table)
    lines = printed(out).splitlines()[1:]
    assert lines[0].index("y") == lines[1].index("y")


def test_an_error_message_is_plain_too(capsys: pytest.CaptureFixture[str]) -> None:
    show_error("bad id \x1b[2J")
    assert capsys.readouterr().err == "error: bad id \\x1b[2J\n"


def test_no_module_makes_another_console() -> None:
    found = []
    for path in [*(ROOT / "core_hpc").rglob("*.py"), *(ROOT / "analysis").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console":
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []
