r"""Extraction of the last explicit answer of a completion (METHOD.md section 2).

In: the text of a model (untrusted data of any size) and the kind of answer that the problem asks
for. Out: the canonical answer or None, and the token F1 of Eq. 2. The work is linear in the length
of the text: every quantifier in the patterns is bounded, and only the last `MAX_MARKERS` markers
with at most `MAX_PAYLOAD_CHARS` characters after each are examined. The differences between the
kinds are in `kinds.py`, and verdicts are made in `verifier.py`.
"""

from __future__ import annotations

import re
from collections import Counter, deque

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
# "answer: 5", "**Answer**: 5", "the final answer is 5". HEADING is a line "Final Answer" with the
# answer below it.
STATED = r"\b(?:final_)?answer\b[\s*_`\"']{0,8}(?::|=|\bis\b)"
HEADING = r"^[ \t\#*_]{0,16}(?:final[ \t]{1,4})?answer[ \t*_]{0,8}\r?$"

MAX_MARKERS = 64
MAX_PAYLOAD_CHARS = 4096

_FLAGS = re.IGNORECASE | re.MULTILINE
_MARKER = re.compile(rf"(?P<tag>{OPEN_TAG})|(?P<box>{BOX})|(?P<stated>{STATED}|{HEADING})|(?P<hash>{HASHES})", _FLAGS)
_ANY_TAG = re.compile(rf"{OPEN_TAG}|{CLOSE_TAG}", _FLAGS)
_BRACE = re.compile(r"\\[\\{}]|[{}]")
_STRONG = frozenset({"tag", "box"})
_NEGATED = re.compile(r"\s*not\b", re.IGNORECASE)
# A line after #### is a heading if it looks like "3. Add", or if it starts with a word and answers
# do not.
_NUMBERED_HEADING = re.compile(r"\s*(?:step\s)?[0-9]+[.):]\s+\S", re.IGNORECASE)
_HEADING_TEXT = re.compile(rf"{_NUMBERED_HEADING.pattern}|\s*[^\W\d]")
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
    stripped = rest.lstrip(" \t*_:=`\"'")
    if stripped.startswith(("\n", "\r")):
        stripped = re.sub(r"^\s*(?:[-*] |[*_`]+)?", "", stripped)
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
    line = _line_payload(text, start)
    if match.lastgroup == "hash":
        line = re.split(r"[\n<]", line, maxsplit=1)[0]
        return None if heading.match(line) else line
    return None if _NEGATED.match(line) else line


def _as_it_stands(payload: str, rules: AnswerKind) -> str:
    """The content of a tag or box that is not an answer of the kind, cut to `MAX_ANSWER_CHARS`.

    The cut is marked if the beginning alone could be an answer.
    """
    if not rules.worded:
        return payload.strip()[:MAX_ANSWER_CHARS]
    words = " ".join(payload.split())
    return words if len(words) <= MAX_ANSWER_CHARS else words[: MAX_ANSWER_CHARS - 1] + CUT


def extract_answer(text: str, kind: str) -> str | None:
    r"""The last explicit answer of a completion in canonical form, or None if there is none.

    Explicit answers are answer tags (closed or not), balanced `\boxed{..}`, `#### ..`,
    "answer: ..", "answer is ..", and a text that consists only of an answer. Only the text after
    the thoughts counts. A tag or box with content of another kind is a wrong answer and is returned
    unchanged, up to `MAX_ANSWER_CHARS` characters. A sentence or heading without an answer of this
    kind is not an answer. Letters and words occur in any sentence, so for these kinds a tag or box
    takes precedence over sentences, independently of the position.

    Raises:
        ValueError: the kind is unknown.

    >>> extract_answer("so \\boxed{12}. No: the answer is 1,300 m.", "number")
    '1300'
    >>> extract_answer("3 + 4 makes 7", "number") is None
    True
    """
    rules = answer_kind(kind)
    text = after_thinking(text)
    markers = list(reversed(deque(_MARKER.finditer(text), maxlen=MAX_MARKERS)))
    if rules.strong_first:
        markers.sort(key=lambda match: match.lastgroup not in _STRONG)
    heading = _NUMBERED_HEADING if rules.worded else _HEADING_TEXT
    unread = None
    for match in markers:
        payload = _payload(text, match, heading)
        if payload is None or not payload.strip():
            continue
        answer = rules.read_sentence(payload) if match.lastgroup == "stated" else rules.read(payload)
        if answer is None and match.lastgroup in _STRONG:
            unread = unread or _as_it_stands(payload, rules)
            answer = None if rules.strong_first else unread
        if answer is not None:
            return answer
    return rules.normalize(text) or unread


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
