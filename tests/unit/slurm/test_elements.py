"""What runs inside a SLURM job, in this process and without SLURM."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core_hpc.common.errors import InputError
from core_hpc.config.slurm import PhaseGroup
from core_hpc.engines.share import engine_gpus
from core_hpc.local.executor import LocalLimits
from core_hpc.runs.folder import Run, open_run
from core_hpc.runs.job_status import JobEnd, JobStatus
from core_hpc.runs.outcome import OutcomeKind
from core_hpc.slurm import element, resident_job, submit
from core_hpc.slurm.element import ElementSpec, run_element
from core_hpc.slurm.job import read_call
from core_hpc.slurm.records import CALLS, SubmissionFolder, new_submission
from core_hpc.store import manifests, shards
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


class Environments:
    """NOT a process: keeps the environment that it would have."""

    seen: list[dict[str, str]]

    def __init__(self, role: str, log: object, environment: dict[str, str], **more: object) -> None:
        self.seen.append(environment)


def with_engine_gpus(run: Run, number: int) -> Run:
    """The run after a start with other `cluster.engine_gpus`."""
    config = manifests.read_json(run.paths.config)
    config["cluster"]["engine_gpus"] = number
    config["cluster"]["slurm"]["gpus_per_node"] = number
    manifests.write_json(run.paths.config, config)
    return open_run(run.root)


@pytest.mark.parametrize("group", ["generate", "resident"])
def test_a_job_that_waited_while_the_run_got_larger_engines_uses_the_gpus_that_it_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, group: PhaseGroup
) -> None:
    run = with_engine_gpus(run, 2)
    submission = new_submission(group, "cold-0001", [[TaskKey(1, "cold", "a", 0)]], start_id="x", mem_gb=1)
    folder = SubmissionFolder(run.paths.slurm)
    monkeypatch.setattr(submit, "run_sbatch", lambda script: 7)
    submit.submit_elements(folder, submission, run.config.cluster, run.root)
    calls = folder.folder(submission) / CALLS
    _, spec = read_call(calls, manifests.sha256_file(calls), 0)
    run = with_engine_gpus(run, 4)

    used = []
    if group == "resident":

        def limits_of(cluster: Any, *_: object, **__: object) -> None:
            used.append(cluster.engine_gpus)
            raise InputError("enough")

        monkeypatch.setattr(LocalLimits, "of", limits_of)
        with pytest.raises(element.ElementError, match="enough"):
            resident_job.run_resident(spec)
    else:
        Environments.seen = []
        monkeypatch.setattr(element, "WorkerProcess", Environments)
        monkeypatch.setattr(element, "_serve", lambda *_: JobEnd(OutcomeKind.DONE))
        monkeypatch.setattr(element, "end_workers", lambda workers: None)
        run_element(spec)
        for name, value in Environments.seen[0].items():
            monkeypatch.setenv(name, value)
        used.append(engine_gpus(run.config.cluster))
    assert used == [2]


def failing(times: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which fails `times` times before it works."""
    left = [errno.ESTALE] * times

    def call(*arguments: Any, **named: Any) -> Any:
        if left:
            raise OSError(left.pop(), "Stale file handle")
        return function(*arguments, **named)

    return call


FILES = [(element, "open_run"), (Run, "graph"), (element, "stored_steps"), (element.manifests, "list_names")]
FILES_OF_A_RESIDENT_JOB = [(Run, "graph"), (shards, "published_keys"), (resident_job, "inspect_run")]


@pytest.mark.parametrize(("owner", "name"), FILES)
def test_an_element_waits_for_a_file_system_that_reports_errors(
    run: Run, served: list[TaskKey], monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    monkeypatch.setattr(element, "FILES_RETRY_S", 0.01)
    monkeypatch.setattr(owner, name, failing(2, getattr(owner, name)))
    run_element(spec_of(run, UPDATE))
    assert served == [UPDATE]
    assert end_of(run) == JobEnd(OutcomeKind.DONE)


@pytest.mark.parametrize(("owner", "name"), FILES)
def test_an_element_reports_a_file_system_that_goes_on_to_fail(
    run: Run, served: list[TaskKey], monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    monkeypatch.setattr(element, "FILES_PATIENCE_S", 0.0)
    monkeypatch.setattr(owner, name, failing(9, getattr(owner, name)))
    with pytest.raises(element.ElementError, match="Stale"):
        run_element(spec_of(run, UPDATE))
    end = end_of(run)
    assert end is not None
    assert (end.kind, served) == (OutcomeKind.ERROR, [])
    assert "Stale file handle" in end.message


@pytest.mark.parametrize("patience_s", [10.0, 0.0])
@pytest.mark.parametrize(("owner", "name"), FILES_OF_A_RESIDENT_JOB)
def test_a_resident_job_waits_for_a_file_system_that_reports_errors(
    run: Run, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, patience_s: float
) -> None:
    """And reports the error if it lasts."""

    def limits_of(*_: object, **__: object) -> None:
        raise InputError("as far as it should come")

    monkeypatch.setattr(LocalLimits, "of", limits_of)
    monkeypatch.setattr(element, "FILES_RETRY_S", 0.01)
    monkeypatch.setattr(element, "FILES_PATIENCE_S", patience_s)
    monkeypatch.setattr(owner, name, failing(2, getattr(owner, name)))
    with pytest.raises(element.ElementError, match="as far as it should come" if patience_s else "Stale"):
        resident_job.run_resident(spec_of(run, UPDATE))
    end = end_of(run)
    assert end is not None
    assert end.kind == OutcomeKind.ERROR
