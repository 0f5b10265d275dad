"""Measures how much the correct hinted rescues of a model rely on their hints.

In: the model's own rows, and log-probabilities under the weights before the update. Out: the rows
with their reliance, and with `update.reliance_scale` with another weight (METHOD.md section 9.6).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from core_hpc.protocol.reliance import reliance, reliance_weight
from core_hpc.training.batching import Row

Rate = Callable[[Sequence[Row]], Sequence[float]]
"""Mean log-probability per token of each row, under the weights before the update."""


def with_reliance(
    own: Sequence[Row], hinted: Mapping[tuple[object, ...], bool], rate: Rate, *, scale: float | None
) -> list[Row]:
    """The rows in their order; correct hinted rescues with their reliance and weight.

    Args:
        own: all own rows of the iteration, on the prompts from which they were sampled.
        hinted: key of each hinted rescue row -> whether it is correct.
        rate: see `Rate`.
        scale: `update.reliance_scale`.
    """
    plain = {row.problem_id: row.prompt_token_ids for row in own if not row.rescue}
    wanted = [row for row in own if hinted.get(row.key)]
    if not wanted:
        return list(own)
    without = [replace(row, prompt_token_ids=plain[row.problem_id], behaviour_logprobs=None) for row in wanted]
    means = rate([*wanted, *without])
    delta = {
        row.key: reliance(of_plain, of_hinted)
        for row, of_hinted, of_plain in zip(wanted, means[: len(wanted)], means[len(wanted) :], strict=True)
    }
    return [
        replace(row, reliance=delta[row.key], weight=row.weight * reliance_weight(delta[row.key], scale))
        if row.key in delta
        else row
        for row in own
    ]
