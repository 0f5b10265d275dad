"""A listener that keeps the counts of every finished iteration beside its shards, so that analysis reads them quickly.

In: events. Out: the files of `analysis/counts/cache.py`. Analysis works without them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from analysis.counts import cache, load
from core_hpc.common.errors import CoreHpcError
from core_hpc.runs.messages import Done, Event
from core_hpc.schedule.progress import RunProgress


class CountsCache:
    """Listener that caches the counts of finished iterations."""

    def on_event(self, progress: RunProgress, event: Event) -> None:
        if isinstance(event, Done):
            self._cache(progress, {event.task.key.iteration})

    def close(self, runs: Sequence[RunProgress]) -> None:
        """Cache what a killed controller did not cache, and what has changed since because a shard was damaged."""
        for progress in runs:
            self._cache(progress, {key.iteration for key in progress.published} - cache.iterations(progress.run.root))

    def _cache(self, progress: RunProgress, iterations: set[int]) -> None:
        for iteration in sorted(iterations):
            own = progress.graph.tasks_of(iteration)
            # This is asked after every task, and mostly the last one is open.
            if any(key in progress.open_tasks for key in reversed(own)):
                continue
            # Analysis does without, and says what is wrong with the rows.
            with contextlib.suppress(CoreHpcError, OSError):
                load.keep_counts(progress.run.root, iteration)
