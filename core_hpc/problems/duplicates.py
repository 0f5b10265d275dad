"""Near-duplicates: an index that finds the text most similar to a given text.

In: texts. Out: the most similar text and its similarity, the same as a comparison with every text
would give. The similarity is the Jaccard index of the sets of three consecutive words. Numbers and
operators count as words, because a problem with other numbers is another problem. `splits.py`
decides what happens with near-duplicates.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

THRESHOLD = 0.8
SHINGLE_WORDS = 3
_WORD = re.compile(r"[0-9]+(?:\.[0-9]+)?|[^\W\d_]+|[^\w\s.,;:!?'\"$]")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3})")

Shingle = tuple[str, ...]


def shingles(text: str) -> frozenset[Shingle]:
    """All sequences of `SHINGLE_WORDS` words, without case, punctuation and commas in numbers.

    A shorter text is a single shingle.

    >>> sorted(shingles("What is 1,000 + 2?"))
    [('1000', '+', '2'), ('is', '1000', '+'), ('what', 'is', '1000')]
    """
    words = _WORD.findall(_THOUSANDS.sub("", text.casefold()))
    return frozenset(tuple(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1)))


class NearDuplicates:
    """An index of texts that finds near-duplicates of other texts.

    Each text is listed under its rarest shingles. Their number is chosen such that two texts with a
    similarity of at least `threshold` have one of these shingles in common (prefix filter,
    Chaudhuri et al. 2006). Most texts therefore need no comparison at all.
    """

    def __init__(self, texts: Sequence[str], *, threshold: float = THRESHOLD) -> None:
        self._threshold = threshold
        self._shingles = [shingles(text) for text in texts]
        self._counts = Counter(s for found in self._shingles for s in found)
        self._listed: dict[Shingle, list[int]] = defaultdict(list)
        for index, found in enumerate(self._shingles):
            for shingle in self._rarest(found):
                self._listed[shingle].append(index)

    def _rarest(self, found: frozenset[Shingle]) -> list[Shingle]:
        # The small subtraction prevents rounding from making the product too large.
        num_kept = len(found) - math.ceil((self._threshold - 1e-9) * len(found)) + 1
        return sorted(found, key=lambda s: (self._counts[s], s))[:num_kept]

    def nearest(self, text: str) -> tuple[float, int] | None:
        """(similarity, index) of the most similar text, or None if no text reaches the threshold.

        The first one wins ties.
        """
        found = shingles(text)
        candidates = {index for shingle in self._rarest(found) for index in self._listed.get(shingle, ())}
        similar = [(len(found & self._shingles[i]) / len(found | self._shingles[i]), -i) for i in candidates]
        best = max(similar, default=(0.0, 0))
        return (best[0], -best[1]) if best[0] >= self._threshold else None
