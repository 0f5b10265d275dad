"""Errors of the file system that safetensors hides, when it writes a file of tensors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NUMBER = re.compile(r"\(os error ([0-9]+)\)")


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Raise an error of the file system as OSError, with its number and this path.

    safetensors raises SafetensorError for all errors, so a full disk would look like a damaged file.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as e:
        number = _NUMBER.search(str(e))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from e
