"""The local driver's executor: a bounded pool of warm worker processes on this machine, which also assigns the GPUs.

In: tasks that are ready. Out: events (progress, done, failed). A worker group serves one role: one model's
engine, one model's trainer (one process per rank), or scoring. It decides nothing about order or retries.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from core_hpc.config import ClusterSection, config_hash, scientific_fields
from core_hpc.engines import has_gpu, worker_environment
from core_hpc.errors import InputError
from core_hpc.paths import TaskKey
from core_hpc.runs import Run
from core_hpc.schema import GENERATION_PHASES, UPDATE
from core_hpc.store import make_folder

STOP_GRACE_S = 5.0
LOG_TAIL_CHARACTERS = 4000


@dataclass(frozen=True)
class TaskRef:
    """A task of a run."""

    run_id: str
    key: TaskKey


@dataclass(frozen=True)
class Event:
    """Something that happened to a submitted task: `kind` is started, progress, done or failed."""

    task: TaskRef
    kind: str
    fields: dict[str, Any]


@dataclass
class _Group:
    """The processes of one role: one, or one per rank."""

    role: str
    processes: list[subprocess.Popen[bytes]]
    pipes: list[IO[bytes]]
    log: Path
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
        self._buffers: dict[IO[bytes], bytes] = {}

    def try_submit(self, run: Run, key: TaskKey) -> bool:
        """Start a task now, or return False when its worker or the machine is busy."""
        busy = [g for g in self._groups.values() if g.task is not None]
        role = self._role(run, key)
        group = self._groups.get(role)
        if len(busy) >= self._limits.num_running or (group is not None and group.task is not None):
            return False
        if group is None:
            group = self._start_group(role, run, key)
            if group is None:
                return False
        group.task = TaskRef(run.run_id, key)
        group.waiting = set(range(len(group.processes)))
        group.last_used = time.monotonic()
        line = json.dumps({"run": str(run.root.absolute()), "task": str(key)}) + "\n"
        for process in group.processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has died: poll() sees the closed pipe and reports the failure
                process.stdin.write(line.encode())
                process.stdin.flush()
        return True

    def poll(self, timeout_s: float) -> list[Event]:
        """Events since the last poll; waits for the first one at most `timeout_s`."""
        events: list[Event] = []
        for selected, _ in self._selector.select(timeout_s):
            role, rank, pipe = selected.data
            group = self._groups.get(role)
            if group is None or pipe not in group.pipes:  # stopped because of an event before this one
                continue
            data = os.read(pipe.fileno(), 1 << 16)
            if not data:
                events += self._died(group, rank)
                continue
            *lines, rest = (self._buffers[pipe] + data).split(b"\n")
            self._buffers[pipe] = rest
            for line in lines:
                events += self._handle(group, rank, json.loads(line))
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
        if len(group.processes) > 1:
            self._stop(group.role)  # the other ranks may wait for this one for ever
        return [Event(task, "failed", {**message, "log": str(group.log)})]

    def _died(self, group: _Group, rank: int) -> list[Event]:
        code = group.processes[rank].wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        task = group.task
        self._stop(group.role)
        if task is None:
            return []
        tail = group.log.read_bytes()[-LOG_TAIL_CHARACTERS:].decode(errors="replace")
        message = f"worker {group.role} (rank {rank}) ended with {how}"
        return [Event(task, "failed", {"kind": "died", "message": message, "traceback": tail, "log": str(group.log)})]

    # --- workers ----------------------------------------------------------------------------------------------------

    def _role(self, run: Run, key: TaskKey) -> str:
        """Tasks of one role can follow each other in a warm process, also those of different runs of a sweep."""
        if key.phase not in GENERATION_PHASES and key.phase != UPDATE:
            return "score"
        model, facts = run.config.model(key.model), run.facts[key.model]
        digest = config_hash({"model": scientific_fields(model), "context_tokens": facts.context_tokens})
        return f"{'update' if key.phase == UPDATE else 'generate'}-{key.model}-{digest}"

    def _start_group(self, role: str, run: Run, key: TaskKey) -> _Group | None:
        ranks = self._cluster.update_ranks if key.phase == UPDATE else 1
        gpus = self._take_gpus(ranks) if self._limits.gpus and not role.startswith("score") else ()
        if gpus is None:
            return None
        if len(self._groups) >= self._limits.num_alive and not self._evict(lambda group: True):
            return None
        kind = run.config.model(key.model).engine if key.phase in GENERATION_PHASES else "transformers"
        environment = {**os.environ, **worker_environment(kind, self._limits.threads)}
        make_folder(run.paths.logs)
        log = run.paths.logs / f"{role}.log"
        group = _Group(role, [], [], log, gpus)
        port = str(_free_port())
        for rank in range(ranks):
            rank_environment = {
                "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }
            if self._limits.gpus:
                rank_environment["CUDA_VISIBLE_DEVICES"] = str(gpus[rank]) if gpus else ""
            self._start_process(group, rank, {**environment, **rank_environment})
        self._groups[role] = group
        return group

    def _start_process(self, group: _Group, rank: int, environment: dict[str, str]) -> None:
        read_fd, write_fd = os.pipe()
        command = [
            sys.executable, "-m", "core_hpc.worker", "--role", group.role,
            "--events-fd", str(write_fd), "--threads", environment["OMP_NUM_THREADS"],
        ]
        with group.log.open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, pass_fds=(write_fd,),
                start_new_session=True,  # Ctrl-C is for the launcher, which then ends its workers
            )
        os.close(write_fd)
        pipe = os.fdopen(read_fd, "rb", buffering=0)
        group.processes.append(process)
        group.pipes.append(pipe)
        self._buffers[pipe] = b""
        self._selector.register(pipe, selectors.EVENT_READ, (group.role, rank, pipe))

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
        for pipe in group.pipes:
            self._selector.unregister(pipe)
            self._buffers.pop(pipe)
            pipe.close()
        for process in group.processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # a worker ends at once when its input closes
        _wait_or_kill(group.processes)


def _wait_or_kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + STOP_GRACE_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
