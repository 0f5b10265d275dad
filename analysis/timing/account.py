"""The account of time: what a run's tasks spent their seconds on, and how near each iteration comes to its lower bound.

In: a run folder, of a run in progress too: manifests, and the records of submissions to SLURM. Out: tidy frames of the
seconds of tasks, of iterations and of what these were waiting for (critical_path.py). Counted are tasks that published;
seconds are those of a task's first rank, times those of its host. How they are shown is timing_tables.py's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
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
    Segment,
    TaskTime,
    critical_path,
    shared_seconds,
    tasks_of_iteration,
)
from core_hpc.common.errors import StoreError
from core_hpc.runs.folder import read_identity, read_run_config
from core_hpc.runs.graph import Graph
from core_hpc.store import manifests
from core_hpc.store.manifests import Manifest
from core_hpc.store.paths import TEAM, RunPaths, TaskKey
from core_hpc.store.schema import COLD, EVALUATE, PHASES, RESCUE, UPDATE
from core_hpc.store.shards import published_keys

TIMES = pl.Schema(
    {
        "iteration": pl.Int64(),
        "phase": pl.String(),
        "model": pl.String(),
        "item": pl.String(),  # of critical_path.ITEMS, or what a task calls it
        "tasks": pl.Int64(),  # that spent time on it
        "seconds": pl.Float64(),  # sum over tasks
        "share": pl.Float64(),  # of the iteration's time; tasks side by side add up to more than 1. Null for evaluations
        "tokens": pl.Int64(),  # generate: completion tokens; passes and train: tokens computed, what sequences share once
        "tokens_per_s": pl.Float64(),
        "prompt_tokens": pl.Int64(),  # generate
        "padding_share": pl.Float64(),  # train: of the tokens computed with
    }
)
ITERATIONS = pl.Schema(
    {
        "iteration": pl.Int64(),
        "tasks": pl.Int64(),  # published
        "of_tasks": pl.Int64(),
        "began": pl.Float64(),  # seconds since the epoch: its first submission, or start of a process or task
        "ended": pl.Float64(),  # its last publication
        "wall_s": pl.Float64(),
        "elsewhere_s": pl.Float64(),  # of it: waiting for an evaluation or another iteration
        "queue_s": pl.Float64(),  # of it: waiting in the queue of SLURM
        "bound_s": pl.Float64(),  # max over models of sampled, passed and trained tokens, each by its rate; null: no rate is known
        "bound_model": pl.String(),
        "overhead": pl.Float64(),  # share of wall_s - elsewhere_s that is above the bound
        "overhead_without_queue": pl.Float64(),  # the same of wall_s - elsewhere_s - queue_s
        "largest": pl.String(),  # item that is neither work nor elsewhere
        "largest_s": pl.Float64(),
    }
)
WAITED = pl.Schema(
    {
        "iteration": pl.Int64(),
        "item": pl.String(),
        "phase": pl.String(),  # of the task that ran or had to wait
        "model": pl.String(),
        "seconds": pl.Float64(),
        "share": pl.Float64(),  # of the iteration's time: they add up to 1
    }
)


WORKED_TOKENS = {GENERATE: "num_completion_tokens", LOG_PROBS: "num_pass_tokens", TRAIN: "num_tokens"}
"""Statistic of a task that says how much of an item of work it did."""


@dataclass(frozen=True)
class RunTimes:
    """When the published tasks of a run ran."""

    tasks: tuple[TaskTime, ...]
    graph: Graph | None  # None: imported predictions

    @cached_property
    def paths(self) -> dict[int, list[Segment]]:
        """What each iteration was waiting for at each moment, of those of whose training something is published."""
        if self.graph is None:
            return {}
        iterations = sorted({t.key.iteration for t in self.tasks if t.key.phase != EVALUATE})
        return {i: critical_path(self.tasks, i, self.graph.inputs) for i in iterations}

    @cached_property
    def num_tasks(self) -> Counter[int]:
        """How many tasks the training of each iteration has."""
        return (
            Counter(key.iteration for key in self.graph.tasks() if key.phase != EVALUATE) if self.graph else Counter()
        )


# --- reading -------------------------------------------------------------------------------------


def times_of(run: Path) -> RunTimes:
    """The times of a run, finished or in progress.

    Raises:
        StoreError: a manifest is damaged.
    """
    if "imported" in read_identity(run):
        return RunTimes((), None)
    paths = RunPaths(run)
    tasks = [task_time(key, manifests.read_manifest(paths.task_manifest(key))) for key in published_keys(run)]
    # Only the tasks of the training are asked for, so the number of held-out problems does not matter.
    graph = Graph.of(read_run_config(run), num_evaluation_problems=0)
    # A later start may have asked for fewer iterations.
    graph = replace(graph, iterations=max([graph.iterations, *(t.key.iteration for t in tasks)]))
    return RunTimes(tuple(with_submissions(tasks, paths.slurm)), graph)


def task_time(key: TaskKey, manifest: Manifest) -> TaskTime:
    """When a task ran and what it did, as its manifest tells."""
    stats, writer = manifest.stats, manifest.writer
    laps = tuple(_laps(stats))
    ended = float(writer["time"])
    process = None
    if "process_ready" in stats:
        process = (float(stats.get("job_started", stats["process_started"])), float(stats["process_ready"]))
    began = ended - sum(seconds for _, seconds in laps)
    return TaskTime(key, began, ended, writer["host"], writer["pid"], laps, process, None, stats)


def _laps(stats: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    """What a task did, in order. An update tells more of its lap `update`."""
    for name, seconds in stats.get("seconds", {}).items():
        if name != "update":
            yield name, float(seconds)
        elif "train_s" not in stats:
            yield TRAIN, float(seconds)
        else:
            passes, train, save = (
                stats.get("old_s", 0.0) + stats.get("reference_s", 0.0),
                stats["train_s"],
                stats.get("save_s", 0.0),
            )
            compiled = stats.get("compile_s", 0.0)
            yield "prepare", max(0.0, float(seconds) - compiled - passes - train - save)
            yield from (("compile", compiled), (LOG_PROBS, passes), (TRAIN, train), ("save", save))


def with_submissions(tasks: Sequence[TaskTime], folder: Path) -> list[TaskTime]:
    """The tasks; those that came first in an element of an array with the time at which that was submitted."""
    by_key = {t.key: t for t in tasks}
    submitted: dict[TaskKey, list[float]] = {}
    patterns = [f"*-{iteration:04d}-*.json" for iteration in sorted({t.key.iteration for t in tasks})]
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        record = _record(path)
        for texts in record.get("elements", []):
            published = [by_key[key] for key in map(TaskKey.parse, texts) if key in by_key]
            if published:
                first = min(published, key=lambda t: t.began)
                submitted.setdefault(first.key, []).append(float(record["submitted"]))
    # Of several tries, the last before a task began is the one that did it.
    return [
        replace(t, submitted=max((at for at in times if at <= t.began), default=min(times)))
        if (times := submitted.get(t.key))
        else t
        for t in tasks
    ]


def _record(path: Path) -> dict[str, Any]:
    """The record of a submission; empty when its controller has just renamed it."""
    try:
        record: dict[str, Any] = manifests.read_json(path)
    except StoreError:
        if path.exists():
            raise
        return {}
    return record


# --- frames --------------------------------------------------------------------------------------


def time_table(times: RunTimes) -> pl.DataFrame:
    """What tasks spent their seconds on: TIMES, a row for each iteration, phase, model and item."""
    walls = {i: sum(s.seconds for s in path) for i, path in times.paths.items()}

    def place(task: TaskTime) -> tuple[int, int, str]:
        return task.key.iteration, PHASES.index(task.key.phase), task.key.model

    rows = []
    for _, group in groupby(sorted(times.tasks, key=place), key=place):
        alike = list(group)
        key = alike[0].key
        wall = walls[key.iteration] if key.phase != EVALUATE else 0.0
        for item in in_order({item for t in alike for item in _spent(t)}):
            spent = [s for t in alike if (s := _spent(t).get(item)) is not None]
            seconds = sum(spent)
            row = {
                "iteration": key.iteration,
                "phase": key.phase,
                "model": key.model,
                "item": item,
                "tasks": len(spent),
            }
            row |= {"seconds": seconds, "share": seconds / wall if wall else None, **_tokens(alike, item, seconds)}
            rows.append(row)
    return pl.DataFrame(rows, schema=TIMES)


def _spent(task: TaskTime) -> dict[str, float]:
    """Seconds of a task by item, its wait and the start of its process included."""
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
    """Items in the order in which they are shown."""
    known = list(ITEMS)
    return sorted(items, key=lambda item: (known.index(item) if item in ITEMS else len(known), item))


def waited_table(times: RunTimes) -> pl.DataFrame:
    """What each iteration was waiting for: WAITED. The seconds of an iteration add up to its time."""
    rows = []
    for iteration, path in times.paths.items():
        wall = sum(s.seconds for s in path)
        spent: dict[tuple[str, str, str], float] = {}
        for s in path:
            place = (s.item, s.key.phase, s.key.model)
            spent[place] = spent.get(place, 0.0) + s.seconds
        for item in in_order({item for item, *_ in spent}):
            mine = [(place, seconds) for place, seconds in spent.items() if place[0] == item]
            rows += [[iteration, *place, seconds, seconds / wall] for place, seconds in mine]
    return pl.DataFrame(rows, schema=WAITED, orient="row")


def iteration_table(times: RunTimes) -> pl.DataFrame:
    """Each iteration's time beside its lower bound: ITERATIONS."""
    rates = _rates(times)
    return pl.DataFrame([_iteration(times, iteration, rates) for iteration in times.paths], schema=ITERATIONS)


def _iteration(times: RunTimes, iteration: int, rates: Rates) -> dict[str, Any]:
    own = tasks_of_iteration(times.tasks, iteration)
    spent: dict[str, float] = {}
    for s in times.paths[iteration]:
        spent[s.item] = spent.get(s.item, 0.0) + s.seconds
    wall, elsewhere, queue = sum(spent.values()), sum(spent.get(item, 0.0) for item in ELSEWHERE), spent.get(QUEUE, 0.0)
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
    """Seconds that the slowest model needs for its tokens, and which model that is."""
    needed: dict[str, float] = {}
    for (model, phase, item), rate in rates.items():
        mine = [t for t in tasks if (t.key.model, t.key.phase) == (model, phase)]
        if mine:
            needed[model] = needed.get(model, 0.0) + sum(_worked_tokens(t, item) for t in mine) / rate
    slowest = max(needed, key=lambda model: needed[model], default=None)
    return (needed[slowest], slowest) if slowest is not None else (None, None)


def _rates(times: RunTimes) -> Rates:
    """Tokens per second of each model's work, over the whole run.

    Seconds are those in which the model's tasks do work: of several at the same time, each has its part of a second.
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
    """Earlier versions did not count the tokens of passes: they stand for those that were trained."""
    return int(task.stats.get(WORKED_TOKENS[item], task.stats.get("num_tokens", 0)))
