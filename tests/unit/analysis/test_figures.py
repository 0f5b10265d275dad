"""Figures: points against counts, drawings against points, room for every label, and files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import polars as pl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from analysis.counts.completions import COMPLETIONS
from analysis.counts.load import RunData
from analysis.metrics.arms import arms_of, arms_table
from analysis.metrics.curves import CURVES
from analysis.metrics.learning import learning_table
from analysis.metrics.selectors import selector_table
from analysis.report import figures, plot_style
from analysis.report.figures import ReportFigure, arms_figure, report_figures
from analysis.report.further_figures import learning_figure, selectors_figure
from tests.support.analysis_data import config, counts_frame, rescue_counts

LONG = (
    "a-model-with-a-name-that-no-table-has-room-for",
    "deepseek-r1-distill-1.5b",
    "llama-3.1-8b-instruct",
    "q",
    "phi-4",
    "olmo",
    "g",
)
NUM_SAMPLES = 4


def run_data(models: tuple[str, ...], *, iterations: tuple[int, ...] = (0, 2), num_problems: int = 30) -> RunData:
    """Random counts of two evaluations and of rescues between all models."""
    rng = np.random.default_rng(3)
    shape = (len(models), num_problems)
    frames = [
        counts_frame(NUM_SAMPLES, rng.integers(0, NUM_SAMPLES + 1, shape), models=models, iteration=i)
        for i in iterations
    ]
    cases = [
        {
            "problem": f"{t}{p}",
            "student": s,
            "teacher": t,
            "hinted": (int(rng.integers(0, 3)), 2),
            "control": (int(rng.integers(0, 2)), 1),
        }
        for s in models
        for t in models
        for p in range(4)
        if s != t
    ]
    team = [{"name": name.replace(".", "-"), "model": "fake:any", "engine": "fake"} for name in models]
    counts = pl.concat([*frames, rescue_counts(cases)])
    return RunData(
        Path("run"), config(team=team, evaluation={"samples": NUM_SAMPLES}), list(models), counts, pl.DataFrame()
    )


def example_curves(models: tuple[str, ...], num_iterations: int) -> pl.DataFrame:
    rows = [
        (i, model, measure, 0.1 * i + m, 5)
        for measure in (*figures._TRAINING_TITLES, *figures._PART_NAMES)
        for m, model in enumerate((*models, "team"))
        for i in range(1, num_iterations + 1)
    ]
    return pl.DataFrame(rows, schema=CURVES, orient="row").unique(
        ["iteration", "model", "measure"], maintain_order=True
    )


@pytest.fixture(scope="module")
def of_two() -> dict[str, ReportFigure]:
    return {f.name: f for f in report_figures(run_data(("ada", "bob")), example_curves(("ada", "bob"), 3))}


def only(points: pl.DataFrame, **where: Any) -> dict[str, Any]:
    return points.row(by_predicate=pl.all_horizontal(pl.col(k) == v for k, v in where.items()), named=True)


def drawn(figure: ReportFigure) -> Figure:
    with plot_style.style():
        made = figure.draw(figure.points)
        FigureCanvasAgg(made).draw()
        return made


# --- points --------------------------------------------------------------------------------------


def test_pass_points_are_at_their_number_of_candidates(of_two: dict[str, ReportFigure]) -> None:
    counts, points = run_data(("ada", "bob")).counts, of_two["pass_at_k"].points
    assert points["panel"].unique(maintain_order=True).to_list() == ["before training", "after iteration 2"]
    assert sorted(points.filter(panel="before training", model="ada")["candidates"]) == [1, 2, 3, 4]
    assert sorted(points.filter(panel="before training", model="team")["candidates"]) == [2, 4, 6, 8]
    for panel, iteration in (("before training", 0), ("after iteration 2", 2)):
        here = counts.filter(phase="evaluate", iteration=iteration)
        correct = {m: here.filter(model=m).sort("problem_id")["c"].to_list() for m in ("ada", "bob")}
        fails = {m: [math.comb(NUM_SAMPLES - c, 2) / math.comb(NUM_SAMPLES, 2) for c in correct[m]] for m in correct}
        single = 1 - sum(fails["ada"]) / len(fails["ada"])
        team = 1 - sum(a * b for a, b in zip(fails["ada"], fails["bob"], strict=True)) / len(fails["ada"])
        assert only(points, panel=panel, model="ada", candidates=2)["estimate"] == pytest.approx(single)
        assert only(points, panel=panel, model="team", candidates=4)["estimate"] == pytest.approx(team)


def test_overlap_points_are_column_given_row(of_two: dict[str, ReportFigure]) -> None:
    counts, points = run_data(("ada", "bob")).counts.filter(phase="evaluate", iteration=2), of_two["overlap"].points
    fails = {m: 1 - counts.filter(model=m).sort("problem_id")["c"].to_numpy() / NUM_SAMPLES for m in ("ada", "bob")}
    both = float((fails["ada"] * fails["bob"]).mean())
    for row, column in (("ada", "bob"), ("bob", "ada")):
        at = {"panel": "after iteration 2", "row": row, "column": column}
        assert only(points, measure="joint_failure", **at)["estimate"] == pytest.approx(both)
        assert only(points, measure="b_fails_given_a", **at)["estimate"] == pytest.approx(both / fails[row].mean())


def test_rescue_points_are_counts(of_two: dict[str, ReportFigure]) -> None:
    counts, points = run_data(("ada", "bob")).counts.filter(phase="rescue", model="ada"), of_two["rescue"].points
    for hint, series in ((True, "with hint"), (False, "without")):
        part = counts.filter(hint_given=hint)
        row = only(points, row="bob → ada", series=series)
        assert row["label"] == f"{part['c'].sum()}/{part['n'].sum()}"
        assert row["estimate"] == pytest.approx(part["c"].sum() / part["n"].sum())


def test_training_points_are_the_curves(of_two: dict[str, ReportFigure]) -> None:
    curves = example_curves(("ada", "bob"), 3)
    points = of_two["training"].points
    assert points.join(curves, on=["measure", "model", "iteration", "value", "num"], how="anti").height == 0
    assert set(points.filter(measure="advantage/zero_signal_share")["model"]) == {"ada", "bob", "team"}
    assert points.filter(measure="reward/reward").height == 9
    assert set(of_two["rewards"].points["part"]) == {
        "exploit",
        "explore",
        "rescue",
        "trace accuracy",
        "cross",
        "reward",
    }


def test_equal_lines_of_problems_without_a_signal_are_one_line() -> None:
    """With a baseline of the team, the models share the completions of a problem. With one per model, they do not."""
    curves = example_curves(("ada", "bob"), 3)
    equal = pl.when(pl.col("measure") == "advantage/zero_signal_share").then(0.25).otherwise("value")
    for named, models in ((curves, ["ada", "bob", "team"]), (curves.with_columns(value=equal), ["team"])):
        points = figures.training_figure(run_data(("ada", "bob")), named).points
        here = points.filter(measure="advantage/zero_signal_share")
        assert here["model"].unique(maintain_order=True).to_list() == models
        assert set(points.filter(measure="length/mean")["model"]) == {"ada", "bob", "team"}


def test_no_published_data_give_no_figure() -> None:
    data = run_data(("ada", "bob"))
    empty = RunData(data.path, data.config, data.models, data.counts.clear(), pl.DataFrame())
    assert report_figures(empty, pl.DataFrame(schema=CURVES)) == []
    single = run_data(("ada",), iterations=(0,))
    assert [f.name for f in report_figures(single, pl.DataFrame(schema=CURVES))] == ["pass_at_k"]


# --- drawing -------------------------------------------------------------------------------------


def test_lines_are_the_points(of_two: dict[str, ReportFigure]) -> None:
    figure = drawn(of_two["pass_at_k"])
    assert len(figure.axes) == 2
    panels = of_two["pass_at_k"].points.partition_by("panel", maintain_order=True)
    for axes, panel in zip(figure.axes, panels, strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert set(lines) == {"ada", "bob", "team"}
        for name, line in lines.items():
            part = panel.filter(model=name).sort("candidates")
            assert line.get_xdata().tolist() == part["candidates"].to_list()
            assert line.get_ydata() == pytest.approx((part["estimate"] * 100).to_numpy())


def test_arms_are_the_points() -> None:
    """Every arm has one line of markers for the means."""
    runs = {"one": [run_data(("ada", "bob"))], "two": [run_data(("ada", "bob"))]}
    made = arms_figure(arms_table(arms_of(runs), ks=[1, 2]))
    axes = drawn(made).axes[0]
    means = {c.get_label(): c.lines[0] for c in axes.containers}
    assert list(means) == ["base", "one", "two"]
    for name, line in means.items():
        part = made.points.filter(arm=name, seed="mean")
        assert line.get_xdata() == pytest.approx((part["estimate"] * 100).to_numpy())
    assert [text.get_text() for text in axes.texts] == made.points["row"].unique(maintain_order=True).to_list()


def test_twelve_arms_have_looks_of_their_own_and_the_legend_is_on_the_page() -> None:
    data = run_data(("ada", "bob"), num_problems=8)
    made = arms_figure(arms_table(arms_of({f"scope-all-weight-0.{i}": [data] for i in range(12)}), ks=[1]))
    figure = drawn(made)
    markers = [c.lines[0] for c in figure.axes[0].containers]
    assert len(markers) == 13
    looks = {(line.get_color(), line.get_marker(), line.get_fillstyle()) for line in markers}
    assert len(looks) == 13
    legend = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1
    assert len({(look["color"], look["marker"]) for look in map(plot_style.arm_look, range(36))}) == 36


def test_a_legend_is_never_wider_than_the_page() -> None:
    for length in (3, 11, 16, 23, 47):
        with plot_style.style():
            figure = plot_style.new_figure(2)
            axes = figure.subplots()
            for i in range(7):
                axes.plot([0, 1], label=f"{i}" + "n" * (length - 1))
            plot_style.legend_above(figure, [axes])
            FigureCanvasAgg(figure).draw()
            legend = figure.legends[0].get_window_extent()
        assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1, length


def test_axes_keep_their_height_below_a_legend_of_many_lines() -> None:
    """A figure becomes higher by the lines of its legend."""

    def heights(models: tuple[str, ...]) -> dict[str, list[float]]:
        made = report_figures(run_data(models, num_problems=8), example_curves(models, 3))
        return {f.name: [axes.get_window_extent().height for axes in drawn(f).axes] for f in made}

    few, many = heights(("ada", "bob")), heights(LONG)
    for name in ("pass_at_k", "training", "rewards"):
        assert many[name] == pytest.approx(few[name], rel=0.05), name


def test_one_point_of_a_line_has_the_bar_of_its_interval() -> None:
    data = run_data(("ada",), iterations=(0,))
    made = next(f for f in report_figures(data, pl.DataFrame(schema=CURVES)) if f.name == "pass_at_k")
    one = ReportFigure(made.name, made.caption, made.points.filter(candidates=1), made.draw)
    (bars,) = drawn(one).axes[0].containers
    ((low, high),) = [segment[:, 1] for segment in bars[2][0].get_segments()]
    row = one.points.row(0, named=True)
    assert (low, high) == (pytest.approx(100 * row["low"]), pytest.approx(100 * row["high"]))
    assert not drawn(made).axes[0].containers


def test_iterations_without_a_value_break_a_line() -> None:
    curves = example_curves(("ada", "bob"), 9)
    missing = (pl.col("measure") == "mismatch/mean") & pl.col("iteration").is_in([3, 4, 6])
    made = figures.training_figure(run_data(("ada", "bob")), curves.filter(~missing | (pl.col("model") == "bob")))
    axes = next(a for a in drawn(made).axes if a.get_title(loc="left").startswith("mismatch"))
    ada, alone, bob, *_ = axes.get_lines()
    assert np.flatnonzero(np.isnan(ada.get_ydata())).tolist() == [2, 3, 5]
    assert ada.get_xdata().tolist() == list(range(1, 10))
    assert not set(ada.get_markevery()) & {2, 3, 5}
    assert alone.get_xdata().tolist() == [5]
    assert not np.isnan(bob.get_ydata()).any()
    both = figures.training_figure(run_data(("ada", "bob")), curves.filter(~missing))
    axes = next(a for a in drawn(both).axes if a.get_title(loc="left").startswith("mismatch"))
    assert np.isnan(axes.get_lines()[0].get_ydata()).sum() == 3


def test_cells_are_the_points(of_two: dict[str, ReportFigure]) -> None:
    figure = drawn(of_two["overlap"])
    texts = [text.get_text() for text in figure.axes[0].texts]
    points = of_two["overlap"].points.filter(measure="joint_failure", panel="before training")
    assert texts == [
        f"{100 * only(points, row=a, column=b)['estimate']:.0f}" for a in ("ada", "bob") for b in ("ada", "bob")
    ]


@pytest.mark.parametrize("models", [("ada", "bob"), LONG], ids=["two", "seven with long names"])
def test_no_label_overlaps_or_leaves_its_place(models: tuple[str, ...]) -> None:
    """All is on the page, no legend covers a chart, numbers fit their cells, no texts overlap."""
    data = run_data(models, num_problems=8)
    made = report_figures(data, example_curves(models, 30))
    made.append(arms_figure(arms_table(arms_of({name: [data] for name in (LONG[0], "a", "b")}), ks=[1, 2, 4])))
    assert len(made) == 6
    for report_figure in made:
        figure = drawn(report_figure)
        width, height = figure.get_size_inches()
        assert width == pytest.approx(plot_style.COLUMN_WIDTH_IN)
        tight = figure.get_tightbbox()
        assert min(tight.x0, tight.y0, width - tight.x1, height - tight.y1) > -0.01, report_figure.name
        charts = [axes.get_window_extent() for axes in figure.axes]
        assert all(chart.width > 0.25 * figure.bbox.width for chart in charts), report_figure.name
        for legend in figure.legends:
            assert not any(legend.get_window_extent().overlaps(chart) for chart in charts), report_figure.name
        for axes in figure.axes:
            texts = [t.get_window_extent() for t in (*axes.texts, axes.title, axes._left_title) if t.get_text().strip()]
            assert not any(a.overlaps(b) for i, a in enumerate(texts) for b in texts[:i]), report_figure.name
        if report_figure.name == "overlap":
            axes = figure.axes[0]
            cell = axes.get_window_extent().width / len(models)
            assert all(text.get_window_extent().width < cell for text in axes.texts)


# --- files ---------------------------------------------------------------------------------------


def test_files(of_two: dict[str, ReportFigure], tmp_path: Path) -> None:
    settings = dict(matplotlib.rcParams)
    for name, figure in of_two.items():
        svg = figures.write(figure, tmp_path / "a")
        assert svg.startswith("<?xml")
        assert pl.read_csv(tmp_path / "a" / f"{name}.csv").rows() == figure.points.rows()
        with Image.open(tmp_path / "a" / f"{name}.png") as image:
            assert image.width == round(plot_style.COLUMN_WIDTH_IN * 300)
            dark = sum(image.convert("L").histogram()[:200])
            assert 0.005 < dark / (image.width * image.height) < 0.6, "blank"
        pdf = (tmp_path / "a" / f"{name}.pdf").read_bytes()
        assert b"/CIDFontType2" in pdf
        assert b"/Type3" not in pdf
    figures.write(of_two["training"], tmp_path / "b")
    for suffix in ("csv", "svg", "png", "pdf"):
        path = Path(f"training.{suffix}")
        first, second = ((tmp_path / folder / path).read_bytes() for folder in ("a", "b"))
        assert first == second, f"{suffix}: the second file has other bytes"
    assert dict(matplotlib.rcParams) == settings, "a figure changed global settings"


# --- selectors and learning curves ---------------------------------------------------------------


def test_selectors_are_at_their_tokens_and_learning_curves_at_their_iterations() -> None:
    def completion(model: str, problem: int, sample: int) -> tuple[Any, ...]:
        right = (problem + sample + (model == "bob")) % 3 == 0
        return model, f"p{problem}", sample, "2" if right else "3", right, 10 + sample, -0.1 * sample, None

    rows = [completion(m, p, s) for m in ("ada", "bob") for p in range(12) for s in range(4)]
    table = selector_table(pl.DataFrame(rows, schema=COMPLETIONS, orient="row"), ks=[1, 2], models=["ada", "bob"])
    points = selectors_figure(table).points
    assert set(points["series"]) == {
        "oracle",
        "majority",
        "confidence",
        "first agree",
        "gated ada > bob",
        "gated bob > ada",
    }
    assert only(points, series="oracle", k=2)["tokens"] == pytest.approx(4 * 11.5)
    for name, label in (("majority", "majority"), ("gated", "gated bob > ada")):
        row = table.filter(selector=name, figure="accuracy", k=2).filter(pl.col("model").is_in(["team", "bob > ada"]))
        assert only(points, series=label, k=2)["estimate"] == row["estimate"][0]
    axes = drawn(selectors_figure(table)).axes[0]
    shown = {tuple(np.round(line.get_xydata()[-1], 6)) for line in axes.get_lines() if len(line.get_xydata())}
    best = only(points, series="oracle", k=2)
    assert (round(best["tokens"], 6), round(100 * best["estimate"], 6)) in shown

    frame = learning_table([run_data(("ada", "bob"), iterations=(0, 2, 5))], ks=[1, 2])
    figure = learning_figure(frame)
    assert set(figure.points["k"]) == {1}
    assert figure.points.filter(model="team")["iteration"].to_list() == [0, 2, 5]
    lines = {line.get_label(): line.get_xydata() for line in drawn(figure).axes[0].get_lines()}
    expected = frame.filter(figure="level", measure="team_pass", k=1)["estimate"] * 100
    assert lines["team"][:, 1] == pytest.approx(expected.to_numpy())
    assert learning_figure(frame.filter(iteration=0)).points.height == 0


@pytest.mark.parametrize("k", [1, 2])
def test_the_figure_of_learning_curves_names_its_k(k: int) -> None:
    figure = learning_figure(learning_table([run_data(("ada", "bob"))], ks=[k, 4]))
    assert f"Pass@{k} of each model and team Pass@{k}" in figure.caption
    assert drawn(figure).axes[0].get_ylabel() == f"solved, Pass@{k} (%)"
