"""What runs inside a SLURM job: an element of an array runs its tasks, one after the other.

In: an `ElementSpec` (`slurm/job.py` calls `run_element` with it). Out: published tasks, and a status file (`JobStatus`)
with the progress and the end of the element. The tasks run in worker processes, one per role. This
process only watches: it receives the signals of SLURM, asks the worker to stop, and ends it when
the time is over, even if it hangs in native code. With `slurm.chain_wait_s` an element runs tasks
of several phases, while other elements do the same for their models. It does not repeat what they
have published. If their results are missing for too long, it leaves its tasks to another job. Which
tasks an element has is decided in `slurm/arrays.py`. Jobs of the driver `resident` are in
`slurm/resident_job.py`.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from core_hpc.common.environment import number_in
from core_hpc.common.errors import FULL_DISK, CoreHpcError, RepeatingError, StoreError
from core_hpc.common.stop_signals import STOP_SIGNALS
from core_hpc.engines import worker_environment
from core_hpc.engines.share import ENGINE_GPUS
from core_hpc.local.gpus import visible_gpus
from core_hpc.local.process import WorkerProcess, end_workers
from core_hpc.phases.checkpoint import stored_steps
from core_hpc.runs.folder import Run, open_run
from core_hpc.runs.job_status import JobEnd, JobStatus, RunningTask, StopReason
from core_hpc.runs.outcome import OutcomeKind
from core_hpc.runs.roles import engine_kind, role_of
from core_hpc.runs.worker_messages import CommandKind, MessageKind, WorkerCommand
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import GENERATION_PHASES, TRAINING_PHASES

T = TypeVar("T")

STATUS_INTERVAL_S = 10.0
TERM_GRACE_S = 20.0
"""After SIGTERM (scancel, or the time limit). By default SLURM kills the job 30 s later. A preemption may send this
signal alone, and leaves the grace time of the partition if that is longer."""
END_MARGIN_S = 8.0
"""Time between the end of the worker and the end of the job, for writing the status."""
EARLY_WARNING_S = 65.0
"""SLURM may send the warning signal up to a minute early."""
FILES_PATIENCE_S, FILES_RETRY_S = 300.0, 5.0
"""How long a job waits for a file system that reports errors, and how often it repeats what failed."""
CHAIN_LOOK_S = 1.0
"""Interval at which an element of a chain looks for what other elements publish."""


class ElementError(CoreHpcError):
    """Ends the job with an error, so that SLURM's own accounting shows a failure."""


@dataclass(frozen=True)
class ElementSpec:
    """What an element must know. Waiting jobs hold older ones, so a new field needs a default.

    Attributes:
        run: the run folder.
        tasks: task keys, as text.
        status: the status file of rank 0.
        signal_delay_s: how long before the time limit SLURM sends its warning.
        preemption_grace_s: how long a preempted job may continue.
        chain_wait_s: how long a task waits for inputs that other elements make.
        engine_gpus: the GPUs of an engine; 0: as configured, because an earlier version submitted the job.
    """

    run: str
    tasks: tuple[str, ...]
    status: str
    threads: int
    time_min: int
    signal_delay_s: float
    preemption_grace_s: float
    chain_wait_s: float = 0.0
    engine_gpus: int = 0


def job_end(time_min: int) -> float:
    """When SLURM will end this job (seconds since 1970).

    Newer versions of SLURM name it, as it was when the job began. Otherwise the job's time began with its batch script.
    """
    if end := number_in("SLURM_JOB_END_TIME"):
        return float(end)
    return float(os.environ.get("CORE_HPC_JOB_START") or time.time()) + 60.0 * time_min


class Stop:
    """Whether SLURM wants this job to end, why, and until when the worker may continue."""

    def __init__(self, spec: ElementSpec) -> None:
        self._spec = spec
        self._end = job_end(spec.time_min)
        self.reason: StopReason | None = None
        self.deadline = float("inf")
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.time()
        # A job that runs after its end has got a new limit, of which this is the warning.
        end = self._end if self._end > now else now + self._spec.signal_delay_s
        left = end - now
        if left <= self._spec.signal_delay_s + EARLY_WARNING_S:
            reason, deadline, grace_s = StopReason.TIME_LIMIT, end - min(END_MARGIN_S, left / 4), TERM_GRACE_S
        else:
            preempted_s = 0.8 * self._spec.preemption_grace_s
            reason, deadline, grace_s = StopReason.PREEMPTED, now + preempted_s, max(TERM_GRACE_S, preempted_s)
        if number == signal.SIGTERM:  # if it is scancel, SLURM kills the job earlier; `stopping` is written by then
            reason, deadline = self.reason or StopReason.TERMINATED, now + grace_s
        self.reason, self.deadline = reason, min(self.deadline, deadline)


class StatusFile:
    """The status file of an element.

    Rank 0 writes it. Another rank writes a file of its own, and only when it fails.
    """

    def __init__(self, spec: ElementSpec, rank: int) -> None:
        path = Path(spec.status)
        self._path = path if rank == 0 else path.with_suffix(f".rank{rank}.json")
        self._rank = rank
        self._status = JobStatus(
            job=os.environ.get("SLURM_JOB_ID", ""),
            restarts=number_in("SLURM_RESTART_COUNT") or 0,
            node=os.environ.get("SLURMD_NODENAME", socket.gethostname()),
            pid=os.getpid(),
            started=time.time(),
        )
        self._written = 0.0

    @property
    def num_published(self) -> int:
        return self._status.published

    def note(self, *, now: bool = False, **changes: Any) -> None:
        """Change fields of the `JobStatus`.

        Without `now` they are written only if the last time is `STATUS_INTERVAL_S` ago.
        """
        self._status = replace(self._status, **changes)
        if now or time.time() - self._written >= STATUS_INTERVAL_S:
            self.write()

    def published(self, **changes: Any) -> None:
        """One more task is published; `changes` are other fields."""
        self.note(now=True, published=self.num_published + 1, **changes)

    def stopping(self, reason: StopReason) -> None:
        """Write at once why the job stops, since SLURM may kill it before it can write more."""
        if self._status.stopping != reason:
            self.note(now=True, stopping=reason)

    def end(self, end: JobEnd) -> None:
        self._status = replace(self._status, outcome=end)
        if self._rank == 0 or end.is_failure:
            self.write(always=True)

    def write(self, *, always: bool = False) -> None:
        if self._rank == 0 or always:
            self._written = time.time()
            try:
                manifests.write_json(self._path, self._status.to_json())
            except OSError as e:  # for example a full disk; the log then has the status, unless it is there too
                with contextlib.suppress(OSError):
                    print(f"the status could not be written ({e}): {self._status}", flush=True)


def run_element(spec: ElementSpec) -> None:
    """Run the tasks of an element (every rank of an update calls this)."""
    rank, size = number_in("SLURM_PROCID") or 0, number_in("SLURM_NTASKS") or 1
    stop, status = Stop(spec), StatusFile(spec, rank)
    status.write()
    try:
        end = _run_tasks(spec, rank, size, stop, status)
    except (CoreHpcError, OSError) as e:
        end = end_of_error(e)
    status.end(end)
    if end.is_failure:
        raise ElementError(f"{end.task}: {end.message}\n{end.traceback}" if end.task else end.message)


def _run_tasks(spec: ElementSpec, rank: int, size: int, stop: Stop, status: StatusFile) -> JobEnd:
    keys = [TaskKey.parse(text) for text in spec.tasks]
    run = patient(lambda: run_of(spec), stop)
    graph, saved = patient(run.graph, stop), patient(lambda: steps_saved(run, keys), stop)
    workers, end = _Workers(run, spec.threads, rank, size), JobEnd(OutcomeKind.DONE)
    try:
        for key in keys:
            if rank and key.phase not in TRAINING_PHASES:  # what comes before an update is done by rank 0
                early = _begin(key, [key], run.paths, stop, float("inf"))
            else:
                inputs = graph.inputs(key)
                # All inputs were published at the submission, unless the element makes some itself.
                own = inputs if set(inputs) & set(keys) else ()
                together = size > 1 and key.phase in TRAINING_PHASES  # its ranks look for it in `phases/__init__.py`
                early = _begin(key, own, run.paths, stop, spec.chain_wait_s, look=not together)
            end = early or _serve(workers.of(key), run, key, stop, status)
            if early is None and end.kind == OutcomeKind.DONE:
                status.published()
            if end.kind != OutcomeKind.DONE or end.left is not None:
                break
            if stop.reason is not None:
                end = _stopped(stop, "between two tasks")
                break
    finally:
        workers.end()
    if end.left is not None:
        end = replace(end, left=tuple(str(k) for k in keys[keys.index(key) :]))
    if end.kind == OutcomeKind.STOPPED and key == keys[-1] and run.paths.task_manifest(key).exists():
        end = JobEnd(OutcomeKind.DONE)
    if end.kind == OutcomeKind.STOPPED:
        end = replace(end, gained=steps_saved(run, keys) > saved)
    return replace(end, task=str(key)) if end.is_failure else end


def run_of(spec: ElementSpec) -> Run:
    """The run of a job, as its last start configured it, with the GPUs of an engine that the job was submitted for."""
    run = open_run(Path(spec.run), own=True)
    gpus = spec.engine_gpus or run.config.cluster.engine_gpus
    cluster = run.config.cluster.model_copy(update={"engine_gpus": gpus})
    return replace(run, config=run.config.model_copy(update={"cluster": cluster}))


def patient(read: Callable[[], T], stop: Stop) -> T:
    """Call `read` until the file system works, for some minutes, unless SLURM wants the job to end.

    Raises:
        OSError: The file system still reports errors, or the error does not pass.
        StoreError: The same, or something else is wrong.
    """
    began = time.monotonic()
    while True:
        try:
            return read()
        except (OSError, StoreError) as e:
            error = e.__cause__ if isinstance(e, StoreError) else e
            lasts = isinstance(error, FileNotFoundError) or getattr(error, "errno", None) in (None, *FULL_DISK)
            if lasts or stop.reason is not None or time.monotonic() - began >= FILES_PATIENCE_S:
                raise
            with contextlib.suppress(OSError):
                print(f"{e}; waiting for the file system", flush=True)
        time.sleep(FILES_RETRY_S)


def end_of_error(error: CoreHpcError | OSError) -> JobEnd:
    """The end of a job that failed outside its tasks.

    A file may be readable again in a moment, and another node may have the missing GPUs.
    """
    return JobEnd(OutcomeKind.FINAL if isinstance(error, RepeatingError) else OutcomeKind.ERROR, str(error))


def _stopped(stop: Stop, message: str) -> JobEnd:
    return JobEnd(OutcomeKind.STOPPED, message, stop.reason)


class _Workers:
    """The workers of an element by role; each begins with its first task."""

    def __init__(self, run: Run, threads: int, rank: int, size: int) -> None:
        self._run, self._threads, self._rank, self._size = run, threads, rank, size
        self._workers: dict[str, WorkerProcess] = {}

    def of(self, key: TaskKey) -> WorkerProcess:
        role = role_of(self._run, key)
        if role not in self._workers:
            environment = {**os.environ, **worker_environment(engine_kind(self._run, key), self._threads)}
            environment[ENGINE_GPUS] = str(self._run.config.cluster.engine_gpus)
            if self._workers:
                # Only the first worker has waited since the job began (statistics of first tasks).
                environment.pop("CORE_HPC_JOB_START", None)
            if key.phase in TRAINING_PHASES:
                environment |= rank_environment(self._rank, self._size)
            elif key.phase not in GENERATION_PHASES:
                environment["CUDA_VISIBLE_DEVICES"] = ""  # GPUs are for the engine or the trainer
            self._workers[role] = WorkerProcess(role, None, environment, ignore_signals=True)
        return self._workers[role]

    def end(self) -> None:
        end_workers(list(self._workers.values()))


def _begin(
    key: TaskKey, inputs: Collection[TaskKey], paths: RunPaths, stop: Stop, wait_s: float, *, look: bool = True
) -> JobEnd | None:
    """Wait until a task's inputs are published.

    Args:
        look: look whether the task itself is published.

    Returns:
        None when the task can begin; its end if waiting ends it, or if the task itself is published
        already.
    """
    deadline = time.time() + wait_s
    while missing := patient(lambda: _missing(paths, inputs), stop):
        if stop.reason is not None:
            return _stopped(stop, f"while it waited for {missing[0]}")
        if time.time() >= deadline:
            return JobEnd(OutcomeKind.DONE, f"{missing[0]} was not published within {wait_s:g} s", left=())
        time.sleep(CHAIN_LOOK_S)
    return JobEnd(OutcomeKind.DONE) if look and not patient(lambda: _missing(paths, [key]), stop) else None


def _missing(paths: RunPaths, keys: Collection[TaskKey]) -> list[TaskKey]:
    """Those of the keys that are not published."""
    names = {folder: manifests.list_names(folder) for folder in {paths.task_folder(key) for key in keys}}
    return [key for key in keys if paths.task_manifest(key).name not in names[paths.task_folder(key)]]


def rank_environment(rank: int, size: int) -> dict[str, str]:
    """torch.distributed's variables for this rank, from SLURM's."""
    address, port = os.environ["CORE_HPC_RENDEZVOUS"].split()
    gpus = visible_gpus()  # all GPUs of the node, or the one that SLURM gave to this rank
    local = number_in("SLURM_LOCALID") or 0
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local if local < len(gpus) else 0),
        "MASTER_ADDR": address if size > 1 else "127.0.0.1",
        "MASTER_PORT": port,
    }


def steps_saved(run: Run, keys: Collection[TaskKey]) -> int:
    """Number of optimizer steps in the newest checkpoints of these updates, added up."""
    return sum(max(stored_steps(run.paths, key), default=0) for key in keys if key.phase in TRAINING_PHASES)


def _serve(worker: WorkerProcess, run: Run, key: TaskKey, stop: Stop, status: StatusFile) -> JobEnd:
    """Run one task. Returns soon after the deadline whatever the worker does."""
    worker.send(WorkerCommand(CommandKind.RUN, str(run.root), str(key)))
    asked_to_stop, started = False, time.time()
    with selectors.DefaultSelector() as selector:
        selector.register(worker.pipe, selectors.EVENT_READ)
        while True:
            if stop.reason is not None and not asked_to_stop:
                asked_to_stop = True
                worker.send(WorkerCommand(CommandKind.STOP))
                status.stopping(stop.reason)
            if time.time() > stop.deadline:
                return _stopped(stop, "had to be ended in the middle of a task")
            if not selector.select(min(1.0, max(0.0, stop.deadline - time.time()))):
                continue
            messages = worker.read()
            if messages is None:
                return JobEnd(OutcomeKind.DIED, f"worker {worker.role} ended with {worker.ending()}")
            for message in messages:
                if message.kind == MessageKind.PROGRESS:
                    status.note(progress=(message.task, RunningTask(started, message.progress, time.time())))
                elif message.kind == MessageKind.DONE:
                    return JobEnd(OutcomeKind.DONE)
                elif message.kind == MessageKind.STOPPED and message.outcome is not None:
                    return _stopped(stop, message.outcome.message)
                elif message.kind == MessageKind.FAILED and message.outcome is not None:
                    return JobEnd.of_failure(message.outcome)
