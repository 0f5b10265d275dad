"""A new file of a command, whose path the user names in an option.

In: the path and the text. Out: the file, or the message for its user. An existing file is never changed.
"""

from __future__ import annotations

from pathlib import Path

from core_hpc.common.errors import InputError


def write_new_file(path: Path, text: str, *, option: str, taken: str) -> None:
    """Write a new file.

    Args:
        path: of the file.
        text: its content.
        option: of the command line, by which the message begins.
        taken: what the message reports if there is such a file, and what to do.

    Raises:
        InputError: the file exists, or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as e:
        raise InputError(f"{option} {path}: {taken}") from e
    except OSError as e:
        raise InputError(f"{option} {path}: cannot be written: {e.strerror}") from e
