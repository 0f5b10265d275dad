"""The outcome of every problem in every iteration: what a researcher filters problems by.

The input is the counts of runs (`counts/load.py`), so no text is read. The output is one row per
problem, iteration and model (`OUTCOMES`), with the numbers of completions and with the flags
(`FLAGS`) that hold. This module reads no file. The texts are read in `browse/details.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from analysis.counts.counts import in_batches
from analysis.counts.load import RunData
from core_hpc.problems.splits import split_of
from core_hpc.store.schema import GENERATION_PHASES, RESCUE


@dataclass(frozen=True)
class Flag:
    """Something that may hold for a model on a problem of an iteration."""

    name: str
    label: str  # as the name of a filter, when any model may have the flag
    of_model: str  # the same for one model, whose name replaces {}
    meaning: str
    short: str = ""  # the label beside a choice of the model; empty: `label`


FLAGS = (
    Flag("all_fail", "all models fail", "all models fail", "No model has a correct completion without a hint."),
    Flag("fails", "a model fails", "{} fails", "The model has no correct completion without a hint.", "fails"),
    Flag(
        "only",
        "only one solves",
        "only {} solves",
        "The model has a correct completion, and no other model has one.",
        "only it solves",
    ),
    Flag("rescued", "rescued", "{} is rescued", "The model failed cold and has a correct completion with the hint."),
    Flag(
        "harmed",
        "harmed by the hint",
        "{} is harmed",
        "All completions of the model with the hint are wrong, and one without the hint is correct.",
    ),
    Flag("gained", "gained", "{} gained", "The model solves the problem now, and failed when it had it last before."),
    Flag("lost", "lost", "{} lost", "The model fails now, and solved the problem when it had it last before."),
    Flag(
        "runs_differ",
        "runs disagree",
        "runs of {} disagree",
        "In this iteration the model solves the problem in one run (seed) and fails in another.",
    ),
    Flag("truncated", "truncated", "{} truncated", "A completion was cut at the token limit."),
    Flag("no_answer", "no answer", "{}: no answer", "No answer was found in a completion."),
    Flag("timeout", "time-out", "{}: time-out", "The verification of an answer timed out."),
)
"""Every flag. The position of a flag is its bit in the column `flags`."""

BIT = {flag.name: 1 << position for position, flag in enumerate(FLAGS)}

_ROW = ("split", "iteration", "model", "problem_id")
OUTCOMES = pl.Schema(
    {
        "split": pl.String(),  # evaluation (held-out problems) or train
        "iteration": pl.Int32(),
        "model": pl.String(),
        "problem_id": pl.String(),
        "n": pl.Int64(),  # completions without help: cold or evaluate
        "c": pl.Int64(),  # correct ones among them
        "hinted_n": pl.Int64(),  # rescue completions with the hint
        "hinted_c": pl.Int64(),
        "control_n": pl.Int64(),  # rescue completions without the hint
        "control_c": pl.Int64(),
        "num_truncated": pl.Int64(),  # of all these completions
        "num_no_answer": pl.Int64(),
        "num_timeout": pl.Int64(),
        "flags": pl.Int32(),  # sum of the bits of FLAGS
    }
)


def outcomes_of(runs: Sequence[RunData], problems: Sequence[pl.DataFrame]) -> list[pl.DataFrame]:
    """The outcomes of each run (`OUTCOMES`), in no particular order.

    Args:
        runs: the runs, for instance all seeds of a sweep.
        problems: for each run the result of `counts.load.problems_of`. Two runs have the same
            problem when id, question and gold answer are equal.
    """
    numbers = [_numbers(_all_counts(data)) for data in runs]
    differing = _differing(numbers, problems)
    # The numbers of a run are not needed after its outcomes are made, so they are taken from the list.
    return [_with_flags(numbers.pop(0), known, differing).select(list(OUTCOMES)) for known in problems]


def _all_counts(data: RunData) -> pl.DataFrame:
    """The counts of the run with those of the further sets of its evaluation, whose ids differ."""
    counts = pl.concat([data.counts, *(own.counts for own in data.sets.values())])
    return counts.filter(pl.col("model").is_not_null())


def _numbers(counts: pl.DataFrame) -> pl.DataFrame:
    splits = {phase: split_of(phase) for phase in GENERATION_PHASES}
    rescue, hinted = pl.col("phase") == RESCUE, pl.col("hint_given")
    kinds = {"": ~rescue, "hinted_": rescue & hinted, "control_": rescue & ~hinted}
    sums = {f"{kind}{name}": pl.col(name).filter(where).sum() for kind, where in kinds.items() for name in ("n", "c")}
    whole = {name: pl.col(name).sum() for name in ("num_truncated", "num_no_answer", "num_timeout")}

    def of(part: pl.DataFrame) -> pl.DataFrame:
        rows = part.lazy().with_columns(split=pl.col("phase").replace_strict(splits, return_dtype=pl.String))
        return rows.group_by(_ROW).agg(**sums, **whole).collect()

    return in_batches(counts, of)


def _same_problems(frame: pl.DataFrame, problems: pl.DataFrame) -> pl.DataFrame:
    """Add the columns question and gold."""
    known = problems.select("split", "problem_id", "question", "gold")
    return frame.join(known, on=["split", "problem_id"], how="left", maintain_order="left")


_SHARED = [*_ROW, "question", "gold"]


def _differing(numbers: Sequence[pl.DataFrame], problems: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The rows on which the runs disagree, by `_SHARED`."""
    if len(numbers) < 2:
        return pl.DataFrame(schema={**{n: OUTCOMES[n] for n in _ROW}, "question": pl.String(), "gold": pl.String()})
    rows = pl.concat(_same_problems(*pair).select(*_SHARED, "n", "c") for pair in zip(numbers, problems, strict=True))
    solved = rows.filter(pl.col("n") > 0).group_by(_SHARED).agg((pl.col("c") > 0).n_unique().alias("kinds"))
    return solved.filter(pl.col("kinds") > 1).drop("kinds")


def _with_flags(frame: pl.DataFrame, problems: pl.DataFrame, differing: pl.DataFrame) -> pl.DataFrame:
    sampled, solved = pl.col("n") > 0, pl.col("c") > 0
    # Sorting and grouping numbers is faster than sorting and grouping texts.
    codes = ["split_code", "model_code", "problem_code"]
    texts = zip(codes, ("split", "model", "problem_id"), strict=True)
    frame = frame.with_columns(
        solved.alias("solved"), *(pl.col(n).cast(pl.Categorical).to_physical().alias(code) for code, n in texts)
    ).sort(*codes, "iteration")
    # The row above is the last earlier one of the same model and problem, if it is of these.
    same = pl.all_horizontal(pl.col(code) == pl.col(code).shift(1) for code in codes)
    problem = ["split_code", "iteration", "problem_code"]
    frame = frame.with_columns(
        before=pl.when(same).then(pl.col("solved").shift(1)),
        num_solvers=pl.col("solved").sum().over(problem),
        num_models=pl.len().over(problem),
    )
    if differing.height:
        rows = _same_problems(frame, problems).join(differing, on=_SHARED, how="semi")
        differ = rows.select(_ROW).with_columns(runs_differ=pl.lit(True))
        frame = frame.join(differ, on=_ROW, how="left", maintain_order="left")
    else:
        frame = frame.with_columns(runs_differ=pl.lit(None, pl.Boolean()))
    by_name = {
        "all_fail": pl.col("num_solvers") == 0,
        "fails": sampled & ~solved,
        "only": solved & (pl.col("num_solvers") == 1) & (pl.col("num_models") > 1),
        "rescued": ~solved & (pl.col("hinted_c") > 0),
        "harmed": (pl.col("hinted_n") > 0) & (pl.col("hinted_c") == 0) & (solved | (pl.col("control_c") > 0)),
        "gained": solved & ~pl.col("before"),
        "lost": ~solved & pl.col("before"),
        "runs_differ": pl.col("runs_differ"),
        "truncated": pl.col("num_truncated") > 0,
        "no_answer": pl.col("num_no_answer") > 0,
        "timeout": pl.col("num_timeout") > 0,
    }
    bits = [by_name[flag.name].fill_null(value=False).cast(pl.Int32) * BIT[flag.name] for flag in FLAGS]
    return frame.with_columns(flags=pl.sum_horizontal(bits).cast(pl.Int32))
