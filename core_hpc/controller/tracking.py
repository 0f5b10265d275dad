"""TensorBoard: the listener that keeps the event files of all runs up to date.

In: events of the scheduler. Out: `tensorboard/` of each run. TensorBoard draws curves with the same tag
in different folders into one chart, so a run writes `tensorboard/MODEL` and `tensorboard/team`. A start
continues the files of earlier starts (`event_files.py`) and adds only the points that are missing, so
that every point of a continued run appears once. If a publication was made again, or core_hpc has
another version, all points are written again. What the points are is decided in `run_tracker.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from core_hpc.controller.run_tracker import RunTracker
from core_hpc.runs.events import Done, Event
from core_hpc.runs.folder import Run
from core_hpc.schedule.progress import RunProgress
from core_hpc.store import manifests
from core_hpc.store.paths import TaskKey


class Tracking:
    """Listener with a RunTracker per run.

    A tracker begins with the first publication of its run, so that a start does not wait for points
    that a killed controller left out.
    """

    def __init__(self) -> None:
        self._trackers: dict[str, RunTracker] = {}

    def tracker_of(self, run: Run) -> RunTracker | None:
        """The tracker that writes the files of a run; None before its first publication in this start."""
        return self._trackers.get(run.run_id)

    def on_event(self, progress: RunProgress, event: Event) -> None:
        if not isinstance(event, Done):
            return
        tracker, key = self._trackers.get(progress.run.run_id), event.task.key
        with self._discarded_after_damage(progress):
            if tracker is not None and str(key) not in tracker.written:
                tracker.task_published(key, progress.published)
            else:
                self._begin(progress, done=key)

    def on_finished(self, progress: RunProgress) -> None:
        """A finished run has complete files, also if this start has published nothing."""
        if progress.run.run_id not in self._trackers:
            with self._discarded_after_damage(progress):
                self._begin(progress)

    def _begin(self, progress: RunProgress, *, done: TaskKey | None = None) -> None:
        """Continue the files of a run, or write them anew if a task was made again after its points were written.

        Args:
            progress: the run.
            done: the task that was published now.
        """
        # A copy for another tracker begins anew with each start, and needs all points.
        tracker = RunTracker(progress.run, anew=progress.run.config.tracking.wandb is not None)
        if not tracker.written <= {str(key) for key in progress.published if key != done}:
            tracker = RunTracker(progress.run, anew=True)
        self._trackers[progress.run.run_id] = tracker
        tracker.catch_up(progress.published)

    @contextlib.contextmanager
    def _discarded_after_damage(self, progress: RunProgress) -> Iterator[None]:
        """After damage was found, write all points of the run again once the publication has been made again."""
        try:
            yield
        except manifests.DamagedError:
            self._trackers.pop(progress.run.run_id, None)
            raise

    def close(self, runs: list[RunProgress]) -> None:
        """Close all files."""
        for progress in runs:
            # Without a publication in this start, a run keeps the files of an earlier one.
            if (tracker := self._trackers.get(progress.run.run_id)) is not None:
                tracker.close(finished=progress.finished)
