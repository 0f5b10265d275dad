"""The message for text that is not valid YAML: the line, the likely cause, and what to write.

In: an error of PyYAML, and the text. Out: one line of text. PyYAML reports where its parser stopped
and in the words of its grammar; the cause is often on an earlier line. The text itself is read in
`yaml_text.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import yaml

SHOWN_CHARACTERS = 100
_NO_SPACE = re.compile(r"""^(\s*(?:-\s+)?)([A-Za-z_][\w.]*):([^\s:/].*)$""")
"""A key, a colon and its value without a space between them."""
_HAS_VALUE = re.compile(r":\s+\S")


def explain_yaml(error: yaml.YAMLError, text: str) -> str:
    """One line for an error of `parse_yaml`: line number, likely cause, and what to write instead."""
    if isinstance(error, yaml.reader.ReaderError):
        number = text[: error.position].count("\n") + 1
        code = error.character if isinstance(error.character, int) else ord(error.character[:1])
        return f"line {number}: the character U+{code:04X} is not allowed; remove it"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    lines = text.splitlines()
    found = _Mistake(error, lines)
    number, cause = next((c for cause in CAUSES if (c := cause(found)) is not None), (found.last, found.problem))
    shown = lines[number - 1].strip() if number <= len(lines) else ""
    if len(shown) > SHOWN_CHARACTERS:
        shown = f"{shown[:SHOWN_CHARACTERS]}..."
    return f"line {number}: {cause}" + (f". The line is: `{shown}`" if shown else "")


class _Mistake:
    """An error of PyYAML, and the lines of the text.

    Attributes:
        problem: what the parser did not expect, in its own words.
        context: what it was reading.
        first: number of the line at which it began to read this, from 1.
        last: number of the line at which it stopped.
    """

    def __init__(self, error: yaml.MarkedYAMLError, lines: list[str]) -> None:
        assert error.problem_mark is not None
        self.lines = lines
        self.problem = error.problem or "cannot be read"
        self.context = error.context or ""
        self.last = error.problem_mark.line + 1
        self.column = error.problem_mark.column
        start = error.context_mark or error.problem_mark
        self.first, self.first_column = start.line + 1, start.column

    def line(self, number: int) -> str:
        return self.lines[number - 1] if 0 < number <= len(self.lines) else ""


_Cause = tuple[int, str] | None


def _tab(m: _Mistake) -> _Cause:
    """A tab where YAML wants spaces: the parser stops at it, or reads the line as part of the one before."""
    for number in (m.last, m.first):
        line = m.line(number)
        at_tab = number == m.last and line[m.column : m.column + 1] == "\t"
        if at_tab or "\t" in line[: len(line) - len(line.lstrip())]:
            return number, "a tab, where YAML allows only spaces; replace it with spaces"
    return None


def _open_quote(m: _Mistake) -> _Cause:
    if "quoted scalar" in m.context and "escape" not in m.problem:
        quote = m.line(m.first)[m.first_column : m.first_column + 1]
        return m.first, f"the quote {quote} is not closed; write the second {quote} at the end of the text"
    # A quote on a later line has closed it, so the parser stopped there.
    for number in range(max(1, m.first - 1), m.last):
        for quote in "\"'":
            value = re.search(rf"(?:[:,\[{{-]\s+|[\[{{]){quote}", m.line(number))
            if value and m.line(number).count(quote) % 2:
                return number, f"the quote {quote} is not closed; write the second {quote} at the end of the text"
    return None


def _escape(m: _Mistake) -> _Cause:
    if "escape" in m.problem or "hexadecimal" in m.problem:
        return m.last, "in double quotes, \\ begins a special character; use single quotes, or write \\\\ for one \\"
    return None


def _no_space(m: _Mistake) -> _Cause:
    if "simple key" not in m.context and "mapping values" not in m.problem:
        return None
    for number in dict.fromkeys((m.first, m.last)):
        if match := _NO_SPACE.match(m.line(number)):
            _, key, value = match.groups()
            return number, f"a space is missing after the colon; write `{key}: {value.strip()[:SHOWN_CHARACTERS]}`"
    if "simple key" in m.context:
        return m.first, "this is neither `key: value` nor the member of a list, `- value`"
    return None


def _first_character(m: _Mistake) -> _Cause:
    character = m.line(m.last)[m.column : m.column + 1]
    if "cannot start any token" in m.problem or (character == "%" and "directive" in m.context + m.problem):
        return m.last, f"a value cannot begin with {character}; put it in quotes"
    return None


def _second_document(m: _Mistake) -> _Cause:
    if "another document" not in m.problem:
        return None
    return m.last, "a second document begins here; a file describes one sweep, so write the other into its own file"


def _merge_key(m: _Mistake) -> _Cause:
    if "yaml.org,2002:merge" not in m.problem:
        return None
    return m.last, "the key << is not supported; write the fields out, or inherit them from a file with `base: FILE`"


def _anchor_or_tag(m: _Mistake) -> _Cause:
    match = re.search(r"[*!&][^\s,\]}]*", m.line(m.last)[m.column :]) or re.search(r"[*!&]\S*", m.line(m.last))
    shown = match[0][:SHOWN_CHARACTERS] if match else ""
    if "undefined alias" in m.problem or "alias" in m.context:
        return m.last, f"`{shown}` refers to an anchor that does not exist; put a text that begins with * in quotes"
    if "tag" in m.problem or "tag" in m.context:
        return m.last, f"`{shown}` would be a YAML tag, which is not allowed; put a text that begins with ! in quotes"
    return None


def _open_bracket(m: _Mistake) -> _Cause:
    if "flow" not in m.context:
        return None
    bracket = "[" if "sequence" in m.context else "{"
    if m.last > m.first or m.problem.endswith(("'}'", "']'", "'<stream end>'")):
        closing = "]" if bracket == "[" else "}"
        return m.first, f"the {bracket} is not closed; write {closing} after the last value"
    return m.first, "a comma is missing, or a text that contains `: ` needs quotes"


def _indentation(m: _Mistake) -> _Cause:
    line = m.line(m.last)
    before = next((n for n in range(m.last - 1, 0, -1) if m.line(n).strip()), 0)
    is_first = not line[: m.column].strip(" -")
    if "mapping values" in m.problem:
        own_key = line[: m.column].strip(" -")
        if _HAS_VALUE.search(own_key) or before == 0 or _indent(line) <= _indent(m.line(before)):
            return m.last, "a text that contains `: ` needs quotes"
        return m.last, _spaces(line) + f", further than line {before}, which already has a value; align the two lines"
    if "block" in m.context + m.problem and not is_first and line[: m.column].rstrip().endswith(("'", '"')):
        return m.last, "there is more text after the quote; put the whole value in quotes"
    if "block" in m.context or "block" in m.problem:
        start = m.line(m.first)
        return m.last, _spaces(line) + f", but line {m.first} by {len(start[: m.first_column])}; align the two lines"
    return None


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _spaces(line: str) -> str:
    number = _indent(line)
    return f"this line is indented by {number} space{'s' * (number != 1)}"


CAUSES: tuple[Callable[[_Mistake], _Cause], ...] = (
    _tab,
    _escape,
    _open_quote,
    _no_space,
    _first_character,
    _second_document,
    _merge_key,
    _anchor_or_tag,
    _open_bracket,
    _indentation,
)
"""Likely causes, the most certain first. The first that fits is reported."""
