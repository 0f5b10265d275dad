"""The reward for form: strategy blocks and a final answer tag, as the instruction of style `strategies` asks for them.

In: texts. Out: one reward a text, unweighted. What the blocks and the tag hold is no matter here. From the authors' code; the
paper does not have it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from core_hpc.answers.extract import after_thinking
from core_hpc.config.run import FormatSection
from core_hpc.protocol.distance import FloatArray
from core_hpc.protocol.hints import strategy_blocks

_OPEN, _CLOSE = (re.compile(tag, re.IGNORECASE) for tag in ("<final_answer>", "</final_answer>"))


def format_rewards(texts: Sequence[str], settings: FormatSection) -> FloatArray:
    """min(1, per_strategy * number of closed strategy blocks + final_answer * 1[a closed <final_answer>]), [n]; no thoughts.

    >>> texts = ["<strategy id=1>Add.</strategy><final_answer>8</final_answer>", "<think><final_answer>8</final_answer></think>8"]
    >>> format_rewards(texts, FormatSection()).tolist()
    [0.7, 0.0]
    """
    return np.array([_format(after_thinking(text), settings) for text in texts], dtype=np.float64)


def _format(text: str, settings: FormatSection) -> float:
    opened = _OPEN.search(text)
    answered = opened is not None and _CLOSE.search(text, opened.end()) is not None
    num_strategies = sum(1 for _ in strategy_blocks(text))
    return min(1.0, settings.per_strategy * num_strategies + settings.final_answer * answered)
