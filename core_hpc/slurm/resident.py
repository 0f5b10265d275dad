"""The driver `resident`: one SLURM job a run, which keeps its GPUs and its warm workers over many iterations.

In: tasks that are ready. Out: submissions, and events of each task. A job is given all that is left of its run and decides
itself what comes when (resident_job.py); here its publications are seen, what it says of itself is passed on, and the
successor is submitted when it ends before its run. A failure that was tried again inside counts as under the other
drivers. Everything that does not depend on what is in a job is executor.py's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from core_hpc.config.cluster import ClusterSection
from core_hpc.runs.folder import Run
from core_hpc.schedule.base import Event, TaskRef
from core_hpc.slurm.commands import Slurm
from core_hpc.slurm.executor import SlurmExecutor, failure_fields
from core_hpc.slurm.outcomes import GAVE_UP, Outcome, of_failure
from core_hpc.slurm.watch import OpenSubmission, Sighting
from core_hpc.store import shards
from core_hpc.store.paths import TaskKey


class ResidentExecutor(SlurmExecutor):
    """At most one open job a run. A task that was asked for stays in flight until a job has done it, whichever that is."""

    def __init__(
        self,
        cluster: ClusterSection,
        slurm: Slurm,
        runs: Sequence[Run],
        *,
        start_id: str,
        notify: Callable[[str], None],
    ) -> None:
        super().__init__(cluster, slurm, runs, start_id=start_id, notify=notify)
        self._runs = {run.run_id: run for run in runs}
        self._shown: dict[str, set[str]] = {}
        """By submission: what was under way when its status was read last."""
        self._num_told: dict[tuple[str, float], int] = {}
        """By submission and start of its job (SLURM may start it again): how many failures inside were passed on."""

    # --- schedule.Executor -----------------------------------------------------------------------

    def submit(self, wanted: Sequence[tuple[Run, TaskKey]]) -> list[TaskRef]:
        """Take what the run's job will do; a run without a job gets one, as far as the limits allow."""
        by_run: dict[str, list[TaskKey]] = {}
        for run, key in wanted:
            by_run.setdefault(run.run_id, []).append(key)
        taken = []
        for run_id, keys in by_run.items():
            if self._job_of(run_id) is None:
                self._submit_job(run_id, keys)
            if (job := self._job_of(run_id)) is not None:
                taken += [TaskRef(run_id, key) for key in keys if job.is_left(0, key)]
        self._asked.update(taken)
        return taken

    def poll(self) -> list[Event]:
        for run_id in {task.run_id for task in self._asked}:
            if self._job_of(run_id) is None:  # its job has ended, and the run was not stopped for it
                self._submit_job(run_id, ())
        return super().poll()

    def _job_of(self, run_id: str) -> OpenSubmission | None:
        return next((item for item in self._watch.open if item.run.run_id == run_id), None)

    def _asked_of(self, run_id: str) -> list[TaskRef]:
        return [task for task in self._asked if task.run_id == run_id]

    def _submit_job(self, run_id: str, keys: Collection[TaskKey]) -> None:
        """Submit a job for all that is left of a run, with `keys` in any case."""
        if time.time() < self._refused_until or (limits := self._limits("resident")) is None:
            return
        if limits[1] < 1:
            self._say_full(0)
            return
        run, published = self._runs[run_id], set(shards.published_keys(self._runs[run_id].root))
        # Of these the scheduler must hear, even if they have been published meanwhile.
        wanted = {*keys, *(task.key for task in self._asked_of(run_id))}
        left = [key for key in run.graph().tasks() if key in wanted or key not in published]
        mem_gb = max(
            (gb for task, gb in self._mem_gb.items() if task.run_id == run_id),
            default=self._settings.job("resident")["mem_gb"],
        )
        self._submit(run, "resident", f"resident-{left[0].iteration:04d}", [left], mem_gb)

    # --- what is seen of a job -------------------------------------------------------------------

    def _take_over(self) -> list[TaskRef]:
        """No task is in flight for it: `submit` takes those that are ready."""
        for item in self._watch.open:
            run_id = item.run.run_id
            for key in [key for key in shards.published_keys(item.run.root) if item.is_left(0, key)]:
                item.seen(0, key)
                self._events.append(Event(TaskRef(run_id, key), "done", {"log": str(item.log(0))}))
            for failure in [f for status in item.status_files(0)[:1] for f in self._new_failures(item, status)]:
                if item.submission.start_id == self._start_id:
                    key, counts = TaskKey.parse(failure["task"]), self._attempts[run_id]
                    counts[key] = counts.get(key, 0) + 1
        if self._watch.open:
            self._notify(f"{len(self._watch.open)} job(s) of an earlier start are still with SLURM; taking them over")
        return []

    def _dropped(self, run: Run) -> list[TaskRef]:
        dropped = self._asked_of(run.run_id)
        self._asked.difference_update(dropped)
        return dropped

    def _ends_with_its_run(self, item: OpenSubmission, index: int) -> bool:
        return True

    def _under_way(self, sighting: Sighting) -> None:
        item, run_id = sighting.item, sighting.item.run.run_id
        if sighting.kind == "waiting":
            self._events += [Event(task, "waiting", {}) for task in self._asked_of(run_id)]
        elif sighting.status is not None:
            running, before = sighting.status.get("running", {}), self._shown.get(item.submission.name, set())
            self._shown[item.submission.name] = set(running)
            for text, at in running.items():
                task = TaskRef(run_id, TaskKey.parse(text))
                if not item.is_left(0, task.key):
                    continue
                if text not in before:
                    self._events.append(Event(task, "started", {}))
                if "done" in at:
                    self._events.append(
                        Event(task, "progress", {name: at[name] for name in ("done", "total", "tokens")})
                    )
            self._pass_on(item, sighting.status)

    def _pass_on(self, item: OpenSubmission, status: dict[str, Any]) -> bool:
        """Tell of tasks that failed inside since the last time; returns whether any has failed in this job so far."""
        run_id = item.run.run_id
        for failure in self._new_failures(item, status):
            task = TaskRef(run_id, TaskKey.parse(failure["task"]))
            fields = failure_fields(of_failure(failure, status["node"], ""), log=failure["log"])
            if "manifest" in fields and not item.is_left(
                0, damaged := shards.key_of_manifest(Path(fields["manifest"]))
            ):
                item.withdrawn(0, damaged)
            self._asked.discard(task)
            self._events.append(Event(task, "failed", fields))
        return bool(status.get("failures"))

    def _new_failures(self, item: OpenSubmission, status: dict[str, Any]) -> list[dict[str, Any]]:
        job, failures = (item.submission.name, status["started"]), status.get("failures", [])
        told, self._num_told[job] = self._num_told.get(job, 0), len(failures)
        return list(failures[told:])

    def _tell(self, item: OpenSubmission, index: int, outcome: Outcome, *, log: str) -> None:
        """The task that the job ended at has failed; the others are in flight still: the successor does them."""
        run_id = item.run.run_id
        failed_inside = any(self._pass_on(item, status) for status in item.status_files(0)[:1])
        if (outcome.kind == GAVE_UP and failed_inside) or not outcome.task:
            return  # the scheduler outside has counted the same failures; or all is published
        task = TaskRef(run_id, TaskKey.parse(outcome.task))
        self._asked.discard(task)
        self._events.append(Event(task, "failed", failure_fields(outcome, log=log)))
        self._events += [Event(other, "waiting", {}) for other in self._asked_of(run_id)]

    def _task_of(self, item: OpenSubmission, index: int, outcome: Outcome) -> str:
        """The task that it named, or else the first that was asked for."""
        left = item.tasks_left(index)
        asked = [task for task in left if task in self._asked]
        return outcome.task or next((str(task.key) for task in asked or left), "")
