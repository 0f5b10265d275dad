"""The driver `resident` on a real SLURM cluster.

A run has one job for all its iterations, and a successor when that job is preempted. Its results
are those of the driver `local`.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core_hpc.slurm.records import ENDED, FAILED, OPEN, SubmissionFolder
from core_hpc.store import manifests, shards
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import GENERATION_PHASES
from tests.support.cluster import DevCluster
from tests.support.harness import differences, launched_and_held, the_run
from tests.support.tiny import tiny_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SLURM: dict[str, Any] = {
    "mem_gb": 6,
    "time_min": 10,
    "poll_s": [0.3, 1],
    "lost_after_s": 15,
    "signal_delay_s": 15,
    "resident": {"cpus": 2, "gpus_per_node": 1},
}


def test_a_run_in_two_jobs_publishes_what_the_local_driver_publishes(
    cluster: DevCluster, tiny_models: list[Path], undisturbed_run: Callable[[int], Path], tmp_path: Path
) -> None:
    """SLURM preempts the first job in an update of iteration 2, and its successor continues."""
    section = {"driver": "resident", "num_running": 2, "threads": 1, "slurm": SLURM}
    sweep = tiny_sweep(tmp_path / "resident.yaml", tiny_models, tmp_path / "resident", cluster=section)
    hold = tmp_path / "hold"
    with launched_and_held(sweep, "task.started@update/0002/m0", hold, env=cluster.environment()) as controller:
        job = hold.read_text().split()[1]
        cluster.run("scancel", "--signal=USR2", job)
        time.sleep(2)  # so that the worker gets the signal before it continues
        Path(f"{hold}.go").touch()
        printed, _ = controller.communicate(timeout=300)
    assert controller.returncode == 0, printed
    assert "one SLURM job per run" in printed

    run = the_run(tmp_path / "resident" / "tiny")
    assert differences(undisturbed_run(2), run) == []
    folder = SubmissionFolder(RunPaths(run).slurm)
    first, _ = sorted(folder.read(OPEN, ENDED, FAILED), key=lambda s: s.submitted)
    assert [state for _, state in folder.names(OPEN, ENDED, FAILED)] == [FAILED, ENDED]
    assert (str(first.job), first.outcomes[0].kind, first.outcomes[0].counted) == (job, "preempted", False)
    assert len(first.elements[0]) == 2 * 14 + 2 * 6, (
        "a job must have all tasks of its run: 14 per iteration and two evaluations of 6"
    )
    by_worker: dict[tuple[str, int], list[TaskKey]] = defaultdict(list)
    started: Counter[tuple[str, int]] = Counter()
    for key in shards.published_keys(run):
        manifest = manifests.read_manifest(RunPaths(run).task_manifest(key))
        if key.phase in GENERATION_PHASES and key.model == "m0":
            worker = (manifest.writer["host"], manifest.writer["pid"])
            by_worker[worker].append(key)
            started[worker] += "process_started" in manifest.stats
    assert set(started.values()) == {1}, "an engine was started more than once in a job, or no task reports its start"
    after, before = sorted(by_worker.values(), key=len)
    assert {key.iteration for key in before} == {0, 1, 2}
    assert (len(before), len(after)) == (11, 3)  # all but the last evaluation, in three parts
