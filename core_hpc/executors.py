"""The local driver's executor: a bounded pool of warm worker processes on this machine, which also assigns the GPUs.

In: tasks that are ready. Out: events (progress, done, failed). A worker group serves one role: one model's
engine, one model's trainer (one process per rank), or scoring. It decides nothing about order or retries.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core_hpc.config import config_hash, scientific_fields
from core_hpc.config_cluster import ClusterSection
from core_hpc.engines import has_gpu, worker_environment
from core_hpc.errors import InputError
from core_hpc.paths import TaskKey
from core_hpc.runs import Run
from core_hpc.schema import GENERATION_PHASES, UPDATE
from core_hpc.store import make_folder
from core_hpc.worker_process import WorkerProcess, end_workers

POLL_S = 0.5


@dataclass(frozen=True)
class TaskRef:
    """A task of a run."""

    run_id: str
    key: TaskKey


@dataclass(frozen=True)
class Event:
    """Something that happened to a task: `kind` is started, waiting, progress, done or failed (see schedule.Executor)."""

    task: TaskRef
    kind: str
    fields: dict[str, Any]


@dataclass
class _Group:
    """The processes of one role: one, or one per rank."""

    role: str
    workers: list[WorkerProcess]
    gpus: tuple[int, ...]
    task: TaskRef | None = None
    waiting: set[int] = field(default_factory=set)
    last_used: float = 0.0


@dataclass(frozen=True)
class LocalLimits:
    """How much of this machine the pool may use at once."""

    num_running: int
    num_alive: int
    threads: int
    gpus: tuple[int, ...]

    @classmethod
    def of(cls, cluster: ClusterSection, num_models: int) -> LocalLimits:
        """Resolve the defaults of a cluster section for this machine; InputError when it cannot work here."""
        cores = len(os.sched_getaffinity(0))
        gpus = tuple(cluster.gpus) if cluster.gpus is not None else _visible_gpus()
        if gpus and cluster.update_ranks > len(gpus):
            raise InputError(
                f"cluster.update_ranks: {cluster.update_ranks} ranks need as many GPUs, this machine shows {len(gpus)}; lower it"
            )
        num_running = cluster.num_running or (len(gpus) + 1 if gpus else max(1, min(num_models, cores)))
        return cls(num_running, cluster.num_alive or 2 * num_models + 1, cluster.threads or max(1, cores // num_running), gpus)


def _visible_gpus() -> tuple[int, ...]:
    if not has_gpu():
        return ()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed:
        return tuple(range(len(listed.split(","))))
    return tuple(range(len(list(Path("/dev").glob("nvidia[0-9]*")))))


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class LocalExecutor:
    """Runs tasks in warm workers; `poll` reports what became of them."""

    def __init__(self, cluster: ClusterSection, limits: LocalLimits) -> None:
        self._cluster = cluster
        self._limits = limits
        self._groups: dict[str, _Group] = {}
        self._selector = selectors.DefaultSelector()
        self._started: list[Event] = []

    def adopt(self, runs: Sequence[Run]) -> list[TaskRef]:
        """Nothing: workers end with their launcher."""
        return []

    def attempts(self, run: Run) -> dict[TaskKey, int]:
        """Nothing: every start begins with new attempts."""
        return {}

    def abandon(self, run: Run) -> list[TaskRef]:
        """Nothing: what runs may end."""
        return []

    def submit(self, wanted: Sequence[tuple[Run, TaskKey]]) -> list[TaskRef]:
        """Start what fits now, in this order; returns what was started."""
        taken = [TaskRef(run.run_id, key) for run, key in wanted if self._try_submit(run, key)]
        self._started += [Event(task, "started", {}) for task in taken]
        return taken

    def _try_submit(self, run: Run, key: TaskKey) -> bool:
        """Start a task now, or return False when its worker or the machine is busy."""
        busy = [g for g in self._groups.values() if g.task is not None]
        role = role_of(run, key)
        group = self._groups.get(role)
        if len(busy) >= self._limits.num_running or (group is not None and group.task is not None):
            return False
        if group is None:
            group = self._start_group(role, run, key)
            if group is None:
                return False
        group.task = TaskRef(run.run_id, key)
        group.waiting = set(range(len(group.workers)))
        group.last_used = time.monotonic()
        for worker in group.workers:
            worker.send({"run": str(run.root.absolute()), "task": str(key)})
        return True

    def poll(self) -> list[Event]:
        """Events since the last poll; waits a moment for the first one."""
        events, self._started = self._started, []
        for selected, _ in self._selector.select(0 if events else POLL_S):
            rank, worker = selected.data
            group = self._groups.get(worker.role)
            if group is None or worker not in group.workers:  # stopped because of an event before this one
                continue
            messages = worker.read()
            if messages is None:
                events += self._died(group, rank)
                continue
            for message in messages:
                events += self._handle(group, rank, message)
        return events

    def close(self) -> None:
        """End all workers; tasks in flight are given up."""
        for role in list(self._groups):
            self._stop(role)
        self._selector.close()

    # --- events -----------------------------------------------------------------------------------------------------

    def _handle(self, group: _Group, rank: int, message: dict[str, Any]) -> list[Event]:
        kind = message.pop("event")
        task = group.task
        if task is None or message.get("task") != str(task.key):
            return []
        if kind == "progress":
            return [Event(task, "progress", message)] if rank == 0 else []
        if kind == "done":
            group.waiting.discard(rank)
            if group.waiting:
                return []
            group.task = None
            return [Event(task, "done", {})]
        assert kind == "failed", kind
        group.task = None
        if len(group.workers) > 1:
            self._stop(group.role)  # the other ranks may wait for this one for ever
        return [Event(task, "failed", {**message, "log": str(group.workers[rank].log)})]

    def _died(self, group: _Group, rank: int) -> list[Event]:
        worker, task = group.workers[rank], group.task
        how = worker.ending()
        self._stop(group.role)
        if task is None:
            return []
        message = f"worker {group.role} (rank {rank}) ended with {how}"
        return [Event(task, "failed", {"kind": "died", "message": message, "traceback": worker.log_tail(), "log": str(worker.log)})]

    # --- workers ----------------------------------------------------------------------------------------------------

    def _start_group(self, role: str, run: Run, key: TaskKey) -> _Group | None:
        ranks = self._cluster.update_ranks if key.phase == UPDATE else 1
        gpus = self._take_gpus(ranks) if self._limits.gpus and not role.startswith("score") else ()
        if gpus is None:
            return None
        if len(self._groups) >= self._limits.num_alive and not self._evict(lambda group: True):
            return None
        environment = {**os.environ, **worker_environment(engine_kind(run, key), self._limits.threads)}
        make_folder(run.paths.logs)
        log = run.paths.logs / f"{role}.log"
        group = _Group(role, [], gpus)
        port = str(_free_port())
        for rank in range(ranks):
            rank_environment = {
                "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }
            if self._limits.gpus:
                rank_environment["CUDA_VISIBLE_DEVICES"] = str(gpus[rank]) if gpus else ""
            worker = WorkerProcess(role, log, {**environment, **rank_environment})
            self._selector.register(worker.pipe, selectors.EVENT_READ, (rank, worker))
            group.workers.append(worker)
        self._groups[role] = group
        return group

    def _take_gpus(self, count: int) -> tuple[int, ...] | None:
        """Free GPUs, after ending idle workers that hold some; None when too many are busy."""
        while True:
            held = {gpu for group in self._groups.values() for gpu in group.gpus}
            free = [gpu for gpu in self._limits.gpus if gpu not in held]
            if len(free) >= count:
                return tuple(free[:count])
            if not self._evict(lambda group: bool(group.gpus)):
                return None

    def _evict(self, eligible: Any) -> bool:
        """End the idle worker group that was used longest ago."""
        idle = [g for g in self._groups.values() if g.task is None and eligible(g)]
        if not idle:
            return False
        self._stop(min(idle, key=lambda g: g.last_used).role)
        return True

    def _stop(self, role: str) -> None:
        group = self._groups.pop(role)
        for worker in group.workers:
            self._selector.unregister(worker.pipe)
        end_workers(group.workers)


def role_of(run: Run, key: TaskKey) -> str:
    """Tasks of one role can follow each other in a warm process, also those of different runs of a sweep."""
    if key.phase not in GENERATION_PHASES and key.phase != UPDATE:
        return "score"
    model, facts = run.config.model(key.model), run.facts[key.model]
    digest = config_hash({"model": scientific_fields(model), "context_tokens": facts.context_tokens})
    return f"{'update' if key.phase == UPDATE else 'generate'}-{key.model}-{digest}"


def engine_kind(run: Run, key: TaskKey) -> str:
    """Which environment the worker of a task must be started with (engines.worker_environment)."""
    return run.config.model(key.model).engine if key.phase in GENERATION_PHASES else "transformers"
