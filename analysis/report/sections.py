"""The sections of the report of one run: which tables and figures each has, in order.

The input is `RunData`. The output is `Section`s; their figures, and the page with what the models wrote,
are written on the way. A damaged file is an error, or a warning in a run that was read with --lenient
(`read_or_warn`). `report/report.py` writes the sections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import polars as pl

from analysis.counts.load import RunData, load_hints
from analysis.layout.tables import ReportTable
from analysis.metrics.curves import CURVES, curves_table
from analysis.metrics.learning import learning_report, learning_table
from analysis.metrics.pairs import when
from analysis.report import evaluation_tables, figures, links, training_tables
from analysis.report.facts import configuration_text
from analysis.report.further_figures import learning_figure, selectors_figure
from analysis.report.further_tables import (
    SELECTORS_OF_RUN,
    overlap_change_report,
    resolution_tables,
    selectors_of_latest,
    selectors_report,
    teaching_tables,
)
from analysis.report.main_tables import set_tables
from analysis.report.page import Section, facts_html, folded_html, rescues_html
from analysis.report.summary import summary_tables
from analysis.stats.intervals import SEED
from analysis.timing.cost import Cost
from analysis.timing.recorded import RunTimes
from analysis.timing.tables import time_report
from core_hpc.common.errors import StoreError

T = TypeVar("T")


def read_or_warn(read: Callable[[], T], otherwise: T, data: RunData, warnings: list[str]) -> T:
    """The result of `read`, or `otherwise` when a file is damaged.

    A damaged file is an error, except in a run that was already read with --lenient and had
    something left out; then it becomes a warning.
    """
    try:
        return read()
    except StoreError as e:
        if not data.left_out:
            raise
        warnings.append(str(e))
        return otherwise


def result_sections(
    data: RunData, ks: Sequence[int], folder: Path, warnings: list[str], rescues: tuple[pl.DataFrame, int]
) -> list[Section]:
    """The sections of the report with results, in order. Writes the figures into the folder."""
    curves = read_or_warn(lambda: curves_table(data.path), pl.DataFrame(schema=CURVES), data, warnings)
    hints = read_or_warn(lambda: load_hints(data.path), None, data, warnings)
    made = figures.report_figures(data, curves)

    def of(*names: str) -> list[tuple[str, str, str]]:
        return [drawn[name] for name in names if name in drawn]

    team = len(data.models) > 1
    chosen = read_or_warn(lambda: selectors_of_latest(data, ks), pl.DataFrame(schema=SELECTORS_OF_RUN), data, warnings)
    learned = learning_table([data], ks=ks)
    made += [figure for figure in (selectors_figure(chosen), learning_figure(learned)) if figure.points.height]
    drawn = {figure.name: (figure.name, figure.caption, figures.write(figure, folder)) for figure in made}

    solved = [evaluation_tables.pass_table(data, ks)]
    if team:
        solved.append(evaluation_tables.gain_table(data, ks))
    more_solved = [evaluation_tables.further_table(data, ks)]
    if len(data.models) > 2:
        more_solved.append(evaluation_tables.teams_table(data, ks))
    strata = evaluation_tables.strata_table(data, [ks[0]])
    if strata.shown.height:
        more_solved.append(strata)
    more_solved += [learning_report(learned, at_start=when(data, 0))] if data.config is not None else []
    more_solved += resolution_tables(data, ks[0])

    sections = []
    if data.config is not None:
        sections.append(Section(name="summary", title="Summary", tables=summary_tables(data)))
    sections += [
        Section(name="passk", title="Pass@k", figures=of("pass_at_k", "learning"), tables=solved, folded=more_solved),
        *([Section(name="sets", title="Further sets", tables=set_tables(data))] if data.sets else []),
        Section(name="votes", title="Votes", tables=[evaluation_tables.votes_table(data, ks)]),
        Section(
            name="selectors",
            title="Answers without gold",
            figures=of("selectors"),
            tables=[selectors_report(chosen)],
        ),
        Section(
            name="rescue",
            title="Rescue",
            figures=of("rescue"),
            tables=[training_tables.rescue_table(data, hints)],
            folded=read_or_warn(lambda: teaching_tables(data), [], data, warnings),
            further=rescues_html(*rescues, SEED),
        ),
    ]
    if team:
        overlap = [evaluation_tables.overlap_table(data)]
        changes = [overlap_change_report(data)] if data.config is not None else []
        section = Section(name="overlap", title="Error overlap", figures=of("overlap"), tables=overlap, folded=changes)
        sections.append(section)
    all_curves = [training_tables.curves_table(data, curves)]
    sections.append(Section(name="training", title="Training", figures=of("rewards", "training"), folded=all_curves))
    return sections


def with_links(
    data: RunData, sections: list[Section], out: Path, warnings: list[str], rescues: pl.DataFrame
) -> list[Section]:
    """The sections, whose rows link to the page to read what the models wrote. Writes this page."""
    if not data.counts.height:
        return sections

    def write() -> bool:
        links.write_page(data, rescues, out)
        return True

    if not read_or_warn(write, False, data, warnings):
        return sections

    def linked(tables: list[ReportTable]) -> list[ReportTable]:
        return [links.linked(table, data) if table.name in links.LINKED else table for table in tables]

    page = [("Read what the models wrote, problem by problem", links.address())]
    return [
        replace(section, tables=linked(section.tables), folded=linked(section.folded), links=page if i == 0 else [])
        for i, section in enumerate(sections)
    ]


def time_section(data: RunData, times: RunTimes, folder: Path) -> list[Section]:
    """The section about time; empty for imported predictions."""
    if not times.tasks:
        return []
    figure = figures.time_figure(data, times)
    drawn = [(figure.name, figure.caption, figures.write(figure, folder))] if figure.points.height else []
    first, *others = time_report(times)
    return [Section(name="time", title="Time", figures=drawn, tables=[first], folded=others)]


def run_section(data: RunData, cost: Cost, facts: Sequence[tuple[str, str]]) -> Section:
    """The section about the configuration, the versions and the cost of the run."""
    tables = [training_tables.cost_table(cost.table), training_tables.rows_table(data)]
    further = facts_html(facts) + folded_html("Configuration", configuration_text(data))
    return Section(name="run", title="Run", tables=tables, further=further)
