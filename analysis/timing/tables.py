"""Report tables of the accounting of time (`timing/account.py`).

The input is the `RunTimes` of a run. The output is `ReportTable`s: iterations beside their lower
bound, what iterations were waiting for, and the speed of the work. Their notes explain the columns
and state the limits of the measurement. This module only sums figures of `timing/account.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from analysis.layout.tables import UNDEFINED, ReportTable, group_starts, laid_out, percent
from analysis.timing.account import in_order, iteration_table, time_table, waited_table
from analysis.timing.critical_path import ELSEWHERE, GENERATE, ITEMS, QUEUE, START, TRAIN, WORK
from analysis.timing.recorded import RunTimes
from core_hpc.store.schema import PHASES

MIN_SKEW_S = 0.1
"""Smaller differences between clocks are rounding errors of the recorded times."""
NOTHING = "nothing is published yet"
_COLUMNS = (QUEUE, START, "import", "load", *WORK)
"""Items that have their own column in the table of speeds."""
IMPORTED = "these predictions were imported, so no times were recorded"


def time_report(times: RunTimes) -> list[ReportTable]:
    """Make all report tables: iterations, what they were waiting for, and the speed of the work."""
    return [iterations_report(times), waited_report(times), speed_report(times)]


def _why_empty(times: RunTimes) -> list[str]:
    """Return the note of an empty table."""
    if times.graph is None:
        return [IMPORTED]
    return [] if times.tasks else [NOTHING]


def iterations_report(times: RunTimes) -> ReportTable:
    """Make the table of iterations: time, lower bound, and the largest item above the bound."""
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
        "elsewhere: part of the time, waiting for an evaluation or another iteration",
        "queue: part of the time, waiting in the queue of SLURM",
        "lower bound: maximum over models of cold, rescue, passed and trained tokens, each divided by its rate",
        "rates are measured over the whole run, also while models share a machine; the bound is for one model alone",
        "overhead: share of the time, without elsewhere, that is above the lower bound",
        "largest item: the largest one that is neither work nor elsewhere",
    ]
    if times.graph is not None and times.graph.staleness:
        notes.append("protocol.staleness: iterations overlap, so their times add up to more than the time of the run")
    notes = notes + _doubts(times) if shown else _why_empty(times)
    return ReportTable("time_iterations", "Iterations (seconds)", frame, laid_out(columns, shown), notes)


def _doubts(times: RunTimes) -> list[str]:
    """Return notes on the limits of the measured times."""
    assert times.graph is not None
    notes = []
    by_key = {t.key: t for t in times.tasks}
    pairs = [(by_key[key], t) for t in times.tasks for key in times.graph.inputs(t.key) if key in by_key]
    skew = max((before.ended - t.began for before, t in pairs), default=0.0)
    if skew > MIN_SKEW_S:
        skewed = [pair for pair in pairs if pair[0].ended - pair[1].began > MIN_SKEW_S]
        hosts = ", ".join(sorted({t.host for pair in skewed for t in pair}))
        skewed_times = "times between tasks on them are off by that much"
        notes.append(f"clocks of {hosts} differ by at least {skew:.1f} s: {skewed_times}")
    elif len({t.host for t in times.tasks}) > 1:
        notes.append("several hosts: if their clocks differ, times are off by the difference")
    if num_bare := sum(not t.laps for t in times.tasks):
        notes.append(f"{num_bare} of {len(times.tasks)} tasks did not record what they spent their seconds on")
    if not any(t.process for t in times.tasks):
        older = "the start of processes is in idle or queue, imports are in prepare or read"
        notes.append(f"an older version ran this: {older}")
    if num_resumed := sum(bool(t.stats.get("resumed_from_step")) for t in times.tasks):
        resumed = "the time of earlier attempts is in idle, and their tokens are not counted"
        notes.append(f"{num_resumed} updates continued from a checkpoint: {resumed}")
    return notes


def waited_report(times: RunTimes) -> ReportTable:
    """Make the table of what iterations were waiting for: all iterations, and the latest one."""
    frame = waited_table(times)
    latest = max(times.paths, default=0)
    parts = (frame, frame.filter(pl.col("iteration") == latest))
    total, last = (dict(part.group_by("item").agg(pl.col("seconds").sum()).rows()) for part in parts)

    def cells(spent: Mapping[str, float], item: str) -> list[str]:
        if item not in spent:
            return ["", ""]
        return [_seconds(spent[item]), percent(spent[item] / sum(spent.values()), None, None)]

    ordered = in_order(total)
    shown = [[item, *cells(total, item), *cells(last, item), ITEMS.get(item, "")] for item in ordered]
    columns = ["item", "all", "all (%)", "latest", "latest (%)", "what it is"]
    path = "each moment of an iteration counts once, as what the chain of tasks that set its length spent it on"
    notes = [path] if shown else _why_empty(times)
    starts = group_starts([_kind(item) for item in ordered])
    which = f", all iterations and the latest one ({latest})" if shown else ""
    title = f"What the iterations were waiting for (seconds){which}"
    return ReportTable("time_waited", title, frame, laid_out(columns, shown), notes, starts=starts)


def _kind(item: str) -> int:
    return 0 if item in WORK else 1 if item in ELSEWHERE else 2


def speed_report(times: RunTimes) -> ReportTable:
    """Make the table of seconds and tokens per phase and model, over all iterations."""
    frame = time_table(times)
    order = pl.col("phase").replace_strict({phase: i for i, phase in enumerate(PHASES)}, return_dtype=pl.Int64)
    parts = frame.sort(order, "model", maintain_order=True).partition_by("phase", "model", maintain_order=True)
    columns = ["phase", "model", *_COLUMNS, "others", "prompt tokens", "tokens", "tokens/s", "padding (%)"]
    notes = [
        "tokens: in cold, rescue and evaluate the sampled ones; in update those of one pass, where a prompt that "
        "completions share counts once",
        "tokens/s: of generate, or of train",
    ]
    title = "Speed by phase and model (seconds)"
    shown = laid_out(columns, [_speed(part) for part in parts])
    return ReportTable("time_speed", title, frame, shown, notes if parts else _why_empty(times))


def _speed(rows: pl.DataFrame) -> list[str]:
    """Make the row of one phase and model."""
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
