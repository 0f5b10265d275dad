"""The two rewards for the length of completions: more for longer ones, less near the token limit.

In: texts, or lengths as shares of the limit. Out: one unweighted reward per completion. The length
reward counts words instead of tokens because the tokenizers of a team differ; it comes from the
authors' code. The overlong reward comes from DAPO. Neither is in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core_hpc.config.reward import LengthSection, OverlongSection
from core_hpc.protocol.distance import FloatArray


def length_rewards(texts: Sequence[str], settings: LengthSection) -> FloatArray:
    """(words - min_words) / (max_words - min_words), clipped to [0, 1], [n].

    >>> length_rewards(["a", "a b c", "a b c d e f"], LengthSection(min_words=1, max_words=5)).tolist()
    [0.0, 0.5, 1.0]
    """
    words = np.array([len(text.split()) for text in texts], dtype=np.float64)
    return np.clip((words - settings.min_words) / (settings.max_words - settings.min_words), 0.0, 1.0)


def overlong_rewards(length_shares: NDArray[np.floating], settings: OverlongSection) -> FloatArray:
    """DAPO's soft penalty near the limit (arXiv 2503.14476, Eq. 13), [n], between -1 and 0.

    Args:
        length_shares: completion tokens / max_new_tokens of the model, [n]; 1 if truncated.
        settings: the share of the limit in which the penalty grows.

    >>> overlong_rewards(np.array([0.5, 0.8, 0.9, 1.0]), OverlongSection()).round(6).tolist()
    [0.0, 0.0, -0.5, -1.0]
    """
    into_buffer = (length_shares - (1.0 - settings.buffer_share)) / settings.buffer_share
    return -np.clip(into_buffer, 0.0, 1.0) + 0.0  # without + 0.0 a zero would be -0.0
