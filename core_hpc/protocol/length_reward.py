"""The length reward: longer completions get more, up to a bound.

In: texts. Out: one unweighted reward per text. Words are counted instead of tokens because the
tokenizers of a team differ. This part comes from the authors' code and is not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core_hpc.config.reward import LengthSection
from core_hpc.protocol.distance import FloatArray


def length_rewards(texts: Sequence[str], settings: LengthSection) -> FloatArray:
    """(words - min_words) / (max_words - min_words), clipped to [0, 1], [n].

    >>> length_rewards(["a", "a b c", "a b c d e f"], LengthSection(min_words=1, max_words=5)).tolist()
    [0.0, 0.5, 1.0]
    """
    words = np.array([len(text.split()) for text in texts], dtype=np.float64)
    return np.clip((words - settings.min_words) / (settings.max_words - settings.min_words), 0.0, 1.0)
