"""Reads what the status of a sweep is computed from: its folder, the records of submissions, SLURM's queue.

In: the folder of a sweep and its runs. Out: plain records for `status/compute.py`. The module only reads. A
controller may rename or remove files at the same time.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from core_hpc.common.errors import StoreError
from core_hpc.controller.heartbeat import RunReport
from core_hpc.runs.folder import Run
from core_hpc.runs.json_fields import LATEST_S
from core_hpc.slurm.commands import QueueEntry, Slurm, SlurmUnavailableError, slurm_installed
from core_hpc.slurm.records import ENDED, FAILED, OPEN, Submission, SubmissionFolder, sweep_of
from core_hpc.store import manifests
from core_hpc.store.claims import read_holder
from core_hpc.store.manifests import Manifest
from core_hpc.store.paths import RunPaths, SweepPaths, TaskKey

T = TypeVar("T")

QUEUE_TIMEOUT_S = 20.0

Records = list[tuple[str, Submission]]
"""Submissions with the states of their records: open, ended, failed."""


@dataclass(frozen=True)
class Found:
    """The contents of a sweep's folder that are read before the queue is queried.

    Attributes:
        holder: the claim (claim.json), or None if nobody holds the sweep, or the claim cannot be read.
        unreadable: why the claim cannot be read; empty if it can, or if there is none.
        heartbeat: what the last controller wrote about itself (controller.json), or None.
        controllers: submissions of detached controllers.
        runs: folder of a run -> submissions of its tasks.
        copy_of: the sweep of which this folder is a copy, where its records show it; their jobs are left out.
    """

    folder: Path
    holder: dict[str, Any] | None
    heartbeat: dict[str, Any] | None
    controllers: Records
    runs: dict[Path, Records]
    unreadable: str = ""
    copy_of: Path | None = None

    @property
    def needs_queue(self) -> bool:
        """Whether jobs may be in the queue, or only the queue can tell whether the claim's holder is alive."""
        holder = self.holder
        held_elsewhere = holder is not None and holder.get("job") is not None and holder["host"] != socket.gethostname()
        all_records = (self.controllers, *self.runs.values())
        return held_elsewhere or any(state == OPEN for records in all_records for state, _ in records)

    def last_start(self) -> tuple[str, float]:
        """The id of the last start by the user, and the time of its first record."""
        known = [(s.submitted, s.start_id) for records in (self.controllers, *self.runs.values()) for _, s in records]
        if self.heartbeat is not None:
            known.append((self.heartbeat["started"], self.heartbeat["start_id"]))
        last = max(known, default=(0.0, ""))[1]
        return last, min((at for at, start_id in known if start_id == last), default=0.0)


def read_or_none(path: Path, parse: Callable[[Any], T]) -> T | None:
    """A JSON file as a record, or None if it is missing, removed while it is read, or not such a record."""
    with contextlib.suppress(StoreError):
        return manifests.read_record(path, parse)
    return None


def point_in_time(value: Any) -> float:
    """Seconds since 1970, or a span of time. ValueError or TypeError for anything else."""
    if not abs(value) < LATEST_S:
        raise ValueError(f"{value!r} is not a point in time")
    return float(value)


def _heartbeat(data: Any) -> dict[str, Any]:
    """Check what a controller wrote about itself. An error if it is not such a report."""
    known = {name: point_in_time(data[name]) for name in ("time", "started", "interval_s", "cpu_s")}
    runs = {run_id: RunReport(int(report["failed"]), report["stopped"]) for run_id, report in data["runs"].items()}
    checked = {"host": str(data["host"]), "pid": int(data["pid"]), "start_id": str(data["start_id"])}
    return {**data, **known, **checked, "runs": {run_id: asdict(report) for run_id, report in runs.items()}}


def find_sweep(folder: Path, runs: Sequence[Path]) -> Found:
    """Read the folder of a sweep and the records of the given runs."""
    paths = SweepPaths(folder)
    originals: set[Path] = set()

    def own(root: Path, *states: str) -> Records:
        records = SubmissionFolder(root)
        found: Records = []
        for state, submission in records.read_with_state(*states):
            original = records.original(submission)
            if original is None:
                found.append((state, submission))
            else:
                originals.add(sweep_of(original))
        return found

    by_run = {run: own(RunPaths(run).slurm, OPEN, FAILED) for run in runs}
    controllers = own(paths.slurm, OPEN, ENDED, FAILED)
    holder, unreadable = None, ""
    try:
        holder = read_holder(paths.claim)
    except StoreError as e:
        unreadable = str(e)
    copy_of = min(originals, default=None)
    heartbeat = read_or_none(paths.controller, _heartbeat)
    return Found(folder, holder, heartbeat, controllers, by_run, unreadable, copy_of)


class Queue:
    """SLURM's queue, queried once for all sweeps.

    Attributes:
        known: whether SLURM has answered.
        state: "ok", or why the queue is not known.
    """

    def __init__(self, found: Sequence[Found]) -> None:
        self.known, self.state, entries = False, "not needed", list[QueueEntry]()
        wanted = [f.folder for f in found if f.needs_queue]
        if wanted and not slurm_installed():
            self.state = f"not installed on {socket.gethostname()}"
        elif any(folder.stat().st_uid != os.getuid() for folder in wanted):
            self.state = "not queried: the jobs are another user's"
        elif wanted:
            try:
                entries = Slurm(timeout_s=QUEUE_TIMEOUT_S).queue()
                self.known, self.state = True, "ok"
            except SlurmUnavailableError as e:
                self.state = f"does not answer: {e}"
        self._active = {e.id: e for e in entries if e.active}
        self._jobs = {e.name: e.id.job for e in entries}

    def entry(self, submission: Submission, index: int) -> QueueEntry | None:
        """The queue entry of an element that waits or runs. A submission without a job id is found by its name."""
        job = submission.job if submission.job is not None else self._jobs.get(submission.name)
        id = replace(submission, job=job).job_id(index)
        return self._active.get(id) if id is not None else None

    def has_active(self, job: int) -> bool:
        return any(id.job == job for id in self._active)


class Manifests:
    """A cache of manifests. Published files do not change, so --watch reads each manifest once."""

    def __init__(self) -> None:
        self._known: dict[Path, Manifest] = {}

    def of(self, run: Run, keys: Collection[TaskKey]) -> dict[TaskKey, Manifest]:
        """The manifests of tasks, without those that cannot be read."""
        for path in (run.paths.task_manifest(key) for key in keys):
            if path not in self._known:
                with contextlib.suppress(StoreError):
                    self._known[path] = manifests.read_manifest(path)
        paths = {key: run.paths.task_manifest(key) for key in keys}
        return {key: self._known[path] for key, path in paths.items() if path in self._known}
