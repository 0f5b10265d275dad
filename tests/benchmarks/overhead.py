"""Overhead: the share of an iteration that is not sampling, log-probabilities or training.

    python -m tests.benchmarks.overhead --out FILE [--driver arrays|chained] [--size large]

The launcher runs the models of the quickstart for three iterations of 24 problems x (4 + 2)
completions (large: two iterations of 96 problems). The driver is `local`, or SLURM arrays on a
development cluster (`tests/support/cluster.py`) with two nodes and one job of one thread per node:
one array per phase, or chained phases (slurm.chain_wait_s).

For each iteration after the first one, the accounting of time (`analysis/timing/account.py`) gives
its seconds without waiting for other iterations and evaluations, its lower bound (the maximum over
models of sampled and trained tokens, at their rates in the whole run), and the share above this
bound, with and without waiting in the queue of SLURM. `--keep` keeps the run, for
`tests.benchmarks.scoring --run`.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import conclude, print_table
from tests.benchmarks.real_run import account, arguments, launched, settings
from tests.support.cluster import running_cluster

SIZES = {"small": (4, 2, 1, 2), "usual": (24, 4, 2, 3), "large": (96, 4, 2, 2)}
"""Problems, cold and rescue samples, iterations."""
MEDIANS = ("own_s", "bound_s", "queue_s", "overhead", "overhead_without_queue")
NODES = 2
JOB_GB = 7.5
"""Memory of a job, so that one job fills a node."""


def driver_settings(driver: str) -> list[str]:
    """Return the `--set` values of a driver.

    With each driver two tasks run at once, on one core each.
    """
    if driver == "local":
        return ["cluster.driver=local"]
    return [
        "cluster.driver=arrays",
        "cluster.threads=1",
        "cluster.slurm.cpus=1",
        f"cluster.slurm.mem_gb={JOB_GB}",
        "cluster.slurm.time_min=60",
        "cluster.slurm.poll_s=[1, 5]",
        f"cluster.slurm.chain_wait_s={120 if driver == 'chained' else 'null'}",
    ]


@contextlib.contextmanager
def surroundings(driver: str) -> Iterator[dict[str, str]]:
    """Yield the environment of the launcher. A cluster is started if the driver needs one."""
    if driver == "local":
        yield dict(os.environ)
        return
    with running_cluster(nodes=NODES) as cluster:
        yield cluster.environment()


def benchmark(folder: Path, size: str, driver: str, dtype: str) -> dict[str, Any]:
    """Run the launcher once and measure the iterations after the first one."""
    problems, cold, rescue, iterations = SIZES[size]
    values = settings(problems=problems, cold=cold, rescue=rescue, iterations=iterations, dtype=dtype)
    values += driver_settings(driver)
    with surroundings(driver) as environment:
        run, command_s = launched(folder, values, environment)
    rows = account(run)
    later = rows[1:]
    middle = {name: statistics.median(r[name] for r in later) for name in MEDIANS}
    items: dict[str, float] = {}
    for r in later:
        for item, seconds in r["waited"].items():
            items[item] = items.get(item, 0.0) + seconds / len(later)
    return {
        "size": size,
        "driver": driver,
        "dtype": dtype,
        "command_s": command_s,
        "run": str(run),
        "iterations": rows,
        "after_the_first": middle,
        "waited_s_an_iteration": dict(sorted(items.items(), key=lambda pair: -pair[1])),
    }


def show(figures: dict[str, Any]) -> None:
    """Print a report."""
    middle = figures["after_the_first"]
    rows = {name: f"{middle[name]:.1f} s" for name in ("own_s", "bound_s", "queue_s")}
    rows |= {name: f"{middle[name]:.1%}" for name in ("overhead", "overhead_without_queue")}
    print_table(f"an iteration after the first one, driver {figures['driver']}, {figures['dtype']}", rows)
    waited = {item: f"{seconds:.1f}" for item, seconds in figures["waited_s_an_iteration"].items()}
    print_table("seconds that it waited for", waited)


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = arguments(__doc__, SIZES, "dtype")
    parser.add_argument("--driver", choices=("local", "arrays", "chained"), default="local")
    parser.add_argument("--keep", type=Path, help="folder in which the run is created and kept")
    options = parser.parse_args(given)

    def measure(folder: Path) -> dict[str, Any]:
        return benchmark(options.keep or folder, options.size, options.driver, options.dtype)

    conclude(measure, show, options.out)


if __name__ == "__main__":
    main()
