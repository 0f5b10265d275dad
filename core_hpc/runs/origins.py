"""Where the value of a mistake stands, if that is not the sweep file: in a base file or in a cluster profile.

In: messages that begin with the YAML path of a value, the merged content, and the files that it was
merged from. Out: the messages, with the file and its own path of the value. A value that was replaced
by `--set`, the grid or a higher file is not attributed to the file below.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NAMES = re.compile(r"[a-z_][a-z0-9_]*(?:\.[a-z0-9_]+)*")
_ABSENT = object()


@dataclass(frozen=True)
class Layer:
    """A file from which a sweep is merged, and its own content. `section` is where a profile belongs."""

    path: Path
    data: Any
    section: str = ""

    def at(self, path: Sequence[str]) -> Any:
        """The value at a path of the sweep; `_ABSENT` if this file has none."""
        return _at({self.section: self.data} if self.section else self.data, path)


def with_origins(mistakes: Iterable[str], data: Any, layers: Sequence[Layer]) -> list[str]:
    """The mistakes, with the files of the values that do not stand in the sweep file.

    Args:
        mistakes: messages, each `path: what is wrong`.
        data: the merged content.
        layers: the sweep file, and the files below it; each replaces values of the later ones.
    """
    return [message + _note(message, data, layers) for message in mistakes]


def _note(message: str, data: Any, layers: Sequence[Layer]) -> str:
    own, _, rest = message.partition(": ")
    if rest.startswith("is missing"):
        own = own.rpartition(".")[0]
    value = _at(data, own.split("."))
    paths = [own]
    if value is _ABSENT or isinstance(value, dict):  # a rule about several fields, which its message names
        named = _NAMES.findall(message)
        paths += [f"{own}.{name}" for name in named] + [name for name in named if "." in name]
    found = [_origin(path.split("."), data, layers) for path in dict.fromkeys(paths)]
    notes = [note for note in dict.fromkeys(found) if note]
    return f" [{', '.join(notes)}]" if notes else ""


def _origin(path: Sequence[str], data: Any, layers: Sequence[Layer]) -> str:
    """`path in file` of a value that stands in a file below the sweep file; otherwise empty."""
    value = _at(data, path)
    if value is _ABSENT:
        return ""
    for number, layer in enumerate(layers):
        own = layer.at(path)
        if own is _ABSENT and not any(isinstance(layer.at(path[:i]), list) for i in range(1, len(path))):
            continue
        is_same = own == value or (isinstance(own, dict) and isinstance(value, dict))
        if number == 0 or not is_same or list(path) == [layer.section]:
            return ""
        return f"{'.'.join(path[1:] if layer.section else path)} in {layer.path}"
    return ""


def _at(data: Any, path: Sequence[str]) -> Any:
    for part in path:
        if isinstance(data, dict) and part in data:
            data = data[part]
        elif isinstance(data, list) and part.isdecimal() and int(part) < len(data):
            data = data[int(part)]
        else:
            return _ABSENT
    return data
