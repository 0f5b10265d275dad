"""The driver `arrays`: what is ready at one moment becomes one job array per run, phase and iteration.

In: tasks that are ready. Out: submissions, and events of each task. Everything that does not depend on what is in an
element is executor.py's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from core_hpc.executors import Event, TaskRef
from core_hpc.paths import TaskKey
from core_hpc.runs import Run
from core_hpc.schema import GENERATION_PHASES
from core_hpc.slurm.executor import SlurmExecutor, failure_fields
from core_hpc.slurm.outcomes import Outcome
from core_hpc.slurm.submissions import group_of
from core_hpc.slurm.watch import OpenSubmission, Sighting


class ArraysExecutor(SlurmExecutor):
    """An element does one task, or some parts of one model one after the other."""

    def submit(self, wanted: Sequence[tuple[Run, TaskKey]]) -> list[TaskRef]:
        """Submit arrays within the limits; what does not fit is asked for again later."""
        taken: list[TaskRef] = []
        if time.time() < self._refused_until:
            return taken
        for run, keys, mem_gb in self._batches(wanted):
            group, what = group_of(keys[0].phase), f"{keys[0].phase}-{keys[0].iteration:04d}"
            limits = self._limits(group)
            if limits is None:
                break
            max_array, room = limits
            elements = self._elements(keys)
            for first in range(0, min(len(elements), room), max_array):
                array = elements[first : min(first + max_array, room)]
                if not self._submit(run, group, what, array, mem_gb):
                    return taken
                taken += [TaskRef(run.run_id, key) for element in array for key in element]
            if len(elements) > room:
                self._say_full(room)
                break
        return taken

    def _batches(self, wanted: Sequence[tuple[Run, TaskKey]]) -> list[tuple[Run, list[TaskKey], float]]:
        """Tasks that become one array: same run, phase, iteration, memory."""
        batches: dict[tuple[str, str, int, float], tuple[Run, list[TaskKey], float]] = {}
        for run, key in wanted:
            mem_gb = self._mem_gb.get(TaskRef(run.run_id, key), self._settings.job(group_of(key.phase))["mem_gb"])
            batch = batches.setdefault((run.run_id, key.phase, key.iteration, mem_gb), (run, [], mem_gb))
            batch[1].append(key)
        return list(batches.values())

    def _elements(self, keys: Sequence[TaskKey]) -> list[list[TaskKey]]:
        """Parts of one model may share an element, whose engine then stays warm."""
        size = self._settings.generate.parts_per_job if keys[0].phase in GENERATION_PHASES else 1
        by_model: dict[str, list[TaskKey]] = {}
        for key in keys:
            by_model.setdefault(key.model, []).append(key)
        return [own[at : at + size] for own in by_model.values() for at in range(0, len(own), size)]

    def _take_over(self) -> list[TaskRef]:
        taken = _tasks_left(self._watch.open)
        if taken:
            self._notify(f"{len(taken)} task(s) of an earlier start are still with SLURM; taking them over")
        return taken

    def _dropped(self, run: Run) -> list[TaskRef]:
        return _tasks_left([o for o in self._watch.open if o.run.run_id == run.run_id])

    def _ends_with_its_run(self, item: OpenSubmission, index: int) -> bool:
        return index not in item.running

    def _under_way(self, sighting: Sighting) -> None:
        run_id = sighting.item.run.run_id
        if sighting.kind != "status":
            self._events += [Event(task, sighting.kind, {}) for task in sighting.item.tasks_left(sighting.index)]
        elif shown := (sighting.status or {}).get("progress"):
            fields = {name: shown[name] for name in ("done", "total", "tokens")}
            self._events.append(Event(TaskRef(run_id, TaskKey.parse(shown["task"])), "progress", fields))

    def _tell(self, item: OpenSubmission, index: int, outcome: Outcome, *, log: str) -> None:
        fields = failure_fields(outcome, log=log)
        for number, task in enumerate(item.tasks_left(index)):
            # Only the first of them was being worked on; those after it never began.
            self._events.append(Event(task, "failed", fields if number == 0 else {**fields, "counted": False}))

    def _task_of(self, item: OpenSubmission, index: int, outcome: Outcome) -> str:
        left = item.tasks_left(index)
        return str(left[0].key) if left else ""


def _tasks_left(items: Sequence[OpenSubmission]) -> list[TaskRef]:
    return [task for item in items for index in item.submission.unresolved for task in item.tasks_left(index)]
