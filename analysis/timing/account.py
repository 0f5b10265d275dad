"""The accounting of time: the seconds of tasks, and of iterations beside their lower bound.

The input is `RunTimes` (`timing/recorded.py`). The output is tidy frames: the seconds of tasks, the
seconds of iterations beside their lower bound, and what iterations were waiting for
(`timing/critical_path.py`). Only published tasks are counted. `timing/tables.py` formats the frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import polars as pl

from analysis.timing.critical_path import (
    ELSEWHERE,
    GENERATE,
    ITEMS,
    LOG_PROBS,
    QUEUE,
    TRAIN,
    WORK,
    TaskTime,
    shared_seconds,
    tasks_of_iteration,
)
from analysis.timing.recorded import RunTimes
from core_hpc.store.paths import TEAM
from core_hpc.store.schema import COLD, OUTSIDE_ITERATIONS, PHASES, RESCUE, UPDATE

TIMES = pl.Schema(
    {
        "iteration": pl.Int64(),
        "phase": pl.String(),
        "model": pl.String(),
        "item": pl.String(),  # one of critical_path.ITEMS, or another name that a task recorded
        "tasks": pl.Int64(),  # number of tasks that spent time on the item
        "seconds": pl.Float64(),  # sum over tasks
        # Share of the time of the iteration; the sum of parallel tasks can be more than 1. Null for
        # evaluations.
        "share": pl.Float64(),
        # generate: completion tokens; passes and train: tokens that are computed, where a prefix
        # that sequences share counts once
        "tokens": pl.Int64(),
        "tokens_per_s": pl.Float64(),
        "prompt_tokens": pl.Int64(),  # only for generate
        "padding_share": pl.Float64(),  # only for train: share of the computed tokens that are padding
    }
)
ITERATIONS = pl.Schema(
    {
        "iteration": pl.Int64(),
        "tasks": pl.Int64(),  # published tasks
        "of_tasks": pl.Int64(),  # all tasks
        "began": pl.Float64(),  # first submission, or start of a process or task; seconds since the epoch
        "ended": pl.Float64(),  # last publication
        "wall_s": pl.Float64(),
        "elsewhere_s": pl.Float64(),  # part of wall_s: waiting for an evaluation or another iteration
        "queue_s": pl.Float64(),  # part of wall_s: waiting in the queue of SLURM
        # Maximum over models of their sampled, passed and trained tokens, each divided by its rate;
        # null if no rate is known.
        "bound_s": pl.Float64(),
        "bound_model": pl.String(),  # the model that the maximum is of
        "overhead": pl.Float64(),  # share of wall_s - elsewhere_s that is above the bound
        "overhead_without_queue": pl.Float64(),  # the same share of wall_s - elsewhere_s - queue_s
        "largest": pl.String(),  # largest item that is neither in WORK nor in ELSEWHERE
        "largest_s": pl.Float64(),
    }
)
WAITED = pl.Schema(
    {
        "iteration": pl.Int64(),
        "item": pl.String(),
        "phase": pl.String(),  # of the task that ran or was waiting
        "model": pl.String(),
        "seconds": pl.Float64(),
        "share": pl.Float64(),  # of the time of the iteration; the sum of an iteration is 1
    }
)


WORKED_TOKENS = {GENERATE: "num_completion_tokens", LOG_PROBS: "num_pass_tokens", TRAIN: "num_tokens"}
"""Statistic of a task with the amount of work of an item."""


def time_table(times: RunTimes) -> pl.DataFrame:
    """Compute the seconds of tasks (schema TIMES) per iteration, phase, model and item."""
    walls = {i: sum(s.seconds for s in path) for i, path in times.paths.items()}

    def place(task: TaskTime) -> tuple[int, int, str]:
        return task.key.iteration, PHASES.index(task.key.phase), task.key.model

    rows = []
    for _, group in groupby(sorted(times.tasks, key=place), key=place):
        same_key = list(group)
        key = same_key[0].key
        wall = walls[key.iteration] if key.phase not in OUTSIDE_ITERATIONS else 0.0
        for item in in_order({item for t in same_key for item in _spent(t)}):
            spent = [s for t in same_key if (s := _spent(t).get(item)) is not None]
            seconds = sum(spent)
            labels = {"iteration": key.iteration, "phase": key.phase, "model": key.model, "item": item}
            amounts = {"tasks": len(spent), "seconds": seconds, "share": seconds / wall if wall else None}
            rows.append({**labels, **amounts, **_tokens(same_key, item, seconds)})
    return pl.DataFrame(rows, schema=TIMES)


def _spent(task: TaskTime) -> dict[str, float]:
    """Return the seconds of a task by item, including the queue and the start of its process."""
    out: dict[str, float] = {}
    for item, a, b in (*task.waits, *task.spans):
        if b > a:
            out[item] = out.get(item, 0.0) + b - a
    return out


def _tokens(tasks: Sequence[TaskTime], item: str, seconds: float) -> dict[str, float | None]:
    def total(name: str) -> int | None:
        known = [t.stats[name] for t in tasks if name in t.stats]
        return sum(known) if known else None

    if item not in WORK:
        return {}
    tokens = total(WORKED_TOKENS[item])
    speed = tokens / seconds if tokens is not None and seconds > 0 else None
    out: dict[str, float | None] = {"tokens": tokens, "tokens_per_s": speed}
    if item == GENERATE:
        out |= {"prompt_tokens": total("num_prompt_tokens")}
    if item == TRAIN:
        padded = total("num_padded_tokens")
        out |= {"padding_share": 1 - tokens / padded if tokens is not None and padded else None}
    return out


def in_order(items: Iterable[str]) -> list[str]:
    """Sort items into the order in which they are shown."""
    known = list(ITEMS)
    return sorted(items, key=lambda item: (known.index(item) if item in ITEMS else len(known), item))


def waited_table(times: RunTimes) -> pl.DataFrame:
    """Compute what each iteration was waiting for (schema WAITED).

    The sum of the seconds of an iteration is its time.
    """
    rows = []
    for iteration, path in times.paths.items():
        wall = sum(s.seconds for s in path)
        spent: dict[tuple[str, str, str], float] = {}
        for s in path:
            place = (s.item, s.key.phase, s.key.model)
            spent[place] = spent.get(place, 0.0) + s.seconds
        for item in in_order({item for item, *_ in spent}):
            of_item = [(place, seconds) for place, seconds in spent.items() if place[0] == item]
            rows += [[iteration, *place, seconds, seconds / wall] for place, seconds in of_item]
    return pl.DataFrame(rows, schema=WAITED, orient="row")


def iteration_table(times: RunTimes) -> pl.DataFrame:
    """Compute the time and the lower bound of each iteration (schema ITERATIONS)."""
    rates = _rates(times)
    return pl.DataFrame([_iteration(times, iteration, rates) for iteration in times.paths], schema=ITERATIONS)


def _iteration(times: RunTimes, iteration: int, rates: Rates) -> dict[str, Any]:
    own = tasks_of_iteration(times.tasks, iteration)
    spent: dict[str, float] = {}
    for s in times.paths[iteration]:
        spent[s.item] = spent.get(s.item, 0.0) + s.seconds
    wall, queue = sum(spent.values()), spent.get(QUEUE, 0.0)
    elsewhere = sum(spent.get(item, 0.0) for item in ELSEWHERE)
    bound_s, bound_model = _bound(own, rates)
    above = {item: seconds for item, seconds in spent.items() if item not in (*WORK, *ELSEWHERE)}
    largest = max(above, key=lambda item: above[item], default=None)

    def overhead(of_s: float) -> float | None:
        return max(0.0, 1 - bound_s / of_s) if bound_s is not None and of_s > 0 else None

    return {
        "iteration": iteration,
        "tasks": len(own),
        "of_tasks": times.num_tasks[iteration],
        "began": min(t.appeared for t in own),
        "ended": max(t.ended for t in own),
        "wall_s": wall,
        "elsewhere_s": elsewhere,
        "queue_s": queue,
        "bound_s": bound_s,
        "bound_model": bound_model,
        "overhead": overhead(wall - elsewhere),
        "overhead_without_queue": overhead(wall - elsewhere - queue),
        "largest": largest,
        "largest_s": above.get(largest or ""),
    }


Rates = Mapping[tuple[str, str, str], float]
"""Tokens per second by model, phase and item of work."""


def _bound(tasks: Sequence[TaskTime], rates: Rates) -> tuple[float | None, str | None]:
    """Return the seconds that the slowest model needs for its tokens, and its name."""
    needed: dict[str, float] = {}
    for (model, phase, item), rate in rates.items():
        own = [t for t in tasks if (t.key.model, t.key.phase) == (model, phase)]
        if own:
            needed[model] = needed.get(model, 0.0) + sum(_worked_tokens(t, item) for t in own) / rate
    slowest = max(needed, key=lambda model: needed[model], default=None)
    return (needed[slowest], slowest) if slowest is not None else (None, None)


def _rates(times: RunTimes) -> Rates:
    """Compute the tokens per second of the work of each model, over the whole run.

    The seconds are those in which tasks of the model work. If several of them work at the same
    time, they share these seconds.
    """
    rates = {}
    for model in {t.key.model for t in times.tasks} - {TEAM}:
        own = [t for t in times.tasks if t.key.model == model and t.key.phase in (COLD, RESCUE, UPDATE)]
        seconds = shared_seconds(((t.key.phase, item), a, b) for t in own for item, a, b in t.spans if item in WORK)
        for (phase, item), s in seconds.items():
            tokens = sum(_worked_tokens(t, item) for t in own if t.key.phase == phase)
            if s > 0 and tokens > 0:
                rates[model, phase, item] = tokens / s
    return rates


def _worked_tokens(task: TaskTime, item: str) -> int:
    """Return the tokens of an item of work.

    Earlier versions did not count the tokens of passes; the number of trained tokens replaces it.
    """
    return int(task.stats.get(WORKED_TOKENS[item], task.stats.get("num_tokens", 0)))
