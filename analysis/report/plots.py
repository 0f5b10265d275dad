"""Drawing of figures: from points to matplotlib figures with the width of a paper's column.

The input is frames of points, made in `report/figures.py`. The output is matplotlib figures. They
are made with the object API inside `plot_style.style()`, so global settings do not change. This
module computes nothing and writes no file. Colours, sizes and legends are in `report/plot_style.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from analysis.report.plot_style import (
    CHARACTER_IN,
    COLOURS,
    COLUMN_WIDTH_IN,
    LINE_CHARACTERS,
    MARKERS,
    arm_look,
    key_above,
    legend_above,
    looks_of,
    names_of,
    new_figure,
    shortened,
    shortened_pair,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.stats.estimators import FloatArray

_NUM_MARKERS = 5  # markers per training curve; more would overlap
_LONGEST_TICK_IN = 0.5
_ROW_CHARACTERS = 54  # room for a row's name and counts together


def pass_at_k(points: pl.DataFrame) -> Figure:
    """Pass@k against the number of candidates.

    Args:
        points: panel, model, candidates, estimate, low, high.
    """
    panels = points.partition_by("panel", maintain_order=True)
    figure = new_figure(0.5 + 1.75 * len(panels))
    grid = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    looks = looks_of(names_of(points))
    most = max(points["candidates"].to_list())
    for axes, panel in zip(grid, panels, strict=True):
        for name, look in looks.items():
            line = panel.filter(pl.col("model") == name).sort("candidates")
            x, estimate, low, high = line.select("candidates", pl.col("estimate", "low", "high") * 100).to_numpy().T
            axes.plot(x, estimate, label=name, **look)
            _band(axes, x, estimate, low, high, color=look["color"])
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks := [2**i for i in range(most.bit_length())], [str(tick) for tick in ticks])
        axes.set_title(panel["panel"][0])
        axes.set_ylabel("solved (%)")
        axes.grid()
    grid[-1].set_xlabel("candidates spent on a problem")
    legend_above(figure, grid)
    return figure


def heat_maps(points: pl.DataFrame, titles: Mapping[str, str]) -> Figure:
    """One matrix of models per measure and panel, with its numbers.

    Args:
        points: measure, panel, row, column, estimate.
        titles: title of each measure. A measure whose title ends in (%) is a share, any other is a
            coefficient between -1 and 1.
    """
    from matplotlib.lines import Line2D

    names = points["row"].unique(maintain_order=True).to_list()
    panels, measures = (points[column].unique(maintain_order=True).to_list() for column in ("panel", "measure"))
    # Names that are too long are replaced by numbers, with a key above the matrices.
    longest_in = CHARACTER_IN * max(map(len, names))
    numbered = len(names) > 3 or longest_in > _LONGEST_TICK_IN
    ticks = [str(i + 1) for i in range(len(names))] if numbered else names
    margin_in = 0.3 if numbered else longest_in + 0.2
    cell_in = min(0.5, (COLUMN_WIDTH_IN - margin_in) / len(panels) / len(names) - 0.03)
    figure = new_figure((0.74 if numbered else 0.6) + len(measures) * (cell_in * len(names) + 0.42))
    grid = figure.subplots(len(measures), len(panels), sharex=True, sharey=True, squeeze=False)
    for measure, line in zip(measures, grid, strict=True):
        for panel, axes in zip(panels, line, strict=True):
            here = points.filter(pl.col("measure") == measure, pl.col("panel") == panel)
            _matrix(axes, here, names, is_share=titles[measure].endswith("(%)"), size_in=cell_in)
            axes.set_title(f"{titles[measure]}\n{panel}" if axes is line[0] else f"\n{panel}")
            at = [i + 0.5 for i in range(len(names))]
            axes.set(xticks=at, xticklabels=ticks, yticks=at, yticklabels=ticks)
    if numbered:
        handles = {f"{i}  {name}": Line2D([], []) for i, name in zip(ticks, names, strict=True)}
        key_above(figure, handles, handlelength=0, handletextpad=0)
    return figure


def _matrix(axes: Axes, points: pl.DataFrame, names: Sequence[str], *, is_share: bool, size_in: float) -> None:
    from matplotlib import colormaps

    values = np.full((len(names), len(names)), np.nan)
    for row, column, estimate in points.select("row", "column", "estimate").drop_nulls().iter_rows():
        values[names.index(row), names.index(column)] = estimate
    colours = colormaps["Blues" if is_share else "RdBu_r"]
    axes.pcolormesh(values, cmap=colours, vmin=0 if is_share else -1, vmax=1, edgecolors="white", linewidth=1)
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            is_dark = sum(colours(value if is_share else (value + 1) / 2)[:3]) < 1.5
            text = f"{value * 100:.0f}" if is_share else f"{value:.2f}".replace("0.", ".")
            look: dict[str, Any] = {"color": "white" if is_dark else "black", "fontsize": min(7, 22 * size_in)}
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", **look)
    axes.set(aspect="equal", ylim=(len(names), 0))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def intervals_by_row(points: pl.DataFrame) -> Figure:
    """Estimates with their intervals, one line per series below the name of the row.

    Args:
        points: row, series, estimate, low, high, label (shown at the right).
    """
    rows, series = (points[column].unique(maintain_order=True).to_list() for column in ("row", "series"))
    figure = new_figure(0.75 + 0.4 * len(rows))
    axes = figure.subplots()
    for n, name in enumerate(series):
        part = points.filter(pl.col("series") == name, pl.col("estimate").is_not_null())
        # A row is one unit high: its name, its intervals, and free space before the next row.
        at = [rows.index(row) + 0.45 + 0.22 * n for row in part["row"]]
        x, low, high = (part[column].to_numpy() * 100 for column in ("estimate", "low", "high"))
        fill = "white" if n else COLOURS[n]
        look: dict[str, Any] = {"color": COLOURS[n], "marker": MARKERS[n], "markerfacecolor": fill}
        axes.errorbar(x, at, xerr=[x - low, high - x], label=name, linestyle="", elinewidth=0.9, **look)
    labels = points.group_by("row", maintain_order=True).agg(pl.col("label").str.join(", "))
    for i, (row, label) in enumerate(labels.iter_rows()):
        name = shortened_pair(row, _ROW_CHARACTERS - len(label))
        for place, text, side in ((0, name, "left"), (100, label, "right")):
            axes.text(place, i + 0.16, text, ha=side, va="center", fontsize=6.5)
    axes.set(xlim=(-3, 103), ylim=(len(rows), -0.1), yticks=[], xlabel="correct completions (%)")
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    legend_above(figure, [axes])
    return figure


def arms(points: pl.DataFrame, *, mean: str) -> Figure:
    """Estimates of several arms by row: the mean with its interval, and one dot per seed.

    A dotted line marks the first arm.

    Args:
        points: row, arm, seed, estimate, low, high.
        mean: value of `seed` in the rows of the mean.
    """
    rows, names = (points[column].unique(maintain_order=True).to_list() for column in ("row", "arm"))
    step, top = 0.13, 0.2  # height in inches of an arm, and of the name above the arms
    height = top + step * len(names)
    figure = new_figure(0.75 + height * len(rows))
    axes = figure.subplots()
    for n, name in enumerate(names):
        part = points.filter(pl.col("arm") == name).with_columns(pl.col("estimate", "low", "high") * 100)
        places = {row: i * height + top + step * n for i, row in enumerate(rows)}
        part = part.with_columns(at=part["row"].replace_strict(places, return_dtype=pl.Float64))
        own, seeds = part.filter(pl.col("seed") == mean), part.filter(pl.col("seed") != mean)
        look = arm_look(n)
        # The seeds are drawn a little lower, because the mean would cover them on its own line.
        dots: dict[str, Any] = look | {"marker": "o", "fillstyle": "full", "markersize": 2, "markeredgewidth": 0}
        axes.plot(seeds["estimate"], seeds["at"] + step / 3, alpha=0.6, **dots)
        x, low, high = (own[column].to_numpy() for column in ("estimate", "low", "high"))
        axes.errorbar(x, own["at"].to_numpy(), xerr=[x - low, high - x], label=name, elinewidth=0.9, **look)
        if n == 0:
            down = own["at"].to_numpy() + step * (len(names) - 0.6)
            axes.vlines(x, own["at"].to_numpy(), down, color="#888888", linestyle=":", linewidth=0.8)
    name_look: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 6.5}
    for i, row in enumerate(rows):
        axes.text(0, i * height + 0.08, shortened(row, LINE_CHARACTERS), **name_look)
    axes.set(ylim=(height * len(rows), -0.02), yticks=[], xlabel="solved (%)")
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    legend_above(figure, [axes])
    return figure


def curves(points: pl.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Small charts of one measure each against the iteration, with one line per model.

    Args:
        points: measure, model, iteration, value.
        titles: title of each measure. A measure whose title ends in (%) is a share.
    """
    measures = points["measure"].unique(maintain_order=True).to_list()
    num_lines = -(-len(measures) // 2)
    figure = new_figure(0.5 + 1.05 * num_lines)
    grid = figure.subplots(num_lines, 2, sharex=True, squeeze=False)
    looks = looks_of(names_of(points))
    used, unused = grid.flat[: len(measures)], grid.flat[len(measures) :]
    for axes, measure in zip(used, measures, strict=True):
        is_share = titles[measure].endswith("(%)")
        here = points.filter(pl.col("measure") == measure).with_columns(pl.col("value") * (100 if is_share else 1))
        _lines(axes, here, looks)
        axes.set_title(titles[measure])
        if is_share:
            axes.set_ylim(bottom=0)
    for axes in unused:
        axes.remove()
    for axes in used[-2:]:  # the lowest chart of each column
        axes.tick_params("x", labelbottom=True)
        axes.set_xlabel("iteration")
    legend_above(figure, used)
    return figure


def parts(points: pl.DataFrame, *, total: str) -> Figure:
    """The parts of a sum, and the sum, against the iteration.

    Args:
        points: part, iteration, value.
        total: value of `part` in the rows of the sum.
    """
    points = points.rename({"part": "model"})
    figure = new_figure(2.2)
    axes = figure.subplots()
    _lines(axes, points, looks_of(names_of(points), strong=total))
    axes.set(xlabel="iteration", ylabel="mean of completions")
    legend_above(figure, [axes])
    return figure


def strip(points: pl.DataFrame) -> Figure:
    """Tasks as bars on a time axis, one row per model, coloured by phase; work is dark.

    Args:
        points: model, phase, is_work, began_s, ended_s.
    """
    names, phases = (points[column].unique(maintain_order=True).to_list() for column in ("model", "phase"))
    figure = new_figure(0.65 + 0.28 * len(names))
    axes = figure.subplots()
    for i, phase in enumerate(phases):
        for is_work in (False, True):
            here = points.filter(pl.col("phase") == phase, pl.col("is_work") == is_work)
            at = [names.index(name) for name in here["model"]]
            began, ended = (here[column].to_numpy() for column in ("began_s", "ended_s"))
            label = phase if is_work or not points.filter(phase=phase, is_work=True).height else None
            look: dict[str, Any] = {"color": COLOURS[i % 6], "alpha": 1 if is_work else 0.35, "linewidth": 0}
            axes.barh(at, ended - began, left=began, height=0.7, label=label, **look)
    axes.set(
        yticks=range(len(names)),
        yticklabels=[shortened(name, 14) for name in names],
        ylim=(len(names) - 0.4, -0.6),
        xlim=(0, None),
    )
    axes.set_xlabel("seconds")
    axes.grid(axis="x")
    legend_above(figure, [axes])
    return figure


def _band(axes: Axes, x: FloatArray, y: FloatArray, low: FloatArray, high: FloatArray, *, color: str) -> None:
    """The intervals of a line: a band, or an error bar where the line is one point."""
    if len(x) > 1:
        axes.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0)
    elif np.isfinite(low).all() and np.isfinite(high).all():
        axes.errorbar(x, y, yerr=[y - low, high - y], color=color, linestyle="", elinewidth=0.9)


def _lines(axes: Axes, points: pl.DataFrame, looks: Mapping[str, dict[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    # An iteration without a value breaks the line, for example where a model trained on nothing.
    first, last = points.select(first=pl.col("iteration").min(), last=pl.col("iteration").max()).row(0)
    iterations = pl.DataFrame({"iteration": range(first, last + 1)}, schema={"iteration": points.schema["iteration"]})
    for name, look in looks.items():
        line = points.filter(pl.col("model") == name)
        if line.height:
            line = iterations.join(line, on="iteration", how="left", maintain_order="left")
            x, y = line["iteration"].to_numpy(), line["value"].to_numpy()
            known = np.isfinite(y)
            marked = np.flatnonzero(known)[:: max(1, -(-int(known.sum()) // _NUM_MARKERS))]
            axes.plot(x, y, label=name, markevery=marked.tolist(), **look)
            # A value between two missing ones has no line, so it gets a dot.
            beside = np.pad(known, 1)
            alone = known & ~beside[:-2] & ~beside[2:]
            axes.plot(x[alone], y[alone], linestyle="", marker=".", markersize=2, color=look["color"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.grid()


def selectors(points: pl.DataFrame, *, strong: str) -> Figure:
    """Accuracy against tokens, with one line per series through its numbers of completions.

    Args:
        points: series, k, tokens, estimate, low, high.
        strong: the series that stands out.
    """
    figure = new_figure(2.6)
    axes = figure.subplots()
    for name, look in looks_of(points["series"].unique(maintain_order=True).to_list(), strong=strong).items():
        line = points.filter(pl.col("series") == name).sort("k").with_columns(pl.col("estimate", "low", "high") * 100)
        x, y, low, high = (line[column].to_numpy() for column in ("tokens", "estimate", "low", "high"))
        axes.errorbar(x, y, yerr=[y - low, high - y], label=name, elinewidth=0.7, **look)
    axes.set(xlabel="sampled tokens per problem", ylabel="solved (%)", xlim=(0, None))
    axes.grid()
    legend_above(figure, [axes])
    return figure


def learning(points: pl.DataFrame, *, mean: str) -> Figure:
    """Held-out figures against the iteration: the mean with a band, and a thin line per seed.

    Args:
        points: model, k, seed, iteration, estimate, low, high; all rows have the same k.
        mean: value of `seed` in the rows of the mean. Without such rows, the only seed is drawn so.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(2.2)
    axes = figure.subplots()
    several = mean in set(points["seed"])
    for name, look in looks_of(names_of(points)).items():
        own = points.filter(pl.col("model") == name).with_columns(pl.col("estimate", "low", "high") * 100)
        for line in own.sort("iteration").partition_by("seed", maintain_order=True):
            x, y, low, high = (line[column].to_numpy() for column in ("iteration", "estimate", "low", "high"))
            if several and line["seed"][0] != mean:
                axes.plot(x, y, color=look["color"], linewidth=0.5, alpha=0.5)
                continue
            axes.plot(x, y, label=name, **look)
            _band(axes, x, y, low, high, color=look["color"])
    axes.set(xlabel="iteration", ylabel=f"solved, Pass@{points['k'][0]} (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.grid()
    legend_above(figure, [axes])
    return figure
