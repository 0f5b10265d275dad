"""What changes after a failure before the next attempt: memory of tasks, and excluded nodes.

In: outcomes of elements. Out: memory per run, phase and model, and the list of excluded nodes, for
the next submissions.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Iterable, Sequence

from core_hpc.config.slurm import SlurmSection
from core_hpc.runs.events import TaskRef
from core_hpc.runs.outcome import Outcome, OutcomeKind
from core_hpc.slurm.commands import Slurm, SlurmUnavailableError
from core_hpc.slurm.outcomes import NODE_KINDS

MAX_LOST_NODES = 5
"""How often a task may lose its node in a row. Then each time counts as its failure, because it may crash nodes."""
SEVERAL_NODES = re.compile(r"[\[,]")
"""In what SLURM writes instead of the name of one node."""
SHARED_FILES = tuple(
    f"[Errno {e}]" for e in (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ESHUTDOWN, errno.ETIMEDOUT)
)
"""Errors of a shared file system, which all nodes may see at the same time."""


def _alike(task: TaskRef) -> tuple[str, str, str]:
    """What tasks have in common that need the same memory."""
    return task.run_id, task.key.phase, task.key.model


class Remedies:
    """Memory of tasks that ran out of it, and nodes that failed several times in a row."""

    def __init__(self, settings: SlurmSection, slurm: Slurm, notify: Callable[[str], None]) -> None:
        self.excluded: list[str] = []
        self._settings = settings
        self._slurm = slurm
        self._notify = notify
        self._mem_gb: dict[tuple[str, str, str], float] = {}
        """By run, phase and model."""
        self._failures_in_a_row: dict[str, list[TaskRef | None]] = {}
        """By node: the tasks that failed there; None if the task cannot be the cause."""
        self._fail_anywhere: set[TaskRef] = set()
        """Tasks that failed on several nodes."""
        self._lost_nodes: dict[TaskRef, int] = {}
        """How often each task has lost its node in a row."""

    def memory_gb(self, tasks: Iterable[TaskRef], default: float) -> float:
        """What a job of these tasks asks for: the most that one of them needs."""
        raised = (self._mem_gb.get(_alike(task), 0.0) for task in tasks)
        return max(default, max(raised, default=0.0))

    def raise_memory(
        self, outcome: Outcome, tasks: Sequence[TaskRef], *, had_gb: float, max_gb: float | None
    ) -> Outcome:
        """Give tasks that ran out of memory `max_gb` in one more attempt, if the profile allows it.

        The same phases of the same models get it in later iterations too.

        Returns:
            The outcome, which then does not count as a failed attempt.
        """
        if outcome.kind != OutcomeKind.OUT_OF_MEMORY or max_gb is None or had_gb >= max_gb:
            return outcome
        for run_id, phase, model in dict.fromkeys(map(_alike, tasks)):
            if not any(known[1:] == (phase, model) for known in self._mem_gb):
                self._notify(
                    f"{phase} of {model} ran out of {had_gb:g} GB; its jobs ask for {max_gb:g} GB from now on. "
                    "Raise mem_gb in the cluster profile"
                )
            self._mem_gb[run_id, phase, model] = max_gb
        return outcome.with_note(f"one more attempt with {max_gb:g} GB instead of {had_gb:g} GB", counted=False)

    def count_lost_node(self, task: TaskRef | None, outcome: Outcome) -> Outcome:
        """The outcome, which counts as a failed attempt if the task has lost too many nodes in a row."""
        if task is None:
            return outcome
        num = self._lost_nodes[task] = self._lost_nodes.get(task, 0) + 1 if outcome.kind == OutcomeKind.NODE else 0
        if num <= MAX_LOST_NODES:
            return outcome
        return outcome.with_note(f"{num} times in a row at this task, which may be the cause", counted=True)

    def succeeded(self, node: str) -> None:
        self._failures_in_a_row.pop(node, None)

    @property
    def counts_failures(self) -> bool:
        """Whether any node has failed since it last succeeded."""
        return bool(self._failures_in_a_row)

    def failed(self, task: TaskRef | None, outcome: Outcome) -> None:
        """Exclude a node that failed several times in a row, as long as most nodes remain.

        A task that fails on several nodes counts for none of them.
        """
        node = outcome.node
        if outcome.kind not in NODE_KINDS or not node or SEVERAL_NODES.search(node):
            return
        if outcome.kind == OutcomeKind.NODE:
            task = None
        elif any(e in outcome.message for e in SHARED_FILES) or (task is not None and self._fails_anywhere(task, node)):
            return
        self._failures_in_a_row.setdefault(node, []).append(task)
        num = len(self._failures_in_a_row[node])
        if num < self._settings.exclude_after or node in self.excluded:
            return
        with contextlib.suppress(SlurmUnavailableError):
            if 2 * (len(self.excluded) + 1) <= len(self._slurm.nodes(self._settings.partition)):
                self.excluded.append(node)
                self._notify(f"node {node} failed {num} times in a row and is excluded from now on")

    def _fails_anywhere(self, task: TaskRef, node: str) -> bool:
        """Whether a task that has failed on `node` failed on another node too; then none of them is the cause."""
        others = [n for n, tasks in self._failures_in_a_row.items() if n != node and task in tasks]
        if others:
            self._fail_anywhere.add(task)
        for other in others:
            left = [at for at in self._failures_in_a_row.pop(other) if at != task]
            if left:
                self._failures_in_a_row[other] = left
            if other in self.excluded and len(left) < self._settings.exclude_after:
                self.excluded.remove(other)
                self._notify(f"node {other} is used again, because {task.key} failed on {node} too")
        return task in self._fail_anywhere

    def allow_all_nodes(self) -> list[str]:
        """Use the excluded nodes again; returns which these were."""
        excluded, self.excluded = self.excluded, []
        return excluded
