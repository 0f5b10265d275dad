"""The interface of a packing strategy: which tasks go into which job, and what a job reports.

The drivers on SLURM differ only in their strategy. `slurm/arrays.py` has the strategies for job
arrays and for chained arrays, `slurm/resident.py` the one for resident jobs. Limits, records,
looking at SLURM and repeated attempts are common to all of them (`slurm/executor.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from core_hpc.config.slurm import PhaseGroup
from core_hpc.runs.events import Event, Failed, TaskRef
from core_hpc.runs.folder import Run
from core_hpc.runs.outcome import Outcome
from core_hpc.slurm.remedies import Remedies
from core_hpc.slurm.watch import OpenSubmission, Sighting
from core_hpc.store.paths import TaskKey

Wanted = Sequence[tuple[Run, TaskKey]]
"""Tasks that are ready, most urgent first."""


@dataclass(frozen=True)
class Batch:
    """Tasks to be submitted together.

    Attributes:
        name: the record's name begins with it, for example `cold-0001`.
        elements: tasks of each array element; a single element becomes an ordinary job.
    """

    run: Run
    group: PhaseGroup
    name: str
    elements: list[list[TaskKey]]
    mem_gb: float


class Packing(Protocol):
    """How tasks are packed into jobs. The executor passes the open submissions to each call."""

    def covered(self, wanted: Wanted, jobs: Sequence[OpenSubmission]) -> tuple[list[TaskRef], list[Event]]:
        """Those of the wanted tasks that open jobs do in any case, and events about these tasks."""

    def batches(self, wanted: Wanted, jobs: Sequence[OpenSubmission], remedies: Remedies) -> list[Batch]:
        """Submissions for tasks that no open job does. `remedies` knows the memory of these."""

    def adopted(self, jobs: Sequence[OpenSubmission], start_id: str) -> tuple[list[TaskRef], list[Failed], list[Event]]:
        """What is taken over from an earlier controller.

        Returns:
            Tasks in flight; failures inside the jobs of this start; events.
        """

    def seen(self, sighting: Sighting) -> list[Event]:
        """Events about an element that waits or runs (sightings `WAITING`, `STARTED`, `STATUS`)."""

    def ended(self, item: OpenSubmission, index: int, outcome: Outcome) -> list[Event]:
        """Events about the tasks that an ended element did not do."""

    def ended_at(self, item: OpenSubmission, index: int, outcome: Outcome) -> str:
        """The task at which an element ended; empty if there is none."""

    def ends_with_its_run(self, item: OpenSubmission, index: int) -> bool:
        """Whether an element is useless once its run has stopped."""
