"""Faults done to a sweep on a real SLURM cluster: a launcher that is started again whenever it ends, tasks that are held
at a fault point, and what is done to them meanwhile. The tables of faults are in test_cluster_faults.py."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from core_hpc.runs.folder import list_runs, open_run
from core_hpc.slurm.records import ENDED, FAILED, OPEN, SubmissionFolder
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths, TaskKey
from tests.support.cluster import DevCluster
from tests.support.harness import ROOT

WAIT_S = 240.0


@dataclass(frozen=True)
class Fault:
    """One fault, done while a task is held at a fault point. `point` is where."""

    kind: str
    task: str
    point: str = "task.started"

    @property
    def place(self) -> str:
        """Text that the detail of the fault point contains."""
        key = TaskKey.parse(self.task)
        published = f"/{key.phase}/iteration={key.iteration:04d}/{key.model}-p{key.part:03d}"
        return published if self.point.startswith("publish") else self.task

    def __str__(self) -> str:
        return f"{self.kind} at {self.task} ({self.point})"


@dataclass(frozen=True)
class Held:
    """Where the held process is."""

    pid: int
    job: str
    node: str
    marker: Path


@dataclass
class Disturber:
    """Runs one sweep to its end while faults happen to it, in their order."""

    cluster: DevCluster
    sweep: Path
    folder: Path
    """Scratch of this test: markers and log."""
    output: Path
    faults: list[Fault]
    report: list[str] = field(default_factory=list)
    extra: Counter[str] = field(default_factory=Counter)
    """Submissions of a task that the faults make necessary, beside the first."""
    starts: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def run(self) -> Path:
        """All faults, then on to the end; returns the run's folder."""
        self._start()
        try:
            for number, fault in enumerate(self.faults):
                began = time.monotonic()
                held = self._wait_held(number, fault)
                DEEDS[fault.kind](self, fault, held)
                self._release(number, held)
                self.report.append(f"{number + 1:3d}  {fault!s:70s} {time.monotonic() - began:6.1f} s")
            self._wait(self._finished, "the end of the sweep")
        finally:
            if self._process is not None and self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        return self.run_folder

    @property
    def run_folder(self) -> Path:
        (run,) = list_runs(self.output)
        return run

    def submissions(self) -> Counter[str]:
        """How often each task was submitted."""
        records = SubmissionFolder(RunPaths(self.run_folder).slurm).read(OPEN, ENDED, FAILED)
        return Counter(task for record in records for element in record.elements for task in element)

    # --- the launcher ----------------------------------------------------------------------------

    def _start(self) -> None:
        entries = ";".join(f"hold {f.point}@{f.place}:{self._marker(n)}" for n, f in enumerate(self.faults))
        environment = {**self.cluster.environment(), "CORE_HPC_FAULT": entries}
        with (self.folder / "launcher.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "core_hpc.launch", str(self.sweep)],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )
        self.starts += 1

    def _finished(self) -> bool:
        assert self._process is not None
        status = self._process.poll()
        if status is not None and status != 0:
            self._start()
        return status == 0

    def kill_launcher(self) -> None:
        """SIGKILL, and the same command again."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._start()

    def wait_for_launcher(self) -> None:
        """Until it ends by itself; then the same command again."""
        process = self._process
        assert process is not None
        self._wait(lambda: process.poll() is not None, "the end of the launcher")
        self._start()

    # --- waiting ---------------------------------------------------------------------------------

    def _marker(self, number: int) -> Path:
        return self.folder / f"fault{number:03d}"

    def _wait_held(self, number: int, fault: Fault) -> Held:
        """A process that is held where this fault wants it, if need be in the name of a later fault at the same place: an
        earlier fault may have hit what was held for this one."""
        alike = [n for n, f in enumerate(self.faults) if n >= number and (f.task, f.point) == (fault.task, fault.point)]
        found: list[Held] = []

        def is_held() -> bool:
            assert not self._finished(), f"the sweep ended before {fault}"
            for marker in map(self._marker, alike):
                words = marker.read_text().split() if marker.exists() else []
                if len(words) == 3 and psutil.pid_exists(int(words[0])):
                    found.append(Held(int(words[0]), words[1], words[2], marker))
                    return True
            return False

        self._wait(is_held, str(fault))
        return found[0]

    def _release(self, number: int, held: Held) -> None:
        held.marker.with_suffix(".go").touch()
        if held.marker != self._marker(number):
            time.sleep(1)  # longer than a held process takes to see it
            held.marker.unlink()
            held.marker.with_suffix(".go").unlink()
            self._marker(number).touch()

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not ready():
            if time.monotonic() > deadline:
                log = (self.folder / "launcher.log").read_text()[-3000:]
                raise AssertionError(
                    f"waited in vain for {what}; queue:\n{self.cluster.run('squeue', '-a')}\nlauncher:\n{log}"
                )
            time.sleep(0.1)

    def wait_gone(self, held: Held) -> None:
        """Until the held process has ended."""
        self._wait(lambda: not psutil.pid_exists(held.pid), f"the end of process {held.pid}")


# --- deeds ---------------------------------------------------------------------------------------


def _kill_worker(d: Disturber, fault: Fault, held: Held) -> None:
    os.kill(held.pid, 9)
    d.extra[fault.task] += 1


def _kill_job(d: Disturber, fault: Fault, held: Held) -> None:
    d.cluster.run("scancel", "--signal=KILL", held.job)
    d.wait_gone(held)
    d.extra[fault.task] += 1


def _cancel(d: Disturber, fault: Fault, held: Held) -> None:
    d.cluster.run("scancel", held.job)
    d.wait_gone(held)
    d.extra[fault.task] += 1


def _under_way(d: Disturber) -> set[str]:
    """Tasks that a fault of a node or a disk may hit: each may have to be submitted again."""
    records = SubmissionFolder(RunPaths(d.run_folder).slurm).read(OPEN)
    return {task for record in records for index in record.unresolved for task in record.elements[index]}


def _cancel_pending(d: Disturber, fault: Fault, held: Held) -> None:
    """The other elements of the held task's array wait for it (array_parallelism 1): they vanish."""
    array = d.cluster.run("squeue", "-h", "-j", held.job, "-O", "ArrayJobID").strip()
    folder = SubmissionFolder(RunPaths(d.run_folder).slurm)
    (record,) = (s for s in folder.read(OPEN) if str(s.job) == array)
    waiting = [
        line.split()
        for line in d.cluster.run("squeue", "-h", "-r", "-j", array, "-t", "PD", "-o", "%K %T").splitlines()
    ]
    assert waiting, "no element waits"
    for index, _ in waiting:
        d.cluster.run("scancel", f"{array}_{index}")
        for task in record.elements[int(index)]:
            d.extra[task] += 1


def _cancel_pending_and_kill(d: Disturber, fault: Fault, held: Held) -> None:
    _cancel_pending(d, fault, held)
    _kill_worker(d, fault, held)


def _power_cut(d: Disturber, fault: Fault, held: Held) -> None:
    """SLURM finds the node dead and puts its jobs back into the queue: no submission of ours."""
    d.cluster.kill_node(held.node)
    d.wait_gone(held)

    def is_back() -> bool:
        return held.node not in d.cluster.run("squeue", "-h", "-j", held.job, "-o", "%N")

    d._wait(is_back, f"SLURM's notice that {held.node} is dead")
    d.cluster.start_node(held.node)


def _preempt(d: Disturber, fault: Fault, held: Held) -> None:
    """A job of a higher partition takes the node. SLURM puts ours back, or they end within the grace and we submit again."""
    hit = _under_way(d)
    blocker = d.cluster.run(
        "sbatch",
        "--parsable",
        "-p",
        "main",
        "-w",
        held.node,
        "--exclusive",
        "--time=5",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 300",
    ).strip()
    d.wait_gone(held)
    d._wait(
        lambda: d.cluster.run("squeue", "-h", "-j", blocker, "-o", "%T").strip() == "RUNNING", "the job that preempts"
    )
    d.cluster.run("scancel", blocker)
    d.extra.update(hit | _under_way(d))


def _time_limit(d: Disturber, fault: Fault, held: Held) -> None:
    d.cluster.run("scontrol", "update", f"JobId={held.job}", "TimeLimit=1")
    d.wait_gone(held)
    d.extra[fault.task] += 1


def _kill_controller(d: Disturber, fault: Fault, held: Held) -> None:
    d.kill_launcher()


def _restart_slurmctld(d: Disturber, fault: Fault, held: Held) -> None:
    d.cluster.stop_ctld()
    time.sleep(4)
    d.cluster.start_ctld()


def _restart_slurmdbd(d: Disturber, fault: Fault, held: Held) -> None:
    d.cluster.stop_dbd()
    time.sleep(4)
    d.cluster.start_dbd()


def _fill_disk(d: Disturber, fault: Fault, held: Held) -> None:
    """Nobody can write; the run stops with the reason, and goes on after space was made."""
    hit = _under_way(d)
    filler = d.output.parent / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size):
                    pass
    held.marker.with_suffix(".go").touch()
    process = d._process
    assert process is not None
    d._wait(lambda: process.poll() is not None, "the launcher to stop for the full disk")
    d.extra.update(hit | _under_way(d))
    filler.unlink()
    d._start()


def _corrupt(d: Disturber, fault: Fault, held: Held) -> None:
    """One byte of a published file that the held task is about to read."""
    run = open_run(d.run_folder)
    key = TaskKey.parse(fault.task)
    source = run.graph().inputs(key)[-1]  # a rescue without rescues does not read its adapter, which comes first
    manifest = manifests.read_manifest(run.paths.task_manifest(source))
    path = next(
        manifest.path.parent / f.name
        for f in manifest.files
        if f.name.endswith((".parquet", "adapter_model.safetensors"))
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))
    for reader in _readers(run.graph(), source):
        if reader == key or not run.paths.task_manifest(reader).exists():
            d.extra[str(reader)] += 1
    d.extra[str(source)] += 1


def _readers(graph: object, source: TaskKey) -> Iterator[TaskKey]:
    from core_hpc.runs.graph import Graph

    assert isinstance(graph, Graph)
    return (key for key in graph.tasks() if source in graph.inputs(key))


DEEDS: dict[str, Callable[[Disturber, Fault, Held], None]] = {
    "worker killed": _kill_worker,
    "job killed": _kill_job,
    "element cancelled": _cancel,
    "waiting element cancelled": _cancel_pending,
    "waiting element cancelled, worker killed": _cancel_pending_and_kill,
    "power cut": _power_cut,
    "preempted": _preempt,
    "time limit": _time_limit,
    "controller killed": _kill_controller,
    "slurmctld restarted": _restart_slurmctld,
    "slurmdbd restarted": _restart_slurmdbd,
    "disk full": _fill_disk,
    "file altered": _corrupt,
}


def restarts_of(run: Path) -> dict[str, int]:
    """SLURM's own restarts, by task, from the status files that are still there."""
    found: dict[str, int] = {}
    for path in RunPaths(run).slurm.glob("*/element-*.json"):
        body = json.loads(path.read_text())
        if body["progress"]:
            found[body["progress"]["task"]] = body["restarts"]
    return found
