"""A start that continues TensorBoard's files, against one that writes all points again.

    python -m tests.benchmarks.tensorboard_restart --out FILE [--iterations 20]

One run of the paper's size with SIMULATED publications. Measured in CPU seconds, in turns: all
points are written (what every start did earlier), and the files are continued after one more task.
Both end with the same points, each once, which is checked with TensorBoard's own reader.
"""

from __future__ import annotations

import argparse
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from core_hpc.controller.prepare import splits_of
from core_hpc.controller.run_tracker import RunTracker
from core_hpc.runs import creation
from core_hpc.runs.folder import ModelFacts
from core_hpc.runs.sweep import load_sweep
from core_hpc.store.shards import published_keys
from tests.benchmarks.controller_cpu import Settings, sweep_file
from tests.benchmarks.measure import conclude, measured, print_table
from tests.benchmarks.simulated_tasks import SimulatedTasks
from tests.support.tracked_run import written_points


def benchmark(folder: Path, settings: Settings) -> dict[str, Any]:
    """Return CPU seconds of both ways, and their ratio."""
    sweep = load_sweep(sweep_file(folder / "sweep.yaml", settings))
    plan = sweep.runs[0]
    facts = {m.name: ModelFacts("simulated", 4608, "plain") for m in plan.config.team}
    run, tasks = creation.create(plan, sweep.folder, splits_of(plan), facts), SimulatedTasks(1 << 10)
    *keys, last = sorted(run.graph().tasks())
    for key in keys:
        tasks.publish(run, key)
    RunTracker(run).catch_up(set(keys))
    tasks.publish(run, last)
    published = set(published_keys(run.root))
    with measured() as continued:
        RunTracker(run).catch_up(published)
    added = written_points(run)
    shutil.rmtree(run.paths.tensorboard)
    with measured() as anew:
        RunTracker(run).catch_up(published)
    assert added == written_points(run)
    assert set(added.values()) == {1}
    return {
        "iterations": settings.iterations,
        "publications": len(published),
        "points": added.total(),
        "all_points_cpu_s": anew.cpu_s,
        "continued_cpu_s": continued.cpu_s,
        "all / continued": anew.cpu_s / continued.cpu_s,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of all figures")
    parser.add_argument("--iterations", type=int, default=20)
    options = parser.parse_args()
    settings = Settings(num_runs=1, iterations=options.iterations)
    show = partial(print_table, "TensorBoard's points of one run after a restart")
    conclude(lambda folder: benchmark(folder, settings), show, options.out)


if __name__ == "__main__":
    main()
