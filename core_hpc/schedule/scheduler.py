"""The controller's loop: ask `state` what is ready, hand it to an executor, reconcile with what is published.

In: runs and an executor. Out: for each run, finished or stopped with a reason. Published manifests are the only
truth: a task counts as done when its manifest can be read, whatever the executor said.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core_hpc.common.errors import StoreError
from core_hpc.schedule.base import Event, Executor, Listener, TaskRef
from core_hpc.schedule.progress import RunProgress
from core_hpc.store import manifests, shards
from core_hpc.store.paths import TaskKey


class Scheduler:
    """Drives runs to their end. A run that cannot go on stops; the others go on."""

    def __init__(
        self,
        runs: Sequence[RunProgress],
        executor: Executor,
        listeners: Sequence[Listener],
        *,
        max_attempts: int,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self._runs = {p.run.run_id: p for p in runs}
        self._executor = executor
        self._listeners = listeners
        self._max_attempts = max_attempts
        self._stop_requested = stop_requested

    def run(self) -> bool:
        """Until every run is finished or stopped (True), or until somebody asks to stop (False)."""
        for task in self._executor.adopt([p.run for p in self._runs.values()]):
            progress = self._runs[task.run_id]
            if task.key not in progress.published:
                self._take(progress, task)
        for progress in self._runs.values():
            progress.attempts = self._executor.attempts(progress.run)
        while any(p.open or p.in_flight for p in self._runs.values()):
            if self._stop_requested():
                return False
            self._submit_ready()
            for event in self._executor.poll():
                self._handle(event)
        return True

    def _submit_ready(self) -> None:
        wanted = [(p.run, key) for p in self._runs.values() if p.open for key in p.ready() if key not in p.in_flight]
        wanted.sort(key=lambda item: item[1].iteration)  # runs go side by side: the one that is behind comes first
        for task in self._executor.submit(wanted) if wanted else ():
            self._take(self._runs[task.run_id], task)

    def _take(self, progress: RunProgress, task: TaskRef) -> None:
        progress.in_flight[task.key] = time.monotonic()
        progress.waiting.add(task.key)

    def _handle(self, event: Event) -> None:
        progress = self._runs[event.task.run_id]
        key = event.task.key
        if event.kind in ("done", "failed"):
            progress.in_flight.pop(key, None)
        if event.kind == "done" and key in progress.published:
            return  # done twice, or seen published by this start before its executor was asked
        if event.kind == "waiting":
            progress.waiting.add(key)
        elif event.kind != "progress":
            progress.waiting.discard(key)
        if event.kind == "done":
            event = self._confirm(progress, event)
        if event.kind == "failed":
            self._fail(progress, key, event.fields)
        for listener in self._listeners:
            listener.on_event(progress, event)

    def _confirm(self, progress: RunProgress, event: Event) -> Event:
        path = progress.run.paths.task_manifest(event.task.key)
        try:
            manifest = manifests.read_manifest(path)
        except manifests.StoreError as e:
            kind = (
                {"kind": "damaged", "manifest": str(path)}
                if isinstance(e, manifests.DamagedError)
                else {"kind": "error"}
            )
            message = f"ended without publishing: {e}"
            return Event(
                event.task, "failed", {**kind, "message": message, "traceback": "", "log": event.fields.get("log", "")}
            )
        progress.add_published(event.task.key)
        return Event(event.task, "done", manifest.stats)

    def _fail(self, progress: RunProgress, key: TaskKey, fields: dict[str, Any]) -> None:
        counted = fields.get("counted", True)
        attempts = progress.attempts[key] = progress.attempts.get(key, 0) + counted
        progress.failures += counted
        if fields["kind"] == "damaged":
            self._set_aside(progress, Path(fields["manifest"]))
        if progress.stopped is None and (fields["kind"] == "final" or attempts >= self._max_attempts):
            progress.stopped = (
                f"{key} failed {attempts} time{'s' if attempts > 1 else ''}: {fields['message']}\n"
                f"{fields['traceback'].rstrip()}\nlog: {fields['log']}"
            )
            for task in self._executor.abandon(progress.run):
                progress.in_flight.pop(task.key, None)

    def _set_aside(self, progress: RunProgress, manifest: Path) -> None:
        """Withdraw a damaged publication. Looks again: another task may have reported it, and it may be made anew."""
        try:
            manifests.check_files(manifests.read_manifest(manifest), checksum=True)
        except manifests.DamagedError:
            with contextlib.suppress(FileNotFoundError):  # as above
                manifests.set_aside(manifest)
            progress.withdraw(shards.key_of_manifest(manifest))
        except StoreError:
            progress.withdraw(shards.key_of_manifest(manifest))


def cpu_seconds() -> float:
    """CPU time of this process and of the commands that it waited for (squeue, sbatch)."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
