"""python -m core_hpc.status [SWEEP ...]: how sweeps are getting on. It only reads, and needs no claim.

In: sweep folders, run folders or sweep files. Out: a table a sweep, or with --json what the classes below hold:
{"time": ..., "sweeps": [SweepStatus, ...]}. Points in time are in seconds since 1970; null stands for what is not known.

What is done is what is published. What is under way comes from the records of submissions, the status files of their
elements, one look at SLURM's queue if there is one, and the controller's last word on itself (controller.json).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from core_hpc import shards, store
from core_hpc.claims import describe_holder, holder_lives
from core_hpc.cluster import QueueEntry, Slurm, SlurmUnavailableError, slurm_installed
from core_hpc.display import duration
from core_hpc.errors import CoreHpcError, InputError, StoreError
from core_hpc.paths import TEAM, RunPaths, SweepPaths, TaskKey
from core_hpc.runs import Run, open_run
from core_hpc.schema import GENERATION_PHASES, PHASES
from core_hpc.store import Manifest
from core_hpc.submissions import ENDED, FAILED, OPEN, Submission, SubmissionFolder
from core_hpc.sweep import load_sweep

LOG_WIDTH = 120
WATCH_S = 10.0
NUM_SHOWN = 10
QUEUE_TIMEOUT_S = 20.0
WINDOW_TASKS = 300
"""So many of the tasks published last say how long tasks take and how many run at once."""
SPEED_S = 600.0
PAUSE_S = 60.0
"""Time without any task counts for the speed of a run up to the length of the longest task and so much more."""
NOT_FAILURES = ("done", "abandoned")
FINISHED, RUNNING, WAITING, NO_CONTROLLER, STOPPED, UNREADABLE = "finished", "running", "waiting", "no controller", "stopped", "unreadable"
STYLES = {FINISHED: "green", WAITING: "cyan", NO_CONTROLLER: "yellow", STOPPED: "red", UNREADABLE: "red"}


# --- the answer: --json has these fields ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunStatus:
    """One run. `done`, `running`, `waiting` and `total` count tasks; the others are not submitted yet."""

    run_id: str
    state: str
    """finished, running, waiting (in the queue), no controller, stopped (until it is started again) or unreadable."""
    detail: str = ""
    """Why it stopped, or what cannot be read."""
    iteration: int = 0
    """The first one with a task that is not done."""
    iterations: int = 0
    phases: list[str] = field(default_factory=list)
    """Of the tasks that run or wait; if there are none, of those that could."""
    done: int = 0
    running: int | None = 0
    """Null for the local driver: its workers leave no trace before they publish."""
    waiting: int = 0
    total: int = 0
    failed: int = 0
    """Tries of this start that failed and counted (cluster.max_attempts)."""
    completions_per_s: float | None = None
    """Over the last ten minutes."""
    left_s: float | None = None
    """Estimate from the tasks that were published last, as if the run went on like that."""
    expected_end: float | None = None
    """Now + left_s, if the run is running."""


@dataclass(frozen=True)
class Failure:
    """A try of the last start that failed. `counted`: as one of cluster.max_attempts; null: no controller has seen it yet."""

    run_id: str
    task: str
    kind: str
    message: str
    node: str
    counted: bool | None
    log: str
    time: float


@dataclass(frozen=True)
class ControllerStatus:
    """Who drives the sweep."""

    holder: dict[str, Any] | None
    """Of the claim: host, pid, user, time, job (null outside SLURM). Null: nobody."""
    alive: bool | None
    """Whether the holder lives; null when there is none, or when neither can be proven."""
    jobs: list[dict[str, Any]]
    """Detached controllers that wait or run: job, state (squeue's, or unknown), reason, log."""
    last_log: str | None
    """Log of the detached controller that was submitted last."""
    seen: float | None
    """When the last controller wrote controller.json."""
    cpu_s_per_hour: float | None
    """CPU time of the last controller and of the commands that it called."""
    stop_request: dict[str, Any] | None
    """Who asked the sweep to stop: host, pid, user, time."""


@dataclass(frozen=True)
class SweepStatus:
    """One sweep."""

    sweep: str
    folder: str
    slurm: str
    """ok, not needed, or why the queue is not known: tasks are then counted by what their jobs wrote."""
    controller: ControllerStatus
    runs: list[RunStatus]
    waiting_reasons: dict[str, int]
    """SLURM's reason -> array elements that wait for it."""
    failures: list[Failure]
    """Of the last start, newest first."""


# --- reading --------------------------------------------------------------------------------------------------------------

Records = list[tuple[str, Submission]]
"""Submissions with the states of their records: open, ended, failed."""


@dataclass(frozen=True)
class _Found:
    """What lies in the folder of a sweep, as far as it is read before the queue is asked."""

    folder: Path
    holder: dict[str, Any] | None
    heartbeat: dict[str, Any] | None
    controllers: Records
    runs: dict[Path, Records]

    @property
    def needs_queue(self) -> bool:
        elsewhere = self.holder is not None and self.holder["job"] is not None and self.holder["host"] != socket.gethostname()
        return elsewhere or any(state == OPEN for records in (self.controllers, *self.runs.values()) for state, _ in records)

    def last_start(self) -> tuple[str, float]:
        """Id of the last start by the user, and when it is heard of first."""
        known = [(s.submitted, s.start_id) for records in (self.controllers, *self.runs.values()) for _, s in records]
        if self.heartbeat is not None:
            known.append((self.heartbeat["started"], self.heartbeat["start_id"]))
        last = max(known, default=(0.0, ""))[1]
        return last, min((at for at, start_id in known if start_id == last), default=0.0)


def locate(path: Path) -> tuple[Path, list[Path]]:
    """Folder and run folders of a sweep, given that folder, its file, or one run folder; InputError when it is none of them."""
    folder = path
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        folder = load_sweep(path).folder
        if not folder.is_dir():
            raise InputError(f"{path}: there is no {folder}. Start it (python -m core_hpc.launch {path}), or name the sweep's folder")
    if RunPaths(folder).identity.is_file():
        return folder.absolute().parent, [folder.absolute()]
    paths, runs = SweepPaths(folder), sorted(p.parent for p in folder.glob("*/run.json"))
    if not runs and not any(p.exists() for p in (paths.claim, paths.source, paths.slurm)):
        raise InputError(f"{path}: neither a sweep's file nor its folder nor a run's folder (no run.json in it or one level below)")
    return folder.absolute(), [run.absolute() for run in runs]


def _read(path: Path) -> Any | None:
    """A JSON file of ours that may be missing, or go while it is read."""
    with contextlib.suppress(StoreError):
        return store.read_json(path)
    return None


def _find(folder: Path, runs: Sequence[Path]) -> _Found:
    paths = SweepPaths(folder)
    records = {run: SubmissionFolder(RunPaths(run).slurm).read_with_state(OPEN, FAILED) for run in runs}
    controllers = SubmissionFolder(paths.slurm).read_with_state(OPEN, ENDED, FAILED)
    return _Found(folder, _read(paths.claim), _read(paths.controller), controllers, records)


class _Queue:
    """One look at the queue, for all sweeps. `known` says whether SLURM has answered; if not, `words` say why."""

    def __init__(self, found: Sequence[_Found]) -> None:
        self.known, self.words, entries = False, "not needed", list[QueueEntry]()
        wanted = [f.folder for f in found if f.needs_queue]
        if wanted and not slurm_installed():
            self.words = f"not installed on {socket.gethostname()}"
        elif any(folder.stat().st_uid != os.getuid() for folder in wanted):
            self.words = "not asked: the jobs are another user's"
        elif wanted:
            try:
                entries = Slurm(timeout_s=QUEUE_TIMEOUT_S).queue()
                self.known, self.words = True, "ok"
            except SlurmUnavailableError as e:
                self.words = f"does not answer: {e}"
        self._active = {e.id: e for e in entries if e.active}
        self._jobs = {e.name: e.id.job for e in entries}

    def entry(self, submission: Submission, index: int) -> QueueEntry | None:
        """Where an element waits or runs. A submission without a job id is found by its name."""
        job = submission.job if submission.job is not None else self._jobs.get(submission.name)
        id = replace(submission, job=job).job_id(index)
        return self._active.get(id) if id is not None else None

    def has_active(self, job: int) -> bool:
        return any(id.job == job for id in self._active)


class Manifests:
    """Manifests that have been read. What is published does not change, so that --watch reads each of them once."""

    def __init__(self) -> None:
        self._known: dict[Path, Manifest] = {}

    def of(self, run: Run, keys: Collection[TaskKey]) -> dict[TaskKey, Manifest]:
        for path in (run.paths.task_manifest(key) for key in keys):
            if path not in self._known:
                with contextlib.suppress(StoreError):
                    self._known[path] = store.read_manifest(path)
        paths = {key: run.paths.task_manifest(key) for key in keys}
        return {key: self._known[path] for key, path in paths.items() if path in self._known}


def read_status(sweeps: Sequence[tuple[Path, Sequence[Path]]], manifests: Manifests) -> list[SweepStatus]:
    """What is known of sweeps, each given as its folder and those of its runs."""
    found = [_find(folder, runs) for folder, runs in sweeps]
    queue = _Queue(found)
    return [_sweep_status(f, queue, manifests) for f in found]


# --- concluding -----------------------------------------------------------------------------------------------------------


Statuses = Mapping[TaskKey, Mapping[str, Any]]
"""Running tasks, with the status file of their element (empty if there is none yet)."""


@dataclass
class _UnderWay:
    """What the submissions of a run tell: its tasks that run or wait, what they wait for, and failures."""

    running: dict[TaskKey, dict[str, Any]] = field(default_factory=dict)
    waiting: set[TaskKey] = field(default_factory=set)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)


def _sweep_status(found: _Found, queue: _Queue, manifests: Manifests) -> SweepStatus:
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


def _controller(found: _Found, queue: _Queue) -> ControllerStatus:
    folder, beat = SubmissionFolder(SweepPaths(found.folder).slurm), found.heartbeat
    jobs = []
    for submission in (s for state, s in found.controllers if state == OPEN):
        entry = queue.entry(submission, 0)
        if entry is not None or not queue.known:
            job, log = entry.id.job if entry is not None else submission.job, str(folder.log(submission, 0))
            jobs.append({"job": job, "state": entry.state if entry else "unknown", "reason": entry.reason if entry else "", "log": log})
    jobs.sort(key=lambda j: j["job"] or 0)
    begun = [s for _, s in found.controllers if folder.log(s, 0).exists()]
    last = max(begun, key=lambda s: s.submitted, default=None)
    cpu = None
    if beat is not None and beat["time"] - beat["started"] >= beat["interval_s"]:
        cpu = round(3600 * beat["cpu_s"] / (beat["time"] - beat["started"]), 1)
    return ControllerStatus(
        found.holder, _is_alive(found, queue), jobs, str(folder.log(last, 0)) if last is not None else None,
        beat["time"] if beat is not None else None, cpu, _read(SweepPaths(found.folder).stop_request),
    )  # fmt: skip


def _is_alive(found: _Found, queue: _Queue) -> bool | None:
    if found.holder is None:
        return None
    lives = holder_lives(found.holder, lambda job: None if not queue.known else not queue.has_active(job))
    if lives is None and found.heartbeat is not None and _wrote(found.holder, found.heartbeat):
        return True if time.time() - found.heartbeat["time"] < 2 * found.heartbeat["interval_s"] else None
    return lives


def _wrote(holder: Mapping[str, Any], heartbeat: Mapping[str, Any]) -> bool:
    return (heartbeat["host"], heartbeat["pid"]) == (holder["host"], holder["pid"]) and heartbeat["time"] >= holder["time"]


def _place(submission: Submission, entry: QueueEntry | None, status: Mapping[str, Any], *, queue_known: bool) -> str | None:
    """Where an element is: RUNNING, WAITING, or None when it has ended; by what its job wrote if the queue is not known."""
    if entry is not None:
        return WAITING if entry.state == "PENDING" else RUNNING
    if queue_known:
        return WAITING if submission.job is None else None
    return None if status.get("outcome") else RUNNING if status else WAITING


def _under_way(run: Run, records: Records, queue: _Queue, start_id: str, since: float) -> _UnderWay:
    folder, out = SubmissionFolder(run.paths.slurm), _UnderWay()
    for state, submission in records:
        for number, o in submission.outcomes.items():
            if o["kind"] not in NOT_FAILURES and (submission.start_id == start_id or o.get("time", 0.0) >= since):
                task = o.get("task") or submission.elements[int(number)][0]
                told = (o["kind"], o["message"], o.get("node", ""), o["counted"], o.get("log", ""), o.get("time", submission.submitted))
                out.failures.append(Failure(run.run_id, task, *told))
        for index in submission.unresolved if state == OPEN else ():
            keys, entry = submission.keys(index), queue.entry(submission, index)
            pending = entry is not None and entry.state == "PENDING"
            status = {} if pending else _read(folder.status_file(submission, index)) or {}
            place, end = _place(submission, entry, status, queue_known=queue.known), status.get("outcome")
            if place == RUNNING:
                out.running |= dict.fromkeys(keys, status)
            elif place == WAITING:
                out.waiting |= set(keys)
                out.reasons.update([entry.reason] if entry is not None else [])
            elif end and end["kind"] not in ("done", "stopped"):
                task, at = str(keys[min(status["published"], len(keys) - 1)]), (status["progress"] or {}).get("time", status["started"])
                told = (end["kind"], end["message"], status["node"], None, str(folder.log(submission, index)), at)
                out.failures.append(Failure(run.run_id, task, *told))
    return out


def _run_status(run: Run, under_way: _UnderWay, found: _Found, controller: ControllerStatus, manifests: Manifests) -> RunStatus:
    graph, published = run.graph(), set(shards.published_keys(run.root))
    tasks = graph.tasks()
    done, rest = [k for k in tasks if k in published], [k for k in tasks if k not in published]
    running = {k: status for k, status in under_way.running.items() if k not in published}
    waiting = under_way.waiting - published - running.keys()
    at_work, fresh, told = _word(found, controller, run.run_id)
    is_local = run.config.cluster.driver == "local"
    why = _why_stopped(under_way.failures, told, run.config.cluster.max_attempts) if fresh else ""
    state = FINISHED if not rest else STOPPED if why else NO_CONTROLLER if not at_work else RUNNING
    if state == RUNNING and not running and (waiting or controller.holder is None):
        state = WAITING
    phases = {k.phase for k in (*running, *waiting)} or {k.phase for k in graph.ready(published) if state in (RUNNING, WAITING)}
    window = manifests.of(run, {*done[-WINDOW_TASKS:], *{(k.phase, k.model): k for k in done}.values()})
    left_s, now = estimate_left_s(rest, window, running) if rest else None, time.time()
    return RunStatus(
        run.run_id, state, why if state == STOPPED else "", min((k.iteration for k in rest), default=graph.iterations), graph.iterations,
        sorted(phases, key=PHASES.index), len(done), None if is_local and state == RUNNING else len(running), len(waiting), len(tasks),
        max(sum(bool(f.counted) for f in under_way.failures), told["failed"] if told is not None else 0),
        completions_per_s(window, running, now) if state == RUNNING else None,
        left_s, now + left_s if left_s is not None and state == RUNNING else None,
    )  # fmt: skip


def _word(found: _Found, controller: ControllerStatus, run_id: str) -> tuple[bool, bool, dict[str, Any] | None]:
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
        if f.kind == "final" or (f.counted and tries[f.task] >= max_attempts):
            return f"{f.task} failed {max(1, tries[f.task])} time(s): {f.message}\nlog: {f.log}"
    return ""


def _spans(manifests: Mapping[TaskKey, Manifest]) -> dict[TaskKey, tuple[float, float]]:
    """When published tasks began and ended."""
    return {key: (m.writer["time"] - sum(m.stats.get("seconds", {}).values()), m.writer["time"]) for key, m in manifests.items()}


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
    pieces = [(*span, published[key].stats["num_completions"]) for key, span in _spans(published).items() if key.phase in GENERATION_PHASES]
    for key, status in running.items():
        progress = status.get("progress") or {}
        if key.phase in GENERATION_PHASES and progress.get("task") == str(key):
            pieces.append((status["started"], progress["time"], progress["done"]))
    pieces = [(begin, end, num) for begin, end, num in pieces if end > now - SPEED_S]
    if not pieces:
        return None
    since = max(now - SPEED_S, min(begin for begin, *_ in pieces))
    return sum(num * (end - max(begin, since)) / max(1e-9, end - begin) for begin, end, num in pieces) / max(1.0, now - since)


# --- showing --------------------------------------------------------------------------------------------------------------


def render(status: SweepStatus, *, show_all: bool = False) -> Group:
    """The table of a sweep and what stands below it."""
    lines = [_controller_line(status.controller)]
    lines += [Text(f"  SLURM job {j['job']}: {j['state']}{_in_brackets(j['reason'])}; log: {j['log']}") for j in status.controller.jobs]
    if status.slurm not in ("ok", "not needed"):
        lines.append(Text(f"SLURM: {status.slurm}; what runs and waits is counted by what the jobs wrote", style="yellow"))
    if status.waiting_reasons:
        lines.append(Text("queue: " + "; ".join(f"{num} waiting: {reason}" for reason, num in status.waiting_reasons.items())))
    for run in status.runs:
        lines += [Text(f"{run.run_id} {run.state}: {_brief(run.detail)}", style="red")] if run.detail else []
    shown = status.failures if show_all else status.failures[:NUM_SHOWN]
    if shown:
        count = f"all {len(shown)}" if len(shown) == len(status.failures) else f"{len(shown)} of {len(status.failures)}; --all shows all"
        lines.append(Text(f"failures of the last start, newest first ({count}):"))
    for f in shown:
        known = "" if f.counted else "; not seen by a controller yet" if f.counted is None else "; does not count as a try"
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(f.time))
        lines.append(Text(f"  {when} {f.run_id} {f.task}: {f.kind}: {_brief(f.message)} (node {f.node or '?'}{known})"))
        lines.append(Text(f"    log: {f.log or '?'}"))
    title = Text(f"sweep {status.sweep}", style="bold").append(f"   {status.folder}", style="dim")
    return Group(title, _table(status.runs), *lines)


def _table(runs: Sequence[RunStatus]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("run", "iteration", "phase", "tasks done", "running", "waiting", "failed", "compl./s", "expected end", "state"):
        table.add_column(name, justify="left" if name in ("run", "phase", "expected end", "state") else "right", overflow="fold")
    for r in runs:
        running, speed = ("-" if x is None else form % x for x, form in ((r.running, "%d"), (r.completions_per_s, "%.1f")))
        table.add_row(
            r.run_id, f"{r.iteration}/{r.iterations}", ", ".join(r.phases) or "-", f"{r.done}/{r.total}", running, str(r.waiting),
            str(r.failed), speed, _end(r), Text(r.state, style=STYLES.get(r.state, "")),
        )  # fmt: skip
    return table


def _end(run: RunStatus) -> str:
    if run.expected_end is None or run.left_s is None:
        return "-"
    day = "" if run.left_s < 12 * 3600 else "%a " if run.left_s < 6 * 86400 else "%Y-%m-%d "
    return f"{time.strftime(f'{day}%H:%M', time.localtime(run.expected_end))} ({duration(run.left_s)})"


def _controller_line(c: ControllerStatus) -> Text:
    now = time.time()
    words, style = ["none"], "yellow"
    if c.holder is not None:
        alive = "alive" if c.alive else "not known whether it lives" if c.alive is None else "dead: the next start takes over"
        words, style = [describe_holder(c.holder), alive], "" if c.alive else "yellow"
    elif c.jobs:
        words, style = ["waits as a job"], "cyan"
    if c.seen is not None:
        words.append(f"last seen {duration(max(0.0, now - c.seen))} ago")
    if c.cpu_s_per_hour is not None:
        words.append(f"{c.cpu_s_per_hour:.0f} CPU-seconds an hour")
    if c.stop_request is not None:
        words.append(f"stop requested by {c.stop_request['user']} on {c.stop_request['host']} {duration(now - c.stop_request['time'])} ago")
    if c.last_log is not None and not c.jobs:
        words.append(f"log: {c.last_log}")
    return Text(f"controller: {'; '.join(words)}", style=style)


def _brief(words: str) -> str:
    """The first line of a message, and the line that says where the log is."""
    lines = words.splitlines() or [""]
    return "; ".join(dict.fromkeys([lines[0], *(line for line in lines if line.startswith("log: "))]))


def _in_brackets(words: str) -> str:
    return f" ({words})" if words and words != "None" else ""


# --- the command line -----------------------------------------------------------------------------------------------------


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m core_hpc.status", description="How sweeps are getting on. Reads only.")
    words = "a sweep's folder or YAML file, or a run's folder; default: all in ./outputs"
    parser.add_argument("sweeps", type=Path, nargs="*", metavar="SWEEP", help=words)
    parser.add_argument("--all", action="store_true", dest="show_all", help=f"show all failures, not only the last {NUM_SHOWN}")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="everything as JSON (the fields are described in core_hpc/status.py)")
    words = f"show again every so many seconds ({WATCH_S:.0f}), until all is finished"
    how.add_argument("--watch", type=float, nargs="?", const=WATCH_S, metavar="SECONDS", help=words)
    options = parser.parse_args(arguments)
    if options.watch is not None and not options.watch > 0:
        parser.error("--watch: give a positive number of seconds")
    return options


def _sweeps(paths: Sequence[Path]) -> list[tuple[Path, list[Path]]]:
    """The sweeps that are asked for; without any, all below ./outputs."""
    chosen = paths or sorted({p.parents[1] for p in Path("outputs").glob("*/*/run.json")})
    if not chosen:
        raise InputError("no sweep below ./outputs; name the folder or the YAML file of a sweep")
    return [locate(path) for path in chosen]


def watch(paths: Sequence[Path], interval_s: float, console: Console, *, show_all: bool) -> None:
    """Show the status until all runs are finished."""
    manifests = Manifests()
    with Live(console=console, auto_refresh=False) if console.is_terminal else contextlib.nullcontext() as live:
        while True:
            found = read_status(_sweeps(paths), manifests)
            shown: RenderableType = Group(*(render(status, show_all=show_all) for status in found))
            if live is not None:
                live.update(Group(shown, Text(time.strftime("%H:%M:%S"), style="dim")), refresh=True)
            else:
                console.print(shown, soft_wrap=True)
            if all(run.state == FINISHED for status in found for run in status.runs):
                return
            time.sleep(interval_s)


def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    options = parse_arguments(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else LOG_WIDTH)
    try:
        if options.watch is not None:
            watch(options.sweeps, options.watch, console, show_all=options.show_all)
            return 0
        found = read_status(_sweeps(options.sweeps), Manifests())
        if options.json:
            print(json.dumps({"time": time.time(), "sweeps": [asdict(status) for status in found]}, indent=1))
        else:
            for status in found:
                console.print(render(status, show_all=options.show_all), soft_wrap=True)
    except CoreHpcError as e:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/bold red] {escape(str(e))}")
        return e.exit_code
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
