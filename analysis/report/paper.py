"""Tables for a paper: what the commands print with `--format latex`.

The input is the `RunData` of runs. The output is the tables of the report, with its names and in
percent, one per run. Their captions name a run without the hash of its configuration, and its sweep
if there are several. The tidy tables, with one estimate per row, are in the other formats of the
commands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from analysis.counts.load import RunData, load_hints
from analysis.layout.tables import ReportTable
from analysis.metrics import curves
from analysis.metrics.hints import teaching_table
from analysis.metrics.passk import default_ks
from analysis.report import evaluation_tables, training_tables
from analysis.report.further_tables import (
    hints_of_run,
    hints_report,
    overlap_change_report,
    selectors_of_latest,
    selectors_report,
    teaching_report,
)
from core_hpc.runs.names import short_names

_TABLES: dict[str, Callable[[RunData, Sequence[int]], ReportTable]] = {
    "passk": evaluation_tables.pass_table,
    "gain": evaluation_tables.gain_table,
    "votes": evaluation_tables.votes_table,
    "rescue": lambda data, _: training_tables.rescue_table(data, load_hints(data.path)),
    "overlap": lambda data, _: evaluation_tables.overlap_table(data),
    "selectors": lambda data, ks: selectors_report(selectors_of_latest(data, ks)),
    "hints": lambda data, _: hints_report(hints_of_run(data)),
    "teaching": lambda data, _: teaching_report(teaching_table(data.counts, models=data.models), data.models),
    "overlap-change": lambda data, _: overlap_change_report(data),
    "curves": lambda data, _: training_tables.curves_table(data, curves.curves_table(data.path)),
}


def paper_tables(command: str, runs: Sequence[RunData], ks: Sequence[int] | None = None) -> list[ReportTable]:
    """The table of a command for each run.

    Args:
        command: the name of a command that prints a tidy table.
        runs: the runs; votes, overlap and overlap-change need their answers.
        ks: completions per model; default: 1, 2 and 4, as far as the evaluation has that many.
    """
    tables = [_TABLES[command](data, ks or default_ks(data.num_samples)) for data in runs]
    if len(runs) == 1:
        return tables
    return [
        replace(table, name=f"{table.name}-{re.sub('[^A-Za-z0-9.-]+', '-', name)}", title=f"{name}: {table.title}")
        for table, name in zip(tables, _names(runs), strict=True)
    ]


def _names(runs: Sequence[RunData]) -> list[str]:
    """A name of each run: its label, and before it that of its sweep if there are several sweeps."""
    several = len({None if data.config is None else data.config.name for data in runs}) > 1
    short = short_names([data.path.name for data in runs])
    names = [data.title if several else short[data.path.name] for data in runs]
    return [name if names.count(name) == 1 else f"{name} ({data.name})" for name, data in zip(names, runs, strict=True)]
