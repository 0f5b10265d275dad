"""The reward for length: longer completions get more, up to a bound. From the authors' code; the paper does not have it.

In: texts. Out: one reward a text, unweighted. Words, not tokens, are counted: tokenizers differ within a team.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core_hpc.config.run import LengthSection
from core_hpc.protocol.distance import FloatArray


def length_rewards(texts: Sequence[str], settings: LengthSection) -> FloatArray:
    """(words - min_words) / (max_words - min_words), within [0, 1], [n].

    >>> length_rewards(["a", "a b c", "a b c d e f"], LengthSection(min_words=1, max_words=5)).tolist()
    [0.0, 0.5, 1.0]
    """
    words = np.array([len(text.split()) for text in texts], dtype=np.float64)
    return np.clip((words - settings.min_words) / (settings.max_words - settings.min_words), 0.0, 1.0)
