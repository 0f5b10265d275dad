"""Records of jobs that are not those of this folder (it is a copy) or of this user (a colleague's)."""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from core_hpc.cancel import cancel_runs, cancel_sweep
from core_hpc.common.errors import ClaimError, CoreHpcError, InputError
from core_hpc.controller.detached_records import require_no_other
from core_hpc.runs.folder import Run, locate, open_run
from core_hpc.slurm.records import ENDED, OPEN, SubmissionFolder, new_submission
from core_hpc.status.collect import Manifests
from core_hpc.status.compute import read_status
from core_hpc.store import manifests
from core_hpc.store.claims import claim
from core_hpc.store.paths import RunPaths, SweepPaths, TaskKey
from tests.support.fake_slurm import FakeSlurm, executor_of, run_of
from tests.support.second_user import COLLEAGUE_UID

KEY = TaskKey(1, "cold", "a")


@pytest.fixture
def started(tmp_path: Path, slurm: FakeSlurm) -> Run:
    """A run with one job in the queue."""
    run = run_of(tmp_path, "arrays")
    executor_of(run, slurm, start_id="start001", notify=print).submit([(run, KEY)])
    return run


def sweep_of(run: Run) -> Path:
    return run.root.parent


def cancelled(sweep: Path, slurm: FakeSlurm) -> str:
    out = io.StringIO()
    cancel_sweep(sweep, slurm, Console(file=out, width=500))
    return out.getvalue()


def adopted(run: Run, slurm: FakeSlurm) -> tuple[list[TaskKey], list[str]]:
    messages: list[str] = []
    executor = executor_of(run, slurm, start_id="start002", notify=messages.append)
    return [task.key for task in executor.adopt([run]).tasks], messages


# --- jobs that have ended ------------------------------------------------------------------------


def test_cancel_closes_the_records_of_jobs_that_have_ended(started: Run, slurm: FakeSlurm) -> None:
    """Otherwise a start with another driver would refuse them for ever."""
    folder = SubmissionFolder(started.paths.slurm)
    lost = new_submission("generate", "cold-0002", [[KEY]], start_id="s", mem_gb=1)
    folder.write(replace(lost, submitted=0.0))
    recent = new_submission("generate", "cold-0003", [[KEY]], start_id="s", mem_gb=1)
    folder.write(recent)
    slurm.entries.clear()
    printed = cancelled(sweep_of(started), slurm)
    assert "nothing to cancel" in printed
    assert "Closed 2 record(s) of jobs that had ended" in printed
    assert [name for name, _ in folder.names(OPEN)] == [recent.name], "sbatch may be submitting it"
    assert adopted(started, slurm)[0] == [KEY]


def test_cancel_keeps_the_record_of_a_job_that_may_run_under_another_name(started: Run, slurm: FakeSlurm) -> None:
    ((id, entry),) = slurm.entries.items()
    slurm.entries[id] = replace(entry, name="renamed")
    cancel_runs(sweep_of(started), [started.run_id], slurm, Console(file=io.StringIO()))
    assert len(SubmissionFolder(started.paths.slurm).names(OPEN)) == 1


# --- a copied sweep ------------------------------------------------------------------------------


def test_cancel_of_a_copy_leaves_the_jobs_of_the_original(started: Run, slurm: FakeSlurm, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sweep_of(started), copy)
    printed = cancelled(copy, slurm)
    assert slurm.cancelled == []
    assert f"{copy} is a copy of {sweep_of(started)}: 1 open submission(s) belong to the original" in printed
    assert not SweepPaths(copy).stop_request.exists()
    assert adopted(started, slurm)[0] == [KEY], "the original still has its job"


def test_a_copy_that_continues_does_not_take_over_the_jobs_of_the_original(
    started: Run, slurm: FakeSlurm, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sweep_of(started), copy)
    run = open_run(copy / started.run_id)
    tasks, messages = adopted(run, slurm)
    assert tasks == []
    assert any(f"{run.root} is a copy of {started.root}" in message for message in messages)
    assert SubmissionFolder(run.paths.slurm).names(OPEN) == []
    executor = executor_of(run, slurm, start_id="start003", notify=print)
    assert [task.key for task in executor.submit([(run, KEY)])] == [KEY], "the copy does its own work"
    assert len(SubmissionFolder(started.paths.slurm).names(OPEN)) == 1


@pytest.mark.parametrize("how", ["moved", "link", "restored"])
def test_a_folder_that_is_no_copy_keeps_its_jobs(how: str, started: Run, slurm: FakeSlurm, tmp_path: Path) -> None:
    """`mv` within or across file systems, a link to the folder, and a backup at the same place."""
    folder, new = sweep_of(started), tmp_path / "new"
    if how == "moved":
        shutil.copytree(folder, new)  # as `mv` does between two file systems
        shutil.rmtree(folder)
    elif how == "link":
        new.symlink_to(folder)
    else:
        shutil.copytree(folder, tmp_path / "backup")
        shutil.rmtree(folder)
        (tmp_path / "backup").rename(folder)
        new = folder
    assert adopted(open_run(new / started.run_id), slurm)[0] == [KEY]
    cancel = cancelled_ids(new, slurm)
    assert cancel == [100]


def cancelled_ids(sweep: Path, slurm: FakeSlurm) -> list[Any]:
    """Cancel a sweep; the fake queue drops a job when it is cancelled."""
    before = slurm.cancel

    def cancel(jobs: Any) -> None:
        before(jobs)
        for job in [at for at in slurm.entries if at.job in jobs]:
            slurm.entries[job] = replace(slurm.entries[job], state="CANCELLED")

    slurm.cancel = cancel  # type: ignore[method-assign]
    cancelled(sweep, slurm)
    return slurm.cancelled


def test_a_copied_claim_and_controller_do_not_hold_the_copy(started: Run, slurm: FakeSlurm, tmp_path: Path) -> None:
    original, copy = sweep_of(started), tmp_path / "copy"
    folder = SubmissionFolder(SweepPaths(original).slurm)
    controller = new_submission("controller", "controller-0001", [[]], start_id="s", mem_gb=1)
    controller.job = 77
    folder.write(controller)
    slurm.set(controller, 0, "RUNNING")
    with claim(SweepPaths(original).claim):
        shutil.copytree(original, copy)
        with pytest.raises(ClaimError, match="SLURM job 77 is the controller"):
            require_no_other(original, slurm)
        require_no_other(copy, slurm)
        with pytest.raises(ClaimError, match="another controller is running"), claim(SweepPaths(original).claim):
            pass
        with claim(SweepPaths(copy).claim):
            assert SweepPaths(original).claim.exists()


def test_status_of_a_copy_states_that_it_is_one(
    started: Run, slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sweep_of(started), copy)
    for folder, expected in ((sweep_of(started), None), (copy, str(sweep_of(started)))):
        (found,) = read_status([locate(folder)], Manifests())
        assert found.copy_of == expected


# --- the jobs of a colleague ---------------------------------------------------------------------


@pytest.fixture
def colleagues(started: Run, slurm: FakeSlurm) -> Run:
    """The run of a colleague, whose jobs this user does not see in the own queue."""
    folder = SubmissionFolder(started.paths.slurm)
    (submission,) = folder.read(OPEN)
    folder.write(replace(submission, uid=COLLEAGUE_UID))
    return started


def hide_jobs(slurm: FakeSlurm, *, ended: bool) -> None:
    slurm.entries.clear()
    slurm.has_ended = lambda job, user=None: ended  # type: ignore[method-assign]


def test_a_record_names_its_user(started: Run) -> None:
    (submission,) = SubmissionFolder(started.paths.slurm).read(OPEN)
    assert submission.uid == os.getuid()
    assert not submission.is_foreign


def test_cancel_names_the_user_whose_jobs_wait(colleagues: Run, slurm: FakeSlurm) -> None:
    hide_jobs(slurm, ended=False)
    with pytest.raises(
        CoreHpcError, match=rf"another user, and nothing was cancelled\. user #{COLLEAGUE_UID}: job 100"
    ):
        cancelled(sweep_of(colleagues), slurm)
    with pytest.raises(CoreHpcError, match="belong to another user"):
        cancel_runs(sweep_of(colleagues), [colleagues.run_id], slurm, Console(file=io.StringIO()))
    assert slurm.cancelled == []
    assert not SweepPaths(sweep_of(colleagues)).stop_request.exists(), "the colleague's controller is not stopped"
    hide_jobs(slurm, ended=True)
    assert "nothing to cancel" in cancelled(sweep_of(colleagues), slurm)


def test_a_start_does_not_submit_again_what_waits_for_another_user(colleagues: Run, slurm: FakeSlurm) -> None:
    hide_jobs(slurm, ended=False)
    with pytest.raises(InputError, match=rf"job 100 .* of user #{COLLEAGUE_UID} is still open.*Nothing was submitted"):
        adopted(colleagues, slurm)
    assert len(slurm.submitted) == 1
    assert len(SubmissionFolder(colleagues.paths.slurm).names(OPEN)) == 1
    hide_jobs(slurm, ended=True)
    assert adopted(colleagues, slurm)[0] == [KEY], "the jobs have ended, so the sweep can be continued"


def test_the_controller_of_another_user_is_named(tmp_path: Path, slurm: FakeSlurm) -> None:
    sweep = tmp_path / "sweep"
    folder = SubmissionFolder(SweepPaths(sweep).slurm)
    for job in (77, None):
        controller = new_submission("controller", "controller-0001", [[]], start_id="s", mem_gb=1)
        folder.write(replace(controller, job=job, uid=COLLEAGUE_UID, submitted=0.0))
        hide_jobs(slurm, ended=False)
        with pytest.raises(ClaimError, match=f"of user #{COLLEAGUE_UID} is the controller"):
            require_no_other(sweep, slurm)
        manifests.write_json(folder.root / f"{controller.name}.{ENDED}.json", {})
        (folder.root / f"{controller.name}.{OPEN}.json").unlink()


def test_status_does_not_conclude_that_jobs_of_another_user_ended(
    colleagues: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core_hpc.slurm.commands.Slurm.queue", lambda self: [])
    monkeypatch.setattr("core_hpc.status.collect.slurm_installed", lambda: True)
    (found,) = read_status([locate(sweep_of(colleagues))], Manifests())
    assert found.runs[0].waiting == 1


def test_records_of_earlier_versions_are_this_users(started: Run, slurm: FakeSlurm) -> None:
    folder = SubmissionFolder(started.paths.slurm)
    ((name, _),) = folder.names(OPEN)
    path = folder.root / f"{name}.{OPEN}.json"
    data = manifests.read_json(path)
    manifests.write_json(path, {k: v for k, v in data.items() if k not in ("uid", "folder")})
    assert adopted(started, slurm)[0] == [KEY]
    assert RunPaths(started.root).slurm == folder.root
