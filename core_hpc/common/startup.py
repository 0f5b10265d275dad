"""What every command line does before its imports, which may take seconds.

Only the standard library is imported here.
"""

from __future__ import annotations

import io
import os
import sys
from types import TracebackType


def begin_command() -> None:
    """Prepare this process for a user at a terminal.

    Ctrl-C has no traceback, also while modules are imported. A character that the terminal does not
    know is written as `?` instead of ending the command. Where Python reads names of files as ASCII,
    it starts again in UTF-8 mode, because Polars opens no other names.
    """
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    sys.excepthook = _show
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("\ninterrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
