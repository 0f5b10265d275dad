"""The estimate of the time left, for the live display and for `status`.

In: published tasks with their times. Out: seconds. The cost of a task is the mean cost of ended
tasks of the same phase and model, or of the same phase. If there are none, it is computed from the
cost of a completion in other tasks. The work that is left is divided by the mean number of tasks
that ran at the same time. An estimate costs the same for a sweep of any length: tasks that are
open are counted by kind, and of those that ended only the latest are placed in time. The live
display estimates in another thread than the one that adds tasks, so loops are over copies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core_hpc.problems.sets import num_samples
from core_hpc.problems.splits import EVALUATION, warmup_split
from core_hpc.runs.folder import Run
from core_hpc.runs.outcome import Progress
from core_hpc.store.paths import TEAM, Kind, TaskKey
from core_hpc.store.schema import COLD, EVALUATE, GENERATION_PHASES, HINT, RESCUE, SCORE, UPDATE, WARMUP

START_UP = ("import", "prepare", "load", "compile", "read")
"""Parts of a task's time that a warm worker does not spend again."""
PAUSE_S = 60.0
"""A gap without any task counts up to the length of the longest task plus this; a longer gap is an
interruption."""
RECENT_TASKS = 500
"""How many of the tasks that ended last show how many run at the same time."""
RESCUED_SHARE = 0.2
UPDATE_COST = 2.0
"""Assumptions until such a task has ended: the share of completions that are rescued, and the time
to update on a completion in units of the time to sample it."""


@dataclass(frozen=True)
class FinishedTask:
    """When a task ran, and what it did.

    Attributes:
        begin: seconds since 1970, like `end`.
        work_s: its time without start-up.
        num_completions: completions that it sampled.
        generate_s: time of the sampling.
    """

    begin: float
    end: float
    work_s: float
    num_completions: int = 0
    generate_s: float = 0.0

    @classmethod
    def of(cls, stats: Mapping[str, Any], end: float) -> FinishedTask:
        """Read the statistics of a manifest that was written at the time `end`."""
        seconds: Mapping[str, float] = stats.get("seconds", {})
        work_s = sum(spent for name, spent in seconds.items() if name not in START_UP)
        begin = end - sum(seconds.values())
        return cls(begin, end, work_s, stats.get("num_completions", 0), seconds.get("generate", 0.0))


def expected_completions(run: Run, num_evaluation_problems: int) -> dict[str, float]:
    """Completions of one task, by phase.

    For an update or a warm-up it is the number of completions that could be sampled in its time.
    """
    config, graph = run.config, run.graph()
    cold = config.protocol.problems_per_iteration * config.protocol.cold_samples / graph.num_parts
    completions = num_evaluation_problems * config.evaluation.samples
    if config.evaluation.sets:
        completions = int(run.split(EVALUATION).select(num_samples(config)).to_series().sum())
    evaluated = completions / max(1, graph.num_evaluation_parts)
    update = UPDATE_COST * cold * graph.num_parts
    examples = [run.num_problems(warmup_split(name)) for name in graph.warmed]
    warmup = UPDATE_COST * max(examples, default=0)
    return {COLD: cold, RESCUE: RESCUED_SHARE * cold, UPDATE: update, EVALUATE: evaluated} | {
        WARMUP: warmup,
        HINT: 0.0,
        SCORE: 0.0,
    }


class TaskCosts:
    """The costs of the tasks that have ended so far."""

    def __init__(self, *, warm: bool) -> None:
        """`warm`: workers stay warm, so that start-up is not paid again."""
        self._warm = warm
        self._spans: deque[tuple[float, float]] = deque(maxlen=RECENT_TASKS)
        self._spent: dict[Kind, tuple[int, float]] = {}
        """Number of ended tasks, and their cost together; with the model "" of all models."""
        self._s_per_completion: dict[str, tuple[int, float]] = {}

    def add(self, key: TaskKey, task: FinishedTask) -> None:
        self._spans.append((task.begin, task.end))
        cost = task.work_s if self._warm else task.end - task.begin
        for kind in (key.kind, (key.phase, "")):
            num_before, spent_before = self._spent.get(kind, (0, 0.0))
            self._spent[kind] = num_before + 1, spent_before + cost
        # A few completions do not show the speed of many, so the largest task counts.
        num = task.num_completions
        if key.phase in GENERATION_PHASES and num and num >= self._s_per_completion.get(key.model, (0, 0.0))[0]:
            self._s_per_completion[key.model] = (num, task.generate_s / num)

    def estimate_s(self, kind: Kind, expected: Mapping[str, float]) -> float | None:
        """Seconds of an open task of a kind; None while no similar task has ended."""
        phase, model = kind
        if ended := self._spent.get(kind) or self._spent.get((phase, "")):
            num, spent = ended
            return spent / num
        if model == TEAM:
            return 0.0
        known = {model: seconds for model, (_, seconds) in tuple(self._s_per_completion.items())}
        if not known:
            return None
        return expected[phase] * known.get(model, max(known.values()))

    def work_s(
        self, num_open: Mapping[Kind, int], expected: Mapping[str, float], running: Mapping[TaskKey, Progress]
    ) -> float | None:
        """Seconds of work in open tasks; None while the cost of some kind of task is not known.

        Args:
            num_open: open tasks by kind.
            expected: completions of a task by phase (`expected_completions`).
            running: tasks that run; the work that they have done already is subtracted.
        """
        work, costs = 0.0, {}
        for kind, num in tuple(num_open.items()):
            if not num:
                continue
            cost = self.estimate_s(kind, expected)
            if cost is None:
                return None
            costs[kind] = cost
            work += num * cost
        # A running task may have been published a moment ago, as the last one of its kind.
        done = sum(costs.get(k.kind, 0.0) * at.done / max(1, at.total) for k, at in running.items())
        return max(0.0, work - done)

    def concurrency(self) -> float:
        """Mean number of tasks that ran at the same time; 1 when nothing has ended yet."""
        spans = sorted(self._spans)
        if not spans:
            return 1.0
        longest, covered, until = max(end - begin for begin, end in spans), 0.0, -float("inf")
        for begin, end in spans:
            pause = min(max(0.0, begin - until), longest + PAUSE_S) if until > 0 else 0.0
            covered += max(0.0, end - max(begin, until)) + pause
            until = max(until, end)
        return sum(end - begin for begin, end in spans) / max(1e-9, covered)
