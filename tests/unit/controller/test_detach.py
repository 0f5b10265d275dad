"""The end of a chain of detached controllers: records are closed, and nothing is left of a successor."""

from __future__ import annotations

import errno
import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from core_hpc.common.errors import ClaimError, ClaimLostError, CoreHpcError, InputError, StoreError
from core_hpc.controller import detach, successor
from core_hpc.controller.detach import ControllerSpec, run_controller
from core_hpc.controller.heartbeat import reported_life_s
from core_hpc.controller.successor import Successor
from core_hpc.runs.outcome import OutcomeKind
from core_hpc.schedule.progress import RunProgress
from core_hpc.slurm.commands import JobId, SlurmUnavailableError
from core_hpc.slurm.records import CALLS, ENDED, FAILED, OPEN, Submission, SubmissionFolder, new_submission
from core_hpc.slurm.sbatch import RefusedError
from core_hpc.store import manifests
from core_hpc.store.claims import claim
from core_hpc.store.paths import SweepPaths
from tests.support.fake_slurm import FakeSlurm, run_of
from tests.support.harness import hide_from_lookups, replace_sleep

MINE, SUCCESSOR = 50, 51


class Chain:
    """A detached controller inside its job, on a queue that is NOT SLURM."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, slurm: FakeSlurm) -> None:
        self.run, self.slurm = run_of(folder, "arrays"), slurm
        self.refusals: list[str] = []
        self.following: list[ControllerSpec] = []
        self.printed = io.StringIO()
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
        monkeypatch.setattr(detach, "standard_console", lambda: Console(file=self.printed, width=500))
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
        if self.refusals:
            raise RefusedError(self.refusals.pop(0))
        (submission,) = [s for s in self.folder.read(OPEN) if s.job is None]
        self.following += [call.args[0] for call in calls]
        submission.job = SUCCESSOR + len(self.following) - 1
        self.files_of(submission)
        self.slurm.set(submission, 0, "PENDING", reason="Dependency")
        return submission.job

    def _has_ended(self, job: int, user: str | None = None) -> bool:
        return not any(e.id.job == job and e.active for e in self.slurm.entries.values())


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: FakeSlurm) -> Chain:
    return Chain(tmp_path, monkeypatch, slurm)


def test_a_finished_sweep_leaves_no_open_record_and_nothing_of_its_last_successor(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = chain.record(MINE - 1, "COMPLETED")
    monkeypatch.setattr(detach, "control", lambda *_, **__: ([], True))
    run_controller(chain.spec)
    assert chain.slurm.cancelled == [JobId(SUCCESSOR)]
    assert chain.folder.names(OPEN) == []
    assert {name for name, _ in chain.folder.names(ENDED, FAILED)} == {chain.mine.name, earlier.name}
    assert not SweepPaths(chain.sweep).claim.exists()
    left = {p.name for p in chain.folder.root.rglob("*") if p.is_file() and not p.name.startswith("controller-")}
    assert left == {"submission.sh", f"{MINE}_0_log.out", f"{MINE - 1}_0_log.out"}
    assert {p.name for p in chain.folder.root.iterdir() if p.is_dir()} == {chain.mine.name, earlier.name}


def test_a_job_of_another_name_with_the_id_of_the_successor_is_not_cancelled(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_the_id_again(*_: object, **__: object) -> tuple[list[RunProgress], bool]:
        job = JobId(SUCCESSOR)
        chain.slurm.entries[job] = replace(chain.slurm.entries[job], name="my_simulation")
        return [], True

    monkeypatch.setattr(detach, "control", give_the_id_again)
    run_controller(chain.spec)
    assert chain.slurm.cancelled == []


def test_an_error_that_would_repeat_ends_the_chain_and_is_recorded(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise InputError("job 7 of another driver is still with SLURM")

    monkeypatch.setattr(detach, "control", fail)
    with pytest.raises(InputError, match="another driver"):
        run_controller(chain.spec)
    assert chain.slurm.cancelled == [JobId(SUCCESSOR)]
    ((_, closed),) = chain.folder.read_with_state(FAILED)
    assert (closed.name, closed.outcomes[0].kind) == (chain.mine.name, OutcomeKind.DIED)
    assert closed.outcomes[0].message == "job 7 of another driver is still with SLURM"


def test_a_full_disk_ends_the_chain_with_a_message(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "/project/x.json")

    monkeypatch.setattr(detach, "control", fail)
    with pytest.raises(
        CoreHpcError, match=r"/project/x\.json: Disk quota exceeded; published files are kept\. Free space"
    ):
        run_controller(chain.spec)
    assert chain.slurm.cancelled == [JobId(SUCCESSOR)]
    ((_, closed),) = chain.folder.read_with_state(FAILED)
    assert closed.outcomes[0].message.startswith("/project/x.json: Disk quota exceeded")


def test_a_stop_request_that_only_a_listing_shows_ends_the_chain(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM ends the job while a user asks the sweep to stop."""
    hide_from_lookups(monkeypatch, "stop.json")

    def end(*_: object, **__: object) -> None:
        SweepPaths(chain.sweep).stop_request.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(detach, "control", end)
    run_controller(chain.spec)
    assert chain.slurm.cancelled == [JobId(SUCCESSOR)]
    monkeypatch.setattr(detach, "control", None)
    run_controller(chain.spec)  # a successor that began in spite of it


@pytest.mark.parametrize(
    "error", [KeyError("stats"), OSError("odd"), StoreError("run.json: cannot be read (Stale file handle)")]
)
def test_an_error_that_is_a_bug_or_may_pass_leaves_the_successor(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(detach, "control", fail)
    with pytest.raises(type(error)):
        run_controller(chain.spec)
    assert chain.slurm.cancelled == []
    assert len(chain.folder.names(OPEN)) == 2


def test_a_file_that_cannot_be_read_at_first_does_not_end_a_chain_that_has_no_successor_yet(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, hidden = chain.run.paths.config, chain.run.root / "hidden.json"
    config.rename(hidden)
    replace_sleep(monkeypatch, detach, lambda _: hidden.rename(config))
    monkeypatch.setattr(detach, "control", lambda *_, **__: ([], True))
    run_controller(chain.spec)
    ((_, closed),) = chain.folder.read_with_state(ENDED, FAILED)
    assert (closed.name, closed.outcomes[0].kind) == (chain.mine.name, OutcomeKind.DONE)


def test_a_file_system_that_fails_for_a_moment_does_not_end_a_chain_that_has_no_successor_yet(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither files nor the listing that shows a stop request can be read. NOT a real failure: the listing raises."""
    list_names, is_sick = manifests.list_names, True
    config, hidden = chain.run.paths.config, chain.run.root / "hidden.json"
    config.rename(hidden)

    def fail_at_first(folder: Path) -> set[str]:
        if is_sick:
            raise OSError(errno.EIO, "Input/output error", str(folder))
        return list_names(folder)

    def recover(_: float) -> None:
        nonlocal is_sick
        is_sick = False
        hidden.rename(config)

    monkeypatch.setattr(manifests, "list_names", fail_at_first)
    replace_sleep(monkeypatch, detach, recover)
    monkeypatch.setattr(detach, "control", lambda *_, **__: ([], True))
    run_controller(chain.spec)
    ((_, closed),) = chain.folder.read_with_state(ENDED, FAILED)
    assert (closed.name, closed.outcomes[0].kind) == (chain.mine.name, OutcomeKind.DONE)


def test_a_signal_while_the_file_system_fails_leaves_a_successor(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """NOT a real failure: the listing raises while the controller handles the signal."""
    list_names = manifests.list_names

    def end(*_: object, **__: object) -> None:
        monkeypatch.setattr(manifests, "list_names", fail)
        raise KeyboardInterrupt

    def fail(folder: Path) -> set[str]:
        monkeypatch.setattr(manifests, "list_names", list_names)
        raise OSError(errno.ESTALE, "Stale file handle", str(folder))

    monkeypatch.setattr(detach, "control", end)
    run_controller(chain.spec)
    assert chain.slurm.cancelled == []
    assert len(chain.folder.names(OPEN)) == 2


def test_a_controller_that_waits_for_a_file_ends_when_the_sweep_is_asked_to_stop(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.run.paths.config.unlink()
    stop = SweepPaths(chain.sweep).stop_request

    def wait(_: float) -> None:
        assert not stop.exists(), "it waited again"
        stop.touch()

    replace_sleep(monkeypatch, detach, wait)
    with pytest.raises(StoreError):
        run_controller(chain.spec)


@pytest.mark.parametrize(
    ("lived_s", "start_id", "continues"),
    [(None, "start", False), (5.0, "start", False), (61.0, "start", True), (61.0, "earlier", False)],
)
def test_after_some_controllers_that_ended_quickly_there_is_no_successor_however_long_each_waited_in_the_queue(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, lived_s: float | None, start_id: str, continues: bool
) -> None:
    submitted = time.time() - 3600
    if lived_s is not None:
        report = {"start_id": start_id, "started": submitted + 1, "time": submitted + 1 + lived_s}
        manifests.write_json(SweepPaths(chain.sweep).controller, report)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(detach, "control", interrupt)
    run_controller(replace(chain.spec, quick_ends=detach.MAX_QUICK_ENDS, submitted=submitted))
    waiting = [s.job for s in chain.folder.read(OPEN)]
    assert (SUCCESSOR in waiting) == continues
    assert chain.slurm.cancelled == []
    printed = chain.printed
    if continues:
        assert f"the successor, job {SUCCESSOR}, continues" in printed.getvalue()
    else:
        assert "4 controllers ended within 60 s each" in printed.getvalue()
        assert "there is no successor; start the sweep again" in printed.getvalue()
        assert "None" not in printed.getvalue()
        assert waiting == [], "the record of this controller is closed"


def test_a_controller_that_reports_from_an_earlier_life_does_not_count_for_the_predecessor(chain: Chain) -> None:
    """The controller before the predecessor lived for hours; the predecessor has reported nothing."""
    now = time.time()
    path = SweepPaths(chain.sweep).controller
    manifests.write_json(path, {"start_id": "start", "started": now - 9000, "time": now - 4000})
    assert reported_life_s(path, "start", since=now - 3900) == 0.0
    assert reported_life_s(path, "start", since=now - 9001) == pytest.approx(5000)
    path.write_text("torn")
    assert reported_life_s(path, "start", since=now - 9001) == 0.0


def test_a_controller_that_lost_its_claim_does_not_attempt_again_and_leaves_the_successor(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor may be the new holder, or that of the new holder: SLURM has started this job again elsewhere."""
    calls = []

    def lose(*_: object, **__: object) -> None:
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
    assert chain.slurm.cancelled == []
    assert {s.job for s in chain.folder.read(OPEN)} == {MINE, SUCCESSOR}


def test_the_successor_of_a_controller_that_lost_its_claim_ends_the_chain_if_another_controller_works(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: object, **__: object) -> None:
        raise ClaimLostError("claim.json: another controller has taken the sweep")

    monkeypatch.setattr(detach, "CLAIM_WAIT_S", 0.0)
    with claim(SweepPaths(chain.sweep).claim):
        with monkeypatch.context() as first:
            first.setattr(detach, "control", lose)
            with pytest.raises(ClaimLostError):
                run_controller(chain.spec)
        (waiting,) = [s for s in chain.folder.read(OPEN) if s.job == SUCCESSOR]
        chain.slurm.set(chain.mine, 0, "COMPLETED")
        chain.slurm.set(waiting, 0, "RUNNING")
        monkeypatch.setenv("SLURM_JOB_ID", str(SUCCESSOR))
        with pytest.raises(ClaimError, match="another controller is running"):
            run_controller(chain.following[0])
    assert chain.slurm.cancelled == [JobId(SUCCESSOR + 1)]


# --- a successor that SLURM does not take at first -----------------------------------------------

FULL = "QOSGrpSubmitJobsLimit Batch job submission failed: Job violates accounting/QOS policy (job submit limit)"
NO_QOS = "Batch job submission failed: Invalid qos specification"


def working(monkeypatch: pytest.MonkeyPatch, *, passes: int) -> None:
    """A controller that works for some passes of its loop, until its time limit."""

    def work(*_: object, in_loop: Callable[[], None], **__: object) -> None:
        for _ in range(passes):
            in_loop()
        raise KeyboardInterrupt

    monkeypatch.setattr(detach, "control", work)


def test_a_controller_without_a_successor_works_and_attempts_again(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(successor, "RETRY_S", 0.0)
    replace_sleep(monkeypatch, detach, lambda _: pytest.fail("it waits before it works"))
    chain.refusals = [FULL] * 20
    working(monkeypatch, passes=30)
    began = time.time()
    run_controller(chain.spec)
    printed = chain.printed.getvalue()
    assert printed.count("no successor yet") == 1
    assert "QOSGrpSubmitJobsLimit" in printed
    assert f"the successor is job {SUCCESSOR}" in printed
    assert f"the successor, job {SUCCESSOR}, continues" in printed
    assert SUCCESSOR in [s.job for s in chain.folder.read(OPEN)]
    # The successor counts how long this controller has reported, from its begin.
    (following,) = chain.following
    assert following.submitted == pytest.approx(began, abs=5)


def test_the_life_of_a_controller_counts_from_its_begin_however_late_it_got_its_successor(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(successor, "RETRY_S", 0.0)
    chain.refusals = [FULL]
    heartbeat = SweepPaths(chain.sweep).controller

    def work(*_: object, in_loop: Callable[[], None], **__: object) -> None:
        now = time.time()
        manifests.write_json(heartbeat, {"start_id": "start", "started": now, "time": now + 18000})
        monkeypatch.setattr(detach.time, "time", lambda: now + 18000)
        in_loop()
        raise KeyboardInterrupt

    monkeypatch.setattr(detach, "control", work)
    run_controller(chain.spec)
    (following,) = chain.following
    assert reported_life_s(heartbeat, "start", since=following.submitted) == pytest.approx(18000, abs=5)


@pytest.mark.parametrize("stops", [False, True])
def test_a_controller_without_a_successor_attempts_a_last_time_before_it_ends(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    chain.refusals = [FULL]
    working(monkeypatch, passes=3)
    answers = iter([False, *[stops] * 9])
    monkeypatch.setattr(detach, "stop_requested", lambda _: next(answers))
    run_controller(chain.spec)
    assert chain.refusals == []
    assert (f"the successor, job {SUCCESSOR}, continues" in chain.printed.getvalue()) == (not stops)


@pytest.mark.parametrize("refused", [False, True])
def test_a_successor_that_was_cancelled_meanwhile_is_replaced_before_the_controller_ends(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    def work(*_: object, **__: object) -> None:
        (waiting,) = [s for s in chain.folder.read(OPEN) if s.job == SUCCESSOR]
        chain.slurm.set(waiting, 0, "CANCELLED")
        chain.refusals = [NO_QOS] if refused else []
        raise KeyboardInterrupt

    monkeypatch.setattr(detach, "control", work)
    run_controller(chain.spec)
    end = "there is no successor" if refused else f"the successor, job {SUCCESSOR + 1}, continues"
    assert end in chain.printed.getvalue()
    assert len(chain.following) == 2 - refused


def test_a_successor_stays_known_while_slurm_does_not_answer() -> None:
    answers: list[int | None] = [SUCCESSOR]

    def submit() -> int | None:
        if not answers:
            raise SlurmUnavailableError("squeue: Unable to contact slurm controller")
        return answers.pop()

    next_one = Successor(lambda _: None)
    next_one.allow(submit)
    next_one.ensure(now=True)
    assert next_one.job == SUCCESSOR


def test_a_refusal_of_the_successor_that_cannot_pass_is_final(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(successor, "RETRY_S", 0.0)
    chain.refusals = [NO_QOS] * 2
    working(monkeypatch, passes=3)
    run_controller(chain.spec)
    assert chain.refusals == [NO_QOS]
    assert "no successor: Batch job submission failed: Invalid qos" in chain.printed.getvalue()
    assert "there is no successor; start the sweep again" in chain.printed.getvalue()


def test_between_two_attempts_some_minutes_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    now, attempts, reports = [0.0], list[float](), list[str]()
    monkeypatch.setattr(successor.time, "monotonic", lambda: now[0])

    def submit() -> int | None:
        attempts.append(now[0])
        if now[0] < 300:
            raise SlurmUnavailableError("squeue: Unable to contact slurm controller")
        return None if now[0] < 500 else SUCCESSOR

    next_one = Successor(reports.append)
    next_one.allow(submit)
    for now[0] in range(0, 1000, 30):
        next_one.ensure()
    assert attempts == [0, 180, 360, 540]
    assert next_one.job == SUCCESSOR
    assert [report.partition(":")[0] for report in reports] == [
        "no successor yet",
        "no successor yet",
        f"the successor is job {SUCCESSOR}",
    ]


def test_a_controller_waits_while_slurm_does_not_confirm_that_the_one_before_has_ended(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [SlurmUnavailableError("squeue: Unable to contact slurm controller")] * 3
    replace_sleep(monkeypatch, detach, lambda _: None)

    def work(*_: object, **__: object) -> tuple[list[Any], bool]:
        if answers:
            raise answers.pop()
        return [], True

    monkeypatch.setattr(detach, "control", work)
    run_controller(chain.spec)
    assert answers == []
    ((_, closed),) = chain.folder.read_with_state(ENDED, FAILED)
    assert closed.outcomes[0].kind == OutcomeKind.DONE
