"""NOT SLURM: a queue that the test writes, for what the drivers of SLURM decide; a run for them, and publications without content."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from core_hpc.config.cluster import ClusterSection
from core_hpc.controller.prepare import splits_of
from core_hpc.runs import folder as runs
from core_hpc.runs.folder import ModelFacts, Run
from core_hpc.runs.sweep import load_sweep
from core_hpc.slurm.commands import AccountingEntry, JobId, Limits, QueueEntry, Slurm, SlurmUnavailableError
from core_hpc.slurm.records import Submission, SubmissionFolder
from core_hpc.slurm.submit import RefusedError
from core_hpc.store import manifests
from core_hpc.store.paths import TaskKey

SWEEP = {
    "name": "s",
    "iterations": 2,
    "team": [{"name": "a", "model": "x"}, {"name": "b", "model": "y"}],
    "problems": {"train": {"source": "generated", "count": 40}, "evaluation": {"source": "generated", "count": 4}},
}


class FakeSlurm(Slurm):
    """NOT SLURM: a queue that the test writes."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: dict[JobId, QueueEntry] = {}
        self.known = Limits(1000, None)
        self.available = True
        self.cancelled: list[JobId | int] = []
        self.submitted: list[Submission] = []
        self.refusals: list[str] = []

    def queue(self) -> list[QueueEntry]:
        if not self.available:
            raise SlurmUnavailableError("squeue: Unable to contact slurm controller")
        return list(self.entries.values())

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


def run_of(folder: Path, driver: str, *, protocol: dict[str, Any] | None = None, **slurm: Any) -> Run:
    """The run of SWEEP below a folder, begun or taken up again, with a cluster section of quick looks."""
    section = {"driver": driver, "slurm": {"poll_s": [0.001, 0.002], "lost_after_s": 0.2, "mem_gb": 10, **slurm}}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**SWEEP, "output": str(folder), "cluster": section, "protocol": protocol or {}}))
    sweep = load_sweep(path)
    (plan,) = sweep.runs
    if runs.exists(plan, sweep.folder):
        return runs.start(plan, sweep.folder)
    facts = {m.name: ModelFacts("0" * 64, 512, "plain") for m in plan.config.team}
    return runs.create(plan, sweep.folder, splits_of(plan), facts)


def publish(run: Run, key: TaskKey) -> None:
    folder = run.paths.task_folder(key)

    def fill(temporary: Path) -> dict[str, tuple[int, str]]:
        (temporary / "shard.txt").write_text("")
        return {}

    manifests.publish(folder, run.paths.task_name(key), fill, as_folder=False)
