r"""Answers: find the last explicit answer of a completion; what other modules need of answers is offered here.

In: text of a model (data of any size and shape, never trusted) and the kind of answer the problem asks for.
Out: the canonical answer or None, the token F1 of Eq. 2. All work is linear in the text and bounded after that: every
quantifier in the patterns is bounded, only the last `MAX_MARKERS` markers are looked at, and at most
`MAX_PAYLOAD_CHARS` characters behind each of them.
How the kinds differ is said in answer_kinds.py; verdicts are verify.py's.
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
    "SAYS",
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
# "answer: 5", "**Answer**: 5", "the final answer is 5", and a heading "Final Answer" with the answer below it.
SAYS = r"\b(?:final_)?answer\b[\s*_`\"']{0,8}(?::|=|\bis\b)"
HEADING = r"^[ \t\#*_]{0,16}(?:final[ \t]{1,4})?answer[ \t*_]{0,8}\r?$"

MAX_MARKERS = 64
MAX_PAYLOAD_CHARS = 4096

_FLAGS = re.IGNORECASE | re.MULTILINE
_MARKER = re.compile(rf"(?P<tag>{OPEN_TAG})|(?P<box>{BOX})|(?P<says>{SAYS}|{HEADING})|(?P<hash>{HASHES})", _FLAGS)
_ANY_TAG = re.compile(rf"{OPEN_TAG}|{CLOSE_TAG}", _FLAGS)
_BRACE = re.compile(r"\\[\\{}]|[{}]")
_STRONG = frozenset({"tag", "box"})
_NEGATED = re.compile(r"\s*not\b", re.IGNORECASE)
# What makes a line behind #### a heading: "3. Add", or any word where an answer does not begin with one.
_NUMBERED_HEADING = re.compile(r"\s*(?:step\s)?[0-9]+[.):]\s+\S", re.IGNORECASE)
_HEADING_TEXT = re.compile(rf"{_NUMBERED_HEADING.pattern}|\s*[^\W\d]")
_TOKEN = re.compile(r"-?[0-9]+(?:\.[0-9]+)?|[^\W\d_]+|[^\w\s]|_")


def after_thinking(text: str) -> str:
    """The text after the last `</think>` or `[/THINK]`, or all where there is none; up to a thought that is opened and never closed."""
    end = max((text.rfind(mark) + len(mark) for mark in ("</think>", "[/THINK]") if mark in text), default=0)
    opened = [start for mark in ("<think>", "[THINK]") if (start := text.find(mark, end)) >= 0]
    return text[end : min(opened, default=len(text))]


def closing_brace(text: str, start: int, stop: int) -> int:
    """Index of the brace that closes the one just before `start`, or -1 when it is not closed before `stop`."""
    depth = 1
    for match in _BRACE.finditer(text, start, stop):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return -1


def _line_payload(text: str, start: int) -> str:
    """Rest of the line behind `start`; when that holds only decoration, the next line that holds more."""
    rest = text[start : start + MAX_PAYLOAD_CHARS]
    stripped = rest.lstrip(" \t*_:=`\"'")
    if stripped.startswith(("\n", "\r")):
        stripped = re.sub(r"^\s*(?:[-*] |[*_`]+)?", "", stripped)
    return stripped


def _payload(text: str, match: re.Match[str], heading: re.Pattern[str]) -> str | None:
    """The text that a marker points to, or None when the marker is not an answer (unclosed box, heading)."""
    start = match.end()
    stop = min(len(text), start + MAX_PAYLOAD_CHARS)
    if match.lastgroup == "box":
        end = closing_brace(text, start, stop)
        return text[start:end] if end >= 0 else None
    if match.lastgroup == "tag":
        end_tag = _ANY_TAG.search(text, start, stop)
        payload = text[start : end_tag.start() if end_tag else stop].strip()
        # Without a closing tag (cut off, or cut at a stop string) only the first line is the answer.
        return payload if end_tag else payload.split("\n", 1)[0]
    line = _line_payload(text, start)
    if match.lastgroup == "hash":
        line = re.split(r"[\n<]", line, maxsplit=1)[0]
        return None if heading.match(line) else line
    return None if _NEGATED.match(line) else line


def _as_it_stands(payload: str, rules: AnswerKind) -> str:
    """What a tag or box holds, when it is no answer of the kind. A cut is marked, where its beginning could be an answer."""
    if not rules.worded:
        return payload.strip()[:MAX_ANSWER_CHARS]
    words = " ".join(payload.split())
    return words if len(words) <= MAX_ANSWER_CHARS else words[: MAX_ANSWER_CHARS - 1] + CUT


def extract_answer(text: str, kind: str) -> str | None:
    r"""The last explicit answer of a completion in canonical form, or None when there is none.

    Explicit are: answer tags (closed or not), balanced `\boxed{..}`, `#### ..`, "answer: .." and "answer is ..",
    or a text that is nothing but an answer. Only the text after the end of thinking counts, where it is marked. A tag or box
    whose content is not of this kind is returned as it stands (at most `MAX_ANSWER_CHARS` characters): it is
    the answer, and wrong. Sentences and headings without an answer of this kind are not answers. Letters and words occur in
    any sentence: for these kinds a tag or box counts before a sentence, wherever it stands.
    Raises ValueError for an unknown kind.

    >>> extract_answer("so \\boxed{12}. No: the answer is 1,300 m.", "number"), extract_answer("3 + 4 makes 7", "number")
    ('1300', None)
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
        answer = rules.read_sentence(payload) if match.lastgroup == "says" else rules.read(payload)
        if answer is None and match.lastgroup in _STRONG:
            unread = unread or _as_it_stands(payload, rules)
            answer = None if rules.strong_first else unread
        if answer is not None:
            return answer
    return rules.normalize(text) or unread


def token_f1(answer: str | None, gold: str) -> float:
    """Partial credit of Eq. 2 in [0, 1]: F1 of the token multisets of the normalised answer and gold.

    A number counts as one token, whatever its notation. No answer, or no token on either side: 0.

    >>> token_f1("1,200", "1200"), token_f1("13", "12"), token_f1(None, "12"), token_f1("x and y", "y and z")
    (1.0, 0.0, 0.0, 0.6666666666666666)
    """
    if answer is None:
        return 0.0
    sides = [Counter(_TOKEN.findall((normalize_number(t) or t[:MAX_PAYLOAD_CHARS]).casefold())) for t in (answer, gold)]
    shared = (sides[0] & sides[1]).total()
    return 2 * shared / (sides[0].total() + sides[1].total()) if shared else 0.0
