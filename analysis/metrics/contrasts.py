"""Differences between all arms of a study in one table, corrected for the number of tests.

The input is the runs of each arm. The output is one tidy frame (`CONTRASTS_TABLE`): every other arm
minus the reference arm, for all k and models, and a report table. The declared primary comparison
comes first and is not corrected. Each difference is computed in `metrics/compare.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import polars as pl

from analysis.counts.load import RunData
from analysis.layout.tables import ReportTable, group_starts, laid_out
from analysis.metrics.compare import COMPARE_TABLE, MEAN, OVER_PROBLEMS, compare, decided, margin_of
from analysis.metrics.compare_table import cells, measuring_fields, primary_note, reading_notes
from analysis.metrics.pairs import arm_of, common_names, evaluation_of, fields_of, primary_of
from analysis.metrics.useless import useless_notes
from analysis.stats.intervals import METHOD_NOTE, join_notes
from core_hpc.common.errors import InputError
from core_hpc.config.analysis import PrimarySection

CONTRASTS_TABLE = pl.Schema({"arm_a": pl.String(), "arm_b": pl.String(), **COMPARE_TABLE})

Arms = Mapping[str, Sequence[RunData]]


def arms_among(runs: Sequence[RunData]) -> dict[str, list[RunData]]:
    """Group runs into arms: runs that differ in their seed only.

    An arm is named by the label of its runs without the seed, or else by their sweep; by both, if
    two sweeps have arms of that label. Imported runs are arms of their own.
    """
    groups: dict[str, list[RunData]] = {}
    for data in runs:
        key = repr(sorted(fields_of(data).items())) if data.config is not None else str(data.path)
        groups.setdefault(key, []).append(data)
    names = [arm_of(own[0]) for own in groups.values()]
    out: dict[str, list[RunData]] = {}
    for name, own in zip(names, groups.values(), strict=True):
        full = name if names.count(name) == 1 else f"{own[0].path.parent.name}/{name}"
        out[full if full not in out else f"{own[0].path.parent.name}/{own[0].name}"] = own
    return out


def declared_primary(arms: Arms) -> tuple[str, str, PrimarySection] | None:
    """The reference arm, the other arm and the comparison that the runs declare; None if they declare none."""
    for first in arms:
        for second in arms:
            primary = primary_of(arms[first], arms[second]) if first != second else None
            if primary is not None and primary.arms[1] in common_names(arms[first]):
                return first, second, primary
    return None


def contrasts_table(arms: Arms, *, ks: Sequence[int], margin: float | None = None) -> pl.DataFrame:
    """Compute every other arm minus the reference arm.

    The reference is the second arm of the declared primary comparison, or else the first arm.

    Args:
        arms: the runs of each arm, by name; two arms or more.
        ks: completions per model.
        margin: margin of equivalence, a fraction. Default: `analysis.margin` of the runs.

    Returns:
        A frame with the schema `CONTRASTS_TABLE`, without the rows of single seeds if there are
        several. If only some of the pairs of arms have several, the note of the others states that
        their interval is over problems only. Holm's correction is for all its rows together.

    Raises:
        InputError: two arms cannot be compared (`pairs_of`), or there is one arm only.
    """
    if len(arms) < 2:
        raise InputError("there is one arm only; give runs of two configurations or more")
    margin = margin_of([data for runs in arms.values() for data in runs]) if margin is None else margin
    declared = declared_primary(arms)
    reference = declared[0] if declared else next(iter(arms))
    others = [name for name in arms if name != reference]
    first = declared[1] if declared else None
    others.sort(key=lambda name: name != first)
    frames = []
    for name in others:
        frame = compare(arms[reference], arms[name], ks=ks, margin=margin)
        frame = frame.with_columns(primary=pl.when("primary").then(pl.lit(name == first)).otherwise("primary"))
        several = frame.filter(seed=MEAN)
        frame = several if several.height else frame
        frames.append(frame.select(pl.lit(reference).alias("arm_a"), pl.lit(name).alias("arm_b"), pl.all()))
    together = pl.concat(frames)
    one_seed = pl.col("seed") != MEAN
    if together.select(one_seed.any() & ~one_seed.all()).item():
        note = pl.col("note").map_elements(partial(join_notes, OVER_PROBLEMS), return_dtype=pl.String)
        together = together.with_columns(note=pl.when(one_seed).then(note).otherwise("note"))
    together = pl.concat([together.filter(pl.col("primary")), together.filter(~pl.col("primary").fill_null(False))])
    return decided(together, margin)


def contrasts_report(arms: Arms, *, ks: Sequence[int], margin: float | None = None) -> ReportTable:
    """Format the result of `contrasts_table` as a report table."""
    margin = margin_of([data for runs in arms.values() for data in runs]) if margin is None else margin
    frame = contrasts_table(arms, ks=ks, margin=margin)
    several = frame["seed"].eq(MEAN).any()
    shared = set.intersection(*(set(note.split("; ")) for note in frame["note"]))
    rows, groups = [], []
    for row in frame.iter_rows(named=True):
        shown = cells(row, shared=shared, several=several)
        rows.append({"arms": f"{row['arm_b']} - {row['arm_a']}", **shown})
        groups.append((row["primary"], row["arm_b"]))
    declared, reference = declared_primary(arms), str(frame["arm_a"][0])
    notes = [
        *primary_note(declared[2] if declared else None),
        "A: the second arm; B: the first arm",
        *(
            line
            for name, runs in arms.items()
            for line in measuring_fields(arms[reference][0], runs[0], reference, name)
        ),
        *useless_notes({name: [(data, evaluation_of(data)) for data in runs] for name, runs in arms.items()}),
        *sorted(shared - {""}),
        *reading_notes(frame, several=several, margin=margin),
        METHOD_NOTE,
    ]
    title = "Differences between arms on held-out problems, paired by problem (percent, points)"
    table = laid_out(list(rows[0]), [list(row.values()) for row in rows])
    return ReportTable("contrasts", title, frame, table, notes, starts=group_starts(groups))
