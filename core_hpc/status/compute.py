"""Computes the status of sweeps: states of runs, failed attempts, speed, and the time that is left.

In: what `status/collect.py` has read. Out: the classes of `status/model.py`. A task is done if its files are published.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.timing.account import iteration_table
from analysis.timing.recorded import RunTimes, task_time, with_submissions
from core_hpc.common.errors import StoreError
from core_hpc.problems.splits import EVALUATION
from core_hpc.runs.folder import Run, open_run
from core_hpc.runs.graph import Graph
from core_hpc.runs.job_status import JobStatus, RunningTask
from core_hpc.runs.outcome import OutcomeKind
from core_hpc.schedule.remaining import FinishedTask, TaskCosts, expected_completions
from core_hpc.schedule.useless import NOTHING_USELESS, Useless
from core_hpc.slurm.commands import QueueEntry
from core_hpc.slurm.records import OPEN, Submission, SubmissionFolder
from core_hpc.status.collect import Found, Manifests, Queue, Records, find_sweep, point_in_time, read_or_none
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
from core_hpc.store.paths import SweepPaths, TaskKey
from core_hpc.store.schema import GENERATION_PHASES, OUTSIDE_ITERATIONS, PHASES

WINDOW_TASKS = 300
"""The estimates use this many of the tasks that were published last."""
SPEED_S = 600.0
STOPS_A_RUN = (OutcomeKind.FINAL, OutcomeKind.GAVE_UP)


def read_status(sweeps: Sequence[tuple[Path, Sequence[Path]]], manifests: Manifests) -> list[SweepStatus]:
    """The status of sweeps.

    Args:
        sweeps: per sweep its folder, and the folders of the runs to include.
        manifests: a cache that the caller may keep for the next call.
    """
    found = [find_sweep(folder, runs) for folder, runs in sweeps]
    queue = Queue(found)
    return [sweep_status(f, queue, manifests) for f in found]


@dataclass
class _Submitted:
    """What the submissions of a run show: tasks that run or wait, what they wait for, and failed attempts."""

    running: dict[TaskKey, RunningTask] = field(default_factory=dict)
    waiting: set[TaskKey] = field(default_factory=set)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class _ControllerView:
    """What is known about the controller of one run.

    Attributes:
        works: whether a controller works on the run; true if it is unknown.
        current: whether the records of the last start are from this controller, or from no later one.
        report: what the controller of the last start wrote about the run (`stopped`, `failed`), if anything.
    """

    works: bool
    current: bool
    report: Mapping[str, Any] | None


def sweep_status(found: Found, queue: Queue, manifests: Manifests) -> SweepStatus:
    """The status of one sweep. A run that cannot be read gets the state `unreadable`."""
    controller = _controller(found, queue)
    runs: list[RunStatus] = []
    reasons: Counter[str] = Counter()
    failures: list[Failure] = []
    for root, records in found.runs.items():
        try:
            run = open_run(root)
            submitted = _submitted(run, records, queue, *found.last_start())
            runs.append(_run_status(run, submitted, found, controller, manifests))
        except StoreError as e:
            runs.append(RunStatus(run_id=root.name, state=UNREADABLE, detail=str(e)))
            continue
        reasons += submitted.reasons
        failures += submitted.failures
    return SweepStatus(
        sweep=found.folder.name,
        folder=str(found.folder),
        copy_of=str(found.copy_of) if found.copy_of is not None else None,
        slurm=queue.state if found.needs_queue else "not needed",
        controller=controller,
        runs=runs,
        waiting_reasons=dict(sorted(reasons.items(), key=lambda r: (-r[1], r[0]))),
        failures=sorted(failures, key=lambda f: f.time, reverse=True),
    )


# --- the controller ------------------------------------------------------------------------------


def _controller(found: Found, queue: Queue) -> ControllerStatus:
    folder, beat = SubmissionFolder(SweepPaths(found.folder).slurm), found.heartbeat
    jobs: list[dict[str, Any]] = []
    for submission in (s for state, s in found.controllers if state == OPEN):
        entry, log = queue.entry(submission, 0), str(folder.log(submission, 0))
        if entry is not None:
            jobs.append({"job": entry.id.job, "state": entry.state, "reason": entry.reason, "log": log})
        elif not queue.known or submission.is_foreign:
            reason = f"a job of user {submission.owner}" if submission.is_foreign else ""
            jobs.append({"job": submission.job, "state": "unknown", "reason": reason, "log": log})
    jobs.sort(key=lambda j: j["job"] or 0)
    begun = [s for _, s in found.controllers if folder.log(s, 0).exists()]
    last = max(begun, key=lambda s: s.submitted, default=None)
    cpu_s_per_hour = None
    if beat is not None and beat["time"] - beat["started"] >= beat["interval_s"]:
        cpu_s_per_hour = round(3600 * beat["cpu_s"] / (beat["time"] - beat["started"]), 1)
    return ControllerStatus(
        holder=found.holder,
        unreadable_claim=found.unreadable,
        alive=_is_alive(found, queue),
        jobs=jobs,
        last_log=str(folder.log(last, 0)) if last is not None else None,
        seen=beat["time"] if beat is not None else None,
        cpu_s_per_hour=cpu_s_per_hour,
        stop_request=_stop_request(SweepPaths(found.folder).stop_request),
    )


def _stop_request(path: Path) -> dict[str, Any] | None:
    """Who asked the sweep to stop. Controllers obey the file even if nobody can read it."""

    def parse(data: Any) -> dict[str, Any]:
        checked = {"user": str(data["user"]), "host": str(data["host"]), "time": point_in_time(data["time"])}
        return {**data, **checked}

    request = read_or_none(path, parse)
    if request is None and path.exists():
        request = {"user": "?", "host": "?", "time": path.stat().st_mtime}
    return request


def _is_alive(found: Found, queue: Queue) -> bool | None:
    if found.holder is None:
        return None
    lives = holder_lives(found.holder, lambda job: None if not queue.known else not queue.has_active(job))
    if lives is None and found.heartbeat is not None and _wrote(found.holder, found.heartbeat):
        return True if time.time() - found.heartbeat["time"] < 2 * found.heartbeat["interval_s"] else None
    return lives


def _wrote(holder: Mapping[str, Any], heartbeat: Mapping[str, Any]) -> bool:
    """Whether the claim's holder has written this heartbeat."""
    same_process = (heartbeat["host"], heartbeat["pid"]) == (holder["host"], holder["pid"])
    return same_process and heartbeat["time"] >= holder["time"]


def _view(found: Found, controller: ControllerStatus, run_id: str) -> _ControllerView:
    holder, beat = found.holder, found.heartbeat
    works = bool(controller.jobs) or bool(found.unreadable) or (holder is not None and controller.alive is not False)
    report = beat["runs"].get(run_id) if beat is not None and beat["start_id"] == found.last_start()[0] else None
    if holder is None or not works:
        return _ControllerView(works, True, report)
    if beat is None or not _wrote(holder, beat):  # the holder took the claim a moment ago
        return _ControllerView(works, False, None)
    return _ControllerView(run_id in beat["runs"], True, report)


# --- what was submitted --------------------------------------------------------------------------


def _submitted(run: Run, records: Records, queue: Queue, start_id: str, since: float) -> _Submitted:
    out = _Submitted()
    for state, submission in records:
        out.failures += _recorded_failures(run, submission, start_id, since)
        for index in submission.unresolved if state == OPEN else ():
            _add_element(out, run, submission, index, queue)
    return out


def _recorded_failures(run: Run, submission: Submission, start_id: str, since: float) -> list[Failure]:
    """Failed attempts that a controller of the last start has recorded."""
    found = []
    for index, outcome in submission.outcomes.items():
        if outcome.kind.is_failure and (submission.start_id == start_id or outcome.time >= since):
            failure = Failure(
                run_id=run.run_id,
                task=outcome.task or submission.elements[index][0],
                kind=outcome.kind.value,
                message=outcome.message,
                node=outcome.node,
                counted=outcome.counted,
                log=outcome.log,
                time=outcome.time or submission.submitted,
            )
            found.append(failure)
    return found


def _add_element(out: _Submitted, run: Run, submission: Submission, index: int, queue: Queue) -> None:
    """Add what an array element without a recorded outcome does."""
    folder, keys, entry = SubmissionFolder(run.paths.slurm), submission.keys(index), queue.entry(submission, index)
    is_pending = entry is not None and entry.state == "PENDING"
    status = None if is_pending else read_or_none(folder.status_file(submission, index), JobStatus.from_file)
    if status is not None:
        out.failures += _failures_inside(run, status)
    place = _place(submission, entry, status, queue_known=queue.known and not submission.is_foreign)
    if place == RUNNING:
        out.running |= _running(submission, keys, status or JobStatus())
    elif place == WAITING:
        out.waiting |= set(keys)
        out.reasons.update([entry.reason] if entry is not None else [])
    elif status is not None and status.outcome is not None and status.outcome.is_failure:
        failure = Failure(
            run_id=run.run_id,
            task=status.outcome.task or str(keys[-1]),
            kind=status.outcome.kind.value,
            message=status.outcome.message,
            node=status.node,
            counted=None,
            log=str(folder.log(submission, index)),
            time=(status.progress[1].time if status.progress else 0.0) or status.started,
        )
        out.failures.append(failure)


def _failures_inside(run: Run, status: JobStatus) -> list[Failure]:
    """Failed attempts that a job of the driver `resident` has repeated itself."""
    return [
        Failure(
            run_id=run.run_id,
            task=outcome.task,
            kind=outcome.kind.value,
            message=outcome.message,
            node=status.node,
            counted=True,
            log=outcome.log,
            time=outcome.time,
        )
        for outcome in status.failures
    ]


def _place(
    submission: Submission, entry: QueueEntry | None, status: JobStatus | None, *, queue_known: bool
) -> str | None:
    """RUNNING, WAITING, or None for an element that has ended. Without the queue, its job's status file decides."""
    if entry is not None:
        return WAITING if entry.state == "PENDING" else RUNNING
    if queue_known:
        return WAITING if submission.job is None else None
    if status is None:
        return WAITING
    return RUNNING if status.outcome is None else None


def _running(submission: Submission, keys: Sequence[TaskKey], status: JobStatus) -> dict[TaskKey, RunningTask]:
    """Tasks of a running element. A job of the driver `resident` lists its tasks in progress itself."""
    if submission.group == "resident":
        return {TaskKey.parse(task): at for task, at in status.running.items()}
    task, at = status.progress or ("", RunningTask(status.started))
    own = RunningTask(status.started, at.progress, at.time)
    return {key: own if str(key) == task else RunningTask(status.started) for key in keys}


# --- a run ---------------------------------------------------------------------------------------


def _run_status(
    run: Run, submitted: _Submitted, found: Found, controller: ControllerStatus, manifests: Manifests
) -> RunStatus:
    graph, published = run.graph(), set(shards.published_keys(run.root))
    tasks = graph.tasks()
    done, rest = [k for k in tasks if k in published], [k for k in tasks if k not in published]
    ready = set(graph.ready(published))
    # Only ready tasks: the later phases of a chain have not begun, and a resident job holds all tasks of its run.
    running = {key: at for key, at in submitted.running.items() if key in ready}
    waiting = (submitted.waiting & ready) - running.keys()
    view = _view(found, controller, run.run_id)
    cluster = run.config.cluster
    why_stopped = _why_stopped(submitted.failures, view.report, cluster.max_attempts) if view.current else ""
    state = FINISHED if not rest else STOPPED if why_stopped else NO_CONTROLLER if not view.works else RUNNING
    if state == RUNNING and not running and (waiting or controller.holder is None):
        state = WAITING
    phases = {k.phase for k in (*running, *waiting)} or {k.phase for k in ready if state in (RUNNING, WAITING)}
    window = manifests.of(run, {*done[-WINDOW_TASKS:], *{(k.phase, k.model): k for k in done}.values()})
    left_s, now = _left_s(run, rest, window, running) if rest else None, time.time()
    num_failed = sum(bool(f.counted) for f in submitted.failures)
    iteration_s, overhead, largest_item = _last_iteration(run, graph, window)
    latest = [window[key] for key in {(k.phase, k.model): k for k in done}.values() if key in window]
    useless = sum((own for m in latest if (own := Useless.of(m.stats)) is not None), NOTHING_USELESS)
    return RunStatus(
        run_id=run.run_id,
        state=state,
        detail=why_stopped if state == STOPPED else "",
        iteration=min((k.iteration for k in rest), default=graph.iterations),
        iterations=graph.iterations,
        phases=sorted(phases, key=PHASES.index),
        done=len(done),
        running=None if cluster.driver == "local" and state == RUNNING else len(running),
        waiting=len(waiting),
        total=len(tasks),
        failed=max(num_failed, view.report["failed"] if view.report is not None else 0),
        completions_per_s=completions_per_s(window, running, now) if state == RUNNING else None,
        left_s=left_s,
        expected_end=now + left_s if left_s is not None and state == RUNNING else None,
        iteration_s=iteration_s,
        overhead=overhead,
        largest_item=largest_item,
        truncated_share=useless.truncated_share,
        no_answer_share=useless.no_answer_share,
        warnings=useless.warnings,
    )


def _last_iteration(
    run: Run, graph: Graph, window: Mapping[TaskKey, Manifest]
) -> tuple[float | None, float | None, str | None]:
    """Time, overhead and largest item of the last iteration whose training is in the window."""
    wanted = Counter(k.iteration for k in graph.tasks() if k.phase not in OUTSIDE_ITERATIONS)
    found = Counter(k.iteration for k in window if k.phase not in OUTSIDE_ITERATIONS)
    last = max((i for i, num in found.items() if num == wanted[i]), default=None)
    if last is None:
        return None, None, None
    near = [task_time(k, m) for k, m in window.items() if abs(k.iteration - last) <= 1]
    times = RunTimes(tuple(with_submissions(near, run.paths.slurm)), graph)
    row = iteration_table(times).filter(iteration=last).row(0, named=True)
    return row["wall_s"], row["overhead"], row["largest"]


def _why_stopped(failures: Sequence[Failure], report: Mapping[str, Any] | None, max_attempts: int) -> str:
    """Why a run of the last start was stopped, or an empty string.

    The controller's own report decides if there is one, else the failed attempts on record.
    """
    if report is not None and report["stopped"]:
        return str(report["stopped"])
    num_failed = Counter(f.task for f in failures if f.counted)
    for f in failures:
        if f.kind in STOPS_A_RUN or (f.counted and num_failed[f.task] >= max_attempts):
            return f"{f.task} failed {max(1, num_failed[f.task])} time(s): {f.message}\nlog: {f.log}"
    return ""


# --- estimates -----------------------------------------------------------------------------------


def _spans(manifests: Mapping[TaskKey, Manifest]) -> dict[TaskKey, tuple[float, float]]:
    """When published tasks began and ended."""
    return {
        key: (m.writer["time"] - sum(m.stats.get("seconds", {}).values()), m.writer["time"])
        for key, m in manifests.items()
    }


def _left_s(
    run: Run,
    open_tasks: Sequence[TaskKey],
    published: Mapping[TaskKey, Manifest],
    running: Mapping[TaskKey, RunningTask],
) -> float | None:
    """Seconds until the run is finished at the pace of the tasks in `published`; None while that is unknown."""
    costs = TaskCosts(warm=run.config.cluster.driver != "arrays")
    for key, manifest in published.items():
        costs.add(key, FinishedTask.of(manifest.stats, manifest.writer["time"]))
    progress = {key: at.progress for key, at in running.items() if at.progress is not None}
    work_s = costs.work_s(open_tasks, expected_completions(run, run.num_problems(EVALUATION)), progress)
    return work_s / costs.concurrency() if work_s is not None else None


def completions_per_s(
    published: Mapping[TaskKey, Manifest], running: Mapping[TaskKey, RunningTask], now: float
) -> float | None:
    """Completions per second, as a mean over the last ten minutes, or since the first of these tasks began.

    The completions of a task are spread evenly over its time.
    """
    pieces = [
        (*span, published[key].stats.get("num_completions", 0))
        for key, span in _spans(published).items()
        if key.phase in GENERATION_PHASES
    ]
    for key, at in running.items():
        if key.phase in GENERATION_PHASES and at.progress is not None:
            pieces.append((at.started, at.time, at.progress.done))
    pieces = [(begin, end, num) for begin, end, num in pieces if end > now - SPEED_S]
    if not pieces:
        return None
    since = max(now - SPEED_S, min(begin for begin, *_ in pieces))
    total: float = sum(num * (end - max(begin, since)) / max(1e-9, end - begin) for begin, end, num in pieces)
    return total / max(1.0, now - since)
