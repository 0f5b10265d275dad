"""What is published -> what is to be done next. Pure: no I/O, no clock.

The tasks of a run form a fixed graph, known from the configuration alone; a task is ready when everything that it
reads is published. A longer run is a larger graph, so going on is the same as starting.

    update i-1 -> cold i (model, part) -> hint i (part) -> rescue i (model, part) -> score i (part) -> update i (model)
    update e -> evaluate e (model, part)           (e = 0: base weights, reads nothing)
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass

from core_hpc.config.run import RunConfig
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, EVALUATE, HINT, RESCUE, SCORE, UPDATE


@dataclass(frozen=True)
class Graph:
    """The shape of a run's task graph."""

    models: tuple[str, ...]
    iterations: int
    num_parts: int
    num_evaluation_parts: int
    evaluate_every: int
    evaluate_before: bool
    has_rescue: bool

    @classmethod
    def of(cls, config: RunConfig, *, num_evaluation_problems: int) -> Graph:
        """Graph of a run; the number of evaluation problems is known once the splits are frozen."""
        protocol = config.protocol
        return cls(
            models=tuple(m.name for m in config.team),
            iterations=config.iterations,
            num_parts=_ceil_div(protocol.problems_per_iteration, protocol.problems_per_part),
            num_evaluation_parts=_ceil_div(num_evaluation_problems, protocol.problems_per_part),
            evaluate_every=config.evaluation.every,
            evaluate_before=config.evaluation.before,
            has_rescue=protocol.rescue_samples > 0,
        )

    def evaluated(self) -> list[int]:
        """Iterations after which the team is evaluated; 0 is before the first."""
        every = self.evaluate_every
        later = [i for i in range(1, self.iterations + 1) if i == self.iterations or (every and i % every == 0)]
        return [0, *later] if self.evaluate_before else later

    def tasks(self) -> tuple[TaskKey, ...]:
        """All tasks, in an order in which each comes after what it reads."""
        return _tasks(self)

    def tasks_of(self, iteration: int) -> list[TaskKey]:
        """Tasks of one iteration, in the order of `tasks`; those of iteration 0 evaluate the untrained models."""
        out = []
        if iteration > 0:
            parts = range(self.num_parts)
            out += [TaskKey(iteration, COLD, m, p) for p in parts for m in self.models]
            if self.has_rescue:
                out += [TaskKey(iteration, HINT, TEAM, p) for p in parts]
                out += [TaskKey(iteration, RESCUE, m, p) for p in parts for m in self.models]
            out += [TaskKey(iteration, SCORE, TEAM, p) for p in parts]
            out += [TaskKey(iteration, UPDATE, m) for m in self.models]
        if iteration in self.evaluated():
            out += self._evaluations(iteration)
        return out

    def _evaluations(self, iteration: int) -> list[TaskKey]:
        return [TaskKey(iteration, EVALUATE, m, p) for p in range(self.num_evaluation_parts) for m in self.models]

    def inputs(self, key: TaskKey) -> list[TaskKey]:
        """Tasks whose publications the task reads."""
        i, p = key.iteration, key.part
        if key.phase == EVALUATE:
            return [TaskKey(i, UPDATE, key.model)] if i > 0 else []
        adapter = [TaskKey(i - 1, UPDATE, key.model)] if i > 1 else []
        cold = [TaskKey(i, COLD, m, p) for m in self.models]
        if key.phase == COLD:
            return adapter
        if key.phase == HINT:
            return cold
        if key.phase == RESCUE:
            return [*adapter, TaskKey(i, HINT, TEAM, p)]
        rescue = [TaskKey(i, RESCUE, m, p) for m in self.models] if self.has_rescue else []
        if key.phase == SCORE:
            return cold + rescue
        parts = range(self.num_parts)
        own = [
            TaskKey(i, phase, key.model, q) for phase in ((COLD, RESCUE) if self.has_rescue else (COLD,)) for q in parts
        ]
        return [*adapter, *own, *(TaskKey(i, SCORE, TEAM, q) for q in parts)]

    def ready(self, published: Collection[TaskKey]) -> list[TaskKey]:
        """Unpublished tasks whose inputs are all published, most urgent first."""
        done = set(published)
        rest = [key for key in self.tasks() if key not in done]
        # Nothing beyond the iteration after the first unfinished one can be ready: its adapters are missing.
        last = 1 + min((key.iteration for key in rest if key.phase != EVALUATE), default=self.iterations)
        return [key for key in rest if key.iteration <= last and all(k in done for k in self.inputs(key))]

    def finished(self, published: Collection[TaskKey]) -> bool:
        """Whether everything that the graph asks for is published."""
        return all(key in published for key in self.tasks())


@functools.lru_cache(maxsize=256)
def _tasks(graph: Graph) -> tuple[TaskKey, ...]:
    """Kept: a graph may have thousands of tasks, and is asked for them again and again."""
    return tuple(key for i in range(graph.iterations + 1) for key in graph.tasks_of(i))


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def steps_per_iteration(config: RunConfig) -> int:
    """Optimizer steps of one model in one iteration."""
    return _ceil_div(config.protocol.problems_per_iteration, config.update.problems_per_step)


@dataclass(frozen=True)
class Horizon:
    """From which iteration on the learning-rate schedule reckons with how many iterations in all."""

    from_iteration: int
    iterations: int


def extend_horizon(horizons: list[Horizon], iterations: int, published: Collection[TaskKey]) -> list[Horizon]:
    """Horizons after a start which asks for so many iterations.

    What has been updated keeps the schedule that it was updated under: a new horizon holds from the first iteration
    that no model has updated yet. A start that asks for fewer iterations than before changes nothing.
    """
    if horizons and iterations <= horizons[-1].iterations:
        return horizons
    first_open = 1 + max((k.iteration for k in published if k.phase == UPDATE), default=0)
    kept = [h for h in horizons if h.from_iteration < first_open]
    return [*kept, Horizon(first_open, iterations)]


def horizon_at(horizons: list[Horizon], iteration: int) -> int:
    """Iterations that the schedule reckons with in an iteration's update."""
    return next(h.iterations for h in reversed(horizons) if h.from_iteration <= iteration)
