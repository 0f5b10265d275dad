"""The figures of a report: the points that they show, and their files.

The input is the counts and the training curves of a run. The output is `ReportFigure`s; `write`
makes a PDF, an SVG, a PNG and a CSV of each. A figure is drawn from the frame that is written to
its CSV, and from nothing else. The points are computed in `analysis/metrics`; drawing is in
`report/plots.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from analysis.counts.load import RunData
from analysis.layout.formats import csv_text
from analysis.metrics import overlap, passk, rescue
from analysis.metrics.arms import one_run_notes
from analysis.metrics.compare import MEAN
from analysis.report import plot_style, plots
from analysis.report.evaluation_tables import evaluated
from analysis.timing.critical_path import QUEUE, WORK, tasks_of_iteration
from analysis.timing.recorded import RunTimes
from core_hpc.store.paths import TEAM
from core_hpc.store.schema import REWARD_PARTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_KS = 16
_MOST_SIDE_BY_SIDE = 5  # of a larger team, only the matrix of the latest evaluation fits
_OVERLAP_TITLES = {
    "joint_failure": "both fail (%)",
    "b_fails_given_a": "column fails where row fails (%)",
    "phi": "correlation of failure",
}
_PART_NAMES = {**{f"reward/{part}": part.replace("_", " ") for part in REWARD_PARTS}, "reward/reward": "reward"}
_TRAINING_TITLES = {
    "reward/reward": "reward",
    "correct/cold": "cold correct (%)",
    "advantage/zero_signal_share": "no signal (%)",
    "length/truncated_share": "truncated (%)",
    "length/mean": "length (tokens)",
    "loss/kl": "KL to reference",
    "mismatch/mean": "mismatch |Δ log p|",
    "policy/entropy": "entropy (nats)",
}


@dataclass(frozen=True)
class ReportFigure:
    """One figure of a report."""

    name: str  # stem of its file names
    caption: str  # what the figure shows, and how to read it
    points: pl.DataFrame
    draw: Callable[[pl.DataFrame], Figure]


def write(figure: ReportFigure, folder: Path) -> str:
    """Write NAME.pdf, .svg, .png and .csv. Returns the SVG. The same points give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{figure.name}.csv").write_text(csv_text(figure.points), encoding="utf-8")
    with plot_style.style():
        drawn = figure.draw(figure.points)
        # Without a date, a file depends on the points only.
        for suffix, metadata in (("pdf", {"CreationDate": None}), ("svg", {"Date": None}), ("png", {})):
            drawn.savefig(folder / f"{figure.name}.{suffix}", metadata=metadata)
    return (folder / f"{figure.name}.svg").read_text(encoding="utf-8")


def report_figures(data: RunData, curves: pl.DataFrame) -> list[ReportFigure]:
    """All figures that have points.

    Args:
        data: a run.
        curves: the run's training curves, a `CURVES` table of `metrics/curves.py`.
    """
    made = [
        pass_figure(data),
        overlap_figure(data),
        rescue_figure(data),
        reward_figure(curves),
        training_figure(data, curves),
    ]
    return [figure for figure in made if figure.points.height]


def shown_ks(num_samples: int) -> list[int]:
    """The k of a Pass@k curve: all of them, or at most 16 at even steps on a logarithmic scale.

    >>> shown_ks(5), shown_ks(64)[-4:]
    ([1, 2, 3, 4, 5], [28, 37, 49, 64])
    """
    if num_samples <= _MOST_KS:
        return list(range(1, num_samples + 1))
    return sorted({round(num_samples ** (i / (_MOST_KS - 1))) for i in range(_MOST_KS)})


def pass_figure(data: RunData) -> ReportFigure:
    """Pass@k of the models and of the team, against the number of candidates."""
    panels = _panels(data)
    frame = passk.pass_at_k_table(evaluated(data), ks=shown_ks(data.num_samples), models=data.models, teams=[])
    known = frame.filter(pl.col("measure").is_in([passk.PASS, passk.TEAM_PASS]), pl.col("estimate").is_not_null())
    points = known.select(
        pl.Series("panel", map(panels.get, known["iteration"]), pl.String),
        "measure",
        "model",
        "k",
        "candidates",
        "estimate",
        "low",
        "high",
        "num_problems",
    )
    caption = (
        "Held-out problems that at least one candidate solves, by number of candidates. The team takes the same number "
        "of candidates from each of its models, so lines at the same position of the axis have the same budget. "
        "Bands: 95 % intervals, clustered by problem."
    )
    return ReportFigure("pass_at_k", caption, points, lambda p: plots.pass_at_k(p))


def overlap_figure(data: RunData) -> ReportFigure:
    """Error overlap of one completion of each model, for every pair of models."""
    panels = _panels(data)
    if len(data.models) > _MOST_SIDE_BY_SIDE:
        panels = dict(list(panels.items())[-1:])
    frame = overlap.overlap_table(data.counts, models=data.models, iterations=list(panels))
    matrices = [
        overlap.matrix(frame, measure, level=overlap.SAMPLE, k=1, iteration=iteration)
        .unpivot(index="model", variable_name="column", value_name="estimate")
        .select(
            pl.lit(measure).alias("measure"),
            pl.lit(panel).alias("panel"),
            pl.col("model").alias("row"),
            "column",
            "estimate",
        )
        for measure in _OVERLAP_TITLES
        for iteration, panel in panels.items()
    ]
    points = pl.concat(matrices) if frame.height and len(data.models) > 1 else pl.DataFrame()
    caption = (
        "Overlap of errors on held-out problems, for one completion of each model. The diagonal compares a model with "
        "a second sample of itself. Correlation of failure: 0 for models that fail independently, 1 for models that "
        "fail on the same problems."
    )
    return ReportFigure("overlap", caption, points, lambda p: plots.heat_maps(p, _OVERLAP_TITLES))


def rescue_figure(data: RunData) -> ReportFigure:
    """Rescue of cold-failed cases with and without the hint, for every teacher and student."""
    frame = rescue.rescue_table(data.counts, groups=["all", "pair"])
    frame = frame.filter(pl.col("rate").is_in([rescue.PER_ATTEMPT, rescue.CONTROL]))
    pair = pl.col("teacher") + plot_style.ARROW + pl.col("student")
    row = pl.when(pl.col("group") == "all").then(pl.lit("all")).otherwise(pair)
    series = pl.when(pl.col("rate") == rescue.CONTROL).then(pl.lit("without")).otherwise(pl.lit("with hint"))
    points = frame.select(
        row.alias("row"),
        series.alias("series"),
        "estimate",
        "low",
        "high",
        "numerator",
        "denominator",
        "num_problems",
    )
    points = points.with_columns(label=pl.format("{}/{}", "numerator", "denominator"))
    caption = (
        "Share of correct completions after a cold failure, with a peer's hint and without it (the control), by "
        "teacher → student. Right: correct completions / completions, with the hint and without it. "
        "Lines: 95 % intervals, clustered by problem."
    )
    return ReportFigure("rescue", caption, points, lambda p: plots.intervals_by_row(p))


def reward_figure(curves: pl.DataFrame) -> ReportFigure:
    """The parts of the reward by iteration, as the mean over the team."""
    known = _in_order(curves.filter(pl.col("model") == TEAM, pl.col("value").is_not_null()), _PART_NAMES)
    named = known.with_columns(part=pl.col("measure").replace(_PART_NAMES))
    points = named.select("measure", "part", "iteration", "value", "num")
    caption = (
        "Mean reward of the team's completions by iteration: the parts before they are weighted, and the reward, "
        "which is their weighted sum."
    )
    return ReportFigure("rewards", caption, points, lambda p: plots.parts(p, total="reward"))


def training_figure(data: RunData, curves: pl.DataFrame) -> ReportFigure:
    """Training curves of every model and of the team."""
    curves = _without_equal_lines(curves, "advantage/zero_signal_share")
    order = pl.DataFrame({"model": [*data.models, TEAM]})
    known = order.join(curves.filter(pl.col("value").is_not_null()), on="model", maintain_order="left_right")
    points = _in_order(known, _TRAINING_TITLES).select("measure", "model", "iteration", "value", "num")
    caption = (
        "Training by iteration. No signal: pairs of a model and a problem whose completions all have the advantage 0; "
        "one line where it is the same for every model. Mismatch: mean difference between the log-probabilities of "
        "the trainer and of the engine that sampled. Gaps: iterations without a value, for example without training."
    )
    return ReportFigure("training", caption, points, lambda p: plots.curves(p, _TRAINING_TITLES))


def _without_equal_lines(curves: pl.DataFrame, measure: str) -> pl.DataFrame:
    """The curves with only the team's line of this measure, if the lines of all models are equal to it."""
    here = curves.filter(measure=measure)
    if here.group_by("iteration").agg(pl.col("value").n_unique())["value"].max() != 1:
        return curves
    return curves.filter((pl.col("measure") != measure) | (pl.col("model") == TEAM))


def time_figure(data: RunData, times: RunTimes) -> ReportFigure:
    """The tasks of the latest complete iteration on a time axis."""
    done = [i for i, num in times.num_tasks.items() if len(tasks_of_iteration(times.tasks, i)) == num]
    own = tasks_of_iteration(times.tasks, max(done)) if done else []
    first = min((t.appeared for t in own), default=0.0)
    rows = [
        (t.key.model, t.key.phase, t.key.part, item, item in WORK or t.key.model == TEAM, a - first, b - first)
        for t in own
        for item, a, b in (*t.waits, *t.spans)
        if b > a and item != QUEUE
    ]
    columns = {"model": pl.String, "phase": pl.String, "part": pl.Int64, "item": pl.String, "is_work": pl.Boolean}
    points = pl.DataFrame(rows, schema={**columns, "began_s": pl.Float64, "ended_s": pl.Float64}, orient="row")
    order = pl.DataFrame({"model": [*data.models, TEAM]})
    points = order.join(points, on="model", maintain_order="left_right")
    caption = (
        f"When the tasks of iteration {max(done, default=0)} ran. Dark: sampling, log-probabilities and training, and "
        "all tasks of the team. Pale: starting, loading, reading, writing. White: the model waits."
    )
    return ReportFigure("time", caption, points, lambda p: plots.strip(p))


def arms_figure(frame: pl.DataFrame) -> ReportFigure:
    """Team Pass@k of every arm, and Pass@k of its models at the same budget.

    Args:
        frame: `ARMS_TABLE` of `metrics/arms.py`.
    """
    measures = [passk.TEAM_PASS, passk.MATCHED_PASS] if frame.filter(measure=passk.TEAM_PASS).height else [passk.PASS]
    known = frame.filter(pl.col("measure").is_in(measures), pl.col("estimate").is_not_null())
    depth = pl.when(pl.col("measure") == passk.TEAM_PASS).then("k").otherwise("candidates")
    plural = pl.when(pl.col("candidates") > 1).then(pl.lit("s")).otherwise(pl.lit(""))
    name = pl.format("{} Pass@{}, {} candidate{}", "model", depth, "candidates", plural)
    order = pl.col("measure").replace_strict({m: i for i, m in enumerate(measures)}, return_dtype=pl.Int64)
    points = known.sort("k", order, maintain_order=True).select(
        name.alias("row"),
        "measure",
        "model",
        "k",
        "candidates",
        "arm",
        "seed",
        "estimate",
        "low",
        "high",
        "num_problems",
    )
    several = (frame["num_seeds"] > 1).any()
    shown = "the mean over seeds with its 95 % interval over problems"
    shown += " and seeds" if several else ""
    notes = [f"{note}." for note in one_run_notes(frame)] if several else []
    caption = (
        "Held-out problems solved by the team, and by each of its models alone with the same number of candidates, for "
        f"every arm: {shown}, and below it one dot per seed. Dotted line: the first arm."
    )
    caption = " ".join([caption, *notes])
    return ReportFigure("arms", caption, points, lambda p: plots.arms(p, mean=MEAN))


def _in_order(rows: pl.DataFrame, measures: Mapping[str, str]) -> pl.DataFrame:
    """The rows of these measures, in the order of the measures."""
    order = pl.DataFrame({"measure": list(measures)})
    return order.join(rows, on="measure", maintain_order="left_right")


def _panels(data: RunData) -> dict[int, str]:
    """The iterations of the evaluations that are shown, with the titles of their panels."""
    before, after = passk.before_and_after(data.counts, data.models)
    first = "evaluation" if data.only_evaluates else "before training"
    named = {before: first if data.config is not None else "predictions", after: f"after iteration {after}"}
    return {iteration: name for iteration, name in named.items() if iteration is not None}
