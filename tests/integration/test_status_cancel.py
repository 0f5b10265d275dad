"""core_hpc.status and core_hpc.cancel on a real SLURM.

The sweep has two runs whose jobs have to wait. A foreign job is in the queue as well.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core_hpc.common.errors import ClaimError
from core_hpc.runs.folder import locate
from core_hpc.slurm.records import FAILED, OPEN, SubmissionFolder
from core_hpc.status.collect import Manifests
from core_hpc.status.compute import read_status
from core_hpc.status.model import SweepStatus
from core_hpc.store.paths import RunPaths, SweepPaths
from tests.support.harness import command, launch, start_launcher, wait_for
from tests.support.tiny import tiny_sweep

pytestmark = pytest.mark.slow

SLURM = {"cpus": 1, "mem_gb": 1.5, "time_min": 10, "poll_s": [0.5, 2], "lost_after_s": 15, "gpus_per_node": 0}
NUM_READY = 2 * 10
"""Tasks of both runs that are ready at first: 6 of evaluate and 4 of cold per run."""


@pytest.fixture(scope="module")
def waiting_sweep(tiny_models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("status")
    jobs = {**SLURM, "generate": {"options": {"begin": "now+1hour"}}}
    section = {"driver": "arrays", "threads": 1, "slurm": jobs}
    return tiny_sweep(folder / "tiny.yaml", tiny_models, folder / "out", grid={"seed": [7, 8]}, cluster=section)


@pytest.fixture(autouse=True)
def _environment(waiting_sweep: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slurm's commands reach the cluster. A test that fails in the middle leaves no jobs for the next test."""
    for name, value in cluster.environment().items():
        monkeypatch.setenv(name, value)
    yield
    command("cancel", waiting_sweep, env=cluster.environment())


@pytest.fixture
def foreign(cluster: Any) -> Iterator[int]:
    """A job of this user that is not the sweep's."""
    job = cluster.run(
        "sbatch", "--parsable", "--mem=50", "--begin=now+1hour", "--output=/dev/null", "--wrap", "true"
    ).strip()
    yield int(job)
    cluster.run("scancel", job)


def log_of(sweep: Path) -> Path:
    return sweep.with_suffix(".log")


def attached(cluster: Any, sweep: Path) -> subprocess.Popen[bytes]:
    """A controller that runs as an ordinary process."""
    return start_launcher(sweep, log_of(sweep), cluster.environment())


def look(sweep: Path) -> SweepStatus:
    (found,) = read_status([locate(sweep)], Manifests())
    return found


def jobs_in_queue(cluster: Any) -> set[int]:
    return {int(line) for line in cluster.run("squeue", "-h", "-o", "%A").split()}


def all_wait(sweep: Path) -> bool:
    return (sweep.parent / "out" / "tiny").exists() and look(sweep).waiting_reasons == {"BeginTime": NUM_READY}


def test_a_detached_sweep_is_shown_and_cancelled(waiting_sweep: Path, cluster: Any, foreign: int) -> None:
    folder = waiting_sweep.parent / "out" / "tiny"
    done = launch(waiting_sweep, "--detach", env=cluster.environment())
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for(lambda: all_wait(waiting_sweep), "jobs that wait")
    printed = command("status", waiting_sweep, "--json", env=cluster.environment())
    assert printed.returncode == 0, printed.stderr
    (found,) = json.loads(printed.stdout)["sweeps"]
    assert {(run["state"], run["waiting"]) for run in found["runs"]} == {("waiting", NUM_READY // 2)}
    controller, successor = found["controller"]["jobs"]
    assert (controller["state"], successor["state"], successor["reason"]) == ("RUNNING", "PENDING", "Dependency")
    assert str(controller["job"]) in done.stdout
    assert found["controller"]["holder"]["job"] == controller["job"]
    assert found["controller"]["alive"]
    assert "tasks" in Path(controller["log"]).read_text()

    run_id = found["runs"][0]["run_id"]
    refused = command("cancel", folder, "--run", run_id, env=cluster.environment())
    assert refused.returncode == ClaimError.exit_code
    assert "cancel the whole sweep" in refused.stderr
    assert len(jobs_in_queue(cluster)) > 2

    cancelled = command("cancel", waiting_sweep, env=cluster.environment())
    assert cancelled.returncode == 0, cancelled.stdout + cancelled.stderr
    assert "22 job(s) were cancelled" in cancelled.stdout
    assert jobs_in_queue(cluster) == {foreign}
    assert not SweepPaths(folder).claim.exists()
    after = look(folder)
    assert {(run.state, run.waiting) for run in after.runs} == {("no controller", 0)}
    assert after.failures == [], "a job that its user cancels is no failure"
    assert after.controller.stop_request is not None
    for root in (SweepPaths(folder).slurm, *(RunPaths(folder / run.run_id).slurm for run in after.runs)):
        assert SubmissionFolder(root).names(OPEN) == []
    again = command("cancel", folder, env=cluster.environment())
    assert (again.returncode, again.stdout.startswith("nothing to cancel")) == (0, True)


def test_jobs_of_one_run_after_its_controller_was_killed_and_then_all(
    waiting_sweep: Path, cluster: Any, foreign: int
) -> None:
    folder = waiting_sweep.parent / "out" / "tiny"
    first = attached(cluster, waiting_sweep)
    try:
        wait_for(lambda: all_wait(waiting_sweep), "jobs that wait")
        assert not SweepPaths(folder).stop_request.exists(), "a new start removes the request to stop"
    finally:
        first.kill()
        first.wait()
    assert "failed" not in log_of(waiting_sweep).read_text(), "jobs that were cancelled before do not count"
    found = look(folder)
    assert found.controller.alive is False
    assert {(run.state, run.waiting) for run in found.runs} == {("no controller", NUM_READY // 2)}
    one, other = (run.run_id for run in found.runs)
    done = command("cancel", folder, "--run", one, env=cluster.environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert {run.run_id: run.waiting for run in look(folder).runs} == {one: 0, other: NUM_READY // 2}
    assert SubmissionFolder(RunPaths(folder / one).slurm).names(OPEN) == []
    assert len(SubmissionFolder(RunPaths(folder / one).slurm).names(FAILED)) == 4

    second = attached(cluster, waiting_sweep)
    try:
        wait_for(lambda: all_wait(waiting_sweep), "jobs that wait")
        assert command("cancel", folder, env=cluster.environment()).returncode == 0
        assert second.wait(30) == 130
    finally:
        second.kill()
        second.wait()
    assert "stopped by core_hpc.cancel" in log_of(waiting_sweep).read_text()
    assert jobs_in_queue(cluster) == {foreign}
