"""The task graph of a run: from what is published to what is next.

The configuration fixes the graph. A task is ready when everything that it reads is published. A
longer run is a larger graph, so continuing a run is the same as starting one. This module has no
I/O and does not read the clock.

    warmup (model)     -> everything of the model, if the model has a warm-up
    update i-1 (model) -> cold i (model, part) -> hint i (part) -> rescue i (model, part)
                       -> score i (part) -> update i (model)
    score j (part)     -> cold i                          j < i, with protocol.choose: pass_rate
    update e (model)   -> evaluate e (model, part)        e = 0: base weights, reads nothing

With `protocol.staleness: 1` the first arrow comes from an earlier update:

    update i-2 (model), own last sampling of i-1 -> cold i (model, part)
    update i-1 (model), update i-2 (model)       -> update i (model)

So cold, hint and rescue of iteration i run while iteration i-1 is scored and updated. Iterations 1
and 2 both sample with the weights of the start. Cold and rescue of an iteration have the same
weights, those of `sampler`, so an iteration has one behaviour policy. The update of iteration i
starts from the newest weights, those after iteration i-1, and reads those that sampled only to
compare them with the engine (`phases/behaviour.py`). Cold i waits until its model has sampled all
of iteration i-1, although it does not read that: otherwise an engine would begin iteration i while
a rescue of iteration i-1, for which updates wait, is about to become ready. Scores that choose
problems are those until the iteration of the sampling weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from core_hpc.config.run import RunConfig
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, EVALUATE, HINT, OUTSIDE_ITERATIONS, RESCUE, SCORE, UPDATE, WARMUP


def sampler_of(iteration: int, staleness: int) -> int:
    """The iteration after which the weights were published that sample in an iteration.

    0 stands for the weights of the start.

    >>> [[sampler_of(i, staleness) for i in (1, 2, 3, 4)] for staleness in (0, 1)]
    [[0, 1, 2, 3], [0, 0, 1, 2]]
    """
    return max(0, iteration - 1 - staleness)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The shape of a run's task graph."""

    models: tuple[str, ...]
    iterations: int
    num_parts: int
    num_evaluation_parts: int
    evaluate_every: int
    evaluate_before: bool
    has_rescue: bool
    warmed: tuple[str, ...] = ()
    """The models with a warm-up."""
    chooses_by_scores: bool = False
    """Whether earlier scores decide about the problems of an iteration."""
    staleness: int = 0
    """How many updates the weights that sample are behind those that are updated."""

    @classmethod
    def of(cls, config: RunConfig, *, num_evaluation_problems: int) -> Graph:
        """The graph of a run. The number of evaluation problems is known once the splits exist."""
        protocol = config.protocol
        return cls(
            models=tuple(m.name for m in config.team),
            iterations=config.iterations,
            num_parts=config.num_parts,
            num_evaluation_parts=-(-num_evaluation_problems // protocol.problems_per_part),
            evaluate_every=config.evaluation.every,
            evaluate_before=config.evaluation.before,
            has_rescue=protocol.rescue_samples > 0,
            warmed=tuple(m.name for m in config.team if m.warmup is not None),
            chooses_by_scores=protocol.choose == "pass_rate",
            staleness=protocol.staleness,
        )

    def sampler(self, iteration: int) -> int:
        """`sampler_of` for an iteration of this run."""
        return sampler_of(iteration, self.staleness)

    def evaluated(self) -> list[int]:
        """The iterations after which the team is evaluated. 0 stands for the untrained models."""
        return [i for i in range(self.iterations + 1) if self._is_evaluated(i)]

    def _is_evaluated(self, iteration: int) -> bool:
        if iteration == 0:
            return self.evaluate_before
        every = self.evaluate_every
        return iteration == self.iterations or (every > 0 and iteration % every == 0)

    def tasks(self) -> tuple[TaskKey, ...]:
        """All tasks, ordered so that each task comes after the tasks that it reads."""
        return _tasks(self)

    def tasks_of(self, iteration: int) -> list[TaskKey]:
        """The tasks of one iteration, in the order of `tasks`. Iteration 0 has warm-ups and evaluations."""
        out = [TaskKey(0, WARMUP, m) for m in self.warmed] if iteration == 0 else []
        if iteration > 0:
            parts = range(self.num_parts)
            out += [TaskKey(iteration, COLD, m, p) for p in parts for m in self.models]
            if self.has_rescue:
                out += [TaskKey(iteration, HINT, TEAM, p) for p in parts]
                out += [TaskKey(iteration, RESCUE, m, p) for p in parts for m in self.models]
            out += [TaskKey(iteration, SCORE, TEAM, p) for p in parts]
            out += [TaskKey(iteration, UPDATE, m) for m in self.models]
        if self._is_evaluated(iteration):
            out += self._evaluations(iteration)
        return out

    def _evaluations(self, iteration: int) -> list[TaskKey]:
        return [TaskKey(iteration, EVALUATE, m, p) for p in range(self.num_evaluation_parts) for m in self.models]

    def inputs(self, key: TaskKey) -> list[TaskKey]:
        """The tasks whose publications this task reads, or must wait for."""
        i, p = key.iteration, key.part
        if key.phase == WARMUP:
            return []
        base = [TaskKey(0, WARMUP, key.model)] if key.model in self.warmed else []
        if key.phase == EVALUATE:
            return [*base, *self._update(key.model, i)]
        sampler = [*base, *self._update(key.model, self.sampler(i))]
        cold = [TaskKey(i, COLD, m, p) for m in self.models]
        if key.phase == COLD:
            waits = self._last_samples(key.model, i - 1) if self.staleness else []
            scored = range(1, self.sampler(i) + 1) if self.chooses_by_scores else ()
            return [*sampler, *waits, *(TaskKey(j, SCORE, TEAM, q) for j in scored for q in range(self.num_parts))]
        if key.phase == HINT:
            return cold
        if key.phase == RESCUE:
            return [*sampler, TaskKey(i, HINT, TEAM, p)]
        rescue = [TaskKey(i, RESCUE, m, p) for m in self.models] if self.has_rescue else []
        if key.phase == SCORE:
            return cold + rescue
        parts, phases = range(self.num_parts), (COLD, RESCUE) if self.has_rescue else (COLD,)
        own = [TaskKey(i, phase, key.model, q) for phase in phases for q in parts]
        newest = self._update(key.model, i - 1) if self.staleness else []
        return [*sampler, *newest, *own, *(TaskKey(i, SCORE, TEAM, q) for q in parts)]

    @staticmethod
    def _update(model: str, iteration: int) -> list[TaskKey]:
        """The update of a model in an iteration; none for the weights of the start."""
        return [TaskKey(iteration, UPDATE, model)] if iteration > 0 else []

    def _last_samples(self, model: str, iteration: int) -> list[TaskKey]:
        """The tasks with which a model ends the sampling of an iteration."""
        phase = RESCUE if self.has_rescue else COLD
        return [TaskKey(iteration, phase, model, p) for p in range(self.num_parts)] if iteration > 0 else []

    def ready(self, published: Collection[TaskKey], tasks: Collection[TaskKey] = ()) -> list[TaskKey]:
        """The unpublished tasks whose inputs are all published, the most urgent first.

        Args:
            tasks: those to choose from, the most urgent first; all of the graph unless given.
        """
        done = set(published)
        rest = [key for key in tasks or self.tasks() if key not in done]
        last = last_in_reach(rest, self.staleness)
        return [key for key in rest if key.iteration <= last and all(k in done for k in self.inputs(key))]

    def finished(self, published: Collection[TaskKey]) -> bool:
        """Whether all tasks are published."""
        return all(key in published for key in self.tasks())


@functools.lru_cache(maxsize=256)
def _tasks(graph: Graph) -> tuple[TaskKey, ...]:
    """Cached, because a graph may have thousands of tasks and callers ask for them often."""
    return tuple(key for i in range(graph.iterations + 1) for key in graph.tasks_of(i))


def last_in_reach(left: Iterable[TaskKey], staleness: int) -> float:
    """The last iteration in which one of the unpublished tasks can be ready.

    Evaluations hold no iteration back. With staleness s, sampling in iteration i needs an own update
    of iteration i-1-s. This update needs scores of its iteration, so all models have sampled there,
    with updates of iteration i-2-2s.
    """
    first = min((key.iteration for key in left if key.phase not in OUTSIDE_ITERATIONS), default=math.inf)
    return first + 1 + 2 * staleness


@dataclass(frozen=True)
class Horizon:
    """From `from_iteration` on, the learning rate is planned for `iterations` iterations in all."""

    from_iteration: int
    iterations: int


def extend_horizon(horizons: list[Horizon], iterations: int, begun: Collection[TaskKey]) -> list[Horizon]:
    """Return the horizons after a start with `iterations` iterations.

    All models of an iteration have the same schedule, so an iteration keeps it once the update of one
    model has begun. A new horizon holds from the first iteration without such an update. Once an
    update has begun, a start with fewer iterations than before changes nothing. Before, the run is
    as if it had started with this number.

    Args:
        begun: tasks that are published or may have read the horizons.
    """
    first_open = 1 + max((k.iteration for k in begun if k.phase == UPDATE), default=0)
    if first_open > 1 and horizons and iterations <= horizons[-1].iterations:
        return horizons
    kept = [h for h in horizons if h.from_iteration < first_open]
    return [*kept, Horizon(first_open, iterations)]


def horizon_at(horizons: list[Horizon], iteration: int) -> int:
    """Number of iterations for which the learning rate is planned in an update of `iteration`."""
    return next(h.iterations for h in reversed(horizons) if h.from_iteration <= iteration)
