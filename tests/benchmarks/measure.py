"""What the benchmarks share: seconds and memory, processes of their own, medians, the machine, a report.

On a machine that is busy with other work wall seconds say little: compare CPU seconds, or what took turns within one run.
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
    """Seconds of a block: on the clock, of CPU in this process (all threads), and of CPU in commands that it waited for."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    commands_cpu_s: float = 0.0

    def figures(self) -> dict[str, float]:
        """Rounded, for a report."""
        return {name: round(value, 4) for name, value in vars(self).items()}


def commands_cpu_s() -> float:
    """CPU seconds so far of commands that this process waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure a block; the figures are there when it has ended."""
    cost = Cost()
    before = time.perf_counter(), time.process_time(), commands_cpu_s()
    try:
        yield cost
    finally:
        after = time.perf_counter(), time.process_time(), commands_cpu_s()
        cost.wall_s, cost.cpu_s, cost.commands_cpu_s = (b - a for a, b in zip(before, after, strict=True))


def peak_mb() -> float:
    """Peak memory of this process, in MiB. Not getrusage's: that counts what the parent had when it started this one."""
    return _status_mb("VmHWM")


def memory_mb() -> float:
    """Memory of this process now, in MiB."""
    return _status_mb("VmRSS")


def reset_peak() -> None:
    """From here on `peak_mb` is that of what follows."""
    Path("/proc/self/clear_refs").write_text("5")


def _status_mb(name: str) -> float:
    (line,) = (text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


class KilledError(Exception):
    """A benchmark's process got SIGKILL: on a machine that nobody else ends processes on, it wanted more memory than there is."""


def in_process(benchmark: str, *arguments: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a benchmark's module in a process of its own; its answer is the last line that it prints, as JSON.

    KilledError when it was killed, RuntimeError when it failed.
    """
    command = [sys.executable, "-m", f"tests.benchmarks.{benchmark}", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    if done.returncode == -signal.SIGKILL:
        raise KilledError(" ".join(command))
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure.

    >>> medians([{"wall_s": 3.0}, {"wall_s": 1.0}, {"wall_s": 2.0}])
    {'wall_s': 2.0}
    """
    return {name: statistics.median(r[name] for r in runs) for name in runs[0]}


def largest(profile: cProfile.Profile, *, count: int = 16) -> list[dict[str, Any]]:
    """The functions of this repository in which, callees included, most time went. A profiler slows small calls down."""
    found = []
    for (file, line, function), (_, calls, own_s, total_s, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if "/core_hpc/" in file or "/analysis/" in file:
            where = f"{Path(file).name}:{line} {function}"
            found.append({"function": where, "calls": calls, "total_s": round(total_s, 3), "own_s": round(own_s, 3)})
    return sorted(found, key=lambda f: -f["total_s"])[:count]


def machine() -> dict[str, Any]:
    """Versions, processor, cores, memory, and how busy the machine was."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {**provenance.collect(), "processor": names[0] if names else "unknown", "load_average": os.getloadavg()}


def report(path: Path, figures: Mapping[str, Any]) -> None:
    """Write the figures with a description of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=1), encoding="utf-8")


def conclude(
    benchmark: Callable[[Path], dict[str, Any]], show: Callable[[dict[str, Any]], None], out: Path | None
) -> None:
    """Run a benchmark in a folder that goes away afterwards, print its figures, and write them where the user named a file."""
    with tempfile.TemporaryDirectory() as folder:
        figures = benchmark(Path(folder))
    show(figures)
    if out:
        report(out, figures)


def print_table(title: str, rows: Mapping[str, Any]) -> None:
    """Name and value, one a line."""
    print(title)
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}")


def print_largest(title: str, functions: list[dict[str, Any]]) -> None:
    """Lines of `largest`."""
    print(title)
    for f in functions:
        print(f"  {f['total_s']:9.3f} s  {f['calls']:>9,} calls  {f['function']}")
