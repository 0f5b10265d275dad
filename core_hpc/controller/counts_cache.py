"""A listener that caches the counts of every finished iteration, so that analysis is quick.

In: events. Out: the files of `analysis/counts/cache.py`, beside the shards. Analysis works without
them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from analysis.counts import cache, load
from core_hpc.common.errors import CoreHpcError
from core_hpc.runs.events import Done, Event
from core_hpc.schedule.progress import RunProgress
from core_hpc.store.manifests import DamagedError


class CountsCache:
    """Listener that caches the counts of finished iterations."""

    def on_event(self, progress: RunProgress, event: Event) -> None:
        if isinstance(event, Done):
            self._cache(progress, {event.task.key.iteration})

    def on_finished(self, progress: RunProgress) -> None:
        self._cache_rest(progress)

    def close(self, runs: Sequence[RunProgress]) -> None:
        """Cache what a killed controller did not cache, and iterations with a shard made again."""
        for progress in runs:
            with contextlib.suppress(DamagedError):  # the next start finds it
                self._cache_rest(progress)

    def _cache_rest(self, progress: RunProgress) -> None:
        self._cache(progress, {key.iteration for key in progress.published} - cache.iterations(progress.run.root))

    def _cache(self, progress: RunProgress, iterations: set[int]) -> None:
        for iteration in sorted(iterations):
            own = progress.graph.tasks_of(iteration)
            # This runs after every task. Mostly a task at the end of the iteration is open.
            if any(key in progress.open_tasks for key in reversed(own)):
                continue
            try:
                load.keep_counts(progress.run.root, iteration)
            except DamagedError:
                raise  # the scheduler sets it aside
            except (CoreHpcError, OSError):
                pass  # analysis does not need the cache, and reports what is wrong with the rows
