"""The packing of the driver `arrays`: tasks that are ready at the same time become job arrays.

In: tasks that are ready. Out: one array per run, phase and iteration. With `slurm.chain_wait_s`
(chained arrays) an element also does the tasks that follow for its model: cold, hint and rescue of
a part; score and update. An iteration then waits in the queue twice instead of five times, and an
engine is loaded once. Tasks of the whole team are in the elements of all models, and the element
that reaches such a task first does it. The tasks that follow are not ready when they are submitted.
The scheduler offers them later, and then an open job covers them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from core_hpc.config.slurm import SlurmSection
from core_hpc.runs.events import Event, Failed, Progressed, Released, Started, TaskRef, Waiting
from core_hpc.runs.folder import Run
from core_hpc.runs.graph import Graph
from core_hpc.runs.outcome import Outcome, OutcomeKind
from core_hpc.slurm.packing import Batch, Wanted
from core_hpc.slurm.remedies import Remedies
from core_hpc.slurm.submit import group_of
from core_hpc.slurm.watch import OpenSubmission, Sighting, SightingKind
from core_hpc.store import shards
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, GENERATION_PHASES, HINT, RESCUE, SCORE, UPDATE

CHAINS = ((COLD, HINT, RESCUE), (SCORE, UPDATE))
"""Phases that one element of a chained array does."""


class ArrayPacking:
    """An element does one task, or some parts of one model one after the other."""

    def __init__(self, settings: SlurmSection) -> None:
        self._settings = settings

    def covered(self, wanted: Wanted, jobs: Sequence[OpenSubmission]) -> tuple[list[TaskRef], list[Event]]:
        return [], []

    def batches(self, wanted: Wanted, jobs: Sequence[OpenSubmission], remedies: Remedies) -> list[Batch]:
        """One batch per run, phase, iteration and amount of memory."""
        together: dict[tuple[str, str, int, float], tuple[Run, list[TaskKey]]] = {}
        for run, key in wanted:
            task, default = TaskRef(run.run_id, key), self._settings.job(group_of(key.phase))["mem_gb"]
            alike = (run.run_id, key.phase, key.iteration, remedies.memory_gb([task], default))
            together.setdefault(alike, (run, []))[1].append(key)
        batches = []
        for (_, phase, iteration, _), (run, keys) in together.items():
            elements = self._elements(run, keys)
            group = group_of(elements[0][-1].phase)
            tasks = [TaskRef(run.run_id, key) for element in elements for key in element]  # more than `keys` in chains
            mem_gb = remedies.memory_gb(tasks, self._settings.job(group)["mem_gb"])
            batches.append(Batch(run, group, f"{phase}-{iteration:04d}", elements, mem_gb))
        return batches

    def _elements(self, run: Run, keys: Sequence[TaskKey]) -> list[list[TaskKey]]:
        """Parts of one model may share an element, whose engine then stays warm."""
        size = self._settings.generate.parts_per_job if keys[0].phase in GENERATION_PHASES else 1
        by_model: dict[str, list[TaskKey]] = {}
        for key in keys:
            by_model.setdefault(key.model, []).append(key)
        return [own[at : at + size] for own in by_model.values() for at in range(0, len(own), size)]

    def adopted(self, jobs: Sequence[OpenSubmission], start_id: str) -> tuple[list[TaskRef], list[Failed], list[Event]]:
        tasks = [task for item in jobs for index in item.submission.unresolved for task in item.tasks_left(index)]
        return tasks, [], []

    def seen(self, sighting: Sighting) -> list[Event]:
        item, index = sighting.item, sighting.index
        if sighting.kind == SightingKind.STARTED:
            return [Started(task) for task in item.tasks_left(index)]
        if sighting.kind == SightingKind.WAITING:
            return [Waiting(task) for task in item.tasks_left(index)]
        if sighting.status is None or sighting.status.progress is None:
            return []
        text, at = sighting.status.progress
        if at.progress is None:
            return []
        return [Progressed(TaskRef(item.run.run_id, TaskKey.parse(text)), at.progress)]

    def ended(self, item: OpenSubmission, index: int, outcome: Outcome) -> list[Event]:
        """The first task that is left was the one being worked on; those after it never began."""
        left = item.tasks_left(index)
        released: list[Event] = [Released(task) for task in left]
        if not left or outcome.kind == OutcomeKind.DONE:  # its other tasks are left to another job
            return released
        return [Failed(left[0], outcome), *released[1:]]

    def ended_at(self, item: OpenSubmission, index: int, outcome: Outcome) -> str:
        left = item.tasks_left(index)
        return str(left[0].key) if left else ""

    def ends_with_its_run(self, item: OpenSubmission, index: int) -> bool:
        return index not in item.running


class ChainedPacking(ArrayPacking):
    """An element does a chain of phases of one model."""

    def covered(self, wanted: Wanted, jobs: Sequence[OpenSubmission]) -> tuple[list[TaskRef], list[Event]]:
        """Tasks that an open element does after others."""
        places = {
            task: (item, index)
            for item in jobs
            for index in item.submission.unresolved
            for task in item.tasks_left(index)
        }
        taken = [task for run, key in wanted if (task := TaskRef(run.run_id, key)) in places]
        running = [task for task in taken if places[task][1] in places[task][0].running]
        return taken, [Started(task) for task in running]

    def _elements(self, run: Run, keys: Sequence[TaskKey]) -> list[list[TaskKey]]:
        if any(keys[0].phase in chain[:-1] for chain in CHAINS):
            published = set(shards.published_keys(run.root))
            if chains := chains_of(run.graph(), keys, published, self._settings.generate.parts_per_job):
                return chains
        return super()._elements(run, keys)


def chains_of(graph: Graph, keys: Sequence[TaskKey], published: Collection[TaskKey], size: int) -> list[list[TaskKey]]:
    """Elements that begin with these tasks and continue with the tasks that follow.

    Tasks of the whole team are in the elements of all models. Each model begins with another part,
    so that the elements share this work.

    Args:
        keys: tasks of one phase and iteration.
        published: an update whose weights are not among it is left out, because its element would
            wait for them with a GPU (`protocol.staleness`). The scheduler offers it later.
        size: parts of one element that samples; an element that updates needs all of them.

    Returns:
        Task keys of each element; an empty list if no task follows.
    """
    iteration, phase, chains = keys[0].iteration, keys[0].phase, list[list[TaskKey]]()
    if phase != SCORE and not graph.has_rescue:
        return []
    if phase == SCORE:
        if any(k.phase == SCORE and k not in published and k not in keys for k in graph.tasks_of(iteration)):
            return []
        size = len(keys)
    for number, model in enumerate(graph.models):
        if phase == SCORE and iteration > 1 and TaskKey(iteration - 1, UPDATE, model) not in published:
            continue
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
