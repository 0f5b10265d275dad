r"""Gold answers that stand in a hint as a value of its computation (METHOD.md section 1.3).

In: a hint without explicit answers (`hints.py`), the gold answer and its kind. Out: whether the
gold answer occurs in the hint, and the part of the hint before the step that computes it. These are
pure functions. `protocol.hint_leak` decides what happens with such a hint.

The gold answer stands in a hint as a *result* if it follows "=", "is" or a similar word, or if it
is the last value of the hint. Numbers are compared by value, formulas and words by their notation.
A letter is a value where it names an option; `answer_spans.py` removes most sentences that state one.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import NamedTuple

from core_hpc.answers.kinds import normalize_letter
from core_hpc.answers.latex import ASSIGNED, WORDS, clean_latex
from core_hpc.answers.latex_comparison import ONLY_WORDS
from core_hpc.answers.numbers import normalize_number
from core_hpc.protocol.answer_spans import CHECK_MARK, CONCLUSION, FITS
from core_hpc.protocol.compression import step_starts
from core_hpc.store.schema import LEAK_ANYWHERE, LEAK_NONE, LEAK_RESULT

_NUMBER = re.compile(
    r"(?<![\w.])(?P<top>[0-9]{1,3}(?:,[0-9]{3}){1,20}(?:\.[0-9]{1,64})?|[0-9]{1,128}(?:\.[0-9]{1,64})?|\.[0-9]{1,64})"
    # The end of a number. "2x" is not the number 2, but "18km" is 18.
    r"(?!\.?[0-9])(?![A-Za-z_](?![A-Za-z]))(?:/(?P<bottom>[1-9][0-9]{0,31})(?![\w/]))?"
    r"|\\[dt]?frac\s?\{(?P<over>[0-9]{1,32})\}\s?\{(?P<under>[0-9]{1,32})\}"
)
# "1 1/2", "1\\frac{1}{2}", "1½" and "½", as `normalize_number` reads them.
_MIXED = re.compile(
    r"(?<![\w.,/^*+])(?:[0-9]{1,9}(?:[ \t\u00a0]|\\[,; ]){1,4}[0-9]{1,9}/[1-9][0-9]{0,8}(?![\w/^*]|[.,][0-9])"
    r"|[0-9]{1,9}(?:[ \t\u00a0]|\\[,; ]){0,4}\\[dt]?frac\s?(?:[0-9]|\{[0-9]{1,9}\})\s?(?:[0-9]|\{[0-9]{1,9}\})"
    r"|[0-9]{0,9}[ \t\u00a0]?[½¼¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])"
)
_NEGATIVE = re.compile(r"(?:^|[^\s\w)}\].])\s{0,4}[-\u2212]\s{0,2}\Z|(?:^|[\s(\[{=])[-\u2212]\Z")
_BEFORE_RESULT = re.compile(
    r"(?:[=\uff1d\u2248\u2192]|\\(?:approx|equiv|to|rightarrow|Rightarrow)(?![a-z])"
    r"|(?<=[a-z])['\u2019]s\b"
    r"|(?<!there )\b(?:is|are|was|be|equals?|equal to|makes?|gives?|gets?|leaves?|totals?|yields?|becomes?"
    r"|equalling|making|giving|getting|leaving|totall?ing|yielding|(?:comes?|came|amounts?|adds? up|sums?) to)\b"
    r"|\b(?:total|sum|difference|product|result|answer):)"
    r"(?:\s|[$\u20ac\u00a3\u00a5*_`({<\[\\-]|(?:text|mathbf|mathrm)\{"
    r"|\b(?:about|only|exactly|just|a total of)\b){0,8}\Z",
    re.IGNORECASE,
)
_OPERATOR = re.compile(
    r"\s{0,3}(?:[-+*/\u00d7\u00f7^\u2212]|\\(?:times|cdot|div)(?![a-z])|[xX](?=\s{0,2}[0-9$]))"
    r"\s{0,3}[$({\\]{0,3}[0-9A-Za-z.]"
)
_LATEX_VALUE = re.compile(r"[0-9]{1,128}|\\[A-Za-z]{2,32}|=")
_SIZE = r"(?:\\(?:left|right|[Bb]ig{1,2}[lr]?)(?![A-Za-z]))?"
_WORD = re.compile(r"\w{1,128}")
_OPEN_END = re.compile(
    r"(?:\A|\n)[^\n]{0,8}(?:\\begin\{[a-z*]{1,16}\}|\\\[|\$\$|```\w{0,16})\Z|(?:\A|\n)[^\w\n]{1,64}\Z"
)
_MAX_OPEN_CHARS = 96
# Letters of options: "option B", "so (B).", "B fits", "(B)", and "B) 5 eV" at the beginning of a line.
_LETTER = re.compile(r"(?<![\w'\u2019\\-])[A-J](?![\w'\u2019\u2013-]|\s?=)")
_NAMED = re.compile(
    r"(?:\bthe\s)?\b(?:(?:option|choice|answer|letter|statement|alternative)s?|only)[\s:*_($`\[{]{1,8}\Z", re.IGNORECASE
)
_CONCLUDED = re.compile(rf"{CONCLUSION}[\s*_($`\[{{]{{0,8}}\Z", re.IGNORECASE)
_LETTER_END = re.compile(r"[*_)$`\]}]{0,8}(?:[.,;:!?]|\s*\Z|[ \t]*\n)|[*_]{0,3}\)")
_LETTER_FITS = re.compile(rf"[*_)$`\]}}.]{{0,8}}\s{{0,4}}{FITS}", re.IGNORECASE)
_CHECKED = re.compile(rf"[^\n]{{0,80}}{CHECK_MARK}")
_LABEL = re.compile(r"(?:\A|\n)[\s>*_(-]{0,16}\Z")
_PARENTHESIS = re.compile(r"(?<!\w)\(\Z")


class Value(NamedTuple):
    """A value of a hint: where it begins, and how it relates to the gold answer."""

    start: int
    is_gold: bool
    is_stated: bool
    """Whether it follows "=", "is" or a similar word, and is no operand."""


def leak_of(hint: str, gold: str, kind: str) -> str:
    """How the hint shows the gold answer: one of `schema.LEAKS`.

    >>> leak_of("4 + 7 = 11. We continue.", "11", "number"), leak_of("4 + 7 = 11.", "4", "number")
    ('result', 'anywhere')
    >>> leak_of("4 + 7 = 11.", "8", "number")
    'none'
    """
    values = values_of(hint, gold, kind)
    if any(value.is_gold and value.is_stated for value in values) or (values and values[-1].is_gold):
        return LEAK_RESULT
    return LEAK_ANYWHERE if any(value.is_gold for value in values) else LEAK_NONE


def cut_before_result(hint: str, gold: str, kind: str) -> str:
    """The hint up to the first step (sentence or line) whose result is the gold answer.

    The rest does not show the gold answer as a result; it may be empty.

    >>> cut_before_result("Add both. 4 + 7 = 11. So she has 11 eggs.", "11", "number")
    'Add both.'
    """
    values = values_of(hint, gold, kind)
    starts = step_starts(hint)
    end = len(hint)

    def step(position: int) -> int:
        return starts[bisect_right(starts, position) - 1]

    first = next((value.start for value in values if value.is_gold and value.is_stated), None)
    if first is not None:
        end = step(first)
    for value in reversed(values):
        if value.start >= end:
            continue
        if not value.is_gold:
            break
        end = step(value.start)
    if end == len(hint):
        return hint
    # The rest must not end with an open formula or code block.
    end = _without_space(hint, end)
    while (opened := _OPEN_END.search(hint, max(0, end - _MAX_OPEN_CHARS), end)) is not None:
        end = _without_space(hint, opened.start())
    return hint[:end]


def _without_space(text: str, end: int) -> int:
    """`end` without the white space before it."""
    while end and text[end - 1].isspace():
        end -= 1
    return end


def values_of(hint: str, gold: str, kind: str) -> list[Value]:
    """The values of a hint in order: numbers, parts of formulas, or words, depending on the kind.

    The list is empty for the user's own kinds.
    """
    if kind == "letter":
        return _letters(hint, normalize_letter(gold))
    if kind == "latex":
        gold = clean_latex(gold)
        if ONLY_WORDS.fullmatch(gold):  # \text{even}, and \text{(B)}
            words = WORDS.sub(r" \1 ", gold)
            letter = normalize_letter(words) if words.isupper() else None
            return _letters(hint, letter) if letter else _occurrences(hint, _word_pattern(words), _WORD)
        assigned = ASSIGNED.fullmatch(gold)
        if assigned is not None and not (len(assigned[1]) == 1 and assigned[1].isalpha()):  # x = 3, but not y = x
            gold = assigned[1]
    number = normalize_number(gold) if kind != "text" else None
    if number is not None:
        return _numbers(hint, number)
    if kind == "latex":
        return _occurrences(hint, _latex_pattern(gold), _LATEX_VALUE)
    if kind == "text":
        return _occurrences(hint, _word_pattern(gold), _WORD)
    return []


def _numbers(hint: str, gold: str) -> list[Value]:
    found, ends = [], {}
    for match in _MIXED.finditer(hint) if not gold.lstrip("-").isdecimal() else ():
        if normalize_number(_sign(hint, match.start()) + match[0].strip()) == gold:  # "1 1/2" may also be two numbers
            ends[match.start()] = match.end()
            found.append(Value(match.start(), True, _is_stated(hint, match.start(), match.end())))
    for match in _NUMBER.finditer(hint):
        if any(start <= match.start() < end for start, end in ends.items()):
            continue
        if match["over"]:
            readings = [f"{match['over']}/{match['under']}"]
        elif match["bottom"] and not gold.lstrip("-").isdecimal():
            readings = [match["top"], f"{match['top']}/{match['bottom']}"]
        else:  # "16/2" is a computation, not the number 8
            readings = [match["top"]]
        sign = _sign(hint, match.start())
        equal = [reading for reading in readings if normalize_number(sign + reading) == gold]
        whole = bool(equal) and (match["bottom"] is None or "/" in equal[-1])
        stated = whole and _is_stated(hint, match.start(), match.end())
        found.append(Value(match.start(), bool(equal), stated))
    return sorted(found)


def _sign(hint: str, start: int) -> str:
    """The sign of the number that begins at `start`."""
    return "-" if _NEGATIVE.search(hint[max(0, start - 8) : start]) else ""


def _letters(hint: str, gold: str | None) -> list[Value]:
    """The letters that name an option; not a list of options, "A) .. B) ..", of which none is stated."""
    found: list[tuple[Value, str, bool]] = []
    for match in _LETTER.finditer(hint):
        before = hint[max(0, match.start() - 48) : match.start()]
        named = _NAMED.search(before)
        ends = _LETTER_END.match(hint, match.end()) is not None
        result = _BEFORE_RESULT.search(before[: named.start()] if named else before)
        closed = hint[match.end() : match.end() + 4].lstrip("*_").startswith(")")
        label = closed and _LABEL.search(before) is not None
        fits = _LETTER_FITS.match(hint, match.end()) or (label and _CHECKED.match(hint, match.end()))
        stated = bool(fits or (ends and (result or _CONCLUDED.search(before))))
        if stated or named or label or (closed and _PARENTHESIS.search(before)):
            found.append((Value(match.start(), match.group() == gold, stated), match.group(), label and not stated))
    letters = [ord(letter) if label else 0 for _, letter, label in found]
    return [
        value
        for i, (value, _, label) in enumerate(found)
        if not (label and (letters[i] - 1 in letters[max(0, i - 1) : i] or letters[i] + 1 in letters[i + 1 : i + 2]))
    ]


def _occurrences(hint: str, gold: re.Pattern[str] | None, other: re.Pattern[str]) -> list[Value]:
    """The places where the pattern of the gold answer matches, and all other values around them."""
    found, position = [], 0
    for match in gold.finditer(hint) if gold is not None else ():
        found += [Value(m.start(), False, False) for m in other.finditer(hint, position, match.start())]
        found.append(Value(match.start(), True, _is_stated(hint, match.start(), match.end())))
        position = match.end()
    return [*found, *(Value(m.start(), False, False) for m in other.finditer(hint, position))] if found else []


def _is_stated(hint: str, start: int, end: int) -> bool:
    before = hint[max(0, start - 48) : start]
    return _BEFORE_RESULT.search(before) is not None and _OPERATOR.match(hint, end) is None


def _latex_pattern(gold: str) -> re.Pattern[str] | None:
    """A pattern of the gold formula, of `clean_latex`, with any spacing, sizes of brackets and kind of fraction."""
    if not gold:
        return None
    parts = []
    for token in re.findall(r"\\[A-Za-z]+|\\.|\S", gold):
        if token == r"\frac":
            parts.append(r"\\[dtc]?frac")
        elif token in "{}":  # \frac12, x^2
            parts.append(rf"\{token}?")
        else:
            parts.append(f"{_SIZE if token in '()[]' else ''}{re.escape(token)}")
    body = r"(?:\s|\\[,;:!]){0,4}".join(parts)
    return re.compile(rf"(?<![\w\\.]){body}(?![\w.]\w|\w)")


def _word_pattern(gold: str) -> re.Pattern[str] | None:
    """A pattern of the words of the gold answer with anything but words between them."""
    words = r"\W{1,8}".join(map(re.escape, _WORD.findall(gold)))
    return re.compile(rf"\b{words}\b", re.IGNORECASE) if words else None
