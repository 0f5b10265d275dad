"""The packing of the driver `resident`: one job per run, which keeps its GPUs and warm workers.

A job gets all open tasks of its run and orders them itself (`slurm/resident_job.py`). This module
reports what the job publishes, passes on the failures in its status file, and packs its successor
if the job ends before its run. A failure inside the job counts as under the other drivers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core_hpc.config.slurm import SlurmSection
from core_hpc.runs.events import Done, Event, Failed, Progressed, Released, Started, TaskRef, Waiting
from core_hpc.runs.folder import Run
from core_hpc.runs.job_status import JobStatus
from core_hpc.runs.outcome import Outcome, OutcomeKind
from core_hpc.slurm.outcomes import of_failure
from core_hpc.slurm.packing import Batch, Wanted
from core_hpc.slurm.remedies import Remedies
from core_hpc.slurm.watch import OpenSubmission, Sighting, SightingKind
from core_hpc.store import shards
from core_hpc.store.paths import TaskKey


class ResidentPacking:
    """At most one open job per run."""

    def __init__(self, settings: SlurmSection) -> None:
        self._settings = settings
        self._running: dict[str, set[str]] = {}
        """By submission: tasks in progress when its status was read last."""
        self._num_failures: dict[tuple[str, float], int] = {}
        """How many failures inside a job were passed on, by submission and start of the job (SLURM
        may start it again)."""

    def covered(self, wanted: Wanted, jobs: Sequence[OpenSubmission]) -> tuple[list[TaskRef], list[Event]]:
        by_run = {item.run.run_id: item for item in reversed(jobs)}
        taken: list[TaskRef] = []
        events: list[Event] = []
        for run, key in wanted:
            item = by_run.get(run.run_id)
            if item is not None and item.is_left(0, key):
                taken.append(TaskRef(run.run_id, key))
                if str(key) in self._running.get(item.submission.name, ()):
                    events.append(Started(taken[-1]))
        return taken, events

    def batches(self, wanted: Wanted, jobs: Sequence[OpenSubmission], remedies: Remedies) -> list[Batch]:
        """A job with all open tasks for each run that has none."""
        with_job = {item.run.run_id for item in jobs}
        by_run: dict[str, tuple[Run, set[TaskKey]]] = {}
        for run, key in wanted:
            if run.run_id not in with_job:
                by_run.setdefault(run.run_id, (run, set()))[1].add(key)
        batches = []
        for run, keys in by_run.values():
            published = set(shards.published_keys(run.root))
            # The scheduler must hear about the wanted tasks, even if they were published meanwhile.
            left = [key for key in run.graph().tasks() if key in keys or key not in published]
            mem_gb = remedies.memory_gb(
                [TaskRef(run.run_id, key) for key in left], self._settings.job("resident")["mem_gb"]
            )
            batches.append(Batch(run, "resident", f"resident-{left[0].iteration:04d}", [left], mem_gb))
        return batches

    def adopted(self, jobs: Sequence[OpenSubmission], start_id: str) -> tuple[list[TaskRef], list[Failed], list[Event]]:
        """No task is in flight: the scheduler offers ready tasks, and `covered` takes them."""
        inside: list[Failed] = []
        events: list[Event] = []
        for item in jobs:
            run_id = item.run.run_id
            for key in [key for key in shards.published_keys(item.run.root) if item.is_left(0, key)]:
                item.seen(0, key)
                events.append(Done(TaskRef(run_id, key), str(item.log(0))))
            if (status := item.status(0)) is not None:
                failures = self._new_failures(item, status)
                if item.submission.start_id == start_id:
                    inside += failures
        return [], inside, events

    def seen(self, sighting: Sighting) -> list[Event]:
        item, run_id = sighting.item, sighting.item.run.run_id
        if sighting.kind == SightingKind.WAITING:
            return [Waiting(task) for task in item.tasks_left(0)]
        if sighting.status is None:
            return []
        running, name = sighting.status.running, item.submission.name
        before = self._running.get(name, set())
        self._running[name] = set(running)
        events: list[Event] = []
        for text, at in running.items():
            task = TaskRef(run_id, TaskKey.parse(text))
            if not item.is_left(0, task.key):
                continue
            if text not in before:
                events.append(Started(task))
            if at.progress is not None:
                events.append(Progressed(task, at.progress))
        return events + self._failures_inside(item, sighting.status)

    def _failures_inside(self, item: OpenSubmission, status: JobStatus) -> list[Event]:
        """Tasks that failed inside the job since the last time. What they found damaged is made again."""
        failures = self._new_failures(item, status)
        for failed in failures:
            if failed.outcome.manifest:
                damaged = shards.task_of_manifest(Path(failed.outcome.manifest))  # None: the frozen problems
                if damaged is not None and not item.is_left(0, damaged):
                    item.withdrawn(0, damaged)
        return list(failures)

    def _new_failures(self, item: OpenSubmission, status: JobStatus) -> list[Failed]:
        """Tasks that failed inside the job since the last time."""
        job, run_id = (item.submission.name, status.started), item.run.run_id
        known, self._num_failures[job] = self._num_failures.get(job, 0), len(status.failures)
        return [
            Failed(TaskRef(run_id, TaskKey.parse(failure.task)), of_failure(failure, status.node, ""))
            for failure in status.failures[known:]
        ]

    def ended(self, item: OpenSubmission, index: int, outcome: Outcome) -> list[Event]:
        """The task at which the job ended has failed. The others are released for the next job."""
        events: list[Event] = []
        failed_inside = False
        if (status := item.status(0)) is not None:
            events += self._failures_inside(item, status)
            failed_inside = bool(status.failures)
        # When the job gave up, the scheduler has counted the same failures.
        counted_already = outcome.kind == OutcomeKind.GAVE_UP and failed_inside
        left = item.tasks_left(0)
        if outcome.task and not counted_already:
            failed = TaskRef(item.run.run_id, TaskKey.parse(outcome.task))
            events.append(Failed(failed, outcome))
            left = [task for task in left if task != failed]
        return [*events, *(Released(task) for task in left)]

    def ended_at(self, item: OpenSubmission, index: int, outcome: Outcome) -> str:
        """The task that the job named, or else the first that is left."""
        return outcome.task or next((str(task.key) for task in item.tasks_left(index)), "")

    def ends_with_its_run(self, item: OpenSubmission, index: int) -> bool:
        return True
