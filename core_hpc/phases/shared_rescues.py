"""Buddy distillation: a model also learns from the rescues of its peers (`update.share_rescues`).

In: the scores of an iteration and the rescue rollouts of the peers. Out: rows for the model's own
update. The text of a peer becomes what the model itself would have to write without a hint: its own
plain prompt, its own token ids, and its own end of a text. These tokens were not sampled from this
model, so they have no behaviour log-probabilities, no importance correction and no ratio. Their
gradient is that of their log-likelihood, times advantage and weight: a clipped ratio would stop it
after a few steps. The paper does not have this option.
"""

from __future__ import annotations

import polars as pl

from core_hpc.models.prompts import PromptBuilder
from core_hpc.phases.context import TaskContext
from core_hpc.phases.peers import peers_of, row_of_peer, with_texts
from core_hpc.store.schema import COLD, RESCUE, ROW_KEY
from core_hpc.training.batching import Row


def shared_rows(context: TaskContext, scores: pl.DataFrame) -> list[Row]:
    """Rows of the peers' rescues, weighted by `update.share_rescues`.

    Args:
        scores: rows of SCORES of the iteration, of all models.
    """
    run, key, model = context.run, context.key, context.model
    return rows_of(
        with_texts(run, key, RESCUE, rescues(scores, peers_of(run, key.model))),
        context.prompt_builder(model),
        context.stop_strings(model),
        weight=run.config.update.share_rescues,
        max_tokens=run.config.sampling_of(model, COLD).max_new_tokens,
    )


def rescues(scores: pl.DataFrame, models: list[str]) -> pl.DataFrame:
    """The completions that rescued one of `models`.

    The model had failed in the cold phase, saw a hint, and is now right, with a positive advantage.
    A completion that was cut at the token limit is left out: without its end it would teach a model
    not to end.
    """
    rescued = (
        (pl.col("phase") == RESCUE)
        & pl.col("cold_failed")
        & pl.col("hint_given")
        & pl.col("correct")
        & ~pl.col("truncated")
        & (pl.col("advantage") > 0)
    )
    return scores.filter(pl.col("model").is_in(models), rescued).select(*ROW_KEY, "advantage")


def rows_of(
    found: pl.DataFrame, builder: PromptBuilder, stops: tuple[str, ...], *, weight: float, max_tokens: int
) -> list[Row]:
    """Peers' completions as rows of the builder's model, in a fixed order.

    Args:
        found: columns of ROW_KEY, advantage, text, question.
        stops: strings that end a text of the model.
        max_tokens: longer completions, in the model's tokens, are left out, and those in which the
            model would have ended.
    """
    rows = [
        row_of_peer(
            r,
            builder,
            stops,
            max_tokens=max_tokens,
            advantage=r["advantage"],
            weight=weight,
            rescue=True,
            objective="likelihood",
            lesson="taught",
        )
        for r in found.sort("problem_id", "model", "sample_index").iter_rows(named=True)
    ]
    return [row for row in rows if row is not None]
