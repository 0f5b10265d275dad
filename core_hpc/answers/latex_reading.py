r"""Formulas in the text of a completion: in a box or tag, after "the answer is", or as a whole text.

In: text of any size, whose position `extract.py` has found. Out: the formula in the spelling of
`latex.py`, or None if the text is prose, empty or incomplete. This module does not compare formulas.
"""

from __future__ import annotations

import re

from core_hpc.answers.latex import ASSIGNED, CHANGING_WORDS, CUT, MAX_LATEX_CHARS, WORDS, clean_latex, is_whole
from core_hpc.answers.numbers import read_quantity

_COMMAND = re.compile(r"\\(?:begin|end)\{[a-z*]{1,16}\}|\\[A-Za-z]+")
_PROSE_WORD = re.compile(r"[^\W\d_]{3,}|\b(?:is|of|in|it|to|be|we|so|no|if|as|at|by|an|on)\b", re.IGNORECASE)
_TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan")
_FUNCTIONS = frozenset([*_TRIGONOMETRIC, "log", "exp", "sqrt", "min", "max", "gcd", "lcm", "mod", "and"])
_MATH = {"$$": "$$", "$": "$", r"\[": r"\]", r"\(": r"\)"}
_OPEN_MATH = re.compile(r"\$\$?|\\\[|\\\(")
_BETWEEN_MATH = re.compile(r"\s{0,4}(?:,\s{0,4})?(?:and|or)?\s{0,4}(?=\$|\\\[|\\\()")
_INSIDE_MATH = re.compile(r"\$\$([^$]+)\$\$|(?<!\\)\$([^$\n]+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_SENTENCE_END = re.compile(r"[.?](?=\s|$)|;(?=\s)|\n|</?[A-Za-z_]{3}")
_MAX_FORMULAS = 8


def _is_formula(text: str) -> bool:
    """Whether the text is one formula and not a sentence.

    Words that are not functions indicate a sentence.
    """
    bare = _COMMAND.sub(" ", WORDS.sub(" ", text))
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
    if inside and CHANGING_WORDS.search(_INSIDE_MATH.sub(" ", text)):  # "not $5$"
        return None
    for candidate in (text, *inside) if len(inside) == 1 else (text,):
        cleaned = clean_latex(candidate)
        if is_whole(cleaned) and _is_formula(cleaned):
            return cleaned
    cleaned = clean_latex(text)
    return cleaned if is_whole(cleaned) and read_quantity(text) is not None else None


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
        return formulas if is_whole(formulas) else None
    end = _SENTENCE_END.search(text)
    sentence = (text[: end.start()] if end else text)[: MAX_LATEX_CHARS + 1]
    cleaned = clean_latex(sentence)
    formula = _is_formula(cleaned) or read_quantity(sentence) is not None
    return cleaned if is_whole(cleaned) and formula else None


def is_plain_latex(answer: str) -> bool:
    """Whether a formula that was read states a result, and not a computation such as 3 + 4 = 7."""
    return "=" not in answer or ASSIGNED.fullmatch(answer) is not None


def whole_latex(text: str) -> str | None:
    """The formula that a whole text consists of, or None.

    The text is a single line and not a computation such as "3 + 4 = 7".
    """
    text = text.strip()
    if len(text) > MAX_LATEX_CHARS or "\n" in text:
        return None
    cleaned = read_latex(text)
    return cleaned if cleaned is not None and is_plain_latex(cleaned) else None
