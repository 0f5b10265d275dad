r"""Extraction of the last explicit answer of a completion (METHOD.md section 2).

In: the text of a model (untrusted data of any size) and the kind of answer that the problem asks
for. Out: the canonical answer or None, and the token F1 of Eq. 2. The work is linear in the length
of the text: every quantifier in the patterns is bounded, and only the last `MAX_MARKERS` markers
with at most `MAX_PAYLOAD_CHARS` characters after each are examined. The differences between the
kinds are in `kinds.py`, and verdicts are made in `verifier.py`.
"""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Callable, Sequence

from core_hpc.answers.kinds import AnswerKind, answer_kind
from core_hpc.answers.latex import CUT
from core_hpc.answers.numbers import MAX_ANSWER_CHARS, normalize_number
from core_hpc.answers.verifier import verify, verify_many

__all__ = [
    "BOX",
    "CLOSE_TAG",
    "HEADING",
    "MAX_ANSWER_CHARS",
    "OPEN_TAG",
    "STATED",
    "after_thinking",
    "answer_kind",
    "closing_brace",
    "extract_answer",
    "normalize_number",
    "token_f1",
    "verify",
    "verify_many",
]

ANSWER_TAG = r"(?:final_answer|answer|outcome|result|strategy_\w{1,32}_outcome)"
OPEN_TAG = rf"<{ANSWER_TAG}(?:\s[^<>]{{0,200}})?>"
CLOSE_TAG = rf"</{ANSWER_TAG}\s{{0,8}}>"
BOX = r"(?:boxed|fbox)\s{0,8}\{"
HASHES = r"(?<!\#)\#{4}(?!\#)"
# "answer: 5", "**Answer**: 5", "the answer to the question must be 5", "the correct option is B",
# "answer (in dollars): 5". HEADING is a line "Final Answer" with the answer below it.
STATED = (
    r"\b(?:(?:final_)?answer|(?:correct|right|best)[ \t]{1,4}(?:option|choice|letter))\b[\s*_`\"']{0,8}"
    r"(?:\([^()\d\n:=<]{2,40}\)[\s*_`\"']{0,8})?"
    r"(?:(?:to|for)\b[^\n.:=<]{1,60}?"
    r"|in(?![ \t]{1,4}(?:the|this|that|an?|one|your)\b)(?:[ \t]{1,4}[\w/]{1,16}){1,3}[\s*_`\"']{0,8}?)?"
    r"(?::|：|=|\bis\b|\bequals\b|\b(?:must|should|would|will|has[ \t]to)[ \t]{1,4}be\b)"
)
HEADING = r"^[ \t\#*_]{0,16}(?:final[ \t]{1,4})?answer[ \t*_\#]{0,8}\r?$"

MAX_MARKERS = 64
MAX_PAYLOAD_CHARS = 4096

_FLAGS = re.IGNORECASE | re.MULTILINE
# The first characters are checked first, which makes the scan of a text fast.
_MARKER = re.compile(
    rf"(?:(?=[<#bfacr])|^(?=[ \t*_]))"
    rf"(?:(?P<tag>{OPEN_TAG})|(?P<box>{BOX})|(?P<stated>{STATED}|{HEADING})|(?P<hash>{HASHES}))",
    _FLAGS,
)
# Decoration at the beginning of the first line with content; of a block of code, the line that opens it.
_LINE_START = re.compile(r"\s*(?:[-*] |`{3}(?:text|math|latex)?[ \t]*(?=[\r\n])|[*_`]+)?")
_ANY_TAG = re.compile(rf"{OPEN_TAG}|{CLOSE_TAG}", _FLAGS)
_BRACE = re.compile(r"\\[\\{}]|[{}]")
_STRONG = frozenset({"tag", "box"})
_VERB_END = re.compile(r"(?:is|equals|be)\Z", re.IGNORECASE)  # "the answer is", not "Answer:" or a heading
_NEGATED = re.compile(r"\s*(?:not|never)\b", re.IGNORECASE)
_FINAL = re.compile(r"final[\s*_]{0,4}\Z", re.IGNORECASE)
_CLAUSE_CHARS = 80
_CLAUSE_END = re.compile(r"[.!?;\n]")
_WRONG = re.compile(
    r"\b(?:wrong|incorrect|mistaken|tempting|naive|false)[\s*_]{1,4}(?:final[\s*_]{1,4})?\Z", re.IGNORECASE
)
# Words before "answer" that announce a check, a condition or a draft, and an open parenthesis.
_ASIDE = re.compile(
    r"\b(?:(?:double-?)?check\w*|verif\w+|confirm\w*|compar\w+|substitut\w+|plug\w*|if|suppose|assum\w+|estimate\w*"
    r"|approximate|partial|intermediate|preliminary|initial|previous|earlier|original|another|alternative)\b|\([^()]*\Z",
    re.IGNORECASE,
)
_JSON_KEY = re.compile(r"[\"']\s{0,4}:\Z")
_JSON_VALUE = re.compile(r"\s{0,8}(\"(?:[^\"\\\n]|\\.){0,512}\"|'[^'\n]{0,512}'|\[[^\]\n]{0,512}\]|[^,}\n]{0,512})")
# Text between two boxes that are elements of one list, without its LaTeX.
_BOX_MARKUP = re.compile(r"\\(?:text|textrm|mbox)\s?\{|\\q?quad(?![a-z])|[\\(){}\[\]$\s]")
_BETWEEN_BOXES = re.compile(r"[,;&/]|,?and|,?or(?:[a-zA-Z]=)?")
_MAX_BETWEEN = 48
_MAX_LISTED_BOXES = 8
# A line after #### is a heading if it looks like "3. Add", or if it starts with a word and answers
# do not. "N = 5" and "USD 5" are no headings.
_NUMBERED_HEADING = re.compile(r"\s*(?:step\s)?[0-9]+[.):]\s+\S", re.IGNORECASE)
_HEADING_TEXT = re.compile(rf"{_NUMBERED_HEADING.pattern}|\s*(?!\w{{1,16}}\s?=|(?:USD|EUR|GBP)\b)[^\W\d]")
# "#### 42 ####" and "#### <42>".
_CLOSED_HASHES = re.compile(r"\#{4}[^\n]{0,256}\w[^\n]{0,256}\Z")
_CLOSING_HASHES = re.compile(r"(?:[ \t]\#+|\#{2,})\s*\Z")
_ENCLOSED = re.compile(r"\A\s*[<\[]\s{0,4}([-+]?[$€£]?[0-9]{1,128}(?:\.[0-9]{1,64})?)\s{0,4}[>\]]")
_NEW_SENTENCE = re.compile(r"\.\s+(?=[A-Z])")
_TOKEN = re.compile(r"-?[0-9]+(?:\.[0-9]+)?|[^\W\d_]+|[^\w\s]|_")


def after_thinking(text: str) -> str:
    """The text after the last `</think>` or `[/THINK]`, or the whole text if there is none.

    A later thought that is opened but not closed is left out.
    """
    end = max((text.rfind(mark) + len(mark) for mark in ("</think>", "[/THINK]") if mark in text), default=0)
    opened = [start for mark in ("<think>", "[THINK]") if (start := text.find(mark, end)) >= 0]
    return text[end : min(opened, default=len(text))]


def closing_brace(text: str, start: int, stop: int) -> int:
    """Index of the brace that closes the one just before `start`, or -1 if `stop` comes first."""
    depth = 1
    for match in _BRACE.finditer(text, start, stop):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return -1


def _line_payload(text: str, start: int) -> str:
    """Rest of the line after `start`; if it is only decoration, the next line with content."""
    rest = text[start : start + MAX_PAYLOAD_CHARS]
    stripped = rest.lstrip(" \t*_:：=`\"'")
    if stripped.startswith(("\n", "\r")):
        stripped = _LINE_START.sub("", stripped, count=1)
    return stripped


def _payload(text: str, match: re.Match[str], heading: re.Pattern[str]) -> str | None:
    """The text that belongs to a marker, or None for an unclosed box or a heading."""
    start = match.end()
    stop = min(len(text), start + MAX_PAYLOAD_CHARS)
    if match.lastgroup == "box":
        end = closing_brace(text, start, stop)
        return text[start:end] if end >= 0 else None
    if match.lastgroup == "tag":
        end_tag = _ANY_TAG.search(text, start, stop)
        payload = text[start : end_tag.start() if end_tag else stop].strip()
        # Without a closing tag (the text was cut) only the first line is the answer.
        return payload if end_tag else payload.split("\n", 1)[0]
    if match.lastgroup == "stated":
        if _WRONG.search(text, max(0, match.start() - 32), match.start()):
            return None
        if text[max(0, match.start() - 1) : match.start()] in ('"', "'") and _JSON_KEY.search(match.group()):
            value = _json_value(text, start)
            return None if _NEGATED.match(value) else value
    line = _line_payload(text, start)
    if match.lastgroup == "hash":
        before = text[text.rfind("\n", 0, match.start()) + 1 : match.start()][-MAX_ANSWER_CHARS:]
        if _CLOSED_HASHES.search(before) and not text[start : start + MAX_PAYLOAD_CHARS].split("\n", 1)[0].strip():
            return None
        line = _CLOSING_HASHES.sub("", re.split(r"[\n<]", _ENCLOSED.sub(r"\1", line), maxsplit=1)[0])
        return None if heading.match(line) else line
    return None if _NEGATED.match(line) else line


def _json_value(text: str, start: int) -> str:
    """The value of a JSON key that ends at `start`; a string without its quotes."""
    match = _JSON_VALUE.match(text, start)
    value = match[1].strip() if match is not None else ""
    if value.startswith('"'):
        try:
            return str(json.loads(value, strict=False))
        except ValueError:
            return value.strip('"')
    return value.strip("'")


def _as_it_stands(payload: str, rules: AnswerKind) -> str:
    """The content of a tag or box that is not an answer of the kind, cut to `MAX_ANSWER_CHARS`.

    The cut is marked if the beginning alone could be an answer.
    """
    if not rules.worded:
        return payload.strip()[:MAX_ANSWER_CHARS]
    words = " ".join(payload.split())
    return words if len(words) <= MAX_ANSWER_CHARS else words[: MAX_ANSWER_CHARS - 1] + CUT


def _joined_boxes(text: str, markers: Sequence[re.Match[str]], last: int, rules: AnswerKind) -> tuple[str, int]:
    r"""The content of the box `markers[last]`, and the index of the first box of its list.

    Boxes that only "and", "or" or a comma separates are one list: "\boxed{3} and \boxed{-3}".
    `markers` is in the order of the text. Equal boxes count once.
    """
    first, contents = last, []
    end = closing_brace(text, markers[last].end(), min(len(text), markers[last].end() + MAX_PAYLOAD_CHARS))
    contents.append(text[markers[last].end() : end])
    while first > 0 and len(contents) < _MAX_LISTED_BOXES and markers[first - 1].lastgroup == "box":
        before = markers[first - 1]
        if markers[first].start() - before.end() > MAX_PAYLOAD_CHARS:
            break
        end = closing_brace(text, before.end(), markers[first].start())
        between = text[end + 1 : markers[first].start()]
        if end < 0 or len(between) > _MAX_BETWEEN or not _BETWEEN_BOXES.fullmatch(_BOX_MARKUP.sub("", between)):
            break
        contents.append(text[before.end() : end])
        first -= 1
    distinct = {rules.read(content) or content.strip(): content for content in reversed(contents)}
    # A number has no lists, and "7, none" must not be read as 7.
    return (", " if rules.worded else " | ").join(content.strip() for content in distinct.values()), first


def _reader(match: re.Match[str], rules: AnswerKind) -> Callable[[str], str | None]:
    """The function that reads the text after a marker."""
    if match.lastgroup == "hash" and not rules.worded:
        return lambda line: rules.read(line) or rules.read(_NEW_SENTENCE.split(line, maxsplit=1)[0])
    if match.lastgroup != "stated":
        return rules.read
    if rules.read_label is None or _VERB_END.search(match.group()):
        return rules.read_sentence
    return rules.read_label


def _is_aside(text: str, match: re.Match[str]) -> bool:
    """Whether the clause before "answer" announces a check, a condition or a draft."""
    clause = _CLAUSE_END.split(text[max(0, match.start() - _CLAUSE_CHARS) : match.start()])[-1]
    return _ASIDE.search(clause) is not None


def _is_final(text: str, match: re.Match[str]) -> bool:
    """Whether the statement is of a *final* answer."""
    return "final" in match.group().casefold() or bool(_FINAL.search(text, max(0, match.start() - 12), match.start()))


def extract_answer(text: str, kind: str, *, last_marker: bool = False) -> str | None:
    r"""The last explicit answer of a completion in canonical form, or None if there is none.

    Explicit answers are answer tags (closed or not), balanced `\boxed{..}`, `#### ..`,
    "final answer: ..", "answer: ..", "the answer is .." and similar sentences, and a text that
    consists only of an answer. Only the text after the thoughts counts. Boxes that "and", "or" or a
    comma joins are one answer, a list. A tag or box with content of another kind is a wrong answer
    and is returned unchanged, up to `MAX_ANSWER_CHARS` characters. A sentence or heading without an
    answer of this kind is not an answer.

    A computation or an explanation after the answer does not replace it (METHOD.md section 2). A
    sentence "answer .." without "final" replaces an earlier tag, box, #### or final answer only if
    it states a plain result. A sentence in parentheses, or one that announces a check or a
    condition, counts only if there is no other answer.

    Letters and words occur in any sentence, so for these kinds a tag or box takes precedence over
    sentences, independently of the position.

    Args:
        text: the completion.
        kind: a key of `kinds.KINDS`.
        last_marker: the rule of the paper's authors instead: the last marker with an answer wins.

    Raises:
        ValueError: the kind is unknown.

    >>> extract_answer("so \\boxed{12}. No: the answer is 1,300 m.", "number")
    '1300'
    >>> extract_answer("so \\boxed{12}. Check the answer: 12 / 2 = 6", "number")
    '12'
    >>> extract_answer("so \\boxed{12}. Check the answer: 12 / 2 = 6", "number", last_marker=True)
    '6'
    >>> extract_answer("3 + 4 makes 7", "number") is None
    True
    """
    rules = answer_kind(kind)
    text = after_thinking(text)
    if rules.extract is not None:
        return rules.extract(text)
    found = list(deque(_MARKER.finditer(text), maxlen=MAX_MARKERS))
    order = list(range(len(found) - 1, -1, -1))
    if rules.strong_first:
        order.sort(key=lambda i: found[i].lastgroup not in _STRONG)
    heading = _NUMBERED_HEADING if rules.worded else _HEADING_TEXT
    unread = computed = aside = None
    listed: set[int] = set()  # boxes that belong to a list that was examined
    for i in order:
        match = found[i]
        payload = None if i in listed else _payload(text, match, heading)
        if payload is None or not payload.strip():
            continue
        if match.lastgroup == "box":
            payload, first = _joined_boxes(text, found, i, rules)
            listed.update(range(first, i))
        answer = _reader(match, rules)(payload)
        if answer is None and match.lastgroup in _STRONG:
            unread = unread or _as_it_stands(payload, rules)
            answer = None if rules.strong_first else unread
        if answer is None:
            continue
        if match.lastgroup != "stated" or last_marker or rules.strong_first or _is_final(text, match):
            return answer
        if i == 0:  # nothing before it that it could replace
            return computed or (aside if aside and _is_aside(text, match) else answer)
        if _is_aside(text, match):
            aside = aside or answer
        elif rules.is_plain(payload):
            return computed or answer
        else:
            computed = computed or answer
    return computed or aside or rules.normalize(text) or unread


def token_f1(answer: str | None, gold: str) -> float:
    """Partial credit of Eq. 2 in [0, 1]: F1 of the token multisets of answer and gold answer.

    A number is one token in any notation. The result is 0 without an answer, or if a side has no
    tokens.

    >>> token_f1("1,200", "1200"), token_f1("13", "12"), token_f1(None, "12"), token_f1("x and y", "y and z")
    (1.0, 0.0, 0.0, 0.6666666666666666)
    """
    if answer is None:
        return 0.0
    sides = [Counter(_TOKEN.findall((normalize_number(t) or t[:MAX_PAYLOAD_CHARS]).casefold())) for t in (answer, gold)]
    shared = (sides[0] & sides[1]).total()
    return 2 * shared / (sides[0].total() + sides[1].total()) if shared else 0.0
