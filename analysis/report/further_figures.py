"""The figures of selectors and of learning curves: the points that they show.

The input is tidy frames of `metrics/selectors.py` and `metrics/learning.py`. The output is
`ReportFigure`s, as in `report/figures.py`. Drawing is in `report/plots.py`.
"""

from __future__ import annotations

import polars as pl

from analysis.metrics import selectors
from analysis.metrics.compare import MEAN
from analysis.metrics.learning import LEVEL
from analysis.metrics.passk import PASS, TEAM, TEAM_PASS
from analysis.report import plots
from analysis.report.figures import ReportFigure

_MOST_GATES = 2
_INTERVAL = ("estimate", "low", "high")


def selectors_figure(frame: pl.DataFrame) -> ReportFigure:
    """Accuracy against tokens of every selector of one evaluation; no points where token counts are not recorded.

    Args:
        frame: selectors of one evaluation (`SELECTORS_OF_RUN` of `report/further_tables.py`).
    """
    here = frame.filter(pl.col("estimate").is_not_null())
    team = here.filter(pl.col("model").str.contains(" > ", literal=True) | (pl.col("model") == TEAM))
    here = team if team.height else here
    gates = here.filter(selector=selectors.GATED)["model"].unique(maintain_order=True).to_list()
    if len(gates) > _MOST_GATES:  # more lines than there are colours
        here = here.filter(~pl.col("model").is_in(gates[1:]))
    keys = ["selector", "model", "k"]
    accuracy = here.filter(figure=selectors.ACCURACY).select(*keys, *_INTERVAL, "num_problems")
    tokens = here.filter(figure=selectors.TOKENS).select(*keys, tokens="estimate")
    points = accuracy.join(tokens, on=keys, how="inner", maintain_order="left")
    name = pl.when(pl.col("selector") == selectors.GATED).then(pl.format("gated {}", "model")).otherwise("selector")
    points = points.with_columns(series=name.str.replace_all("_", " ", literal=True))
    caption = (
        "Held-out problems solved against sampled tokens per problem, for ways to choose one answer of the team. The "
        "oracle needs the gold answer; the others do not. Each line goes through the numbers of completions per model. "
        "Bars: 95 % intervals, clustered by problem."
    )
    return ReportFigure("selectors", caption, points, lambda p: plots.selectors(p, strong=selectors.ORACLE))


def learning_figure(frame: pl.DataFrame) -> ReportFigure:
    """Held-out figures of the smallest k against the iteration: the mean over seeds, and each seed.

    Args:
        frame: a frame with the schema `LEARNING_TABLE`, of one configuration.
    """
    known = frame.filter(
        pl.col("figure") == LEVEL, pl.col("estimate").is_not_null(), pl.col("measure").is_in([PASS, TEAM_PASS])
    )
    known = known.filter(pl.col("k") == pl.col("k").min())
    points = known.select("model", "k", "seed", "iteration", *_INTERVAL, "num_problems")
    if points["iteration"].n_unique() < 2:
        points = points.clear()
    k = min(points["k"], default=1)
    completions = "one completion" if k == 1 else f"{k} completions"
    caption = (
        f"Held-out problems solved by iteration: Pass@{k} of each model and team Pass@{k}, which spends {completions} "
        "of each model. Bands: 95 % intervals over problems and, with several seeds, over seeds. Thin: single seeds."
    )
    return ReportFigure("learning", caption, points, lambda p: plots.learning(p, mean=MEAN))
