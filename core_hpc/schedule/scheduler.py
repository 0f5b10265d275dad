"""The scheduler's loop: ask the graph what is ready, pass it to an executor, check publications.

In: runs and an executor. Out: for each run, finished or stopped with a reason. A task counts as
done when its manifest can be read, whatever the executor reports.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from core_hpc.common.errors import StoreError
from core_hpc.runs.messages import (
    Done,
    Event,
    Failed,
    Outcome,
    OutcomeKind,
    Progressed,
    Released,
    Started,
    Stopped,
    TaskRef,
    Waiting,
)
from core_hpc.schedule.base import Executor, Listener
from core_hpc.schedule.progress import RunProgress
from core_hpc.store import manifests, shards
from core_hpc.store.paths import TaskKey


class Scheduler:
    """Drives runs to their end. When a run stops because of failures, the others continue."""

    def __init__(
        self,
        runs: Sequence[RunProgress],
        executor: Executor,
        listeners: Sequence[Listener],
        *,
        max_attempts: int,
        stop_requested: Callable[[], bool] = lambda: False,
        require_claim: Callable[[], None] = lambda: None,
    ) -> None:
        """Create a scheduler.

        Args:
            max_attempts: failed attempts of a task after which its run stops.
            stop_requested: asked in every pass of the loop.
            require_claim: called before anything is submitted or changed in a run folder. It raises
                ClaimLostError when another controller holds the sweep.
        """
        self._runs = {p.run.run_id: p for p in runs}
        self._executor = executor
        self._listeners = listeners
        self._max_attempts = max_attempts
        self._stop_requested = stop_requested
        self._require_claim = require_claim

    def run(self) -> bool:
        """Work until every run is finished or stopped, or until a stop is requested.

        Returns:
            False when a stop was requested.
        """
        adopted = self._executor.adopt([p.run for p in self._runs.values()])
        for task in adopted.tasks:
            progress = self._runs[task.run_id]
            if task.key not in progress.published:
                self._take(progress, task)
        for task, attempts in adopted.attempts.items():
            self._runs[task.run_id].attempts[task.key] = attempts
        while any(p.open or p.in_flight for p in self._runs.values()):
            self._require_claim()
            if self._stop_requested():
                return False
            self._submit_ready()
            events = self._executor.poll()
            self._require_claim()
            for event in events:
                self._handle(event)
        return True

    def _submit_ready(self) -> None:
        wanted = [(p.run, key) for p in self._runs.values() if p.open for key in p.ready() if key not in p.in_flight]
        wanted.sort(key=lambda item: item[1].iteration)  # so that all runs of a sweep advance together
        for task in self._executor.submit(wanted) if wanted else ():
            self._take(self._runs[task.run_id], task)

    def _take(self, progress: RunProgress, task: TaskRef) -> None:
        progress.in_flight[task.key] = time.monotonic()
        progress.waiting.add(task.key)

    def _handle(self, event: Event) -> None:
        progress, key = self._runs[event.task.run_id], event.task.key
        in_flight = key in progress.in_flight
        match event:
            case Waiting():
                if not in_flight:
                    return
                progress.waiting.add(key)
            case Started() | Progressed():
                if not in_flight:
                    return
                progress.waiting.discard(key)
            case Released():
                if not in_flight:
                    return
                self._drop(progress, key)
            case Stopped():
                self._drop(progress, key)
            case Done():
                self._drop(progress, key)
                if key in progress.published:
                    return  # it was done twice, or this start has already read its publication
                event = self._confirm(progress, event)
            case Failed():
                self._drop(progress, key)
        if isinstance(event, Failed):
            self._fail(progress, key, event.outcome)
        for listener in self._listeners:
            listener.on_event(progress, event)

    def _drop(self, progress: RunProgress, key: TaskKey) -> None:
        progress.in_flight.pop(key, None)
        progress.waiting.discard(key)

    def _confirm(self, progress: RunProgress, event: Done) -> Event:
        """The same event with the statistics of the manifest, or a failure when there is none."""
        path = progress.run.paths.task_manifest(event.task.key)
        try:
            manifest = manifests.read_manifest(path)
        except StoreError as e:
            damaged = isinstance(e, manifests.DamagedError)
            outcome = Outcome(
                OutcomeKind.DAMAGED if damaged else OutcomeKind.ERROR,
                f"ended without publishing: {e}",
                log=event.log,
                manifest=str(path) if damaged else "",
            )
            return Failed(event.task, outcome)
        progress.add_published(event.task.key)
        return replace(event, stats=manifest.stats)

    def _fail(self, progress: RunProgress, key: TaskKey, outcome: Outcome) -> None:
        attempts = progress.attempts[key] = progress.attempts.get(key, 0) + outcome.counted
        progress.failures += outcome.counted
        if outcome.kind == OutcomeKind.DAMAGED:
            self._set_aside(progress, Path(outcome.manifest))
        is_last = outcome.kind == OutcomeKind.FINAL or attempts >= self._max_attempts
        if progress.stopped is None and is_last:
            progress.stopped = (
                f"{key} failed {attempts} time{'s' if attempts > 1 else ''}: {outcome.message}\n"
                f"{outcome.traceback.rstrip()}\nlog: {outcome.log}"
            )
            for task in self._executor.abandon(progress.run):
                self._drop(progress, task.key)

    def _set_aside(self, progress: RunProgress, manifest: Path) -> None:
        """Withdraw a damaged publication, unless it was replaced after the damage was reported."""
        try:
            manifests.check_files(manifests.read_manifest(manifest), checksum=True)
        except manifests.DamagedError:
            with contextlib.suppress(FileNotFoundError):  # a resident job may have been faster
                manifests.set_aside(manifest)
            progress.withdraw(shards.key_of_manifest(manifest))
        except StoreError:
            progress.withdraw(shards.key_of_manifest(manifest))


def cpu_seconds() -> float:
    """CPU time of this process and of the commands that it has waited for (squeue, sbatch)."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
