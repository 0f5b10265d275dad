r"""LaTeX in one spelling.

In: LaTeX of any size. Out: LaTeX in which equal notations have one spelling (`\dfrac12` and
`\frac{1}{2}`), and what the reading and the comparison of formulas have in common. Formulas in the
text of a completion are read in `latex_reading.py` and compared in `latex_comparison.py`. The work is
linear in the first `MAX_LATEX_CHARS` characters.
"""

from __future__ import annotations

import re

from core_hpc.answers.numbers import COLOUR, MINUS_SIGNS, SWITCHES, THOUSANDS
from core_hpc.answers.symbolic import NAME

MAX_LATEX_CHARS = 512
CUT = "\u2026"
"""Marks the end of an answer that was cut; a cut answer never equals another."""
WORD_COMMANDS = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname)(?![A-Za-z])\s*"
WORDS = re.compile(rf"{WORD_COMMANDS}\{{([^{{}}]*)\}}")
"""Words in a formula, such as `\\text{hours}`."""
ASSIGNED = re.compile(rf"(?:{NAME.pattern})=([^=,;<>]+)")
"""A value that is assigned to a name, such as `x=3`."""
CHANGING_WORDS = re.compile(
    r"\b(?:not|never|neither|nor|no|half|twice|double|triple|dozens?|hundred|thousand|million|billion|trillion|less|more"
    r"|fewer|greater|than|least|most|almost|nearly|negative|minus|plus|squared|cubed|factorial|except|unless|if|wrong"
    r"|incorrect|other|third|quarter|percent of|instead|rather)\b",
    re.IGNORECASE,
)
"""Words that change a formula, unless the gold answer has them too."""

_ARGUMENT = r"(\{[^{}]*\}|[0-9A-Za-z])"
# Tokens without meaning. A line break of a matrix (`\\` or `\\[2pt]`) is a token too, and becomes `\\`.
_LAYOUT = re.compile(
    r"\\\\(?:\s?\[\s?-?[0-9.]{1,6}\s?(?:pt|em|ex|mm|cm|in|mu|bp)\s?\])?|\\(?:left|right)(?![A-Za-z])\.?|\\(?:[Bb]ig{1,2}[lrm]?|limits)(?![A-Za-z])|\\[()\[\]]|\\!"
    rf"|\\[,;:>~\s]|\\q?quad(?![A-Za-z])|~|\\?\$|{SWITCHES}"
)
_COLOURED = re.compile(rf"{COLOUR}\s?\{{([^{{}}]*)\}}")
_FRACTION = re.compile(rf"\\[dtc]?frac\s*{_ARGUMENT}\s*{_ARGUMENT}")
_ROOT = re.compile(r"\\sqrt\s*(?:([0-9A-Za-z])|\(([^()]*)\))")
# "2^10" in plain text means 2^{10}, never 2^{1}0.
_BARE_SCRIPT = re.compile(r"([\^_])\s*([0-9]+|[A-Za-z])")
_UNICODE_ROOT = re.compile(r"\u221a\s*([0-9]+)")
_LOOSE_SPACE = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])")
_LAST_MARK = re.compile(r"(?<![\s.,:;])[.,:;]\Z")
# Groups of three digits are thousands, except inside parentheses, brackets and set braces, where
# they are elements. A comma with a space never separates thousands.
_GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,\s?[0-9])")
_ELEMENTS = re.compile(r"(?:\(|\[|\\\{)[^()\[\]{}]{1,256}(?:\)|\]|\\\})")
_ELEMENT_COMMA = re.compile(r"(?<=[0-9]),\s*(?=[0-9]{3}(?![0-9]))")
_LIST_COMMA = re.compile(r"(?<=[0-9]),\s+(?=[0-9]{3}(?![0-9]))")
_KEPT_SPACE = "\ue000"  # a private character: the space of "40, 200"
_IMAGINARY = re.compile(
    r"\\(?:mathrm|text|textit|mathit|textrm|operatorname)\s*\{\s*i\s*\}|\\imath(?![A-Za-z])|(?<=[0-9}])\s*\{i\}"
)
_TIMES_I = re.compile(r"(?<=[0-9}])\s*(?:\\cdot|\\times|\*)?\s*i(?![A-Za-z])")
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
    text = _LAYOUT.sub(_without_layout, _COLOURED.sub(r" \1 ", text) if "color" in text else text)
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2] or ''}}}", text)
    text = _FRACTION.sub(lambda m: "\\frac" + "".join(a if a[0] == "{" else f"{{{a}}}" for a in m.groups()), text)
    if "," in text:
        text = _ELEMENTS.sub(lambda m: _ELEMENT_COMMA.sub("," + _KEPT_SPACE, m.group()), text)
        text = _LIST_COMMA.sub("," + _KEPT_SPACE, text)
        text = _GROUPED.sub(lambda m: m.group().replace(",", ""), text)
    # Each run of spaces becomes one first: the second of two spaces is loose, and so is the first.
    text = _LOOSE_SPACE.sub("", " ".join(_BARE_SCRIPT.sub(r"\1{\2}", text).split()))
    if "i" in text:
        text = _TIMES_I.sub("i", text)
    return _LAST_MARK.sub("", text).replace(_KEPT_SPACE, " ")


def _without_layout(match: re.Match[str]) -> str:
    if match.group().startswith("\\\\"):
        return "\\\\"
    return "" if match.group() == r"\!" else " "


def gold_latex(text: str) -> str | None:
    """A gold answer in the spelling of `clean_latex`, or None if it is not a complete formula."""
    cleaned = clean_latex(text) if len(text) <= MAX_LATEX_CHARS else ""
    return cleaned if is_whole(cleaned) else None


def is_whole(text: str) -> bool:
    """Whether the text is not empty, has balanced braces and was not cut."""
    if not text or len(text) > MAX_LATEX_CHARS or text.endswith(CUT):
        return False
    depth = 0
    for mark in re.findall(r"\\[\\{}]|[{}]", text):
        depth += {"{": 1, "}": -1}.get(mark, 0)
        if depth < 0:
            return False
    return depth == 0
