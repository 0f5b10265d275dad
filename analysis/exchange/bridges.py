"""Records of other software as lines of `exchange/lines.py`.

In: a record of a file (`exchange/sources.py`) and the user's choices: where the file is from, which
of its fields is which of ours, the name of the model, and which records are wanted. Out: the fields
of lines, which `exchange/lines.py` checks, or a ValueError that explains the mistake. What differs
between the origins is in `exchange/converters.py`.

A problem without an id gets one that is made from its question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from analysis.exchange.converters import (
    CONVERTERS,
    LM_EVAL,
    TRL,
    VERL,
    Fields,
    Origin,
    as_verdict,
    names_of,
    text_of_messages,
)
from analysis.exchange.lines import LINES
from core_hpc.problems.files import id_of

FIELDS = tuple(dict.fromkeys(name for line in LINES.values() for name in line.model_fields))
"""Our fields, which a mapping can name."""

_NOT_NULL = ("token_count", "truncated")
_SAME = {LM_EVAL: ("filter",), TRL: ("mode", "step"), VERL: ("step",)}
"""Fields in which all records agree: other filters repeat the same completions, and other steps are
those of another policy."""


class Bridge:
    """The conversion of the records of one file, in their order."""

    def __init__(self, origin: Origin, file: Path) -> None:
        self.origin = origin
        self.file = file
        self._samples: Counter[tuple[str, str]] = Counter()  # completions of a model and problem so far
        self._first: dict[str, Any] = {}  # values of the fields `_SAME` on the first record

    def lines(self, record: Fields) -> Iterator[Fields]:
        """The lines of a record; none if it is not wanted.

        Raises:
            ValueError: the record cannot be converted.
        """
        if any(_as_shown(looked_up(record, path)) != value.casefold() for path, value in self.origin.where.items()):
            return
        if self.origin.is_plain:
            # A column of Parquet has a value in every row, so null is the same as missing.
            yield {name: value for name, value in record.items() if value is not None or name not in _NOT_NULL}
            return
        self._check_same(record)
        for line in CONVERTERS[self.origin.name](record, self.origin, self.file):
            yield self._complete(line, record)

    def _check_same(self, record: Fields) -> None:
        for name in _SAME.get(self.origin.name, ()):
            if name in record and self._first.setdefault(name, record[name]) != record[name]:
                first = self._first[name]
                raise ValueError(
                    f"'{name}' is {record[name]!r}, but {first!r} on earlier records, and these do not belong in one "
                    f"folder; choose with --where {name}={first}"
                )

    def _complete(self, line: Fields, record: Fields) -> Fields:
        """The line with the mapped fields, the model, an id, and the number of its sample."""
        mapped = {name: looked_up(record, path) for name, path in self.origin.fields.items()}
        line = {**line, **mapped}
        for name in ("text", "question"):
            if isinstance(line.get(name), list):
                line[name] = text_of_messages(line[name])
        if not isinstance(line.get("correct", False), bool):
            line["correct"] = as_verdict(line["correct"], self.origin.fields.get("correct", "correct"))
        if self.origin.model is not None:
            line["model"] = self.origin.model
        if "model" not in line:
            raise ValueError("no field 'model'; give the name of the model with --model NAME")
        if "completions" in line or "example_id" in line:
            return line
        if "problem" not in line:
            question = line.get("question")
            if not isinstance(question, str) or not question.strip():
                raise ValueError("no id and no question; name the field of one: --map problem=FIELD or question=FIELD")
            line["problem"] = id_of(question)
        if "sample" not in line:
            key = (str(line["model"]), str(line["problem"]))
            line["sample"] = self._samples[key]
            self._samples[key] += 1
        return line


def looked_up(record: Fields, path: str) -> Any:
    """The value of a field; `a.b` is the field b of the mapping a, `a.0` the first entry of a list.

    >>> looked_up({"doc": {"answer": "72"}}, "doc.answer")
    '72'

    Raises:
        ValueError: there is no such field.
    """
    if path in record:
        return record[path]
    value: Any = record
    for name in path.split("."):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            raise ValueError(f"no field '{path}' (the record has {names_of(record)})")
    return value


def _as_shown(value: Any) -> str:
    """The value as a user writes it on the command line: true, 3, strict-match."""
    return str(value).casefold()
