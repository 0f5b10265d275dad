"""What runs inside a SLURM job: one array element does its tasks, one after the other, in one warm worker for each role.

In: an `ElementSpec`, pickled by submitit. Out: published tasks, and a status file that says how far it is and how it
ended. This process only watches: it hears the signals of SLURM, tells the worker, and ends it when the time is over. Where
an element does tasks of several phases (`slurm.chain_wait_s`), other elements do the same for their models: what they have
published is not made again, and what is missing for long is left to another job.
Which tasks are in an element, and what follows from its end, is arrays.py's. Jobs of the driver `resident` are resident_job.py's.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from core_hpc.common.errors import CoreHpcError
from core_hpc.engines import worker_environment
from core_hpc.local.process import WorkerProcess, end_workers
from core_hpc.phases.checkpoint import stored_steps
from core_hpc.runs.folder import Run, open_run
from core_hpc.runs.roles import engine_kind, role_of
from core_hpc.slurm.outcomes import PREEMPTED, TERMINATED, TIME_LIMIT
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import GENERATION_PHASES, UPDATE

STATUS_INTERVAL_S = 10.0
TERM_GRACE_S = 20.0
"""After SIGTERM (scancel, or a preemption without another signal); sites kill 30 s later if nothing else is set."""
END_MARGIN_S = 8.0
"""Left between the end of the worker and the end of the job, to write the status."""
EARLY_WARNING_S = 65.0
"""SLURM may send the warning signal up to a minute early."""
CHAIN_LOOK_S = 1.0
"""Between two looks for what other elements of a chain publish."""


class ElementError(CoreHpcError):
    """Ends the job with an error, so that SLURM's own books show a failure."""


@dataclass(frozen=True)
class ElementSpec:
    """One array element."""

    run: str
    tasks: tuple[str, ...]
    status: str
    threads: int
    time_min: int
    signal_delay_s: float
    preemption_grace_s: float
    chain_wait_s: float = 0.0


def job_end(time_min: int) -> float:
    """When SLURM will end this job: counted from the start of its batch script, not of this process."""
    return float(os.environ.get("CORE_HPC_JOB_START") or time.time()) + 60.0 * time_min


class Stop:
    """Whether SLURM wants this job to end, why, and until when the worker may go on."""

    def __init__(self, spec: ElementSpec) -> None:
        self._spec = spec
        self._end = job_end(spec.time_min)
        self.reason: str | None = None
        self.deadline = float("inf")
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.time()
        left = self._end - now
        if left <= self._spec.signal_delay_s + EARLY_WARNING_S:
            reason, deadline = TIME_LIMIT, self._end - min(END_MARGIN_S, left / 4)
        else:
            reason, deadline = PREEMPTED, now + 0.8 * self._spec.preemption_grace_s
        if number == signal.SIGTERM:
            reason, deadline = self.reason or TERMINATED, now + TERM_GRACE_S
        self.reason, self.deadline = reason, min(self.deadline, deadline)


class Status:
    """The element's status file. Rank 0 keeps it; another rank writes one of its own only when it fails."""

    def __init__(self, spec: ElementSpec, rank: int) -> None:
        path = Path(spec.status)
        self._path = path if rank == 0 else path.with_suffix(f".rank{rank}.json")
        self._rank = rank
        self._body: dict[str, Any] = {
            "job": os.environ.get("SLURM_JOB_ID", ""),
            "restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            "node": os.environ.get("SLURMD_NODENAME", socket.gethostname()),
            "pid": os.getpid(),
            "started": time.time(),
            "published": 0,
            "progress": None,
            "stopping": None,
            "outcome": None,
        }
        self._written = 0.0

    def note(self, *, now: bool = False, **fields: Any) -> None:
        """Change fields; without `now` they are written when the last time is long enough ago."""
        self._body |= fields
        if now or time.time() - self._written >= STATUS_INTERVAL_S:
            self.write()

    @property
    def num_published(self) -> int:
        return int(self._body["published"])

    def published(self, **fields: Any) -> None:
        """One more task, and other fields that changed."""
        self.note(now=True, published=self.num_published + 1, **fields)

    def stopping(self, reason: str) -> None:
        """Written at once: SLURM may kill this job before it can say more."""
        if self._body["stopping"] != reason:
            self.note(now=True, stopping=reason)

    def end(self, kind: str, **fields: Any) -> None:
        """How the element ended: done, stopped, or the kind of its failure."""
        self._body["outcome"] = {"kind": kind, **fields}
        if self._rank == 0 or kind not in ("done", "stopped"):
            self.write(always=True)

    def write(self, *, always: bool = False) -> None:
        if self._rank == 0 or always:
            self._written = time.time()
            try:
                manifests.write_json(self._path, self._body)
            except OSError as e:  # a full disk must not hide what it says; the log has it, too
                print(f"the status could not be written ({e}): {self._body}", flush=True)


def run_element(spec: ElementSpec) -> None:
    """Do the tasks of an element (every rank of an update runs this)."""
    rank, size = int(os.environ.get("SLURM_PROCID", "0")), int(os.environ.get("SLURM_NTASKS", "1"))
    stop, status = Stop(spec), Status(spec, rank)
    status.write()
    run, keys = open_run(Path(spec.run)), [TaskKey.parse(text) for text in spec.tasks]
    graph, saved, workers = run.graph(), steps_saved(run, keys), _Workers(run, spec.threads, rank, size)
    try:
        for key in keys:
            if rank and key.phase != UPDATE:  # what comes before an update is done by rank 0
                ended = _begin(key, [key], run.paths, stop, float("inf"))
            else:
                inputs = graph.inputs(key)
                # All was there at the submission, unless the element itself does a part of it.
                ended = _begin(key, inputs if set(inputs) & set(keys) else (), run.paths, stop, spec.chain_wait_s)
            outcome = ended or _serve(workers.of(key), run, key, stop, status)
            if ended is None and outcome["kind"] == "done":
                status.published()
            if outcome["kind"] == "done" and "left" not in outcome:
                if stop.reason is None:
                    continue
                outcome = {"kind": "stopped", "reason": stop.reason, "message": "between two tasks"}
            break
    finally:
        workers.end()
    if "left" in outcome:
        outcome["left"] = [str(k) for k in keys[keys.index(key) :]]
    if outcome["kind"] == "stopped" and key == keys[-1] and run.paths.task_manifest(key).exists():
        outcome = {"kind": "done"}
    if outcome["kind"] == "stopped":
        outcome["gained"] = steps_saved(run, keys) > saved
    failed = outcome["kind"] not in ("done", "stopped")
    status.end(**outcome, **({"task": str(key)} if failed else {}))
    if failed:
        raise ElementError(f"{key}: {outcome['message']}\n{outcome.get('traceback', '')}")


class _Workers:
    """The workers of an element by role; each begins with its first task."""

    def __init__(self, run: Run, threads: int, rank: int, size: int) -> None:
        self._run, self._threads, self._rank, self._size = run, threads, rank, size
        self._workers: dict[str, WorkerProcess] = {}

    def of(self, key: TaskKey) -> WorkerProcess:
        role = role_of(self._run, key)
        if role not in self._workers:
            environment = {**os.environ, **worker_environment(engine_kind(self._run, key), self._threads)}
            if self._workers:
                environment.pop(
                    "CORE_HPC_JOB_START", None
                )  # this one has not waited since the job began (statistics of first tasks)
            if key.phase == UPDATE:
                environment |= rank_environment(self._rank, self._size)
            elif key.phase not in GENERATION_PHASES:
                environment["CUDA_VISIBLE_DEVICES"] = ""  # of a job with GPUs they are the engine's, or the trainer's
            self._workers[role] = WorkerProcess(role, None, environment, deaf=True)
        return self._workers[role]

    def end(self) -> None:
        end_workers(list(self._workers.values()))


def _begin(
    key: TaskKey, inputs: Collection[TaskKey], paths: RunPaths, stop: Stop, wait_s: float
) -> dict[str, Any] | None:
    """Wait for what must be published before a task; its outcome if that ends it, or if it is published already."""
    deadline = time.time() + wait_s
    while missing := _missing(paths, inputs):
        if stop.reason is not None:
            return {"kind": "stopped", "reason": stop.reason, "message": f"while it waited for {missing[0]}"}
        if time.time() >= deadline:
            return {"kind": "done", "left": [], "message": f"{missing[0]} was not there after {wait_s:g} s"}
        time.sleep(CHAIN_LOOK_S)
    return None if _missing(paths, [key]) else {"kind": "done"}


def _missing(paths: RunPaths, keys: Collection[TaskKey]) -> list[TaskKey]:
    """Those that are not published."""
    names = {folder: manifests.list_names(folder) for folder in {paths.task_folder(key) for key in keys}}
    return [key for key in keys if paths.task_manifest(key).name not in names[paths.task_folder(key)]]


def rank_environment(rank: int, size: int) -> dict[str, str]:
    """torch.distributed's variables for this rank, from SLURM's."""
    address, port = os.environ["CORE_HPC_RENDEZVOUS"].split()
    gpus = [g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g]
    local = int(os.environ.get("SLURM_LOCALID", "0"))
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local if local < len(gpus) else 0),
        "MASTER_ADDR": address if size > 1 else "127.0.0.1",
        "MASTER_PORT": port,
    }


def steps_saved(run: Run, keys: Collection[TaskKey]) -> int:
    """Optimizer steps in the newest checkpoints of updates, together."""
    return sum(max(stored_steps(run.paths, key), default=0) for key in keys if key.phase == UPDATE)


def _serve(worker: WorkerProcess, run: Run, key: TaskKey, stop: Stop, status: Status) -> dict[str, Any]:
    """One task; returns its outcome. Returns soon after the deadline whatever the worker does."""
    worker.send({"run": str(run.root), "task": str(key)})
    told = False
    with selectors.DefaultSelector() as selector:
        selector.register(worker.pipe, selectors.EVENT_READ)
        while True:
            if stop.reason is not None and not told:
                told = True
                worker.send({"stop": True})
                status.stopping(stop.reason)
            if time.time() > stop.deadline:
                return {"kind": "stopped", "reason": stop.reason, "message": "had to be ended in the middle of a task"}
            if not selector.select(min(1.0, max(0.0, stop.deadline - time.time()))):
                continue
            messages = worker.read()
            if messages is None:
                return {
                    "kind": "died",
                    "message": f"worker {worker.role} ended with {worker.ending()}",
                    "traceback": "",
                }
            for message in messages:
                kind = message.pop("event")
                if kind == "progress":
                    status.note(progress={**message, "time": time.time()})
                elif kind == "done":
                    return {"kind": "done"}
                elif kind == "stopped":
                    return {"kind": "stopped", "reason": stop.reason, "message": message["message"]}
                elif kind == "failed":
                    return {k: v for k, v in message.items() if k not in ("run", "task")}
