"""Speed of the driver `arrays` with 1,000 array elements, on a SLURM development cluster.

    python -m tests.benchmarks.array_scale --out FILE

The cold phase of one run on two tiny models has 1,000 tasks, which are held in the queue (sbatch
--hold). A smaller array really runs. The benchmark measures the executor itself: `submit`; `poll`
while all tasks wait, while all run (their states are SIMULATED, because one machine cannot run
1,000 jobs), after all are published (by this process, without fsync) and after all are cancelled;
and `adopt` by a new controller. `handle_published` is the work of scheduler, display and
TensorBoard for the first publications. `submit` is compared with a plain `sbatch --array=0-999` of
a one-line script. With `--profile` the figures contain the overhead of the profiler.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console

from core_hpc.controller.display import Display
from core_hpc.controller.tracking import Tracking
from core_hpc.runs.events import Done, Event, Failed, TaskRef
from core_hpc.runs.folder import Run
from core_hpc.runs.graph import Graph
from core_hpc.runs.job_status import JobStatus, RunningTask
from core_hpc.runs.outcome import Progress
from core_hpc.runs.sweep import load_sweep
from core_hpc.schedule.base import Adopted
from core_hpc.schedule.progress import RunProgress, inspect_run
from core_hpc.schedule.scheduler import Scheduler
from core_hpc.slurm.commands import QueueEntry, Slurm
from core_hpc.slurm.executor import SlurmExecutor
from core_hpc.slurm.records import ENDED, FAILED, OPEN, SubmissionFolder
from core_hpc.store import manifests
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import COLD
from tests.benchmarks.measure import Cost, largest, measured, print_largest, print_table, report
from tests.benchmarks.real_run import prepared_run
from tests.benchmarks.simulated_tasks import SimulatedTasks
from tests.support.cluster import DevCluster, running_cluster
from tests.support.fake_slurm import executor_of
from tests.support.tiny import make_tiny_model, tiny_sweep

MODELS = ("m0", "m1")


@dataclass(frozen=True)
class Settings:
    """The size of the benchmark."""

    num_elements: int = 1000
    num_running: int = 20
    iterations: int = 15
    num_handled: int = 100
    """Publications that the scheduler and its listeners handle."""
    poll_s: tuple[float, float] = (2, 30)


class AllRunning(Slurm):
    """The real queue, in which waiting elements are SHOWN AS RUNNING."""

    def queue(self) -> list[QueueEntry]:
        return [
            replace(e, state="RUNNING", reason="None", nodes="n1") if e.state == "PENDING" else e
            for e in super().queue()
        ]


class GivenEvents:
    """An executor (schedule.base.Executor) that reports a list of events once."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events

    def adopt(self, runs_: Sequence[Run]) -> Adopted:
        return Adopted([e.task for e in self._events])

    def submit(self, wanted: Sequence[tuple[Run, TaskKey]]) -> list[TaskRef]:
        return []

    def poll(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def abandon(self, run: Run, why: str) -> list[TaskRef]:
        return []

    def close(self) -> None: ...


class Bench:
    """The steps of the benchmark in the order in which they must be called. They fill `figures`."""

    def __init__(self, folder: Path, settings: Settings, running: DevCluster, *, profile: bool) -> None:
        self.folder, self.settings, self.cluster, self.profile = folder, settings, running, profile
        self.figures: dict[str, Any] = {"settings": asdict(settings), "profiled": profile}
        self.models = [make_tiny_model(folder / name, seed=i) for i, name in enumerate(MODELS)]

    @contextmanager
    def measure(self, name: str) -> Iterator[Cost]:
        """Measure a block under a name, and profile it if `self.profile` is set."""
        profile = cProfile.Profile() if self.profile else None
        with measured() as cost:
            if profile is not None:
                profile.enable()
            try:
                yield cost
            finally:
                if profile is not None:
                    profile.disable()
        self.figures[name] = {**cost.figures(), **({"largest": largest(profile, count=12)} if profile else {})}
        print(f"{name}: {cost.figures()}", file=sys.stderr)

    def run_of(self, name: str, num_tasks: int, **slurm: Any) -> Run:
        """Create a run with `num_tasks` cold tasks per iteration."""
        num_problems = -(-num_tasks // len(MODELS))
        section = {"mem_gb": 2, "cpus": 1, "time_min": 30, "poll_s": list(self.settings.poll_s), **slurm}
        path = tiny_sweep(
            self.folder / f"{name}.yaml",
            self.models,
            self.folder,
            name=name,
            iterations=self.settings.iterations,
            problems={
                "train": {"source": "generated", "count": num_problems, "options": {"max_value": 99}},
                "evaluation": {"source": "generated", "count": 1, "seed": 2},
                "num_examples": 1,
            },
            protocol={
                "problems_per_iteration": num_problems,
                "problems_per_part": 1,
                "cold_samples": 2,
                "rescue_samples": 1,
                "hint_tokens": 64,
                "sampling": {"max_new_tokens": 16},
            },
            evaluation={"samples": 1, "sampling": {"max_new_tokens": 16}},
            cluster={"driver": "arrays", "slurm": section},
        )
        return prepared_run(load_sweep(path))

    def executor(self, run: Run, slurm: Slurm) -> SlurmExecutor:
        """The executor of a new controller."""
        return executor_of(run, slurm, start_id="benchmark", notify=lambda message: None)

    # --- an array that runs ----------------------------------------------------------------------

    def really_run(self) -> None:
        """Run a smaller array to its end; count files per task and commands per minute."""
        run, slurm = self.run_of("runs", self.settings.num_running, array_parallelism=2), Slurm()
        executor, wanted = self.executor(run, slurm), tasks(run)
        with measured() as cost:
            executor.submit(wanted)
            files = {"after submission": self.files_per_task(run, len(wanted))}
            done: set[TaskKey] = set()
            while len(done) < len(wanted):
                done |= {e.task.key for e in done_events(executor)}
        folder = SubmissionFolder(run.paths.slurm)
        files["after the end"] = self.files_per_task(run, len(wanted))
        folder.tidy()
        files["after tidy"] = self.files_per_task(run, len(wanted))
        self.figures["really_run"] = {
            **cost.figures(),
            "num_tasks": len(wanted),
            "files_per_task": files,
            "closed_as": folder.names(ENDED, FAILED)[0][1],
            "commands_per_min": round(60 * slurm.calls.total() / cost.wall_s, 1),
        }

    def files_per_task(self, run: Run, num_tasks: int) -> dict[str, float]:
        """Count files and links per task, in the run's folders of SLURM and of the cold phase."""
        counts = {name: sum(not p.is_dir() for p in (run.root / name).rglob("*")) for name in ("slurm", COLD)}
        return {name: round(count / num_tasks, 2) for name, count in counts.items()}

    # --- the large array -------------------------------------------------------------------------

    def submit(self, run: Run, iteration: int, name: str) -> tuple[SlurmExecutor, Slurm]:
        """Submit the cold tasks of an iteration as one array."""
        slurm = Slurm()
        executor, wanted = self.executor(run, slurm), tasks(run, iteration)
        slurm.limits(partition=None, qos=None, account=None)
        with self.measure(name):
            taken = executor.submit(wanted)
        assert len(taken) == len(wanted) == self.settings.num_elements
        return executor, slurm

    def bare_sbatch(self) -> None:
        """Submit an array of the same size without this package."""
        last = self.settings.num_elements - 1
        with self.measure("bare_sbatch"):
            options = ("--parsable", "--hold", f"--array=0-{last}", "--mem=2048")
            job = self.cluster.run("sbatch", *options, "--wrap", "true").strip()
        self.cluster.run("scancel", job)

    def watch(self, run: Run, executor: SlurmExecutor, slurm: Slurm) -> None:
        """Poll a waiting array until the interval is longest, then measure the cost."""
        with self.measure("squeue_alone"):
            self.figures["num_queue_lines"] = len(slurm.queue())
        executor.poll()  # the interval before the first look is the shortest
        for _ in range(100):
            before = time.perf_counter()
            executor.poll()
            if time.perf_counter() - before > 0.95 * self.settings.poll_s[1]:
                break
        calls = slurm.calls.total()
        with self.measure("settled"):
            executor.poll()
            executor.poll()
        settled = self.figures["settled"]
        settled["commands_per_min"] = round(60 * (slurm.calls.total() - calls) / settled["wall_s"], 2)
        settled["cpu_percent"] = round(100 * (settled["cpu_s"] + settled["commands_cpu_s"]) / settled["wall_s"], 3)
        self.poll("poll_waiting", self.executor(run, slurm), adopt=run)

    def poll(self, name: str, executor: SlurmExecutor, *, adopt: Run | None = None) -> list[Event]:
        """Measure the first poll of an executor, which looks at once."""
        if adopt is not None:
            with self.measure(f"adopt_for_{name}"):
                executor.adopt([adopt])
        with self.measure(name):
            events = executor.poll()
        self.figures[name]["num_events"] = len(events)
        return events

    def all_running(self, run: Run) -> None:
        """Measure polls while all elements run.

        Each has a status file, which the executor reads.
        """
        folder = SubmissionFolder(run.paths.slurm)
        (submission,) = folder.read(OPEN)
        for index, (key,) in enumerate(map(submission.keys, range(len(submission.elements)))):
            running = RunningTask(time.time(), Progress(1, 2, 3), time.time())
            status = JobStatus(job="1", node="n1", progress=(str(key), running))
            with mock.patch.object(os, "fsync"):
                manifests.write_json(folder.status_file(submission, index), status.to_json())
        executor = self.executor(run, AllRunning())
        self.poll("poll_starting", executor, adopt=run)
        time.sleep(self.settings.poll_s[0])
        self.poll("poll_running", executor)

    def all_published(self, run: Run) -> None:
        """Measure a poll after all tasks were published, and the work of the listeners."""
        simulated = SimulatedTasks()
        with self.measure("publish"):
            for _, key in tasks(run):
                simulated.publish(run, key)
        progress = RunProgress(run, run.graph(), set())
        events = self.poll("poll_published", self.executor(run, Slurm()), adopt=run)
        assert sum(isinstance(e, Done) for e in events) == self.settings.num_elements
        console = Console(file=io.StringIO(), width=120)
        with Display(console, "s", [progress], refreshes_per_s=0.5, warm=False) as display:
            tracking = Tracking()
            turns = iter((False, True))
            given = GivenEvents(events[: self.settings.num_handled])
            scheduler = Scheduler(
                [progress], given, [display, tracking], max_attempts=3, stop_requested=lambda: next(turns)
            )
            with self.measure("handle_published"):
                scheduler.run()
            tracking.close([progress])
        self.figures["handle_published"]["num_events"] = len(progress.published)
        with self.measure("inspect_run"):
            inspect_run(run)

    def all_cancelled(self, run: Run, executor: SlurmExecutor, slurm: Slurm) -> None:
        """Measure a poll after the user cancelled a whole array."""
        (submission,) = SubmissionFolder(run.paths.slurm).read(OPEN)
        assert submission.job is not None
        slurm.cancel([submission.job])
        while any(e.active for e in slurm.queue() if e.id.job == submission.job):
            time.sleep(0.2)
        events = self.poll("poll_cancelled", executor)
        assert sum(isinstance(e, Failed) for e in events) == self.settings.num_elements

    def record_bytes(self, run: Run, state: str) -> int:
        """Bytes of the records in a state."""
        folder = SubmissionFolder(run.paths.slurm)
        return sum((folder.root / f"{name}.{state}.json").stat().st_size for name, _ in folder.names(state))

    def scale(self) -> None:
        """Measure everything about the large array."""
        run = self.run_of("scale", self.settings.num_elements, options={"hold": True})
        num, records = self.settings.num_elements, {}
        executor, slurm = self.submit(run, 1, "submit")
        files = {"after submission": self.files_per_task(run, num)}
        records["open"] = self.record_bytes(run, OPEN)
        self.watch(run, executor, slurm)
        self.all_running(run)
        self.all_published(run)
        records["ended"] = self.record_bytes(run, ENDED)
        (name, _), *_ = SubmissionFolder(run.paths.slurm).names(ENDED)
        self.cluster.run("scancel", "--name", name)
        files["after the end"] = self.files_per_task(run, num)
        with self.measure("tidy"):
            SubmissionFolder(run.paths.slurm).tidy()
        files["after tidy"] = self.files_per_task(run, num)
        self.all_cancelled(run, *self.submit(run, 2, "submit_again"))
        records["failed"] = self.record_bytes(run, FAILED)
        self.figures |= {"files_per_task_of_held_array": files, "record_bytes": records}
        with self.measure("graph_tasks"):
            self.figures["num_tasks_of_graph"] = len(Graph.of(run.config, num_evaluation_problems=1).tasks())


def tasks(run: Run, iteration: int = 1) -> list[tuple[Run, TaskKey]]:
    """Return the cold tasks of an iteration."""
    return [(run, key) for key in run.graph().tasks() if (key.iteration, key.phase) == (iteration, COLD)]


def done_events(executor: SlurmExecutor) -> list[Done]:
    """Poll once and return the events of tasks that are done. A failed task ends the benchmark."""
    events = executor.poll()
    for event in events:
        if isinstance(event, Failed):
            raise RuntimeError(f"{event.task.key} failed: {event.outcome}")
    return [e for e in events if isinstance(e, Done)]


def benchmark(folder: Path, settings: Settings, running: DevCluster, *, profile: bool = False) -> dict[str, Any]:
    """Run all steps and return the figures."""
    with mock.patch.dict(os.environ, {**running.environment(), "TOKENIZERS_PARALLELISM": "false"}):
        bench = Bench(folder, settings, running, profile=profile)
        bench.really_run()
        bench.bare_sbatch()
        bench.scale()
    return bench.figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of all figures")
    parser.add_argument("--elements", type=int, default=Settings.num_elements)
    parser.add_argument("--running", type=int, default=Settings.num_running, help="size of the array that really runs")
    parser.add_argument("--profile", action="store_true", help="show where CPU time goes; the figures get larger")
    options = parser.parse_args()
    settings = Settings(num_elements=options.elements, num_running=options.running)
    with running_cluster(nodes=2) as running, tempfile.TemporaryDirectory() as folder:
        figures = benchmark(Path(folder), settings, running, profile=options.profile)
    report(options.out, figures)
    show(figures)


def show(figures: dict[str, Any]) -> None:
    """Print a report."""
    timed = {k: v for k, v in figures.items() if isinstance(v, dict) and "wall_s" in v}
    print_table(
        "seconds: wall time, CPU of this process, CPU of commands" + (" (PROFILED)" if figures["profiled"] else ""),
        {
            name: f"{v['wall_s']:9.3f} {v['cpu_s']:9.3f} {v['commands_cpu_s']:9.3f}   "
            + " ".join(f"{k}={v[k]}" for k in ("num_events", "num_tasks", "commands_per_min", "cpu_percent") if k in v)
            for name, v in timed.items()
        },
    )
    others = ("num_queue_lines", "num_tasks_of_graph", "record_bytes", "files_per_task_of_held_array")
    print_table(
        "other figures", {**{k: figures[k] for k in others}, "files_per_task": figures["really_run"]["files_per_task"]}
    )
    for name, v in timed.items():
        if "largest" in v:
            print_largest(name, v["largest"])


if __name__ == "__main__":
    main()
