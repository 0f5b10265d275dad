r"""The kinds of answers: reading them from text, their gold answers, and fast comparisons.

In: text (untrusted, of any size) and canonical gold answers. Out: canonical answers and verdicts.
`KINDS` has one entry per kind. `extract.py` finds the position of an answer in a completion, and
`verifier.py` compares formulas by algebra in other processes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from core_hpc.answers.latex import CUT, compare_latex, gold_latex, read_latex, read_latex_sentence, whole_latex
from core_hpc.answers.numbers import MAX_ANSWER_CHARS, normalize_number, read_number
from core_hpc.store.schema import CORRECT, WRONG

LETTERS = "ABCDEFGHIJ"
MAX_INTEGER = 999
MAX_BARE_TEXT_CHARS = 64

_SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|<|\n")
_OPEN = r"[\s*_`\"'$({\[\\]{0,12}(?:\\(?:text|textbf|mathrm|mathbf|mbox|boxed)\s?\{[\s(]{0,4})?"
_CLOSE = r"[\s*_`\"'$)}\]\\.:,;]{0,12}"
_LONE_LETTER = re.compile(rf"{_OPEN}(?P<letter>[A-Ja-j]){_CLOSE}")
# "B", "(B) 5 eV", "option B because ..", "the correct choice is B"; never the article in "a proton"
# or "A proton".
_NAMED_LETTER = re.compile(
    r"(?:the\s)?(?:correct\s|best\s|right\s)?(?:(?:option|choice|answer|letter)\s(?:is\s)?:?)?"
    rf"{_OPEN}(?P<letter>[A-J])(?P<next>[^\w']|$)",
    re.IGNORECASE,
)
_SECOND_LETTER = re.compile(r"[\s)\]}*]{0,8}(?:,|and|or|&|/|\+)[\s(]{1,8}[A-J]\b")
_NOUN = re.compile(r"\s(?!because\b|since\b|as\b|is\b)[a-z]")
_CLOSING = frozenset(")]}")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s?\{([^{}]{0,256})\}")
_DECORATION = " \t\n\r*_`\"'$.,;:!?()[]{}<>"


@dataclass(frozen=True, kw_only=True)
class AnswerKind:
    """How answers of one kind are read and compared."""

    normalize: Callable[[str], str | None]
    """Text -> canonical answer if the whole text is an answer of this kind, else None."""
    read: Callable[[str], str | None]
    """Content of a box, a tag or a line after `####` -> canonical answer, or None."""
    read_sentence: Callable[[str], str | None]
    """Text after "the answer is" -> canonical answer, or None."""
    gold: Callable[[str], str | None]
    """Text -> canonical gold answer, or None if the text cannot be one."""
    compare: Callable[[str, str], str | None]
    """(answer, canonical gold) -> verdict, or None if algebra is needed."""
    worded: bool = False
    """Whether answers may start with a letter.

    Then a line after `####` that starts with one may be an answer.
    """
    strong_first: bool = False
    """Whether a tag or box takes precedence over sentences, independently of the position."""


def _first_sentence(text: str) -> str:
    end = _SENTENCE_END.search(text)
    return text[: end.start()] if end else text


def _same(normalize: Callable[[str], str | None]) -> Callable[[str, str], str]:
    return lambda answer, gold: CORRECT if normalize(answer) == normalize(gold) else WRONG


def normalize_integer(text: str) -> str | None:
    """Canonical integer from 0 to `MAX_INTEGER` (AIME) without leading zeros, or None.

    >>> [normalize_integer(t) for t in ("042", "7.0", "1000", "-3", "7.5")]
    ['42', '7', None, None, None]
    """
    number = normalize_number(text)
    return number if number is not None and number.isdecimal() and int(number) <= MAX_INTEGER else None


def normalize_letter(text: str) -> str | None:
    """The capital letter that is the whole text or its whole last line, or None.

    >>> [normalize_letter(t) for t in ("b", "**(C)**", "It must be\\nD.", "It is A", "A proton")]
    ['B', 'C', 'D', None, None]
    """
    line = text.rstrip().rpartition("\n")[2]
    match = _LONE_LETTER.fullmatch(line) if len(line) <= MAX_BARE_TEXT_CHARS else None
    return match["letter"].upper() if match is not None else None


def read_letter(payload: str) -> str | None:
    """The capital letter that a box, tag or sentence names, or None if it names none or several.

    >>> [read_letter(t) for t in ("(B) 5 eV", "\\\\text{C}", "option D because", "a proton", "A and B", "d")]
    ['B', 'C', 'D', None, None, 'D']
    """
    payload = " ".join(payload.split())[:MAX_ANSWER_CHARS]
    whole = _LONE_LETTER.fullmatch(payload)
    if whole is not None:
        return whole["letter"].upper()
    match = _NAMED_LETTER.match(payload)
    if match is None or _SECOND_LETTER.match(payload, match.start("next")):
        return None
    letter = match["letter"]
    if match["next"] not in _CLOSING and (
        letter.islower() or (letter in "AI" and _NOUN.match(payload, match.start("next")))
    ):
        return None
    return letter.upper()


def normalize_text(text: str) -> str | None:
    """Text without case, decoration and repeated spaces; None if it is empty or too long.

    >>> normalize_text("  **New  York.** "), normalize_text("\\\\text{yes}"), normalize_text("...")
    ('new york', 'yes', None)
    """
    if len(text) > MAX_ANSWER_CHARS:
        text = text.strip()
    if len(text) > MAX_ANSWER_CHARS:
        return None
    text = unicodedata.normalize("NFC", _WRAPPED.sub(r"\1", text)).casefold()
    return " ".join(text.strip(_DECORATION).split()) or None


def _read_text(payload: str) -> str | None:
    text = " ".join(payload.split())
    if len(text) > MAX_ANSWER_CHARS:
        return text[: MAX_ANSWER_CHARS - 1] + CUT
    return text if normalize_text(text) else None


def _gold_text(text: str) -> str | None:
    text = " ".join(text.split())
    return text if normalize_text(text) else None


def _bare_text(text: str) -> str | None:
    text = text.strip()
    bare = len(text) <= MAX_BARE_TEXT_CHARS and not any(mark in text for mark in ("\n", "</", "boxed{"))
    return _read_text(text) if bare else None


KINDS = {
    "number": AnswerKind(
        normalize=normalize_number,
        read=read_number,
        read_sentence=lambda t: read_number(_first_sentence(t)),
        gold=normalize_number,
        compare=_same(normalize_number),
    ),
    "integer": AnswerKind(
        normalize=normalize_integer,
        read=read_number,
        read_sentence=lambda t: read_number(_first_sentence(t)),
        gold=normalize_integer,
        compare=_same(normalize_integer),
    ),
    "latex": AnswerKind(
        normalize=whole_latex,
        read=read_latex,
        read_sentence=read_latex_sentence,
        gold=gold_latex,
        compare=compare_latex,
        worded=True,
    ),
    "letter": AnswerKind(
        normalize=normalize_letter,
        read=read_letter,
        read_sentence=lambda t: read_letter(_first_sentence(t)),
        gold=normalize_letter,
        compare=_same(normalize_letter),
        worded=True,
        strong_first=True,
    ),
    "text": AnswerKind(
        normalize=_bare_text,
        read=_read_text,
        read_sentence=lambda t: _read_text(_first_sentence(t)),
        gold=_gold_text,
        compare=_same(normalize_text),
        worded=True,
        strong_first=True,
    ),
}
"""Name -> kind; these are the values of a problem's `answer_kind`."""


def answer_kind(kind: str) -> AnswerKind:
    """The entry of `KINDS`.

    Raises:
        ValueError: the kind is unknown; the message lists the known kinds.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown answer kind {kind!r}; known: {', '.join(sorted(KINDS))}")
    return KINDS[kind]
