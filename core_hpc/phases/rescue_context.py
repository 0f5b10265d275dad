"""The prompt on which hinted rescue completions are learned (`update.rescue_context`).

In: the model's own rows, and which of them are hinted and correct. Out: the rows, some of them on
the model's plain prompt (METHOD.md section 9.5). This module does not touch cold completions or
rescue completions without the hint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from core_hpc.config.update import UpdateSection
from core_hpc.training.batching import Row


def in_context(own: Sequence[Row], hinted: Mapping[tuple[object, ...], bool], settings: UpdateSection) -> list[Row]:
    """The rows with the prompts that the settings choose.

    Args:
        own: all own rows of the iteration.
        hinted: key of each hinted rescue row -> whether it is correct.
        settings: `rescue_context`, `rescue_correction` and `rescue_others`.
    """
    if settings.rescue_context == "hinted":
        return list(own)
    plain = {row.problem_id: row.prompt_token_ids for row in own if not row.rescue}
    found = []
    for row in own:
        if row.key not in hinted:
            found.append(row)
        elif hinted[row.key] and row.advantage > 0:
            found.append(_internalised(row, plain[row.problem_id], settings))
        elif settings.rescue_others == "hinted":
            found.append(row)
        elif settings.rescue_others == "plain":
            # The engine sampled it from another prompt, so its log-probabilities do not belong to the row.
            found.append(replace(row, prompt_token_ids=plain[row.problem_id], behaviour_logprobs=None))
    return found


def _internalised(row: Row, prompt_token_ids: Sequence[int], settings: UpdateSection) -> Row:
    correction = settings.rescue_correction
    return replace(
        row,
        prompt_token_ids=prompt_token_ids,
        behaviour_logprobs=None,
        objective="shaped" if correction == "shaped" else "policy",
        lesson="internalised",
        sampled_logprobs=row.behaviour_logprobs if correction == "importance" else None,
    )
