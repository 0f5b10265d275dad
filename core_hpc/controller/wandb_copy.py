"""W&B: a copy of TensorBoard's points, for people who compare runs there.

In: the points that `points.py` writes. Out: one W&B run per run of the sweep, by default as a folder
without network, `RUN/wandb/offline-run-*`, which `wandb sync` uploads later. The points of a curve are
those of TensorBoard, under the key TAG/MODEL, over the same steps.

A continued run keeps its id in W&B (`RUN/wandb.json`). The copy begins anew with each start, and the
event files with it, with all published points. W&B replaces what it has under an id by what is uploaded
without `resume`. So every point is there once, whether or not an earlier folder was uploaded. When a
copy is complete, `wandb.json` also gets the checksum of the record of the event files
(`event_files.py`). A finished run is copied again only if that record has changed since (`completion.py`).

W&B is the package `wandb` (extra `wandb`). Nothing here is loaded unless `tracking.wandb` is set.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from core_hpc.common.errors import CoreHpcError, InputError, StoreError
from core_hpc.config.identity import flatten, scientific_fields
from core_hpc.config.tracking import TrackingSection
from core_hpc.controller.event_files import RECORD
from core_hpc.controller.points import Points
from core_hpc.controller.run_tracker import RunTracker
from core_hpc.controller.tracking import Tracking
from core_hpc.runs.events import Done, Event
from core_hpc.runs.folder import Run
from core_hpc.runs.names import title_of
from core_hpc.schedule.progress import RunProgress
from core_hpc.store import manifests

STEP = "step"
"""The key of a point's step. W&B's own step counts calls, and calls are not in the order of the points."""
_FOLDER = re.compile(r"(offline-)?run-[0-9]{8}_[0-9]{6}-.+")
"""Name of a folder of the package: its mode, its time and the id of the run."""
TIMEOUT_S = 30.0
"""How long the controller waits for W&B at the beginning and at the end of a run."""


def check_tracking(section: TrackingSection) -> None:
    """Raise InputError if the points cannot be copied: a package is missing, or nobody is logged in."""
    if section.wandb is None:
        return
    found = find_spec("wandb")
    # A folder `wandb` in the working directory, which W&B makes, is a package without an origin.
    if found is None or found.origin is None:
        raise InputError(
            "tracking.wandb: the package wandb is not installed; run: pip install 'core_hpc[wandb]', or leave "
            "tracking.wandb out"
        )
    if section.wandb_mode == "online":
        import wandb

        if not wandb.login(prompt=False):
            raise InputError(
                "tracking.wandb_mode: online needs a key of W&B; run: wandb login, or set WANDB_API_KEY, or leave "
                "tracking.wandb_mode out and upload later with: wandb sync"
            )


class WandbCopy:
    """Listener that copies the points which `Tracking` has written, once per event.

    It must follow `Tracking` in the list of listeners, and is closed after it. After a failure it
    writes nothing more in this start: each further attempt could wait for `TIMEOUT_S`.
    """

    def __init__(self, tracking: Tracking, notify: Callable[[str], None]) -> None:
        self._tracking = tracking
        self._notify = notify
        self._copies: dict[str, _RunCopy] = {}
        self._began = False
        self._failed = False

    def on_event(self, progress: RunProgress, event: Event) -> None:
        if isinstance(event, Done):
            self._copy(progress.run)

    def on_finished(self, progress: RunProgress) -> None:
        """A finished run has all points, also if this start has published nothing."""
        self._copy(progress.run)

    def close(self, runs: list[RunProgress]) -> None:
        """Copy the last points, and end the runs in W&B."""
        for progress in runs:
            self._copy(progress.run)
            if (copy := self._copies.pop(progress.run.run_id, None)) is not None:
                self._attempt(progress.run, copy.complete)
        if runs and self._began:
            # Otherwise the package does it when Python ends, with a traceback if its service has ended.
            self._attempt(runs[-1].run, _end_service, last=True)

    def _copy(self, run: Run) -> None:
        tracker = self._tracking.tracker_of(run)
        if tracker is not None and run.config.tracking.wandb is not None:
            points = tracker.take_points()
            self._attempt(run, lambda: self._write(run, tracker, points))

    def _write(self, run: Run, tracker: RunTracker, points: Sequence[Points]) -> None:
        self._began = True
        copy = self._copies.get(run.run_id)
        if copy is not None and copy.tracker is not tracker:  # the event files began anew, after damage
            copy.finish()
            copy = None
        if copy is None:
            copy = self._copies[run.run_id] = _RunCopy(run, tracker)
        copy.write(points)

    def _attempt(self, run: Run, call: Callable[[], None], *, last: bool = False) -> None:
        """Call something of W&B, unless an earlier call has failed. Report the first failure.

        Args:
            run: the run that the message names.
            call: what to call.
            last: call it after a failure, too.
        """
        if self._failed and not last:
            return
        try:
            call()
        except Exception as e:  # noqa: BLE001 - the boundary: a copy of curves must not end a sweep
            if self._failed:
                return
            self._failed = True
            first_line = next(iter(str(e).splitlines()), "")
            what = first_line if isinstance(e, CoreHpcError) else f"{type(e).__name__}: {first_line}"
            self._notify(
                f"W&B failed at {run.run_id}: {what}; the sweep continues, and W&B gets no more points in this start. "
                "The next start writes all of them"
            )


def is_copied(run: Run) -> bool:
    """Whether W&B has all points that are in the event files, or is to have none."""
    if run.config.tracking.wandb is None:
        return True
    try:
        copied: str | None = manifests.read_record(run.paths.wandb_id, lambda data: data.get("copied"))
        return copied == _content(run)
    except (StoreError, OSError):  # one of both files is missing or torn
        return False


def _content(run: Run) -> str:
    """What identifies the content of the event files: the checksum of their record."""
    return manifests.sha256_file(run.paths.tensorboard / RECORD)


def _end_service() -> None:
    """End the process of the package that writes and uploads."""
    import wandb

    wandb.teardown()


class _RunCopy:
    """One run in W&B.

    Attributes:
        tracker: whose points it has.
    """

    def __init__(self, run: Run, tracker: RunTracker) -> None:
        # The package reports its own errors to its makers, unless this variable is set before it starts.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.tracker = tracker
        self._id, self._source = _wandb_id(run), run
        config = run.config
        _remove_earlier(run)
        self._run = wandb.init(
            project=config.tracking.wandb,
            id=self._id,
            name=title_of(config.name, run.run_id),
            group=config.name,
            config=flatten(scientific_fields(config)),
            mode=config.tracking.wandb_mode,
            dir=str(run.root),
            reinit="create_new",  # a sweep has several runs at the same time
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=TIMEOUT_S,
                finish_timeout=TIMEOUT_S,
                finish_timeout_raises=True,
                # Only points and scientific fields: nothing about the machine, the user or the command.
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )
        self._run.define_metric(STEP, hidden=True)
        self._run.define_metric("*", step_metric=STEP)

    def write(self, points: Sequence[Points]) -> None:
        """Write points, each set as one row with its step and its time."""
        for p in points:
            row = {f"{tag}/{p.model}": value for tag, value in p.values.items()}
            times = {} if p.time_s is None else {"_timestamp": p.time_s}
            self._run.log({STEP: p.step, **times, **row})

    def finish(self) -> None:
        """Write everything to disk (online: upload it), and end the run."""
        self._run.finish()

    def complete(self) -> None:
        """End the run after its last point, and record that W&B has all points of the event files."""
        self.finish()
        manifests.write_json(self._source.paths.wandb_id, {"id": self._id, "copied": _content(self._source)})


def _wandb_id(run: Run) -> str:
    """The id of a run in W&B, drawn at the first start. Two users may have runs of the same name and identity."""
    path = run.paths.wandb_id
    if not path.exists():
        manifests.write_json(path, {"id": uuid.uuid4().hex[:12]})
    return manifests.read_record(path, lambda data: str(data["id"]))


def _remove_earlier(run: Run) -> None:
    """Remove the folders of earlier starts, also those under an id that the user has removed."""
    for folder in run.paths.wandb.glob("*"):
        if _FOLDER.fullmatch(folder.name) and not folder.is_symlink():
            shutil.rmtree(folder)
