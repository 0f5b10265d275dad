"""Computes the status of sweeps: the states of their runs, from the parts of the other modules.

In: what `status/collect.py` has read, the controller (`status/controller.py`), the submissions
(`status/submitted.py`) and the speed (`status/pace.py`). Out: the classes of `status/model.py`. A task is
done if its files are published.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core_hpc.common.errors import StoreError
from core_hpc.runs.folder import Run, open_run
from core_hpc.runs.outcome import OutcomeKind
from core_hpc.schedule.progress import FINISHED, RUNNING, STOPPED, WAITING
from core_hpc.schedule.useless import NOTHING_USELESS, Useless
from core_hpc.status.collect import Found, Manifests, Queue, find_sweep
from core_hpc.status.controller import controller_status, view_of
from core_hpc.status.model import NO_CONTROLLER, UNREADABLE, ControllerStatus, Failure, RunStatus, SweepStatus
from core_hpc.status.pace import completions_per_s, last_iteration, seconds_left
from core_hpc.status.submitted import Submitted, read_submitted
from core_hpc.store import shards
from core_hpc.store.schema import PHASES

WINDOW_TASKS = 300
"""The estimates use this many of the tasks that were published last."""
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


def sweep_status(found: Found, queue: Queue, manifests: Manifests) -> SweepStatus:
    """The status of one sweep. A run that cannot be read gets the state `unreadable`."""
    controller = controller_status(found, queue)
    runs: list[RunStatus] = []
    reasons: Counter[str] = Counter()
    failures: list[Failure] = []
    for root, records in found.runs.items():
        try:
            run = open_run(root)
            submitted = read_submitted(run, records, queue, *found.last_start())
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


def _run_status(
    run: Run, submitted: Submitted, found: Found, controller: ControllerStatus, manifests: Manifests
) -> RunStatus:
    graph, published = run.graph(), set(shards.published_keys(run.root))
    tasks = graph.tasks()
    done, rest = [k for k in tasks if k in published], [k for k in tasks if k not in published]
    ready = set(graph.ready(published))
    # Only ready tasks: the later phases of a chain have not begun, and a resident job holds all tasks of its run.
    running = {key: at for key, at in submitted.running.items() if key in ready}
    waiting = (submitted.waiting & ready) - running.keys()
    view = view_of(found, controller, run.run_id)
    cluster = run.config.cluster
    why_stopped = _why_stopped(submitted.failures, view.report, cluster.max_attempts) if view.current else ""
    state = FINISHED if not rest else STOPPED if why_stopped else NO_CONTROLLER if not view.works else RUNNING
    if state == RUNNING and not running and (waiting or controller.holder is None):
        state = WAITING
    phases = {k.phase for k in (*running, *waiting)} or {k.phase for k in ready if state in (RUNNING, WAITING)}
    last_of_kind = {k.kind: k for k in done}.values()
    window = manifests.of(run, {*done[-WINDOW_TASKS:], *last_of_kind})
    left_s, now = seconds_left(run, rest, window, running) if rest else None, time.time()
    num_failed = sum(bool(f.counted) for f in submitted.failures)
    iteration_s, overhead, largest_item = last_iteration(run, graph, window)
    latest = [window[key] for key in last_of_kind if key in window]
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
