r"""Comparison of two LaTeX answers by notation alone: numbers, units, words, bases, residues, lists.

In: an answer, and a gold answer in the spelling of `latex.py`. Out: a verdict, or None if the
comparison needs algebra, which `verifier.py` does in other processes.
"""

from __future__ import annotations

import re
from fractions import Fraction

from core_hpc.answers.latex import (
    ASSIGNED,
    CHANGING_WORDS,
    MAX_LATEX_CHARS,
    WORD_COMMANDS,
    WORDS,
    clean_latex,
    is_whole,
)
from core_hpc.answers.numbers import normalize_number, read_quantity
from core_hpc.answers.symbolic import NAME
from core_hpc.store.schema import CORRECT, WRONG

ONLY_WORDS = re.compile(rf"(?:{WORD_COMMANDS}\{{[^{{}}]*\}}\s*)+|[A-Za-z]{{4,}}(?:\s[A-Za-z]+)*")
_SEPARATOR = re.compile(r",|\\text\{\s*(?:and|or)\s*\}")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])")
_REAL = r"\\frac\{-?[0-9.]+\}\{[0-9.]+\}|[0-9]+(?:\.[0-9]*)?(?:/[0-9]+)?"
_COMPLEX_TERM = re.compile(rf"([+-]?)(?:({_REAL})(i?)|i(?:\\cdot)?\s?({_REAL})?())(?=[+-]|\Z)")
_BASED = re.compile(r"\(?([0-9][0-9A-Za-z]{0,127})\)?_\{?(?:\\(?:text|mathrm)\s?\{)?([0-9]{1,2}|[a-z]{3,10})\}{0,2}")
_BASE_WORDS = re.compile(r"\s*\(?(?:\\(?:text|mathrm)\s?\{)?\s*\(?\s*(?:in\s)?base\s*([0-9]{1,2})\s*\)?\}?\)?\Z")
_BASE_NAMES = {
    name: base
    for base, name in enumerate(
        ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "sixteen"), 2
    )
} | {"sixteen": 16, "binary": 2, "octal": 8, "hex": 16}
_MODULUS = re.compile(
    r"\s*(?:\\pmod\s?\{?\s?([0-9]{1,9})\s?\}?|\(\s*(?:\\(?:text|mathrm)\{\s*mod\s*\}|\\?mod)\s*([0-9]{1,9})\s*\)"
    r"|\\bmod\s*([0-9]{1,9}))\Z"
)
_CONGRUENT = re.compile(rf"(?:{NAME.pattern})\s?(?:\\equiv\s?|=)")
_UNITS = {
    unit: names[0]
    for names in (
        ("cm", "centimeter", "centimetre"),
        ("mm", "millimeter", "millimetre"),
        ("m", "meter", "metre"),
        ("km", "kilometer", "kilometre"),
        ("in", "inch", "inche"),
        ("ft", "foot", "feet"),
        ("yd", "yard"),
        ("mi", "mile"),
        ("mg", "milligram"),
        ("g", "gram"),
        ("kg", "kilogram"),
        ("oz", "ounce"),
        ("sec", "s", "second"),
        ("min", "minute"),
        ("h", "hr", "hour"),
        ("day",),
        ("week",),
        ("month",),
        ("year",),
        ("l", "liter", "litre"),
        ("ml", "milliliter", "millilitre"),
        ("dollar",),
        ("cent",),
        ("degree",),
        ("radian", "rad"),
    )
    for unit in names
}
_UNIT_WORD = re.compile(r"[A-Za-z]+")


def _words(text: str) -> str:
    return " ".join(WORDS.sub(r" \1 ", text).casefold().strip(" .()").split())


def compare_latex(answer: str, gold: str) -> str | None:
    r"""The verdict by notation alone, or None if algebra is needed.

    `gold` is a result of `gold_latex`. Two numbers are compared by exact value, and words by their
    letters.

    >>> compare_latex("0.50", "\\frac{1}{2}"), compare_latex("x = 3", "4"), compare_latex("(x+1)^2", "x^2+2x+1")
    ('correct', 'wrong', None)
    """
    answer = clean_latex(answer[: MAX_LATEX_CHARS + 1])
    if not is_whole(answer):
        return WRONG
    if answer == gold or (("=" in answer) != ("=" in gold) and _value_of(answer) == _value_of(gold)):
        return CORRECT
    if ONLY_WORDS.fullmatch(gold):
        return CORRECT if _words(answer) == _words(gold) else WRONG
    if "mod" in answer or "mod" in gold:
        given, wanted = _without_modulus(answer), _without_modulus(gold)
        if given[1] is not None or wanted[1] is not None:
            return _compare_residues(given, wanted)
    return _compare_formulas(answer, gold)


def _compare_formulas(answer: str, gold: str) -> str | None:
    if CHANGING_WORDS.search(answer) and not CHANGING_WORDS.search(gold):
        scaled = read_quantity(_value_of(answer))
        return CORRECT if scaled is not None and scaled[0] == normalize_number(gold) else WRONG
    if "_" in answer or "_" in gold or "base" in answer:
        verdict = _compare_bases(answer, gold)
        if verdict is not None:
            return verdict
    same_name = "=" not in answer or answer.partition("=")[0] == gold.partition("=")[0]
    expected, value = _quantity(_value_of(gold) if same_name else gold), _quantity(_value_of(answer))
    if expected is not None and value is not None:
        if expected[1] and value[1] and expected[1] != value[1]:
            return WRONG
        if value[0] == expected[0]:
            return CORRECT
        return None if ("%" in answer) != ("%" in gold) else WRONG  # 50 % against 0.5
    if expected is not None and _has_other_words(_value_of(answer)):
        return WRONG
    if "i" in answer or "i" in gold:
        left, right = _complex(_value_of(answer)), _complex(_value_of(gold))
        if left is not None and right is not None:
            return CORRECT if left == right else WRONG
    if ", " in answer or ", " in gold:
        return _compare_numbers_in_lists(answer, gold)
    return None


def _has_other_words(text: str) -> bool:
    r"""Whether words other than one unit at the end are in a formula, which algebra would ignore.

    For example `3 \text{ hours and } 5 \text{ minutes}` is not 3.
    """
    groups = list(WORDS.finditer(text))
    if not groups:
        return False
    unit = groups[-1]
    at_end = re.fullmatch(r"(?:\^\{?[23]\}?)?", text[unit.end() :]) is not None
    return len(groups) > 1 or not at_end or unit[1].strip() in ("x", "y", "z", "n", "k")


def _value_of(text: str) -> str:
    """The right side of an assignment to a name, or the whole text."""
    assigned = ASSIGNED.fullmatch(text)
    return assigned[1] if assigned else text


def _quantity(text: str) -> tuple[str, str] | None:
    """The number in the text and its known unit (or ""), or None if it is no number with a unit."""
    number = normalize_number(text)
    if number is not None:
        return number, "degree" if _DEGREES.search(text) else ""
    if "\\" not in text and not re.search(r"[A-Za-z]{2}", text):  # "2x", "3 x"
        return None
    found = read_quantity(text)
    if found is None:
        return None
    power = re.search(r"\}?\^\{?([23])", text)
    words = [
        _UNITS.get(word) or _UNITS.get(word.removesuffix("s"), "") for word in _UNIT_WORD.findall(found[1].casefold())
    ]
    unit = " ".join(filter(None, words))
    exponent = power[1] if power else "2" if "square" in text else "3" if "cubic" in text else ""
    return found[0], unit + exponent if unit else ""


def _complex(text: str) -> tuple[Fraction, Fraction] | None:
    """Real and imaginary part of a number such as 3/4-2i, or None."""
    text = text[1:-1] if text.startswith("(") and text.endswith(")") else text
    real, imaginary, position = Fraction(), Fraction(), 0
    while position < len(text):
        term = _COMPLEX_TERM.match(text, position)
        if term is None:
            return None
        position = term.end()
        number = normalize_number(term[2] or term[4] or "1")
        if number is None:
            return None
        value = Fraction(number) * (-1 if term[1] == "-" else 1)
        if term[2] and not term[3]:
            real += value
        else:
            imaginary += value
    return (real, imaginary) if text else None


def _in_base(text: str) -> tuple[str, int | None] | None:
    """Digits and base of a number such as 1011_2 (base None: not given), or None."""
    text = _BASE_WORDS.sub(r"_{\1}", WORDS.sub(r"\1", _value_of(text)) if "\\text{A" in text else _value_of(text))
    match = _BASED.fullmatch(text)
    if match is None:
        digits = re.fullmatch(r"[0-9][0-9A-Za-z]{0,127}", text)
        return (text.lstrip("0").upper(), None) if digits else None
    base = int(match[2]) if match[2].isdecimal() else _BASE_NAMES.get(match[2])
    return (match[1].lstrip("0").upper(), base) if base is not None else None


def _compare_bases(answer: str, gold: str) -> str | None:
    """The verdict if one side gives a base: the same digits in the same base, or base 10 as usual."""
    given, wanted = _in_base(answer), _in_base(gold)
    if wanted is not None and wanted[1] is not None:
        return CORRECT if given is not None and given[0] == wanted[0] and given[1] in (None, wanted[1]) else WRONG
    if given is not None and given[1] is not None and normalize_number(gold) is not None:
        return CORRECT if given[1] == 10 and normalize_number(given[0]) == normalize_number(gold) else WRONG
    return None


def _without_modulus(text: str) -> tuple[str, int | None]:
    match = _MODULUS.search(text)
    if match is None:
        return text, None
    modulus = int(next(filter(None, match.groups())))
    return _CONGRUENT.sub("", text[: match.start()], count=1), modulus


def _compare_residues(answer: tuple[str, int | None], gold: tuple[str, int | None]) -> str:
    """The same residue; a modulus that only one side gives does not matter for equal numbers."""
    if "\\equiv" in answer[0]:
        answer = _CONGRUENT.sub("", answer[0], count=1), answer[1]
    value, expected = normalize_number(_value_of(answer[0])), normalize_number(_value_of(gold[0]))
    if value is None or expected is None or (answer[1] and gold[1] and answer[1] != gold[1]):
        return WRONG
    if answer[1] and gold[1]:
        return CORRECT if (Fraction(value) - Fraction(expected)) % gold[1] == 0 else WRONG
    return CORRECT if value == expected else WRONG


def _compare_numbers_in_lists(answer: str, gold: str) -> str | None:
    """Lists and tuples with numbers of three digits, which algebra would read as thousands."""
    sides = []
    for text in (answer, gold):
        inner = text.removeprefix(r"\{").removesuffix(r"\}")
        ordered = inner[:1] in ("(", "[")
        numbers = [normalize_number(part) for part in _SEPARATOR.split(inner[1:-1] if ordered else inner)]
        if None in numbers or (ordered and inner[-1:] not in (")", "]")):
            return None
        sides.append((inner[0] + inner[-1] if ordered else "", numbers if ordered else sorted(map(str, set(numbers)))))
    return CORRECT if sides[0] == sides[1] else WRONG
