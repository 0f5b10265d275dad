"""Training curves of a run, from its published scores and optimizer steps: one value per iteration, model and measure.

In: a run folder, finished or in progress. Out: a tidy frame (`CURVES`), or the points of a given set of rows, which
core_hpc.controller.tracking writes to TensorBoard under the same names. Shards are read one after the other with the columns that
are needed, and only sums are kept, so a run of any size fits into memory. Nothing here has an interval: these are means
over what was trained on, not estimates of ability (passk.py).
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from core_hpc.store import manifests
from core_hpc.store.paths import TEAM, RunPaths, TaskKey
from core_hpc.store.schema import COLD, RESCUE, REWARD_PARTS, SCORE, SCORES, STEPS, UPDATE
from core_hpc.store.shards import published_keys, read_manifest_table

CURVES = pl.Schema(
    {
        "iteration": pl.Int32(),
        "model": pl.String(),  # a model, or the team: all rows together, not the mean of the models
        "measure": pl.String(),
        "value": pl.Float64(),  # null: nothing to average
        "num": pl.Int64(),  # completions, problems or optimizer steps that the value stands on
    }
)

STEP_MEASURES = {
    "loss": "loss/total",
    "policy_loss": "loss/policy",
    "kl": "loss/kl",
    "clip_share": "loss/clip_share",
    "grad_norm": "loss/grad_norm",
    "learning_rate": "loss/learning_rate",
    "entropy": "policy/entropy",
    "mismatch_mean": "mismatch/mean",
    "mismatch_max": "mismatch/max",
    "importance_mean": "mismatch/importance",
    "ratio_max": "policy/ratio_max",
}
"""Columns of STEPS and the names of their curves."""

SCORE_COLUMNS = (
    "phase",
    "model",
    "problem_id",
    "correct",
    "cold_failed",
    "hint_given",
    "teacher_model",
    "num_completion_tokens",
    "truncated",
    *REWARD_PARTS,
    "reward",
    "advantage",
    "zero_signal",
)

_MAXIMA = ("length/max", "mismatch/max", "policy/ratio_max")
_COUNTS = ("rescue/num_attempts",)

_Sums = dict[tuple[str, str], tuple[float, int, float | None]]
"""(model, measure): total, number and largest of what the value is made of."""


def score_points(rows: pl.DataFrame) -> dict[str, float | None]:
    """Names and values of one iteration's scores, of one model or of the team. None where there is nothing to average.

    Args:
        rows: rows of SCORES (`SCORE_COLUMNS` are enough).
    """
    return {
        measure: _value(measure, *sums)
        for (_, measure), sums in _score_sums(rows.with_columns(model=pl.lit(TEAM))).items()
    }


def curves_table(run: Path) -> pl.DataFrame:
    """Curves of all iterations with published scores or optimizer steps, of every model and of the team.

    Scores (rewards, advantages, lengths, rescues) have rows for the team too; optimizer steps belong to one model each.
    The value of a step's measure is the mean over the iteration's steps that have it (KL is NaN where no reference was
    computed), for `mismatch/max` and `policy/ratio_max` the largest. An iteration of which only some parts are scored has
    the values of these.

    Args:
        run: a run folder.

    Returns:
        `CURVES`, sorted by measure, model and iteration.
    """
    found: dict[tuple[int, str, str], list[tuple[float, int, float | None]]] = {}
    for key in published_keys(run):
        if key.phase in (SCORE, UPDATE):
            for (model, measure), sums in _read_sums(run, key).items():
                found.setdefault((key.iteration, model, measure), []).append(sums)
    rows = []
    for (iteration, model, measure), parts in found.items():
        total, num = sum(p[0] for p in parts), sum(p[1] for p in parts)
        largest = max((p[2] for p in parts if p[2] is not None), default=None)
        rows.append((iteration, model, measure, _value(measure, total, num, largest), num))
    return pl.DataFrame(rows, schema=CURVES, orient="row").sort("measure", "model", "iteration")


def _read_sums(run: Path, key: TaskKey) -> _Sums:
    manifest = manifests.read_manifest(RunPaths(run).task_manifest(key))
    if key.phase == UPDATE:
        steps = read_manifest_table(manifest, STEPS, columns=("model", *STEP_MEASURES))
        return _by_measure(
            steps.group_by("model").agg(_sum(name, pl.col(column)) for column, name in STEP_MEASURES.items())
        )
    rows = read_manifest_table(manifest, SCORES, columns=SCORE_COLUMNS)
    return _score_sums(rows) | _score_sums(rows.with_columns(model=pl.lit(TEAM)))


def _score_sums(rows: pl.DataFrame) -> _Sums:
    cold, rescue = pl.col("phase") == COLD, pl.col("phase") == RESCUE
    tried = rescue & pl.col("cold_failed")
    correct, length = pl.col("correct"), pl.col("num_completion_tokens")
    values = {f"reward/{part}": pl.col(part) for part in (*REWARD_PARTS, "reward")}
    values |= {
        "correct/cold": correct.filter(cold),
        "correct/rescue": correct.filter(rescue),
        "rescue/per_attempt": correct.filter(tried & pl.col("hint_given")),
        "rescue/control": correct.filter(tried & ~pl.col("hint_given") & pl.col("teacher_model").is_not_null()),
        "rescue/num_attempts": correct.filter(tried & pl.col("hint_given")),
        "advantage/mean": pl.col("advantage"),
        "advantage/mean_abs": pl.col("advantage").abs(),
        "length/mean": length,
        "length/max": length,
        "length/truncated_share": pl.col("truncated"),
    }
    of_rows = rows.group_by("model").agg(_sum(measure, value) for measure, value in values.items())
    problems = rows.group_by("model", "problem_id").agg(
        pl.col("zero_signal").all(), all_zero=(pl.col("explore") == 0).all()
    )
    of_problems = problems.group_by("model").agg(
        _sum("advantage/zero_signal_share", pl.col("zero_signal")), _sum("explore/all_zero_share", pl.col("all_zero"))
    )
    return _by_measure(of_rows) | _by_measure(of_problems)


def _sum(measure: str, value: pl.Expr) -> pl.Expr:
    value = value.cast(pl.Float64).fill_nan(None)  # NaN: a step that had no such value
    return pl.struct(total=value.sum(), num=value.count(), largest=value.max()).alias(measure)


def _by_measure(sums: pl.DataFrame) -> _Sums:
    return {
        (row["model"], measure): (of["total"], of["num"], of["largest"])
        for row in sums.iter_rows(named=True)
        for measure, of in row.items()
        if measure != "model"
    }


def _value(measure: str, total: float, num: int, largest: float | None) -> float | None:
    if measure in _COUNTS:
        return float(num)
    if measure in _MAXIMA:
        return largest
    return total / num if num else None
