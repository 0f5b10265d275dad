r"""The kinds of answers: reading them from text, their gold answers, and fast comparisons.

In: text (untrusted, of any size) and canonical gold answers. Out: canonical answers and verdicts.
`KINDS` has one entry per kind. `extract.py` finds the position of an answer in a completion, and
`verifier.py` compares formulas by algebra in other processes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from core_hpc.answers.latex import CUT, gold_latex
from core_hpc.answers.latex_comparison import compare_latex
from core_hpc.answers.latex_reading import is_plain_latex, read_latex, read_latex_sentence, whole_latex
from core_hpc.answers.numbers import MAX_ANSWER_CHARS, is_plain_quantity, normalize_number, read_number
from core_hpc.store.schema import CORRECT, WRONG

LETTERS = "ABCDEFGHIJ"
MAX_INTEGER = 999
MAX_BARE_TEXT_CHARS = 64

# "7!" ends a sentence before a new one; "7! ways" and "$7!$" are factorials.
_OTHER_ENDS = r"[?;](?=\s|$)|!(?=[ \t]{0,4}(?:\n|\Z)|[ \t]{1,4}[A-Z*_(\"'])|<|\n"
_SENTENCE_END = re.compile(rf"\.(?=\s|$)|{_OTHER_ENDS}")
# "Mr. Tan has 18 apples", "J. Tan has 18" and "approx. 18" continue after the period; "18 V. Then" ends there.
_NO_ABBREVIATION = (
    r"(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bvs)(?<!\bsq)(?<!\bMrs)(?<!\bapprox)(?<!(?<![0-9]\s)\b[A-Z])"
)
_QUANTITY_END = re.compile(rf"{_NO_ABBREVIATION}\.(?=\s|$)|{_OTHER_ENDS}")
# After a label such as "Answer:", a text is the whole line ("St. Louis", "a < b", "list<int>"), without
# a sentence after it ("Paris. It is the capital.").
_LINE_END = re.compile(
    rf"{_NO_ABBREVIATION}\.(?=\s+[A-Z][\w'’]*[,:]?\s+\S)|[!?](?=\s+[A-Z])|;(?=\s+(?:because|since|as|so)\b)"
    r"|\n|</[A-Za-z]|<br\b|<\|"
)
# Space before a sentence, and lines that only open display math.
_SENTENCE_START = re.compile(r"\s*(?:(?:\\\[|\\\(|\$\$?)[ \t]*[\r\n]\s*)*")
# "E. coli" is a name, but the text of an option may also begin with a small letter: "B. increases".
_SPECIES = (
    r"(?:albicans|anthracis|aureus|botulinum|burgdorferi|cerevisiae|cereus|coli|difficile|diphtheriae|elegans|faecalis"
    r"|fragilis|histolytica|influenzae|jejuni|melanogaster|neoformans|perfringens|pertussis|pylori|subtilis|tetani"
    r"|trachomatis)\b"
)
# A sentence about letters may contain "B; C", "B? No, C", "B... no, C" and "E. coli".
_LETTERS_END = re.compile(rf"(?<!\.)\.(?=\s|$)(?!(?<=\b[A-J]\.)\s{_SPECIES})|!(?=\s|$)|<|\n")
_OPEN = r"[\s*_`\"'$({\[\\]{0,12}(?:\\(?:text|textbf|mathrm|mathbf|mbox|boxed)\s?\{[\s(]{0,4})?"
_CLOSE = r"[\s*_`\"'$)}\]\\.:,;]{0,12}"
_LONE_LETTER = re.compile(rf"{_OPEN}(?P<letter>[A-Ja-j]){_CLOSE}")
# "B", "(B) 5 eV", "option B because ..", "the correct choice is B"; never the article in "a proton"
# or "A proton".
_NAMED_LETTER = re.compile(
    r"(?:the\s)?(?:correct\s|best\s|right\s)?(?P<named>(?:option|choice|answer|letter)\s(?:is\s)?:?)?"
    rf"{_OPEN}(?P<letter>[A-J])(?P<next>[^\w']|$)",
    re.IGNORECASE,
)
# After the letter: another option is possible too, or the option is rejected.
_FILLER = (
    r"(?:or|and|not|no|nor|possibly|perhaps|maybe|even|also|both|either|option|choice|answer|wait|its?|is|actually|the"
    r"|then|sorry|rather|but)"
)
_JOIN = r"(?:\b(?i:or|and|vs|versus|nor|but|no|wait|to)\b|[,;/&|+?:<>=])"
_FILLERS = rf"(?:(?i:{_FILLER})\b[\s(*\"'’,.:]{{1,6}}){{0,6}}"
_ANOTHER = (
    rf"[\s(*\"'’,.:)\]]{{0,6}}{_FILLERS}"
    r"(?![AI]\s[a-z])[A-J]\b(?!['’])(?!\s(?:is|are|was|would\sbe)\s(?:wrong|incorrect|not|false|too)\b)"
)
_SECOND_LETTER = re.compile(rf"(?:{_JOIN}|\s[-–—]\s|\.\.\.|…|\\(?:lor|vee|land|wedge)\b|\A\s){_ANOTHER}")
# "B) Vitamin A and D": the text of an option may name letters. After a label with a text, only a letter that
# adjoins the label ("B) or C"), a second label ("B) 5 eV or C) 6 eV") or a correction is another option.
_LABEL = re.compile(r"[*_]{0,2}[).][*_:]{0,3}\s(?=\S)")
_SECOND_LABEL = re.compile(
    rf"\A{_JOIN}{_ANOTHER}|\A\(?[A-J]\)|{_JOIN}\s?{_FILLERS}[A-J](?:\)|[.:]\s\S)|\b(?i:no|wait|sorry)\b{_ANOTHER}"
)
_REJECTED = re.compile(
    r"\A[\W_]{0,6}(?:(?:is|was|are|seems|looks)\s(?:clearly\s|definitely\s)?(?:not|wrong|incorrect|false|impossible|eliminated|excluded"
    r"|ruled|out|unlikely|invalid|refuted)\b|(?:isn|wasn|can)['’]t\b|cannot\b)|\b(?:unless|if)\b|\A\+",
    re.IGNORECASE,
)
_LETTER_REASON = re.compile(r"\b(?:because|since|as|due\sto|given|not|rather\sthan|instead\sof)\b", re.IGNORECASE)
_LETTER_MARKUP = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s?\{|[{}$]|\\[,;:! ]|\\(?=[()\[\]])|\\q?quad(?![a-z])"
)
_STATED_OPTION = re.compile(
    r"[*_\s]{0,4}(?:(?:therefore|thus|so|hence),?\s)?(?:the\s)?(?:option|choice)\s[*_(]{0,4}(?P<letter>[A-J])[*_)]{0,4}"
    r"(?:\sis\s(?:the\s)?(?:correct|right|best)(?:\s(?:answer|option|choice|one))?)?[.*_\s]{0,4}",
    re.IGNORECASE,
)
# "C) 5 eV" and "(C) 5 eV" as a whole line.
_OPTION_LINE = re.compile(r"[*_\s]{0,4}\(?[A-J]\)[*_:]{0,3}\s{0,4}[^\s*_]")
_OPTION_MARK = re.compile(r"(?<!\w)[A-J]\)")
# "**C** (Both A and B)": the text of the option in parentheses, which may name letters.
_RESTATED = re.compile(r"\A[*_)]{0,4}\s\((?i:both|neither|all|none)\b[^()]{0,60}\)")
# After the letter: the rest of a name ("B cells", "C-peptide", "C=O stretch"), and no reason or remark.
_NAME = re.compile(
    r"\s(?!(?:because|since|as|is|are|was|and|or|nor|not|no|but|to|versus|vs|rather|instead|with|by|given|due|for|at|from"
    r"|which|if|unless|so|when|while|where|although|via|per|using|in|on|wait|option|choice|answer|both|only"
    r"|of|after|under|among|then|here|indeed|overall|fits|matches|works)\b)[a-z]{2}"
    rf"|\.\s?{_SPECIES}|[-\u2010\u2011\u2013=][A-Za-z]"
)
_CLOSING = frozenset(")]}")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s?\{([^{}]{0,256})\}")
_DECORATION = " \t\n\r*_`\"'$.,;:!?()[]{}<>"
_DECIMAL_POINT = re.compile(r"(?<!\.)\.\Z")


@dataclass(frozen=True, kw_only=True)
class AnswerKind:
    """How answers of one kind are read and compared."""

    normalize: Callable[[str], str | None]
    """Text -> canonical answer if the whole text is an answer of this kind, else None."""
    read: Callable[[str], str | None]
    """Content of a box, a tag or a line after `####` -> canonical answer, or None."""
    read_sentence: Callable[[str], str | None]
    """Text after "the answer is" -> canonical answer, or None."""
    read_label: Callable[[str], str | None] | None = None
    """Text after "Answer:" or a heading -> canonical answer, or None; if absent, `read_sentence` reads it."""
    gold: Callable[[str], str | None]
    """Text -> canonical gold answer, or None if the text cannot be one."""
    compare: Callable[[str, str], str | None]
    """(answer, canonical gold) -> verdict, or None if algebra is needed."""
    is_plain: Callable[[str], bool] = lambda _: True
    """Whether the text after "the answer is" is a result, and not a computation or other words."""
    worded: bool = False
    """Whether answers may start with a letter.

    Then a line after `####` that starts with one may be an answer.
    """
    strong_first: bool = False
    """Whether a tag or box takes precedence over sentences, independently of the position."""
    extract: Callable[[str], str | None] | None = None
    """Text after the thoughts -> canonical answer, or None; instead of everything in `extract.py`."""
    compare_many: Callable[[Sequence[tuple[str, str]]], list[str]] | None = None
    """[(answer, canonical gold)] -> verdicts; instead of `compare`, for many at once."""


def first_sentence(text: str, sentence_end: re.Pattern[str] = _SENTENCE_END) -> str:
    """The text up to the end of its first sentence, without lines before it that only open display math.

    >>> first_sentence("\\n\\\\[\\n 18 \\n\\\\] Done.")
    '18 '
    """
    text = _SENTENCE_START.sub("", text, count=1)
    end = sentence_end.search(text)
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
    if len(line) > MAX_BARE_TEXT_CHARS:
        return None
    match = _LONE_LETTER.fullmatch(line) or _STATED_OPTION.fullmatch(line)
    return match["letter"].upper() if match is not None else None


def _bare_letter(text: str) -> str | None:
    """The letter of `normalize_letter`, or of a last line that is only one option with its text.

    A line after another option, or the option that follows the last one before, belongs to a list of
    the options, and is no answer.

    >>> [_bare_letter(t) for t in ("**C) 5 eV**", "B is too small.\\n\\n(C) 5 eV", "A) 1 eV\\nB) 5 eV", "C) 5 or D) 6")]
    ['C', 'C', None, None]
    >>> [_bare_letter("A) 1 eV\\nToo small.\\nB) 5 eV" + end) for end in ("", "\\nIt fits.\\n**B) 5 eV**")]
    [None, 'B']
    """
    *before, line = [line for line in text[-2 * MAX_ANSWER_CHARS :].splitlines() if line.strip()] or [""]
    is_option = len(line) <= MAX_BARE_TEXT_CHARS and _OPTION_LINE.match(line) and len(_OPTION_MARK.findall(line)) == 1
    if not is_option or (before and _OPTION_LINE.match(before[-1])):
        return normalize_letter(text)
    letter = read_letter(line.strip(" \t*_"))
    earlier = [read_letter(option.strip(" \t*_")) for option in before if _OPTION_LINE.match(option)]
    if letter is not None and earlier and earlier[-1] is not None and ord(letter) == ord(earlier[-1]) + 1:
        return None  # the next option of a discussion that was cut
    return letter


def read_letter(payload: str) -> str | None:
    """The capital letter that a box, tag or sentence names, or None if it names none or several.

    >>> [read_letter(t) for t in ("(B) 5 eV", "\\\\text{C}", "option D because", "a proton", "A and B", "d")]
    ['B', 'C', 'D', None, None, 'D']
    >>> [read_letter(t) for t in ("B or C", "B; C", "B is wrong, C is right", "B, not C", "\\\\text{Option B}")]
    [None, None, None, 'B', 'B']
    >>> [read_letter(t) for t in ("D) Both A and B", "A) or B)", "B) 5 eV or C) 6 eV")]
    ['D', None, None]
    """
    payload = payload.strip().replace("\n", " ; ")
    payload = " ".join(_LETTER_MARKUP.sub(" ", payload).split())[:MAX_ANSWER_CHARS]
    whole = _LONE_LETTER.fullmatch(payload)
    if whole is not None:
        return whole["letter"].upper()
    match = _NAMED_LETTER.match(payload)
    if match is None:
        return None
    rest = payload[match.start("next") :]
    claim, label = _RESTATED.sub("", _LETTER_REASON.split(rest, maxsplit=1)[0]), _LABEL.match(rest)
    several = _SECOND_LABEL.search(claim[label.end() :]) if label is not None else _SECOND_LETTER.search(claim)
    if _REJECTED.search(rest) or several:
        return None
    letter = match["letter"]
    is_name = match["named"] is None and _NAME.match(rest)
    if match["next"] not in _CLOSING and (letter.islower() or is_name):
        return None
    return letter.upper()


def normalize_text(text: str) -> str | None:
    """Text without case, decoration and repeated spaces; None if it is empty or too long.

    A period before a digit is no decoration.

    >>> normalize_text("  **New  York.** "), normalize_text("\\\\text{yes}"), normalize_text("...")
    ('new york', 'yes', None)
    >>> normalize_text("($.5)."), normalize_text("...5")
    ('.5', '5')
    """
    if len(text) > MAX_ANSWER_CHARS:
        text = text.strip()
    if len(text) > MAX_ANSWER_CHARS:
        return None
    text = unicodedata.normalize("NFC", _WRAPPED.sub(r"\1", text)).casefold()
    bare = text.strip(_DECORATION)
    decimal = bare[:1].isdecimal() and _DECIMAL_POINT.search(text[: text.index(bare)]) is not None
    return " ".join(("." * decimal + bare).split()) or None


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


def _quantity(text: str) -> str:
    """The first sentence; where it has no digit, also what follows an abbreviation ("Mr. Tan has 18 apples")."""
    sentence = first_sentence(text)
    return sentence if re.search(r"[0-9]", sentence) else first_sentence(text, _QUANTITY_END)


KINDS = {
    "number": AnswerKind(
        normalize=normalize_number,
        read=read_number,
        read_sentence=lambda t: read_number(_quantity(t)),
        is_plain=lambda t: is_plain_quantity(_quantity(t)),
        gold=normalize_number,
        compare=_same(normalize_number),
    ),
    "integer": AnswerKind(
        normalize=normalize_integer,
        read=read_number,
        read_sentence=lambda t: read_number(_quantity(t)),
        is_plain=lambda t: is_plain_quantity(_quantity(t)),
        gold=normalize_integer,
        compare=_same(normalize_integer),
    ),
    "latex": AnswerKind(
        normalize=whole_latex,
        read=read_latex,
        read_sentence=read_latex_sentence,
        is_plain=lambda t: is_plain_latex(read_latex_sentence(t) or ""),
        gold=gold_latex,
        compare=compare_latex,
        worded=True,
    ),
    "letter": AnswerKind(
        normalize=_bare_letter,
        read=read_letter,
        read_sentence=lambda t: read_letter(first_sentence(t, _LETTERS_END)),
        gold=normalize_letter,
        compare=_same(normalize_letter),
        worded=True,
        strong_first=True,
    ),
    "text": AnswerKind(
        normalize=_bare_text,
        read=_read_text,
        read_sentence=lambda t: _read_text(first_sentence(t)),
        read_label=lambda t: _read_text(first_sentence(t, _LINE_END).strip().removesuffix(".")),
        gold=_gold_text,
        compare=_same(normalize_text),
        worded=True,
        strong_first=True,
    ),
}
"""Name -> kind; these are the values of a problem's `answer_kind`."""


_OWN: ContextVar[Mapping[str, AnswerKind]] = ContextVar("own_kinds", default={})  # noqa: B039 - never changed


@contextmanager
def own_kinds(kinds: Mapping[str, AnswerKind]) -> Iterator[None]:
    """Within the block, the user's kinds of a run are known by their names (`own.py` makes them)."""
    token = _OWN.set(kinds)
    try:
        yield
    finally:
        _OWN.reset(token)


def answer_kind(kind: str) -> AnswerKind:
    """The entry of `KINDS`, or the user's kind of the present run.

    Raises:
        ValueError: the kind is unknown; the message lists the known kinds.
    """
    known = known_kinds()
    if kind not in known:
        raise ValueError(f"unknown answer kind {kind!r}; known: {', '.join(sorted(known))}")
    return known[kind]


def known_kinds() -> Mapping[str, AnswerKind]:
    """`KINDS`, and the user's kinds of the present run."""
    return {**KINDS, **_OWN.get()}
