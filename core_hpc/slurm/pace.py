"""How often the controller looks at SLURM and at the shared file system.

It looks soon after something happened, and less often while nothing happens. A login node is
shared, so the controller also keeps to its share of a core in the long run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from core_hpc.schedule.scheduler import cpu_seconds

BACK_OFF = 1.5
CPU_SHARE, CPU_CREDIT_S = 0.008, 5.0
"""Share of a core that the controller may use, and how many CPU-seconds of it may be used early."""


class Pace:
    """The time of the next look, adapted after each one."""

    def __init__(self, interval_s: Sequence[float]) -> None:
        """`interval_s`: the shortest and the longest interval."""
        self._shortest, self._longest = interval_s
        self._interval = self._shortest
        self._next_look = 0.0
        self.restart()

    def restart(self) -> None:
        """Count CPU time from now on."""
        self._began, self._cpu_before = time.monotonic(), cpu_seconds()

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._next_look

    def wait(self) -> None:
        """Sleep until the next look is due."""
        time.sleep(max(0.0, min(self._next_look - time.monotonic(), self._longest)))

    def adapt(self, *, moved: bool) -> None:
        """Set the time of the next look; `moved`: something happened since the last one."""
        used, elapsed = cpu_seconds() - self._cpu_before, time.monotonic() - self._began
        # After this time the CPU time that was used is within the share again.
        repaid_s = (used - CPU_CREDIT_S) / CPU_SHARE - elapsed
        slower = 0.0 if moved else self._interval * BACK_OFF
        self._interval = min(self._longest, max(self._shortest, repaid_s, slower))
        self._next_look = time.monotonic() + self._interval
