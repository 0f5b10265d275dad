"""Why an array element ended before it had published everything. The functions are pure.

In: the state that SLURM reports, the status files of the job, the end of its log. Out: an
`Outcome`, or None while it is too early to decide. What follows (another attempt, more memory,
other nodes, stopping the run) is decided in `slurm/remedies.py` and by the scheduler.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from core_hpc.runs.job_status import JobEnd, JobStatus, StopReason
from core_hpc.runs.outcome import Outcome, OutcomeKind, final_on_full_disk

NODE_KINDS = frozenset({OutcomeKind.NODE, OutcomeKind.DIED, OutcomeKind.ERROR})
"""Outcomes that the node may have caused."""

OOM_WORDS = re.compile(
    r"oom[-_ ]?kill|slurmstepd.*out[- ]of[- ]memory|"
    r"exceeded (job|step|its)? ?memory limit|memory limit \(.*being killed",
    re.IGNORECASE,
)
JOB_BEGINS = re.compile(r"^job \S* on \S+, rank ", re.MULTILINE)
"""The first line of a job in its log (`slurm/job.py`). If SLURM starts the job again, the log continues."""
OOM_MESSAGE = "used more memory than the job asked for (mem_gb)"
STATE_OUTCOMES = {
    "NODE_FAIL": (OutcomeKind.NODE, "SLURM lost the node", False),
    "BOOT_FAIL": (OutcomeKind.NODE, "the node did not boot", False),
    "OUT_OF_MEMORY": (OutcomeKind.OUT_OF_MEMORY, OOM_MESSAGE, True),
    "PREEMPTED": (OutcomeKind.PREEMPTED, "was preempted", False),
    "CANCELLED": (OutcomeKind.CANCELLED, "was cancelled", True),
    "REVOKED": (OutcomeKind.CANCELLED, "was revoked", True),
    "DEADLINE": (OutcomeKind.TIME_LIMIT, "missed its deadline", True),
    "TIMEOUT": (OutcomeKind.TIME_LIMIT, "reached the time limit before it could stop", True),
}
"""SLURM's final state -> kind, message, whether it counts as a failed attempt."""
ASKED_TO_STOP = ("CANCELLED", "PREEMPTED", "TIMEOUT")
"""States about which the job's own status file may know more."""
DECIDED = (OutcomeKind.DONE, OutcomeKind.DAMAGED, OutcomeKind.FINAL)


def explain(
    state: str | None,
    statuses: Sequence[JobStatus],
    log: str,
    *,
    nodes: str,
    settled: bool,
    lost: bool,
    unseen: Collection[str] = (),
) -> Outcome | None:
    """The outcome of an element that SLURM does not run any more.

    Args:
        state: SLURM's final state; None: SLURM does not know the job.
        statuses: what its ranks wrote, rank 0 first.
        log: the end of its log.
        nodes: its nodes as SLURM names them.
        settled: enough time has passed for a status file to become visible.
        lost: enough time has passed for any trace of the job to appear.
        unseen: its tasks that were not seen published.
    """
    ended = [(status, status.outcome) for status in statuses if status.outcome is not None]
    node = next((status.node for status, end in ended if end.is_failure), "")
    node = node or (statuses[0].node if statuses else nodes)
    if OOM_WORDS.search(JOB_BEGINS.split(log)[-1]) and not any(end.kind in DECIDED for _, end in ended):
        return Outcome(OutcomeKind.OUT_OF_MEMORY, OOM_MESSAGE, node=node, traceback=log)
    failure = next((end for _, end in ended if end.is_failure), None)
    if failure is not None:
        return of_failure(failure, node, log)
    if state in STATE_OUTCOMES and state not in ASKED_TO_STOP:
        return _of_state(state, node, log)
    stopped = next((end for _, end in ended if end.kind == OutcomeKind.STOPPED), None)
    if stopped is not None:
        assert stopped.reason is not None
        return _of_stop(stopped.reason, stopped.message, statuses[0], state, node)
    if statuses and statuses[0].stopping is not None and state not in (None, "COMPLETED"):
        return _of_stop(statuses[0].stopping, "was killed before it had stopped", statuses[0], state, node)
    if state in STATE_OUTCOMES:
        return _of_state(state, node, log)
    done = next((end for _, end in ended if end.kind == OutcomeKind.DONE), None)
    if done is not None and done.left is not None and set(unseen) <= set(done.left):
        return Outcome(OutcomeKind.DONE, done.message, counted=False, node=node)
    if done is not None:
        message = "reported that it was done, but its files did not become visible"
        return Outcome(OutcomeKind.LOST, message, node=node) if lost else None
    if state is not None:
        message = f"its job ended ({state}) without reporting why"
        return Outcome(OutcomeKind.DIED, message, node=node, traceback=log) if settled else None
    if lost:
        message = "is neither in the queue nor in SLURM's accounting; perhaps it was cancelled before it began"
        return Outcome(OutcomeKind.LOST, message, node=node)
    return None


def of_failure(failure: JobEnd | Outcome, node: str, log: str) -> Outcome:
    """The outcome of a failure that was reported from inside a job.

    Args:
        log: shown when a worker died without reporting anything.
    """
    outcome = Outcome(
        failure.kind,
        failure.message,
        node=node,
        traceback=failure.traceback or (log if failure.kind == OutcomeKind.DIED else ""),
        log=failure.log,
        manifest=failure.manifest,
        task=failure.task,
    )
    return final_on_full_disk(outcome)


def _of_state(state: str, node: str, log: str) -> Outcome:
    kind, message, counted = STATE_OUTCOMES[state]
    return Outcome(kind, message, counted, node, log)


def _of_stop(reason: StopReason, message: str, status: JobStatus, state: str | None, node: str) -> Outcome:
    """The outcome of an element that was asked to stop.

    It counts as an attempt only if the sweep caused it and nothing was gained.
    """
    if state == "TIMEOUT":
        reason = StopReason.TIME_LIMIT  # the job itself cannot know that its limit was shortened
    gained = status.published > 0 or (status.outcome is not None and status.outcome.gained)
    detail = f" ({message})" if message else ""
    if reason == StopReason.TIME_LIMIT:
        advice = "" if gained else "; nothing was gained: raise time_min"
        return Outcome(OutcomeKind.TIME_LIMIT, f"reached its time limit{detail}{advice}", not gained, node)
    if reason == StopReason.TERMINATED and state == "CANCELLED":
        return Outcome(OutcomeKind.CANCELLED, f"was cancelled while it ran{detail}", True, node)
    return Outcome(OutcomeKind.PREEMPTED, f"had to make room for another job{detail}", False, node)
