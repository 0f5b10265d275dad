r"""Answers: find the last explicit answer of a completion and verify it against the gold answer.

In: text of a model (data of any size and shape, never trusted) and the kind of answer the problem asks for.
Out: the canonical answer or None, a verdict, the token F1 of Eq. 2. All work is linear in the text and bounded
after that: every quantifier in the patterns is bounded, only the last `MAX_MARKERS` markers are looked at, and
at most `MAX_PAYLOAD_CHARS` characters behind each of them.
This module does not run verifiers in other processes and does not load any mathematics package.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from core_hpc.schema import CORRECT, NO_ANSWER, WRONG

ANSWER_TAG = r"(?:final_answer|answer|outcome|result|strategy_\w{1,32}_outcome)"
OPEN_TAG = rf"<{ANSWER_TAG}(?:\s[^<>]{{0,200}})?>"
CLOSE_TAG = rf"</{ANSWER_TAG}\s{{0,8}}>"
BOX = r"(?:boxed|fbox)\s{0,8}\{"
HASHES = r"(?<!\#)\#{4}(?!\#)"
# "answer: 5", "**Answer**: 5", "the final answer is 5", and a heading "Final Answer" with the answer below it.
SAYS = r"\b(?:final_)?answer\b[\s*_`\"']{0,8}(?::|=|\bis\b)"
HEADING = r"^[ \t\#*_]{0,16}(?:final[ \t]{1,4})?answer[ \t*_]{0,8}\r?$"

MAX_MARKERS = 64
MAX_PAYLOAD_CHARS = 4096
MAX_ANSWER_CHARS = 256
MAX_NUMBER_CHARS = 128
_MAX_EXPONENT = 128

_FLAGS = re.IGNORECASE | re.MULTILINE
_MARKER = re.compile(rf"(?P<tag>{OPEN_TAG})|(?P<box>{BOX})|(?P<says>{SAYS}|{HEADING})|(?P<hash>{HASHES})", _FLAGS)
_ANY_TAG = re.compile(rf"{OPEN_TAG}|{CLOSE_TAG}", _FLAGS)
_BRACE = re.compile(r"\\[\\{}]|[{}]")
_SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|<|\n")
_STRONG = frozenset({"tag", "box"})

_MANTISSA = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_UNSIGNED = rf"{_MANTISSA}(?:[eE][+-]?[0-9]{{1,4}})?"
_NUMBER = re.compile(rf"(?P<sign>[+-]?)\s*(?P<top>{_UNSIGNED})(?:\s*/\s*(?P<bottom>{_UNSIGNED}))?\s*\.?")
# A number that stands for itself: not part of a word, of a longer number or of a formula.
_LONE_NUMBER = re.compile(rf"(?<![\w.,/^*+\\-])[+-]?{_UNSIGNED}(?:/{_UNSIGNED})?(?![\w^/])")
_PROSE = re.compile(r"(?:[^\W\d_]|[\s.,:;'\"()!?&-])*")
_REASON = re.compile(r"\b(?:because|since)\b", re.IGNORECASE)
_NEGATED = re.compile(r"\s*not\b", re.IGNORECASE)
_HEADING_TEXT = re.compile(r"\s*[0-9]+[.):]\s+\S|\s*[^\W\d]")
_FRAC = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
# Decoration becomes a space, never nothing: "3*4" and "5%3" must not turn into the numbers 34 and 53.
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{|\\(?:left|right)(?![a-z])|\\[()\[\],;!:]|\\%|\\\$|[$€£¥₹%*_`{}°~]")
_LATEX_THOUSANDS = re.compile(r"(?<=[0-9])(?:\\[,!;:]|\{,\})(?=[0-9]{3}(?![0-9]))")
_UNIT_POWER = re.compile(r"(?:(?<=\bm)|(?<=[ckmd]m)|(?<=ft)|(?<=in)|(?<=yd))\s{0,2}(?:\^\s?[23]|[²³])")
_MINUS = str.maketrans({"\u2212": "-", "\u2013": "-", "\uff0d": "-", "\ufe63": "-", "\u00a0": " ", "\u202f": " "})
_TOKEN = re.compile(r"-?[0-9]+(?:\.[0-9]+)?|[^\W\d_]+|[^\w\s]|_")


def after_thinking(text: str) -> str:
    """The text after the last `</think>` or `[/THINK]`; the whole text when there is none."""
    end = max((text.rfind(mark) + len(mark) for mark in ("</think>", "[/THINK]") if mark in text), default=0)
    return text[end:]


def closing_brace(text: str, start: int, stop: int) -> int:
    """Index of the brace that closes the one just before `start`, or -1 when it is not closed before `stop`."""
    depth = 1
    for match in _BRACE.finditer(text, start, stop):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return -1


def _clean(text: str) -> str:
    """LaTeX and Markdown decoration, currency signs and unit powers removed; fractions as a/b."""
    text = _LATEX_THOUSANDS.sub("", text.translate(_MINUS))
    text = _FRAC.sub(r" \1/\2", text)
    text = _UNIT_POWER.sub("", _MARKUP.sub(" ", text))
    return text.strip().strip("\"'").strip()


def _format(value: Fraction) -> str:
    """Canonical text of a rational number: integer, exact decimal, or p/q when no decimal ends."""
    rest, places = value.denominator, 0
    while rest % 10 == 0:
        rest, places = rest // 10, places + 1
    for prime in (2, 5):
        while rest % prime == 0:
            rest, places = rest // prime, places + 1
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    if places == 0:
        return str(value.numerator)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' * (value < 0)}{digits[:-places]}.{digits[-places:].rstrip('0')}"


def _rational(text: str) -> Fraction | None:
    mantissa, _, exponent = text.lower().replace(",", "").partition("e")
    if exponent and abs(int(exponent)) > _MAX_EXPONENT:
        return None
    return Fraction(mantissa) * Fraction(10) ** int(exponent or 0)


def normalize_number(text: str) -> str | None:
    """Canonical text of a number, or None when `text` as a whole is not one number.

    Two texts have the same canonical text exactly when they have the same rational value. Commas between groups
    of three digits, currency signs, %, a trailing period, LaTeX fractions and unicode minus signs are understood;
    a percent sign is a unit (50 % is 50). Numbers of more than `MAX_NUMBER_CHARS` characters are none.

    >>> [normalize_number(t) for t in ("$1,200.00", "007", "-3/4", "50%", "\u22125.", "2/3", "1e3", "1,2", "3 apples")]
    ['1200', '7', '-0.75', '50', '-5', '2/3', '1000', None, None]
    """
    if len(text) > MAX_ANSWER_CHARS:
        text = text.strip()
    if len(text) > MAX_ANSWER_CHARS:
        return None
    cleaned = _clean(text)
    match = _NUMBER.fullmatch(cleaned) if len(cleaned) <= MAX_NUMBER_CHARS + 1 else None
    if match is None:
        return None
    top, bottom = _rational(match["top"]), _rational(match["bottom"] or "1")
    if top is None or not bottom:
        return None
    canonical = _format(top / bottom * (-1 if match["sign"] == "-" else 1))
    return canonical if len(canonical) <= MAX_NUMBER_CHARS else None


def _lone_number(text: str) -> str | None:
    """The number of a text of words in which there is exactly one number and no formula."""
    cleaned = _clean(text)
    found = _LONE_NUMBER.search(cleaned)
    if found is None or _LONE_NUMBER.search(cleaned, found.end()):
        return None
    rest = f"{cleaned[:found.start()]} {cleaned[found.end():]}"
    return normalize_number(found.group()) if _PROSE.fullmatch(rest) else None


def read_number(payload: str) -> str | None:
    """The canonical number that the text behind an answer marker states, or None.

    A number as a whole; else the right side of the last equals sign; else the only number among words, or among
    those before a parenthesis.

    >>> [read_number(t) for t in ("18 dollars a day", "72 / 2 = 36 clips", "x = 5", "5 m (2 + 3)", "3 + 4", "2x")]
    ['18', '36', '5', '5', None, None]
    """
    payload = _REASON.split(payload[:MAX_ANSWER_CHARS], maxsplit=1)[0].strip().rstrip(",")
    whole = normalize_number(payload)
    if whole is not None:
        return whole
    side = payload.rpartition("=")[2]
    return normalize_number(side) or _lone_number(side) or _lone_number(side.partition(" (")[0])


@dataclass(frozen=True)
class AnswerKind:
    """How answers of one kind are read and compared: one entry of `KINDS`."""

    normalize: Callable[[str], str | None]
    """Canonical text when the whole text is an answer of this kind, else None."""
    read: Callable[[str], str | None]
    """Canonical answer stated by the text behind a marker, else None."""


KINDS = {"number": AnswerKind(normalize=normalize_number, read=read_number)}


def answer_kind(kind: str) -> AnswerKind:
    """The entry of `KINDS`; raises ValueError naming the known kinds."""
    if kind not in KINDS:
        raise ValueError(f"unknown answer kind {kind!r}; known: {', '.join(sorted(KINDS))}")
    return KINDS[kind]


def _line_payload(text: str, start: int) -> str:
    """Rest of the line behind `start`; when that holds only decoration, the next line that holds more."""
    rest = text[start : start + MAX_PAYLOAD_CHARS]
    stripped = rest.lstrip(" \t*_:=`\"'")
    if stripped.startswith(("\n", "\r")):
        stripped = re.sub(r"^\s*(?:[-*] |[*_`]+)?", "", stripped)
    return stripped


def _payload(text: str, match: re.Match[str]) -> str | None:
    """The text that a marker points to, or None when the marker is not an answer (unclosed box, heading)."""
    start = match.end()
    stop = min(len(text), start + MAX_PAYLOAD_CHARS)
    if match.lastgroup == "box":
        end = closing_brace(text, start, stop)
        return text[start:end] if end >= 0 else None
    if match.lastgroup == "tag":
        end_tag = _ANY_TAG.search(text, start, stop)
        payload = text[start : end_tag.start() if end_tag else stop].strip()
        # Without a closing tag (cut off, or cut at a stop string) only the first line is the answer.
        return payload if end_tag else payload.split("\n", 1)[0]
    line = _line_payload(text, start)
    if match.lastgroup == "hash":
        line = re.split(r"[\n<]", line, maxsplit=1)[0]
        return None if _HEADING_TEXT.match(line) else line
    if _NEGATED.match(line):
        return None
    end_match = _SENTENCE_END.search(line)
    return line[: end_match.start()] if end_match else line


def extract_answer(text: str, kind: str) -> str | None:
    r"""The last explicit answer of a completion in canonical form, or None when there is none.

    Explicit are: answer tags (closed or not), balanced `\boxed{..}`, `#### ..`, "answer: .." and "answer is ..",
    or a text that is nothing but an answer. Only the text after the end of thinking counts, where it is marked. A tag or box
    whose content is not of this kind is returned as it stands (at most `MAX_ANSWER_CHARS` characters): it is
    the answer, and wrong. Sentences and headings without an answer of this kind are not answers.
    Raises ValueError for an unknown kind.

    >>> extract_answer("so \\boxed{12}. No: the answer is 1,300 m.", "number"), extract_answer("3 + 4 makes 7", "number")
    ('1300', None)
    """
    rules = answer_kind(kind)
    text = after_thinking(text)
    for match in reversed(deque(_MARKER.finditer(text), maxlen=MAX_MARKERS)):
        payload = _payload(text, match)
        if payload is None or not payload.strip():
            continue
        answer = rules.read(payload)
        if answer is None and match.lastgroup in _STRONG:
            answer = payload.strip()[:MAX_ANSWER_CHARS]
        if answer is not None:
            return answer
    return rules.normalize(text)


def verify(answer: str | None, gold: str, kind: str) -> str:
    """Verdict on an extracted answer: correct, wrong or no_answer (see core_hpc.schema).

    Raises ValueError when the gold answer is not of its kind: that is a mistake in the data, not of the model.

    >>> verify("0.750", "3/4", "number"), verify("0.7501", "3/4", "number"), verify(None, "3/4", "number")
    ('correct', 'wrong', 'no_answer')
    """
    rules = answer_kind(kind)
    expected = rules.normalize(gold)
    if expected is None:
        raise ValueError(f"gold answer {gold[:80]!r} is not a {kind}; correct the problem data")
    if answer is None or not answer.strip():
        return NO_ANSWER
    return CORRECT if rules.normalize(answer) == expected else WRONG


def token_f1(answer: str | None, gold: str) -> float:
    """Partial credit of Eq. 2 in [0, 1]: F1 of the token multisets of the normalised answer and gold.

    A number counts as one token, whatever its notation. No answer, or no token on either side: 0.

    >>> token_f1("1,200", "1200"), token_f1("13", "12"), token_f1(None, "12"), token_f1("x and y", "y and z")
    (1.0, 0.0, 0.0, 0.6666666666666666)
    """
    if answer is None:
        return 0.0
    sides = [Counter(_TOKEN.findall((normalize_number(t) or t[:MAX_PAYLOAD_CHARS]).casefold())) for t in (answer, gold)]
    shared = (sides[0] & sides[1]).total()
    return 2 * shared / (sides[0].total() + sides[1].total()) if shared else 0.0
