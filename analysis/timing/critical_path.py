"""The critical path of an iteration: what the iteration was waiting for at each moment.

The input is `TaskTime`s: when each published task of a run ran, and what it did. The output is
`Segment`s, each with the name of an item of `ITEMS`. They follow each other without a gap, from the
first event of an iteration (a submission to SLURM, the start of a process or of a task) to its last
publication. This module reads no file; `timing/recorded.py` reads the manifests.

The path is followed backwards. It starts with the task that ended last. The task before it is the
one that it had to wait for: among the tasks whose output it reads and the earlier tasks of its
process, the one that ended last. This is repeated until the first event. Times are those of the
host of each task. If two clocks contradict the order of the tasks, a task gets less time, but never
negative time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import EVALUATE, OUTSIDE_ITERATIONS

Name = TypeVar("Name", bound=str | tuple[str, str])

QUEUE, START, EVALUATION, OTHER_ITERATION = "queue", "start", "evaluation", "another iteration"
OTHER_MODEL, OTHER_PART, IDLE = "another model", "another part", "idle"
GENERATE, LOG_PROBS, TRAIN = "generate", "log-probabilities", "train"

WORK = (GENERATE, LOG_PROBS, TRAIN)
"""Items that are the work of an iteration. All other items are overhead, except `ELSEWHERE`."""
ELSEWHERE = (EVALUATION, OTHER_ITERATION)
"""Items that are work, but of an evaluation or of another iteration."""
ITEMS = {
    GENERATE: "completions are sampled",
    LOG_PROBS: "passes before training: old and reference log-probabilities",
    TRAIN: "forward passes, backward passes and optimizer steps",
    QUEUE: "from the submission to SLURM to the start of the job",
    START: "a process starts: set-up of the job, Python",
    "import": "the first task of a process imports libraries",
    "prepare": "prompts, tokenizer, adapter; the first task of a process imports the library of the tokenizer",
    "load": "engine or trainer: weights are loaded; close to 0 if they are already loaded",
    "compile": "engine or trainer: code is compiled for the GPU; close to 0 if the compiler has it in its cache",
    "read": "published inputs are read and checked",
    "compare": "log-probabilities of the weights that sampled, if they are older (protocol.staleness)",
    "verify": "answers are extracted and verified",
    "score": "rewards and advantages are computed, with embeddings",
    "hint": "teachers and hints are chosen",
    "save": "adapter and optimizer state are written",
    "publish": "files are written to disk and published",
    OTHER_MODEL: "the task could have begun, but a task of another model was running",
    OTHER_PART: "the task could have begun, but a task of another part was running",
    IDLE: "no task was running or in the queue: the controller had not reacted yet, a pause, or failed attempts",
    EVALUATION: "the next task could have begun, but an evaluation was running",
    OTHER_ITERATION: "a model was still in the previous iteration, or already in the next one",
}
"""Items and their meaning, in the order in which they are shown. Tasks can record other items under
their own names."""


@dataclass(frozen=True, kw_only=True)
class TaskTime:
    """One published task. Times are in seconds since the epoch, by the clock of its host."""

    key: TaskKey
    began: float
    ended: float
    host: str
    pid: int
    laps: tuple[tuple[str, float], ...] = ()
    """The items that the task spent time on, and their seconds, in order."""
    process: tuple[float, float] | None = None
    """For the first task of a process: when the process started (in SLURM: when the job started),
    and when it was ready for tasks. None for all other tasks."""
    submitted: float | None = None
    """For the first task of an element of a SLURM array: when the array was submitted. None for all
    other tasks."""
    stats: Mapping[str, Any] = field(default_factory=dict)
    """The statistics in the manifest of the task."""

    @property
    def spans(self) -> list[tuple[str, float, float]]:
        """The laps as (item, begin, end)."""
        out, at = [], self.began
        for item, seconds in self.laps:
            out.append((item, at, at + seconds))
            at += seconds
        return out

    @property
    def waits(self) -> list[tuple[str, float, float]]:
        """The times before the task began, as (QUEUE or START, begin, end). None is negative."""
        start, ready = self.process or (self.began, self.began)
        ready = min(ready, self.began)
        start = min(start, ready)
        queue = [(QUEUE, min(self.submitted, start), start)] if self.submitted is not None else []
        return [*queue, (START, start, ready)]

    @property
    def appeared(self) -> float:
        """The earliest of: the submission, the start of the process, the beginning of the task."""
        return min(self.began, *(a for _, a, _ in self.waits))


@dataclass(frozen=True)
class Segment:
    """A part of the time of an iteration."""

    item: str
    began: float
    ended: float
    key: TaskKey  # the task that ran, or the task that was waiting

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def tasks_of_iteration(tasks: Iterable[TaskTime], iteration: int) -> list[TaskTime]:
    """Return the tasks of an iteration. Evaluations do not belong to an iteration."""
    return [t for t in tasks if t.key.iteration == iteration and t.key.phase not in OUTSIDE_ITERATIONS]


def critical_path(
    tasks: Sequence[TaskTime], iteration: int, inputs: Callable[[TaskKey], Sequence[TaskKey]]
) -> list[Segment]:
    """Compute the critical path of an iteration.

    Args:
        tasks: all tasks of the run, because an iteration can wait for other iterations and
            evaluations.
        iteration: an iteration with at least one published task.
        inputs: returns the tasks whose output a task reads.

    Returns:
        Segments from the first event to the last publication of the iteration, in order and without
        a gap.
    """
    own = tasks_of_iteration(tasks, iteration)
    first, last = min(t.appeared for t in own), max(own, key=lambda t: t.ended)
    near = [t for t in tasks if t.began < last.ended and t.ended > first]
    found: list[Segment] = []
    seen: set[TaskKey] = set()
    task: TaskTime | None = last
    at = last.ended
    while task is not None:
        seen.add(task.key)
        found += reversed(_busy(task, iteration, first, at))
        at = max(first, min(at, task.began))
        before = _before(task, near, set(inputs(task.key)), seen)
        ready = max(first, min(at, before.ended)) if before is not None else first
        found += reversed(_waiting(task, near, iteration, ready, at))
        at, task = ready, before
    return found[::-1]


def _before(
    task: TaskTime, tasks: Iterable[TaskTime], read: Collection[TaskKey], seen: Collection[TaskKey]
) -> TaskTime | None:
    """Find the task that a task had to wait for; None if there is none during the iteration.

    It is the one that ended last among the tasks whose output the task reads (`read`) and the
    earlier tasks of its process.
    """

    def is_earlier_in_process(t: TaskTime) -> bool:
        return (t.host, t.pid) == (task.host, task.pid) and t.began < task.began

    causes = [t for t in tasks if t.key not in seen and (t.key in read or is_earlier_in_process(t))]
    return max(causes, key=lambda t: t.ended, default=None)


def _busy(task: TaskTime, iteration: int, first: float, last: float) -> list[Segment]:
    """Return the segments of what the task did between two times."""
    if task.key.phase == EVALUATE:
        spans = [(EVALUATION, task.began, task.ended)]
    elif task.key.iteration != iteration:
        spans = [(OTHER_ITERATION, task.began, task.ended)]
    else:
        # The sum of the laps differs from the time of the task by a rounding error. The last lap
        # gets the difference, so that there is no gap between segments.
        spans = task.spans or [("publish", task.began, task.ended)]
        spans[-1] = (*spans[-1][:2], task.ended)
    cut = [Segment(item, max(a, first), min(b, last), task.key) for item, a, b in spans]
    return [s for s in cut if s.seconds > 0]


def _waiting(task: TaskTime, tasks: Iterable[TaskTime], iteration: int, first: float, last: float) -> list[Segment]:
    """Return the segments of what the task was waiting for between two times."""
    others = [t for t in tasks if t is not task and t.began < last and t.ended > first]
    waits = task.waits
    marks = {at for t in others for at in (t.began, t.ended)} | {at for _, a, b in waits for at in (a, b)}
    marks = {first, last} | {at for at in marks if first < at < last}
    out: list[Segment] = []
    for a, b in pairwise(sorted(marks)):
        own = [item for item, c, d in waits if c <= a and b <= d]
        item = own[0] if own else _reason(task, [t for t in others if t.began <= a and b <= t.ended], iteration)
        if out and out[-1].item == item:
            out[-1] = Segment(item, out[-1].began, b, task.key)
        else:
            out.append(Segment(item, a, b, task.key))
    return out


def _reason(task: TaskTime, running: Sequence[TaskTime], iteration: int) -> str:
    """Return the item for a task that waits, but not in the queue or for its process.

    `running` are the tasks that run at that time.
    """
    models = {t.key.model for t in tasks_of_iteration(running, iteration)}
    if models:
        only_others = TEAM not in (task.key.model, *models) and task.key.model not in models
        return OTHER_MODEL if only_others else OTHER_PART
    if any(t.key.phase == EVALUATE for t in running):
        return EVALUATION
    return OTHER_ITERATION if running else IDLE


def shared_seconds(spans: Iterable[tuple[Name, float, float]]) -> dict[Name, float]:
    """Sum the seconds of spans (name, begin, end) by name.

    A second that n spans share counts 1/n for each.

    >>> shared_seconds([("a", 0.0, 4.0), ("b", 2.0, 6.0)])
    {'a': 3.0, 'b': 3.0}
    """
    spans = [(name, a, b) for name, a, b in spans if b > a]
    ends = sorted([(a, 1, name) for name, a, _ in spans] + [(b, -1, name) for name, _, b in spans])
    total = {name: 0.0 for name, *_ in spans}
    active: Counter[Name] = Counter()
    before = 0.0
    for at, change, name in ends:
        for other, n in active.items():
            total[other] += (at - before) * n / active.total()
        active[name] += change
        if not active[name]:
            del active[name]  # without this, the loop over `active` gets slow with thousands of spans
        before = at
    return total
