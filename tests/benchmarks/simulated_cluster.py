"""SIMULATED SLURM for benchmarks of the controller: a clock that jumps, a queue, and commands.

In: submissions, and how long waiting and tasks take. Out: what `squeue` prints, status files and
publications, at their simulated times. The controller is not changed: it runs its commands as
processes, parses what they print, and lists real folders. The CPU time of the simulation itself is
subtracted (`Simulation.controller_cpu_s`).
"""

from __future__ import annotations

import functools
import heapq
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import struct_time
from typing import Any

from core_hpc.runs.folder import Run
from core_hpc.runs.job_status import JobStatus, RunningTask
from core_hpc.runs.outcome import Progress
from core_hpc.slurm.commands import JobId
from core_hpc.slurm.records import Submission, SubmissionFolder
from core_hpc.store import manifests
from core_hpc.store.paths import TaskKey
from tests.benchmarks.measure import commands_cpu_s
from tests.benchmarks.simulated_tasks import SimulatedTasks
from tests.support.slurm_commands import HEADER, squeue_record

MIN_JOB_AGE_S = 300.0
"""How long squeue shows a job that has ended."""
NUM_PROGRESS_WRITES = 4
SPREAD = 0.5
"""Waits and durations are uniform between 1 - SPREAD and 1 + SPREAD times their mean."""

COMMANDS = {
    "sbatch": 'read -r n <"{0}/jobs"; echo $((n + 1)) >"{0}/jobs"; echo "Submitted batch job $n"',
    "squeue": 'exec cat "{0}/queue"',
    "scontrol": 'echo "MaxArraySize = 1001"',
    "srun": "exit 1",
    "sacct": "exit 1",
    "sacctmgr": "exit 1",
    "sinfo": "exit 1",
    "scancel": "exit 1",
}


@dataclass
class Entry:
    """A line of the simulated queue."""

    name: str
    state: str = "PENDING"
    reason: str = "Priority"
    node: str = ""
    ended: float | None = None


@dataclass(kw_only=True)
class Simulation:
    """The clock and the queue. It replaces the module `time` in the modules of the controller.

    Attributes:
        folder: folder of the simulated commands.
        wait_s: mean time in the queue.
        duration_s: mean time of a task, by phase.
        tasks: publishes the tasks.
        now: the simulated time, in seconds since 1970.
        on_look: called whenever the controller is about to look at the queue.
        num_entries: lines of the queue at each look.
    """

    folder: Path
    wait_s: float
    duration_s: dict[str, float]
    tasks: SimulatedTasks
    seed: int = 0
    now: float = field(default_factory=time.time)
    on_look: Callable[[], None] = lambda: None
    entries: dict[JobId, Entry] = field(default_factory=dict)
    num_entries: list[int] = field(default_factory=list)
    num_published: int = 0
    num_submissions: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._excluded_s, self._excluded_thread_s = 0.0, 0.0
        self._excluded_since: tuple[float, float] | None = None
        self.folder.mkdir()
        (self.folder / "jobs").write_text("1000\n")
        self._write_queue()
        for name, body in COMMANDS.items():
            path = self.folder / name
            path.write_text(f"#!/bin/sh\n# SIMULATED {name}\n{body.format(self.folder)}\n")
            path.chmod(0o755)

    # --- time ------------------------------------------------------------------------------------

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def strftime(self, *arguments: Any) -> str:
        return time.strftime(*arguments)

    def localtime(self, *arguments: Any) -> struct_time:
        return time.localtime(*arguments)

    def sleep(self, seconds: float) -> None:
        """Do everything that is due until then, without CPU time for the controller."""
        with self.excluded():
            until = self.now + seconds
            while self._due and self._due[0][0] <= until:
                self.now, _, act = heapq.heappop(self._due)
                act()
            self.now = until
            shown_since = until - MIN_JOB_AGE_S
            self.entries = {id: e for id, e in self.entries.items() if e.ended is None or e.ended > shown_since}
            self._write_queue()
            self.num_entries.append(len(self.entries))
            self.on_look()

    # --- CPU time --------------------------------------------------------------------------------

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Count the CPU time of this block as that of the simulation."""
        assert self._excluded_since is None, "blocks must not be nested"
        self._excluded_since = time.process_time(), time.thread_time()
        try:
            yield
        finally:
            process, thread = self._excluded_since
            self._excluded_s += time.process_time() - process
            self._excluded_thread_s += time.thread_time() - thread
            self._excluded_since = None

    def controller_cpu_s(self) -> float:
        """CPU seconds of this process, of all threads, without the simulation."""
        now = time.process_time() if self._excluded_since is None else self._excluded_since[0]
        return now - self._excluded_s

    def cpu_seconds(self) -> float:
        """Replacement for `scheduler.cpu_seconds`: with the commands, without the simulation."""
        return self.controller_cpu_s() + commands_cpu_s()

    def controller_thread_s(self) -> float:
        """CPU seconds of this thread without the simulation: the timer of a profile."""
        now = time.thread_time() if self._excluded_since is None else self._excluded_since[1]
        return now - self._excluded_thread_s

    # --- jobs ------------------------------------------------------------------------------------

    def submitted(self, run: Run, folder: SubmissionFolder, submission: Submission) -> None:
        """Add an array that was submitted to the queue."""
        self.num_submissions += 1
        for index in range(len(submission.elements)):
            job = submission.job_id(index)
            assert job is not None
            self.entries[job] = Entry(submission.name)
            self._after(self._around(self.wait_s), self._starter(run, folder, submission, index))

    def finish_everything(self) -> None:
        """Finish all jobs without a controller, and remove them from the queue."""
        while self._due:
            self.now, _, act = heapq.heappop(self._due)
            act()
        self.now += MIN_JOB_AGE_S

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + seconds, next(self._order), act))

    def _around(self, mean: float) -> float:
        return mean * self._random.uniform(1 - SPREAD, 1 + SPREAD)

    def _starter(self, run: Run, folder: SubmissionFolder, submission: Submission, index: int) -> Callable[[], None]:
        def start() -> None:
            job, keys = submission.job_id(index), submission.keys(index)
            assert job is not None
            entry = self.entries[job]
            entry.state, entry.reason, entry.node = "RUNNING", "None", f"node{self._random.randrange(64):03d}"
            status = folder.status_file(submission, index)
            at = 0.0
            for number, key in enumerate(keys, start=1):
                duration = self._around(self.duration_s[key.phase])
                for step in range(NUM_PROGRESS_WRITES):
                    share = step / NUM_PROGRESS_WRITES
                    self._after(at + duration * share, functools.partial(_write_status, status, entry.node, key, share))
                at += duration
                self._after(at, functools.partial(self._end, run, key, entry if number == len(keys) else None))

        return start

    def _end(self, run: Run, key: TaskKey, entry: Entry | None) -> None:
        self.tasks.publish(run, key)
        self.num_published += 1
        if entry is not None:
            entry.state, entry.ended = "COMPLETED", self.now

    def _write_queue(self) -> None:
        rows = (
            (str(id.job), str(id.index) if id.index is not None else "N/A", e.state, e.reason, "0", e.node, e.name)
            for id, e in self.entries.items()
        )
        (self.folder / "queue").write_text(HEADER + "".join(squeue_record(*row) for row in rows))


def _write_status(path: Path, node: str, key: TaskKey, share: float) -> None:
    """Write a status file as a job does (`core_hpc/slurm/element.py`)."""
    progress = Progress(done=round(500 * share), total=500, tokens=round(300_000 * share))
    status = JobStatus(job="1", node=node, pid=1, progress=(str(key), RunningTask(0.0, progress)))
    manifests.make_folder(path.parent)
    path.write_text(json.dumps(status.to_json(), indent=1))
