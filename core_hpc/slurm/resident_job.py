"""What runs inside a job of the driver `resident`: one run, iteration after iteration, on the warm workers of this node.

In: an `ElementSpec` with a run's unpublished tasks. Out: published tasks, and a status file: what is under way, what failed,
and how the job ended. It is the local driver, for one run and until SLURM wants the job to end: then no further task begins,
updates save their positions, and what does not end in time is given up. Tries, damaged publications and the order of
tasks are schedule.py's as on one machine; the controller outside (resident.py) submits the successor.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from core_hpc.common.errors import CoreHpcError
from core_hpc.local.executor import LocalExecutor, LocalLimits
from core_hpc.local.memory import needs_of
from core_hpc.runs.folder import Run, open_run
from core_hpc.schedule.base import Event
from core_hpc.schedule.progress import RunProgress, inspect_run
from core_hpc.schedule.scheduler import Scheduler
from core_hpc.slurm.element import ElementError, ElementSpec, Status, Stop, steps_saved
from core_hpc.slurm.outcomes import DIED, GAVE_UP


class Reporter:
    """Listener of the scheduler that keeps the job's status file and log.

    `running`: by task, started, and once it says so done, total, tokens, time. `failures`: what failed and was tried again here.
    """

    def __init__(self, status: Status) -> None:
        self._status = status
        self._running: dict[str, dict[str, Any]] = {}
        self._failures: list[dict[str, Any]] = []
        self.died: dict[str, Any] | None = None
        """The failure of a task whose worker died: of memory or of its node's doing, which only the controller can mend."""

    @property
    def num_running(self) -> int:
        return len(self._running)

    def on_event(self, progress: RunProgress, event: Event) -> None:
        task, now = str(event.task.key), time.time()
        if event.kind == "progress":
            shown = {name: event.fields[name] for name in ("done", "total", "tokens")}
            self._running.setdefault(task, {"started": now}).update(shown, time=now)
            self._status.note(running=self._running)
            return
        if event.kind == "started":
            self._running[task] = {"started": now}
        else:
            self._running.pop(task, None)
        if event.kind == "failed" and event.fields["kind"] == DIED:
            self.died = {**event.fields, "task": task}
        elif event.kind == "failed":
            self._failures.append({**event.fields, "task": task, "time": now})
        said = event.fields["message"] if event.kind == "failed" else ""
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {task}: {event.kind} {said}".rstrip(), flush=True)
        changed = {"running": self._running, "failures": self._failures}
        if event.kind == "done":
            self._status.published(**changed)
        else:
            self._status.note(now=True, **changed)


def run_resident(spec: ElementSpec) -> None:
    """Do what is left of a run, as far as the time goes."""
    stop, status = Stop(spec), Status(spec, rank=0)
    # Workers begin at any time of this job's: none of them has waited since the job began (statistics of first tasks).
    os.environ.pop("CORE_HPC_JOB_START", None)
    status.note(now=True, running={}, failures=[])
    try:
        outcome = _drive(open_run(Path(spec.run)), stop, status)
    except CoreHpcError as e:
        outcome = {"kind": "final", "message": str(e), "traceback": ""}
    status.end(**outcome)
    if outcome["kind"] not in ("done", "stopped"):
        raise ElementError(f"{outcome['message']}\n{outcome.get('traceback', '')}")


def _drive(run: Run, stop: Stop, status: Status) -> dict[str, Any]:
    """The job's outcome, once nothing is under way any more."""
    progress, messages = inspect_run(run)
    for message in messages:
        print(f"damaged: {message}", flush=True)
    rest, cluster = set(progress.rest), run.config.cluster
    saved = steps_saved(run, rest)
    cores = int(os.environ.get("SLURM_CPUS_PER_TASK") or 0) or None
    limits = LocalLimits.of(cluster, len(run.config.team), cores=cores, needs=needs_of([run]))
    print(limits.words, flush=True)
    executor = LocalExecutor(cluster, limits, deaf=True)
    reporter = Reporter(status)

    def should_stop() -> bool:
        return stop.reason is not None or reporter.died is not None

    def deadline() -> float:
        if stop.reason is not None:
            status.stopping(stop.reason)
        return stop.deadline

    try:
        scheduler = Scheduler(
            [progress], executor, [reporter], max_attempts=cluster.max_attempts, stop_requested=should_stop
        )
        if not scheduler.run():
            for event in executor.stop(deadline):
                reporter.on_event(progress, event)
    finally:
        executor.close()
    if reporter.died is not None:
        return reporter.died
    if progress.stopped is not None:
        return {"kind": GAVE_UP, "message": progress.stopped, "traceback": ""}
    if stop.reason is None or progress.finished:
        return {"kind": "done"}
    given_up = (
        f"{reporter.num_running} task(s) under way were given up" if reporter.num_running else "between two tasks"
    )
    gained = status.num_published > 0 or steps_saved(run, rest) > saved
    return {"kind": "stopped", "reason": stop.reason, "message": given_up, "gained": gained}
