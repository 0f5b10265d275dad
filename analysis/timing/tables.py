"""The tables of the account of time (timing.py), laid out.

In: `RunTimes`. Out: `ReportTable`s: iterations against their lower bound, what they were waiting for, the speed of the
work; and in words what the times cannot tell. No figure is computed here but sums of what timing.py has.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from analysis.layout.tables import UNDEFINED, ReportTable, group_starts, laid_out, percent
from analysis.timing.account import RunTimes, in_order, iteration_table, time_table, waited_table
from analysis.timing.critical_path import ELSEWHERE, GENERATE, ITEMS, QUEUE, START, TRAIN, WORK
from core_hpc.store.schema import PHASES

MIN_SKEW_S = 0.1
"""Less is rounding of what tasks record."""
NOTHING = "nothing is published yet"
_COLUMNS = (QUEUE, START, "import", "load", *WORK)
"""Items with a column of their own in the table of speeds."""
IMPORTED = "these predictions were imported: no run of this software"


def time_report(times: RunTimes) -> list[ReportTable]:
    """Iterations against their lower bound, what they were waiting for, and the speed of the work."""
    return [iterations_report(times), waited_report(times), speed_report(times)]


def _nothing(times: RunTimes) -> list[str]:
    return [IMPORTED] if times.graph is None else [] if times.tasks else [NOTHING]


def iterations_report(times: RunTimes) -> ReportTable:
    """Each iteration's time, its lower bound, and the largest item of what is above it."""
    frame = iteration_table(times)
    shown = [
        [
            row["iteration"],
            f"{row['tasks']} of {row['of_tasks']}",
            _seconds(row["wall_s"]),
            _seconds(row["elsewhere_s"]),
            _seconds(row["queue_s"]),
            _seconds(row["bound_s"]),
            row["bound_model"] or UNDEFINED,
            percent(row["overhead"], None, None),
            percent(row["overhead_without_queue"], None, None),
            f"{row['largest']}: {_seconds(row['largest_s'])} s" if row["largest"] else UNDEFINED,
        ]
        for row in frame.iter_rows(named=True)
    ]
    columns = [
        "iteration",
        "tasks",
        "time",
        "elsewhere",
        "queue",
        "lower bound",
        "of model",
        "overhead (%)",
        "without queue (%)",
        "largest item",
    ]
    notes = [
        "time: seconds from the first submission, or start of a process or task, to the last publication",
        "elsewhere: of it, waiting for an evaluation or another iteration; queue: of it, waiting in the queue of SLURM",
        "lower bound: max over models of the sum of cold, rescue, passed and trained tokens, each divided by its rate over the whole run",
        "rates are those of models that share a machine, if they do; the lower bound takes each model for itself",
        "overhead: share above the lower bound, elsewhere left out; largest item: of what is neither work nor elsewhere",
    ]
    notes = notes + _doubts(times) if shown else _nothing(times)
    return ReportTable("time_iterations", "Iterations (seconds)", frame, laid_out(columns, shown), notes)


def _doubts(times: RunTimes) -> list[str]:
    """What a reader has to know of how the times were taken."""
    assert times.graph is not None
    notes = []
    by_key = {t.key: t for t in times.tasks}
    pairs = [(by_key[key], t) for t in times.tasks for key in times.graph.inputs(t.key) if key in by_key]
    skew = max((before.ended - t.began for before, t in pairs), default=0.0)
    if skew > MIN_SKEW_S:
        hosts = ", ".join(
            sorted({t.host for pair in pairs if pair[0].ended - pair[1].began > MIN_SKEW_S for t in pair})
        )
        notes.append(
            f"clocks of {hosts} differ by at least {skew:.1f} s: figures near such joints are off by that much"
        )
    elif len({t.host for t in times.tasks}) > 1:
        notes.append("several hosts: where their clocks differ, figures are off by that much")
    if bare := sum(not t.laps for t in times.tasks):
        notes.append(f"{bare} of {len(times.tasks)} tasks did not record what they spent their seconds on")
    if not any(t.process for t in times.tasks):
        notes.append(
            "an older version ran this: the start of processes is in idle or queue, imports are in prepare or read"
        )
    if resumed := sum(bool(t.stats.get("resumed_from_step")) for t in times.tasks):
        notes.append(
            f"{resumed} updates went on from a checkpoint: their earlier tries are in idle, with tokens that are not counted"
        )
    return notes


def waited_report(times: RunTimes) -> ReportTable:
    """What the iterations were waiting for: all of them, and the latest."""
    frame = waited_table(times)
    latest = max(times.paths, default=0)
    total, last = (
        dict(part.group_by("item").agg(pl.col("seconds").sum()).rows())
        for part in (frame, frame.filter(pl.col("iteration") == latest))
    )

    def cells(spent: Mapping[str, float], item: str) -> list[str]:
        return (
            [_seconds(spent[item]), percent(spent[item] / sum(spent.values()), None, None)]
            if item in spent
            else ["", ""]
        )

    ordered = in_order(total)
    shown = [[item, *cells(total, item), *cells(last, item), ITEMS.get(item, "")] for item in ordered]
    columns = ["item", "all", "all (%)", "latest", "latest (%)", "what it is"]
    notes = [
        "each moment of an iteration counts once: for what the chain of tasks that made it as long as it was spent it on"
    ]
    starts = group_starts([_kind(item) for item in ordered])
    title = "What the iterations were waiting for (seconds)" + (f", all and the latest, {latest}" if shown else "")
    return ReportTable(
        "time_waited", title, frame, laid_out(columns, shown), notes if shown else _nothing(times), starts=starts
    )


def _kind(item: str) -> int:
    return 0 if item in WORK else 1 if item in ELSEWHERE else 2


def speed_report(times: RunTimes) -> ReportTable:
    """Seconds and tokens of models and phases, over all iterations."""
    frame = time_table(times)
    order = pl.col("phase").replace_strict({phase: i for i, phase in enumerate(PHASES)}, return_dtype=pl.Int64)
    parts = frame.sort(order, "model", maintain_order=True).partition_by("phase", "model", maintain_order=True)
    columns = ["phase", "model", *_COLUMNS, "others", "prompt tokens", "tokens", "tokens/s", "padding (%)"]
    notes = [
        "tokens: sampled in cold, rescue and evaluate; in update those of one pass, a prompt once where completions share it",
        "tokens/s: of generate, or of train",
    ]
    title = "Speed by phase and model (seconds)"
    shown = laid_out(columns, [_speed(part) for part in parts])
    return ReportTable("time_speed", title, frame, shown, notes if parts else _nothing(times))


def _speed(rows: pl.DataFrame) -> list[str]:
    """The line of one phase and model."""
    spent = dict(rows.group_by("item").agg(pl.col("seconds").sum()).rows())
    others = sum(s for item, s in spent.items() if item not in _COLUMNS)
    tokens, prompts = rows["tokens"].sum(), rows["prompt_tokens"].sum()
    work_s = sum(spent.get(item, 0.0) for item in (GENERATE, TRAIN))
    speed = f"{tokens / work_s:,.1f}" if tokens and work_s else ""
    trained = rows.select("tokens", "padding_share").drop_nulls().rows()
    computed = sum(n / (1 - share) for n, share in trained)
    padding = percent(1 - sum(n for n, _ in trained) / computed, None, None) if computed else ""
    amounts = [f"{n:,}" if n else "" for n in (prompts, tokens)]
    seconds = [_seconds(spent.get(item)) for item in _COLUMNS]
    return [*rows.select("phase", "model").row(0), *seconds, _seconds(others), *amounts, speed, padding]


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"
