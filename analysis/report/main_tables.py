"""The main tables of a run, in their order: those of the terminal, and of the first sections of a report.

The input is `RunData`. The output is `ReportTable`s, which `report/evaluation_tables.py` and
`report/training_tables.py` make.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analysis.counts.load import RunData
from analysis.layout.tables import ReportTable
from analysis.metrics.passk import default_ks
from analysis.report import evaluation_tables, training_tables


def report_tables(data: RunData, ks: Sequence[int] | None = None) -> list[ReportTable]:
    """The main tables of a run: Pass@k before and after, collaboration gain, rescue, error overlap.

    Args:
        data: the run.
        ks: completions per model; default: 1, 2 and 4, as far as the evaluation has that many.
    """
    ks = ks_of(data, ks)
    tables = [evaluation_tables.pass_table(data, ks)]
    if len(data.models) > 1:
        tables.append(evaluation_tables.gain_table(data, ks))
    tables += set_tables(data)
    tables.append(training_tables.rescue_table(data))
    return [*tables, evaluation_tables.overlap_table(data)] if len(data.models) > 1 else tables


def set_tables(data: RunData) -> list[ReportTable]:
    """Pass@k, and the collaboration gain, of each further set of the evaluation."""
    tables = []
    for name, own in data.sets.items():
        made = [evaluation_tables.pass_table(own, ks_of(own, None))]
        if len(data.models) > 1:
            made.append(evaluation_tables.gain_table(own, ks_of(own, None)))
        tables += [replace(t, name=f"{t.name}_{name}", title=f"Set {name}: {t.title}") for t in made]
    return tables


def ks_of(data: RunData, ks: Sequence[int] | None) -> list[int]:
    """The k of Pass@k: those that were asked for, or those that the evaluation has."""
    return sorted(set(ks)) if ks else default_ks(data.num_samples)
