r"""The hint that a student gets from its teacher's completion (METHOD.md section 1).

In: the teacher's text, the gold answer, and the student's tokenizer as two functions. Out: the
hint, or None if there is none. Answers are removed; the computation that leads to them stays.
Thoughts are left out because they contain drafts of the answer in words that no pattern finds. The
work is linear in the length of the text: each pattern scans it once, and only a bounded prefix is
tokenized. This module does not choose the teacher and does not build prompts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from core_hpc.answers import extract
from core_hpc.protocol.answer_spans import answer_spans
from core_hpc.protocol.compression import compress
from core_hpc.protocol.leaks import cut_before_result, leak_of
from core_hpc.store.schema import CORRECT, LEAK_RESULT

_FLAGS = re.IGNORECASE | re.MULTILINE
_STRATEGY_TAG = re.compile(r"<(?P<close>/?)strategy(?:\s[^<>]{0,200})?>", _FLAGS)
_OUTCOME_TAG = r"(?:outcome|result|strategy_\w{1,32}_outcome)"
_OUTCOME_BEHIND = re.compile(
    rf"\s{{0,64}}<{_OUTCOME_TAG}(?:\s[^<>]{{0,200}})?>[^<]{{0,{extract.MAX_ANSWER_CHARS}}}", _FLAGS
)

MAX_SOURCE_CHARS = 1 << 17
"""A longer source is cut before answers are removed: a hint has a few thousand tokens from its beginning."""
_FIRST_CHARS_PER_TOKEN = 8
_BOUNDARY_TOKENS = 16


def strategy_blocks(text: str) -> Iterator[tuple[str, str]]:
    """Every closed strategy block: (content, content with the outcome that follows directly)."""
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
    """The part of the text that becomes the hint, or None.

    This is the first strategy block whose own outcome verifies. A text without strategy tags is
    used as a whole, unless the style is "strategy".
    """
    if _STRATEGY_TAG.search(text) is None:
        return None if style == "strategy" else text
    for content, with_outcome in strategy_blocks(text):
        answer = extract.extract_answer(with_outcome, kind)
        if extract.verify(answer, gold, kind) == CORRECT:
            return content
    return None


def remove_answers(text: str, *, letters: bool = False) -> str:
    r"""The text without answers (tags, boxes, `####`, labelled lines) and without thinking tags.

    `letters`: whether answers are letters of options, so that "so (B)" and "B fits" state one.

    >>> remove_answers("4 + 7 = 11. 11 - 3 = 8. #### 8")
    '4 + 7 = 11. 11 - 3 = 8.'
    >>> remove_answers("Add them: \\boxed{\\text{so {8}}}.\nThe final answer is: 8\nCheck it.")
    'Add them:  .\n\nCheck it.'
    """
    kept, position = [], 0
    for start, end in answer_spans(text, letters=letters):
        if start > position:
            kept.append(text[position:start])
        position = max(position, end)
    kept.append(text[position:])
    # The join by a space prevents the text around an answer from forming a new marker.
    lines = [line.rstrip() for line in " ".join(kept).split("\n")]
    return "\n".join(line for line, before in zip(lines, ["", *lines], strict=False) if line or before).strip()


def cut_to_tokens(
    text: str, tokenize: Callable[[str], Sequence[int]], detokenize: Callable[[Sequence[int]], str], max_tokens: int
) -> str:
    """A beginning of `text` that has at most `max_tokens` tokens when it is tokenized again.

    It is nearly the longest one. Only a prefix of a very long text is tokenized. The prefix is
    doubled until it has enough tokens and some more, because the last tokens of a prefix depend on
    what follows. `tokenize` must not add special tokens.
    """
    num_chars = max_tokens * _FIRST_CHARS_PER_TOKEN + 64
    ids = tokenize(text[:num_chars])
    while len(ids) < max_tokens + _BOUNDARY_TOKENS and num_chars < len(text):
        num_chars *= 2
        ids = tokenize(text[:num_chars])
    keep, cut = max_tokens, text
    while len(ids) > max_tokens and keep > 0:
        # If the cut is inside a character, its bytes decode to replacement characters.
        cut = detokenize(ids[:keep]).rstrip("\ufffd").rstrip()
        excess = len(tokenize(cut)) - max_tokens
        if excess <= 0:
            return cut
        keep -= excess
    return cut if len(ids) <= max_tokens else ""


def _is_gold(hint: str, gold: str, kind: str) -> bool:
    """Whether the hint is the gold answer itself or still contains it as an explicit answer."""
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
    """The hint for a student (METHOD.md section 1), or None if there is none.

    The source is the text after the thoughts. If it has `<strategy ..>` blocks, only the first
    block whose own outcome verifies is used. Answers are removed, and the rest is cut to
    `max_tokens`. There is no hint if no block verifies, or if the rest has no letter or digit or is
    the gold answer itself.

    Args:
        text: the teacher's completion.
        gold: the gold answer of the problem.
        kind: the kind of its answer (`answers.kinds.KINDS`).
        tokenize: the student's tokenizer, without special tokens.
        detokenize: its inverse.
        max_tokens: longest hint, in the student's tokens.
        style: "full"; "strategy" (no hint from a text without strategy blocks); or "compressed"
            (only the approach and the key steps).

    Raises:
        ValueError: the kind is unknown, or the gold answer is not of this kind.
    """
    source = _source(extract.after_thinking(text), gold, kind, style)
    if source is None:
        return None
    stripped = remove_answers(source[: max(MAX_SOURCE_CHARS, 16 * max_tokens)], letters=kind == "letter")
    hint = cut_to_tokens(compress(stripped) if style == "compressed" else stripped, tokenize, detokenize, max_tokens)
    return hint if _is_usable(hint, gold, kind) else None


def treat_leak(hint: str, gold: str, kind: str, treatment: str) -> str | None:
    """The hint after `protocol.hint_leak`, or None if there is none (METHOD.md section 1.3).

    Args:
        hint: a result of `make_hint`.
        gold: the gold answer of the problem.
        kind: the kind of its answer.
        treatment: "keep": the hint does not change. "cut": it ends before the step whose result is
            the gold answer. "reject": there is no hint if the gold answer is a result in it.
    """
    if treatment == "keep" or leak_of(hint, gold, kind) != LEAK_RESULT:
        return hint
    kept = cut_before_result(hint, gold, kind) if treatment == "cut" else ""
    return kept if _is_usable(kept, gold, kind) else None


def _is_usable(hint: str, gold: str, kind: str) -> bool:
    """Whether the hint has a letter or digit and does not state the gold answer."""
    return any(c.isalnum() for c in hint) and not _is_gold(hint, gold, kind)
