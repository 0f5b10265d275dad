"""Detached controllers whose job is not known: SLURM is asked for their unique names."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from core_hpc.common.errors import ClaimError
from core_hpc.config.cluster import ClusterSection
from core_hpc.controller import detach
from core_hpc.controller.detach import ControllerSpec
from core_hpc.controller.detached_records import active_controllers, require_no_other
from core_hpc.slurm.commands import JobId, QueueEntry, Slurm
from core_hpc.slurm.records import CALLS, OPEN, Submission, SubmissionFolder, new_submission
from core_hpc.slurm.sbatch import RefusedError
from core_hpc.store import manifests
from core_hpc.store.paths import SweepPaths
from tests.support.fake_slurm import FakeSlurm
from tests.support.slurm_commands import HEADER, FakeCommands, squeue_record

CLUSTER = ClusterSection.model_validate({"driver": "arrays", "slurm": {"mem_gb": 1}})


def record(sweep: Path, *, age_s: float) -> tuple[SubmissionFolder, Submission]:
    """The record of a controller of this age, whose job is not known."""
    folder = SubmissionFolder(SweepPaths(sweep).slurm)
    submission = new_submission("controller", "controller-0001", [[]], start_id="start001", mem_gb=1)
    submission.submitted = time.time() - age_s
    folder.write(submission)
    manifests.make_folder(folder.folder(submission))
    (folder.folder(submission) / CALLS).write_text("{}")
    return folder, submission


@pytest.mark.parametrize(("age_s", "waits"), [(5.0, True), (3600.0, False), (-7200.0, False), (-5.0, True)])
def test_a_record_without_a_job_holds_the_sweep_only_while_it_is_young(
    tmp_path: Path, slurm: FakeSlurm, age_s: float, waits: bool
) -> None:
    """A record from a clock two hours ahead does not hold the sweep for two hours."""
    folder, _ = record(tmp_path, age_s=age_s)
    if waits:
        with pytest.raises(ClaimError, match="a job that is being submitted"):
            require_no_other(tmp_path, slurm)
        return
    require_no_other(tmp_path, slurm)
    assert active_controllers(tmp_path, slurm, close=True) == []
    assert folder.names(OPEN) == []


def test_a_controller_that_slurm_took_without_naming_its_job_is_found_by_its_name(
    tmp_path: Path, slurm: FakeSlurm
) -> None:
    folder, submission = record(tmp_path, age_s=3600)
    slurm.entries[JobId(77)] = QueueEntry(JobId(77), submission.name, "PENDING", "Resources", "", 0)
    with pytest.raises(ClaimError, match="SLURM job 77 is the controller"):
        require_no_other(tmp_path, slurm)
    assert (folder.folder(submission) / CALLS).exists()


@pytest.mark.parametrize("output", ["", "This is job 4711 of your project\n"])
def test_a_submission_of_a_controller_without_an_id_is_looked_up(
    tmp_path: Path, fake: FakeCommands, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.setattr(detach, "LOOK_RETRY_S", 0.01)
    monkeypatch.setattr(detach, "LOOK_S", 0.5)
    spec = ControllerSpec(str(tmp_path), (), "start001", -1, 0.0)
    fake.command("sbatch", output)
    fake.command("squeue", HEADER)
    with pytest.raises(RefusedError, match="no job id in its answer"):
        detach._submit_controller(spec, CLUSTER, after=None)
    folder = SubmissionFolder(SweepPaths(tmp_path).slurm)
    (kept,) = folder.read(OPEN)
    assert kept.job is None
    folder.discard(kept)

    # SLURM names the job after the submission, whose name is not known before.
    names = f'cd "{folder.root}"; for f in *.open.json; do name="${{f%.open.json}}"; done'
    start, end = squeue_record("77", "N/A", "PENDING", "None", "0", "", "NAME").split("NAME")
    fake.command("squeue", body=f"{names}; printf '%s' '{HEADER}' '{start}' \"$name\" '{end}'")
    _, submission = detach._submit_controller(spec, CLUSTER, after=None)
    assert submission.job == 77
    assert [s.job for s in folder.read(OPEN)] == [77]
    assert Slurm().queue()[0].id == JobId(77)
