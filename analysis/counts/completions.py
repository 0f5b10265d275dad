"""Single completions of a run: answer, verdict, tokens and confidence, one row per completion.

The input is a run and one of its evaluations. The output is a frame with the schema `COMPLETIONS`.
Only one phase and iteration is in memory, and the log-probabilities of tokens become their mean
while they are read. Counts per problem, which are smaller, are in `counts/load.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from analysis.counts.load import RunData
from analysis.counts.scan import list_shards
from core_hpc.common.errors import StoreError
from core_hpc.store import parquet
from core_hpc.store.manifests import DamagedError
from core_hpc.store.schema import EVALUATE
from core_hpc.store.shards import published_keys

COMPLETIONS = pl.Schema(
    {
        "model": pl.String(),
        "problem_id": pl.String(),
        "sample_index": pl.Int32(),
        "answer": pl.String(),  # canonical text; null: the completion has no answer
        "correct": pl.Boolean(),
        "num_tokens": pl.Int32(),  # sampled tokens; null: not recorded
        "mean_logprob": pl.Float64(),  # of the sampled tokens, in nats; null: not recorded
        "source_group": pl.String(),
    }
)


def load_completions(data: RunData, *, phase: str = EVALUATE, iteration: int) -> pl.DataFrame:
    """Read the completions of one phase and iteration.

    Problems that the counts of the run do not have (left out with --lenient) are left out.

    Raises:
        StoreError: a published shard is damaged, and nothing of the run was left out.
    """
    keys = [key for key in published_keys(data.path) if (key.phase, key.iteration) == (phase, iteration)]
    shards, errors = list_shards(data.path, keys)
    if errors and not data.left_out:
        raise errors[0]
    here = data.counts.filter(pl.col("phase") == phase, pl.col("iteration") == iteration)
    known = here.select("model", "problem_id", "source_group").unique(["model", "problem_id"])
    names = [name for name in COMPLETIONS if name != "source_group"]
    frames = [pl.DataFrame(schema=COMPLETIONS)]
    for shard in shards:
        rows = parquet.scan([shard.path])
        try:
            read = parquet.collect(_columns(rows, names))
            if (read["num_tokens"] == 0).any():  # as in imported predictions; texts are read in this case only
                read = parquet.collect(_columns(rows.with_columns(num_completion_tokens=_recorded_tokens()), names))
        except (pl.exceptions.PolarsError, OSError) as e:
            error: StoreError = DamagedError(shard.manifest, f"{shard.path}: not a readable shard of rollouts ({e})")
            if not data.left_out:
                raise error from e
        else:
            frames.append(read.join(known, on=["model", "problem_id"]).select(list(COMPLETIONS)))
    return pl.concat(frames)


def _columns(rows: pl.LazyFrame, names: Sequence[str]) -> pl.LazyFrame:
    mean = pl.col("logprobs").list.mean().cast(pl.Float64)  # null for an empty list
    return rows.with_columns(num_tokens=pl.col("num_completion_tokens"), mean_logprob=mean).select(names)


def _recorded_tokens() -> pl.Expr:
    """The number of sampled tokens; null where it is 0 although something was sampled."""
    sampled = (pl.col("text") != "") | pl.col("answer").is_not_null()
    tokens = pl.col("num_completion_tokens")
    return pl.when(~((tokens == 0) & sampled)).then(tokens)
