"""Completes the curves of finished runs, in a start that has nothing else to do.

In: runs that are all finished. Out: their event files, and their copies for W&B. Curves are incomplete
if the last tasks were published without a controller, if it was killed before it closed its files, or
if W&B failed. A copy is missing if it was asked for after the end of the run. Complete files stay as
they are. While a sweep runs, its listeners write the curves (`tracking.py`, `wandb_copy.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core_hpc.common.errors import CoreHpcError
from core_hpc.controller.run_tracker import has_all_points
from core_hpc.controller.tracking import Tracking
from core_hpc.controller.wandb_copy import WandbCopy, is_copied
from core_hpc.schedule.progress import RunProgress
from core_hpc.store.manifests import DamagedError


def complete_curves(runs: Sequence[RunProgress], notify: Callable[[str], None]) -> str:
    """Write what the curves of finished runs and their copies lack.

    Returns:
        What was changed, for the end of a sentence.
    """
    lacking = {p.run.run_id for p in runs if not has_all_points(p.run, p.published)}
    wanted = [p for p in runs if p.run.run_id in lacking or not is_copied(p.run)]
    if not wanted:
        return "nothing was changed"
    _write(wanted, notify)
    whole = [p for p in wanted if has_all_points(p.run, p.published)]
    copied = [p for p in whole if is_copied(p.run)]
    counts = {
        "completed the curves of {} run(s)": sum(p.run.run_id in lacking for p in whole),
        "copied {} run(s) for W&B": sum(p.run.config.tracking.wandb is not None for p in copied),
        "curves or W&B copies of {} run(s) are still incomplete": len(wanted) - len(copied),
    }
    return ", ".join(text.format(count) for text, count in counts.items() if count)


def _write(runs: list[RunProgress], notify: Callable[[str], None]) -> None:
    """Write the points of runs, and copy them. A failure is reported, and the next run follows."""
    tracking = Tracking()
    copy = WandbCopy(tracking, notify)
    for progress in runs:
        try:
            tracking.on_finished(progress)
            tracking.close([progress])
            copy.on_finished(progress)
        except Exception as e:  # noqa: BLE001 - results do not need these files
            what = str(e) if isinstance(e, CoreHpcError) else f"{type(e).__name__}: {e}"
            then = "The next start attempts it again"
            if isinstance(e, DamagedError):
                then = "Start again with --verify, which sets it aside and makes it again"
            notify(f"the curves of {progress.run.run_id} could not be completed: {what}. {then}")
    copy.close(runs)
