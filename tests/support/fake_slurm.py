"""NOT SLURM: a queue that the test fills, for tests of the drivers on SLURM.

The module also has a run for these tests, publications without content, and short names of events.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from core_hpc.config.cluster import ClusterSection
from core_hpc.controller.drivers import make_driver
from core_hpc.problems.splits import EVALUATION
from core_hpc.runs import creation
from core_hpc.runs import folder as runs
from core_hpc.runs.contents import TABLE_OF, expected_rows
from core_hpc.runs.events import Event, Failed
from core_hpc.runs.folder import Run
from core_hpc.runs.sweep import load_sweep
from core_hpc.slurm.commands import AccountingEntry, JobId, Limits, QueueEntry, Slurm, SlurmUnavailableError
from core_hpc.slurm.executor import SlurmExecutor
from core_hpc.slurm.records import Submission, SubmissionFolder
from core_hpc.slurm.sbatch import RefusedError
from core_hpc.store import manifests
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, EVALUATE, RESCUE, SCORE
from tests.support.created_run import create_run

SWEEP = {
    "name": "s",
    "iterations": 2,
    "team": [{"name": "a", "model": "x"}, {"name": "b", "model": "y"}],
    "problems": {"train": {"source": "generated", "count": 40}, "evaluation": {"source": "generated", "count": 4}},
}


class FakeSlurm(Slurm):
    """NOT SLURM: a queue that the test fills.

    Attributes:
        known: the limits that it reports.
        available: False: it does not answer.
        refusals: messages with which it refuses the next submissions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.entries: dict[JobId, QueueEntry] = {}
        self.known = Limits(1000)
        self.available = True
        self.cancelled: list[JobId | int] = []
        self.submitted: list[Submission] = []
        self.refusals: list[str] = []

    def queue(self) -> list[QueueEntry]:
        if not self.available:
            raise SlurmUnavailableError("squeue: Unable to contact slurm controller")
        return list(self.entries.values())

    def elements(self, job: int) -> list[QueueEntry] | None:
        return [entry for id, entry in self.entries.items() if id.job == job] or None

    def active_elements(self, job: int) -> set[JobId]:
        return {id for id, entry in self.entries.items() if id.job == job and entry.active}

    def has_ended(self, job: int, user: str | None = None) -> bool:
        return not any(entry.active for at, entry in self.entries.items() if at.job == job)

    def accounting(self, jobs: Collection[int], *, since: float) -> dict[JobId, AccountingEntry] | None:
        return None

    def limits(self, *, partition: str | None, qos: str | None, account: str | None) -> Limits:
        return self.known

    def cancel(self, jobs: Sequence[JobId | int]) -> None:
        self.cancelled += jobs

    def nodes(self, partition: str | None) -> dict[str, str]:
        return dict.fromkeys(("n1", "n2", "n3", "n4"), "idle")

    def set(self, submission: Submission, index: int, state: str, *, reason: str = "None", node: str = "n1") -> None:
        job = submission.job_id(index)
        assert job is not None
        self.entries[job] = QueueEntry(job, submission.name, state, reason, node, 0)

    def submit(
        self, folder: SubmissionFolder, submission: Submission, cluster: ClusterSection, run_root: Path
    ) -> Submission:
        if self.refusals:
            raise RefusedError(self.refusals.pop(0))
        taken = replace(submission, job=100 + len(self.submitted))
        manifests.make_folder(folder.folder(taken))
        folder.write(taken)
        self.submitted.append(taken)
        for index in range(len(taken.elements)):
            self.set(taken, index, "PENDING", reason="Resources", node="")
        return taken


def executor_of(run: Run, slurm: Slurm, *, start_id: str, notify: Callable[[str], None]) -> SlurmExecutor:
    """The executor of a run, as the controller makes it."""
    executor = make_driver([run], slurm, start_id=start_id, notify=notify).executor
    assert isinstance(executor, SlurmExecutor)
    return executor


def kind_of(event: Event) -> str:
    """`started`, `waiting`, `progressed`, `done`, `failed`, `released` or `stopped`."""
    return type(event).__name__.lower()


def failures(events: Iterable[Event]) -> list[Failed]:
    """The failures among events."""
    return [event for event in events if isinstance(event, Failed)]


def run_of(folder: Path, driver: str, *, protocol: dict[str, Any] | None = None, **slurm: Any) -> Run:
    """The run of SWEEP in a folder, created or continued. Its executor looks at SLURM often."""
    section = {"driver": driver, "slurm": {"poll_s": [0.001, 0.002], "lost_after_s": 0.2, "mem_gb": 10, **slurm}}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**SWEEP, "output": str(folder), "cluster": section, "protocol": protocol or {}}))
    sweep = load_sweep(path)
    (plan,) = sweep.runs
    if runs.exists(plan, sweep.folder):
        return creation.start(plan, sweep.folder)
    return create_run(sweep)


def publish(run: Run, key: TaskKey) -> None:
    """Publish a task without content. Its manifest has the number of rows of a task without rescues."""
    folder = run.paths.task_folder(key)
    counted = TaskKey(key.iteration, COLD, TEAM, key.part) if key.phase == SCORE else key
    total = run.num_problems(EVALUATION) if key.phase == EVALUATE else run.config.protocol.problems_per_iteration
    rows = 0 if key.phase == RESCUE else expected_rows(run.config, counted, total) or 0
    rows *= len(run.config.team) if key.phase == SCORE else 1

    def fill(temporary: Path) -> dict[str, tuple[int, str]]:
        (temporary / "shard.txt").write_text("")
        return {"shard.txt": (rows, TABLE_OF[key.phase].name)}

    manifests.publish(folder, run.paths.task_name(key), fill, as_folder=False)
