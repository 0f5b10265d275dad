"""Draws of completions for selectors: which k completions of each model a team has for a problem.

The input is completions (`counts/completions.py`) of one phase and iteration. The output is arrays
of R draws per problem: class of the answer and tokens of each drawn completion.
`metrics/selectors.py` applies the selectors to them.

A draw has an order, because a selector that stops early depends on it. Selectors that do not stop
early have closed forms and need no draws.
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
    tokens: FloatArray  # NaN: not recorded
    confidence: FloatArray  # mean log-probability of a token; NaN: not recorded
    available: IntArray  # (M, P) completions
    groups: IntArray  # (P,) codes of source groups
    num_left_out: int  # problems that some model does not have

    @property
    def num_problems(self) -> int:
        return len(self.groups)

    @property
    def note(self) -> str:
        """The number of problems that were left out, as text; empty when it is 0."""
        return f"{self.num_left_out} problems left out: not published for every model" if self.num_left_out else ""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """R draws of k completions of each of M models. Shapes: (P, R, M, k)."""

    classes: IntArray
    tokens: FloatArray


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
    rows = here.join(problems.select("problem_id", "p"), on="problem_id").select(
        "m",
        "p",
        "mean_logprob",
        pl.col("num_tokens").cast(pl.Float64).fill_null(np.nan),
        i=pl.col("sample_index").rank("ordinal").over("m", "p") - 1,
        code=pl.when("correct").then(0).otherwise(wrong.rank("dense").over("p")).fill_null(BLANK),
    )
    del here
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
    """Draw k completions of each model, at least `num_draws` times for each problem.

    A random order of the n completions of a model gives n draws: it is rotated by one place after
    another. So every completion is equally often in every place, which removes most of the noise of
    the draws. Every problem has at least k completions of each model.
    """
    classes = np.moveaxis(s.classes[:, problems], 0, 1)
    tokens = np.moveaxis(s.tokens[:, problems], 0, 1)
    available = s.available[:, problems].T[:, None, :, None]  # (P, 1, M, 1)
    num_problems, num_models, most = classes.shape
    num_orders = -(-num_draws // most)
    rng = np.random.default_rng((SEED, problems.indices(s.num_problems)[0]))
    keys = rng.random((num_problems, num_orders, num_models, most))
    # Completions that a problem does not have come last.
    order = np.argsort(np.where(np.arange(most) < available, keys, 2.0), axis=-1)
    shift = np.tile(np.arange(most), num_orders)[None, :, None, None]
    places = (np.arange(k) + shift) % available  # (P, R, M, k)
    # All rotations of an order take from the same array, so the order is not copied for each of them.
    of_orders = places.reshape(num_problems, num_orders, most, num_models, k)
    chosen = np.take_along_axis(order[:, :, None], of_orders, axis=-1).reshape(places.shape)
    return Drawn(
        classes=np.take_along_axis(classes[:, None], chosen, axis=-1),
        tokens=np.take_along_axis(tokens[:, None], chosen, axis=-1),
    )
