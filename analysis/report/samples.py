"""A small sample of rescues: question, hint, the student's text without it and its text with it.

The input is a run and its counts. The output is a frame of texts. The same run gives the same
sample. Only the texts of the sample are read from the shards. The rates of all rescues are in
`metrics/rescue.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from analysis.counts.load import RunData, problems_of
from analysis.stats.intervals import SEED
from core_hpc.problems.splits import TRAIN
from core_hpc.store.paths import RunPaths
from core_hpc.store.schema import COLD, HINT, HINTS, RESCUE, ROLLOUTS, Table
from core_hpc.store.shards import published_keys, read_problems

NUM_RESCUES = 6
_CASE = ["iteration", "model", "problem_id"]

RESCUES = pl.Schema(
    {
        "iteration": pl.Int32(),
        "model": pl.String(),  # the student
        "problem_id": pl.String(),
        "teacher_model": pl.String(),
        "question": pl.String(),
        "gold": pl.String(),
        "hint": pl.String(),
        "cold_text": pl.String(),  # the first cold completion; all cold completions are wrong
        "cold_answer": pl.String(),
        "rescued_text": pl.String(),  # the first correct completion with the hint
        "rescued_answer": pl.String(),
    }
)


def sample_rescues(data: RunData, *, num: int = NUM_RESCUES) -> tuple[pl.DataFrame, int]:
    """Draw cases that failed cold and succeeded with the hint.

    Returns:
        The drawn cases (`RESCUES`), and the number of all such cases.

    Raises:
        StoreError: a shard with their texts is missing or damaged.
    """
    rescued = data.counts.filter(
        pl.col("phase") == RESCUE, pl.col("hint_given"), pl.col("cold_failed"), pl.col("c") > 0
    )
    cases = rescued.select(*_CASE, "teacher_model").unique().sort(_CASE)
    drawn = np.sort(np.random.default_rng(SEED).choice(cases.height, size=min(num, cases.height), replace=False))
    cases = cases[drawn]
    if not cases.height:
        return pl.DataFrame(schema=RESCUES), 0
    texts = ("sample_index", "text", "answer")
    cold = _rows(data.path, COLD, ROLLOUTS, cases, texts)
    rescues = _rows(data.path, RESCUE, ROLLOUTS, cases, (*texts, "hint_given", "correct"))
    hinted = rescues.filter("hint_given", "correct")
    hints = _rows(data.path, HINT, HINTS, cases, ("hint",))
    problems = problems_of(data.path, data.config)
    questions = problems.filter(pl.col("split") == TRAIN).select("problem_id", "question", "gold")
    frame = cases.join(questions, on="problem_id", how="left").join(hints, on=_CASE, how="left")
    for name, rows in (("cold", cold), ("rescued", hinted)):
        first = rows.sort("sample_index").group_by(_CASE).first()
        frame = frame.join(first.select(*_CASE, pl.col("text", "answer").name.prefix(f"{name}_")), on=_CASE, how="left")
    return frame.select(list(RESCUES)).sort(_CASE), rescued.select(_CASE).unique().height


def _rows(run: Path, phase: str, table: Table, cases: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """The rows of the cases in one phase, with these columns."""
    iterations, problems = set(cases["iteration"]), cases["problem_id"].unique().to_list()
    names = (*_CASE, *columns)
    frames = [pl.DataFrame(schema={name: table.schema[name] for name in names})]
    for key in published_keys(run):
        if key.phase == phase and key.iteration in iterations:
            path = RunPaths(run).task_manifest(key)
            frames.append(read_problems(path, table, problem_ids=problems, columns=names))
    return pl.concat(frames).join(cases, on=_CASE, how="semi")
