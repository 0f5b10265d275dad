"""What an iteration was waiting for at each moment: the chain of tasks that made it as long as it was.

In: `TaskTime`s, when each published task of a run ran and what it did. Out: `Segment`s that follow each other from the
first sign of an iteration (a submission to SLURM, the start of a process or of a task) to its last publication, each
under one name of `ITEMS`. Pure; manifests are read by timing.py.

The chain is followed backwards: what ended last; before it, what it had to wait for, which is the last to end of what it
reads and of what its process did before; and so on. Times are those of each task's host. Where two clocks contradict the
order of tasks, a task gets less time, never less than none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import EVALUATE

Name = TypeVar("Name", bound=str | tuple[str, str])

QUEUE, START, EVALUATION, OTHER_ITERATION = "queue", "start", "evaluation", "another iteration"
OTHER_MODEL, OTHER_PART, IDLE = "another model", "another part", "idle"
GENERATE, LOG_PROBS, TRAIN = "generate", "log-probabilities", "train"

WORK = (GENERATE, LOG_PROBS, TRAIN)
"""What an iteration is for."""
ELSEWHERE = (EVALUATION, OTHER_ITERATION)
"""Work too, but not of this iteration."""
ITEMS = {
    GENERATE: "sampling completions",
    LOG_PROBS: "passes before training: old and reference log-probabilities",
    TRAIN: "forward, backward and optimizer steps",
    QUEUE: "from the submission to SLURM to the start of the job",
    START: "a process starts: the job's set-up, Python",
    "import": "the first task of a process imports libraries",
    "prepare": "prompts, tokenizer, adapter; the first task of a process imports the tokenizer's library here",
    "load": "engine or trainer: weights; next to 0 where it is warm",
    "compile": "engine or trainer: code is compiled for the device (GPU); next to 0 where the compiler's cache has it",
    "read": "published inputs are read and checked",
    "verify": "answers are extracted and verified",
    "score": "rewards and advantages, with embeddings",
    "hint": "teachers and hints are chosen",
    "save": "adapter and optimizer state are written",
    "publish": "files are made durable and named",
    OTHER_MODEL: "the task could have begun, but another model's was running",
    OTHER_PART: "the task could have begun, but another part's was running",
    IDLE: "no task of the run was running or in the queue: the controller between two looks, a pause, failed tries",
    EVALUATION: "the next task could have begun, but held-out problems were being sampled",
    OTHER_ITERATION: "a model was still in the iteration before, or already in the next",
}
"""Items and what they mean, in the order in which they are shown. A task may record others, by its own names."""


@dataclass(frozen=True)
class TaskTime:
    """One published task. Times are seconds since the epoch, by the clock of the host that is concerned."""

    key: TaskKey
    began: float
    ended: float
    host: str
    pid: int
    laps: tuple[tuple[str, float], ...] = ()
    """What it did and for how many seconds, in order."""
    process: tuple[float, float] | None = None
    """Of the first task of a process: when that started (in a SLURM job: when the job began), and when it could take tasks."""
    submitted: float | None = None
    """Of the first task of an element of a SLURM array."""
    stats: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spans(self) -> list[tuple[str, float, float]]:
        """(item, from, to) of what it did."""
        out, at = [], self.began
        for item, seconds in self.laps:
            out.append((item, at, at + seconds))
            at += seconds
        return out

    @property
    def waits(self) -> list[tuple[str, float, float]]:
        """(QUEUE or START, from, to) before it began; none is negative."""
        start, ready = self.process or (self.began, self.began)
        ready = min(ready, self.began)
        start = min(start, ready)
        queue = [(QUEUE, min(self.submitted, start), start)] if self.submitted is not None else []
        return [*queue, (START, start, ready)]

    @property
    def appeared(self) -> float:
        """When it was submitted, or its process started, or it began itself."""
        return min(self.began, *(a for _, a, _ in self.waits))


@dataclass(frozen=True)
class Segment:
    """A piece of an iteration's time. `key`: the task that ran, or the one that had to wait."""

    item: str
    began: float
    ended: float
    key: TaskKey

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def tasks_of_iteration(tasks: Iterable[TaskTime], iteration: int) -> list[TaskTime]:
    """Those of its training; an evaluation is not part of an iteration."""
    return [t for t in tasks if t.key.iteration == iteration and t.key.phase != EVALUATE]


def critical_path(
    tasks: Sequence[TaskTime], iteration: int, inputs: Callable[[TaskKey], Sequence[TaskKey]]
) -> list[Segment]:
    """Segments from the first sign to the last publication of an iteration, in order and without a gap.

    Args:
        tasks: of the whole run: an iteration may wait for others and for evaluations.
        iteration: one of which something is published.
        inputs: the tasks whose publications a task reads.
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
    """The last to end of what the task reads and of what its process did before; None: nothing of the time in question."""
    process = (task.host, task.pid)
    causes = [
        t
        for t in tasks
        if t.key not in seen and (t.key in read or ((t.host, t.pid) == process and t.began < task.began))
    ]
    return max(causes, key=lambda t: t.ended, default=None)


def _busy(task: TaskTime, iteration: int, first: float, last: float) -> list[Segment]:
    """What the task did between two times."""
    if task.key.phase == EVALUATE:
        spans = [(EVALUATION, task.began, task.ended)]
    elif task.key.iteration != iteration:
        spans = [(OTHER_ITERATION, task.began, task.ended)]
    else:
        # What a task does not account for (rounding) belongs to its last lap, so that segments follow each other.
        spans = task.spans or [("publish", task.began, task.ended)]
        spans[-1] = (*spans[-1][:2], task.ended)
    cut = [Segment(item, max(a, first), min(b, last), task.key) for item, a, b in spans]
    return [s for s in cut if s.seconds > 0]


def _waiting(task: TaskTime, tasks: Iterable[TaskTime], iteration: int, first: float, last: float) -> list[Segment]:
    """What the task was waiting for between two times."""
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
    """Why a task that is neither in the queue nor starting has not begun, when these tasks are running."""
    mine = {t.key.model for t in tasks_of_iteration(running, iteration)}
    if mine:
        return OTHER_MODEL if TEAM not in (task.key.model, *mine) and task.key.model not in mine else OTHER_PART
    if any(t.key.phase == EVALUATE for t in running):
        return EVALUATION
    return OTHER_ITERATION if running else IDLE


def shared_seconds(spans: Iterable[tuple[Name, float, float]]) -> dict[Name, float]:
    """Seconds by name of spans (name, from, to); a second that n spans share counts 1/n for each.

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
            del active[name]  # thousands of spans follow each other
        before = at
    return total
