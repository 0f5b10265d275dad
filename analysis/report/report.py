"""The report of a run: the folder that `report --out` writes.

The input is the `RunData` of a run (finished or in progress) or of imported predictions. The
output is, for each run, the files of `write_reports`:

    report.html  report.md         the whole report; report.html is one file that needs no network
    tables/NAME.csv .json .md .tex
    figures/NAME.pdf .svg .png .csv
    browse/index.html              what the models wrote; the rows of tables link to it

For several runs, it also writes an index.html with the differences between their arms and links to
their reports, and the tables runs, contrasts and variance (.csv .json .md .tex).

What a report contains is selected in `report/sections.py`, and its warnings are made in
`report/reader_warnings.py`. Tables are made in `report/evaluation_tables.py` and
`report/training_tables.py`, figures in `report/figures.py`, the page in `report/page.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from analysis.counts.load import RunData
from analysis.layout.formats import table_text, to_markdown
from analysis.layout.tables import ReportTable
from analysis.metrics.contrasts import arms_among, contrasts_report, declared_primary
from analysis.metrics.passk import default_ks
from analysis.metrics.variance import variance_report
from analysis.report import evaluation_tables
from analysis.report.facts import configuration_text, facts_of
from analysis.report.main_tables import ks_of
from analysis.report.page import Section, page
from analysis.report.reader_warnings import warnings_of
from analysis.report.samples import RESCUES, sample_rescues
from analysis.report.sections import read_or_warn, result_sections, run_section, time_section, with_links
from analysis.report.summary import headline_table, key_numbers
from analysis.timing.cost import COST_TABLE, Cost, cost_of
from analysis.timing.recorded import RunTimes, times_of
from core_hpc.common.errors import InputError

_ENDS = {"csv": "csv", "json": "json", "markdown": "md", "latex": "tex"}


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
    without = Cost(pl.DataFrame(schema=COST_TABLE), None, None, ())
    cost = read_or_warn(lambda: cost_of(data.path), without, data, warnings)
    facts, lead, path = facts_of(data, cost), report_lead(data), out / "report.html"
    times = read_or_warn(lambda: times_of(data.path), RunTimes((), None), data, warnings)
    rescues = read_or_warn(lambda: sample_rescues(data), (pl.DataFrame(schema=RESCUES), 0), data, warnings)
    sections = result_sections(data, ks_of(data, ks), out / "figures", warnings, rescues)
    sections += time_section(data, times, out / "figures")
    sections.append(run_section(data, cost, facts))
    sections = with_links(data, sections, out, warnings, rescues[0])
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


def report_lead(data: RunData) -> str:
    """One sentence about the content of the report."""
    panels = evaluation_tables.panels(data)
    fewest = min(panels.values(), key=lambda p: p.num_problems, default=None)
    size = f"{fewest.num_problems:,}" if fewest is not None else "0"
    if fewest is not None and fewest.num_left_out:
        size = f"{size} of {fewest.num_problems + fewest.num_left_out:,}"
    if data.config is None:
        return f"Imported predictions of {', '.join(data.models)} on {size} problems."
    at = " and ".join("before training" if i == 0 else f"after iteration {i}" for i in panels)
    at = "without training" if data.only_evaluates else at
    evaluated = f"evaluated {at} on {size} held-out problems" if panels else "not evaluated yet"
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
