r"""The hint that a student gets from its teacher's completion (METHOD 1.3).

In: the teacher's text, the gold answer, and the student's tokenizer as two functions. Out: the hint, or None
when there is none. Answer payloads are removed; the computation that leads to them stays. Thoughts are no part of
a hint: they hold drafts of the answer in words that no pattern finds. Work is linear in the text: each pattern is
scanned once, and only a bounded prefix is tokenised.
This module does not choose the teacher and does not build prompts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from core_hpc.answers import extract
from core_hpc.protocol.compression import compress
from core_hpc.store.schema import CORRECT

Span = tuple[int, int]

_FLAGS = re.IGNORECASE | re.MULTILINE
_STRATEGY_TAG = re.compile(r"<(?P<close>/?)strategy(?:\s[^<>]{0,200})?>", _FLAGS)
_OUTCOME_TAG = r"(?:outcome|result|strategy_\w{1,32}_outcome)"
_OUTCOME_BEHIND = re.compile(
    rf"\s{{0,64}}<{_OUTCOME_TAG}(?:\s[^<>]{{0,200}})?>[^<]{{0,{extract.MAX_ANSWER_CHARS}}}", _FLAGS
)
_TAG = re.compile(rf"(?P<open>{extract.OPEN_TAG})|{extract.CLOSE_TAG}", _FLAGS)
_BOX = re.compile(rf"\\{{0,4}}{extract.BOX}", _FLAGS)
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,8}[^\s{]{1,64}", _FLAGS)
# Wider than what extraction reads ("the answer to the question is", "the final result is"): a hint rather loses
# a line too many than that it shows an answer.
_LABEL = re.compile(
    rf"\#{{4,8}}|{extract.HEADING}|[*_]{{0,3}}(?:\bthe[ \t]{{1,4}})?(?:\bfinal[ \t]{{1,4}})?"
    rf"(?:{extract.SAYS}|\b(?:final_)?answers?\b[^\n.:=<]{{0,60}}?(?::|=|\b(?:is|are|be)\b)"
    r"|\b(?:final_)?(?:outcome|result)\b[\s*_`\"']{0,8}(?::|=|\bis\b))",
    _FLAGS,
)
_LABEL_ONLY = re.compile(r"[\s*_:=`\"'-]{0,64}")
_THINK_TAG = re.compile(r"</?think>|\[/?THINK\]", _FLAGS)

_FIRST_CHARS_PER_TOKEN = 8
_BOUNDARY_TOKENS = 16


def strategy_blocks(text: str) -> Iterator[tuple[str, str]]:
    """(content, content with the outcome that directly follows) of every closed strategy block."""
    start = -1
    for match in _STRATEGY_TAG.finditer(text):
        if not match["close"]:
            start = match.end()
        elif start >= 0:
            content = text[start : match.start()]
            outcome = _OUTCOME_BEHIND.match(text, match.end())
            yield content, f"{content}\n{outcome.group().strip() if outcome else ''}"
            start = -1


def _source(text: str, gold: str, kind: str, style: str) -> str | None:
    """The first strategy block whose own outcome verifies; the whole text when it has no strategy tags and the style allows it."""
    if _STRATEGY_TAG.search(text) is None:
        return None if style == "strategy" else text
    for content, with_outcome in strategy_blocks(text):
        answer = extract.extract_answer(with_outcome, kind)
        if extract.verify(answer, gold, kind) == CORRECT:
            return content
    return None


def _tag_spans(text: str) -> Iterator[Span]:
    """Answer tags with their content; without a closing tag up to the end, without an opening one the line before."""
    start, done = -1, 0
    for match in _TAG.finditer(text):
        if match["open"]:
            start = match.start() if start < 0 else start
            continue
        if start < 0:
            start = max(done, text.rfind("\n", done, match.start()) + 1)
        yield start, match.end()
        start, done = -1, match.end()
    if start >= 0:
        yield start, len(text)


def _box_spans(text: str) -> Iterator[Span]:
    r"""`\boxed{..}` with nested braces; up to the end of the text when its braces are not closed."""
    position = 0
    while (box := _BOX.search(text, position)) is not None:
        end = extract.closing_brace(text, box.end(), len(text))
        position = end + 1 if end >= 0 else len(text)
        yield box.start(), position
    for match in _BARE_BOX.finditer(text):
        yield match.span()


def _label_spans(text: str) -> Iterator[Span]:
    """Labels ("the answer is", "####") to the end of their line; the next line that holds more when the rest is bare."""
    done = 0
    for match in _LABEL.finditer(text):
        if match.start() < done:
            continue
        rest = _LABEL_ONLY.match(text, match.end())
        end = text.find("\n", rest.end() if rest else match.end())
        done = len(text) if end < 0 else end
        yield match.start(), done


def remove_answers(text: str) -> str:
    r"""`text` without its answer payloads (tags, boxes, `####`, labelled lines) and without thinking tags.

    >>> remove_answers("4 + 7 = 11. 11 - 3 = 8. #### 8")
    '4 + 7 = 11. 11 - 3 = 8.'
    >>> remove_answers("Add them: \\boxed{\\text{so {8}}}.\nThe final answer is: 8\nCheck it.")
    'Add them:  .\n\nCheck it.'
    """
    spans = sorted(
        [*_tag_spans(text), *_box_spans(text), *_label_spans(text), *(m.span() for m in _THINK_TAG.finditer(text))]
    )
    kept, position = [], 0
    for start, end in spans:
        if start > position:
            kept.append(text[position:start])
        position = max(position, end)
    kept.append(text[position:])
    # Joined by a space, so that what surrounded a payload cannot form a new marker.
    lines = [line.rstrip() for line in " ".join(kept).split("\n")]
    return "\n".join(line for line, before in zip(lines, ["", *lines], strict=False) if line or before).strip()


def cut_to_tokens(
    text: str, tokenize: Callable[[str], Sequence[int]], detokenize: Callable[[Sequence[int]], str], max_tokens: int
) -> str:
    """The longest beginning of `text` (nearly) which is at most `max_tokens` tokens when tokenised again.

    `tokenize` adds no special tokens. Of a very long text only a beginning is tokenised, doubled until it holds
    enough tokens and some more, since the last tokens of a beginning depend on what follows.
    """
    num_chars = max_tokens * _FIRST_CHARS_PER_TOKEN + 64
    ids = tokenize(text[:num_chars])
    while len(ids) < max_tokens + _BOUNDARY_TOKENS and num_chars < len(text):
        num_chars *= 2
        ids = tokenize(text[:num_chars])
    keep, cut = max_tokens, text
    while len(ids) > max_tokens and keep > 0:
        # A cut inside a character decodes to replacement characters.
        cut = detokenize(ids[:keep]).rstrip("\ufffd").rstrip()
        excess = len(tokenize(cut)) - max_tokens
        if excess <= 0:
            return cut
        keep -= excess
    return cut if len(ids) <= max_tokens else ""


def _is_gold(hint: str, gold: str, kind: str) -> bool:
    """Does the hint amount to the gold answer, as a whole or by an explicit answer that survived?"""
    bare = hint.strip(" \t\n.,;:!*_`$()[]{}<>\"'")
    if bare.casefold() == gold.strip().casefold():
        return True
    candidates = (extract.answer_kind(kind).normalize(bare), extract.extract_answer(hint, kind))
    return any(extract.verify(candidate, gold, kind) == CORRECT for candidate in candidates)


def make_hint(
    text: str,
    gold: str,
    kind: str,
    tokenize: Callable[[str], Sequence[int]],
    detokenize: Callable[[Sequence[int]], str],
    max_tokens: int,
    *,
    style: str = "full",
) -> str | None:
    """The hint for a student from its teacher's `text` (METHOD 1.3), or None when there is none.

    Of the text behind the thoughts: if it has `<strategy ..>` blocks, the first one whose own outcome verifies
    against `gold`, else all of it (style "strategy": nothing); without answer payloads (style "compressed": of that
    the approach and the key steps); cut to `max_tokens` of the student's tokenizer (`tokenize` adds no special
    tokens). None: no block verifies, or what remains is empty, has no letter or digit, or is itself the gold answer.
    Raises ValueError for an unknown kind or a gold answer that is not of it.
    """
    source = _source(extract.after_thinking(text), gold, kind, style)
    if source is None:
        return None
    stripped = remove_answers(source)
    hint = cut_to_tokens(compress(stripped) if style == "compressed" else stripped, tokenize, detokenize, max_tokens)
    if not any(c.isalnum() for c in hint) or _is_gold(hint, gold, kind):
        return None
    return hint
