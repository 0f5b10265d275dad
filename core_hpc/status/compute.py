"""From what was read to what is said: states of runs, failures, speed, the time that is left.

In: what reading.py found. Out: the classes of answer.py. What is done is what is published.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.timing.account import RunTimes, iteration_table, task_time, with_submissions
from core_hpc.common.errors import StoreError
from core_hpc.runs.folder import Run, open_run
from core_hpc.runs.graph import Graph
from core_hpc.slurm.commands import QueueEntry
from core_hpc.slurm.outcomes import ABANDONED, DONE, GAVE_UP
from core_hpc.slurm.records import OPEN, Submission, SubmissionFolder
from core_hpc.status.collect import Found, Manifests, Queue, Records, find_sweep, read_or_none
from core_hpc.status.model import (
    FINISHED,
    NO_CONTROLLER,
    RUNNING,
    STOPPED,
    UNREADABLE,
    WAITING,
    ControllerStatus,
    Failure,
    RunStatus,
    SweepStatus,
)
from core_hpc.store import shards
from core_hpc.store.claims import holder_lives
from core_hpc.store.manifests import Manifest
from core_hpc.store.paths import TEAM, SweepPaths, TaskKey
from core_hpc.store.schema import EVALUATE, GENERATION_PHASES, PHASES

WINDOW_TASKS = 300
"""So many of the tasks published last say how long tasks take and how many run at once."""
SPEED_S = 600.0
PAUSE_S = 60.0
"""Time without any task counts for the speed of a run up to the length of the longest task and so much more."""
NOT_FAILURES = (DONE, ABANDONED)


def read_status(sweeps: Sequence[tuple[Path, Sequence[Path]]], manifests: Manifests) -> list[SweepStatus]:
    """What is known of sweeps, each given as its folder and those of its runs."""
    found = [find_sweep(folder, runs) for folder, runs in sweeps]
    queue = Queue(found)
    return [sweep_status(f, queue, manifests) for f in found]


Statuses = Mapping[TaskKey, Mapping[str, Any]]
"""Running tasks, with the status file of their element (empty if there is none yet)."""


@dataclass
class _UnderWay:
    """What the submissions of a run tell: its tasks that run or wait, what they wait for, and failures."""

    running: dict[TaskKey, dict[str, Any]] = field(default_factory=dict)
    waiting: set[TaskKey] = field(default_factory=set)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)


def sweep_status(found: Found, queue: Queue, manifests: Manifests) -> SweepStatus:
    controller = _controller(found, queue)
    runs: list[RunStatus] = []
    reasons: Counter[str] = Counter()
    failures: list[Failure] = []
    for root, records in found.runs.items():
        try:
            run = open_run(root)
            under_way = _under_way(run, records, queue, *found.last_start())
            runs.append(_run_status(run, under_way, found, controller, manifests))
        except StoreError as e:
            runs.append(RunStatus(root.name, UNREADABLE, detail=str(e)))
            continue
        reasons += under_way.reasons
        failures += under_way.failures
    failures.sort(key=lambda f: f.time, reverse=True)
    reasons_in_order = dict(sorted(reasons.items(), key=lambda r: (-r[1], r[0])))
    words = queue.words if found.needs_queue else "not needed"
    return SweepStatus(found.folder.name, str(found.folder), words, controller, runs, reasons_in_order, failures)


def _controller(found: Found, queue: Queue) -> ControllerStatus:
    folder, beat = SubmissionFolder(SweepPaths(found.folder).slurm), found.heartbeat
    jobs = []
    for submission in (s for state, s in found.controllers if state == OPEN):
        entry = queue.entry(submission, 0)
        if entry is not None or not queue.known:
            job, log = entry.id.job if entry is not None else submission.job, str(folder.log(submission, 0))
            jobs.append(
                {
                    "job": job,
                    "state": entry.state if entry else "unknown",
                    "reason": entry.reason if entry else "",
                    "log": log,
                }
            )
    jobs.sort(key=lambda j: j["job"] or 0)
    begun = [s for _, s in found.controllers if folder.log(s, 0).exists()]
    last = max(begun, key=lambda s: s.submitted, default=None)
    cpu = None
    if beat is not None and beat["time"] - beat["started"] >= beat["interval_s"]:
        cpu = round(3600 * beat["cpu_s"] / (beat["time"] - beat["started"]), 1)
    return ControllerStatus(
        found.holder,
        _is_alive(found, queue),
        jobs,
        str(folder.log(last, 0)) if last is not None else None,
        beat["time"] if beat is not None else None,
        cpu,
        read_or_none(SweepPaths(found.folder).stop_request),
    )


def _is_alive(found: Found, queue: Queue) -> bool | None:
    if found.holder is None:
        return None
    lives = holder_lives(found.holder, lambda job: None if not queue.known else not queue.has_active(job))
    if lives is None and found.heartbeat is not None and _wrote(found.holder, found.heartbeat):
        return True if time.time() - found.heartbeat["time"] < 2 * found.heartbeat["interval_s"] else None
    return lives


def _wrote(holder: Mapping[str, Any], heartbeat: Mapping[str, Any]) -> bool:
    return (heartbeat["host"], heartbeat["pid"]) == (holder["host"], holder["pid"]) and heartbeat["time"] >= holder[
        "time"
    ]


def _place(
    submission: Submission, entry: QueueEntry | None, status: Mapping[str, Any], *, queue_known: bool
) -> str | None:
    """Where an element is: RUNNING, WAITING, or None when it has ended; by what its job wrote if the queue is not known."""
    if entry is not None:
        return WAITING if entry.state == "PENDING" else RUNNING
    if queue_known:
        return WAITING if submission.job is None else None
    return None if status.get("outcome") else RUNNING if status else WAITING


def _under_way(run: Run, records: Records, queue: Queue, start_id: str, since: float) -> _UnderWay:
    folder, out = SubmissionFolder(run.paths.slurm), _UnderWay()
    for state, submission in records:
        for number, o in submission.outcomes.items():
            if o["kind"] not in NOT_FAILURES and (submission.start_id == start_id or o.get("time", 0.0) >= since):
                task = o.get("task") or submission.elements[int(number)][0]
                told = (
                    o["kind"],
                    o["message"],
                    o.get("node", ""),
                    o["counted"],
                    o.get("log", ""),
                    o.get("time", submission.submitted),
                )
                out.failures.append(Failure(run.run_id, task, *told))
        for index in submission.unresolved if state == OPEN else ():
            keys, entry = submission.keys(index), queue.entry(submission, index)
            pending = entry is not None and entry.state == "PENDING"
            status = {} if pending else read_or_none(folder.status_file(submission, index)) or {}
            place, end = _place(submission, entry, status, queue_known=queue.known), status.get("outcome")
            for f in status.get("failures", ()):
                told = (f["kind"], f["message"], status["node"], True, f["log"], f["time"])
                out.failures.append(Failure(run.run_id, f["task"], *told))
            if place == RUNNING:
                out.running |= _running(submission, keys, status)
            elif place == WAITING:
                out.waiting |= set(keys)
                out.reasons.update([entry.reason] if entry is not None else [])
            elif end and end["kind"] not in ("done", "stopped"):
                task = end.get("task") or str(keys[-1])
                at = (status["progress"] or {}).get("time", status["started"])
                told = (end["kind"], end["message"], status["node"], None, str(folder.log(submission, index)), at)
                out.failures.append(Failure(run.run_id, task, *told))
    return out


def _running(submission: Submission, keys: Sequence[TaskKey], status: dict[str, Any]) -> dict[TaskKey, dict[str, Any]]:
    """Tasks of a running element; the job of a whole run says itself which of its tasks are under way."""
    if submission.group != "resident":
        return dict.fromkeys(keys, status)
    at_work = status.get("running", {})
    own = {
        task: {"started": at["started"], "progress": {"task": task, **at} if "done" in at else None}
        for task, at in at_work.items()
    }
    return {TaskKey.parse(task): {**status, **at} for task, at in own.items()}


def _run_status(
    run: Run, under_way: _UnderWay, found: Found, controller: ControllerStatus, manifests: Manifests
) -> RunStatus:
    graph, published = run.graph(), set(shards.published_keys(run.root))
    tasks = graph.tasks()
    done, rest = [k for k in tasks if k in published], [k for k in tasks if k not in published]
    ready = set(graph.ready(published))
    running = {k: status for k, status in under_way.running.items() if k in ready}  # a chain's later phases are not yet
    waiting = (under_way.waiting & ready) - running.keys()  # of the job of a whole run, what it would begin with
    at_work, fresh, told = _word(found, controller, run.run_id)
    is_local = run.config.cluster.driver == "local"
    why = _why_stopped(under_way.failures, told, run.config.cluster.max_attempts) if fresh else ""
    state = FINISHED if not rest else STOPPED if why else NO_CONTROLLER if not at_work else RUNNING
    if state == RUNNING and not running and (waiting or controller.holder is None):
        state = WAITING
    phases = {k.phase for k in (*running, *waiting)} or {k.phase for k in ready if state in (RUNNING, WAITING)}
    window = manifests.of(run, {*done[-WINDOW_TASKS:], *{(k.phase, k.model): k for k in done}.values()})
    left_s, now = estimate_left_s(rest, window, running) if rest else None, time.time()
    return RunStatus(
        run.run_id,
        state,
        why if state == STOPPED else "",
        min((k.iteration for k in rest), default=graph.iterations),
        graph.iterations,
        sorted(phases, key=PHASES.index),
        len(done),
        None if is_local and state == RUNNING else len(running),
        len(waiting),
        len(tasks),
        max(sum(bool(f.counted) for f in under_way.failures), told["failed"] if told is not None else 0),
        completions_per_s(window, running, now) if state == RUNNING else None,
        left_s,
        now + left_s if left_s is not None and state == RUNNING else None,
        *_last_iteration(run, graph, window),
    )


def _last_iteration(
    run: Run, graph: Graph, window: Mapping[TaskKey, Manifest]
) -> tuple[float | None, float | None, str | None]:
    """Time, overhead and largest item of the last iteration whose training is in the window."""
    wanted = Counter(k.iteration for k in graph.tasks() if k.phase != EVALUATE)
    found = Counter(k.iteration for k in window if k.phase != EVALUATE)
    last = max((i for i, num in found.items() if num == wanted[i]), default=None)
    if last is None:
        return None, None, None
    near = [task_time(k, m) for k, m in window.items() if k.iteration in (last - 1, last)]
    row = (
        iteration_table(RunTimes(tuple(with_submissions(near, run.paths.slurm)), graph))
        .filter(iteration=last)
        .row(0, named=True)
    )
    return row["wall_s"], row["overhead"], row["largest"]


def _word(found: Found, controller: ControllerStatus, run_id: str) -> tuple[bool, bool, dict[str, Any] | None]:
    """Whether a controller works on a run (true in doubt), whether what is known of the last start is its, and its word on the run."""
    holder, beat = found.holder, found.heartbeat
    at_work = bool(controller.jobs) or (holder is not None and controller.alive is not False)
    told = beat["runs"].get(run_id) if beat is not None and beat["start_id"] == found.last_start()[0] else None
    if holder is None or not at_work:
        return at_work, True, told
    if beat is None or not _wrote(holder, beat):  # it has taken the claim a moment ago
        return at_work, False, None
    return run_id in beat["runs"], True, told


def _why_stopped(failures: Sequence[Failure], told: Mapping[str, Any] | None, max_attempts: int) -> str:
    """Why a run of the last start was stopped, by its controller's word or by the failures on record; empty if it was not."""
    if told is not None and told["stopped"]:
        return str(told["stopped"])
    tries = Counter(f.task for f in failures if f.counted)
    for f in failures:
        if f.kind in ("final", GAVE_UP) or (f.counted and tries[f.task] >= max_attempts):
            return f"{f.task} failed {max(1, tries[f.task])} time(s): {f.message}\nlog: {f.log}"
    return ""


def _spans(manifests: Mapping[TaskKey, Manifest]) -> dict[TaskKey, tuple[float, float]]:
    """When published tasks began and ended."""
    return {
        key: (m.writer["time"] - sum(m.stats.get("seconds", {}).values()), m.writer["time"])
        for key, m in manifests.items()
    }


def estimate_left_s(rest: Sequence[TaskKey], published: Mapping[TaskKey, Manifest], running: Statuses) -> float | None:
    """Seconds that the tasks in `rest` will take, at the pace of tasks published lately; None before all kinds of them are known."""
    spans = _spans(published)
    if not spans:
        return None
    spent: dict[tuple[str, str], list[float]] = {}
    for key, (begin, end) in spans.items():
        for kind in ((key.phase, key.model), (key.phase, "")):
            spent.setdefault(kind, []).append(end - begin)
    work = 0.0
    for key in rest:
        like = spent.get((key.phase, key.model)) or spent.get((key.phase, "")) or ([0.0] if key.model == TEAM else [])
        if not like:
            return None
        progress = (running.get(key) or {}).get("progress") or {}
        share = progress["done"] / max(1, progress["total"]) if progress.get("task") == str(key) else 0.0
        work += sum(like) / len(like) * (1 - share)
    longest, covered, until = max(end - begin for begin, end in spans.values()), 0.0, -float("inf")
    for begin, end in sorted(spans.values()):
        covered += max(0.0, end - max(begin, until)) + min(max(0.0, begin - until), longest + PAUSE_S) * (until > 0)
        until = max(until, end)
    return work * covered / max(1e-9, sum(end - begin for begin, end in spans.values()))


def completions_per_s(published: Mapping[TaskKey, Manifest], running: Statuses, now: float) -> float | None:
    """Mean over the last ten minutes, or since the first of these tasks began; a task's completions are spread evenly over its time."""
    pieces = [
        (*span, published[key].stats["num_completions"])
        for key, span in _spans(published).items()
        if key.phase in GENERATION_PHASES
    ]
    for key, status in running.items():
        progress = status.get("progress") or {}
        if key.phase in GENERATION_PHASES and progress.get("task") == str(key):
            pieces.append((status["started"], progress["time"], progress["done"]))
    pieces = [(begin, end, num) for begin, end, num in pieces if end > now - SPEED_S]
    if not pieces:
        return None
    since = max(now - SPEED_S, min(begin for begin, *_ in pieces))
    return sum(num * (end - max(begin, since)) / max(1e-9, end - begin) for begin, end, num in pieces) / max(
        1.0, now - since
    )
