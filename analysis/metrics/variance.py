"""Where the variance of a comparison comes from: problems, samples or seeds, and what to buy.

The input is the `RunData` of both sides, as for `metrics/compare.py`. The output is one tidy frame
(`VARIANCE_TABLE`) and a report table. Gains and coverage are left out, because their sampling
variance has no unbiased estimate here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from analysis.counts.counts import Panel
from analysis.counts.load import RunData
from analysis.layout.tables import UNDEFINED, ReportTable, laid_out
from analysis.metrics.pairs import Pair, on_common_problems, pairs_of
from analysis.metrics.passk import PASS, TEAM, TEAM_PASS
from analysis.stats.estimators import team_pass_at_k
from analysis.stats.variance import PARTS, advice, sampling_variance, split

VARIANCE_TABLE = pl.Schema(
    {
        "measure": pl.String(),  # PASS or TEAM_PASS
        "model": pl.String(),
        "k": pl.Int32(),
        "part": pl.String(),  # one of PARTS
        "variance": pl.Float64(),  # of the difference B - A (a fraction, squared); null: unknown
        "share": pl.Float64(),  # of the sum of the known parts
        "num_problems": pl.Int64(),
        "num_seeds": pl.Int64(),
        "note": pl.String(),  # the interval with twice as many; the same for all parts of a difference
    }
)

_BUY = "interval with twice as many"


def variance_table(
    a: Sequence[RunData], b: Sequence[RunData], *, ks: Sequence[int], iterations: tuple[int, int] | None = None
) -> pl.DataFrame:
    """Split the variance of the differences B - A of Pass@k and team Pass@k.

    Args:
        a: one run, or several seeds of one configuration (`pairs_of`).
        b: the other side, as `a`.
        ks: completions per model.
        iterations: the iterations of the evaluations of A and of B (`compare`).

    Returns:
        A frame with the schema `VARIANCE_TABLE`, with one row per part. The parts are null where a
        problem has fewer than 2 k completions. With one pair of runs, the part of seeds is null.
    """
    pairs = on_common_problems(pairs_of(a, b, iterations))
    alone = [len(side) == 1 < len(pairs) for side in (a, b)]
    models = [m for m in pairs[0].a.models if m in pairs[0].b.models]
    rows: list[dict[str, Any]] = []
    for k in ks:
        for model in models:
            rows += _rows(pairs, k, PASS, model, alone)
        if min(len(pairs[0].a.models), len(pairs[0].b.models)) > 1:
            rows += _rows(pairs, k, TEAM_PASS, TEAM, alone)
    return pl.DataFrame(rows, schema=VARIANCE_TABLE)


def _rows(pairs: Sequence[Pair], k: int, measure: str, model: str, alone: Sequence[bool]) -> list[dict[str, Any]]:
    """The rows of one difference. `alone`: whether A (B) is one run that is compared with several seeds."""
    sides = [[_of(side, measure, model) for side in (pair.a, pair.b)] for pair in pairs]
    num_problems, num_pairs = pairs[0].a.num_problems, len(pairs)
    values = np.stack([team_pass_at_k(b.n, b.c, k) - team_pass_at_k(a.n, a.c, k) for a, b in sides])
    own = shared = 0.0
    for i, is_shared in enumerate(alone):
        spreads = np.stack([sampling_variance(pair[i].n, pair[i].c, k) for pair in sides])
        variance = float(spreads.mean()) / num_problems
        own, shared = (own, shared + variance) if is_shared else (own + variance / num_pairs, shared)
    labels = {"measure": measure, "model": model, "k": k, "num_problems": num_problems, "num_seeds": num_pairs}
    if np.isnan(values).any() or np.isnan(own + shared):
        note = f"undefined: needs {2 * k} completions per problem"
        return [{**labels, "part": part, "note": note} for part in PARTS]
    parts = split(values, own=own, shared=shared, groups=pairs[0].groups)
    return [
        {**labels, "part": part, "variance": getattr(parts, part), "share": parts.share(part), "note": advice(parts)}
        for part in PARTS
    ]


def _of(side: Panel, measure: str, model: str) -> Panel:
    return side if measure == TEAM_PASS else side.of([side.models.index(model)])


def variance_report(
    a: Sequence[RunData], b: Sequence[RunData], *, ks: Sequence[int], iterations: tuple[int, int] | None = None
) -> ReportTable:
    """Format the result of `variance_table` as a report table, with one row per difference."""
    frame = variance_table(a, b, ks=ks, iterations=iterations)
    shown = []
    for part in frame.partition_by("measure", "model", "k", maintain_order=True):
        row = part.row(0, named=True)
        shares = dict(part.select("part", "share").rows())
        name = f"team Pass@{row['k']}" if row["measure"] == TEAM_PASS else f"Pass@{row['k']}"
        known = part["variance"].null_count() < part.height
        error = f"{100 * float(part['variance'].sum()) ** 0.5:.1f}" if known else UNDEFINED
        cells = [UNDEFINED if shares[p] is None else f"{100 * shares[p]:.0f}" for p in PARTS]
        shown.append([row["model"], name, error, *cells, row["note"]])
    notes = [
        "standard error: of B - A, in points",
        "problems, samples, seeds: their shares of the variance (the squared standard error), in percent",
        f"{_BUY}: how much narrower the 95 % interval of compare becomes; with few seeds it is wide even where their "
        "share is small, because few seeds show little about others",
    ]
    if frame["num_seeds"].max() == 1:
        notes.append("one pair of runs: the part of seeds is unknown, and not in the standard error")
    columns = ["model", "measure", "standard error", *PARTS, _BUY]
    title = "Where the uncertainty of B - A comes from"
    return ReportTable("variance", title, frame, laid_out(columns, shown), notes)
