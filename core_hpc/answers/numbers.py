"""Numeric answers: reading numbers, and their canonical text.

In: text of any size. Out: the canonical text of an exact rational value, or None. The work is
bounded because numbers have a maximum length. `extract.py` finds the position of an answer in a
completion.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_ANSWER_CHARS = 256
MAX_NUMBER_CHARS = 128
_MAX_EXPONENT = 128

_MANTISSA = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_UNSIGNED = rf"{_MANTISSA}(?:[eE][+-]?[0-9]{{1,4}})?"
_NUMBER = re.compile(rf"(?P<sign>[+-]?)\s*(?P<top>{_UNSIGNED})(?:\s*/\s*(?P<bottom>{_UNSIGNED}))?\s*\.?")
# A number that is not part of a word, of a longer number or of a formula.
_LONE_NUMBER = re.compile(rf"(?<![\w.,/^*+\\-])[+-]?{_UNSIGNED}(?:/{_UNSIGNED})?(?![\w^/])")
_PROSE = re.compile(r"(?:[^\W\d_]|[\s.,:;'\"()!?&-])*")
_REASON = re.compile(r"\b(?:because|since)\b", re.IGNORECASE)
_FRAC = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
# Decoration is replaced by a space, because "3*4" and "5%3" must not become the numbers 34 and 53.
_MARKUP = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{|\\(?:left|right)(?![a-z])|\\[()\[\],;!:]|\\%|\\\$|[$€£¥₹%*_`{}°~]"
)
THOUSANDS = re.compile(r"(?<=[0-9])(?:\\[,!;:]|\{,\})(?=[0-9]{3}(?![0-9]))")
_UNIT_POWER = re.compile(r"(?:(?<=\bm)|(?<=[ckmd]m)|(?<=ft)|(?<=in)|(?<=yd))\s{0,2}(?:\^\s?[23]|[²³])")
MINUS_SIGNS = str.maketrans({"\u2212": "-", "\u2013": "-", "\uff0d": "-", "\ufe63": "-", "\u00a0": " ", "\u202f": " "})


def _clean(text: str) -> str:
    """The text without decoration, currency signs and unit powers. LaTeX fractions become a/b."""
    text = THOUSANDS.sub("", text.translate(MINUS_SIGNS))
    text = _FRAC.sub(r" \1/\2", text)
    text = _UNIT_POWER.sub("", _MARKUP.sub(" ", text))
    return text.strip().strip("\"'").strip()


def _format(value: Fraction) -> str:
    """Canonical text of a rational number: an integer, a finite decimal, or p/q."""
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
    """Canonical text of a number, or None if `text` as a whole is not one number.

    Two texts have the same canonical text if and only if they have the same rational value.
    Accepted are commas between groups of three digits, currency signs, %, a trailing period, LaTeX
    fractions and unicode minus signs. A percent sign is a unit (50 % is 50). Numbers longer than
    `MAX_NUMBER_CHARS` are rejected.

    >>> [normalize_number(t) for t in ("$1,200.00", "007", "-3/4", "50%", "\u22125.", "2/3", "1e3")]
    ['1200', '7', '-0.75', '50', '-5', '2/3', '1000']
    >>> [normalize_number(t) for t in ("1,2", "3 apples")]
    [None, None]
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
    """The number in a text of words that has exactly one number and no formula, or None."""
    cleaned = _clean(text)
    found = _LONE_NUMBER.search(cleaned)
    if found is None or _LONE_NUMBER.search(cleaned, found.end()):
        return None
    rest = f"{cleaned[: found.start()]} {cleaned[found.end() :]}"
    return normalize_number(found.group()) if _PROSE.fullmatch(rest) else None


def read_number(payload: str) -> str | None:
    """The canonical number in the text after an answer marker, or None.

    The candidates are, in this order, the whole text, the right side of the last equals sign, the
    only number among words, and the only number among the words before a parenthesis.

    >>> [read_number(t) for t in ("18 dollars a day", "72 / 2 = 36 clips", "x = 5", "5 m (2 + 3)", "3 + 4", "2x")]
    ['18', '36', '5', '5', None, None]
    """
    payload = _REASON.split(payload[:MAX_ANSWER_CHARS], maxsplit=1)[0].strip().rstrip(",")
    whole = normalize_number(payload)
    if whole is not None:
        return whole
    side = payload.rpartition("=")[2]
    return normalize_number(side) or _lone_number(side) or _lone_number(side.partition(" (")[0])
