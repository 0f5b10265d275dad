"""What all command lines share: the console, and the form of error messages and time spans.

Names, subjects and answers come from files and models. Their control characters would move the
cursor, change colours or rename the window of a terminal. `PlainConsole` shows them as text, and is
the only console of this project.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

LOG_WIDTH = 120
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""C0 without tab and line feed, delete, C1, separators of lines, and marks that turn the direction of text."""


def printable(text: str) -> str:
    r"""The text with every control character as its escape. Tabs and line feeds stay.

    >>> printable("a\x1b[31mb\r\n")
    'a\\x1b[31mb\\x0d\n'
    """
    return _CONTROL.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class PlainConsole(Console):
    """A console on which text from files and models cannot control the terminal.

    Its own colours and cursor movements are not text, and stay. `:a:` is text, not the name of a picture.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"emoji": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        # Before the layout, so that the width of a column is that of the visible text.
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control is None and _CONTROL.search(segment.text):
                yield Segment(printable(segment.text), segment.style)
            else:
                yield segment


def standard_console() -> PlainConsole:
    """Return a console on standard output.

    Where standard output is not a terminal (a log file), the console is `LOG_WIDTH` columns wide.
    Otherwise rich would squeeze tables into 80 columns.
    """
    return PlainConsole(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else LOG_WIDTH)


def show_error(message: object) -> None:
    """Print a message for the user on standard error, without a traceback."""
    console = PlainConsole(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]error:[/bold red] {escape(str(message))}")


def duration(seconds: float) -> str:
    """Write a time span for a human reader.

    >>> duration(42), duration(125), duration(7300)
    ('42 s', '2 min 05 s', '2 h 01 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
