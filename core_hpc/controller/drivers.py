"""The choice of the driver of a sweep: which executor runs its tasks.

In: the cluster section of the sweep and its runs. Out: a `Driver`: the executor, and what the
controller must know about it. The drivers are `local` (`core_hpc/local`), `arrays` and `resident`
(`core_hpc/slurm`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core_hpc.common.errors import InputError
from core_hpc.local.executor import LocalExecutor, LocalLimits
from core_hpc.local.memory import needs_of
from core_hpc.runs.folder import Run
from core_hpc.schedule.base import Executor
from core_hpc.schedule.scheduler import cpu_seconds
from core_hpc.slurm.arrays import ArrayPacking, ChainedPacking
from core_hpc.slurm.commands import Slurm, certainly_ended, slurm_installed
from core_hpc.slurm.executor import SlurmExecutor
from core_hpc.slurm.packing import Packing
from core_hpc.slurm.records import OPEN, SubmissionFolder
from core_hpc.slurm.resident import ResidentPacking

LOCAL_REFRESHES_PER_S, SLURM_REFRESHES_PER_S = 4.0, 0.5
"""Drawing the display of many runs costs CPU time of a login node."""


@dataclass(frozen=True)
class Driver:
    """An executor, and what follows from its kind.

    Attributes:
        description: for the user: what runs at once, and where.
        cpu_s: CPU time of the controller. With the driver `local` it excludes the workers, although
            they are child processes.
        warm: workers stay warm, so that a task like an earlier one needs no start and no loading.
    """

    executor: Executor
    description: str
    cpu_s: Callable[[], float]
    refreshes_per_s: float
    warm: bool


def make_driver(
    runs: Sequence[Run],
    slurm: Slurm | None,
    *,
    start_id: str,
    notify: Callable[[str], None],
    require_claim: Callable[[], str] = lambda: "",
    stop_requested: Callable[[], bool] = lambda: False,
) -> Driver:
    """The driver of a sweep's runs, which share the cluster section of the first one.

    Args:
        slurm: None for the driver `local`.
        start_id: names the start by the user.
        notify: shows a message to the user.
        require_claim: called before anything is submitted to SLURM.
        stop_requested: asked before each submission to SLURM.

    Raises:
        InputError: this machine does not have what the cluster section asks for, or jobs of another
            driver may still do the same tasks.
    """
    cluster = runs[0].config.cluster
    if slurm is None:
        _require_no_jobs(runs, notify)
        largest_team = max(len(run.config.team) for run in runs)
        limits = LocalLimits.of(cluster, largest_team, needs=needs_of(runs))
        executor = LocalExecutor(cluster, limits)
        return Driver(executor, limits.description, time.process_time, LOCAL_REFRESHES_PER_S, warm=True)
    packing: Packing
    if cluster.driver == "resident":
        packing, description = ResidentPacking(cluster.slurm), "one SLURM job per run"
    elif cluster.slurm.chain_wait_s is not None:
        packing, description = ChainedPacking(cluster.slurm), "chained SLURM arrays"
    else:
        packing, description = ArrayPacking(cluster.slurm), "SLURM arrays"
    on_slurm = SlurmExecutor(
        cluster,
        slurm,
        packing,
        start_id=start_id,
        notify=notify,
        require_claim=require_claim,
        stop_requested=stop_requested,
    )
    warm = cluster.driver == "resident"
    return Driver(on_slurm, description, cpu_seconds, SLURM_REFRESHES_PER_S, warm)


def _require_no_jobs(runs: Sequence[Run], notify: Callable[[str], None]) -> None:
    """Check that no SLURM job of an earlier start may still do tasks of these runs, and close the records of the jobs.

    Raises:
        InputError: a job may.
    """
    slurm = Slurm()
    for run in runs:
        folder = SubmissionFolder(run.paths.slurm)
        waiting, messages = folder.read_unresolved()
        for message in messages:
            notify(message)
        for submission in waiting:
            if not slurm_installed() or not certainly_ended(slurm, submission.job, submission.owner):
                raise InputError(
                    f"{run.run_id}: job {submission.job or '(being submitted)'} ({submission.name}) may still be with "
                    f"SLURM and do the same tasks. Start with its driver, or end its jobs first: "
                    f"python -m core_hpc.cancel {run.root.parent}. If it has certainly ended, remove "
                    f"{folder.root / submission.name}.{OPEN}.json"
                )
            folder.abandon(submission, "ended before a start with `driver: local`")
