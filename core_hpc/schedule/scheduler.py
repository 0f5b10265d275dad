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
from functools import partial
from pathlib import Path

from core_hpc.common.errors import FULL_DISK, CoreHpcError, StoreError
from core_hpc.runs.adapters import restore_adapters
from core_hpc.runs.contents import check_counts, check_publication
from core_hpc.runs.events import Done, Event, Failed, Progressed, Released, Started, Stopped, TaskRef, Waiting
from core_hpc.runs.folder import Run
from core_hpc.runs.frozen import restore_problems
from core_hpc.runs.outcome import Outcome, OutcomeKind
from core_hpc.runs.roles import warmup_group
from core_hpc.schedule.base import Executor, Listener
from core_hpc.schedule.progress import RunProgress
from core_hpc.store import manifests, shards
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import WARMUP

FILES_PATIENCE_S = 600.0
"""How long a pass of the loop is repeated while the file system reports errors, for example after a failover."""
FILES_RETRY_S = 5.0


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
        require_claim: Callable[[], object] = lambda: None,
        notify: Callable[[str], None] = print,
    ) -> None:
        """Create a scheduler.

        Args:
            max_attempts: failed attempts of a task after which its run stops.
            stop_requested: asked in every pass of the loop.
            require_claim: called before anything is submitted or changed in a run folder. It raises
                ClaimLostError when another controller holds the sweep.
            notify: shows a message to the user.
        """
        self._runs = {p.run.run_id: p for p in runs}
        self._executor = executor
        self._listeners = listeners
        self._max_attempts = max_attempts
        self._stop_requested = stop_requested
        self._require_claim = require_claim
        self._notify = notify
        self._events: list[Event] = []
        """Events that are not handled yet."""
        self._reported: set[tuple[str, str, str]] = set()
        """Failures of listeners that the user has seen."""

    def run(self) -> bool:
        """Work until every run is finished or stopped, or until a stop is requested.

        Returns:
            False when a stop was requested.

        Raises:
            StoreError: the file system reported errors for `FILES_PATIENCE_S`.
        """
        adopted = self._executor.adopt([p.run for p in self._runs.values()])
        for task in adopted.tasks:
            progress = self._runs[task.run_id]
            if task.key not in progress.published:
                self._take(progress, task)
        for failed in adopted.failures:
            progress = self._runs[failed.task.run_id]
            why = self._count(progress, failed.task.key, failed.outcome)
            progress.stopped = progress.stopped or why or None
        for run_id, why in adopted.stopped.items():
            self._runs[run_id].stopped = self._runs[run_id].stopped or why
        for progress in self._runs.values():
            if progress.stopped is not None:
                self._abandon(progress, progress.stopped)
        while True:
            while any(p.open or p.in_flight for p in self._runs.values()):
                if not self._patient_pass():
                    return False
            self._finish()
            if not any(p.open for p in self._runs.values()):
                return True

    def _patient_pass(self) -> bool:
        """A pass, repeated while the file system reports errors. A full disk ends it at once."""
        failing_since = None
        while True:
            try:
                goes_on = self._pass()
            except OSError as e:
                if e.errno in FULL_DISK:
                    raise
                now, minutes = time.monotonic(), f"{FILES_PATIENCE_S / 60:.0f} min"
                if failing_since is None:
                    failing_since = now
                    self._notify(f"{e}; waiting for the file system for up to {minutes}")
                elif now - failing_since > FILES_PATIENCE_S:
                    raise StoreError(
                        f"{e}. The file system has reported errors for {minutes}. Published files are kept. "
                        "Start again when it works"
                    ) from e
                time.sleep(FILES_RETRY_S)
            else:
                if failing_since is not None:
                    self._notify("the file system works again")
                return goes_on

    def _pass(self) -> bool:
        """One pass of the loop. Returns False when a stop was requested."""
        self._require_claim()
        if self._stop_requested():
            return False
        self._submit_ready()
        self._events += self._executor.poll()
        self._require_claim()
        while self._events:
            self._handle(self._events.pop(0))
        return True

    def _finish(self) -> None:
        """Let the listeners complete what they write. They may find damage, so that a run is open again."""
        for progress in self._runs.values():
            for listener in self._listeners:
                if progress.finished:
                    self._inform(listener, progress, partial(listener.on_finished, progress))

    def _submit_ready(self) -> None:
        wanted = [(p.run, key) for p in self._runs.values() if p.open for key in p.ready() if key not in p.in_flight]
        wanted.sort(key=lambda item: item[1].iteration)  # so that all runs of a sweep advance together
        wanted = self._without_waiting_warmups(wanted)
        for task in self._executor.submit(wanted) if wanted else ():
            self._take(self._runs[task.run_id], task)

    def _without_waiting_warmups(self, wanted: list[tuple[Run, TaskKey]]) -> list[tuple[Run, TaskKey]]:
        """Leave out warm-ups that another run is computing; their tasks would wait for it with a GPU."""
        busy = {warmup_group(p.run, k) for p in self._runs.values() for k in p.in_flight if k.phase == WARMUP}
        chosen = []
        for run, key in wanted:
            if key.phase == WARMUP:
                group = warmup_group(run, key)
                if group in busy:
                    continue
                busy.add(group)
            chosen.append((run, key))
        return chosen

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
            self._inform(listener, progress, partial(listener.on_event, progress, event))

    def _inform(self, listener: Listener, progress: RunProgress, call: Callable[[], None]) -> None:
        """Call a listener. If it fails, the runs continue.

        Damage that it has found is treated as if a task had found it.
        """
        try:
            call()
        except manifests.DamagedError as e:
            self._report(listener, progress, e, "it is set aside and made again")
            key = shards.task_of_manifest(e.manifest_path) or progress.graph.tasks()[0]  # else the frozen problems
            self._fail(progress, key, Outcome(OutcomeKind.DAMAGED, str(e), manifest=str(e.manifest_path)))
        except Exception as e:  # noqa: BLE001 - the boundary: a display or a curve must not end a sweep
            self._report(listener, progress, e, "the sweep continues without it")

    def _report(self, listener: Listener, progress: RunProgress, error: Exception, then: str) -> None:
        """Report a failure of a listener once."""
        what = str(error) if isinstance(error, CoreHpcError) else f"{type(error).__name__}: {error}"
        failure = (type(listener).__name__, progress.run.run_id, what)
        if failure not in self._reported:
            self._reported.add(failure)
            self._notify(f"{failure[0]} of {failure[1]} failed: {what}; {then}")

    def _drop(self, progress: RunProgress, key: TaskKey) -> None:
        progress.in_flight.pop(key, None)
        progress.waiting.discard(key)

    def _confirm(self, progress: RunProgress, event: Done) -> Event:
        """The same event with the statistics of the manifest, or a failure when there is none."""
        path = progress.run.paths.task_manifest(event.task.key)
        try:
            manifest = manifests.read_manifest(path)
            check_counts(progress.run, event.task.key, manifest)
        except StoreError as e:
            damaged = str(e.manifest_path) if isinstance(e, manifests.DamagedError) else ""
            kind = OutcomeKind.DAMAGED if damaged else OutcomeKind.ERROR
            outcome = Outcome(kind, f"ended without publishing: {e}", log=event.log, manifest=damaged)
            return Failed(event.task, outcome)
        progress.add_published(event.task.key)
        return replace(event, stats=manifest.stats)

    def _fail(self, progress: RunProgress, key: TaskKey, outcome: Outcome) -> None:
        lost = self._set_aside(progress, Path(outcome.manifest)) if outcome.kind == OutcomeKind.DAMAGED else ""
        why = self._count(progress, key, outcome)
        if progress.stopped is None and (lost or why):
            progress.stopped = lost or why
            self._abandon(progress, progress.stopped)

    def _abandon(self, progress: RunProgress, why: str) -> None:
        for task in self._executor.abandon(progress.run, why):
            self._drop(progress, task.key)

    def _count(self, progress: RunProgress, key: TaskKey, outcome: Outcome) -> str:
        """Count a failed attempt.

        Returns:
            Why the run stops, if this was the last attempt; otherwise empty.
        """
        attempts = progress.attempts[key] = progress.attempts.get(key, 0) + outcome.counted
        progress.failures += outcome.counted
        if outcome.kind != OutcomeKind.FINAL and attempts < self._max_attempts:
            return ""
        trace = f"{outcome.traceback.rstrip()}\n" if outcome.traceback else ""
        return (
            f"{key} failed {attempts} time{'s' if attempts > 1 else ''}: {outcome.message}\n{trace}log: {outcome.log}"
        )

    def _set_aside(self, progress: RunProgress, manifest: Path) -> str:
        """Withdraw a damaged publication, unless it was replaced after the damage was reported.

        Damaged problems, and copies of adapters, are made again at once.

        Returns:
            Why the run cannot continue; empty if it can.
        """
        key, run = shards.task_of_manifest(manifest), progress.run
        try:
            if key is None:
                restore_problems(run)
                restore_adapters(run)
            else:
                check_publication(run, key)
        except manifests.DamagedError as e:
            if key is None or e.manifest_path != manifest:
                return self._set_aside(progress, e.manifest_path) if key is not None else str(e)
            with contextlib.suppress(FileNotFoundError):  # a resident job may have been faster
                manifests.set_aside(manifest)
            progress.withdraw(key)
        except StoreError as e:
            if key is None:
                return str(e)
            progress.withdraw(key)
        return ""


def cpu_seconds() -> float:
    """CPU time of this process and of the commands that it has waited for (squeue, sbatch)."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
