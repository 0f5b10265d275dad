r"""LaTeX answers: cleaning, reading from a sentence, and comparisons by notation alone.

In: text of any size. Out: LaTeX in which equal notations have one spelling (`\dfrac12` and
`\frac{1}{2}`), and a verdict if no algebra is needed: equal notation, two numbers, or words.
`verifier.py` decides everything else in other processes. The work is linear in the first
`MAX_LATEX_CHARS` characters.
"""

from __future__ import annotations

import re

from core_hpc.answers.numbers import MINUS_SIGNS, THOUSANDS, normalize_number
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
_ASSIGNED = re.compile(r"[A-Za-z](?:_\w|_\{\w{1,8}\})?=([^=,;<>]+)")
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
    >>> [clean_latex(t) for t in ("10,\\!000", "\\pi r")]
    ['10,000', '\\pi r']
    """
    text = _UNICODE_ROOT.sub(r"\\sqrt{\1}", text.translate(MINUS_SIGNS)).translate(_UNICODE)
    text = THOUSANDS.sub("", text)
    text = _LAYOUT.sub(lambda m: m.group() if m.group() == r"\\" else ("" if m.group() == r"\!" else " "), text)
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2] or ''}}}", text)
    text = _FRACTION.sub(lambda m: "\\frac" + "".join(a if a[0] == "{" else f"{{{a}}}" for a in m.groups()), text)
    text = " ".join(_LOOSE_SPACE.sub("", _BARE_SCRIPT.sub(r"\1{\2}", text)).split())
    return _LAST_MARK.sub("", text)


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
    for candidate in (text, *inside) if len(inside) == 1 else (text,):
        cleaned = clean_latex(candidate)
        if _is_whole(cleaned) and _is_formula(cleaned):
            return cleaned
    return None


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
    cleaned = clean_latex((text[: end.start()] if end else text)[: MAX_LATEX_CHARS + 1])
    return cleaned if _is_whole(cleaned) and _is_formula(cleaned) else None


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
    expected = normalize_number(gold)
    assigned = _ASSIGNED.fullmatch(answer)
    value = normalize_number(assigned[1] if assigned else answer)
    if expected is None or value is None:
        return None
    if value == expected:
        return CORRECT
    return None if ("%" in answer) != ("%" in gold) else WRONG  # 50 % against 0.5
