"""The format reward: strategy blocks and a final answer tag (instruction style `strategies`).

In: texts. Out: one unweighted reward per text. The content of blocks and tag does not matter. This
part comes from the authors' code and is not in the paper.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from core_hpc.answers.extract import after_thinking
from core_hpc.config.reward import FormatSection
from core_hpc.protocol.distance import FloatArray
from core_hpc.protocol.hints import strategy_blocks

_OPEN, _CLOSE = (re.compile(tag, re.IGNORECASE) for tag in ("<final_answer>", "</final_answer>"))


def format_rewards(texts: Sequence[str], settings: FormatSection) -> FloatArray:
    """min(1, per_strategy * closed strategy blocks + final_answer * 1[closed <final_answer>]), [n].

    Only the text after the thoughts counts.

    >>> good = "<strategy id=1>Add.</strategy><final_answer>8</final_answer>"
    >>> format_rewards([good, "<think><final_answer>8</final_answer></think>8"], FormatSection()).tolist()
    [0.7, 0.0]
    """
    return np.array([_format(after_thinking(text), settings) for text in texts], dtype=np.float64)


def _format(text: str, settings: FormatSection) -> float:
    opened = _OPEN.search(text)
    answered = opened is not None and _CLOSE.search(text, opened.end()) is not None
    num_strategies = sum(1 for _ in strategy_blocks(text))
    return min(1.0, settings.per_strategy * num_strategies + settings.final_answer * answered)
