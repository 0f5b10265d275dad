"""Checks that the rows of a run are what its configuration asks for.

The input is the tally of `counts/scan.py`, the configuration, the frozen problems and the keys of
the published tasks. The output is a list of `Finding`s. Each finding is about one problem of one
task: a row that is missing, duplicated or of another run, a different gold answer, or a hinted row
outside the rescue phase.

This module opens no file, except scores that decide which problems an iteration has.
`scan.find_row` finds the row that a finding is about.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from analysis.counts.counts import RESCUE_PUBLISHED
from core_hpc.config.run import RunConfig
from core_hpc.problems.sets import num_samples
from core_hpc.problems.splits import EVALUATION, TRAIN, split_of
from core_hpc.runs.choice import Choice
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import COLD, EVALUATE, RESCUE

GROUP = ("iteration", "phase", "model", "problem_id")
EXPECTED = pl.Schema(
    {
        "iteration": pl.Int32(),
        "phase": pl.String(),
        "model": pl.String(),
        "problem_id": pl.String(),
        "expected_gold": pl.String(),
        "part": pl.Int32(),
        RESCUE_PUBLISHED: pl.Boolean(),
    }
)
"""The problems that each published task may have rows of. For a rescue task these are all problems
of the part; the cold results decide which of them are sampled again."""


@dataclass(frozen=True)
class Finding:
    """One error in the rows of a run."""

    what: str  # the error in words
    group: dict[str, Any]  # values of the columns GROUP
    where: dict[str, Any]  # column values that identify the row; empty: a row is missing
    twice: bool = False  # the row repeats a sample of an earlier row
    part: int | None = None  # part of the task that the problem belongs to


class TaskProblems:
    """The problems that each task of a run may have rows of. One thread may use it.

    Args:
        root: the run folder, whose scores may decide about the problems of an iteration.
        problems: columns split, problem_id and gold, in the order of the frozen splits.
        config: the configuration; None for imported predictions, whose tasks have all held-out
            problems.
        keys: keys of the published tasks.
    """

    def __init__(self, root: Path, problems: pl.DataFrame, config: RunConfig | None, keys: Collection[TaskKey]) -> None:
        self._splits = {
            name: problems.filter(pl.col("split") == name).select("problem_id", expected_gold="gold")
            for name in (TRAIN, EVALUATION)
        }
        self._config = config
        self._keys = frozenset(keys)
        self._choice = None if config is None else Choice(root, config)

    def of(self, key: TaskKey) -> pl.DataFrame:
        """Return the problems of a cold, rescue or evaluate task.

        The columns are those of `EXPECTED` without iteration, phase and model.

        Raises:
            StoreError: scores that decide about the problems of the iteration cannot be read.
        """
        here = self._splits[split_of(key.phase)]
        if self._config is not None and self._choice is not None:
            size = self._config.protocol.problems_per_part
            of_part = slice(key.part * size, (key.part + 1) * size)
            if key.phase != EVALUATE:
                here = here[self._choice.problems(key.iteration, here["problem_id"])]
            here = here[of_part]
        is_rescued = replace(key, phase=RESCUE) in self._keys if key.phase == COLD else None
        added = {"part": key.part, RESCUE_PUBLISHED: is_rescued}
        return here.with_columns(**{name: pl.lit(value, EXPECTED[name]) for name, value in added.items()})


def expected_rows(keys: Sequence[TaskKey], problems: TaskProblems) -> pl.DataFrame:
    """Return the problems that published tasks may have rows of.

    Args:
        keys: keys of cold, rescue and evaluate tasks.
        problems: the problems of every task.

    Returns:
        A frame with the schema `EXPECTED`.
    """
    frames = []
    for key in keys:
        labels = {"iteration": key.iteration, "phase": key.phase, "model": key.model}
        columns = {name: pl.lit(value, EXPECTED.get(name)) for name, value in labels.items()}
        frames.append(problems.of(key).select(pl.all(), **columns))
    return pl.concat(frames).select(list(EXPECTED)) if frames else pl.DataFrame(schema=EXPECTED)


def expected_samples(config: RunConfig) -> dict[str, pl.Expr]:
    """The number of completions of every sampled problem, by phase, as expressions on `problem_id`."""
    return {
        COLD: pl.lit(config.protocol.cold_samples, pl.Int64),
        RESCUE: pl.lit(config.protocol.rescue_samples, pl.Int64),
        EVALUATE: num_samples(config),
    }


def whole(num_expected: pl.Expr) -> pl.Expr:
    """Whether the sample indices of a problem are 0 .. n-1, with n = `num_expected`.

    The expression needs the columns n, last_index, sum_index and sum_squares of a tally. It compares the
    number, the maximum, the sum and the sum of squares of the indices. A missing or duplicated row changes
    at least one of them.
    """
    right_sum = pl.col("sum_index") == num_expected * (num_expected - 1) // 2
    right_squares = pl.col("sum_squares") == num_expected * (num_expected - 1) * (2 * num_expected - 1) // 6
    last = pl.col("last_index") == num_expected - 1
    return (pl.col("n") == num_expected) & last & right_sum & right_squares


def with_expected(tally: pl.DataFrame, expected: pl.DataFrame) -> pl.DataFrame:
    """Add what is expected to the rows of a tally: nulls where nothing is."""
    return tally.join(expected, on=GROUP, how="left")


def findings(known: pl.DataFrame, expected: pl.DataFrame, config: RunConfig | None, *, run_id: str) -> list[Finding]:
    """Compare a tally with the expected rows.

    Args:
        known: the result of `with_expected`.
        expected: the result of `expected_rows`.
        config: the configuration; None for imported predictions.
        run_id: the run that all rows must belong to.

    Returns:
        All errors; empty when the rows are correct.
    """
    foreign = (pl.col("run_id") != run_id) | pl.col("part").is_null()
    found = []
    for row in known.filter(foreign).sort(GROUP).iter_rows(named=True):
        other_run = f"a row of run {row['run_id']}, not of {run_id}"
        what = other_run if row["run_id"] != run_id else "a problem that does not belong to this task"
        found.append(_finding(what, row, ("run_id", *GROUP)))
    own = known.filter(~foreign)
    for row in own.filter(pl.col("gold") != pl.col("expected_gold")).sort(GROUP).iter_rows(named=True):
        what = f"gold answer {row['gold']!r}, the problem has {row['expected_gold']!r}"
        found.append(_finding(what, row, (*GROUP, "gold")))
    for row in own.filter(pl.col("hint_given") & (pl.col("phase") != RESCUE)).sort(GROUP).iter_rows(named=True):
        found.append(_finding("a hinted row; only the rescue phase gives hints", row, (*GROUP, "hint_given")))
    if config is not None:  # imported files choose the number of completions and their numbering
        found += _sample_findings(own, config)
    missing = expected.filter(pl.col("phase") != RESCUE).join(known, on=GROUP, how="anti")
    for row in missing.sort(GROUP).iter_rows(named=True):
        group = {name: row[name] for name in GROUP}
        found.append(Finding("no row, although the task must sample this problem", group, {}, part=row["part"]))
    return found


def _finding(what: str, row: dict[str, Any], names: Sequence[str], *, twice: bool = False) -> Finding:
    return Finding(what, {name: row[name] for name in GROUP}, {name: row[name] for name in names}, twice, row["part"])


def _sample_findings(own: pl.DataFrame, config: RunConfig) -> list[Finding]:
    """Find problems whose sample indices are not exactly those that the configuration asks for."""
    totals = [pl.col("n", "sum_index", "sum_squares").sum(), pl.col("last_index").max()]
    found = []
    for phase, num_expected in expected_samples(config).items():
        rows = own.filter(pl.col("phase") == phase)
        # In the other phases a problem has one row in a correct tally, so nothing has to be summed.
        if phase == RESCUE or rows.height != rows.select(GROUP).n_unique():
            rows = rows.group_by(*GROUP, "part").agg(totals)
        rows = rows.with_columns(num_expected=num_expected).filter(~whole(pl.col("num_expected")))
        for row in rows.sort(GROUP).iter_rows(named=True):
            what = f"{row['n']} completions instead of {row['num_expected']}"
            if row["n"] == row["num_expected"]:
                what = f"the sample indices are not 0 to {row['n'] - 1}, each of them once"
            found.append(_finding(what, row, GROUP, twice=row["n"] >= row["num_expected"]))
    return found
