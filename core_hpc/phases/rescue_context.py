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
            found.append(_on_plain_prompt(row, plain[row.problem_id], settings))
    return found


def _on_plain_prompt(row: Row, prompt_token_ids: Sequence[int], settings: UpdateSection) -> Row:
    """The engine sampled the row from another prompt, so its log-probabilities are those of the correction only."""
    return replace(
        row,
        prompt_token_ids=prompt_token_ids,
        behaviour_logprobs=None,
        sampled_logprobs=row.behaviour_logprobs if settings.rescue_correction == "importance" else None,
    )


def _internalised(row: Row, prompt_token_ids: Sequence[int], settings: UpdateSection) -> Row:
    return replace(
        _on_plain_prompt(row, prompt_token_ids, settings),
        objective="shaped" if settings.rescue_correction == "shaped" else "policy",
        lesson="internalised",
    )
