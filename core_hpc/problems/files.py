"""Problems from files: reading JSONL, Parquet and CSV, and checking every row.

In: a file and a function that converts a row to a problem. Out: `Item`s. All bad rows of a file are
reported together in one InputError that names the file and the rows. The row formats of published
data sets are in `datasets.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl

from core_hpc.answers.kinds import LETTERS, known_kinds
from core_hpc.answers.verifier import verify
from core_hpc.common.encoding import why_not_utf8
from core_hpc.common.errors import InputError
from core_hpc.store import parquet
from core_hpc.store.schema import ATTRIBUTES, WRONG

SHOWN_MISTAKES = 10
MAX_ROWS, MAX_ROWS_VARIABLE = 1_000_000, "CORE_HPC_MAX_ROWS"
MAX_DEPTH = 50
"""Lists and objects inside each other in a row."""
_GOLD_WORDS = {
    "number": "a finite number",
    "integer": "an integer from 0 to 999",
    "latex": "LaTeX with matching braces and at most 512 characters",
    "letter": f"a letter from {LETTERS[0]} to {LETTERS[-1]}",
    "text": "text of at most 256 characters that has more than punctuation",
}


@dataclass(frozen=True)
class Item:
    """One problem of a source."""

    problem_id: str
    question: str
    gold: str
    metadata: Mapping[str, Any]
    answer_kind: str = "number"
    identity: str | None = None
    """The text that identifies the problem, if it is not the question (because of its options)."""

    @property
    def compared(self) -> str:
        """The text by which two problems are compared."""
        return self.question if self.identity is None else self.identity


class RowError(ValueError):
    """A row cannot be used. The message does not contain the number of the row."""


Row = dict[str, Any]
ParseRow = Callable[[Row, int], Item]
"""Converts a row and its 1-based number to a problem; raises RowError."""


def read_items(path: Path, container: str, parse: ParseRow, *, one_answer: bool = False) -> list[Item]:
    """The problems of a file.

    Args:
        path: the file.
        container: jsonl, parquet or csv.
        parse: converts a row to a problem.
        one_answer: whether a question that stands there again with another answer makes a bad row. A
            published data set has such rows, and its user cannot correct them.

    Raises:
        InputError: the file cannot be read or has bad rows; the message lists the first bad rows by
            number.
    """
    if not path.is_file():
        raise InputError(f"{path.absolute()}: no such file (problems.*.path is relative to the current folder)")
    limit = max_rows()
    if container == "parquet":
        _check_number(path, _num_rows(path), limit)
    place = "line" if container == "jsonl" else "row"
    items: list[Item] = []
    mistakes: list[str] = []
    first: dict[str, int] = {}
    asked: dict[str, tuple[int, Item]] = {}
    for number, row in _rows(path, container):
        if number > limit:
            _check_number(path, None, limit)
        try:
            if isinstance(row, RowError):
                raise row
            if depth_of(row) > MAX_DEPTH:
                raise RowError(f"more than {MAX_DEPTH} lists or objects inside each other")
            item = parse(row, number)
            if one_answer:
                earlier, same = asked.setdefault(id_of(item.question, item.metadata.get("options")), (number, item))
                _check_answer(item, same, f"{place} {earlier}")
            if item.problem_id in first:
                is_made = item.problem_id == id_of(item.question, item.metadata.get("options"))
                made = ", made from the question; remove one, or give both an 'id'" if is_made else ""
                raise RowError(f"{place} {first[item.problem_id]} has the same id {item.problem_id!r}{made}")
            first[item.problem_id] = number
            items.append(item)
        except RowError as e:
            mistakes.append(f"{place} {number}: {e}")
    if mistakes:
        raise InputError(_bad_rows(path, mistakes))
    if not items:
        raise InputError(f"{path}: the file has no problems")
    return items


def _check_answer(item: Item, earlier: Item, where: str) -> None:
    """Raise RowError if a problem contradicts an earlier one with the same question."""
    if item.gold == earlier.gold or verify(earlier.gold, item.gold, item.answer_kind) != WRONG:
        return
    raise RowError(
        f"the answer is {item.gold[:60]!r}, but {where} has the same question with the answer {earlier.gold[:60]!r}, "
        "and at most one of them can be right; correct the wrong answer, or remove its row"
    )


def max_rows() -> int:
    """Rows that a file may have, from the environment or MAX_ROWS.

    Raises:
        InputError: the variable is not a positive whole number.
    """
    text = os.environ.get(MAX_ROWS_VARIABLE, str(MAX_ROWS))
    if not text.isdecimal() or len(text) > 12 or int(text) == 0:
        raise InputError(f"{MAX_ROWS_VARIABLE}: {text[:60]!r} is not a number of rows, such as {MAX_ROWS}")
    return int(text)


def _num_rows(path: Path) -> int:
    """The number of rows of a Parquet file. Only its footer is read."""
    try:
        return int(parquet.collect(parquet.scan([path]).select(pl.len())).item())
    except (OSError, pl.exceptions.PolarsError) as e:
        raise InputError(f"{path}: cannot be read ({e})") from e


def _check_number(path: Path, num_rows: int | None, limit: int) -> None:
    """Raise InputError if a file has too many rows; `num_rows` is None if more than `limit` were read."""
    if num_rows is not None and num_rows <= limit:
        return
    found = f"{num_rows:,} rows" if num_rows is not None else f"more than {limit:,} rows"
    raise InputError(
        f"{path}: {found}, but at most {limit:,} are read, because all problems of a file are kept in memory (about 1 "
        "GB per million). Write the rows that you need into a file of their own, for example with "
        f"Polars (scan {path.name}, then .head({limit}) and .sink_parquet), or raise the limit: "
        f"export {MAX_ROWS_VARIABLE}={num_rows or 10 * limit}"
    )


def _bad_rows(path: Path, mistakes: Sequence[str]) -> str:
    if len(mistakes) == 1:
        return f"{path}, {mistakes[0]}"
    more = [f"  ... and {len(mistakes) - SHOWN_MISTAKES} more"] * (len(mistakes) > SHOWN_MISTAKES)
    return "\n".join([f"{path}: {len(mistakes)} bad rows", *(f"  - {m}" for m in mistakes[:SHOWN_MISTAKES]), *more])


def _rows(path: Path, container: str) -> Iterator[tuple[int, Row | RowError]]:
    """(number, row) of a file; a RowError replaces a line that is not a row."""
    try:
        if container == "parquet":
            yield from enumerate(parquet.read(path).iter_rows(named=True), start=1)
        elif container == "csv":
            some = pl.read_csv(path, infer_schema=False, glob=False, n_rows=max_rows() + 1)  # one more than may be
            yield from enumerate(some.iter_rows(named=True), start=1)
        else:
            with path.open(encoding="utf-8-sig") as f:  # a byte order mark is accepted
                yield from ((number, _json_row(line)) for number, line in enumerate(f, start=1) if line.strip())
    except UnicodeDecodeError as e:
        raise InputError(f"{path} {why_not_utf8(path)}") from e
    except (OSError, pl.exceptions.PolarsError) as e:
        raise InputError(f"{path}: cannot be read ({e})") from e


def _json_row(line: str) -> Row | RowError:
    if line.strip() in ("[", "{"):
        return RowError(f"only {line.strip()}, but JSON Lines has a whole object in each line")
    try:
        row = json.loads(line.rstrip())
    except json.JSONDecodeError as e:
        return RowError(f"not JSON ({e.msg} at column {e.colno})")
    except (ValueError, RecursionError) as e:  # an integer with thousands of digits, or thousands of brackets
        return RowError(f"JSON that cannot be parsed ({e})")
    return row if isinstance(row, dict) else RowError('not a JSON object, such as {"question": ..., "answer": ...}')


def depth_of(value: Any) -> int:
    """How many lists and mappings lie inside each other at most; 0 for anything else.

    >>> depth_of(1), depth_of({"a": []}), depth_of([[], [[1]]])
    (0, 2, 3)
    """
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (dict, list, tuple))]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def text_field(row: Row, field: str) -> str:
    """A field as text without surrounding spaces.

    Raises:
        RowError: the field is missing, empty, not finite, or neither text nor a number.
    """
    if field not in row:
        raise RowError(f"no field '{field}' (the row has {', '.join(map(str, row)) or 'none'})")
    value = row[field]
    if value is None:
        raise RowError(f"'{field}' is null")
    if isinstance(value, Decimal):
        value = str(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise RowError(f"'{field}' must be text or a number, not {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError(f"'{field}' is {value}, which is not a finite number")
    text = str(value).strip()
    if not text:
        raise RowError(f"'{field}' is empty")
    if not _is_unicode(text):
        raise RowError(f"'{field}' has half a character (a lone surrogate such as \\ud800), which UTF-8 cannot encode")
    return text


def gold_of(text: str, kind: str) -> str:
    """The canonical gold answer.

    Raises:
        RowError: the kind is unknown, or the text is not an answer of this kind.
    """
    kinds = known_kinds()
    if kind not in kinds:
        raise RowError(f"unknown answer_kind {kind!r}; known: {', '.join(kinds)}")
    gold = kinds[kind].gold(text)
    if gold is None:
        raise RowError(f"the answer {text[:60]!r} is not {_GOLD_WORDS.get(kind, f'an answer of the kind {kind}')}")
    return gold


def folded(text: str) -> str:
    """A text without differences of case and white space, by which equal problems are found."""
    return " ".join(text.casefold().split())


def own_row(answer_kind: str) -> ParseRow:
    """The parser for the user's own files and functions. `answer_kind` is that of rows without one.

    Fields other than id, question, answer and answer_kind become metadata. A row without an id gets
    one that is made from its question and its options.
    """

    def parse(row: Row, number: int) -> Item:
        kind = text_field(row, "answer_kind") if row.get("answer_kind") is not None else answer_kind
        gold = gold_of(text_field(row, "answer"), kind)
        options, question = row.get("options"), text_field(row, "question")
        if kind == "letter":
            _check_shown(question, _options_with(gold, options))
        rest = {k: v for k, v in row.items() if k not in ("id", "question", "answer", "answer_kind")}
        problem_id = text_field(row, "id") if row.get("id") is not None else id_of(question, options)
        return Item(problem_id, question, gold, plain_metadata(rest), kind)

    return parse


def _options_with(gold: str, options: Any) -> list[Any]:
    """The texts of the options, one of which has the letter `gold`.

    They are a list, or a mapping from letters. In a Parquet file every row has every key, with null
    for those that it does not have. Anything else, such as a mapping with the keys `text` and `label`,
    is metadata and has no texts.

    Raises:
        RowError: no option has the letter.
    """
    if isinstance(options, list):
        if gold not in LETTERS[: len(options)]:
            raise RowError(f"the answer {gold} is not one of its {len(options)} options")
        return options
    if not isinstance(options, dict) or not {str(key).strip().upper() for key in options} <= set(LETTERS):
        return []
    by_letter = {str(key).strip().upper(): option for key, option in options.items() if option is not None}
    if gold not in by_letter:
        raise RowError(f"the answer {gold} is not one of its options {', '.join(by_letter)}"[:200])
    return list(by_letter.values())


def _check_shown(question: str, options: list[Any]) -> None:
    """Raise RowError if the question does not have an option: prompts show no other field."""
    texts = [str(option).removesuffix(".0") for option in options]
    shown = folded(question)
    for text in texts:
        if folded(text) not in shown:
            raise RowError(
                f"the question does not have the option {text[:60]!r}, and prompts show the question only; write the "
                f"options into the question, as {f'A) {texts[0]}'[:60]!r}, or remove the field 'options' if it has "
                "them in another form"
            )


def id_of(question: str, options: Any = None) -> str:
    """An id for a problem without one. The same content has the same id in every file.

    >>> id_of("What is 9 * 8?")
    'q-795aef6612cd'
    """
    content = question if options is None else json.dumps([question, options], default=str)
    return "q-" + hashlib.sha256(" ".join(content.split()).encode("utf-8", "replace")).hexdigest()[:12]


def plain_metadata(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as plain JSON values, and those of `ATTRIBUTES` as text.

    Raises:
        RowError: a field of `ATTRIBUTES` is a list or a mapping.
    """
    for name in ATTRIBUTES:
        if isinstance(fields.get(name), (list, dict)):
            raise RowError(f"'{name}' must be text or a number, not {type(fields[name]).__name__}")
    return {k: str(v) if k in ATTRIBUTES and v is not None else _plain(v) for k, v in fields.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    is_long = isinstance(value, int) and value.bit_length() > 63  # no reader of JSON in Polars takes it
    if value is None or (isinstance(value, (bool, int, float)) and not is_long):
        return value
    text = str(value)
    return text if _is_unicode(text) else text.encode("utf-8", "replace").decode("utf-8")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
