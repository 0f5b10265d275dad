"""Draws of completions for selectors: which k completions of each model a team has for a problem.

The input is completions (`counts/completions.py`) of one phase and iteration. The output is arrays
of R draws per problem: class of the answer, correctness, tokens and confidence of each drawn
completion. `metrics/selectors.py` applies the selectors to them.

A draw is an order of the completions of each model, without replacement, so the first k of it are a
draw of k. A selector that stops early depends on the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from analysis.counts.counts import group_codes
from analysis.stats.estimators import FloatArray, IntArray
from analysis.stats.intervals import SEED

BLANK = -1
"""Class of a completion without an answer. It equals no other completion."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The completions of M models on the P problems that all of them have, up to n per model.

    Shapes: (M, P, n). A model with fewer completions of a problem limits k.
    """

    models: tuple[str, ...]
    classes: IntArray  # equal answers of a problem have the same class; 0: correct; BLANK: no answer
    tokens: FloatArray
    confidence: FloatArray  # mean log-probability of a token; NaN: not recorded
    available: IntArray  # (M, P) completions
    groups: IntArray  # (P,) codes of source groups
    num_left_out: int  # problems that some model does not have

    @property
    def num_problems(self) -> int:
        return self.available.shape[1]

    @property
    def note(self) -> str:
        """The number of problems that were left out, as text; empty when it is 0."""
        return f"{self.num_left_out} problems left out: not published for every model" if self.num_left_out else ""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """R draws of k completions of each of M models. Shapes: (P, R, M, k)."""

    classes: IntArray
    tokens: FloatArray
    confidence: FloatArray


def stored(completions: pl.DataFrame, models: Sequence[str]) -> Stored:
    """Arrange completions as arrays.

    Answers are equal if their canonical texts are equal. All correct answers are equal, in any
    spelling, because the verifier found each of them equal to the gold answer.
    """
    order = pl.DataFrame({"model": list(models), "m": range(len(models))}, schema={"model": pl.String, "m": pl.Int64})
    here = completions.join(order, on="model")
    seen = here.group_by("problem_id").agg(pl.col("m").n_unique(), pl.col("source_group").first())
    problems = seen.filter(pl.col("m") == len(models)).drop("m").sort("problem_id").with_row_index("p")
    wrong = pl.when(~pl.col("correct")).then("answer")
    rows = here.join(problems.select("problem_id", "p"), on="problem_id").with_columns(
        i=pl.col("sample_index").rank("ordinal").over("m", "p") - 1,
        code=pl.when("correct").then(0).otherwise(wrong.rank("dense").over("p")).fill_null(BLANK),
    )
    most = rows["i"].max()
    shape = (len(models), problems.height, 1 + most if isinstance(most, int) else 0)
    at = tuple(rows[axis].to_numpy() for axis in ("m", "p", "i"))

    def array(column: str, missing: float, dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
        out = np.full(shape, missing, dtype=dtype)
        out[at] = rows[column].cast(pl.Float64).fill_null(missing).to_numpy()
        return out

    available = np.zeros(shape[:2], dtype=np.int64)
    np.add.at(available, at[:2], 1)
    return Stored(
        models=tuple(models),
        classes=array("code", BLANK, np.int64).astype(np.int64),
        tokens=array("num_tokens", 0, np.float64).astype(np.float64),
        confidence=array("mean_logprob", np.nan, np.float64).astype(np.float64),
        available=available,
        groups=group_codes(problems["source_group"], problems["problem_id"]),
        num_left_out=seen.height - problems.height,
    )


def drawn(s: Stored, k: int, num_draws: int, *, problems: slice = slice(None)) -> Drawn:
    """Draw k completions of each model, `num_draws` times for each problem.

    Every problem has at least k completions of each model. The draws of a problem depend only on
    the seed and on the position of the problem.
    """
    classes, tokens, confidence = (
        np.moveaxis(array[:, problems], 0, 1)[:, None] for array in (s.classes, s.tokens, s.confidence)
    )
    available = s.available[:, problems].T[:, None, :, None]
    start = problems.indices(s.num_problems)[0]
    rng = np.random.default_rng((SEED, start))
    keys = rng.random((classes.shape[0], num_draws, *classes.shape[2:]))
    # Completions that a problem does not have come last.
    keys = np.where(np.arange(keys.shape[-1]) < available, keys, 2.0)
    order = np.argsort(keys, axis=-1)[..., :k]
    classes, tokens, confidence = (
        np.take_along_axis(np.broadcast_to(a, keys.shape), order, axis=-1) for a in (classes, tokens, confidence)
    )
    return Drawn(classes=classes, tokens=tokens, confidence=confidence)
