"""The driver `arrays`: what is ready at one moment becomes one job array per run, phase and iteration.

In: tasks that are ready. Out: submissions, and events of each task. Everything that does not depend on what is in an
element is executor.py's.

With `slurm.chain_wait_s` an element also does what follows for its model, so that an iteration waits twice in the queue
instead of five times, and an engine is loaded once: cold, hint and rescue of a part; score and update. What belongs to the whole
team stands in the elements of all models, and whichever comes to it first does it. These tasks are not ready when
they are submitted: the scheduler asks for them later, and is told that they are under way.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from core_hpc.runs.folder import Run
from core_hpc.runs.graph import Graph
from core_hpc.schedule.base import Event, TaskRef
from core_hpc.slurm.executor import SlurmExecutor, failure_fields
from core_hpc.slurm.outcomes import DONE, Outcome
from core_hpc.slurm.submit import group_of
from core_hpc.slurm.watch import OpenSubmission, Sighting
from core_hpc.store import shards
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, GENERATION_PHASES, HINT, RESCUE, SCORE, UPDATE

CHAINS = ((COLD, HINT, RESCUE), (SCORE, UPDATE))
"""Phases that one element does with `slurm.chain_wait_s`."""


class ArraysExecutor(SlurmExecutor):
    """An element does one task, some parts of one model one after the other, or a chain of phases of one model."""

    def submit(self, wanted: Sequence[tuple[Run, TaskKey]]) -> list[TaskRef]:
        """Submit arrays within the limits; what does not fit is asked for again later."""
        taken = self._under_way_already(wanted)
        if time.time() >= self._refused_until:
            taken += self._submit_arrays([(run, key) for run, key in wanted if TaskRef(run.run_id, key) not in taken])
        self._asked.update(taken)
        return taken

    def _under_way_already(self, wanted: Sequence[tuple[Run, TaskKey]]) -> list[TaskRef]:
        """Tasks that an open element does after others."""
        if self._settings.chain_wait_s is None:
            return []
        places = {
            task: (item, i)
            for item in self._watch.open
            for i in item.submission.unresolved
            for task in item.tasks_left(i)
        }
        taken = [task for run, key in wanted if (task := TaskRef(run.run_id, key)) in places]
        self._events += [Event(task, "started", {}) for task in taken if places[task][1] in places[task][0].running]
        return taken

    def _submit_arrays(self, wanted: Sequence[tuple[Run, TaskKey]]) -> list[TaskRef]:
        taken: list[TaskRef] = []
        for run, keys, mem_gb in self._batches(wanted):
            elements = self._elements(run, keys)
            group, what = group_of(elements[0][-1].phase), f"{keys[0].phase}-{keys[0].iteration:04d}"
            limits = self._limits(group)
            if limits is None:
                break
            max_array, room = limits
            for first in range(0, min(len(elements), room), max_array):
                array = elements[first : min(first + max_array, room)]
                if not self._submit(run, group, what, array, mem_gb or self._settings.job(group)["mem_gb"]):
                    return taken
                inside = {key for element in array for key in element}
                taken += [TaskRef(run.run_id, key) for key in keys if key in inside]
            if len(elements) > room:
                self._say_full(room)
                break
        return taken

    def _batches(self, wanted: Sequence[tuple[Run, TaskKey]]) -> list[tuple[Run, list[TaskKey], float | None]]:
        """Tasks that become one array: same run, phase, iteration, memory (None: as the profile says)."""
        batches: dict[tuple[str, str, int, float | None], tuple[Run, list[TaskKey], float | None]] = {}
        for run, key in wanted:
            mem_gb = self._mem_gb.get(TaskRef(run.run_id, key))
            batch = batches.setdefault((run.run_id, key.phase, key.iteration, mem_gb), (run, [], mem_gb))
            batch[1].append(key)
        return list(batches.values())

    def _elements(self, run: Run, keys: Sequence[TaskKey]) -> list[list[TaskKey]]:
        """Parts of one model may share an element, whose engine then stays warm."""
        phase, per_job = keys[0].phase, self._settings.generate.parts_per_job
        if self._settings.chain_wait_s is not None and any(phase in chain[:-1] for chain in CHAINS):
            published = set(shards.published_keys(run.root))
            if chains := chains_of(run.graph(), keys, published, per_job):
                return chains
        size = per_job if phase in GENERATION_PHASES else 1
        by_model: dict[str, list[TaskKey]] = {}
        for key in keys:
            by_model.setdefault(key.model, []).append(key)
        return [own[at : at + size] for own in by_model.values() for at in range(0, len(own), size)]

    def _take_over(self) -> list[TaskRef]:
        taken = _tasks_left(self._watch.open)
        self._asked.update(taken)
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
            self._events += [
                Event(task, sighting.kind, {})
                for task in sighting.item.tasks_left(sighting.index)
                if task in self._asked
            ]
        elif shown := (sighting.status or {}).get("progress"):
            fields = {name: shown[name] for name in ("done", "total", "tokens")}
            self._events.append(Event(TaskRef(run_id, TaskKey.parse(shown["task"])), "progress", fields))

    def _tell(self, item: OpenSubmission, index: int, outcome: Outcome, *, log: str) -> None:
        fields = failure_fields(outcome, log=log)
        for number, task in enumerate(item.tasks_left(index)):
            # Only the first of them was being worked on; those after it never began, and some were never asked for.
            if task in self._asked or (number == 0 and outcome.kind != DONE):
                self._events.append(Event(task, "failed", fields if number == 0 else {**fields, "counted": False}))
            self._asked.discard(task)

    def _task_of(self, item: OpenSubmission, index: int, outcome: Outcome) -> str:
        left = item.tasks_left(index)
        return str(left[0].key) if left else ""


def chains_of(graph: Graph, keys: Sequence[TaskKey], published: Collection[TaskKey], size: int) -> list[list[TaskKey]]:
    """Elements that begin with these tasks (of one phase) and go on with what follows; none where nothing does.

    `size`: parts of one element that samples; one that updates needs all of them. What the team needs once is in the elements
    of all models, from another part on in each, so that they share the work.
    """
    iteration, phase, chains = keys[0].iteration, keys[0].phase, list[list[TaskKey]]()
    if phase != SCORE and not graph.has_rescue:
        return []
    if phase == SCORE:
        if any(k.phase == SCORE and k not in published and k not in keys for k in graph.tasks_of(iteration)):
            return []
        size = len(keys)
    for number, model in enumerate(graph.models):
        parts = sorted(key.part for key in keys if key.model in (model, TEAM))
        for some in [parts[at : at + size] for at in range(0, len(parts), size)]:
            first = number * len(some) // len(graph.models)
            turned = [*some[first:], *some[:first]]
            if phase == SCORE:
                chain = [*(TaskKey(iteration, SCORE, TEAM, p) for p in turned), TaskKey(iteration, UPDATE, model)]
            else:
                chain = [TaskKey(iteration, COLD, model, p) for p in some if phase == COLD]
                for p in turned:
                    chain += [TaskKey(iteration, HINT, TEAM, p), TaskKey(iteration, RESCUE, model, p)]
            chains.append([key for key in chain if key not in published])
    return [chain for chain in chains if chain and chain[-1].phase in (RESCUE, UPDATE)]


def _tasks_left(items: Sequence[OpenSubmission]) -> list[TaskRef]:
    return [task for item in items for index in item.submission.unresolved for task in item.tasks_left(index)]
