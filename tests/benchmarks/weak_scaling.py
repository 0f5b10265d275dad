"""Weak scaling of the driver `arrays`: 1 to 4 workers, each with the same work.

    python -m tests.benchmarks.weak_scaling --out FILE [--size small]

A worker is an element of a job array on its own node of a development cluster
(`tests/support/cluster.py`). It runs parts of a cold phase one after the other. One machine does
not have the cores of a cluster, so the engine is the fake one and WAITS for each completion as long
as a GPU might need. The benchmark therefore measures the software around the engines: completions
per second and worker, from the submission to the last publication that the driver sees, and from
the first start to the last end of the tasks; the number of SLURM commands; and file operations of
one task in the folder of its run, per completion (if strace is installed).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from analysis.timing.recorded import times_of
from core_hpc.phases import run_task
from core_hpc.phases.context import TaskContext, Warm
from core_hpc.runs.events import Done, Failed
from core_hpc.runs.folder import Run, open_run
from core_hpc.runs.sweep import load_sweep
from core_hpc.slurm.commands import Slurm
from core_hpc.slurm.records import ENDED, FAILED, OPEN, SubmissionFolder
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import COLD
from tests.benchmarks.measure import conclude, print_table
from tests.benchmarks.real_run import arguments, prepared_run
from tests.support.cluster import running_cluster
from tests.support.fake_slurm import executor_of
from tests.support.tiny import make_tiny_model, tiny_sweep

SAMPLES = 8
PROBLEMS_PER_PART = 32
PARTS_PER_WORKER = 2
ENGINE = """
import time
from core_hpc.engines import fake
plain = fake.FakeEngine.step
def step(self):
    time.sleep({wait_s})
    return plain(self)
fake.FakeEngine.step = step
"""
"""The file sitecustomize.py of the jobs. A step of the fake engine makes one completion."""
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\(")


@dataclass(frozen=True)
class Size:
    """The size of the benchmark.

    Attributes:
        workers: the numbers of workers.
        wait_s: how long the engine waits for one completion.
    """

    workers: tuple[int, ...]
    wait_s: float


SIZES = {"small": Size((1, 2), 0.005), "usual": Size((1, 2, 3, 4), 0.05)}


def make_run(folder: Path, name: str, workers: int, parts: int, **slurm: Any) -> Run:
    """Create a run of one tiny model with `parts` parts for every worker."""
    problems = workers * parts * PROBLEMS_PER_PART
    path = tiny_sweep(
        folder / f"{name}.yaml",
        [folder / "model"],
        folder,
        name=name,
        iterations=1,
        problems={
            "train": {"source": "generated", "count": problems, "options": {"max_value": 99}},
            "evaluation": {"source": "generated", "count": 1, "seed": 2},
            "num_examples": 1,
        },
        protocol={
            "problems_per_iteration": problems,
            "problems_per_part": PROBLEMS_PER_PART,
            "cold_samples": SAMPLES,
            "rescue_samples": 0,
            "sampling": {"max_new_tokens": 48},
        },
        cluster={
            "driver": "arrays",
            "threads": 1,
            "slurm": {
                "mem_gb": 7.5,
                "cpus": 1,
                "time_min": 30,
                "poll_s": [0.5, 2],
                "generate": {"parts_per_job": parts},
                **slurm,
            },
        },
    )
    return prepared_run(load_sweep(path))


def one_phase(folder: Path, workers: int, wait_s: float) -> dict[str, Any]:
    """Run the cold phase on `workers` workers and measure it."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(ENGINE.format(wait_s=wait_s))
    run = make_run(folder, f"workers-{workers}", workers, PARTS_PER_WORKER, setup=[f"export PYTHONPATH={site}"])
    slurm = Slurm()
    executor = executor_of(run, slurm, start_id="benchmark", notify=lambda message: None)
    wanted = [(run, key) for key in run.graph().tasks() if key.phase == COLD]
    began, done = time.perf_counter(), 0
    executor.submit(wanted)
    while done < len(wanted):
        for event in executor.poll():
            if isinstance(event, Failed):
                raise RuntimeError(f"{event.task.key}: {event}")
            done += isinstance(event, Done)
    wall_s = time.perf_counter() - began
    tasks = times_of(run.root).tasks
    working_s = max(t.ended for t in tasks) - min(t.began for t in tasks)
    completions = len(wanted) * PROBLEMS_PER_PART * SAMPLES
    submissions = len(SubmissionFolder(run.paths.slurm).names(OPEN, ENDED, FAILED))
    calls = {**slurm.calls, "sbatch": submissions}
    return {
        "completions": completions,
        "wall_s": wall_s,
        "working_s": working_s,
        "slurm_calls": calls,
        "completions_per_s_and_worker": completions / workers / wall_s,
        "of_working_time": completions / workers / working_s,
        "slurm_calls_per_completion": sum(calls.values()) / completions,
    }


def store_operations(folder: Path) -> dict[str, Any] | None:
    """Count the operations of one cold task in the folder of its run, by system call.

    Returns:
        None if strace is not installed.
    """
    if shutil.which("strace") is None:
        return None
    run = make_run(folder, "operations", 1, 1)
    trace = folder / "trace"
    command = ["strace", "-f", "-y", "-e", "trace=%file,fsync,fdatasync,getdents64,read,write", "-o", str(trace)]
    command += [sys.executable, "-m", "tests.benchmarks.weak_scaling", "--run", str(run.root)]
    subprocess.run(command, check=True, capture_output=True)
    counts: Counter[str] = Counter()
    for line in trace.read_text(errors="replace").splitlines():
        if str(run.root) in line and (found := _CALL.match(line)):
            counts[found[1]] += 1
    completions = PROBLEMS_PER_PART * SAMPLES
    return {
        "calls": dict(counts),
        "total": counts.total(),
        "completions": completions,
        "per_completion": counts.total() / completions,
    }


def benchmark(folder: Path, size: Size) -> dict[str, Any]:
    """Measure all numbers of workers, one after the other, with the same work per worker."""
    make_tiny_model(folder / "model")
    operations = store_operations(folder)
    with running_cluster(nodes=max(size.workers)) as cluster, mock.patch.dict(os.environ, cluster.environment()):
        found = {workers: one_phase(folder, workers, size.wait_s) for workers in size.workers}
    first = found[size.workers[0]]
    for workers, figures in found.items():
        figures["efficiency"] = figures["completions_per_s_and_worker"] / first["completions_per_s_and_worker"]
        figures["efficiency_of_working_time"] = figures["of_working_time"] / first["of_working_time"]
        figures["ideal_of_working_time"] = 1 / size.wait_s
        figures["workers"] = workers
    return {"wait_s_a_completion": size.wait_s, "workers": found, "store_operations_of_a_task": operations}


def show(figures: dict[str, Any]) -> None:
    """Print a report."""
    rows = {
        f"{n} workers": f"{f['completions_per_s_and_worker']:6.1f} per worker from the submission "
        f"({f['efficiency']:.0%}), "
        f"{f['of_working_time']:6.1f} of working time ({f['efficiency_of_working_time']:.0%}); {f['slurm_calls']}"
        for n, f in figures["workers"].items()
    }
    print_table(f"completions/s, engine waits {figures['wait_s_a_completion']} s for each", rows)
    operations = figures["store_operations_of_a_task"]
    rows = (
        {"per completion": f"{operations['per_completion']:.3f}", **operations["calls"]}
        if operations
        else {"not counted": "no strace"}
    )
    print_table("operations of one task in the folder of its run", rows)


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    options = arguments(__doc__, SIZES, "run").parse_args(given)
    if options.run:
        run_task(TaskContext(run=open_run(Path(options.run)), key=TaskKey(1, COLD, "m0", 0), warm=Warm()))
        return
    conclude(lambda folder: benchmark(folder, SIZES[options.size]), show, options.out)


if __name__ == "__main__":
    main()
