"""CPU time of one controller that drives a sweep of 50 runs on SIMULATED SLURM, as a share of one core.

    python -m tests.benchmarks.controller_cpu --out /tmp/controller_cpu.json

The runs have the paper's shape: two models, 15 iterations of 1,000 problems in 4 parts, 4 problems an optimizer step. Jobs only
exist in a simulated queue, and the controller's clock jumps from look to look (simulated_cluster.py); everything that the
controller does is really done: the loop, its commands as processes, records, folders, manifests, display and TensorBoard.
Three starts: `new` (nothing exists yet), `again` (every run is in the middle, thousands of publications exist), and one more
under a profiler. The CPU time of squeue and sbatch is that of the real ones, on a development cluster with as many elements
in its queue. Adapters are smaller than real ones (what reading those costs at a start is extrapolated), and disks are local.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from rich.console import Console

import yaml
from core_hpc.config.run import ClusterSection
from core_hpc.controller import control as controller
from core_hpc.controller import tracking
from core_hpc.controller.control import control
from core_hpc.controller.display import Display
from core_hpc.controller.prepare import Prepared, Start, splits_of
from core_hpc.runs import folder as runs
from core_hpc.runs.folder import ModelFacts, Run
from core_hpc.runs.sweep import load_sweep
from core_hpc.schedule.progress import RunProgress, inspect_run
from core_hpc.schedule.scheduler import cpu_seconds
from core_hpc.slurm import executor
from core_hpc.slurm.commands import Slurm
from core_hpc.slurm.records import Submission, SubmissionFolder
from core_hpc.store import shards
from core_hpc.store.paths import SweepPaths, TaskKey
from core_hpc.store.schema import UPDATE
from tests.benchmarks.measure import largest, measured, print_largest, print_table, report
from tests.benchmarks.simulated_cluster import Simulation
from tests.benchmarks.simulated_tasks import SimulatedTasks
from tests.support.cluster import running_cluster

WAIT_S = 600.0
DURATION_S = {"cold": 1200.0, "hint": 120.0, "rescue": 480.0, "score": 120.0, "update": 1800.0, "evaluate": 1200.0}
TARGET_SHARE = 0.01
REAL_UPDATE_GB = 0.5
"""LoRA of rank 16 on all linear layers of 7 billion parameters: 40 million weights, of 12 bytes with their optimizer state."""
IMPORTS = "import core_hpc.launch, core_hpc.slurm.arrays, core_hpc.controller.display, core_hpc.controller.tracking, analysis.metrics.curves, analysis.metrics.passk"
ARRAY_SIZE = 8

Profiles = tuple[cProfile.Profile, cProfile.Profile]
"""Until the first look, and from there on."""


@dataclass(frozen=True)
class Settings:
    """The size of the benchmark."""

    num_runs: int = 50
    hours: float = 1.0
    """Simulated hours of `new` and of `again`."""
    profiled_hours: float = 0.25
    published_iterations: int = 7
    """Of every run, before `again`."""
    iterations: int = 15
    problems: int = 1000
    problems_per_part: int = 250
    evaluation_problems: int = 500
    idle_s: float = 20.0
    """Real seconds in which waiting threads, and then a terminal, are watched."""


@dataclass
class StartFigures:
    """One start of the controller. CPU seconds are without those of commands and of the simulation."""

    published_before: int = 0
    until_first_look_cpu_s: float = 0.0
    until_first_look_wall_s: float = 0.0
    until_first_look_calls: dict[str, int] = field(default_factory=dict)
    hours: float = 0.0
    loop_cpu_s: float = 0.0
    """From the first look on."""
    loop_calls: dict[str, int] = field(default_factory=dict)
    num_looks: int = 0
    num_published: int = 0
    mean_queue_lines: float = 0.0
    num_threads: int = 0
    idle_threads_cpu_s_per_hour: float = 0.0
    """What threads that wait cost in real time, which the jumps of the clock leave out."""


def sweep_file(path: Path, settings: Settings) -> Path:
    """A sweep of runs that differ in their seeds."""
    options = {"source": "generated", "options": {"max_value": 99}}
    data = {
        "name": "simulated",
        "iterations": settings.iterations,
        "output": str(path.parent),
        "team": [{"name": name, "model": name, "engine": "fake"} for name in ("a", "b")],
        "problems": {
            "train": {**options, "count": settings.problems},
            "evaluation": {**options, "count": settings.evaluation_problems, "seed": 5},
        },
        "protocol": {"problems_per_iteration": settings.problems, "problems_per_part": settings.problems_per_part},
        "cluster": {"driver": "arrays"},
        "grid": {"seed": list(range(settings.num_runs))},
    }
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


class Bench:
    """The sweep, its simulation, and starts of its controller."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.settings = settings
        self.source = sweep_file(folder / "sweep.yaml", settings)
        self.simulation = Simulation(folder / "commands", WAIT_S, DURATION_S, SimulatedTasks())
        self.sweep = load_sweep(self.source)
        self.paths = SweepPaths(self.sweep.folder)
        self.progress: list[RunProgress] = []
        facts = {m.name: ModelFacts("simulated", 4608, "plain") for m in self.sweep.runs[0].config.team}
        splits = splits_of(self.sweep.runs[0])  # all runs have the same problems
        self._prepared: Prepared = {plan.run_id: (splits, facts) for plan in self.sweep.runs}

    def start(self, hours: float, *, idle_s: float = 0.0, profiles: Profiles | None = None) -> StartFigures:
        """Start the sweep, and ask it to stop after some simulated hours."""
        watch = _Watch(
            self.simulation,
            Slurm(),
            hours,
            self.paths.stop_request,
            StartFigures(self.num_published()),
            idle_s,
            profiles,
        )
        self.simulation.on_look = watch.look
        if profiles is not None:
            profiles[0].enable()
        with self._simulated(watch.slurm):
            sweep = load_sweep(self.source)
            runs.check_conflicts(sweep)
            console = Console(file=io.StringIO(), width=120)
            self.progress, finished = control(sweep, Start.new(verify=False), self._prepared, console)
        if profiles is not None:
            profiles[1].disable()
        assert not finished, "the sweep ended before the benchmark"
        return watch.figures_at_end()

    @contextlib.contextmanager
    def _simulated(self, slurm: Slurm) -> Iterator[None]:
        """The controller's clock and commands are the simulation's; what it submits becomes known to it."""
        submit_elements = executor.submit_elements

        def submit(
            folder: SubmissionFolder, submission: Submission, cluster: ClusterSection, run_root: Path
        ) -> Submission:
            taken = submit_elements(folder, submission, cluster, run_root)
            with self.simulation.aside():
                self.simulation.submitted(runs.open_run(run_root), folder, taken)
            return taken

        with contextlib.ExitStack() as stack:
            for name, module in list(sys.modules.items()):
                if name.startswith("core_hpc.") and getattr(module, "time", None) is time:
                    stack.enter_context(mock.patch.object(module, "time", self.simulation))
                if name.startswith("core_hpc.") and getattr(module, "cpu_seconds", None) is cpu_seconds:
                    stack.enter_context(mock.patch.object(module, "cpu_seconds", self.simulation.cpu_seconds))
            assert tracking.time is self.simulation, "imported before its clock is replaced"
            stack.enter_context(mock.patch.object(executor, "submit_elements", submit))
            # What the controller keeps to a share of a core: its own CPU time, not the simulation's.
            stack.enter_context(mock.patch.object(executor, "cpu_seconds", self.simulation.controller_cpu_s))
            stack.enter_context(mock.patch.object(controller, "Slurm", return_value=slurm))
            stack.enter_context(mock.patch.dict(os.environ, PATH=f"{self.simulation.folder}:{os.environ['PATH']}"))
            yield

    def publish_ahead(self) -> None:
        """While no controller looks, all that is in the queue is done, and every run gets through some iterations."""
        self.simulation.finish_everything()
        for run in self._runs():
            published = set(shards.published_keys(run.root))
            for key in run.graph().tasks():
                if key.iteration <= self.settings.published_iterations and key not in published:
                    self.simulation.tasks.publish(run, key)

    def num_published(self) -> int:
        return sum(len(shards.published_keys(run.root)) for run in self._runs())

    def _runs(self) -> list[Run]:
        folder = self.paths.root
        return [runs.open_run(folder / plan.run_id) for plan in self.sweep.runs if runs.exists(plan, folder)]


class _Watch:
    """Looks at one start from inside the simulated clock."""

    def __init__(
        self,
        simulation: Simulation,
        slurm: Slurm,
        hours: float,
        stop_request: Path,
        figures: StartFigures,
        idle_s: float,
        profiles: Profiles | None,
    ) -> None:
        self.slurm = slurm
        self._simulation, self._stop_request, self._idle_s, self._profiles = simulation, stop_request, idle_s, profiles
        self._figures = figures
        figures.hours = hours
        self._wall, self._cpu = time.perf_counter(), simulation.controller_cpu_s()
        self._looks, self._published = len(simulation.num_entries), simulation.num_published
        self._first_look: float | None = None

    def look(self) -> None:
        """The controller is about to look at the queue."""
        figures, simulation = self._figures, self._simulation
        if self._first_look is None:
            self._first_look = simulation.now
            figures.until_first_look_wall_s = time.perf_counter() - self._wall
            figures.until_first_look_cpu_s = simulation.controller_cpu_s() - self._cpu
            figures.until_first_look_calls = dict(self.slurm.calls)
            self._cpu = simulation.controller_cpu_s()
            figures.num_threads = threading.active_count()
            if self._idle_s:
                with measured() as idle:
                    time.sleep(self._idle_s)
                figures.idle_threads_cpu_s_per_hour = idle.cpu_s * 3600 / idle.wall_s
            if self._profiles is not None:
                self._profiles[0].disable()
                self._profiles[1].enable()
        elif simulation.now >= self._first_look + 3600 * figures.hours:
            self._stop_request.touch()

    def figures_at_end(self) -> StartFigures:
        figures, simulation = self._figures, self._simulation
        figures.loop_cpu_s = simulation.controller_cpu_s() - self._cpu
        figures.loop_calls = {k: v - figures.until_first_look_calls.get(k, 0) for k, v in self.slurm.calls.items()}
        figures.num_looks = len(simulation.num_entries) - self._looks
        figures.num_published = simulation.num_published - self._published
        figures.mean_queue_lines = sum(simulation.num_entries[self._looks :]) / max(1, figures.num_looks)
        return figures


# --- what the simulation leaves out --------------------------------------------------------------


def terminal_cpu_s_per_hour(progress: list[RunProgress], seconds: float) -> float:
    """What the live panel of an attached controller costs on a terminal, with nothing else to do; watched for so long."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(file=nowhere, force_terminal=True, width=160, height=50)
        with Display(console, "simulated", progress, refreshes_per_s=0.5), measured() as cost:
            time.sleep(seconds)
    return cost.cpu_s * 3600 / cost.wall_s


def import_cpu_s() -> float:
    """CPU seconds of a fresh interpreter that imports what a controller needs."""
    with measured() as cost:
        subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return cost.commands_cpu_s


def update_check_cpu_s_per_gb(run: Run) -> float:
    """What a start spends on looking at published adapters and optimizers, per GB of them: two large ones are published for it."""
    size, keys = 1 << 26, [TaskKey(run.config.iterations, UPDATE, m.name) for m in run.config.team]
    with measured() as before:
        inspect_run(run)
    for key in keys:
        SimulatedTasks(update_bytes=size).publish(run, key)
    with measured() as after:
        inspect_run(run)
    return max(0.0, after.cpu_s - before.cpu_s) * 1e9 / (size * len(keys))


def real_commands_cpu_s(num_elements: int) -> dict[str, float] | None:
    """CPU seconds of one real squeue with so many elements in the queue, and of one real sbatch; None where there is no Slurm."""
    try:
        with running_cluster(nodes=1) as running, mock.patch.dict(os.environ, running.environment()):
            num_arrays = max(1, round(num_elements / ARRAY_SIZE))
            with measured() as submitting:
                for _ in range(num_arrays):
                    running.run(
                        "sbatch",
                        "--hold",
                        "--job-name=cold-0001-0123abcd",
                        f"--array=0-{ARRAY_SIZE - 1}",
                        "--wrap",
                        "true",
                    )
            slurm = Slurm()
            with measured() as looking:
                for _ in range(10):
                    entries = slurm.queue()
    except pytest.skip.Exception as e:
        print(f"no Slurm here, its commands are left out: {e}")
        return None
    return {
        "num_elements": len(entries),
        "squeue": looking.commands_cpu_s / 10,
        "squeue_wall_s": looking.wall_s / 10,
        "sbatch": submitting.commands_cpu_s / num_arrays,
    }


# --- the whole -----------------------------------------------------------------------------------


def per_hour(figures: StartFigures, num_submissions: int, commands: dict[str, float] | None) -> dict[str, float]:
    """CPU seconds of one simulated hour, by what they go into, and their share of a core."""
    items = {
        "controller_cpu_s": figures.loop_cpu_s / figures.hours,
        "idle_threads_cpu_s": figures.idle_threads_cpu_s_per_hour,
    }
    if commands is not None:
        items["squeue_cpu_s"] = figures.loop_calls.get("squeue", 0) * commands["squeue"] / figures.hours
        items["sbatch_cpu_s"] = num_submissions * commands["sbatch"] / figures.hours
    total = sum(items.values())
    rounded = {name: round(value, 2) for name, value in items.items()}
    return {**rounded, "total_cpu_s": round(total, 2), "percent_of_a_core": round(total / 36, 2)}


def benchmark(folder: Path, settings: Settings, *, real_commands: bool = True) -> dict[str, Any]:
    """All figures."""
    bench = Bench(folder, settings)
    counted: dict[str, tuple[StartFigures, int]] = {}
    for name in ("new", "again"):
        if name == "again":
            bench.publish_ahead()
        before = bench.simulation.num_submissions
        print(f"start `{name}` ...", file=sys.stderr)
        figures = bench.start(settings.hours, idle_s=settings.idle_s)
        counted[name] = figures, bench.simulation.num_submissions - before
    bench.simulation.finish_everything()
    print("start under a profiler ...", file=sys.stderr)
    profiles = (
        cProfile.Profile(bench.simulation.controller_thread_s),
        cProfile.Profile(bench.simulation.controller_thread_s),
    )
    bench.start(settings.profiled_hours, profiles=profiles)
    commands = real_commands_cpu_s(round(counted["again"][0].mean_queue_lines)) if real_commands else None
    num_updates = settings.num_runs * settings.published_iterations * len(bench.sweep.runs[0].config.team)
    per_gb = update_check_cpu_s_per_gb(bench.progress[0].run)
    return {
        "settings": asdict(settings),
        **{f"start_{name}": {**asdict(figures), "num_submissions": num} for name, (figures, num) in counted.items()},
        **{f"hour_{name}": per_hour(figures, num, commands) for name, (figures, num) in counted.items()},
        "target_percent": 100 * TARGET_SHARE,
        "real_commands_cpu_s": commands,
        "terminal_cpu_s_per_hour": round(terminal_cpu_s_per_hour(bench.progress, settings.idle_s), 1),
        "import_cpu_s": round(import_cpu_s(), 2),
        "update_check_cpu_s_per_gb": round(per_gb, 3),
        "update_check_extrapolated_cpu_s": round(per_gb * REAL_UPDATE_GB * num_updates, 1),
        "largest_until_first_look": largest(profiles[0], count=20),
        "largest_in_loop": largest(profiles[1], count=30),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time of a controller on simulated SLURM")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of all figures")
    parser.add_argument("--runs", type=int, default=Settings.num_runs)
    parser.add_argument("--hours", type=float, default=Settings.hours, help="simulated hours of each of the two starts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = benchmark(Path(folder), Settings(num_runs=options.runs, hours=options.hours))
    report(options.out, figures)
    show(figures)


def show(figures: dict[str, Any]) -> None:
    """The small table."""
    runs_, threads = figures["settings"]["num_runs"], figures["start_again"]["num_threads"]
    for name in ("new", "again"):
        start = figures[f"start_{name}"]
        print_table(
            f"one hour of {runs_} runs on SIMULATED SLURM, start `{name}` (target: {figures['target_percent']} %)",
            {
                **figures[f"hour_{name}"],
                "looks": start["num_looks"],
                "published": start["num_published"],
                "calls": start["loop_calls"],
            },
        )
    start = figures["start_again"]
    print_table(
        f"until the first look, with {start['published_before']:,} publications",
        {
            "imports of a fresh process, CPU s": figures["import_cpu_s"],
            "reading them, TensorBoard's points, submitting, CPU s": round(start["until_first_look_cpu_s"], 1),
            "of a new sweep, CPU s": round(figures["start_new"]["until_first_look_cpu_s"], 1),
            f"checks of updates of {REAL_UPDATE_GB} GB each, CPU s (extrapolated)": figures[
                "update_check_extrapolated_cpu_s"
            ],
        },
    )
    print_table(
        f"beside it, CPU s an hour ({threads} threads)",
        {"live panel on a terminal": figures["terminal_cpu_s_per_hour"]},
    )
    print_largest("largest until the first look (profiled)", figures["largest_until_first_look"])
    print_largest("largest from there on (profiled)", figures["largest_in_loop"])


if __name__ == "__main__":
    main()
