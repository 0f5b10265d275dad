"""Completions that cannot be correct, compared between arms: cut at the token limit, or without an answer.

The input is evaluations of several arms. The output is notes. They matter for a comparison, because
an arm whose completions are cut more often can be worse only for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import polars as pl

from analysis.counts.load import RunData
from core_hpc.store.schema import EVALUATE

MUCH_USELESS = 0.1
"""Share of truncated or of unanswered completions above which there is a warning."""
MUCH_APART = 0.03
"""Difference of these shares between two arms above which there is a warning."""
USELESS = {"num_truncated": "cut at the token limit", "num_no_answer": "without an answer"}
"""Columns of the counts, with their names in notes."""
_TIMEOUT = {"num_timeout": "with a verification that timed out"}

Evaluations = Mapping[str, Sequence[tuple[RunData, int]]]
"""The runs of each arm, by its name, each with the iteration of its evaluation."""


def useless_notes(arms: Evaluations) -> list[str]:
    """The shares of useless completions by arm and model, if one is large or if the arms differ in them."""
    of_arm = {arm: useless_shares(evaluations) for arm, evaluations in arms.items()}
    notes = []
    for column, what in (USELESS | _TIMEOUT).items():
        shares = {arm: own[column] for arm, own in of_arm.items()}
        known = [share for own in shares.values() for share in own.values()]
        models = dict.fromkeys(model for own in shares.values() for model in own)
        of_model = [[own[model] for own in shares.values() if model in own] for model in models]
        if known and (max(known) > MUCH_USELESS or max(max(own) - min(own) for own in of_model) > MUCH_APART):
            by_arm = [f"{arm}: {percent_by_model(own)}" for arm, own in shares.items()]
            notes.append(f"WARNING: completions {what} (percent): {'; '.join(by_arm)}")
    return notes


def percent_by_model(shares: Mapping[str, float]) -> str:
    """The shares of models as text, in percent."""
    return ", ".join(f"{model} {100 * share:.1f}" for model, share in shares.items())


def useless_shares(evaluations: Sequence[tuple[RunData, int]]) -> dict[str, dict[str, float]]:
    """Shares of useless completions, over all these evaluations: by column of the counts, then by model."""
    columns = (*USELESS, *_TIMEOUT)
    sums: dict[str, Counter[str]] = {}
    for data, iteration in evaluations:
        here = data.counts.filter(pl.col("phase") == EVALUATE, pl.col("iteration") == iteration)
        for model in data.models:
            own = here.filter(pl.col("model") == model).select("n", *columns).sum().row(0, named=True)
            sums.setdefault(model, Counter()).update(own)
    return {column: {model: own[column] / own["n"] for model, own in sums.items() if own["n"]} for column in columns}
