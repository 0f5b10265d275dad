r"""LaTeX answers: cleaning, reading from a sentence, and comparisons by notation alone.

In: text of any size. Out: LaTeX in which equal notations have one spelling (`\dfrac12` and
`\frac{1}{2}`), and a verdict if no algebra is needed: equal notation, two numbers, or words.
`verifier.py` decides everything else in other processes. The work is linear in the first
`MAX_LATEX_CHARS` characters.
"""

from __future__ import annotations

import re
from fractions import Fraction

from core_hpc.answers.numbers import MINUS_SIGNS, THOUSANDS, normalize_number, read_quantity
from core_hpc.answers.symbolic import NAME
from core_hpc.store.schema import CORRECT, WRONG

MAX_LATEX_CHARS = 512
CUT = "\u2026"
"""Marks the end of an answer that was cut; a cut answer never equals another."""

_WORD_COMMANDS = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname)(?![A-Za-z])\s*"
_ARGUMENT = r"(\{[^{}]*\}|[0-9A-Za-z])"
# Tokens without meaning. A line break of a matrix (`\\`) is a token too, so `\\[2pt]` is not read
# as a delimiter.
_LAYOUT = re.compile(
    r"\\\\|\\(?:left|right)(?![A-Za-z])\.?|\\(?:[Bb]ig{1,2}[lrm]?|displaystyle|limits)(?![A-Za-z])|\\[()\[\]]|\\!"
    r"|\\[,;:>~\s]|\\q?quad(?![A-Za-z])|~|\\?\$"
)
_FRACTION = re.compile(rf"\\[dtc]?frac\s*{_ARGUMENT}\s*{_ARGUMENT}")
_ROOT = re.compile(r"\\sqrt\s*(?:([0-9A-Za-z])|\(([^()]*)\))")
# "2^10" in plain text means 2^{10}, never 2^{1}0.
_BARE_SCRIPT = re.compile(r"([\^_])\s*([0-9]+|[A-Za-z])")
_UNICODE_ROOT = re.compile(r"\u221a\s*([0-9]+)")
_LOOSE_SPACE = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])")
_LAST_MARK = re.compile(r"(?<![\s.,:;])[.,:;]\Z")
_WORDS = re.compile(rf"{_WORD_COMMANDS}\{{([^{{}}]*)\}}")
_ONLY_WORDS = re.compile(rf"(?:{_WORD_COMMANDS}\{{[^{{}}]*\}}\s*)+|[A-Za-z]{{4,}}(?:\s[A-Za-z]+)*")
_ASSIGNED = re.compile(rf"(?:{NAME.pattern})=([^=,;<>]+)")
# Groups of three digits are thousands, except inside parentheses, brackets and set braces, where
# they are elements. A comma with a space never separates thousands.
_GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,\s?[0-9])")
_ELEMENTS = re.compile(r"(?:\(|\[|\\\{)[^()\[\]{}]{1,256}(?:\)|\]|\\\})")
_ELEMENT_COMMA = re.compile(r"(?<=[0-9]),\s*(?=[0-9]{3}(?![0-9]))")
_SEPARATOR = re.compile(r",|\\text\{\s*(?:and|or)\s*\}")
_LIST_COMMA = re.compile(r"(?<=[0-9]),\s+(?=[0-9]{3}(?![0-9]))")
_KEPT_SPACE = "\ue000"  # a private character: the space of "40, 200"
_IMAGINARY = re.compile(
    r"\\(?:mathrm|text|textit|mathit|textrm|operatorname)\s*\{\s*i\s*\}|\\imath(?![A-Za-z])|(?<=[0-9}])\s*\{i\}"
)
_TIMES_I = re.compile(r"(?<=[0-9}])\s*(?:\\cdot|\\times|\*)?\s*i(?![A-Za-z])")
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
# Words that change a formula, unless the gold answer has them too.
_CHANGING = re.compile(
    r"\b(?:not|never|neither|nor|no|half|twice|double|triple|dozens?|hundred|thousand|million|billion|trillion|less|more"
    r"|fewer|greater|than|least|most|almost|nearly|negative|minus|plus|squared|cubed|factorial|except|unless|if|wrong"
    r"|incorrect|other|third|quarter|percent of|instead|rather)\b",
    re.IGNORECASE,
)
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
_COMMAND = re.compile(r"\\(?:begin|end)\{[a-z*]{1,16}\}|\\[A-Za-z]+")
_PROSE_WORD = re.compile(r"[^\W\d_]{3,}|\b(?:is|of|in|it|to|be|we|so|no|if|as|at|by|an|on)\b", re.IGNORECASE)
_TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan")
_FUNCTIONS = frozenset([*_TRIGONOMETRIC, "log", "exp", "sqrt", "min", "max", "gcd", "lcm", "mod", "and"])
_UNICODE = str.maketrans(
    {
        "\u00d7": r"\times ",
        "\u00b7": r"\cdot ",
        "\u22c5": r"\cdot ",
        "\u00f7": "/",
        "\u03c0": r"\pi ",
        "\u221e": r"\infty ",
        "\u2264": r"\leq ",
        "\u2265": r"\geq ",
        "\u2260": r"\neq ",
        "\u00b1": r"\pm ",
        "\u221a": r"\sqrt ",
        "\u00b0": r"^\circ ",
        "\u00b2": "^2",
        "\u00b3": "^3",
        "\u222a": r"\cup ",
        "\u2208": r"\in ",
        "\u03b8": r"\theta ",
    }
)

_MATH = {"$$": "$$", "$": "$", r"\[": r"\]", r"\(": r"\)"}
_OPEN_MATH = re.compile(r"\$\$?|\\\[|\\\(")
_BETWEEN_MATH = re.compile(r"\s{0,4}(?:,\s{0,4})?(?:and|or)?\s{0,4}(?=\$|\\\[|\\\()")
_INSIDE_MATH = re.compile(r"\$\$([^$]+)\$\$|(?<!\\)\$([^$\n]+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_SENTENCE_END = re.compile(r"[.?](?=\s|$)|;(?=\s)|\n|</?[A-Za-z_]{3}")
_MAX_FORMULAS = 8


def clean_latex(text: str) -> str:
    r"""LaTeX in one spelling: without delimiters, sizes and spacing, and with arguments in braces.

    Formulas with different meanings keep different spellings.

    >>> [clean_latex(t) for t in ("$\\dfrac12$", "\\left( 3,\\, \\sqrt 2 \\right)", "x^{2} - \\sqrt(5).")]
    ['\\frac{1}{2}', '(3,\\sqrt{2})', 'x^{2}-\\sqrt{5}']
    >>> [clean_latex(t) for t in ("10,\\!000", "\\pi r", "40, 200", "6+9\\,\\mathrm{i}")]
    ['10000', '\\pi r', '40, 200', '6+9i']
    """
    text = _UNICODE_ROOT.sub(r"\\sqrt{\1}", THOUSANDS.sub("", text).translate(MINUS_SIGNS)).translate(_UNICODE)
    if "i" in text:
        text = _IMAGINARY.sub(" i", text)
    text = _LAYOUT.sub(lambda m: m.group() if m.group() == r"\\" else ("" if m.group() == r"\!" else " "), text)
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2] or ''}}}", text)
    text = _FRACTION.sub(lambda m: "\\frac" + "".join(a if a[0] == "{" else f"{{{a}}}" for a in m.groups()), text)
    if "," in text:
        text = _ELEMENTS.sub(lambda m: _ELEMENT_COMMA.sub("," + _KEPT_SPACE, m.group()), text)
        text = _LIST_COMMA.sub("," + _KEPT_SPACE, text)
        text = _GROUPED.sub(lambda m: m.group().replace(",", ""), text)
    text = " ".join(_LOOSE_SPACE.sub("", _BARE_SCRIPT.sub(r"\1{\2}", text)).split())
    if "i" in text:
        text = _TIMES_I.sub("i", text)
    return _LAST_MARK.sub("", text).replace(_KEPT_SPACE, " ")


def gold_latex(text: str) -> str | None:
    """A gold answer in the spelling of `clean_latex`, or None if it is not a complete formula."""
    cleaned = clean_latex(text) if len(text) <= MAX_LATEX_CHARS else ""
    return cleaned if _is_whole(cleaned) else None


def _is_whole(text: str) -> bool:
    """Whether the text is not empty, has balanced braces and was not cut."""
    if not text or len(text) > MAX_LATEX_CHARS or text.endswith(CUT):
        return False
    depth = 0
    for mark in re.findall(r"\\[\\{}]|[{}]", text):
        depth += {"{": 1, "}": -1}.get(mark, 0)
        if depth < 0:
            return False
    return depth == 0


def _is_formula(text: str) -> bool:
    """Whether the text is one formula and not a sentence.

    Words that are not functions indicate a sentence.
    """
    bare = _COMMAND.sub(" ", _WORDS.sub(" ", text))
    words = {w.casefold() for w in _PROSE_WORD.findall(bare)}
    return words <= _FUNCTIONS and "\\boxed" not in text and any(c.isalnum() or c == "\\" for c in text)


def _first_formulas(text: str) -> str | None:
    """The formulas in delimiters at the beginning of the text, joined by commas, or None."""
    formulas: list[str] = []
    position = 0
    while len(formulas) < _MAX_FORMULAS and (opening := _OPEN_MATH.match(text, position)):
        end = text.find(_MATH[opening.group()], opening.end())
        inside = clean_latex(text[opening.end() : end][: MAX_LATEX_CHARS + 1]) if end >= 0 else ""
        if not _is_formula(inside):  # "$5 more than $7" is money
            break
        formulas.append(inside)
        between = _BETWEEN_MATH.match(text, end + len(opening.group()))
        if between is None:
            break
        position = between.end()
    return ", ".join(formulas) or None


def read_latex(payload: str) -> str | None:
    r"""The formula in a box or tag, or None if it is prose, empty or has unbalanced braces.

    >>> read_latex("\\frac{1}{2}"), read_latex("x in the set"), read_latex("(3, 4)"), read_latex("so $x = 1$")
    ('\\frac{1}{2}', None, '(3,4)', 'x=1')
    """
    text = payload.strip()
    if len(text) > MAX_LATEX_CHARS:
        return text[: MAX_LATEX_CHARS - 1] + CUT
    inside = [next(filter(None, groups)) for groups in _INSIDE_MATH.findall(text)]
    if inside and _CHANGING.search(_INSIDE_MATH.sub(" ", text)):  # "not $5$"
        return None
    for candidate in (text, *inside) if len(inside) == 1 else (text,):
        cleaned = clean_latex(candidate)
        if _is_whole(cleaned) and _is_formula(cleaned):
            return cleaned
    cleaned = clean_latex(text)
    return cleaned if _is_whole(cleaned) and read_quantity(text) is not None else None


def read_latex_sentence(text: str) -> str | None:
    r"""The formula directly after "the answer is", or None if a sentence follows.

    >>> [read_latex_sentence(t) for t in ("$x = 1.5$. Done.", "$3$ or $-3$, I think", "1/2. Then", "$5. Not $6.")]
    ['x=1.5', '3, -3', '1/2', '5']
    >>> read_latex_sentence("in $[0, 1]$") is None
    True
    """
    text = text.lstrip(" \t\n\r*_:=`")
    formulas = _first_formulas(text)
    if formulas is not None:
        return formulas if _is_whole(formulas) else None
    end = _SENTENCE_END.search(text)
    sentence = (text[: end.start()] if end else text)[: MAX_LATEX_CHARS + 1]
    cleaned = clean_latex(sentence)
    formula = _is_formula(cleaned) or read_quantity(sentence) is not None
    return cleaned if _is_whole(cleaned) and formula else None


def is_plain_latex(answer: str) -> bool:
    """Whether a formula that was read states a result, and not a computation such as 3 + 4 = 7."""
    return "=" not in answer or _ASSIGNED.fullmatch(answer) is not None


def whole_latex(text: str) -> str | None:
    """The formula that a whole text consists of, or None.

    The text is a single line and not a computation such as "3 + 4 = 7".
    """
    text = text.strip()
    if len(text) > MAX_LATEX_CHARS or "\n" in text:
        return None
    cleaned = read_latex(text)
    return None if cleaned is None or ("=" in cleaned and not _ASSIGNED.fullmatch(cleaned)) else cleaned


def _words(text: str) -> str:
    return " ".join(_WORDS.sub(r" \1 ", text).casefold().strip(" .()").split())


def compare_latex(answer: str, gold: str) -> str | None:
    r"""The verdict by notation alone, or None if algebra is needed.

    `gold` is a result of `gold_latex`. Two numbers are compared by exact value, and words by their
    letters.

    >>> compare_latex("0.50", "\\frac{1}{2}"), compare_latex("x = 3", "4"), compare_latex("(x+1)^2", "x^2+2x+1")
    ('correct', 'wrong', None)
    """
    answer = clean_latex(answer[: MAX_LATEX_CHARS + 1])
    if not _is_whole(answer):
        return WRONG
    if answer == gold:
        return CORRECT
    if _ONLY_WORDS.fullmatch(gold):
        return CORRECT if _words(answer) == _words(gold) else WRONG
    if "mod" in answer or "mod" in gold:
        given, wanted = _without_modulus(answer), _without_modulus(gold)
        if given[1] is not None or wanted[1] is not None:
            return _compare_residues(given, wanted)
    return _compare_formulas(answer, gold)


def _compare_formulas(answer: str, gold: str) -> str | None:
    if _CHANGING.search(answer) and not _CHANGING.search(gold):
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
    groups = list(_WORDS.finditer(text))
    if not groups:
        return False
    unit = groups[-1]
    at_end = re.fullmatch(r"(?:\^\{?[23]\}?)?", text[unit.end() :]) is not None
    return len(groups) > 1 or not at_end or unit[1].strip() in ("x", "y", "z", "n", "k")


def _value_of(text: str) -> str:
    """The right side of an assignment to a name, or the whole text."""
    assigned = _ASSIGNED.fullmatch(text)
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
    text = _BASE_WORDS.sub(r"_{\1}", _WORDS.sub(r"\1", _value_of(text)) if "\\text{A" in text else _value_of(text))
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
