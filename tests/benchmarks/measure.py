"""What the benchmarks of the controller share: seconds of a block, the machine, where CPU time goes, a report.

CPU seconds are the measure: this machine may be busy with other work, and then wall seconds say little.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core_hpc import provenance


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
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {**provenance.collect(), "processor": names[0] if names else "unknown", "load_average": os.getloadavg()}


def report(path: Path, figures: Mapping[str, Any]) -> None:
    """Write the figures with a description of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=1), encoding="utf-8")


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
