"""The driver of a sweep is chosen in one place, and knows what its models need of a GPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import yaml
from core_hpc.common.errors import InputError
from core_hpc.controller import drivers
from core_hpc.controller.drivers import make_driver
from core_hpc.local import executor, gpus
from core_hpc.local.executor import LocalExecutor
from core_hpc.runs.folder import Run, open_run
from core_hpc.runs.sweep import load_sweep
from core_hpc.slurm.arrays import ArrayPacking, ChainedPacking
from core_hpc.slurm.executor import SlurmExecutor
from core_hpc.slurm.records import FAILED, OPEN, SubmissionFolder, new_submission
from core_hpc.slurm.resident import ResidentPacking
from core_hpc.store.paths import TaskKey
from tests.support.created_run import create_run
from tests.support.fake_slurm import SWEEP, FakeSlurm


def run_of(folder: Path, num_weights: int = 0, **cluster: Any) -> Run:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**SWEEP, "output": str(folder), "cluster": cluster}))
    sweep = load_sweep(path)
    return create_run(sweep, num_weights=num_weights)


@pytest.mark.parametrize(
    ("gpu_gb", "asked", "kind"),
    [(24.0, "auto", "sleep"), (24.0, "sleep", "sleep"), (200.0, "auto", "split"), (6.0, "auto", "evict")],
)
def test_the_local_driver_shares_gpus_by_what_its_models_need(
    gpu_gb: float, asked: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(gpus, "has_gpu", lambda: True)
    monkeypatch.setattr(executor, "gpu_memory", lambda names: gpu_gb)
    driver = make_driver([run_of(tmp_path, 10**9, gpu_sharing=asked)], None, start_id="s", notify=print)
    assert isinstance(driver.executor, LocalExecutor)
    assert f"sharing: {kind} (" in driver.description
    assert f"GPU of {gpu_gb:.0f} GiB" in driver.description, "the reason is shown"
    driver.executor.close()


@pytest.mark.parametrize(
    ("driver", "slurm", "packing"),
    [("arrays", {}, ArrayPacking), ("arrays", {"chain_wait_s": 5}, ChainedPacking), ("resident", {}, ResidentPacking)],
)
def test_drivers_on_slurm_differ_in_their_packing(
    driver: str, slurm: dict[str, Any], packing: type, tmp_path: Path
) -> None:
    made = make_driver([run_of(tmp_path, driver=driver, slurm=slurm)], FakeSlurm(), start_id="s", notify=print)
    assert isinstance(made.executor, SlurmExecutor)
    assert type(made.executor._packing) is packing
    assert made.warm is (driver == "resident")


@pytest.mark.parametrize("job", [7, None])
def test_the_local_driver_refuses_tasks_that_a_slurm_job_may_still_do(
    job: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start with `driver: arrays` was interrupted, and its jobs wait or run."""
    run, slurm = run_of(tmp_path), FakeSlurm()
    folder = SubmissionFolder(run.paths.slurm)
    submission = new_submission("generate", "cold-0001", [[TaskKey(1, "cold", "a")]], start_id="s", mem_gb=1)
    submission.job = job
    folder.write(submission)
    monkeypatch.setattr(drivers, "Slurm", lambda: slurm)
    monkeypatch.setattr(drivers, "slurm_installed", lambda: True)
    if job is not None:
        slurm.set(submission, 0, "PENDING")
    with pytest.raises(InputError, match=rf"{submission.name}.*core_hpc\.cancel {run.root.parent}"):
        make_driver([run], None, start_id="s", notify=print)
    assert folder.names(OPEN) == [(submission.name, OPEN)]


def test_the_local_driver_does_the_tasks_of_a_copied_folder_itself_and_reports_it(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    original = SubmissionFolder(run.paths.slurm)
    original.write(new_submission("generate", "cold-0001", [[TaskKey(1, "cold", "a")]], start_id="s", mem_gb=1))
    copy = open_run(shutil.copytree(run.root, tmp_path / "copy"))
    messages: list[str] = []
    make_driver([copy], None, start_id="s", notify=messages.append).executor.close()
    assert messages == [
        f"{copy.root} is a copy of {run.root}: the jobs of the original continue, and publish there only"
    ]
    assert SubmissionFolder(copy.paths.slurm).names(OPEN) == []
    assert len(original.names(OPEN)) == 1


def test_the_local_driver_closes_the_records_of_jobs_that_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open records would keep leftovers of killed writers for ever."""
    run, slurm = run_of(tmp_path), FakeSlurm()
    folder = SubmissionFolder(run.paths.slurm)
    submission = new_submission("generate", "cold-0001", [[TaskKey(1, "cold", "a")]], start_id="s", mem_gb=1)
    submission.job = 7
    folder.write(submission)
    slurm.set(submission, 0, "FAILED")
    monkeypatch.setattr(drivers, "Slurm", lambda: slurm)
    monkeypatch.setattr(drivers, "slurm_installed", lambda: False)
    with pytest.raises(InputError, match=f"If it has certainly ended, remove .*{submission.name}.open.json"):
        make_driver([run], None, start_id="s", notify=print)
    monkeypatch.setattr(drivers, "slurm_installed", lambda: True)
    make_driver([run], None, start_id="s", notify=print).executor.close()
    assert folder.names(OPEN) == []
    ((_, closed),) = folder.read_with_state(FAILED)
    assert (closed.outcomes[0].kind, closed.outcomes[0].counted) == ("abandoned", False)
