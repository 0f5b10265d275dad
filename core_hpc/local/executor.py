"""The executor of the driver `local`: a bounded pool of warm worker processes.

In: tasks that are ready. Out: events. A worker group has one role: the engine of one model, the
trainer of one model (one process per rank), or scoring. Which GPUs a group gets is decided in
`local/gpus.py`. The scheduler decides the order of tasks and repeated attempts. The driver
`resident` runs this executor inside its job.
"""

from __future__ import annotations

import itertools
import os
import secrets
import selectors
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import psutil

from core_hpc.common.ports import NUM_PORTS, port_for
from core_hpc.config.cluster import ClusterSection
from core_hpc.engines import has_gpu, worker_environment
from core_hpc.engines.share import ENGINE_GPUS, Sharing
from core_hpc.local.forking import ForkServers
from core_hpc.local.gpus import Holder, check_gpus, have_own_gpus, most_on_a_gpu, place_alone, place_beside, usable_gpus
from core_hpc.local.memory import Needs, choose, gpu_memory
from core_hpc.local.process import WorkerProcess, end_workers
from core_hpc.runs.events import Done, Event, Failed, Progressed, Started, Stopped, TaskRef
from core_hpc.runs.folder import Run
from core_hpc.runs.outcome import Outcome, OutcomeKind
from core_hpc.runs.roles import engine_kind, parts_at_once, role_of, worker_packages
from core_hpc.runs.worker_messages import CommandKind, MessageKind, WorkerCommand, WorkerMessage
from core_hpc.schedule.base import Adopted
from core_hpc.store.manifests import make_folder
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import TRAINING_PHASES

POLL_S = 0.5
PORT_SEEDS = itertools.count(secrets.randbelow(NUM_PORTS))
"""Of the worker groups of this process. Several processes of a node begin at different numbers."""


@dataclass
class _Assigned:
    """A task that a group works on. `open_ranks` are the ranks that have not ended it yet."""

    task: TaskRef
    open_ranks: set[int]


@dataclass(kw_only=True)
class _Group:
    """The processes of one role: one, or one per rank. `capacity`: tasks that they run at once."""

    role: str
    workers: list[WorkerProcess]
    gpus: tuple[str, ...]
    capacity: int
    assigned: dict[tuple[str, str], _Assigned] = field(default_factory=dict)
    """By run folder and task, as in the workers' messages."""
    last_used: float = 0.0
    memory: Literal["held", "asked", "released"] = "held"
    """GPU memory of an engine that sleeps in turns with others on its GPU."""
    is_suspect: bool = False
    """A task raised an error. After some errors of CUDA every further call of the process fails, so it gets no task."""


@dataclass(frozen=True)
class LocalLimits:
    """How much of this machine the pool may use at once."""

    num_running: int
    num_alive: int
    threads: int
    gpus: tuple[str, ...]
    num_models: int
    sharing: Sharing

    @classmethod
    def of(
        cls, cluster: ClusterSection, num_models: int, *, cores: int | None = None, needs: Sequence[Needs] = ()
    ) -> LocalLimits:
        """Resolve the defaults of a cluster section for this machine.

        Args:
            num_models: models of the largest team.
            cores: CPU cores that may be used, if this process sees more (in a SLURM job).
            needs: GPU memory that the models need, where it is known.

        Raises:
            InputError: this machine does not have the GPUs that the section asks for.
        """
        cores = cores or len(os.sched_getaffinity(0))
        gpus = usable_gpus(cluster)
        check_gpus(cluster, num_models, len(gpus), names=gpus)
        num_running = cluster.num_running or (len(gpus) + 1 if gpus else max(1, min(num_models, cores)))
        threads = cluster.threads or max(1, cores // num_running)
        host_gb = psutil.virtual_memory().total / 2**30
        sharing = choose(cluster, needs, num_gpus=len(gpus), gpu_gb=gpu_memory(gpus) if gpus else None, host_gb=host_gb)
        each_alone = not gpus or have_own_gpus(cluster, num_models, len(gpus))
        sharing = replace(sharing, trainers_stay=sharing.kind != "evict" or each_alone)
        return cls(num_running, cluster.num_alive or 2 * num_models + 1, threads, gpus, num_models, sharing)

    @property
    def description(self) -> str:
        """For the user: how many tasks run at once, and how GPUs are shared."""
        how = f"{self.num_running} task(s) at a time, {self.threads} thread(s) each, {len(self.gpus) or 'no'} GPU(s)"
        return f"{how}; sharing: {self.sharing.kind} ({self.sharing.why})" if self.sharing.why else how


class LocalExecutor:
    """Runs tasks in warm workers."""

    def __init__(self, cluster: ClusterSection, limits: LocalLimits, *, ignore_signals: bool = False) -> None:
        """Create an executor without workers.

        Args:
            ignore_signals: workers ignore the signals of a batch system. The process that calls
                `stop` handles them.
        """
        self._cluster = cluster
        self._limits = limits
        self._ignore_signals = ignore_signals
        self._groups: dict[str, _Group] = {}
        self._servers = ForkServers(with_gpus=bool(limits.gpus) or has_gpu())
        self._selector = selectors.DefaultSelector()
        self._started: list[Event] = []

    def adopt(self, runs: Sequence[Run]) -> Adopted:
        """Nothing: workers end with their launcher, so every start begins with new attempts."""
        return Adopted()

    def abandon(self, run: Run, why: str) -> list[TaskRef]:
        """Nothing: tasks in progress may end."""
        return []

    def submit(self, wanted: Sequence[tuple[Run, TaskKey]]) -> list[TaskRef]:
        """Start what fits now, in this order, and return it.

        Raises:
            OSError: the first of them cannot start. After another one, what has started is returned.
        """
        taken: list[TaskRef] = []
        for run, key in wanted:
            try:
                if self._try_submit(run, key):
                    taken.append(TaskRef(run.run_id, key))
            except OSError:
                if not taken:
                    raise
                break
        self._started += [Started(task) for task in taken]
        return taken

    def _try_submit(self, run: Run, key: TaskKey) -> bool:
        """Start a task, or return False when its worker or the machine is busy."""
        role = role_of(run, key)
        group = self._groups.get(role)
        if group is not None and group.assigned:
            if len(group.assigned) >= group.capacity or group.is_suspect:
                return False
        else:
            num_busy = sum(bool(g.assigned) for g in self._groups.values())
            if num_busy >= self._limits.num_running or (group is not None and self._in_use(group)):
                return False
            if group is not None and not self._others_sleep(group.gpus, group):
                return False
        if group is None:
            group = self._start_group(role, run, key)
            if group is None:
                return False
        command = WorkerCommand(CommandKind.RUN, str(run.root.absolute()), str(key))
        task = TaskRef(run.run_id, key)
        group.assigned[command.run, command.task] = _Assigned(task, set(range(len(group.workers))))
        group.last_used = time.monotonic()
        group.memory = "held"
        for worker in group.workers:
            worker.send(command)
        return True

    def _others_sleep(self, gpus: Collection[str], group: _Group | None) -> bool:
        """Ask the other engines on these GPUs (all idle) to sleep. Returns whether all sleep."""
        if self._limits.sharing.kind != "sleep":
            return True
        engines = [g for g in self._groups.values() if _kind(g.role) == "generate"]
        others = [g for g in engines if g is not group and set(g.gpus) & set(gpus)]
        for other in others:
            if other.memory == "held":
                other.memory = "asked"
                for worker in other.workers:
                    worker.send(WorkerCommand(CommandKind.SLEEP))
        return all(other.memory == "released" for other in others)

    def poll(self) -> list[Event]:
        """Return the events since the last poll; wait a moment for the first one."""
        events, self._started = self._started, []
        for selected, _ in self._selector.select(0 if events else POLL_S):
            rank, worker = selected.data
            group = self._groups.get(worker.role)
            if group is None or worker not in group.workers:  # an earlier event has ended it
                continue
            messages = worker.read()
            if messages is None:
                events += self._died(group, rank)
                continue
            for message in messages:
                events += self._handle(group, rank, message)
        return events

    def stop(self, deadline: Callable[[], float]) -> Iterator[Event]:
        """Ask all workers to stop, and yield events as they come. `submit` may not be called again.

        An update saves its position and ends. Other tasks continue to their end or until the
        deadline. Tasks that still run then are given up, and `close` ends their workers.

        Args:
            deadline: returns the deadline in seconds since 1970, which may change meanwhile.
        """
        for group in self._groups.values():
            for worker in group.workers:
                worker.send(WorkerCommand(CommandKind.STOP))
        while any(group.assigned for group in self._groups.values()) and time.time() < deadline():
            yield from self.poll()

    def close(self) -> None:
        """End all workers; tasks in flight are given up."""
        self._end(list(self._groups))
        self._servers.close()
        self._selector.close()

    # --- events ----------------------------------------------------------------------------------

    def _handle(self, group: _Group, rank: int, message: WorkerMessage) -> list[Event]:
        # If the memory is held, the group got a task after it was asked to sleep.
        if message.kind == MessageKind.ASLEEP and group.memory == "asked":
            group.memory = "released"
        assigned = group.assigned.get((message.run, message.task))
        if assigned is None:
            return []
        task = assigned.task
        if message.kind == MessageKind.PROGRESS:
            assert message.progress is not None
            return [Progressed(task, message.progress)] if rank == 0 else []
        if message.kind in (MessageKind.DONE, MessageKind.STOPPED):
            assigned.open_ranks.discard(rank)
            if assigned.open_ranks:
                return []
            del group.assigned[message.run, message.task]
            self._end_if_suspect(group)
            return [Done(task) if message.kind == MessageKind.DONE else Stopped(task)]
        assert message.kind == MessageKind.FAILED, message
        assert message.outcome is not None
        del group.assigned[message.run, message.task]
        if len(group.workers) > 1:
            self._end([group.role])  # the other ranks may wait for this one forever
        else:
            group.is_suspect = group.is_suspect or message.outcome.kind == OutcomeKind.ERROR
            self._end_if_suspect(group)
        return [Failed(task, replace(message.outcome, log=str(group.workers[rank].log)))]

    def _end_if_suspect(self, group: _Group) -> None:
        """End a group whose process may be broken, once it works on no task."""
        if group.is_suspect and not group.assigned:
            self._end([group.role])

    def _died(self, group: _Group, rank: int) -> list[Event]:
        worker = group.workers[rank]
        message = f"worker {group.role} (rank {rank}) ended with {worker.ending()}"
        self._end([group.role])
        outcome = Outcome(OutcomeKind.DIED, message, traceback=worker.log_tail(), log=str(worker.log))
        return [Failed(assigned.task, outcome) for assigned in group.assigned.values()]

    # --- workers ---------------------------------------------------------------------------------

    def _start_group(self, role: str, run: Run, key: TaskKey) -> _Group | None:
        ranks = self._cluster.update_ranks if key.phase in TRAINING_PHASES else 1
        num_gpus = ranks if key.phase in TRAINING_PHASES else self._cluster.engine_gpus
        gpus = self._take_gpus(role, num_gpus) if self._limits.gpus and not role.startswith("score") else ()
        if gpus is None:
            return None
        if len(self._groups) >= self._limits.num_alive and not self._evict():
            return None
        sharing = self._limits.sharing
        environment = {
            **os.environ,
            **worker_environment(engine_kind(run, key), self._limits.threads),
            **sharing.environment(),
            ENGINE_GPUS: str(self._cluster.engine_gpus),
        }
        make_folder(run.paths.logs)
        log = run.paths.logs / f"{role}.log"
        group = _Group(role=role, workers=[], gpus=gpus, capacity=parts_at_once(self._cluster, run, key))
        server = self._servers.of(worker_packages(run, key), environment, log)
        port = str(port_for(next(PORT_SEEDS)))
        self._groups[role] = group
        for rank in range(ranks):
            rank_environment = {
                "RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_RANK": "0",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            if self._limits.gpus:
                # A rank has one GPU, an engine all of its group, and a worker for scoring none.
                rank_environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[rank::ranks])
            try:
                worker = WorkerProcess(
                    role,
                    log,
                    {**environment, **rank_environment},
                    ignore_signals=self._ignore_signals,
                    shared_engine=group.capacity > 1,
                    server=server,
                )
            except OSError:  # the ranks that have started would wait for this one, with their GPUs
                self._end([role])
                raise
            self._selector.register(worker.pipe, selectors.EVENT_READ, (rank, worker))
            group.workers.append(worker)
        return group

    def _take_gpus(self, role: str, count: int) -> tuple[str, ...] | None:
        """Return GPUs for a new group and end idle groups on them; None: too many are busy."""
        limits, kind = self._limits, _kind(role)
        holders = [Holder(g.role, _kind(g.role), g.gpus, bool(g.assigned), g.last_used) for g in self._groups.values()]
        if limits.sharing.kind == "evict":
            found = place_alone(count, limits.gpus, holders)
        else:
            most = most_on_a_gpu(limits.num_models, count, len(limits.gpus))
            found = place_beside(kind, count, limits.gpus, holders, most=most)
        if found is None or not self._others_sleep(found[0], None):
            return None
        self._end(found[1])
        return found[0]

    def _in_use(self, group: _Group) -> bool:
        """Whether a group, or another group on one of its GPUs, works on a task."""
        return any(g.assigned and (g is group or set(g.gpus) & set(group.gpus)) for g in self._groups.values())

    def _evict(self) -> bool:
        """End the idle worker group that was used longest ago."""
        idle = [g for g in self._groups.values() if not g.assigned]
        if not idle:
            return False
        self._end([min(idle, key=lambda g: g.last_used).role])
        return True

    def _end(self, roles: Sequence[str]) -> None:
        workers = [worker for role in roles for worker in self._groups.pop(role).workers]
        for worker in workers:
            self._selector.unregister(worker.pipe)
        end_workers(workers)


def _kind(role: str) -> str:
    """What workers of a role do: generate, update or score."""
    return role.partition("-")[0]
