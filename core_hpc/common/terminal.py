"""What all command lines share: the console, and the form of error messages and time spans."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.markup import escape

LOG_WIDTH = 120


def standard_console() -> Console:
    """Return a console on standard output.

    Where standard output is not a terminal (a log file), the console is `LOG_WIDTH` columns wide.
    Otherwise rich would squeeze tables into 80 columns.
    """
    return Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else LOG_WIDTH)


def show_error(message: object) -> None:
    """Print a message for the user on standard error, without a traceback."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/bold red] {escape(str(message))}")


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
