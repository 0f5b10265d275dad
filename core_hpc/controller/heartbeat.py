"""The file controller.json: it shows that the controller runs, its CPU time, and its runs.

In: the runs of a controller. Out: the file, written about once a minute. `core_hpc.status` shows it, and
a detached controller learns from it whether the one before it ended quickly.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core_hpc.common.errors import StoreError
from core_hpc.controller.start import Start
from core_hpc.schedule.progress import RunProgress
from core_hpc.store import manifests
from core_hpc.store.claims import own_job

HEARTBEAT_S = 60.0


@dataclass(frozen=True)
class RunReport:
    """What the controller reports about a run.

    Attributes:
        failed: failed attempts that count.
        stopped: why the run was stopped; None while it was not.
    """

    failed: int
    stopped: str | None


class Heartbeat:
    """Writes the file.

    Its fields are host, pid, user, time (of writing), job, start_id, started, interval_s (between
    two writings), cpu_s (since `started`), and runs (a `RunReport` by run id).
    """

    def __init__(self, path: Path, start: Start, runs: Sequence[RunProgress], cpu_s: Callable[[], float]) -> None:
        self._path, self._runs, self._cpu, self._cpu_before = path, runs, cpu_s, cpu_s()
        self._fixed: dict[str, Any] = {
            "job": own_job(),
            "start_id": start.start_id,
            "started": time.time(),
            "interval_s": HEARTBEAT_S,
        }
        self._next = 0.0
        self.cpu_s = 0.0

    def beat(self, *, last: bool = False) -> None:
        """Write the file if the last time is `HEARTBEAT_S` ago, or if this is the last time."""
        if time.monotonic() < self._next and not last:
            return
        self._next = time.monotonic() + HEARTBEAT_S
        self.cpu_s = self._cpu() - self._cpu_before
        runs = {p.run.run_id: asdict(RunReport(p.failures, p.stopped)) for p in self._runs}
        body = {**manifests.writer_identity(), **self._fixed, "cpu_s": round(self.cpu_s, 2), "runs": runs}
        with contextlib.suppress(OSError):  # a full disk must not end the controller here
            manifests.write_json(self._path, body)


def reported_life_s(path: Path, start_id: str, *, since: float) -> float:
    """How long the last controller of a start had worked when it last reported, in seconds.

    Args:
        path: the file.
        start_id: names the start by the user.
        since: a controller that began earlier does not count, in seconds since 1970.

    Returns:
        0 if no such controller has reported.
    """

    def life_s(report: Any) -> float:
        counts = report["start_id"] == start_id and report["started"] >= since
        return float(report["time"] - report["started"]) if counts else 0.0

    try:
        return manifests.read_record(path, life_s)
    except StoreError:
        return 0.0
