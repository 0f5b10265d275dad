"""Random faults in a sweep: the schedule, the faults, and what must hold afterwards.

A `Chaos` starts the launcher of one sweep, causes faults at random moments, and starts the launcher
again whenever it has ended with an error. The seed fixes the kinds of the faults and the pauses
between them. What a fault hits is drawn among what lives at that moment. Every start and every
publication of a task is logged by the processes themselves (`core_hpc/common/faults.py`), so the
invariants are proved by what was written, not by what was meant.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from core_hpc.slurm.records import ENDED, FAILED, OPEN, SubmissionFolder
from core_hpc.store import manifests, shards
from core_hpc.store.paths import RunPaths
from core_hpc.store.schema import PHASES
from tests.support.cluster import ClusterError, DevCluster
from tests.support.harness import differences, launch, leftovers, start_launcher

PAUSE_S = (0.5, 5.0)
"""Shortest and longest pause between two faults."""
FREEZE_S = (0.3, 3.0)
RECOVERY_LIMIT_S = 240.0
"""After a fault, the next publication (or the end) comes within this time."""
OVERLAP_S, COLD_OVERLAP_S = 15.0, 120.0
"""A task may start although another attempt has published it meanwhile: the decision to start it was
made before. A worker that begins with this task must first start and load its libraries."""
END_S = 30.0
"""The processes of a sweep have ended this time after its launcher."""
REFUSED = 3
"""Exit status of a launcher that finds another controller alive."""
TOKEN = "CORE_HPC_CHAOS"
"""Variable that all processes of a sweep inherit."""
ROLES = {
    "core_hpc.launch": "controller",
    "core_hpc.phases.worker": "worker",
    "core_hpc.local.fork_server": "fork server",
    "core_hpc.slurm.job": "light process",
}


@dataclass(kw_only=True)
class Fault:
    """A fault that has happened. `recovery_s`: until the next publication, or the end."""

    kind: str
    target: str
    at_s: float
    recovery_s: float | None = None


@dataclass(kw_only=True)
class Result:
    """What became of a disturbed sweep. `violations` is empty if every invariant holds."""

    driver: str
    seed: int
    faults: list[Fault]
    violations: list[str]
    starts: int
    tasks_started: int
    tasks_published: int
    seconds: float


@dataclass(kw_only=True)
class Chaos:
    """One sweep with random faults.

    Attributes:
        sweep: the sweep file.
        folder: for the logs of this test.
        output: folder of the sweep.
        cluster: None for the driver `local`.
    """

    driver: str
    seed: int
    num_faults: int
    sweep: Path
    folder: Path
    output: Path
    cluster: DevCluster | None
    faults: list[Fault] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    starts: int = 0
    _random: random.Random = field(init=False)
    _killed: bool = False
    _deck: list[str] = field(default_factory=list)
    _frozen: list[psutil.Process] = field(default_factory=list)
    _damaged: dict[str, float] = field(default_factory=dict)
    """Time at which a publication was damaged last, by task."""

    def __post_init__(self) -> None:
        self._random = random.Random(f"{self.driver}-{self.seed}")
        self.token = f"{self.driver}-{self.seed}-{os.getpid()}"

    # --- the sweep -------------------------------------------------------------------------------

    def run(self, reference: Path) -> Result:
        """Disturb the sweep until it is finished, and check every invariant.

        Args:
            reference: the run folder of the undisturbed sweep.
        """
        began = self._began = time.monotonic()
        self._start()
        try:
            self._disturb()
            self._check(reference)
        finally:
            self._end_all()
        return Result(
            driver=self.driver,
            seed=self.seed,
            faults=self.faults,
            violations=self.violations,
            starts=self.starts,
            tasks_started=len(self._log("starts")),
            tasks_published=len(self._log("published")),
            seconds=time.monotonic() - began,
        )

    def _disturb(self) -> None:
        progress, since = 0, time.monotonic()
        next_fault = time.monotonic() + self._random.uniform(*PAUSE_S)
        while not self._finished():
            if len(self.faults) < self.num_faults and time.monotonic() >= next_fault:
                self._cause_one()
                next_fault = time.monotonic() + self._random.uniform(*PAUSE_S)
            if (now := len(self._log("published"))) != progress:
                progress, since = now, time.monotonic()
                self._recovered()
            if time.monotonic() - since > RECOVERY_LIMIT_S:
                self.violations.append(f"no publication for {RECOVERY_LIMIT_S:g} s: {self._tail()}")
                return
            time.sleep(0.1)
        self._recovered()

    def _recovered(self) -> None:
        for fault in self.faults:
            if fault.recovery_s is None:
                fault.recovery_s = time.monotonic() - self._began - fault.at_s

    def _environment(self) -> dict[str, str]:
        environment = self.cluster.environment() if self.cluster is not None else dict(os.environ)
        logs = {"task.started": "starts", "publish.done": "published", "fork_server.started": "servers"}
        entries = ";".join(f"log {point}@:{self.folder / name}.log" for point, name in logs.items())
        return {**environment, "CORE_HPC_FAULT": entries, TOKEN: self.token, "COLUMNS": "200"}

    def _start(self) -> None:
        self._process = start_launcher(self.sweep, self.folder / "launcher.out", self._environment())
        self.starts += 1
        self._killed = False

    def _finished(self) -> bool:
        status = self._process.poll()
        if status is None or status == 0:
            return status == 0
        if not self._killed:
            self.violations.append(f"the launcher ended with status {status}: {self._tail()}")
            if len(self.violations) > 5:
                raise AssertionError("\n".join(self.violations))
        self._start()
        return False

    def _tail(self) -> str:
        return " ".join((self.folder / "launcher.out").read_text(errors="replace")[-600:].split())

    def _log(self, name: str) -> list[tuple[float, int, int, str]]:
        """The lines of a log: time, process, parent, and the task (empty for servers)."""
        path = self.folder / f"{name}.log"
        lines = path.read_text().splitlines() if path.exists() else []
        found = []
        for line in lines:
            when, pid, parent, detail = line.split(" ", 3)
            found.append((float(when), int(pid), int(parent), _key_of(detail) if name == "published" else detail))
        return found

    # --- faults ----------------------------------------------------------------------------------

    def _cause_one(self) -> None:
        """Cause the next fault of the shuffled kinds that finds a target at this moment.

        Every kind has its turn before one of them comes again.
        """
        if not self._deck:
            self._deck = list(FAULTS if self.cluster is not None else LOCAL_FAULTS)
            self._random.shuffle(self._deck)
        for kind in list(self._deck):
            with contextlib.suppress(psutil.Error, ClusterError, OSError):
                target = FAULTS[kind](self)
                if target is not None:
                    at_s = time.monotonic() - self._began
                    self._deck.remove(kind)
                    self.faults.append(Fault(kind=kind, target=target, at_s=at_s))
                    return

    def processes(self, role: str) -> list[psutil.Process]:
        """The living processes of this sweep with a role, in a fixed order."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if role_of(process) != role:
                    continue
                if process.environ().get(TOKEN) == self.token and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def one_of(self, role: str) -> psutil.Process | None:
        found = self.processes(role)
        return self._random.choice(found) if found else None

    def pause(self) -> None:
        time.sleep(self._random.uniform(*FREEZE_S))

    def kill(self, role: str) -> str | None:
        process = self.one_of(role)
        if process is None:
            return None
        self._killed = self._killed or role == "controller"
        process.kill()
        return f"{role} {process.pid}"

    def freeze(self, role: str) -> str | None:
        process = self.one_of(role)
        if process is None:
            return None
        process.suspend()
        self._frozen.append(process)
        self.pause()
        process.resume()
        return f"{role} {process.pid}"

    def second_controller(self) -> str | None:
        """Freeze the controller and start a second one, which must refuse to work."""
        process = self.one_of("controller")
        if process is None:
            return None
        process.suspend()
        self._frozen.append(process)
        try:
            if not self._has_claimed(process):
                return None
            second = launch(self.sweep, env=self._environment())
        finally:
            process.resume()
        if second.returncode != REFUSED:
            text = " ".join((second.stdout + second.stderr)[-600:].split())
            self.violations.append(f"a second controller ended with {second.returncode} instead of {REFUSED}: {text}")
        return f"controller {process.pid}"

    def _has_claimed(self, process: psutil.Process) -> bool:
        """Whether the claim is that of this process, and not yet that of a killed one before it."""
        with contextlib.suppress(OSError, ValueError):
            return bool(json.loads((self.output / "claim.json").read_bytes())["pid"] == process.pid)
        return False

    def job(self, *states: str) -> str | None:
        """The id of a random job of this sweep in one of these states."""
        assert self.cluster is not None
        lines = self.cluster.run("squeue", "-h", "-r", "-u", str(os.getuid()), "-o", "%i %T").splitlines()
        jobs = sorted(job for job, state in map(str.split, lines) if state in states)
        return self._random.choice(jobs) if jobs else None

    def scontrol(self, *words: str) -> None:
        assert self.cluster is not None
        self.cluster.run("scontrol", *words)

    def cancel(self) -> str | None:
        job = self.job("PENDING", "RUNNING")
        if job is not None and self.cluster is not None:
            self.cluster.run("scancel", job)
        return job

    def change_job(self, state: str, action: str, undo: str | None) -> str | None:
        job = self.job(state)
        if job is None:
            return None
        self.scontrol(action, job)
        if undo is not None:
            self.pause()
            self.scontrol(undo, job)
        return job

    def drain(self) -> str | None:
        assert self.cluster is not None
        node = self._random.choice(self.cluster.node_names)
        self.scontrol("update", f"NodeName={node}", "State=DRAIN", "Reason=chaos")
        self.pause()
        self.scontrol("update", f"NodeName={node}", "State=RESUME")
        return node

    def restart_slurmctld(self) -> str | None:
        assert self.cluster is not None
        self.cluster.stop_ctld()
        self.pause()
        self.cluster.start_ctld()
        return "slurmctld"

    def _published_files(self) -> Iterator[tuple[str, Path]]:
        for run in self.output.glob("*/run.json"):
            for key in shards.published_keys(run.parent):
                manifest = manifests.read_manifest(RunPaths(run.parent).task_manifest(key))
                for entry in manifest.files:
                    yield str(key), manifest.path.parent / entry.name

    def damage(self) -> str | None:
        """Change one byte of a published file."""
        files = sorted((key, path) for key, path in self._published_files() if path.stat().st_size)
        if not files:
            return None
        key, path = self._random.choice(files)
        content = bytearray(path.read_bytes())
        content[self._random.randrange(len(content))] ^= 255
        self._damaged[key] = time.time()
        path.write_bytes(bytes(content))
        return f"{key} {path.suffix}"

    def half_written(self) -> str | None:
        """Leave what a writer leaves that was killed: half a file without a manifest."""
        files = sorted((key, path) for key, path in self._published_files() if path.suffix == ".parquet")
        single = [(key, path) for key, path in files if path.parent.name.startswith("iteration=")]
        if not single:
            return None
        key, path = self._random.choice(single)
        name, _, _ = path.stem.rpartition(".")
        content = path.read_bytes()
        uid = f"{self._random.getrandbits(48):012x}"
        (path.parent / f"{name}.{uid}{path.suffix}").write_bytes(content[: len(content) // 2])
        return key

    # --- invariants ------------------------------------------------------------------------------

    def _check(self, reference: Path) -> None:
        """Start once more with --verify, as after damage, and check what was written."""
        for _ in range(3):
            done = launch(self.sweep, "--verify", env=self._environment())
            if done.returncode == 0 and "everything is done" in done.stdout and "damaged" not in done.stdout:
                break
        else:
            self.violations.append(f"the sweep is not whole: {' '.join((done.stdout + done.stderr)[-600:].split())}")
            return
        (run,) = (path.parent for path in self.output.glob("*/run.json"))
        self.violations += self.violated_at_end(reference, run)

    def violated_at_end(self, reference: Path, run: Path) -> Iterator[str]:
        """The invariants that do not hold after the end of the sweep."""
        yield from (f"differs from the undisturbed run: {name}" for name in differences(reference, run))
        yield from self._started_again()
        yield from self._controllers_at_once(run)
        yield from (f"left over: {path}" for path in [*leftovers(run, PHASES), *self.output.rglob("*.tmp")])
        if (self.output / "claim.json").exists():
            yield "left over: the claim"
        if SubmissionFolder(RunPaths(run).slurm).names(OPEN):
            yield "left over: an open submission"
        for role in set(ROLES.values()):
            yield from (f"left over: {role} {process.pid}" for process in self._living_after(role))
        if self.cluster is not None and (job := self.job("PENDING", "RUNNING", "SUSPENDED")) is not None:
            yield f"left over: SLURM job {job}"
        for fault in self.faults:
            if fault.recovery_s is not None and fault.recovery_s > RECOVERY_LIMIT_S:
                yield f"{fault.kind}: recovered only after {fault.recovery_s:.0f} s"

    def _living_after(self, role: str) -> list[psutil.Process]:
        """The processes that live on although the sweep has ended."""
        deadline = time.monotonic() + END_S
        while (found := self.processes(role)) and time.monotonic() < deadline:
            time.sleep(0.5)
        return found

    def _started_again(self) -> list[str]:
        """Tasks that started although they had been published for some time."""
        published: dict[str, list[float]] = {}
        for when, _, _, key in self._log("published"):
            published.setdefault(key, []).append(when)
        found, warm = list[str](), set[int]()
        for when, pid, _, key in self._log("starts"):
            latest = when - (OVERLAP_S if pid in warm else COLD_OVERLAP_S)
            warm.add(pid)
            before = max((t for t in published.get(key, ()) if t < latest), default=0.0)
            if before > self._damaged.get(key, 0.0):
                found.append(f"{key} started again {when - before:.1f} s after it was published")
        return found

    def _controllers_at_once(self, run: Path) -> list[str]:
        """Controllers whose writing overlaps in time.

        A submission carries the token of the claim under which it was made. With the driver `local`
        the parent of a worker is its controller, or a fork server whose parent is. Process 1 is the
        parent of a worker whose controller or server was killed.
        """
        wrote: dict[str, list[float]] = {}
        if self.cluster is not None:
            for record in SubmissionFolder(RunPaths(run).slurm).read(OPEN, ENDED, FAILED):
                wrote.setdefault(record.claim, []).append(record.submitted)
        else:
            parents = {server: parent for _, server, parent, _ in self._log("servers")}
            for when, _, parent, _ in self._log("starts"):
                if parent != 1:
                    wrote.setdefault(str(parents.get(parent, parent)), []).append(when)
        spans = sorted((min(times), max(times), who) for who, times in wrote.items())
        return [
            f"controllers {a[2]} and {b[2]} worked at the same time"
            for a, b in itertools.pairwise(spans)
            if b[0] < a[1]
        ]

    def _end_all(self) -> None:
        for process in self._frozen:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def role_of(process: psutil.Process) -> str:
    """What a process does in a sweep; empty for one that does not belong to core_hpc."""
    words = process.cmdline()
    role = ROLES.get(words[words.index("-m") + 1] if "-m" in words else "", "")
    if role == "fork server" and role_of(process.parent() or psutil.Process(1)) == role:
        return "worker"  # a fork has the command line of its server
    return role


def _key_of(published: str) -> str:
    """The task of a line about a publication, whose detail is FOLDER/PHASE/iteration=NNNN/NAME."""
    *_, phase, iteration, name = published.split("/")
    model, _, part = name.rpartition("-p")
    return f"{phase}/{iteration.removeprefix('iteration=')}/{model}/{part}"


FAULTS: dict[str, Callable[[Chaos], str | None]] = {
    "controller killed": lambda chaos: chaos.kill("controller"),
    "worker killed": lambda chaos: chaos.kill("worker"),
    "fork server killed": lambda chaos: chaos.kill("fork server"),
    "controller frozen": lambda chaos: chaos.freeze("controller"),
    "worker frozen": lambda chaos: chaos.freeze("worker"),
    "second controller": Chaos.second_controller,
    "published file altered": Chaos.damage,
    "half-written file left": Chaos.half_written,
    "light process killed": lambda chaos: chaos.kill("light process"),
    "light process frozen": lambda chaos: chaos.freeze("light process"),
    "job cancelled": Chaos.cancel,
    "job requeued": lambda chaos: chaos.change_job("RUNNING", "requeue", None),
    "job held, released": lambda chaos: chaos.change_job("PENDING", "hold", "release"),
    "job suspended, resumed": lambda chaos: chaos.change_job("RUNNING", "suspend", "resume"),
    "node drained, resumed": Chaos.drain,
    "slurmctld restarted": Chaos.restart_slurmctld,
}
"""By kind of fault: the function that causes it and returns its target; None: there is none now."""
LOCAL_FAULTS = list(FAULTS)[:8]
