"""TODO docstring."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from core_hpc.controller.prepare import Start
from core_hpc.schedule.progress import RunProgress
from core_hpc.store import manifests
from core_hpc.store.claims import own_job

HEARTBEAT_S = 60.0


class Heartbeat:
    """Says in a file that the controller lives, what CPU time it takes, and how its runs are. For core_hpc.status alone.

    host, pid, user, time (of writing), job, start_id, started, interval_s (between writings), cpu_s (since `started`), and
    runs: by id, the tries that failed and counted, and why it was stopped (or null).
    """

    def __init__(self, path: Path, start: Start, runs: Sequence[RunProgress], cpu: Callable[[], float]) -> None:
        self._path, self._runs, self._cpu, self._cpu_before = path, runs, cpu, cpu()
        self._fixed = {"job": own_job(), "start_id": start.start_id, "started": time.time(), "interval_s": HEARTBEAT_S}
        self._next = 0.0
        self.cpu_s = 0.0

    def beat(self, *, last: bool = False) -> None:
        """Write, if it is time to."""
        if time.monotonic() < self._next and not last:
            return
        self._next = time.monotonic() + HEARTBEAT_S
        self.cpu_s = self._cpu() - self._cpu_before
        runs = {p.run.run_id: {"failed": p.failures, "stopped": p.stopped} for p in self._runs}
        body = {**manifests.writer_identity(), **self._fixed, "cpu_s": round(self.cpu_s, 2), "runs": runs}
        with contextlib.suppress(OSError):  # a full disk must not end a controller for this
            manifests.write_json(self._path, body)
