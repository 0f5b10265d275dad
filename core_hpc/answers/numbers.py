"""Numeric answers: reading numbers, and their canonical text.

In: text of any size. Out: the canonical text of an exact rational value, or None. The work is
bounded because numbers have a maximum length. `extract.py` finds the position of an answer in a
completion.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

MAX_ANSWER_CHARS = 256
MAX_NUMBER_CHARS = 128
_MAX_EXPONENT = 128

_MANTISSA = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_UNSIGNED = rf"{_MANTISSA}(?:[eE][+-]?[0-9]{{1,4}})?"
_NUMBER = re.compile(rf"(?P<sign>[+-]?)\s*(?P<top>{_UNSIGNED})(?:\s*/\s*(?P<bottom>{_UNSIGNED}))?\s*\.?")
_ATTACHED_UNIT = r"(?:[ckm]?m|kg|g|mg|lbs?|oz|ft|in|yd|mi|m[lL]|[lL]|hrs?|h|min|s|mph)"
# A number that is not part of a word, of a longer number or of a formula. A unit may follow directly.
_LONE_NUMBER = re.compile(
    rf"(?<![\w.,/^*+\\-])[+-]?{_UNSIGNED}(?:/{_UNSIGNED})?(?:(?![\w^/!])|(?={_ATTACHED_UNIT}(?![\w^!])))"
)
_PROSE = re.compile(r"(?:[^\W\d_]|[\s.,:;'\"()!?&\u2019-])*")
_REASON = re.compile(
    r"\b(?:because|since)\b|(?<!\bis)(?<!\bare)(?<!\bwas),?\s(?:not|rather than|instead of)\s(?=\$?[0-9])", re.I
)
_ARGUMENT = r"\s*(?:\{([^{}]*)\}|([0-9]))"
_FRAC = re.compile(rf"\\[dt]?frac(?![A-Za-z]){_ARGUMENT}{_ARGUMENT}(?=([0-9])?)")
# "2 1/2" and "2 \frac{1}{2}", whose fraction must be less than 1.
_MIXED = re.compile(
    r"(?<![\w.,/^*+)}])([0-9]{1,9})(?:\s|\\[,; ]){1,4}([0-9]{1,9})\s?/\s?([0-9]{1,9})(?![\w^/*]|[.,][0-9])"
)
_POWER_OF_TEN = re.compile(
    r"(?<![\w./^,*+)}])((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?)\s{0,4}(?:\\times|\\cdot|[x*\u00d7\u00b7\u22c5])"
    r"\s{0,4}10\s?\^\s?(?:\{\s?([+-]?[0-9]{1,4})\s?\}|([+-]?[0-9]{1,4}))(?![\w.^/])"
)
_REPEATING = re.compile(
    r"(?<![0-9.,])([0-9]{0,32})\.([0-9]{0,32})\\(?:overline|bar)\s?(?:\{([0-9]{1,32})\}|([0-9]))(?![0-9.])"
)
COLOUR = r"\\(?:text)?color\s?\{[A-Za-z]{1,16}\}"
SWITCHES = (
    r"\\(?:displaystyle|textstyle|bf|bfseries|it|rm|tiny|small|normalsize|large|Large|LARGE|huge|Huge)(?![A-Za-z])"
    rf"|{COLOUR}"
)
"""LaTeX that changes how a formula looks, such as `\\bf` and `\\color{blue}`."""
# Decoration is replaced by a space, because "3*4" and "5%3" must not become the numbers 34 and 53.
_MARKUP = re.compile(
    SWITCHES + r"|\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|underline)\s*\{|\\(?:left|right)(?![a-z])"
    r"|\^\s?(?:\{\s?\\circ\s?\}|\\circ(?![a-z]))|\\degree(?![a-z])|\\[()\[\],;!: ]|\\%|\\\$|[$€£¥₹%*_`{}°~“”\ufe0f]"
    r"|\b(?:USD|EUR|GBP|INR)\b"
)
THOUSANDS = re.compile(r"(?<=[0-9])(?:,\\!\s{0,8}|\\[,!;:]|\{,\}|[\u2009\u202f])(?=[0-9]{3}(?![0-9]))")
_UNIT_POWER = re.compile(
    r"(?:(?<=\bm)|(?<=[ckmd]m)|(?<=ft)|(?<=in)|(?<=yd)|(?<=units)|(?<=feet)|(?<=meters)|(?<=inches))"
    r"\s{0,2}(?:\^\s?[23]|[²³])"
)
_PER = re.compile(r"(?:(?<=[A-Za-z])\s?|(?<=[0-9])(?=/[a-z]{2}))/\s?(?=[a-z])")
# "7 - the number of apples": a dash that is not a minus sign.
_DASH = re.compile(r"\s[\u2013\u2014]\s(?=[A-Za-z]{2})")
_MODULUS = re.compile(
    r"\s{0,4}(?:\\pmod\s?(?:\{\s?[0-9]{1,9}\s?\}|[0-9])"
    r"|\(\s?(?:\\(?:text|mathrm)\{\s?)?\\?mod\s?\}?\s?[0-9]{1,9}\s?\))[\s.$]{0,4}\Z"
)
_EQUALITY = re.compile(r"\\(?:approx|equiv)(?![A-Za-z])|[≈≡]")
MINUS_SIGNS = str.maketrans({"\u2212": "-", "\u2013": "-", "\uff0d": "-", "\ufe63": "-", "\u00a0": " ", "\u202f": " "})

_VULGAR = str.maketrans(  # "½" -> " 1/2"
    {c: " " + unicodedata.normalize("NFKC", c).replace("\u2044", "/") for c in "½¼¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
)
_CROSSES = "\u274c\u274e\u2717\u2718"  # "18 ❌" does not state 18

# Words that change the number next to them. `_TAIL_VERB` ends the part of a sentence in which words
# before the number belong to the number ("half of the apples is 7" states 7).
_COUNT = r"(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|sixty|eighty|ninety)"
_PART = r"(?:hal(?:f|ves)|thirds?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|hundredths?|thousandths?)"
_TAIL_VERB = re.compile(
    r"\b(?:is|are|was|were|be|equals?|ha[sd]|have|needs?|makes?|gives?|gets?|pays?|earns?|costs?|spends?|takes?)\b|:"
)
_NEGATION = re.compile(r"\b(?:not|never|neither|nor|cannot|wrong|incorrect)\b|n['\u2019]t\b")
_CHANGED_BEFORE = re.compile(
    r"\bthan\b|\b(?:twice|double|doubled|triple|thrice|quadruple|plus|minus|negative|either|except|excluding|unlike)\b"
    rf"|\b{_PART}\b|\b(?:quarter|root|squared?|cubed?|power|sum|product|difference|quotient|multiples?|factors?"
    r"|divisors?|log|logarithm|reciprocal|inverse|opposite|factorial|part|fraction|percent)\s(?:of|to|by)\b"
    r"|\b(?:divided|multiplied|divisible|followed)\b|\b(?:ln|log|sin|cos|tan|sqrt|exp|mod)\s*\Z|\btimes\s*\Z"
    r"|\b(?:but|no|without|over|under|above|below|beyond|between|within|almost|nearly|up to|at least|at most|exceeding"
    r"|exceeds|other than|instead of|rather than|apart from|different from)\s*\Z|-[\s(]*\Z|\b[xyznk]\s*\Z"
)
_SIGN_BEFORE = re.compile(r"(?:\b(?:negative|minus)\s*|-[\s(]{0,4})\Z")
_SCALE = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE_AFTER = re.compile(rf"\s{{0,4}}({'|'.join(_SCALE)})\b")
_CHANGED_AFTER = re.compile(
    rf"\A[\s-]*(?:(?:dozens?|grand|lakhs?|crores?|bn|mn|squared|cubed|factorial|choose|tens|{_PART}|{'|'.join(_SCALE)}"
    r"|to the)\b|[xyznkpqrijbe]\b)|\A\s*-\s|\A!"
    r"|\b(?:or|plus|minus|divided|multiplied|modulo|if|unless|wrong|incorrect|at most|at least|squared|cubed)\b"
    rf"|\b(?:and|to|point|times|by|over|out of)\s(?:an?\s|one\s)?(?:{_COUNT}\s)?"
    rf"(?:{_COUNT}|one|zero|quarters?|{_PART})\b"
    rf"|\b(?:less|fewer|more|greater)\sthan\s{_COUNT}\b"
    r"|\b(?:is|was|are|were|seems|looks)\s(?:not|false|impossible|too)\b|n['\u2019]t\b|\b(?:never|cannot)\b"
)
_MONEY_SCALE = re.compile(r"\A\s?(?:[KMBT]|mil)\b")
_PRECISION = re.compile(r"\b(?:rounded|round|accurate|correct|precise)\b.{0,24}\bto\s*\Z", re.S)
_PRECISION_UNIT = re.compile(r"\A\s*(?:decimals?|digits?|significant|places?)\b")
# "2x = 14" does not state 14, and neither do "x >= 14" and "x != 14".
_NO_NAME = re.compile(
    r"[!<>~≠]\s*\Z|\\not\s*\Z|(?:(?<![\w.])-\s?|[0-9)}]\s?(?:\*\s?)?)[xyznkN]\s*\Z|[a-zA-Z]\s?(?:\^.{1,4}|/\s?[0-9]+)\s*\Z"
)
_SEVERAL = re.compile(r"\bor\b|\b[a-zA-Z]\s?=[^=,;]{1,32}(?:[,;]|\band\b)[\s$]{0,4}[a-zA-Z]\s*\Z")


def _clean(text: str, *, is_whole: bool = False) -> str:
    """The text without decoration, currency signs and unit powers. LaTeX fractions become a/b.

    Emoji and other symbols are decoration. Mixed numbers become a/b, and powers of ten become
    exponents. In words, "18 1/2" may be two numbers, so it is a mixed number only if it is the whole
    text; "18½" and LaTeX always are.
    """
    text = _DASH.sub(", ", THOUSANDS.sub("", text)).translate(MINUS_SIGNS)
    plain = text if text.isascii() else text.translate(_VULGAR)
    has_fraction, text = "frac" in text or plain != text, plain
    if "\\" in text:
        text = _REPEATING.sub(_repeating_fraction, text)
        text = _FRAC.sub(lambda m: f" {m[1] or m[2] or ''}/{m[3] or m[4] or ''}{' ' * bool(m[5])}", text)
    if "/" in text and (is_whole or has_fraction):
        text = _MIXED.sub(_improper_fraction, text)
    if "^" in text:
        text = _POWER_OF_TEN.sub(r"\1e\2\3", text)
    if not text.isascii():
        text = "".join(" " if unicodedata.category(c) == "So" and c not in _CROSSES else c for c in text)
    text = _UNIT_POWER.sub("", _MARKUP.sub(" ", text))
    return text.strip().strip("\"'").strip()


def _improper_fraction(match: re.Match[str]) -> str:
    """`2 1/2` as the text of a fraction."""
    whole, top, bottom = map(int, match.groups())
    return f"{whole * bottom + top}/{bottom}" if top < bottom else match.group()


def _repeating_fraction(match: re.Match[str]) -> str:
    r"""`0.1\overline{6}` as the text of a fraction."""
    whole, start, cycle = match[1] or "0", match[2], match[3] or match[4]
    places, period = 10 ** len(start), 10 ** len(cycle) - 1
    return f"{int(whole + start) * period + int(cycle)}/{places * period}"


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
    fractions, mixed numbers, powers of ten and unicode minus signs. A percent sign is a unit (50 %
    is 50). Numbers longer than `MAX_NUMBER_CHARS` are rejected.

    >>> [normalize_number(t) for t in ("$1,200.00", "007", "-3/4", "50%", "\u22125.", "2/3", "1e3")]
    ['1200', '7', '-0.75', '50', '-5', '2/3', '1000']
    >>> [normalize_number(t) for t in ("2 1/2", "-2\\\\frac12", "7 \\\\times 10^{4}", "7 x 10^-1", "2 3/2")]
    ['2.5', '-2.5', '70000', '0.7', None]
    >>> [normalize_number(t) for t in ("1,2", "3 apples")]
    [None, None]
    """
    if len(text) > MAX_ANSWER_CHARS:
        text = text.strip()
    if len(text) > MAX_ANSWER_CHARS:
        return None
    cleaned = _clean(text, is_whole=True)
    match = _NUMBER.fullmatch(cleaned) if len(cleaned) <= MAX_NUMBER_CHARS + 1 else None
    if match is None:
        return None
    top, bottom = _rational(match["top"]), _rational(match["bottom"] or "1")
    if top is None or not bottom:
        return None
    canonical = _format(top / bottom * (-1 if match["sign"] == "-" else 1))
    return canonical if len(canonical) <= MAX_NUMBER_CHARS else None


def _lone_number(text: str) -> tuple[str, str, str] | None:
    """The number in a text of words with exactly one number, and the words before and after it.

    None if the text has a formula, or words that change the number ("half of 7", "7 dozen").
    """
    cleaned = _clean(text)
    if "/" in cleaned:
        cleaned = _PER.sub(" per ", cleaned)
    found = _LONE_NUMBER.search(cleaned)
    if found is None or _LONE_NUMBER.search(cleaned, found.end()):
        return None
    before, after = cleaned[: found.start()].casefold(), cleaned[found.end() :]
    if not (_PROSE.fullmatch(before) and _PROSE.fullmatch(after)) or _MONEY_SCALE.match(after):
        return None
    number, after = found.group(), after.casefold()
    if before.strip() == "(" and after.strip() == ")" and "," in number:  # (40,200) is a pair
        return None
    if (scale := _SCALE_AFTER.match(after)) is not None:
        after = after[scale.end() :]
    if (sign := _SIGN_BEFORE.search(before)) is not None:
        before = before[: sign.start()]
    if _NEGATION.search(before) or _CHANGED_AFTER.search(after):
        return None
    tail = before
    for verb in _TAIL_VERB.finditer(before):
        tail = before[verb.end() :]
    if _CHANGED_BEFORE.search(tail) or (sign is not None and tail.strip()):
        return None
    if _PRECISION_UNIT.match(after) and _PRECISION.search(before):
        return None
    canonical = normalize_number(number)
    if canonical is None:
        return None
    value = Fraction(canonical) * (_SCALE[scale[1]] if scale is not None else 1) * (-1 if sign is not None else 1)
    canonical = _format(value)
    return (canonical, before, after) if len(canonical) <= MAX_NUMBER_CHARS else None


def read_quantity(text: str, max_words: int = 4) -> tuple[str, str] | None:
    """The canonical number and the few words behind it, or None if anything else is in the text.

    >>> read_quantity("7 square feet"), read_quantity("2.5 million"), read_quantity("not 7"), read_quantity("7 dozen")
    (('7', 'square feet'), ('2500000', ''), None, None)
    """
    number = normalize_number(text)
    if number is not None:
        return number, ""
    found = _lone_number(text) if len(text) <= MAX_ANSWER_CHARS else None
    if found is None or found[1].strip(" ("):
        return None
    words = found[2].strip(" .,")
    return (found[0], words) if len(words.split()) <= max_words and not re.search(r"[,;:?]", words) else None


def is_plain_quantity(text: str) -> bool:
    """Whether the text is a number with at most a unit, and no computation or sentence."""
    return read_quantity(text[:MAX_ANSWER_CHARS].partition(" (")[0], max_words=10) is not None


def read_number(payload: str) -> str | None:
    """The canonical number in the text after an answer marker, or None.

    The candidates are, in this order, the whole text, the right side of the last equals sign, the
    only number among words, and the only number among the words before a parenthesis. Words that
    change a number ("not 7", "less than 7", "7 dozen") are part of its meaning, so such a number is
    not read. A negative sign and a scale ("7 thousand") are applied.

    >>> [read_number(t) for t in ("18 dollars a day", "72 / 2 = 36 clips", "x = 5", "5 m (2 + 3)", "3 + 4", "2x")]
    ['18', '36', '5', '5', None, None]
    >>> [read_number(t) for t in ("minus 7", "7 thousand", "half of 7", "2x = 14", "x = 3 or x = 7", "7!")]
    ['-7', '7000', None, None, None, None]
    """
    payload = _REASON.split(payload[:MAX_ANSWER_CHARS], maxsplit=1)[0].strip().rstrip(",")
    whole_text = payload
    whole = normalize_number(payload)
    if whole is not None:
        return whole
    if "mod" in payload:
        payload = _MODULUS.sub("", payload)
    if not payload.isascii() or "\\" in payload:
        payload = _EQUALITY.sub("=", payload)
    left, equals, side = payload.rpartition("=")
    if equals and (_NEGATION.search(left) or _NO_NAME.search(left) or _SEVERAL.search(left)):
        return None
    if side is not whole_text and (number := normalize_number(side)) is not None:
        return number
    found = _lone_number(side) or (_lone_number(side.partition(" (")[0]) if " (" in side else None)
    return found[0] if found is not None else None
