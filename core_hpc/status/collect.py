"""What the status of a sweep is concluded from: its folder, the records of submissions, one look at the queue.

In: the path of a sweep. Out: plain records. Only reads, and bears that a controller renames files meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core_hpc.common.errors import StoreError
from core_hpc.runs.folder import Run
from core_hpc.slurm.commands import QueueEntry, Slurm, SlurmUnavailableError, slurm_installed
from core_hpc.slurm.records import ENDED, FAILED, OPEN, Submission, SubmissionFolder
from core_hpc.store import manifests
from core_hpc.store.manifests import Manifest
from core_hpc.store.paths import RunPaths, SweepPaths, TaskKey

QUEUE_TIMEOUT_S = 20.0

Records = list[tuple[str, Submission]]
"""Submissions with the states of their records: open, ended, failed."""


@dataclass(frozen=True)
class Found:
    """What lies in the folder of a sweep, as far as it is read before the queue is asked."""

    folder: Path
    holder: dict[str, Any] | None
    heartbeat: dict[str, Any] | None
    controllers: Records
    runs: dict[Path, Records]

    @property
    def needs_queue(self) -> bool:
        elsewhere = (
            self.holder is not None and self.holder["job"] is not None and self.holder["host"] != socket.gethostname()
        )
        return elsewhere or any(
            state == OPEN for records in (self.controllers, *self.runs.values()) for state, _ in records
        )

    def last_start(self) -> tuple[str, float]:
        """Id of the last start by the user, and when it is heard of first."""
        known = [(s.submitted, s.start_id) for records in (self.controllers, *self.runs.values()) for _, s in records]
        if self.heartbeat is not None:
            known.append((self.heartbeat["started"], self.heartbeat["start_id"]))
        last = max(known, default=(0.0, ""))[1]
        return last, min((at for at, start_id in known if start_id == last), default=0.0)


def read_or_none(path: Path) -> Any | None:
    """A JSON file of ours that may be missing, or go while it is read."""
    with contextlib.suppress(StoreError):
        return manifests.read_json(path)
    return None


def find_sweep(folder: Path, runs: Sequence[Path]) -> Found:
    paths = SweepPaths(folder)
    records = {run: SubmissionFolder(RunPaths(run).slurm).read_with_state(OPEN, FAILED) for run in runs}
    controllers = SubmissionFolder(paths.slurm).read_with_state(OPEN, ENDED, FAILED)
    return Found(folder, read_or_none(paths.claim), read_or_none(paths.controller), controllers, records)


class Queue:
    """One look at the queue, for all sweeps. `known` says whether SLURM has answered; if not, `words` say why."""

    def __init__(self, found: Sequence[Found]) -> None:
        self.known, self.words, entries = False, "not needed", list[QueueEntry]()
        wanted = [f.folder for f in found if f.needs_queue]
        if wanted and not slurm_installed():
            self.words = f"not installed on {socket.gethostname()}"
        elif any(folder.stat().st_uid != os.getuid() for folder in wanted):
            self.words = "not asked: the jobs are another user's"
        elif wanted:
            try:
                entries = Slurm(timeout_s=QUEUE_TIMEOUT_S).queue()
                self.known, self.words = True, "ok"
            except SlurmUnavailableError as e:
                self.words = f"does not answer: {e}"
        self._active = {e.id: e for e in entries if e.active}
        self._jobs = {e.name: e.id.job for e in entries}

    def entry(self, submission: Submission, index: int) -> QueueEntry | None:
        """Where an element waits or runs. A submission without a job id is found by its name."""
        job = submission.job if submission.job is not None else self._jobs.get(submission.name)
        id = replace(submission, job=job).job_id(index)
        return self._active.get(id) if id is not None else None

    def has_active(self, job: int) -> bool:
        return any(id.job == job for id in self._active)


class Manifests:
    """Manifests that have been read. What is published does not change, so that --watch reads each of them once."""

    def __init__(self) -> None:
        self._known: dict[Path, Manifest] = {}

    def of(self, run: Run, keys: Collection[TaskKey]) -> dict[TaskKey, Manifest]:
        for path in (run.paths.task_manifest(key) for key in keys):
            if path not in self._known:
                with contextlib.suppress(StoreError):
                    self._known[path] = manifests.read_manifest(path)
        paths = {key: run.paths.task_manifest(key) for key in keys}
        return {key: self._known[path] for key, path in paths.items() if path in self._known}
