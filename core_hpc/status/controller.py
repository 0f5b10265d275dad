"""Who works on a sweep: its controller, whether that is alive, and what it reported about a run.

In: what `status/collect.py` has read of the claim, the heartbeat and the jobs of controllers. Out:
`ControllerStatus`, and a `ControllerView` per run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core_hpc.common.ownership import user_name
from core_hpc.slurm.records import OPEN, SubmissionFolder
from core_hpc.status.collect import Found, Queue, point_in_time, read_or_none
from core_hpc.status.model import ControllerStatus
from core_hpc.store.claims import holder_lives
from core_hpc.store.paths import SweepPaths


@dataclass(frozen=True)
class ControllerView:
    """What is known about the controller of one run.

    Attributes:
        works: whether a controller works on the run; true if it is unknown.
        current: whether the records of the last start are from this controller, or from no later one.
        report: what the controller of the last start wrote about the run (`stopped`, `failed`), if anything.
    """

    works: bool
    current: bool
    report: Mapping[str, Any] | None


def controller_status(found: Found, queue: Queue) -> ControllerStatus:
    """What is known about the controller of a sweep, and about the jobs that are controllers."""
    folder, beat = SubmissionFolder(SweepPaths(found.folder).slurm), found.heartbeat
    jobs: list[dict[str, Any]] = []
    for submission in (s for state, s in found.controllers if state == OPEN):
        entry, log = queue.entry(submission, 0), str(folder.log(submission, 0))
        if entry is not None:
            jobs.append({"job": entry.id.job, "state": entry.state, "reason": entry.reason, "log": log})
        elif not queue.known or submission.is_foreign:
            reason = f"a job of user {submission.owner}" if submission.is_foreign else ""
            jobs.append({"job": submission.job, "state": "unknown", "reason": reason, "log": log})
    jobs.sort(key=lambda j: j["job"] or 0)
    begun = [s for _, s in found.controllers if folder.log(s, 0).exists()]
    last = max(begun, key=lambda s: s.submitted, default=None)
    cpu_s_per_hour = None
    if beat is not None and beat["time"] - beat["started"] >= beat["interval_s"]:
        cpu_s_per_hour = round(3600 * beat["cpu_s"] / (beat["time"] - beat["started"]), 1)
    return ControllerStatus(
        holder=found.holder,
        unreadable_claim=found.unreadable,
        alive=_is_alive(found, queue),
        jobs=jobs,
        last_log=str(folder.log(last, 0)) if last is not None else None,
        seen=beat["time"] if beat is not None else None,
        cpu_s_per_hour=cpu_s_per_hour,
        stop_request=_stop_request(SweepPaths(found.folder).stop_request),
    )


def _stop_request(path: Path) -> dict[str, Any] | None:
    """Who asked the sweep to stop. Controllers obey the file even if nobody can read it."""

    def parse(data: Any) -> dict[str, Any]:
        checked = {"user": str(data["user"]), "host": str(data["host"]), "time": point_in_time(data["time"])}
        return {**data, **checked}

    request = read_or_none(path, parse)
    if request is None and path.exists():
        request = {"user": "?", "host": "?", "time": path.stat().st_mtime}
    return request


def _is_alive(found: Found, queue: Queue) -> bool | None:
    if found.holder is None:
        return None

    def has_ended(job: int, user: str) -> bool | None:
        # The queue has only the jobs of this user.
        return not queue.has_active(job) if queue.known and user == user_name(os.getuid()) else None

    lives = holder_lives(found.holder, has_ended)
    if lives is None and found.heartbeat is not None and _wrote(found.holder, found.heartbeat):
        return True if time.time() - found.heartbeat["time"] < 2 * found.heartbeat["interval_s"] else None
    return lives


def _wrote(holder: Mapping[str, Any], heartbeat: Mapping[str, Any]) -> bool:
    """Whether the claim's holder has written this heartbeat."""
    same_process = (heartbeat["host"], heartbeat["pid"]) == (holder["host"], holder["pid"])
    return same_process and heartbeat["time"] >= holder["time"]


def view_of(found: Found, controller: ControllerStatus, run_id: str) -> ControllerView:
    """What is known about the controller of one run."""
    holder, beat = found.holder, found.heartbeat
    works = bool(controller.jobs) or bool(found.unreadable) or (holder is not None and controller.alive is not False)
    report = beat["runs"].get(run_id) if beat is not None and beat["start_id"] == found.last_start()[0] else None
    if holder is None or not works:
        return ControllerView(works, True, report)
    if beat is None or not _wrote(holder, beat):  # the holder took the claim a moment ago
        return ControllerView(works, False, None)
    return ControllerView(run_id in beat["runs"], True, report)
