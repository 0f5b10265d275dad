"""The outcome of an element, from the state in SLURM, the status files and the log."""

from typing import Any

import pytest

from core_hpc.runs.job_status import JobStatus, StopReason
from core_hpc.runs.outcome import Outcome, OutcomeKind
from core_hpc.slurm.outcomes import explain

OOM_BY_POLLING = "slurmstepd: error: StepId=12.0 exceeded memory limit (2113929216 > 2097152000), being killed\n"
OOM_BY_CGROUP = (
    "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=12.0. Some of your processes may have been killed\n"
)


def status(outcome: dict[str, Any] | None = None, **changes: Any) -> JobStatus:
    body = {"node": "n7", "published": 0, "stopping": None, "outcome": outcome, "progress": None, "restarts": 0}
    return JobStatus.from_json({**body, **changes})


def explained(
    state: str | None, *statuses: JobStatus, log: str = "", settled: bool = True, lost: bool = False
) -> Outcome | None:
    return explain(state, statuses, log, nodes="n7", settled=settled, lost=lost)


@pytest.mark.parametrize(
    ("state", "kind", "counted"),
    [
        ("NODE_FAIL", OutcomeKind.NODE, False),
        ("BOOT_FAIL", OutcomeKind.NODE, False),
        ("OUT_OF_MEMORY", OutcomeKind.OUT_OF_MEMORY, True),
        ("PREEMPTED", OutcomeKind.PREEMPTED, False),
        ("CANCELLED", OutcomeKind.CANCELLED, True),
        ("TIMEOUT", OutcomeKind.TIME_LIMIT, True),
        ("FAILED", OutcomeKind.DIED, True),
        ("COMPLETED", OutcomeKind.DIED, True),
    ],
)
def test_without_a_report_of_the_job_the_state_decides(state: str, kind: str, counted: bool) -> None:
    outcome = explained(state, status())
    assert outcome is not None
    assert (outcome.kind, outcome.counted, outcome.node) == (kind, counted, "n7")


def test_a_failure_that_the_task_reported_wins_over_the_state() -> None:
    failed = {"kind": "error", "message": "ValueError: no", "traceback": "Traceback ..."}
    for state in ("FAILED", "CANCELLED", "COMPLETED", "NODE_FAIL", None):
        outcome = explained(state, status(failed))
        assert outcome is not None
        assert (outcome.kind, outcome.message, outcome.traceback, outcome.counted) == (
            "error",
            "ValueError: no",
            "Traceback ...",
            True,
        )


def test_the_rank_that_failed_is_reported_and_not_a_rank_that_was_ended_afterwards() -> None:
    ended = status({"kind": "stopped", "reason": StopReason.TERMINATED}, stopping=StopReason.TERMINATED)
    failed = status({"kind": "died", "message": "worker ended with signal SIGKILL"}, node="n9")
    outcome = explained("FAILED", ended, failed)
    assert outcome is not None
    assert (outcome.kind, outcome.node) == (OutcomeKind.DIED, "n9")


@pytest.mark.parametrize("log", [OOM_BY_POLLING, OOM_BY_CGROUP])
def test_out_of_memory_is_found_in_the_log_if_the_state_is_failed(log: str) -> None:
    died = {"kind": "died", "message": "worker ended with signal SIGKILL"}
    for statuses in ([status()], [status(died)], []):
        outcome = explained("FAILED", *statuses, log=log)
        assert outcome is not None
        assert outcome.kind == OutcomeKind.OUT_OF_MEMORY


def test_the_log_of_a_job_before_slurm_started_it_again_explains_nothing() -> None:
    begins = "job 12 on n7, rank 0 of 1: /runs/calls.json\n"
    outcome = explained("FAILED", status(), log=begins + OOM_BY_CGROUP + begins + "Traceback ...")
    assert outcome is not None
    assert outcome.kind == OutcomeKind.DIED
    outcome = explained("FAILED", status(), log=begins + begins + OOM_BY_CGROUP)
    assert outcome is not None
    assert outcome.kind == OutcomeKind.OUT_OF_MEMORY


def test_a_time_limit_counts_only_when_nothing_was_gained() -> None:
    stopped = {"kind": "stopped", "reason": StopReason.TIME_LIMIT, "message": "had to be ended in the middle of a task"}
    nothing = explained("COMPLETED", status(stopped))
    part = explained("COMPLETED", status(stopped, published=1))
    saved = explained("COMPLETED", status({**stopped, "gained": True}))
    assert nothing is not None
    assert part is not None
    assert saved is not None
    assert (nothing.counted, part.counted, saved.counted) == (True, False, False)
    assert "raise time_min" in nothing.message


def test_a_preemption_never_counts_and_a_cancellation_does() -> None:
    preempted = explained("COMPLETED", status({"kind": "stopped", "reason": StopReason.PREEMPTED}))
    killed_in_grace = explained("PREEMPTED", status(stopping=StopReason.PREEMPTED))
    by_term = explained("PREEMPTED", status({"kind": "stopped", "reason": StopReason.TERMINATED}))
    cancelled = explained("CANCELLED", status({"kind": "stopped", "reason": StopReason.TERMINATED}))
    assert [o is not None and o.counted for o in (preempted, killed_in_grace, by_term, cancelled)] == [
        False,
        False,
        False,
        True,
    ]


def test_the_state_timeout_wins_over_the_reason_that_the_job_reported() -> None:
    """If somebody shortens the limit of a running job, the job itself reports a preemption."""
    outcome = explained("TIMEOUT", status({"kind": "stopped", "reason": StopReason.PREEMPTED}))
    assert outcome is not None
    assert (outcome.kind, outcome.counted) == (OutcomeKind.TIME_LIMIT, True)


def test_nothing_is_concluded_too_early() -> None:
    assert explained("FAILED", status(), settled=False) is None
    assert explained(None, settled=True) is None
    assert explained("COMPLETED", status({"kind": "done"})) is None
    for state, statuses in (("COMPLETED", [status({"kind": "done"})]), (None, [])):
        outcome = explained(state, *statuses, lost=True)
        assert outcome is not None
        assert outcome.kind == OutcomeKind.LOST


def test_a_full_disk_is_final() -> None:
    failed = {"kind": "error", "message": "OSError: [Errno 28] No space left on device: 'x'", "traceback": ""}
    outcome = explained("FAILED", status(failed))
    assert outcome is not None
    assert outcome.kind == "final"
    assert outcome.message.count("Free space") == 1
    again = explained("FAILED", status({**failed, "kind": "final", "message": outcome.message}))
    assert again is not None
    assert again.message == outcome.message, "a worker has added the advice already"


def test_a_damaged_input_is_passed_on_with_its_manifest() -> None:
    failed = {"kind": "damaged", "message": "m: torn", "traceback": "", "manifest": "/runs/m.manifest.json"}
    outcome = explained("FAILED", status(failed))
    assert outcome is not None
    assert (outcome.kind, outcome.manifest) == ("damaged", "/runs/m.manifest.json")
