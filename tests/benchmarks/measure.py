"""Functions that the benchmarks share: time and memory, child processes, medians, and reports.

On a machine that is busy with other work, wall time is unreliable. Compare CPU seconds, or figures
that were measured alternately in one run.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core_hpc.runs import provenance


@dataclass
class Cost:
    """Seconds of a block: wall time, CPU of this process (all threads), and CPU of its commands."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    commands_cpu_s: float = 0.0

    def figures(self) -> dict[str, float]:
        """The rounded figures for a report."""
        return {name: round(value, 4) for name, value in vars(self).items()}


def commands_cpu_s() -> float:
    """CPU seconds so far of all commands that this process has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure a block. The figures are set when the block has ended."""
    cost = Cost()
    before = time.perf_counter(), time.process_time(), commands_cpu_s()
    try:
        yield cost
    finally:
        after = time.perf_counter(), time.process_time(), commands_cpu_s()
        cost.wall_s, cost.cpu_s, cost.commands_cpu_s = (b - a for a, b in zip(before, after, strict=True))


def peak_mb() -> float:
    """Peak memory of this process, in MiB.

    getrusage is not used, because it includes the memory of the parent when it started this
    process.
    """
    return _status_mb("VmHWM")


def memory_mb() -> float:
    """Memory of this process now, in MiB."""
    return _status_mb("VmRSS")


def reset_peak() -> None:
    """Reset the peak, so that `peak_mb` measures only what follows."""
    Path("/proc/self/clear_refs").write_text("5")


def _status_mb(name: str) -> float:
    (line,) = (text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


class KilledError(Exception):
    """A process of a benchmark was killed by SIGKILL.

    The usual reason is that memory was exhausted.
    """


def in_process(benchmark: str, *arguments: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a benchmark's module in a new process, and return the JSON of its last line.

    Raises:
        KilledError: the process was killed.
        RuntimeError: the process failed.
    """
    command = [sys.executable, "-m", f"tests.benchmarks.{benchmark}", *arguments]
    env = {**os.environ, **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode == -signal.SIGKILL:
        raise KilledError(" ".join(command))
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each figure.

    >>> medians([{"wall_s": 3.0}, {"wall_s": 1.0}, {"wall_s": 2.0}])
    {'wall_s': 2.0}
    """
    return {name: statistics.median(r[name] for r in runs) for name in runs[0]}


def largest(profile: cProfile.Profile, *, count: int = 16) -> list[dict[str, Any]]:
    """Return the functions of this repository that took most time, including their callees.

    The profiler makes small calls slower than they are.
    """
    found = []
    stats: dict[tuple[str, int, str], tuple[Any, ...]] = vars(pstats.Stats(profile))["stats"]
    for (file, line, function), (_, calls, own_s, total_s, _) in stats.items():
        if "/core_hpc/" in file or "/analysis/" in file:
            where = f"{Path(file).name}:{line} {function}"
            found.append({"function": where, "calls": calls, "total_s": round(total_s, 3), "own_s": round(own_s, 3)})
    return sorted(found, key=lambda f: -f["total_s"])[:count]


def machine() -> dict[str, Any]:
    """Return versions, processor, cores, memory and the load of the machine."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {**provenance.collect(), "processor": names[0] if names else "unknown", "load_average": os.getloadavg()}


def report(path: Path, figures: Mapping[str, Any]) -> None:
    """Write the figures and a description of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=1), encoding="utf-8")


def conclude(
    benchmark: Callable[[Path], dict[str, Any]], show: Callable[[dict[str, Any]], None], out: Path | None
) -> None:
    """Run a benchmark in a temporary folder, print its figures, and write them to `out`."""
    with tempfile.TemporaryDirectory() as folder:
        figures = benchmark(Path(folder))
    show(figures)
    if out:
        report(out, figures)


def print_table(title: str, rows: Mapping[str, Any]) -> None:
    """Print each name and value on a line."""
    print(title)
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}")


def print_largest(title: str, functions: list[dict[str, Any]]) -> None:
    """Print the result of `largest`."""
    print(title)
    for f in functions:
        print(f"  {f['total_s']:9.3f} s  {f['calls']:>9,} calls  {f['function']}")
