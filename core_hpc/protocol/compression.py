"""The compressed form of a hint (`protocol.hint_style: compressed`).

In: a teacher's text without answers (`hints.py`). Out: the sentence that describes the approach and
the sentences that compute something. The rules are plain patterns; no model is involved.
"""

from __future__ import annotations

import re

from core_hpc.protocol.distance import operation_signature

# A sentence ends at the end of a line, or at .!? and a space; but not after the number of a list
# item ("2. Add").
_SENTENCE_END = re.compile(r"\n+|(?<=[.!?])(?<!\n[0-9]\.)(?<!\n[0-9][0-9]\.)\s+")
_COMPUTES = re.compile(r"[=≈≤≥]|\\(?:approx|equiv|leq?|geq?)\b|\s[<>]\s")


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text in order, without those that have no letter or digit.

    >>> sentences("Add both. So 1.5 + 2 = 3.5!\\n2. Check it")
    ['Add both.', 'So 1.5 + 2 = 3.5!', '2. Check it']
    """
    pieces = (" ".join(piece.split()) for piece in _SENTENCE_END.split(f"\n{text}"))
    return [piece for piece in pieces if any(c.isalnum() for c in piece)]


def step_starts(text: str) -> list[int]:
    """Where the sentences and lines of a text begin, in order; the first one is 0.

    >>> step_starts("Add both. So 1.5 + 2 = 3.5!\\n2. Check it")
    [0, 10, 28]
    """
    return [0, *(match.end() - 1 for match in _SENTENCE_END.finditer(f"\n{text}") if match.start() > 0)]


def compress(text: str) -> str:
    """The approach and the key steps, one per line, in the order of the text and each once.

    A key step is a sentence with an equation or an inequality. The approach is the first other
    sentence that names an operation (`distance.OPERATIONS`), or the first sentence if none does.

    >>> compress("Sure! We add the eggs of both days. It is a nice day. Monday has 4. 4 + 7 = 11. Done.")
    'We add the eggs of both days.\\n4 + 7 = 11.'
    """
    found = sentences(text)
    steps = [bool(_COMPUTES.search(s)) for s in found]
    named = (i for i, s in enumerate(found) if not steps[i] and operation_signature(s))
    approach = next(named, 0)
    return "\n".join(dict.fromkeys(s for i, s in enumerate(found) if steps[i] or i == approach))
