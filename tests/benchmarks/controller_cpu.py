"""CPU time of one controller of a sweep of 50 runs on SIMULATED SLURM, as a share of one core.

    python -m tests.benchmarks.controller_cpu --out FILE [--runs 200 --iterations 100 --update-kb 1]

The runs have the size of the paper: two models, and 15 iterations of 1,000 problems in 4 parts,
with 4 problems per optimizer step. Jobs exist only in a simulated queue, and the controller's clock
jumps from one look to the next (`simulated_cluster.py`). Everything else is real: the loop, the
commands as processes, records, folders, manifests, display and TensorBoard.

The controller is started three times: `new` (nothing exists yet), `again` (every run is half done,
with thousands of publications), and once more with a profiler. The CPU time of squeue and sbatch is
measured with the real commands, on a development cluster with as many elements in its queue.
Adapters are smaller than real ones, so the cost of reading real ones at a start is extrapolated.
The disk is a local one.
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
from core_hpc.config.cluster import ClusterSection
from core_hpc.controller import control as controller
from core_hpc.controller import event_files, tracking
from core_hpc.controller.control import control
from core_hpc.controller.counts_cache import CountsCache
from core_hpc.controller.display import Display
from core_hpc.controller.drivers import SLURM_REFRESHES_PER_S
from core_hpc.controller.prepare import splits_of
from core_hpc.controller.start import Prepared, Start
from core_hpc.runs import conflicts
from core_hpc.runs import folder as runs
from core_hpc.runs.folder import ModelFacts, Run
from core_hpc.runs.sweep import load_sweep
from core_hpc.schedule.progress import RunProgress, inspect_run
from core_hpc.schedule.scheduler import cpu_seconds
from core_hpc.slurm import executor, pace
from core_hpc.slurm import submit as submit_module
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
"""LoRA of rank 16 for 7B parameters: 40 million weights of 12 bytes, with optimizer state."""
IMPORTS = """
import core_hpc.launch
import core_hpc.slurm.arrays
import core_hpc.controller.display
import core_hpc.controller.tracking
import analysis.metrics.curves
import analysis.metrics.passk
"""
"""What a controller imports."""
ARRAY_SIZE = 8

Profiles = tuple[cProfile.Profile, cProfile.Profile]
"""One for the time until the first look, and one for the time after it."""


@dataclass(frozen=True)
class Settings:
    """The size of the benchmark."""

    num_runs: int = 50
    hours: float = 1.0
    """Simulated hours of `new` and of `again`."""
    profiled_hours: float = 0.25
    published_iterations: int = 7
    """Iterations of every run that are published before `again`."""
    iterations: int = 15
    problems: int = 1000
    problems_per_part: int = 250
    evaluation_problems: int = 500
    update_kb: int = 256
    idle_s: float = 20.0
    """Real seconds of measuring first the waiting threads, then a terminal."""


@dataclass
class StartFigures:
    """One start of the controller. CPU seconds do not include commands and the simulation."""

    published_before: int = 0
    until_first_look_cpu_s: float = 0.0
    until_first_look_wall_s: float = 0.0
    until_first_look_calls: dict[str, int] = field(default_factory=dict)
    hours: float = 0.0
    loop_cpu_s: float = 0.0
    """From the first look to the end."""
    loop_calls: dict[str, int] = field(default_factory=dict)
    num_looks: int = 0
    num_published: int = 0
    mean_queue_lines: float = 0.0
    num_threads: int = 0
    idle_threads_cpu_s_per_hour: float = 0.0
    """CPU time of waiting threads in a real hour, which the jumps of the clock leave out."""


def sweep_file(path: Path, settings: Settings) -> Path:
    """Write a sweep of runs with different seeds."""
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
    """The sweep and its simulation. `start` starts a controller."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.settings = settings
        self.source = sweep_file(folder / "sweep.yaml", settings)
        self.simulation = Simulation(
            folder=folder / "commands",
            wait_s=WAIT_S,
            duration_s=DURATION_S,
            tasks=SimulatedTasks(settings.update_kb << 10),
        )
        self.sweep = load_sweep(self.source)
        self.paths = SweepPaths(self.sweep.folder)
        self.progress: list[RunProgress] = []
        facts = {m.name: ModelFacts("simulated", 4608, "plain") for m in self.sweep.runs[0].config.team}
        splits = splits_of(self.sweep.runs[0])  # all runs have the same problems
        self._prepared: Prepared = {plan.run_id: (splits, facts) for plan in self.sweep.runs}

    def start(self, hours: float, *, idle_s: float = 0.0, profiles: Profiles | None = None) -> StartFigures:
        """Start the sweep, and request a stop after some simulated hours."""
        watch = _Watch(
            self.simulation,
            Slurm(),
            StartFigures(published_before=self.num_published(), hours=hours),
            stop_request=self.paths.stop_request,
            idle_s=idle_s,
            profiles=profiles,
        )
        self.simulation.on_look = watch.look
        if profiles is not None:
            profiles[0].enable()
        with self._simulated(watch.slurm):
            sweep = load_sweep(self.source)
            conflicts.check_conflicts(sweep)
            console = Console(file=io.StringIO(), width=120)
            self.progress, finished = control(sweep, Start.new(verify=False), self._prepared, console)
        if profiles is not None:
            profiles[1].disable()
        assert not finished, "the sweep ended before the benchmark"
        return watch.figures_at_end()

    @contextlib.contextmanager
    def _simulated(self, slurm: Slurm) -> Iterator[None]:
        """Replace the clock and the commands, and pass submissions to the simulation."""
        submit_elements = submit_module.submit_elements

        def submit(
            folder: SubmissionFolder, submission: Submission, cluster: ClusterSection, run_root: Path
        ) -> Submission:
            taken = submit_elements(folder, submission, cluster, run_root)
            with self.simulation.excluded():
                self.simulation.submitted(runs.open_run(run_root), folder, taken)
            return taken

        with contextlib.ExitStack() as stack:
            for name, module in list(sys.modules.items()):
                if name.startswith("core_hpc.") and getattr(module, "time", None) is time:
                    stack.enter_context(mock.patch.object(module, "time", self.simulation))
                if name.startswith("core_hpc.") and getattr(module, "cpu_seconds", None) is cpu_seconds:
                    stack.enter_context(mock.patch.object(module, "cpu_seconds", self.simulation.cpu_seconds))
            # Modules that are imported later would keep the real clock.
            assert vars(event_files)["time"] is self.simulation
            stack.enter_context(mock.patch.object(executor, "submit_elements", submit))
            # The controller limits its own CPU time, without that of the simulation.
            stack.enter_context(mock.patch.object(pace, "cpu_seconds", self.simulation.controller_cpu_s))
            stack.enter_context(mock.patch.object(controller, "Slurm", return_value=slurm))
            stack.enter_context(mock.patch.dict(os.environ, PATH=f"{self.simulation.folder}:{os.environ['PATH']}"))
            yield

    def publish_ahead(self) -> None:
        """Finish all jobs and publish some iterations of every run.

        TensorBoard's points and cached counts are written as a controller of that time would have
        written them.
        """
        self.simulation.finish_everything()
        for run in self._runs():
            published = set(shards.published_keys(run.root))
            for key in run.graph().tasks():
                if key.iteration <= self.settings.published_iterations and key not in published:
                    self.simulation.tasks.publish(run, key)
            progress, _ = inspect_run(run)
            curves, counts = tracking.Tracking(), CountsCache()
            curves.on_finished(progress)
            curves.close([progress])
            counts.close([progress])

    def num_published(self) -> int:
        """Publications of all runs."""
        return sum(len(shards.published_keys(run.root)) for run in self._runs())

    def _runs(self) -> list[Run]:
        folder = self.paths.root
        return [runs.open_run(folder / plan.run_id) for plan in self.sweep.runs if runs.exists(plan, folder)]


class _Watch:
    """Observes one start: the simulated clock calls `look` before every look of the controller."""

    def __init__(
        self,
        simulation: Simulation,
        slurm: Slurm,
        figures: StartFigures,
        *,
        stop_request: Path,
        idle_s: float,
        profiles: Profiles | None,
    ) -> None:
        self.slurm = slurm
        self._simulation, self._stop_request, self._idle_s, self._profiles = simulation, stop_request, idle_s, profiles
        self._figures = figures
        self._wall, self._cpu = time.perf_counter(), simulation.controller_cpu_s()
        self._looks, self._published = len(simulation.num_entries), simulation.num_published
        self._first_look: float | None = None

    def look(self) -> None:
        """Called when the controller is about to look at the queue."""
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
        """The figures, once the controller has ended."""
        figures, simulation = self._figures, self._simulation
        figures.loop_cpu_s = simulation.controller_cpu_s() - self._cpu
        figures.loop_calls = {k: v - figures.until_first_look_calls.get(k, 0) for k, v in self.slurm.calls.items()}
        figures.num_looks = len(simulation.num_entries) - self._looks
        figures.num_published = simulation.num_published - self._published
        figures.mean_queue_lines = sum(simulation.num_entries[self._looks :]) / max(1, figures.num_looks)
        return figures


# --- what the simulation leaves out --------------------------------------------------------------


def terminal_cpu_s_per_hour(progress: list[RunProgress], seconds: float) -> float:
    """CPU time per hour of the live panel when nothing happens, measured for `seconds`."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(file=nowhere, force_terminal=True, width=160, height=50)
        display = Display(console, "simulated", progress, refreshes_per_s=SLURM_REFRESHES_PER_S, warm=False)
        with display, measured() as cost:
            time.sleep(seconds)
    return cost.cpu_s * 3600 / cost.wall_s


def import_cpu_s() -> float:
    """CPU seconds of a new interpreter that imports the modules of a controller."""
    with measured() as cost:
        subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return cost.commands_cpu_s


def update_check_cpu_s_per_gb(run: Run) -> float:
    """CPU seconds of a start per GB of published adapters and optimizers.

    Publishes two large ones.
    """
    size, keys = 1 << 26, [TaskKey(run.config.iterations, UPDATE, m.name) for m in run.config.team]
    with measured() as before:
        inspect_run(run)
    for key in keys:
        SimulatedTasks(update_bytes=size).publish(run, key)
    with measured() as after:
        inspect_run(run)
    return max(0.0, after.cpu_s - before.cpu_s) * 1e9 / (size * len(keys))


def real_commands_cpu_s(num_elements: int) -> dict[str, float] | None:
    """CPU seconds of a real squeue with `num_elements` in the queue, and of a real sbatch.

    Returns:
        None if this machine has no SLURM.
    """
    try:
        with running_cluster(nodes=1) as running, mock.patch.dict(os.environ, running.environment()):
            num_arrays = max(1, round(num_elements / ARRAY_SIZE))
            with measured() as submitting:
                for _ in range(num_arrays):
                    options = ("--hold", "--job-name=cold-0001-0123abcd", f"--array=0-{ARRAY_SIZE - 1}")
                    running.run("sbatch", *options, "--wrap", "true")
            slurm = Slurm()
            with measured() as looking:
                for _ in range(10):
                    entries = slurm.queue()
    except pytest.skip.Exception as e:
        print(f"SLURM is not available, so its commands are not measured: {e}")
        return None
    return {
        "num_elements": len(entries),
        "squeue": looking.commands_cpu_s / 10,
        "squeue_wall_s": looking.wall_s / 10,
        "sbatch": submitting.commands_cpu_s / num_arrays,
    }


# --- the benchmark -------------------------------------------------------------------------------


def per_hour(figures: StartFigures, num_submissions: int, commands: dict[str, float] | None) -> dict[str, float]:
    """CPU seconds of one simulated hour by purpose, and their share of a core."""
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
    """Run all starts and return the figures."""
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
    print("start with a profiler ...", file=sys.stderr)
    timer = bench.simulation.controller_thread_s
    profiles = cProfile.Profile(timer), cProfile.Profile(timer)
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
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of all figures")
    parser.add_argument("--runs", type=int, default=Settings.num_runs)
    parser.add_argument("--hours", type=float, default=Settings.hours, help="simulated hours of each start")
    parser.add_argument(
        "--iterations", type=int, default=Settings.iterations, help="of a run; `again` has half of them"
    )
    parser.add_argument("--update-kb", type=int, default=Settings.update_kb, help="size of a simulated adapter")
    parser.add_argument("--no-commands", action="store_true", help="do not measure the real commands of SLURM")
    options = parser.parse_args()
    settings = Settings(
        num_runs=options.runs,
        hours=options.hours,
        iterations=options.iterations,
        published_iterations=options.iterations // 2,
        update_kb=options.update_kb,
    )
    with tempfile.TemporaryDirectory() as folder:
        figures = benchmark(Path(folder), settings, real_commands=not options.no_commands)
    report(options.out, figures)
    show(figures)


def show(figures: dict[str, Any]) -> None:
    """Print a report."""
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
            "imports of a new process, CPU s": figures["import_cpu_s"],
            "reading publications, TensorBoard, submitting, CPU s": round(start["until_first_look_cpu_s"], 1),
            "the same for a new sweep, CPU s": round(figures["start_new"]["until_first_look_cpu_s"], 1),
            f"checking updates of {REAL_UPDATE_GB} GB, CPU s (extrapolated)": figures[
                "update_check_extrapolated_cpu_s"
            ],
        },
    )
    panel = {"live panel on a terminal": figures["terminal_cpu_s_per_hour"]}
    print_table(f"in addition, CPU s per hour ({threads} threads)", panel)
    print_largest("largest until the first look (profiled)", figures["largest_until_first_look"])
    print_largest("largest after the first look (profiled)", figures["largest_in_loop"])


if __name__ == "__main__":
    main()
