"""Why a job's element ended without having published everything. Pure: from SLURM's word, status files and the log.

In: what is known of an ended element. Out: an `Outcome`, or None while it is too early to tell. What is done about it
(try again, more memory, stop the run) is decided by executor.py and schedule.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

TIME_LIMIT, PREEMPTED, TERMINATED = "time limit", "preempted", "terminated"
"""Why a job was asked to stop."""
NODE, OUT_OF_MEMORY, CANCELLED, LOST, DIED = "node", "out of memory", "cancelled", "lost", "died"
GAVE_UP = "gave up"
"""Of a job of the driver `resident`: it stopped its run because of failures that its status file lists."""
DONE, INTERRUPTED, ABANDONED = "done", "interrupted", "abandoned"
"""Kinds that are no failures: all published, or left to other jobs; never really submitted; given up by decision."""
NODE_KINDS = frozenset({NODE, DIED, "error"})
"""Kinds for which the node may be to blame."""

OOM_WORDS = re.compile(
    r"oom[-_ ]?kill|slurmstepd.*out[- ]of[- ]memory|exceeded (job|step|its)? ?memory limit|memory limit \(.*being killed",
    re.IGNORECASE,
)
FULL_DISK = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)
STATE_KINDS = {
    "NODE_FAIL": (NODE, "SLURM lost the node", False),
    "BOOT_FAIL": (NODE, "the node did not boot", False),
    "OUT_OF_MEMORY": (OUT_OF_MEMORY, "used more memory than the job asked for (mem_gb)", True),
    "PREEMPTED": (PREEMPTED, "was preempted", False),
    "CANCELLED": (CANCELLED, "was cancelled", True),
    "REVOKED": (CANCELLED, "was revoked", True),
    "DEADLINE": (TIME_LIMIT, "missed its deadline", True),
    "TIMEOUT": (TIME_LIMIT, "reached the time limit before it could stop", True),
}


@dataclass(frozen=True)
class Outcome:
    """How an element ended. `counted`: as one of the tries after which a run is stopped. `task`: at which, if it said so."""

    kind: str
    message: str
    counted: bool = True
    node: str = ""
    traceback: str = ""
    manifest: str = ""
    task: str = ""

    def with_note(self, note: str, *, counted: bool) -> Outcome:
        return replace(self, message=f"{self.message}; {note}", counted=counted)


def explain(
    state: str | None,
    statuses: Sequence[dict[str, Any]],
    log: str,
    *,
    nodes: str,
    settled: bool,
    lost: bool,
    unseen: Collection[str] = (),
) -> Outcome | None:
    """The outcome of an element which SLURM does not run any more.

    `state` is SLURM's last word (None: it knows nothing), `statuses` what its ranks wrote, rank 0 first; `settled` and
    `lost` say that enough time has passed for a status file to be seen, or for any trace of the job to appear; `unseen` are
    its tasks that were not seen published.
    """
    ends = [s["outcome"] for s in statuses if s.get("outcome")]
    node = next(
        (s["node"] for s in statuses if s.get("outcome") and s["outcome"]["kind"] not in ("done", "stopped")), ""
    )
    node = node or (statuses[0]["node"] if statuses else nodes)
    if OOM_WORDS.search(log) and not any(e["kind"] in ("done", "damaged", "final") for e in ends):
        return Outcome(OUT_OF_MEMORY, "used more memory than the job asked for (mem_gb)", node=node, traceback=log)
    failed = next((e for e in ends if e["kind"] not in ("done", "stopped")), None)
    if failed is not None:
        return of_failure(failed, node, log)
    if state in STATE_KINDS and state not in ("CANCELLED", "PREEMPTED", "TIMEOUT"):
        kind, message, counted = STATE_KINDS[state]
        return Outcome(kind, message, counted, node, log)
    stopped = next((e for e in ends if e["kind"] == "stopped"), None)
    if stopped is not None:
        return _stopped(stopped["reason"], stopped.get("message", ""), statuses[0], state, node)
    if statuses and statuses[0].get("stopping") and state not in (None, "COMPLETED"):
        return _stopped(statuses[0]["stopping"], "was killed before it had stopped", statuses[0], state, node)
    if state in STATE_KINDS:
        kind, message, counted = STATE_KINDS[state]
        return Outcome(kind, message, counted, node, log)
    done = next((e for e in ends if e["kind"] == "done"), None)
    if done is not None and "left" in done and set(unseen) <= set(done["left"]):
        return Outcome(DONE, done["message"], counted=False, node=node)
    if done is not None:
        return Outcome(LOST, "says that it is done, but its files did not become visible", node=node) if lost else None
    if state is not None:
        return Outcome(DIED, f"its job ended ({state}) without a word", node=node, traceback=log) if settled else None
    if lost:
        return Outcome(LOST, "is neither in the queue nor in SLURM's books: cancelled before it began?", node=node)
    return None


def of_failure(end: dict[str, Any], node: str, log: str) -> Outcome:
    """What a failure that was reported from inside a job means; `log` is shown when a worker died without a word."""
    kind, message = end["kind"], end["message"]
    if FULL_DISK.search(message):
        kind, message = "final", f"{message}. Free space (or raise the quota) and start again"
    traceback = end.get("traceback") or (log if kind == DIED else "")
    return Outcome(kind, message, True, node, traceback, end.get("manifest", ""), end.get("task", ""))


def _stopped(reason: str, words: str, status: dict[str, Any], state: str | None, node: str) -> Outcome:
    """An element that was told to stop. It counts as a try only when it is nobody else's doing and nothing was gained."""
    if state == "TIMEOUT":
        reason = TIME_LIMIT  # the job itself cannot know that its limit was shortened
    gained = status["published"] > 0 or bool((status["outcome"] or {}).get("gained"))
    detail = f" ({words})" if words else ""
    if reason == TIME_LIMIT:
        advice = "" if gained else "; nothing was gained: raise time_min"
        return Outcome(TIME_LIMIT, f"reached its time limit{detail}{advice}", not gained, node)
    if reason == TERMINATED and state == "CANCELLED":
        return Outcome(CANCELLED, f"was cancelled while it ran{detail}", True, node)
    assert reason in (PREEMPTED, TERMINATED), reason
    return Outcome(PREEMPTED, f"had to make room for another job{detail}", False, node)
