"""The end of a chain of detached controllers: records are closed, and nothing is left of a successor."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core_hpc.common.errors import ClaimLostError, StoreError
from core_hpc.controller import detach
from core_hpc.controller.detach import ControllerSpec, run_controller
from core_hpc.runs.outcome import OutcomeKind
from core_hpc.slurm.records import CALLS, ENDED, FAILED, OPEN, Submission, SubmissionFolder, new_submission
from core_hpc.store.claims import claim
from core_hpc.store.paths import SweepPaths
from tests.support.fake_slurm import FakeSlurm, run_of

MINE, SUCCESSOR = 50, 51


class Chain:
    """A detached controller inside its job, on a queue that is NOT SLURM."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, slurm: FakeSlurm) -> None:
        self.run, self.slurm = run_of(folder, "arrays"), slurm
        self.sweep = self.run.root.parent
        self.folder = SubmissionFolder(SweepPaths(self.sweep).slurm)
        self.spec = ControllerSpec(str(self.sweep), (self.run.run_id,), "start", -1, 0.0)
        self.mine = self.record(MINE, "RUNNING")
        self.spec = replace(self.spec, status=str(self.folder.status_file(self.mine, 0)))
        monkeypatch.setenv("SLURM_JOB_ID", str(MINE))
        monkeypatch.setattr(detach, "Slurm", lambda: slurm)
        monkeypatch.setattr(detach, "submit", self._submit)
        monkeypatch.setattr(detach.signal, "signal", lambda *_: None)
        monkeypatch.setattr(detach, "conclude", lambda *_: 0)
        monkeypatch.setattr(slurm, "has_ended", self._has_ended)

    def record(self, job: int, state: str) -> Submission:
        submission = new_submission("controller", "controller-0001", [[]], start_id="start", mem_gb=1)
        submission.job = job
        self.folder.write(submission)
        self.files_of(submission)
        self.slurm.set(submission, 0, state)
        return submission

    def files_of(self, submission: Submission) -> None:
        """What a submission and its job leave in the folder."""
        self.folder.folder(submission).mkdir(exist_ok=True)
        for name in ("submission.sh", CALLS, f"{submission.job}_0_log.out"):
            (self.folder.folder(submission) / name).touch()

    def _submit(self, cluster: Any, folder: Path, parameters: dict[str, Any], calls: Any) -> int:
        (submission,) = [s for s in self.folder.read(OPEN) if s.job is None]
        submission.job = SUCCESSOR
        self.files_of(submission)
        self.slurm.set(submission, 0, "PENDING", reason="Dependency")
        return SUCCESSOR

    def _has_ended(self, job: int, user: str | None = None) -> bool:
        return not any(e.id.job == job and e.active for e in self.slurm.entries.values())


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: FakeSlurm) -> Chain:
    return Chain(tmp_path, monkeypatch, slurm)


def test_a_finished_sweep_leaves_no_open_record_and_nothing_of_its_last_successor(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = chain.record(MINE - 1, "COMPLETED")
    monkeypatch.setattr(detach, "control", lambda *_: ([], True))
    run_controller(chain.spec)
    assert chain.slurm.cancelled == [SUCCESSOR]
    assert chain.folder.names(OPEN) == []
    assert {name for name, _ in chain.folder.names(ENDED, FAILED)} == {chain.mine.name, earlier.name}
    assert not SweepPaths(chain.sweep).claim.exists()
    left = {p.name for p in chain.folder.root.rglob("*") if p.is_file() and not p.name.startswith("controller-")}
    assert left == {"submission.sh", f"{MINE}_0_log.out", f"{MINE - 1}_0_log.out"}
    assert {p.name for p in chain.folder.root.iterdir() if p.is_dir()} == {chain.mine.name, earlier.name}


def test_an_error_that_would_repeat_ends_the_chain_and_is_recorded(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("run.json: cannot be read")

    monkeypatch.setattr(detach, "control", fail)
    with pytest.raises(StoreError, match="cannot be read"):
        run_controller(chain.spec)
    assert chain.slurm.cancelled == [SUCCESSOR]
    ((_, closed),) = chain.folder.read_with_state(FAILED)
    assert (closed.name, closed.outcomes[0].kind) == (chain.mine.name, OutcomeKind.DIED)
    assert closed.outcomes[0].message == "run.json: cannot be read"


def test_an_error_that_is_a_bug_leaves_the_successor(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("stats")

    monkeypatch.setattr(detach, "control", fail)
    with pytest.raises(KeyError):
        run_controller(chain.spec)
    assert chain.slurm.cancelled == []
    assert len(chain.folder.names(OPEN)) == 2


def test_a_controller_that_lost_its_claim_does_not_attempt_again(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def lose(*_: object) -> None:
        calls.append(1)
        raise ClaimLostError("claim.json: another controller has taken the sweep")

    monkeypatch.setattr(detach, "control", lose)
    with claim(SweepPaths(chain.sweep).claim):  # the other controller; its process lives
        holder = json.loads(SweepPaths(chain.sweep).claim.read_text())
        with pytest.raises(ClaimLostError):
            run_controller(chain.spec)
        assert json.loads(SweepPaths(chain.sweep).claim.read_text()) == holder
    assert calls == [1]
    assert holder["pid"] == os.getpid()
    assert chain.slurm.cancelled == [SUCCESSOR]
