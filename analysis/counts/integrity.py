"""Are the rows of a run what its configuration asked for? Pure: compares a tally with what must be there.

In: the tally of reading.py, the configuration, the frozen problems, the keys of the published tasks. Out: `Finding`s, each
about one problem of one task: rows that are missing, twice there or foreign, another gold answer, a hinted row where
none may be. This module opens no file; reading.find_row names the row that a finding is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from core_hpc.config.run import RunConfig
from core_hpc.problems.splits import EVALUATION, TRAIN, problems_of_iteration, split_of
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
    }
)
"""What may be there: the problems of each published task. For rescue: those that might have been sampled again."""


@dataclass(frozen=True)
class Finding:
    """One thing wrong. `where` are column values of the row that it is about (none: a row is missing)."""

    what: str
    group: dict[str, Any]  # GROUP
    where: dict[str, Any]
    twice: bool = False  # it is about a row whose sample is there already
    part: int | None = None  # of the task that the problem belongs to


def expected_rows(keys: Sequence[TaskKey], problems: pl.DataFrame, config: RunConfig | None) -> pl.DataFrame:
    """`EXPECTED` for these published tasks.

    Args:
        keys: cold, rescue and evaluate tasks.
        problems: split, problem_id, gold, in the order of the frozen splits.
        config: None: imported predictions, where each task has all held-out problems.
    """
    splits = {
        name: problems.filter(pl.col("split") == name).select("problem_id", expected_gold="gold")
        for name in (TRAIN, EVALUATION)
    }
    orders: dict[int, list[int]] = {}
    frames = []
    for key in keys:
        here = splits[split_of(key.phase)]
        if config is not None:
            size = config.protocol.problems_per_part
            if key.phase == EVALUATE:
                here = here[key.part * size : (key.part + 1) * size]
            else:
                if key.iteration not in orders:
                    count = config.protocol.problems_per_iteration
                    orders[key.iteration] = problems_of_iteration(here.height, count, key.iteration, config.seed)
                here = here[orders[key.iteration][key.part * size : (key.part + 1) * size]]
        labels = {"iteration": key.iteration, "phase": key.phase, "model": key.model, "part": key.part}
        frames.append(
            here.select(pl.all(), **{name: pl.lit(value, EXPECTED.get(name)) for name, value in labels.items()})
        )
    return pl.concat(frames).select(list(EXPECTED)) if frames else pl.DataFrame(schema=EXPECTED)


def findings(tally: pl.DataFrame, expected: pl.DataFrame, config: RunConfig | None, *, run_id: str) -> list[Finding]:
    """Everything that is wrong with a tally; empty when it can be trusted."""
    known = tally.join(expected, on=GROUP, how="left")
    foreign = (pl.col("run_id") != run_id) | pl.col("part").is_null()
    found = []
    for row in known.filter(foreign).sort(GROUP).iter_rows(named=True):
        what = (
            "a problem that is not of this task"
            if row["run_id"] == run_id
            else f"a row of run {row['run_id']}, not of {run_id}"
        )
        found.append(_finding(what, row, ("run_id", *GROUP)))
    own = known.filter(~foreign)
    for row in own.filter(pl.col("gold") != pl.col("expected_gold")).sort(GROUP).iter_rows(named=True):
        found.append(
            _finding(f"gold answer {row['gold']!r}, the problem's is {row['expected_gold']!r}", row, (*GROUP, "gold"))
        )
    for row in own.filter(pl.col("hint_given") & (pl.col("phase") != RESCUE)).sort(GROUP).iter_rows(named=True):
        found.append(_finding("a hinted row; only the rescue phase gives hints", row, (*GROUP, "hint_given")))
    if config is not None:  # how many completions a foreign file has, and how it numbers them, is its own affair
        found += _sample_findings(own, config)
    missing = expected.filter(pl.col("phase") != RESCUE).join(tally, on=GROUP, how="anti")
    for row in missing.sort(GROUP).iter_rows(named=True):
        found.append(
            Finding(
                "no row, and the task should have sampled it", {name: row[name] for name in GROUP}, {}, part=row["part"]
            )
        )
    return found


def _finding(what: str, row: dict[str, Any], names: Sequence[str], *, twice: bool = False) -> Finding:
    return Finding(what, {name: row[name] for name in GROUP}, {name: row[name] for name in names}, twice, row["part"])


def _sample_findings(own: pl.DataFrame, config: RunConfig) -> list[Finding]:
    """Problems whose sample indices are not 0 .. n-1, each once, for the n that the configuration asks for.

    The number, the largest and the sum of the indices are compared: a row that is missing or there twice changes one of them.
    """
    totals = [pl.col("n", "sum_index").sum(), pl.col("last_index").max()]
    samples = {
        COLD: config.protocol.cold_samples,
        RESCUE: config.protocol.rescue_samples,
        EVALUATE: config.evaluation.samples,
    }
    found = []
    for phase, asked in samples.items():
        rows = own.filter(pl.col("phase") == phase)
        # Elsewhere a problem has one row in the tally, unless something is wrong.
        if phase == RESCUE or rows.height != rows.select(GROUP).n_unique():
            rows = rows.group_by(*GROUP, "part").agg(totals)
        good = (
            (pl.col("n") == asked)
            & (pl.col("last_index") == asked - 1)
            & (pl.col("sum_index") == asked * (asked - 1) // 2)
        )
        for row in rows.filter(~good).sort(GROUP).iter_rows(named=True):
            twice = row["n"] >= asked
            what = f"{row['n']} completions, {asked} are asked for" + ("; a sample is there twice" if twice else "")
            found.append(_finding(what, row, GROUP, twice=twice))
    return found
