"""Faults in a sweep on a real SLURM cluster.

A `Disturber` starts the launcher, and starts it again whenever it ends with an error. Tasks are
held at fault points (`core_hpc/common/faults.py`), and meanwhile a function of `ACTIONS` kills,
cancels, restarts or damages something. The lists of faults are in
`tests/faults/test_cluster_faults.py`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from core_hpc.runs.folder import list_runs, open_run
from core_hpc.runs.graph import Graph
from core_hpc.slurm.records import ENDED, FAILED, OPEN, SubmissionFolder
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths, TaskKey
from tests.support.cluster import DevCluster
from tests.support.harness import flip_a_byte, start_launcher

WAIT_S = 240.0
"""How long each step of a test may take."""


@dataclass(frozen=True)
class Fault:
    """One fault: what happens while `task` is held at the fault point `point`."""

    kind: str
    task: str
    point: str = "task.started"

    @property
    def place(self) -> str:
        """The text that the detail of the fault point must contain."""
        key = TaskKey.parse(self.task)
        published = f"/{key.phase}/iteration={key.iteration:04d}/{key.model}-p{key.part:03d}"
        return published if self.point.startswith("publish") else self.task

    def __str__(self) -> str:
        return f"{self.kind} at {self.task} ({self.point})"


@dataclass(frozen=True)
class Held:
    """A process that is held at a fault point: its identity and the file of its entry."""

    pid: int
    job: str
    node: str
    marker: Path


@dataclass(kw_only=True)
class Disturber:
    """Runs one sweep until it is finished, while faults happen to it one after the other.

    Attributes:
        folder: files of this test: markers and the launcher's log.
        output: folder of the sweep.
        report: one line per fault that has happened.
        extra: additional submissions of a task that the faults explain.
        starts: how often the launcher was started.
    """

    cluster: DevCluster
    sweep: Path
    folder: Path
    output: Path
    faults: list[Fault]
    report: list[str] = field(default_factory=list)
    extra: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def run(self) -> Path:
        """Cause all faults, wait until the sweep is finished, and return the run's folder."""
        self.start()
        try:
            for number, fault in enumerate(self.faults):
                began = time.monotonic()
                held = self._wait_held(number, fault)
                ACTIONS[fault.kind](self, fault, held)
                self._release(number, held)
                self.report.append(f"{number + 1:3d}  {fault!s:70s} {time.monotonic() - began:6.1f} s")
            self.wait(self._finished, "the end of the sweep")
        finally:
            if self._process is not None and self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        return self.run_folder

    @property
    def run_folder(self) -> Path:
        """The folder of the only run."""
        (run,) = list_runs(self.output)
        return run

    def submissions(self) -> Counter[str]:
        """Count how often each task was submitted."""
        records = SubmissionFolder(RunPaths(self.run_folder).slurm).read(OPEN, ENDED, FAILED)
        return Counter(task for record in records for element in record.elements for task in element)

    # --- the launcher ----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the launcher, with the fault points of all faults."""
        entries = ";".join(f"hold {f.point}@{f.place}:{self._marker(n)}" for n, f in enumerate(self.faults))
        environment = {**self.cluster.environment(), "CORE_HPC_FAULT": entries}
        self._process = start_launcher(self.sweep, self.folder / "launcher.log", environment)
        self.starts += 1

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The launcher that was started last."""
        assert self._process is not None
        return self._process

    def _finished(self) -> bool:
        """Whether the launcher ended without an error. After an error it is started again."""
        status = self.process.poll()
        if status is not None and status != 0:
            self.start()
        return status == 0

    def kill_launcher(self) -> None:
        """Kill the launcher and run the same command again."""
        self.process.kill()
        self.process.wait()
        self.start()

    # --- waiting ---------------------------------------------------------------------------------

    def _marker(self, number: int) -> Path:
        return self.folder / f"fault{number:03d}"

    def _wait_held(self, number: int, fault: Fault) -> Held:
        """Wait until a process is held at the place of this fault.

        An earlier fault may have ended the process that was held for this fault. Then the next
        attempt is held with the marker of a later fault at the same place.
        """
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

        self.wait(is_held, str(fault))
        return found[0]

    def _release(self, number: int, held: Held) -> None:
        """Let the held process continue, and leave the markers of later faults unused."""
        held.marker.with_suffix(".go").touch()
        if held.marker != self._marker(number):
            time.sleep(1)  # longer than the held process needs to see the file
            held.marker.unlink()
            held.marker.with_suffix(".go").unlink()
            self._marker(number).touch()

    def wait(self, ready: Callable[[], bool], what: str) -> None:
        """Wait until `ready()` is true. After `WAIT_S` fail with the queue and the log."""
        deadline = time.monotonic() + WAIT_S
        while not ready():
            if time.monotonic() > deadline:
                log = (self.folder / "launcher.log").read_text()[-3000:]
                queue = self.cluster.run("squeue", "-a")
                raise AssertionError(f"still waiting for {what} after {WAIT_S:g} s; queue:\n{queue}\nlauncher:\n{log}")
            time.sleep(0.1)

    def wait_gone(self, held: Held) -> None:
        """Wait until the held process has ended."""
        self.wait(lambda: not psutil.pid_exists(held.pid), f"the end of process {held.pid}")


# --- actions -------------------------------------------------------------------------------------


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


def _unresolved(d: Disturber) -> set[str]:
    """Tasks that were submitted and have not ended.

    A fault of a node or a disk may hit each of them.
    """
    records = SubmissionFolder(RunPaths(d.run_folder).slurm).read(OPEN)
    return {task for record in records for index in record.unresolved for task in record.elements[index]}


def _cancel_pending(d: Disturber, fault: Fault, held: Held) -> None:
    """Cancel the other elements of the held task's array, which wait (array_parallelism: 1)."""
    array = d.cluster.run("squeue", "-h", "-j", held.job, "-O", "ArrayJobID").strip()
    folder = SubmissionFolder(RunPaths(d.run_folder).slurm)
    (record,) = (s for s in folder.read(OPEN) if str(s.job) == array)
    waiting = [
        line.split()
        for line in d.cluster.run("squeue", "-h", "-r", "-j", array, "-t", "PD", "-o", "%K %T").splitlines()
    ]
    assert waiting, "no element is waiting"
    for index, _ in waiting:
        d.cluster.run("scancel", f"{array}_{index}")
        for task in record.elements[int(index)]:
            d.extra[task] += 1


def _cancel_pending_and_kill(d: Disturber, fault: Fault, held: Held) -> None:
    _cancel_pending(d, fault, held)
    _kill_worker(d, fault, held)


def _power_cut(d: Disturber, fault: Fault, held: Held) -> None:
    """Kill a node. SLURM requeues its jobs, so that the controller submits nothing."""
    d.cluster.kill_node(held.node)
    d.wait_gone(held)

    def is_back() -> bool:
        return held.node not in d.cluster.run("squeue", "-h", "-j", held.job, "-o", "%N")

    d.wait(is_back, f"SLURM to notice that {held.node} is down")
    d.cluster.start_node(held.node)


def _preempt(d: Disturber, fault: Fault, held: Held) -> None:
    """Submit a job that preempts the sweep's jobs on the node of the held task.

    SLURM requeues them, or they end within the grace time and the controller submits them again.
    """
    affected = _unresolved(d)
    options = ("--parsable", "-p", "main", "-w", held.node, "--exclusive", "--time=5", "-o", "/dev/null")
    blocker = d.cluster.run("sbatch", *options, "--wrap", "sleep 300").strip()
    d.wait_gone(held)

    def has_node() -> bool:
        return d.cluster.run("squeue", "-h", "-j", blocker, "-o", "%T").strip() == "RUNNING"

    d.wait(has_node, "the job that preempts")
    d.cluster.run("scancel", blocker)
    d.extra.update(affected | _unresolved(d))


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
    """Fill the disk. The launcher stops with the reason, and continues after space was freed."""
    affected = _unresolved(d)
    filler = d.output.parent / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size):
                    pass
    held.marker.with_suffix(".go").touch()
    process = d.process
    d.wait(lambda: process.poll() is not None, "the launcher to stop because of the full disk")
    d.extra.update(affected | _unresolved(d))
    filler.unlink()
    d.start()


def _corrupt(d: Disturber, fault: Fault, held: Held) -> None:
    """Change one byte of a published file that the held task is about to read."""
    run = open_run(d.run_folder)
    key = TaskKey.parse(fault.task)
    # A rescue task without any rescue does not read its adapter, which is its first input.
    source = run.graph().inputs(key)[-1]
    manifest = manifests.read_manifest(run.paths.task_manifest(source))
    path = next(
        manifest.path.parent / f.name
        for f in manifest.files
        if f.name.endswith((".parquet", "adapter_model.safetensors"))
    )
    flip_a_byte(path)
    for reader in _readers(run.graph(), source):
        if reader == key or not run.paths.task_manifest(reader).exists():
            d.extra[str(reader)] += 1
    d.extra[str(source)] += 1


def _readers(graph: Graph, source: TaskKey) -> Iterator[TaskKey]:
    return (key for key in graph.tasks() if source in graph.inputs(key))


ACTIONS: dict[str, Callable[[Disturber, Fault, Held], None]] = {
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
"""By kind of fault: the function that causes it and counts the submissions that it explains."""
