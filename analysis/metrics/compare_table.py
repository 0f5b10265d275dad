"""The table of a comparison for a reader.

The input is the `RunData` of both sides, or rows of `COMPARE_TABLE`. The output is a `ReportTable`:
differences with their intervals, p values and verdicts, the declared primary comparison first. All
numbers are computed in `metrics/compare.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from analysis.counts.load import RunData
from analysis.layout.tables import UNDEFINED, ReportTable, laid_out, percent
from analysis.metrics.compare import MEAN, compare, margin_of, tests_of
from analysis.metrics.fields import ABSENT, different_fields
from analysis.metrics.pairs import arm_of, evaluation_of, primary_of
from analysis.metrics.passk import COVERAGE, EQUAL_K, MATCHED_BUDGET, MATCHED_PASS, PASS, TEAM_PASS
from analysis.metrics.sides import GAIN
from analysis.metrics.useless import useless_notes
from analysis.stats.decisions import ALPHA, in_points
from analysis.stats.intervals import METHOD_NOTE, join_notes
from core_hpc.config.analysis import PrimarySection
from core_hpc.runs.names import folder_names

_MEASURE_NAMES = {
    PASS: "Pass@{k}",
    TEAM_PASS: "team Pass@{k}",
    MATCHED_PASS: "Pass@{candidates}, matched budget",
    COVERAGE: "coverage",
    GAIN[EQUAL_K]: "team Pass@{k} - best Pass@{k}",
    GAIN[MATCHED_BUDGET]: "team Pass@{k} - best at matched budget",
}
_MAX_FIELDS = 12  # maximum number of different configuration fields that the report lists
_MEASURING = re.compile(
    r"evaluation\.(?!sets)|problems\.(evaluation|instruction|num_examples)\b|team\.\d+\.(system_prompt|template_options)"
)
"""Fields of the evaluation and of its prompts. With other ones, the same models have other figures."""
_SMALLEST_P = 0.001
_PRIMARY = "primary: "


def compare_report(
    a: Sequence[RunData],
    b: Sequence[RunData],
    *,
    ks: Sequence[int],
    iterations: tuple[int, int] | None = None,
    margin: float | None = None,
) -> ReportTable:
    """Format the result of `compare` as a report table. The arguments are those of `compare`.

    With several seeds the table shows their mean; the tidy frame also has every seed.
    """
    margin = margin_of([*a, *b]) if margin is None else margin
    frame = compare(a, b, ks=ks, iterations=iterations, margin=margin)
    means = frame.filter(pl.col("seed") == MEAN)
    visible = means if means.height else frame
    shared = set.intersection(*(set(note.split("; ")) for note in visible["note"]))
    several = means.height > 0
    shown = [[*cells(row, shared=shared, several=several).values()] for row in visible.iter_rows(named=True)]
    columns = list(cells(visible.row(0, named=True), shared=shared, several=several))
    notes = [*primary_note(primary_of(a, b) if iterations is None else None)]
    notes += _sides(a, b)
    notes += changed_fields(a[0], b[0], "A", "B") or ["A and B have the same configuration"]
    sides = zip("AB", (a, b), iterations or (None, None), strict=True)
    notes += useless_notes({side: [(data, evaluation_of(data, at)) for data in runs] for side, runs, at in sides})
    notes += sorted(shared - {""})
    pairs = f"{int(visible['num_seeds'][0])} pairs of seeds"
    notes.append(pairs if several else "one pair of runs: the spread over seeds is unknown")
    notes += [*reading_notes(visible, several=several, margin=margin), METHOD_NOTE]
    title = "B against A on held-out problems, paired by problem (percent, points)"
    return ReportTable("compare", title, frame, laid_out(columns, shown), notes)


def _sides(a: Sequence[RunData], b: Sequence[RunData]) -> list[str]:
    """The arms and run folders of A and of B. No folder of this machine is named, because papers show the table."""
    names = {path: name for name, path in folder_names([data.path for data in (*a, *b)]).items()}
    notes = []
    for side, runs in (("A", a), ("B", b)):
        arms, folders = dict.fromkeys(map(arm_of, runs)), [names[data.path.resolve()] for data in runs]
        notes.append(f"{side}: {', '.join(arms)} ({', '.join(folders)})")
    return notes


def cells(row: Mapping[str, Any], *, shared: set[str], several: bool) -> dict[str, str]:
    """The cells of one row of `COMPARE_TABLE`, by column.

    Args:
        row: the row.
        shared: notes that all rows have, which are not repeated.
        several: whether the table is of several seeds.
    """
    name = _MEASURE_NAMES[row["measure"]].format(**row)
    shown = {
        "model": row["model"],
        "measure": f"{_PRIMARY}{name}" if row["primary"] else name,
        "candidates": str(row["candidates"] or UNDEFINED),
        "A": percent(row["a"], None, None),
        "B": percent(row["b"], None, None),
        "B - A": percent(row["estimate"], row["low"], row["high"], signed=True),
    }
    if several:
        shown["these seeds only"] = _bounds(row["problems_low"], row["problems_high"])
        shown["sd over seeds [min, max]"] = _spread(row)
    return {
        **shown,
        "p": p_text(row["p"]),
        "corrected p": p_text(row["p_holm"]),
        "P(B > A)": _chance(row["chance_b_better"]),
        "result": row["verdict"] or UNDEFINED,
        "problems": str(row["num_problems"]),
        "note": join_notes(*(part for part in row["note"].split("; ") if part not in shared)),
    }


def p_text(p: float | None) -> str:
    """A p value with three decimals.

    >>> p_text(0.0412), p_text(0.00002), p_text(None)
    ('0.041', '<0.001', '–')
    """
    if p is None:
        return UNDEFINED
    return f"<{_SMALLEST_P}" if p < _SMALLEST_P else f"{p:.3f}"


def _chance(chance: float | None) -> str:
    """A chance in percent. It is never shown as 0 or 100 %, because it is never certain."""
    return UNDEFINED if chance is None else f"{min(99.9, max(0.1, 100 * chance)):.1f}"


def _bounds(low: float | None, high: float | None) -> str:
    return UNDEFINED if low is None or high is None else f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def _spread(row: Mapping[str, Any]) -> str:
    if row["seed_sd"] is None:
        return UNDEFINED
    return f"{100 * row['seed_sd']:.1f} {_bounds(row['seed_min'], row['seed_max'])}"


def primary_note(primary: PrimarySection | None) -> list[str]:
    """A line about the declared primary comparison; empty if there is none."""
    if primary is None:
        return []
    model = f" of {primary.model}" if primary.model else ""
    arms = " - ".join(primary.arms)
    return [f"primary comparison, declared in the sweep file: {arms}, {primary.metric}{model}"]


def reading_notes(tested: pl.DataFrame, *, several: bool, margin: float) -> list[str]:
    """Lines that state what the columns of a comparison mean, one column per line. `margin` is a fraction."""
    num_tests = sum(not row["primary"] for row in tests_of(tested.iter_rows(named=True)).values())
    over = "other problems and other seeds" if several else "other problems; other seeds are not included"
    but = (
        " (for other problems only, where there is one pair of seeds)"
        if several and set(tested["seed"]) > {MEAN}
        else ""
    )
    lines = [f"B - A: 95 % interval for {over}{but}"]
    if several:
        lines.append("these seeds only: 95 % interval for other problems, but the same seeds")
    uncorrected = " (the primary comparison is not one of them)" if tested["primary"].any() else ""
    return [
        *lines,
        f"corrected p: Holm's correction for the {num_tests} tests of this table{uncorrected}",
        "P(B > A): chance in percent that B is better, if all differences were equally likely before",
        f"result: different if the corrected p is below {ALPHA:g}; equivalent if a difference as large as the margin "
        f"of {in_points(margin)} is excluded at {ALPHA / 2:g}, also corrected; else not resolved",
    ]


def changed_fields(a: RunData, b: RunData, name_a: str, name_b: str) -> list[str]:
    """Describe the differences between the configurations of two runs, one line per field.

    First are those of the evaluation (`measuring_fields`), then the most decisive ones.

    `name_a` and `name_b` are the names of the runs in these lines.
    """
    imported = [name for name, data in ((name_a, a), (name_b, b)) if data.config is None]
    if imported:
        return [f"{name}: imported predictions, without a configuration" for name in imported]
    measuring = measuring_fields(a, b, name_a, name_b)
    lines = [line for line in _lines(a, b, name_a, name_b) if line not in measuring]
    lines, more = lines[:_MAX_FIELDS], len(lines) - _MAX_FIELDS
    return [*measuring, *lines, *[f"and {more} more fields"] * (more > 0)]


def measuring_fields(a: RunData, b: RunData, name_a: str, name_b: str) -> list[str]:
    """The lines of `changed_fields` about how the runs are evaluated. They come first, and all of them are listed."""
    if a.config is None or b.config is None:
        return []
    return [line for line in _lines(a, b, name_a, name_b) if _MEASURING.match(line)]


def _lines(a: RunData, b: RunData, name_a: str, name_b: str) -> list[str]:
    changed = different_fields(a, b)
    return [f"{path}: {_value(old)} in {name_a}, {_value(new)} in {name_b}" for path, (old, new) in changed.items()]


def _value(value: Any) -> Any:
    return "absent" if value == ABSENT else value
