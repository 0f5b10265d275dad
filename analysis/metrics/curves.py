"""Training curves of a run: one value per iteration, model and measure.

The input is a run folder, of a run that is finished or in progress. The output is a tidy frame
(`CURVES`). `core_hpc/controller/run_tracker.py` uses the values of single sets of rows and writes them
to TensorBoard under the same names.

The published shards of scores and optimizer steps are read one after another, with the needed
columns only, and only sums are kept. The memory therefore does not grow with the run. The values
have no intervals, because they are means over the training data, not estimates of ability
(`metrics/passk.py` has those).
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from core_hpc.store import manifests
from core_hpc.store.paths import TEAM, RunPaths, TaskKey
from core_hpc.store.schema import COLD, NO_ANSWER, RESCUE, REWARD_PARTS, SCORE, SCORES, STEPS, UPDATE
from core_hpc.store.shards import published_keys, read_manifest_table

CURVES = pl.Schema(
    {
        "iteration": pl.Int32(),
        "model": pl.String(),  # a model, or TEAM for all rows together (not the mean of the models)
        "measure": pl.String(),
        "value": pl.Float64(),  # null: there is nothing to average
        "num": pl.Int64(),  # completions, problems or optimizer steps that the value is computed from
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
    "kept_mass": "mismatch/kept_mass",
    "ratio_max": "policy/ratio_max",
    "reliance": "rescue/reliance",
    "self_teacher_factor": "policy/self_teacher_factor",
    "clip_share_cold": "loss/clip_share_cold",
    "clip_share_rescue": "loss/clip_share_rescue",
    "clip_share_internalised": "loss/clip_share_internalised",
    "clip_share_peer": "loss/clip_share_peer",
    "slope_share_cold": "source/slope_share_cold",
    "slope_share_rescue": "source/slope_share_rescue",
    "slope_share_taught": "source/slope_share_taught",
    "slope_share_rehearsed": "source/slope_share_rehearsed",
    "slope_share_internalised": "source/slope_share_internalised",
    "slope_share_peer": "source/slope_share_peer",
    "slope_share_self_taught": "source/slope_share_self_taught",
}
"""Columns of STEPS and the names of their curves."""

SCORE_COLUMNS = (
    "phase",
    "model",
    "problem_id",
    "correct",
    "verdict",
    "cold_failed",
    "hint_given",
    "teacher_model",
    "num_completion_tokens",
    "truncated",
    *REWARD_PARTS,
    "reward",
    "advantage",
    "zero_signal",
    "team_pass_advantage",
)

_MAXIMA = ("length/max", "mismatch/max", "policy/ratio_max")
_COUNTS = ("rescue/num_attempts",)

_Sums = dict[tuple[str, str], tuple[float, int, float | None]]
"""Sum, number and maximum of the values of each (model, measure)."""


def score_points(rows: pl.DataFrame) -> dict[str, float | None]:
    """Compute the points of the score curves of one iteration.

    Args:
        rows: rows of SCORES with at least `SCORE_COLUMNS`, of one model or of the team.

    Returns:
        The value of each measure; None where there is nothing to average.
    """
    sums = _score_sums(rows, of=pl.lit(TEAM))
    return {measure: _value(measure, *of_measure) for (_, measure), of_measure in sums.items()}


def curves_table(run: Path) -> pl.DataFrame:
    """Compute the curves of all iterations with published scores or optimizer steps.

    Measures of scores (rewards, advantages, lengths, rescues) have rows for every model and for the
    team. Measures of optimizer steps have rows for every model. Their value is the mean over the
    steps of the iteration; `mismatch/max` and `policy/ratio_max` are the maximum. Steps without a
    value (such as KL without a reference, which is NaN) do not count. `advantage/zero_signal_share` is
    the share of pairs of a model and a problem in which no completion has an advantage. While only some parts of an
    iteration are scored, its values are those of these parts.

    Args:
        run: the run folder.

    Returns:
        A frame with the schema `CURVES`, sorted by measure, model and iteration.
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
        sums = [_sum(name, pl.col(column)) for column, name in STEP_MEASURES.items()]
        return _by_measure(steps.group_by("model").agg(sums))
    rows = read_manifest_table(manifest, SCORES, columns=SCORE_COLUMNS)
    return _score_sums(rows, of=pl.col("model")) | _score_sums(rows, of=pl.lit(TEAM))


def _score_sums(rows: pl.DataFrame, *, of: pl.Expr) -> _Sums:
    """The sums by `of`, which is the model of a row, or TEAM."""
    rows = rows.with_columns(of=of)
    cold, rescue = pl.col("phase") == COLD, pl.col("phase") == RESCUE
    of_failed = rescue & pl.col("cold_failed")
    correct, length = pl.col("correct"), pl.col("num_completion_tokens")
    values = {f"reward/{part}": pl.col(part) for part in (*REWARD_PARTS, "reward")}
    values |= {
        "correct/cold": correct.filter(cold),
        "correct/rescue": correct.filter(rescue),
        "rescue/per_attempt": correct.filter(of_failed & pl.col("hint_given")),
        "rescue/control": correct.filter(of_failed & ~pl.col("hint_given") & pl.col("teacher_model").is_not_null()),
        "rescue/num_attempts": correct.filter(of_failed & pl.col("hint_given")),
        "advantage/mean": pl.col("advantage"),
        "advantage/mean_abs": pl.col("advantage").abs(),
        "advantage/team_pass_mean_abs": pl.col("team_pass_advantage").abs(),
        "length/mean": length,
        "length/max": length,
        "length/truncated_share": pl.col("truncated"),
        "length/no_answer_share": pl.col("verdict") == NO_ANSWER,
    }
    of_rows = rows.group_by(model="of").agg(_sum(measure, value) for measure, value in values.items())
    all_zero = (pl.col("explore") == 0).all()
    problems = rows.group_by("of", "problem_id").agg(all_zero=all_zero)
    of_problems = problems.group_by(model="of").agg(_sum("explore/all_zero_share", pl.col("all_zero")))
    # A model whose completions of a problem are all pushed down learns only what not to write.
    only_negative = (pl.col("advantage") < 0).all()
    # With a baseline per model, one model may have a signal where another has none. So the team has a share of pairs.
    pairs = rows.group_by("of", "model", "problem_id").agg(pl.col("zero_signal").all(), only_negative=only_negative)
    shares = {"advantage/only_negative_share": "only_negative", "advantage/zero_signal_share": "zero_signal"}
    of_pairs = pairs.group_by(model="of").agg(_sum(measure, pl.col(name)) for measure, name in shares.items())
    return _by_measure(of_rows) | _by_measure(of_problems) | _by_measure(of_pairs)


def _sum(measure: str, value: pl.Expr) -> pl.Expr:
    value = value.cast(pl.Float64).fill_nan(None)  # NaN: the step has no such value
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
