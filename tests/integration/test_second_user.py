"""Waiting jobs of a sweep in a project folder, on a real SLURM: a colleague in the group, and a copy of the sweep.

`test_slurm_sweep.py` has a whole sweep in such a folder.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core_hpc.common.errors import CoreHpcError
from core_hpc.runs.folder import list_runs
from core_hpc.slurm.records import CALLS, FAILED, OPEN, SubmissionFolder
from core_hpc.store.paths import RunPaths
from tests.integration.test_slurm_sweep import ONE_PART, arrays
from tests.support.cluster import DevCluster
from tests.support.harness import command, launch, start_launcher, wait_for
from tests.support.second_user import as_colleague_after, require_root
from tests.support.tiny import tiny_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CANCEL = (
    """
import core_hpc.cancel as cancel
cancel.show_error("first")
""",
    "sys.exit(cancel.main([sys.argv[1]]))",
)
HAS_ENDED = (
    "from core_hpc.slurm.commands import Slurm, certainly_ended",
    """
slurm, job = Slurm(), int(sys.argv[1])
print(f"certain: {certainly_ended(slurm, job, 'root')}, hidden: {slurm.has_ended(job)}")
""",
)
"""Imports, and what the second user does with them."""


def as_colleague(cluster: DevCluster, what: tuple[str, str], argument: Path | int) -> subprocess.CompletedProcess[str]:
    """Let the second user use this cluster, whose folder is root's."""
    for folder in (cluster.home.parent, cluster.home):
        folder.chmod(0o755)
    return as_colleague_after(*what, str(argument), env=cluster.environment())


@pytest.fixture
def hiding_cluster(cluster: DevCluster) -> Iterator[DevCluster]:
    """The cluster, which hides the jobs of other users during the test."""
    configuration = cluster.home / "etc" / "slurm.conf"
    before = configuration.read_text()
    configuration.write_text(f"{before}\nPrivateData=jobs\n")
    cluster.run("scontrol", "reconfigure")
    try:
        yield cluster
    finally:
        configuration.write_text(before)
        cluster.run("scontrol", "reconfigure")


@pytest.fixture
def waiting(cluster: DevCluster, tiny_models: list[Path], tmp_path: Path, project: Path) -> Iterator[Path]:
    """The folder of a sweep whose jobs begin in an hour. Its controller works on it until the end of the test."""
    section: dict[str, Any] = arrays(generate={"options": {"begin": "now+1hour"}})
    sweep = tiny_sweep(tmp_path / "tiny.yaml", tiny_models, project / "out", cluster=section, **ONE_PART)
    folder = project / "out" / "tiny"
    controller = start_launcher(sweep, tmp_path / "log", cluster.environment())
    try:
        wait_for(lambda: len(queue(cluster)) >= 2, "jobs that wait")
        (run,) = list_runs(folder)
        submissions = SubmissionFolder(RunPaths(run).slurm)
        wait_for(lambda: all(s.job is not None for s in submissions.read(OPEN)), "records with jobs")
        yield folder
    finally:
        controller.kill()
        controller.wait()
        assert command("cancel", folder, env=cluster.environment()).returncode == 0


def queue(cluster: DevCluster) -> list[str]:
    """The ids of all jobs in the queue."""
    return sorted(cluster.run("squeue", "-h", "-o", "%A").split())


@pytest.mark.full(reason="tests/unit/slurm has changed calls and jobs of another user")
def test_a_job_whose_calls_were_changed_while_it_waited_runs_nothing(cluster: DevCluster, waiting: Path) -> None:
    """Only root and the submitter can change the file; root does it here. A colleague cannot cancel the jobs."""
    require_root()
    (run,) = list_runs(waiting)
    folder = SubmissionFolder(RunPaths(run).slurm)
    refused = as_colleague(cluster, CANCEL, waiting)
    assert refused.returncode == CoreHpcError.exit_code, refused.stdout + refused.stderr
    assert "belong to another user, and nothing was cancelled. user root: job" in " ".join(refused.stderr.split())
    changed = next(s for s in folder.read(OPEN) if s.name.startswith("cold-0001"))
    path = folder.folder(changed) / CALLS
    path.write_bytes(path.read_bytes().replace(b"cold/0001", b"cold/0002"))
    cluster.run("scontrol", "update", f"JobId={changed.job}", "StartTime=now")
    wait_for(lambda: any(s.name == changed.name for s in folder.read(FAILED)), "the record of the failed job")
    log_text = folder.log(changed, 0).read_text()
    assert "was changed after the job was submitted (owner root, mode 0640" in " ".join(log_text.split())
    assert "Traceback" not in log_text
    assert not RunPaths(run).phase_folder("cold", 2).exists()


@pytest.mark.full(reason="tests/unit/slurm has the answers of a SLURM that hides jobs")
def test_jobs_that_slurm_hides_are_not_taken_for_ended(waiting: Path, hiding_cluster: DevCluster) -> None:
    """With PrivateData=jobs, SLURM answers a colleague that a waiting job does not exist."""
    require_root()
    jobs = queue(hiding_cluster)
    (run,) = list_runs(waiting)
    for record in SubmissionFolder(RunPaths(run).slurm).read(OPEN):
        assert record.job is not None
        assert as_colleague(hiding_cluster, HAS_ENDED, record.job).stdout == "certain: False, hidden: True\n"
    refused = as_colleague(hiding_cluster, CANCEL, waiting)
    assert refused.returncode == CoreHpcError.exit_code, refused.stdout + refused.stderr
    assert "belong to another user, and nothing was cancelled. user root: job" in " ".join(refused.stderr.split())
    assert queue(hiding_cluster) == jobs


@pytest.mark.full(reason="tests/unit/slurm has copies of a sweep with jobs in the queue")
def test_a_copy_does_its_own_work_and_leaves_the_jobs_of_the_original(
    cluster: DevCluster, tiny_models: list[Path], waiting: Path, project: Path, tmp_path: Path
) -> None:
    jobs, copy = queue(cluster), project / "copy" / "tiny"
    shutil.copytree(waiting, copy)
    cancelled = command("cancel", copy, env=cluster.environment())
    assert cancelled.returncode == 0, cancelled.stderr
    assert f"{copy} is a copy of {waiting}" in " ".join(cancelled.stdout.split())
    sweep = tiny_sweep(tmp_path / "copy.yaml", tiny_models, copy.parent, cluster=arrays(), **ONE_PART)
    done = launch(sweep, env=cluster.environment(), timeout_s=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert queue(cluster) == jobs, "the jobs of the original still wait, and no other job is left"
    assert not list(RunPaths(list_runs(waiting)[0]).phase_folder("cold", 1).glob("*.manifest.json"))
    again = launch(sweep, env=cluster.environment())
    assert "everything is done" in again.stdout, again.stdout + again.stderr
