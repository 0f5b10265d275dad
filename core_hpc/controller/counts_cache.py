"""TODO docstring."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from analysis.counts import cache, load
from core_hpc.common.errors import CoreHpcError
from core_hpc.schedule.base import Event
from core_hpc.schedule.progress import RunProgress


class CountsCache:
    """Listener that has the counts of every finished iteration kept, for analysis (analysis/counts/cache.py)."""

    def on_event(self, progress: RunProgress, event: Event) -> None:
        if event.kind == "done":
            self._keep(progress, {event.task.key.iteration})

    def close(self, runs: Sequence[RunProgress]) -> None:
        """Make up for what a controller that was killed did not keep, or what a damaged shard has changed since."""
        for progress in runs:
            self._keep(progress, {key.iteration for key in progress.published} - cache.iterations(progress.run.root))

    def _keep(self, progress: RunProgress, iterations: set[int]) -> None:
        for iteration in sorted(iterations):
            own = progress.graph.tasks_of(iteration)
            # This is asked after every task, and mostly the last one is open.
            if any(key in progress.rest for key in reversed(own)):
                continue
            # Analysis does without, and says what is wrong with the rows.
            with contextlib.suppress(CoreHpcError, OSError):
                load.keep_counts(progress.run.root, iteration)
