"""The report of a run: its main tables, and the folder that `report --out` writes.

The input is the `RunData` of a run (finished or in progress) or of imported predictions. The
output is `ReportTable`s, and for each run the files of `write_reports`:

    report.html  report.md         the whole report; report.html is one file that needs no network
    tables/NAME.csv .json .md .tex
    figures/NAME.pdf .svg .png .csv
    browse/index.html              what the models wrote; the rows of tables link to it

For several runs, it also writes an index.html with the differences between their arms and links to
their reports, and the tables runs, contrasts and variance (.csv .json .md .tex).

This module selects and orders the content of a report. Tables are made in
`report/evaluation_tables.py` and `report/training_tables.py`, figures in `report/figures.py`, the
page in `report/page.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import polars as pl

from analysis.counts.counts import panel
from analysis.counts.load import RunData, load_hints
from analysis.layout.formats import table_text, to_markdown
from analysis.layout.tables import ReportTable
from analysis.metrics.contrasts import arms_among, contrasts_report, declared_primary
from analysis.metrics.curves import CURVES, curves_table
from analysis.metrics.learning import learning_report, learning_table
from analysis.metrics.passk import default_ks
from analysis.metrics.variance import variance_report
from analysis.report import evaluation_tables, figures, links, training_tables
from analysis.report.facts import configuration_text, facts_of
from analysis.report.further_figures import learning_figure, selectors_figure
from analysis.report.further_tables import (
    SELECTORS_OF_RUN,
    overlap_change_report,
    resolution_tables,
    selectors_of_latest,
    selectors_report,
    teaching_tables,
)
from analysis.report.page import Section, facts_html, folded_html, page, rescues_html
from analysis.report.samples import RESCUES, sample_rescues
from analysis.report.summary import MUCH_USELESS, headline_table, key_numbers, summary_tables
from analysis.stats.intervals import FEW_PROBLEMS, SEED
from analysis.timing.account import RunTimes, times_of
from analysis.timing.cost import COST_TABLE, Cost, cost_of
from analysis.timing.tables import time_report
from core_hpc.common.errors import InputError, StoreError
from core_hpc.store.schema import EVALUATE, PHASES, RESCUE, UPDATE
from core_hpc.store.shards import published_keys

_ENDS = {"csv": "csv", "json": "json", "markdown": "md", "latex": "tex"}

T = TypeVar("T")


def report_tables(data: RunData, ks: Sequence[int] | None = None) -> list[ReportTable]:
    """The main tables of a run: Pass@k before and after, collaboration gain, rescue, error overlap.

    Args:
        data: the run.
        ks: completions per model; default: 1, 2 and 4, as far as the evaluation has that many.
    """
    ks = _ks(data, ks)
    tables = [evaluation_tables.pass_table(data, ks)]
    if len(data.models) > 1:
        tables.append(evaluation_tables.gain_table(data, ks))
    tables += _set_tables(data)
    tables.append(training_tables.rescue_table(data))
    return [*tables, evaluation_tables.overlap_table(data)] if len(data.models) > 1 else tables


def _set_tables(data: RunData) -> list[ReportTable]:
    """Pass@k, and the collaboration gain, of each further set of the evaluation."""
    tables = []
    for name, own in data.sets.items():
        made = [evaluation_tables.pass_table(own, _ks(own, None))]
        if len(data.models) > 1:
            made.append(evaluation_tables.gain_table(own, _ks(own, None)))
        tables += [replace(t, name=f"{t.name}_{name}", title=f"Set {name}: {t.title}") for t in made]
    return tables


def _ks(data: RunData, ks: Sequence[int] | None) -> list[int]:
    return sorted(set(ks)) if ks else default_ks(data.num_samples)


# --- warnings ------------------------------------------------------------------------------------


def warnings_of(data: RunData) -> list[str]:
    """Messages that a reader of the tables needs to know."""
    found = [*_unfinished(data), *evaluation_tables.missing(data)]
    columns = ("n", "num_timeout", "num_truncated", "num_no_answer")
    total, timeouts, truncated, unanswered = (int(data.counts[c].sum()) for c in columns)
    if timeouts:
        found.append(
            f"verification of {timeouts} of {total} completions timed out; "
            "they count as not correct in every denominator"
        )
    if truncated > MUCH_USELESS * total:
        found.append(f"{truncated} of {total} completions were cut at the token limit")
    if unanswered > MUCH_USELESS * total:
        found.append(f"no answer was found in {unanswered} of {total} completions")
    found += _evaluation_warnings(data)
    found += [f"set {name}: {w}" for name, own in data.sets.items() for w in _evaluation_warnings(own)]
    if data.config is not None and data.config.protocol.rescue_samples and data.config.protocol.hint_probability == 1:
        found.append(
            f"protocol.hint_probability is 1: phase {RESCUE} has no control, so the uplift of hints is unknown"
        )
    return [f"{text[0].upper()}{text[1:]}." for text in [*found, *(f"left out: {line}" for line in data.left_out)]]


def _evaluation_warnings(data: RunData) -> list[str]:
    """Messages about problems that are left out, and about few problems, of one set of the evaluation."""
    found = []
    for iteration in evaluation_tables.evaluations(data):
        p = panel(data.counts, models=data.models, phase=EVALUATE, iteration=iteration)
        if p.note:
            found.append(f"evaluation {iteration}: {p.note}")
        if p.num_problems < FEW_PROBLEMS:
            found.append(
                f"evaluation {iteration}: {p.num_problems} problems, fewer than {FEW_PROBLEMS}; "
                "small differences are not reliable"
            )
    return found


def _unfinished(data: RunData) -> list[str]:
    """A message about the progress of a run; empty when the run is finished."""
    if data.config is None:
        return []
    keys = published_keys(data.path)
    updated = [k.iteration for k in keys if k.phase == UPDATE]
    done = sum(updated.count(i) == len(data.models) for i in set(updated))
    if done >= data.config.iterations:
        return []
    next_phases = {k.phase for k in keys if k.iteration == done + 1 and k.phase != EVALUATE}
    names = ", ".join(phase for phase in PHASES if phase in next_phases)
    phases = f"; iteration {done + 1} has results of the phases {names}" if names else ""
    return [f"not finished: {done} of {data.config.iterations} iterations are done{phases}"]


# --- files ---------------------------------------------------------------------------------------


def write_reports(runs: Sequence[RunData], out: Path, ks: Sequence[int] | None = None) -> list[Path]:
    """Write the report of each run. Several runs get one folder each, and an index.html.

    Existing files of the same names are replaced.

    Args:
        runs: at least one run.
        out: the folder; it is created if it does not exist.
        ks: completions per model; default: 1, 2 and 4, as far as the evaluation has that many.

    Returns:
        The paths of the pages: report.html of each run, then index.html if there are several runs.
    """
    if len(runs) == 1:
        return [write_report(runs[0], out, ks)]
    names = [data.name for data in runs]
    # Runs of two sweeps may have the same name; then the name of the sweep is added.
    folders = [
        name if names.count(name) == 1 else f"{data.path.parent.name}-{name}"
        for data, name in zip(runs, names, strict=True)
    ]
    pages = [write_report(data, out / folder, ks) for data, folder in zip(runs, folders, strict=True)]
    index, lead = out / "index.html", f"{len(runs)} runs."
    links = [(folder, f"{folder}/report.html") for folder in folders]
    found, warnings = _comparisons(runs, ks)
    sections = [*found, Section(name="runs", title="Runs", tables=[headline_table(runs)], links=links)]
    for section in sections:
        for table in (*section.tables, *section.folded):
            write_table(table, out)
    index.write_text(page("Reports", lead, warnings, sections), encoding="utf-8")
    return [*pages, index]


def _comparisons(runs: Sequence[RunData], ks: Sequence[int] | None) -> tuple[list[Section], list[str]]:
    """The section about differences between arms, and a warning if the arms cannot be compared.

    Both are empty if all runs are seeds of one arm.
    """
    arms = arms_among(runs)
    if len(arms) < 2:
        return [], []
    ks = sorted(set(ks)) if ks else default_ks(min(data.num_samples for data in runs))
    declared = declared_primary(arms)
    first, second = (declared[0], declared[1]) if declared else list(arms)[:2]
    try:
        table = contrasts_report(arms, ks=ks)
        sources = variance_report(arms[first], arms[second], ks=ks)
    except InputError as e:
        return [], [f"The runs are not compared: {e}."]
    sources = replace(sources, title=f"{sources.title} (B: {second}, A: {first})")
    return [Section(name="arms", title="Differences between arms", tables=[table], folded=[sources])], []


def write_report(data: RunData, out: Path, ks: Sequence[int] | None = None) -> Path:
    """Write the report of one run. Returns the path of its report.html."""
    out.mkdir(parents=True, exist_ok=True)
    warnings = warnings_of(data)
    cost = _read(lambda: cost_of(data.path), Cost(pl.DataFrame(schema=COST_TABLE), None, None, ()), data, warnings)
    facts, lead, path = facts_of(data, cost), _lead(data), out / "report.html"
    times = _read(lambda: times_of(data.path), RunTimes((), None), data, warnings)
    rescues = _read(lambda: sample_rescues(data), (pl.DataFrame(schema=RESCUES), 0), data, warnings)
    sections = _results(data, _ks(data, ks), out / "figures", warnings, rescues)
    sections += _time_section(data, times, out / "figures")
    sections.append(_run_section(data, cost, facts))
    sections = _with_links(data, sections, out, warnings, rescues[0])
    (out / "report.md").write_text(_markdown(data, lead, warnings, sections, facts), encoding="utf-8")
    keys = key_numbers([table for section in sections if section.name == "summary" for table in section.tables])
    path.write_text(page(data.title, lead, warnings, sections, keys=keys), encoding="utf-8")
    for section in sections:
        for table in (*section.tables, *section.folded):
            write_table(table, out / "tables")
    return path


def write_table(table: ReportTable, folder: Path) -> None:
    """Write NAME.csv, .json, .md and .tex. Existing files of these names are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for form, end in _ENDS.items():
        (folder / f"{table.name}.{end}").write_text(table_text(table, form), encoding="utf-8")


def _read(read: Callable[[], T], otherwise: T, data: RunData, warnings: list[str]) -> T:
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


def _results(
    data: RunData, ks: Sequence[int], folder: Path, warnings: list[str], rescues: tuple[pl.DataFrame, int]
) -> list[Section]:
    """The sections of the report with results, in order. Writes the figures into the folder."""
    curves = _read(lambda: curves_table(data.path), pl.DataFrame(schema=CURVES), data, warnings)
    hints = _read(lambda: load_hints(data.path), None, data, warnings)
    made = figures.report_figures(data, curves)

    def of(*names: str) -> list[tuple[str, str, str]]:
        return [drawn[name] for name in names if name in drawn]

    team = len(data.models) > 1
    chosen = _read(lambda: selectors_of_latest(data, ks), pl.DataFrame(schema=SELECTORS_OF_RUN), data, warnings)
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
    more_solved += [learning_report(learned)] if data.config is not None else []
    more_solved += resolution_tables(data, ks[0])

    sections = []
    if data.config is not None:
        sections.append(Section(name="summary", title="Summary", tables=summary_tables(data)))
    sections += [
        Section(name="passk", title="Pass@k", figures=of("pass_at_k", "learning"), tables=solved, folded=more_solved),
        *([Section(name="sets", title="Further sets", tables=_set_tables(data))] if data.sets else []),
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
            folded=_read(lambda: teaching_tables(data), [], data, warnings),
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


def _with_links(
    data: RunData, sections: list[Section], out: Path, warnings: list[str], rescues: pl.DataFrame
) -> list[Section]:
    """The sections, whose rows link to the page to read what the models wrote. Writes this page."""
    if not data.counts.height:
        return sections

    def write() -> bool:
        links.write_page(data, rescues, out)
        return True

    if not _read(write, False, data, warnings):
        return sections

    def linked(tables: list[ReportTable]) -> list[ReportTable]:
        return [links.linked(table, data) if table.name in links.LINKED else table for table in tables]

    page = [("Read what the models wrote, problem by problem", links.address())]
    return [
        replace(section, tables=linked(section.tables), folded=linked(section.folded), links=page if i == 0 else [])
        for i, section in enumerate(sections)
    ]


def _time_section(data: RunData, times: RunTimes, folder: Path) -> list[Section]:
    """The section about time; empty for imported predictions."""
    if not times.tasks:
        return []
    figure = figures.time_figure(data, times)
    drawn = [(figure.name, figure.caption, figures.write(figure, folder))] if figure.points.height else []
    first, *others = time_report(times)
    return [Section(name="time", title="Time", figures=drawn, tables=[first], folded=others)]


def _run_section(data: RunData, cost: Cost, facts: Sequence[tuple[str, str]]) -> Section:
    """The section about the configuration, the versions and the cost of the run."""
    tables = [training_tables.cost_table(cost.table), training_tables.rows_table(data)]
    further = facts_html(facts) + folded_html("Configuration", configuration_text(data))
    return Section(name="run", title="Run", tables=tables, further=further)


def _lead(data: RunData) -> str:
    """One sentence about the content of the report."""
    named = evaluation_tables.evaluations(data)
    sizes = [panel(data.counts, models=data.models, iteration=iteration).num_problems for iteration in named]
    if data.config is None:
        return f"Imported predictions of {', '.join(data.models)} on {max(sizes, default=0):,} problems."
    at = " and ".join("before training" if i == 0 else f"after iteration {i}" for i in named)
    at = "without training" if data.only_evaluates else at
    evaluated = f"evaluated {at} on {max(sizes):,} held-out problems" if sizes else "not evaluated yet"
    team = ", ".join(data.models)
    if data.only_evaluates:
        return f"{team}: {evaluated}, with seed {data.config.seed}."
    return f"{team}: {data.config.iterations} iterations of cross teaching with seed {data.config.seed}; {evaluated}."


def _markdown(
    data: RunData, lead: str, warnings: Sequence[str], sections: Sequence[Section], facts: Sequence[tuple[str, str]]
) -> str:
    parts = [f"# {data.title}", lead, "## Warnings", "\n".join(f"- {warning}" for warning in warnings) or "None."]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [to_markdown(table).strip() for table in section.tables]
        parts += [f"![{name}](figures/{name}.svg)\n\n{caption}" for name, caption, _ in section.figures]
        parts += [to_markdown(table).strip() for table in section.folded]
    parts += [
        "\n".join(f"- {name}: {value}" for name, value in facts),
        "## Configuration",
        f"```\n{configuration_text(data)}\n```\n",
    ]
    return "\n\n".join(parts)
