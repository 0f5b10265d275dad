"""python -m tests.faults.chaos --faults 1000 --out FILE: random faults in many sweeps.

Each sweep has another seed and another driver. FILE has one JSON object per sweep, written when the
sweep has ended. The same command continues a run that was interrupted. SIGTERM ends it after the
sweep that is running. It prints a table of faults and exits with 1 if an invariant was violated
(`tests/support/chaos.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.support.chaos import Chaos, Fault, Result
from tests.support.cluster import SMALL_JOBS, DevCluster, running_cluster
from tests.support.harness import launch, the_run
from tests.support.tiny import make_tiny_model, tiny_sweep

DRIVERS = ("local", "arrays", "chained", "resident")
FAULTS_PER_SWEEP = 12
SLURM = {
    "partition": "main",
    **SMALL_JOBS,
    "exclude_after": 1000,
    "resident": {"mem_gb": 7.0},  # all workers of a run at once
}
MAX_ATTEMPTS = 1000


def write_sweep(path: Path, models: list[Path], output: Path, driver: str, **changes: Any) -> Path:
    """The sweep file of a tiny run with this driver. Its results do not depend on the driver.

    `changes` replace sections of `tiny_sweep`.
    """
    slurm = {**SLURM, **({"chain_wait_s": 20} if driver == "chained" else {})}
    section: dict[str, Any] = {"num_running": 2, "threads": 1, "max_attempts": MAX_ATTEMPTS}
    if driver != "local":
        section |= {"driver": "resident" if driver == "resident" else "arrays", "slurm": slurm}
    return tiny_sweep(path, models, output, cluster=section, **changes)


def undisturbed(folder: Path, models: list[Path]) -> Path:
    """The run folder of the sweep without faults."""
    folder.mkdir()
    done = launch(write_sweep(folder / "tiny.yaml", models, folder / "out", "local"))
    assert done.returncode == 0, done.stdout + done.stderr
    return the_run(folder / "out" / "tiny")


def disturbed(
    folder: Path,
    models: list[Path],
    reference: Path,
    cluster: DevCluster | None,
    *,
    driver: str,
    seed: int,
    num_faults: int,
    **changes: Any,
) -> Result:
    """Run one sweep with random faults in a new folder. `changes` as for `write_sweep`."""
    folder.mkdir()
    chaos = Chaos(
        driver=driver,
        seed=seed,
        num_faults=num_faults,
        sweep=write_sweep(folder / "tiny.yaml", models, folder / "out", driver, **changes),
        folder=folder,
        output=folder / "out" / "tiny",
        cluster=None if driver == "local" else cluster,
    )
    return chaos.run(reference)


def table(results: Sequence[Result]) -> str:
    """The faults by kind: how often per driver, and the time until the next publication."""
    by_kind: dict[str, list[tuple[str, Fault]]] = {}
    for result in results:
        for fault in result.faults:
            by_kind.setdefault(fault.kind, []).append((result.driver, fault))
    lines = [
        f"| fault | {' | '.join(DRIVERS)} | all | recovery: median | longest |",
        f"|---|{'---|' * (len(DRIVERS) + 3)}",
    ]
    for kind, found in sorted(by_kind.items()):
        lines.append(_row(kind, found))
    lines.append(_row("all", [pair for found in by_kind.values() for pair in found]))
    num = {driver: sum(result.driver == driver for result in results) for driver in DRIVERS}
    lines.append("")
    lines.append(f"Sweeps: {', '.join(f'{n} {driver}' for driver, n in num.items())}.")
    lines.append(
        f"Starts of the launcher: {sum(r.starts for r in results)}; tasks started: "
        f"{sum(r.tasks_started for r in results)}, published: {sum(r.tasks_published for r in results)}."
    )
    violations = [f"{r.driver} {r.seed}: {violation}" for r in results for violation in r.violations]
    lines.append(f"Violations: {len(violations)}.")
    return "\n".join([*lines, *violations])


def _row(kind: str, found: Sequence[tuple[str, Fault]]) -> str:
    counts = [str(sum(driver == own for own, _ in found)) for driver in DRIVERS]
    times = [fault.recovery_s for _, fault in found if fault.recovery_s is not None]
    middle, longest = (f"{statistics.median(times):.1f} s", f"{max(times):.1f} s") if times else ("-", "-")
    return f"| {kind} | {' | '.join(counts)} | {len(found)} | {middle} | {longest} |"


def read_results(path: Path) -> list[Result]:
    """The sweeps that an earlier command has ended. A line that was cut off is left out."""
    results = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            data = json.loads(line)
            results.append(Result(**{**data, "faults": [Fault(**fault) for fault in data["faults"]]}))
    return results


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=1000, help="stop after so many faults (default 1000)")
    parser.add_argument("--out", type=Path, required=True, help="file for the results, one JSON object per sweep")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first sweep")
    parser.add_argument("--drivers", nargs="+", choices=DRIVERS, default=list(DRIVERS))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no sweep after this time")
    options = parser.parse_args(arguments)
    results, began = read_results(options.out), time.monotonic()
    stop = threading.Event()  # a sweep that is cut off would leave its cluster and its jobs running
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="core-hpc-chaos-")))
        models = [make_tiny_model(folder / f"m{i}", seed=i, chat=bool(i)) for i in range(2)]
        reference = undisturbed(folder / "undisturbed", models)
        needs_slurm = set(options.drivers) != {"local"}
        cluster = stack.enter_context(running_cluster(nodes=2)) if needs_slurm else None
        while (missing := options.faults - sum(len(r.faults) for r in results)) > 0:
            if stop.is_set() or time.monotonic() - began > 60 * options.minutes:
                break
            number = options.seed + len(results)
            driver = options.drivers[number % len(options.drivers)]
            result = disturbed(
                folder / f"sweep{number}",
                models,
                reference,
                cluster,
                driver=driver,
                seed=number,
                num_faults=min(missing, FAULTS_PER_SWEEP),
            )
            results.append(result)
            with options.out.open("a") as file:
                file.write(json.dumps(asdict(result)) + "\n")
            print(
                f"{driver} {number}: {len(result.faults)} faults, {result.seconds:.0f} s",
                *result.violations,
                sep="\n  ",
            )
    print(table(results))
    return 1 if any(result.violations for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
