"""The executor of the driver `local` without real workers: GPUs, sharing, and how it is stopped."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import pytest

import yaml
from core_hpc.common.errors import InputError
from core_hpc.config.cluster import ClusterSection
from core_hpc.engines.share import Sharing
from core_hpc.local import executor as executors
from core_hpc.local import forking, gpus, process
from core_hpc.local.executor import LocalExecutor, LocalLimits
from core_hpc.local.gpus import Holder, check_gpus, place_alone, place_beside, usable_gpus
from core_hpc.local.memory import needs_of
from core_hpc.runs.events import Done, Failed, Progressed, Started
from core_hpc.runs.folder import ModelFacts, Run
from core_hpc.runs.outcome import Outcome, OutcomeKind, Progress
from core_hpc.runs.sweep import load_sweep
from core_hpc.runs.worker_messages import CommandKind, MessageKind, WorkerCommand, WorkerMessage
from core_hpc.store.paths import RunPaths, TaskKey
from tests.support.fake_slurm import kind_of

GPUS = ("0", "1", "2", "3")


# --- placement -----------------------------------------------------------------------------------


def holders_of(rng: random.Random) -> list[Holder]:
    """Random groups, none of which shares a GPU."""
    free, found = list(GPUS), []
    rng.shuffle(free)
    while free and rng.random() < 0.8:
        count = rng.randint(1, len(free))
        kind, held, free = rng.choice(("generate", "update")), tuple(free[:count]), free[count:]
        found.append(Holder(f"{kind}-{len(found)}", kind, held, rng.random() < 0.4, rng.random()))
    return [*found, Holder("score", "score", (), False, 0.0)]


def test_place_alone_ends_idle_groups_only_and_no_more_than_needed() -> None:
    rng = random.Random(1)
    for _ in range(500):
        holders, count = holders_of(rng), rng.randint(1, 4)
        by_role = {h.role: h for h in holders}
        busy = {gpu for h in holders if h.busy for gpu in h.gpus}
        placed = place_alone(count, GPUS, holders)
        assert (placed is None) == (len(GPUS) - len(busy) < count)
        if placed is None:
            continue
        chosen, ended = placed
        assert len(set(chosen)) == count
        assert not any(by_role[role].busy for role in ended)
        held = {gpu for h in holders if h.role not in ended for gpu in h.gpus}
        assert not held & set(chosen)
        if ended:  # without the last one, there would be too few GPUs
            assert len(GPUS) - len(held | set(by_role[ended[-1]].gpus)) < count
            kept = [h.last_used for h in holders if not h.busy and h.gpus and h.role not in ended]
            assert max(by_role[role].last_used for role in ended) < min(kept, default=2.0)


def test_place_beside_spreads_groups_of_one_kind() -> None:
    def holder(kind: str, name: str, *held: str, busy: bool = False, last_used: float = 0.0) -> Holder:
        return Holder(f"{kind}-{name}", kind, held, busy, last_used)

    engine = holder("generate", "a", "0")
    assert place_beside("generate", 1, ("0", "1"), [], most=1) == (("0",), [])
    assert place_beside("generate", 1, ("0", "1"), [engine], most=1) == (("1",), [])
    assert place_beside("update", 2, ("0", "1"), [engine], most=2) == (("0", "1"), [])
    busy = holder("update", "a", "1", busy=True)
    placed = place_beside("generate", 1, ("0", "1"), [engine, busy], most=1)
    assert placed is None, "the group waits and does not join the engine on the other GPU"
    assert place_beside("update", 2, ("0", "1"), [busy], most=2) is None
    # The next run of a sweep has other models, whose engines do not fit beside those of the first.
    older, newer = holder("generate", "a", "0", last_used=1), holder("generate", "b", "0", last_used=2)
    assert place_beside("generate", 1, ("0",), [newer, older], most=2) == (("0",), ["generate-a"])


def test_only_visible_gpus_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-7f")
    assert usable_gpus(ClusterSection()) == ("2", "GPU-7f")
    assert usable_gpus(ClusterSection(gpus=[1])) == ("GPU-7f",)
    with pytest.raises(InputError, match="shows 2 GPU"):
        usable_gpus(ClusterSection(gpus=[2]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(gpus, "num_gpu_devices", lambda: 3)
    assert usable_gpus(ClusterSection(gpus=[2])) == ("2",)
    with pytest.raises(InputError, match="this machine has 3 GPU"):
        usable_gpus(ClusterSection(gpus=[3]))
    monkeypatch.setattr(gpus, "num_gpu_devices", lambda: 0)  # WSL2: a GPU without a device file of its own
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES to their indices"):
        usable_gpus(ClusterSection())


def test_gpus_that_do_not_exist_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "num_gpu_devices", lambda: 0)
    monkeypatch.setattr(gpus, "has_gpu", lambda: False)
    assert usable_gpus(ClusterSection()) == ()
    with pytest.raises(InputError, match="this machine has 0 GPU"):
        usable_gpus(ClusterSection(gpus=[0, 1]))


def test_engines_that_share_gpus_with_trainers_must_leave_memory_for_them() -> None:
    check_gpus(ClusterSection(gpu_sharing="split", gpu_memory_share=0.45), 2, 1)
    check_gpus(ClusterSection(gpu_memory_share=0.95), 2, 1)
    check_gpus(ClusterSection(gpu_sharing="split"), 2, 2)
    with pytest.raises(InputError, match=r"2 engine\(s\) on a GPU .*Set gpu_memory_share to 0.25"):
        check_gpus(ClusterSection(gpu_sharing="split", gpu_memory_share=0.46), 2, 1)
    with pytest.raises(InputError, match="4 ranks need as many GPUs"):
        check_gpus(ClusterSection(update_ranks=4), 2, 2)
    with pytest.raises(InputError, match="an engine needs 4 GPUs, but this machine shows 2"):
        check_gpus(ClusterSection(engine_gpus=4), 2, 2)
    # Two engines on both of two GPUs: each GPU holds a part of both.
    with pytest.raises(InputError, match=r"2 engine\(s\) on a GPU"):
        check_gpus(ClusterSection(gpu_sharing="split", gpu_memory_share=0.46, engine_gpus=2), 2, 2)


@pytest.mark.parametrize("field", ["update_ranks", "engine_gpus"])
def test_slices_of_a_gpu_do_not_work_together(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL needs whole GPUs. Workers with one slice each need no NCCL."""
    monkeypatch.setattr(gpus, "has_gpu", lambda: True)
    several = ClusterSection(**{field: 2})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1a,MIG-2b")
    assert LocalLimits.of(ClusterSection(), 2).gpus == ("MIG-1a", "MIG-2b")
    with pytest.raises(InputError, match=rf"cluster.{field}: 2, .*MIG-1a.*Set cluster.{field} to 1"):
        LocalLimits.of(several, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1a,GPU-2b")
    assert LocalLimits.of(several, 2).gpus == ("GPU-1a", "GPU-2b")


SLEEP = WorkerCommand(CommandKind.SLEEP)

# --- the executor --------------------------------------------------------------------------------


class FakeWorker:
    """NOT a process: its messages are written by the test."""

    started: list[FakeWorker]

    def __init__(
        self,
        role: str,
        log: Path | None,
        environment: Mapping[str, str],
        *,
        ignore_signals: bool = False,
        shared_engine: bool = False,
        server: Any = None,
    ) -> None:
        self.role, self.log, self.environment, self.server = role, log, environment, server
        self.gpus = environment.get("CUDA_VISIBLE_DEVICES")
        self.ignore_signals, self.shared_engine = ignore_signals, shared_engine
        read_fd, self._messages = os.pipe()
        self.pipe: IO[bytes] = os.fdopen(read_fd, "rb", buffering=0)
        self.commands: list[WorkerCommand] = []
        self.alive = True
        self.process = self
        self.started.append(self)

    def send(self, command: WorkerCommand) -> None:
        self.commands.append(command)

    @property
    def last_task(self) -> WorkerCommand:
        return next(c for c in reversed(self.commands) if c.task)

    def report(
        self,
        kind: str,
        *,
        run: str = "",
        task: str = "",
        progress: Progress | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        """Write a message about the task that was sent last, unless another one is given."""
        last = self.last_task
        self.write(WorkerMessage(MessageKind(kind), run or last.run, task or last.task, progress, outcome))

    def write(self, message: WorkerMessage) -> None:
        os.write(self._messages, (json.dumps(message.to_json()) + "\n").encode())

    def read(self) -> list[WorkerMessage] | None:
        lines = os.read(self.pipe.fileno(), 1 << 16).splitlines()
        return [WorkerMessage.from_json(json.loads(line)) for line in lines] or None

    def die(self) -> None:
        os.close(self._messages)
        self._messages = -1

    def ending(self) -> str:
        return "signal SIGKILL"

    def log_tail(self) -> str:
        return ""

    def close_input(self) -> None:
        self.alive = False
        if self._messages < 0:
            return
        os.close(self._messages)

    def wait(self, timeout: float) -> int:
        return 0


class FakeServer:
    """NOT a process: it remembers what it was asked to import."""

    def __init__(self, packages: tuple[str, ...], environment: Mapping[str, str], log: IO[bytes] | None) -> None:
        self.packages, self.environment = packages, environment
        self.is_alive, self.closed = True, False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    FakeWorker.started = []
    monkeypatch.setattr(executors, "WorkerProcess", FakeWorker)
    monkeypatch.setattr(forking, "ForkServer", FakeServer)
    monkeypatch.setattr(executors, "POLL_S", 0.01)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    made: list[LocalExecutor] = []

    def build(num_weights: int = 0, **cluster: Any) -> tuple[LocalExecutor, Run]:
        path = tmp_path / "sweep.yaml"
        data = {
            "name": "s",
            "iterations": 1,
            "team": [{"name": name, "model": f"/{name}", "engine": "fake"} for name in "ab"],
            "problems": {
                "train": {"source": "generated", "count": 40},
                "evaluation": {"source": "generated", "count": 4},
            },
            "cluster": {"threads": 1, **cluster},
        }
        path.write_text(yaml.safe_dump(data))
        (plan,) = load_sweep(path).runs
        facts = {m.name: ModelFacts("", 64, "plain", num_weights) for m in plan.config.team}
        run = Run(plan.run_id, RunPaths(tmp_path / "run"), plan.config, facts)
        section = plan.config.cluster
        made.append(LocalExecutor(section, LocalLimits.of(section, 2, needs=needs_of([run])), ignore_signals=True))
        return made[-1], run

    yield build
    for executor in made:
        executor.close()
    assert not any(worker.alive for worker in FakeWorker.started)


def task(phase: str, model: str) -> TaskKey:
    return TaskKey(1, phase, model, 0)


def finish(executor: LocalExecutor, worker: FakeWorker) -> None:
    worker.report("done")
    while not any(isinstance(e, Done) for e in executor.poll()):
        pass


def test_split_keeps_engines_and_trainers_on_one_gpu_and_one_of_them_works_at_a_time(pool: Any) -> None:
    executor, run = pool(gpus=[0], gpu_sharing="split", gpu_memory_share=0.4)
    cold_a, cold_b, update_a, hint = task("cold", "a"), task("cold", "b"), task("update", "a"), task("hint", "team")
    assert [t.key for t in executor.submit([(run, cold_a), (run, cold_b), (run, hint)])] == [cold_a, hint]
    engine_a, scorer = FakeWorker.started
    assert (engine_a.gpus, scorer.gpus, engine_a.ignore_signals) == ("0", "", True)
    finish(executor, engine_a)
    assert [t.key for t in executor.submit([(run, cold_b), (run, update_a)])] == [cold_b]
    engine_b = FakeWorker.started[-1]
    finish(executor, engine_b)
    taken = [t.key for t in executor.submit([(run, update_a), (run, cold_a)])]
    assert taken == [update_a], "the engine waits while the trainer on its GPU works"
    trainer = FakeWorker.started[-1]
    finish(executor, trainer)
    executor.submit([(run, cold_a)])
    assert [w.role.partition("-")[0] for w in FakeWorker.started] == ["generate", "score", "generate", "update"]
    assert all(w.alive for w in FakeWorker.started), "no worker ended because of another"
    assert [c.task for c in engine_a.commands] == [str(cold_a)] * 2
    assert [w.gpus for w in (engine_b, trainer)] == ["0", "0"]


def test_an_engine_on_two_gpus_is_one_worker_that_sees_both(pool: Any) -> None:
    executor, run = pool(gpus=[0, 1, 2, 3], engine_gpus=2, update_ranks=2)
    cold_a, cold_b, update_a = task("cold", "a"), task("cold", "b"), task("update", "a")
    keys = [cold_a, task("hint", "team"), cold_b, update_a]
    assert [t.key for t in executor.submit([(run, key) for key in keys])] == keys[:3]
    engine_a, scorer, engine_b = FakeWorker.started
    assert [w.gpus for w in (engine_a, scorer, engine_b)] == ["0,1", "", "2,3"]
    finish(executor, engine_b)
    assert [t.key for t in executor.submit([(run, update_a)])] == [update_a]
    assert [w.gpus for w in FakeWorker.started[3:]] == ["2", "3"]
    assert [w.alive for w in (engine_a, engine_b)] == [True, False]


def test_the_ranks_of_each_group_meet_at_a_port_that_systems_do_not_assign(pool: Any) -> None:
    executor, run = pool(num_running=2, update_ranks=2)
    other, other_run = pool(num_running=2, update_ranks=2)
    for one, its_run in ((executor, run), (other, other_run)):
        one.submit([(its_run, task("update", name)) for name in "ab"])
    ports = [worker.environment["MASTER_PORT"] for worker in FakeWorker.started]
    assert ports[::2] == ports[1::2]
    assert len(set(ports)) == 4
    assert all(15_000 <= int(port) < 30_000 for port in ports)


def no_process(*_: object, **__: object) -> None:
    raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


@pytest.mark.parametrize("num_before", [0, 1])
def test_ranks_whose_last_one_cannot_start_are_ended_and_started_again_later(
    pool: Any, monkeypatch: pytest.MonkeyPatch, num_before: int
) -> None:
    """A task that began just before is known to the caller, who gets the error in the next pass."""
    executor, run = pool(gpus=[0, 1, 2, 3], update_ranks=2)
    others, update = [(run, task("hint", "team"))][:num_before], (run, task("update", "a"))

    def only_some(*arguments: Any, **named: Any) -> Any:
        return (no_process if len(FakeWorker.started) == num_before + 1 else FakeWorker)(*arguments, **named)

    monkeypatch.setattr(executors, "WorkerProcess", only_some)
    if num_before:
        assert [t.key for t in executor.submit([*others, update])] == [others[0][1]]
    else:
        with pytest.raises(BlockingIOError):
            executor.submit([update])
    assert [w.alive for w in FakeWorker.started] == [True] * num_before + [False]
    monkeypatch.setattr(executors, "WorkerProcess", FakeWorker)
    assert [t.key for t in executor.submit([update])] == [update[1]]
    assert [w.environment["RANK"] for w in FakeWorker.started if w.alive][num_before:] == ["0", "1"]


def test_a_worker_that_cannot_start_leaves_no_open_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.subprocess, "Popen", no_process)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(BlockingIOError):
        process.WorkerProcess("score", tmp_path / "log", {"OMP_NUM_THREADS": "1"})
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_engines_on_two_gpus_share_both_with_trainers(pool: Any) -> None:
    executor, run = pool(gpus=[0, 1], engine_gpus=2, gpu_sharing="split", gpu_memory_share=0.4)
    cold_a, cold_b, update_a = task("cold", "a"), task("cold", "b"), task("update", "a")
    for key in (cold_a, cold_b, update_a):
        assert [t.key for t in executor.submit([(run, key)])] == [key]
        finish(executor, FakeWorker.started[-1])
    assert [w.gpus for w in FakeWorker.started] == ["0,1", "0,1", "0"]
    assert all(w.alive for w in FakeWorker.started)


def test_engines_release_gpu_memory_before_another_worker_begins(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "gpu_memory", lambda gpus: 24.0)
    executor, run = pool(gpus=[0], gpu_sharing="sleep", num_weights=10**9)
    cold_a, cold_b, update_a = task("cold", "a"), task("cold", "b"), task("update", "a")
    assert [t.key for t in executor.submit([(run, cold_a)])] == [cold_a]
    (engine_a,) = FakeWorker.started
    assert engine_a.environment["CORE_HPC_GPU_SHARING"].split()[0] == "sleep"
    share = float(engine_a.environment["CORE_HPC_GPU_SHARING"].split()[1])
    assert 0.3 < share < 0.9, "more memory than with split"
    assert executor.submit([(run, cold_b)]) == []
    assert engine_a.commands[-1].task == str(cold_a), "it works, so it is not asked to sleep"
    finish(executor, engine_a)

    def starts_once_it_sleeps(key: TaskKey, sleeper: FakeWorker) -> FakeWorker:
        known = len(FakeWorker.started)
        assert executor.submit([(run, key)]) == []
        assert executor.submit([(run, key)]) == []
        assert (len(FakeWorker.started), sleeper.commands[-1]) == (known, SLEEP)
        assert sleeper.commands[-2] != SLEEP, "it is asked only once"
        sleeper.write(WorkerMessage(MessageKind.ASLEEP))
        assert executor.poll() == []
        assert [t.key for t in executor.submit([(run, key)])] == [key]
        executor.poll()
        return FakeWorker.started[-1]

    engine_b = starts_once_it_sleeps(cold_b, engine_a)
    finish(executor, engine_b)
    trainer = starts_once_it_sleeps(update_a, engine_b)
    assert SLEEP not in trainer.commands
    finish(executor, trainer)
    taken = [t.key for t in executor.submit([(run, cold_a)])]
    assert taken == [cold_a], "the other engine on the GPU sleeps, and a trainer stays"
    assert all(w.alive for w in FakeWorker.started)
    # A late message does not count, because the engine has a task again.
    engine_a.write(WorkerMessage(MessageKind.ASLEEP))
    executor.poll()
    finish(executor, engine_a)
    assert executor.submit([(run, cold_b)]) == []
    assert engine_a.commands[-1] == SLEEP


def test_evict_ends_an_idle_worker_when_another_needs_its_gpu(pool: Any) -> None:
    executor, run = pool(gpus=[0])
    cold_a, cold_b = task("cold", "a"), task("cold", "b")
    assert [t.key for t in executor.submit([(run, cold_a), (run, cold_b)])] == [cold_a]
    (engine_a,) = FakeWorker.started
    finish(executor, engine_a)
    assert [t.key for t in executor.submit([(run, cold_b)])] == [cold_b]
    assert [w.alive for w in FakeWorker.started] == [False, True]


def test_stop_waits_for_tasks_until_the_deadline(pool: Any) -> None:
    executor, run = pool(num_running=4, update_ranks=2)
    keys = [task("cold", "a"), task("cold", "b"), task("update", "a")]
    assert [t.key for t in executor.submit([(run, key) for key in keys])] == keys
    quick, hangs, *ranks = FakeWorker.started
    executor.poll()
    until = [time.time() + 60]
    stopping = executor.stop(lambda: until[0])
    ranks[1].report("stopped")
    quick.report("progress", progress=Progress(1, 2, 3))
    assert isinstance(next(stopping), Progressed)
    assert all(w.commands[-1] == WorkerCommand(CommandKind.STOP) for w in FakeWorker.started)
    ranks[0].report("stopped")
    quick.report("done")
    seen = {(kind_of(e), e.task.key) for e in (next(stopping), next(stopping))}
    assert seen == {("stopped", keys[2]), ("done", keys[0])}, "an update stops when all its ranks have stopped"
    until[0] = time.time() + 0.05  # SLURM may set an earlier deadline meanwhile
    assert list(stopping) == []
    assert hangs.alive, "only `close` ends it"


def test_an_engine_runs_as_many_parts_at_once_as_configured(pool: Any) -> None:
    executor, run = pool(num_running=1, parts_in_engine=2)
    parts = [TaskKey(1, "cold", "a", p) for p in range(3)]
    assert [t.key for t in executor.submit([(run, key) for key in (*parts, task("cold", "b"))])] == parts[:2]
    (engine,) = FakeWorker.started
    assert engine.shared_engine
    engine.report("progress", task=str(parts[0]), progress=Progress(1, 2, 3))
    engine.report("failed", task=str(parts[1]), outcome=Outcome(OutcomeKind.DAMAGED, "no"))
    found: list[Any] = []
    while not any(isinstance(e, Failed) for e in found):
        found += executor.poll()
    assert [(kind_of(e), e.task.key) for e in found if not isinstance(e, Started)] == [
        ("progressed", parts[0]),
        ("failed", parts[1]),
    ]
    assert [t.key for t in executor.submit([(run, parts[2])])] == [parts[2]], "the engine can take another part"
    engine.die()
    found = []
    while len(found) < 3:
        found += executor.poll()
    failed = {(kind_of(e), e.task.key) for e in found[1:]}
    assert failed == {("failed", parts[0]), ("failed", parts[2])}, "both were in the process that died"
    assert [t.key for t in executor.submit([(run, task("update", "a"))])] == [task("update", "a")]
    assert executor.submit([(run, task("update", "b")), (run, parts[0])]) == []
    assert not FakeWorker.started[-1].shared_engine


def test_equal_tasks_of_two_runs_are_distinguished(pool: Any, tmp_path: Path) -> None:
    executor, run = pool(parts_in_engine=2)
    other = dataclasses.replace(run, run_id="other", paths=RunPaths(tmp_path / "other"))
    cold = task("cold", "a")
    assert len(executor.submit([(run, cold), (other, cold)])) == 2
    (engine,) = FakeWorker.started
    engine.report("done", run=str(run.root.absolute()))
    found: list[Any] = []
    while not any(isinstance(e, Done) for e in found):
        found += executor.poll()
    assert [e.task.run_id for e in found if isinstance(e, Done)] == [run.run_id]


def test_an_engine_that_takes_one_call_at_a_time_gets_one_part_at_a_time(pool: Any) -> None:
    executor, run = pool(parts_in_engine=2)
    team = [m.model_copy(update={"engine": "transformers"}) for m in run.config.team]
    slow = dataclasses.replace(run, config=run.config.model_copy(update={"team": team}))
    parts = [TaskKey(1, "cold", "a", p) for p in range(2)]
    assert [t.key for t in executor.submit([(slow, key) for key in parts])] == parts[:1]


def test_a_worker_whose_task_raised_an_error_is_not_used_again(pool: Any) -> None:
    """After some errors of CUDA every further call of the process fails."""
    executor, run = pool()
    cold = task("cold", "a")
    executor.submit([(run, cold)])
    (engine,) = FakeWorker.started
    fail(executor, engine, OutcomeKind.ERROR)
    assert not engine.alive
    assert [t.key for t in executor.submit([(run, cold)])] == [cold]
    assert len(FakeWorker.started) == 2


def test_a_worker_that_met_a_damaged_file_stays_warm(pool: Any) -> None:
    executor, run = pool()
    cold = task("cold", "a")
    executor.submit([(run, cold)])
    (engine,) = FakeWorker.started
    fail(executor, engine, OutcomeKind.DAMAGED)
    assert [t.key for t in executor.submit([(run, cold)])] == [cold]
    assert FakeWorker.started == [engine]


def test_a_shared_engine_ends_after_an_error_once_its_other_tasks_are_done(pool: Any) -> None:
    executor, run = pool(num_running=1, parts_in_engine=2)
    parts = [TaskKey(1, "cold", "a", p) for p in range(3)]
    executor.submit([(run, key) for key in parts])
    (engine,) = FakeWorker.started
    fail(executor, engine, OutcomeKind.ERROR, task=str(parts[1]))
    assert engine.alive, "it still works on the first part"
    assert executor.submit([(run, parts[2])]) == [], "it gets no further task"
    engine.report("done", task=str(parts[0]))
    while not any(isinstance(e, Done) for e in executor.poll()):
        pass
    assert not engine.alive
    assert [t.key for t in executor.submit([(run, parts[2])])] == [parts[2]]


def fail(executor: LocalExecutor, worker: FakeWorker, kind: OutcomeKind, *, task: str = "") -> None:
    worker.report("failed", task=task, outcome=Outcome(kind, "no"))
    while not any(isinstance(e, Failed) for e in executor.poll()):
        pass


@pytest.mark.parametrize(
    ("num_gpus", "engine_gpus", "sharing", "stay"),
    [
        (1, 1, "evict", False),
        (4, 1, "evict", True),
        (4, 2, "evict", False),
        (6, 2, "evict", True),
        (1, 1, "split", True),
    ],
)
def test_workers_know_whether_trainers_stay_between_iterations(
    num_gpus: int, engine_gpus: int, sharing: str, stay: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling an update pays only if the same process does the next one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_gpus))))
    monkeypatch.setattr(gpus, "has_gpu", lambda: True)
    section = ClusterSection.model_validate(
        {"gpu_sharing": sharing, "gpu_memory_share": 0.3, "engine_gpus": engine_gpus}
    )
    limits = LocalLimits.of(section, 2)
    for name, value in limits.sharing.environment().items():
        monkeypatch.setenv(name, value)
    assert Sharing.of_worker(section).trainers_stay is stay


# --- fork servers --------------------------------------------------------------------------------


def test_workers_with_the_same_packages_have_one_server_and_others_none(
    pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(executors, "has_gpu", lambda: False)
    executor, run = pool(num_running=4)
    executor.submit([(run, task("cold", "a")), (run, task("update", "a")), (run, task("update", "b"))])
    engine, *trainers = FakeWorker.started
    assert engine.server is None, "the fake engine imports nothing large"
    assert trainers[0].server is trainers[1].server
    assert "torch" in trainers[0].server.packages
    assert "RANK" not in trainers[0].server.environment, "a variable of one worker would be that of all"
    ended = trainers[0].server
    ended.is_alive = False
    trainers[0].die()
    while not any(isinstance(event, Failed) for event in executor.poll()):
        pass
    executor.submit([(run, task("update", "a"))])
    assert FakeWorker.started[-1].server is not ended
    assert ended.closed


def test_there_is_no_server_where_a_worker_may_use_a_gpu(pool: Any) -> None:
    executor, run = pool(gpus=[0])
    executor.submit([(run, task("update", "a"))])
    (trainer,) = FakeWorker.started
    assert trainer.server is None


def test_there_is_no_server_on_a_system_without_process_descriptors(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    executor, run = pool()
    monkeypatch.setattr(os, "pidfd_open", missing)
    executor.submit([(run, task("update", "a"))])
    (trainer,) = FakeWorker.started
    assert trainer.server is None
