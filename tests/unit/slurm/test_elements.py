"""What runs inside a SLURM job, in this process and without SLURM."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from core_hpc.runs.folder import Run
from core_hpc.runs.job_status import JobEnd, JobStatus
from core_hpc.runs.outcome import OutcomeKind
from core_hpc.slurm import element
from core_hpc.slurm.element import ElementSpec, run_element
from core_hpc.store import manifests
from core_hpc.store.paths import TaskKey
from tests.support.fake_slurm import publish, run_of

UPDATE = TaskKey(1, "update", "a")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(element.signal, "signal", lambda *_: None)
    monkeypatch.setenv("CORE_HPC_JOB_START", str(time.time()))
    return run_of(tmp_path, "arrays", chain_wait_s=5)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[TaskKey]:
    """The tasks that workers get. They end at once."""
    keys: list[TaskKey] = []

    def serve(worker: object, run: Run, key: TaskKey, *more: object) -> JobEnd:
        keys.append(key)
        return JobEnd(OutcomeKind.DONE)

    monkeypatch.setattr(element, "_serve", serve)
    monkeypatch.setattr(element._Workers, "of", lambda workers, key: None)
    return keys


def spec_of(run: Run, *keys: TaskKey, **changes: Any) -> ElementSpec:
    fields: dict[str, Any] = {
        "run": str(run.root),
        "tasks": tuple(map(str, keys)),
        "status": str(run.root / "status.json"),
        "threads": 1,
        "time_min": 60,
        "signal_delay_s": 120.0,
        "preemption_grace_s": 30.0,
    }
    return ElementSpec(**{**fields, **changes})


def end_of(run: Run) -> JobEnd | None:
    """The end in the status file."""
    return manifests.read_record(run.root / "status.json", JobStatus.from_file).outcome


@pytest.mark.parametrize(("num_ranks", "expected"), [(1, []), (2, [UPDATE])])
def test_only_all_ranks_together_find_that_an_update_is_published(
    run: Run, served: list[TaskKey], monkeypatch: pytest.MonkeyPatch, num_ranks: int, expected: list[TaskKey]
) -> None:
    """If one rank saw the file and another one did not, the other one would wait for it."""
    publish(run, UPDATE)
    monkeypatch.setenv("SLURM_NTASKS", str(num_ranks))
    for rank in range(num_ranks):
        monkeypatch.setenv("SLURM_PROCID", str(rank))
        served.clear()
        run_element(spec_of(run, UPDATE))
        assert served == expected
