"""Links from the rows of a report's tables to the problems that they are about.

The input is a table of the report. The output is the same table, whose rows have the address of the
browse page beside the report, with the filter that fits the row. The page itself is written in
`browse/export.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import polars as pl

from analysis.browse.content import Block, Content
from analysis.browse.export import export
from analysis.counts.load import RunData
from analysis.layout.tables import ReportTable
from core_hpc.problems.splits import EVALUATION, TRAIN, split_of
from core_hpc.store.schema import GENERATION_PHASES

FOLDER = "browse"
NUM_COMPLETIONS = 2000
"""About how many completions have their texts in the page of a report. `browse` writes more."""
_MAIN_SET = "problems.evaluation"
"""What `browse/page.js` calls the held-out problems that belong to no further set."""
_TRAINING = ("rescue", "rescue_summary", "curves")
LINKED = {*_TRAINING, "summary", "pass", "gain", "reliability", "teams", "strata", "votes", "overlap", "rows"}
"""Names of the tables whose rows are about problems."""


def address(**values: object) -> str:
    """The address of a view of the browse page, relative to the report.

    >>> address(split="train", filter="rescued:ada", problem=None)
    'browse/index.html#split=train&filter=rescued%3Aada'
    """
    return f"{FOLDER}/index.html#{urlencode({k: v for k, v in values.items() if v is not None})}"


def write_page(data: RunData, rescues: pl.DataFrame, folder: Path) -> None:
    """Write the browse page of a run into a folder of the report.

    Args:
        data: the run; it has completions.
        rescues: cases whose texts the page has in any event (columns iteration and problem_id).
        folder: the folder of the report.
    """
    always = [(Block(0, TRAIN, iteration), p) for iteration, p in rescues.select("iteration", "problem_id").iter_rows()]
    content = Content([data], title=data.title)
    export(content, folder / FOLDER, title=data.title, num_completions=NUM_COMPLETIONS, always=always)


def linked(table: ReportTable, data: RunData) -> ReportTable:
    """The table with a link in each of its rows."""
    columns = table.shown.columns
    rows = table.shown.iter_rows()
    return replace(
        table,
        links={i: _of_row(table.name, dict(zip(columns, row, strict=True)), data) for i, row in enumerate(rows)},
    )


def _of_row(name: str, row: Mapping[str, str], data: RunData) -> str:
    cells = " ".join(row.values())
    words = set(re.split(r"[\s,+>]+", cells))
    named = [model for model in data.models if model in words]
    phase = row.get("phase", "")
    split = split_of(phase) if phase in GENERATION_PHASES else TRAIN if name in _TRAINING or phase else EVALUATION
    iteration = row.get("iteration") or _number_after("iteration", cells)
    if name == "rescue":
        student = _after_arrow(cells, data)
        chosen = [f"rescued:{student}" if student else "rescued"]
    elif name == "rescue_summary":
        chosen = [f"rescued:{model}" for model in named] or ["rescued"]
    elif name in _TRAINING or phase:
        chosen = []
    elif row.get("measure", "").startswith("only ") and len(named) == 2:
        chosen = [f"only:{named['B' in row['measure'].split()]}"]
    else:
        chosen = [f"fails:{model}" for model in named] or ["all_fail"]
    own = _MAIN_SET if data.sets and split == EVALUATION else None
    return address(split=split, iteration=iteration, set=own, filter=",".join(chosen) or None)


def _number_after(word: str, text: str) -> str | None:
    found = re.search(rf"\b{word} (\d+)", text)
    return found[1] if found else None


def _after_arrow(cells: str, data: RunData) -> str | None:
    found = re.search(r"-> (\S+)", cells)
    return found[1] if found and found[1] in data.models else None
