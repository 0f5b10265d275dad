"""A whole sweep under its controller, with real listeners and an executor that publishes at once."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from analysis.counts import cache
from core_hpc.controller import control as controller
from core_hpc.controller.control import control, open_runs
from core_hpc.controller.counts_cache import CountsCache
from core_hpc.controller.drivers import Driver
from core_hpc.controller.start import Start
from core_hpc.runs.folder import Run, open_run
from core_hpc.runs.graph import Horizon
from core_hpc.runs.sweep import load_sweep
from core_hpc.slurm.records import SubmissionFolder, new_submission
from core_hpc.store import manifests
from core_hpc.store.paths import SweepPaths, TaskKey
from tests.support.executors import Instant
from tests.support.harness import flip_a_byte, hide_from_lookups
from tests.support.tracked_run import written_points
from tests.support.whole_run import publish_task, run_in

LAST = TaskKey(1, "evaluate", "b", 1)


def curves(run: Run) -> set[tuple[str, str, int]]:
    """(folder, tag, step) of all points, except those that measure how long something took."""
    return {(where, tag, step) for where, tag, step, _ in written_points(run) if not tag.startswith("6_time/")}


def controlled(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    publish: Callable[[Run, TaskKey], None],
    *,
    ends: bool = True,
    in_loop: Callable[[], None] = lambda: None,
) -> tuple[list[TaskKey], str]:
    """Drive the sweep of a run to its end, or until it is asked to stop.

    Returns:
        The tasks in their order, and what was printed.
    """
    executor, out = Instant(publish), io.StringIO()
    driver = Driver(executor, "at once", lambda: 0.0, 1.0, warm=True)
    monkeypatch.setattr(controller, "make_driver", lambda *arguments, **named: driver)
    sweep = load_sweep(run.root.parent.parent / "s.yaml")
    console = Console(file=out, width=500)
    (progress,), finished = control(sweep, Start.new(verify=False), {}, console, in_loop=in_loop)
    assert finished == ends
    assert progress.finished == ends, progress.stopped
    return executor.done, out.getvalue()


def test_a_damaged_evaluation_that_the_controller_reads_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, damaged = run_in(tmp_path), list[Path]()

    def publish(run: Run, key: TaskKey) -> None:
        publish_task(run, key)
        if key == LAST and not damaged:
            path = manifests.read_manifest(run.paths.task_manifest(key)).file(".parquet")
            flip_a_byte(path)
            damaged.append(path)

    done, printed = controlled(run, monkeypatch, publish)
    assert done.count(LAST) == 2
    assert len(done) == len(run.graph().tasks()) + 1
    assert f"{damaged[0]}: " in printed
    assert "it is set aside and made again" in printed
    assert cache.iterations(run.root) == {0, 1}
    done, printed = controlled(run, monkeypatch, publish)
    assert done == []
    assert "nothing was changed" in printed
    (tmp_path / "undamaged").mkdir()
    undamaged = run_in(tmp_path / "undamaged")
    controlled(undamaged, monkeypatch, publish_task)
    assert curves(open_run(run.root)) == curves(undamaged)


def test_every_pass_of_the_loop_calls_what_its_caller_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detached controller attempts to get a successor there."""
    run, held = run_in(tmp_path), list[bool]()

    def in_loop() -> None:
        held.append(SweepPaths(run.root.parent).claim.exists())
        if len(held) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        controlled(run, monkeypatch, publish_task, in_loop=in_loop)
    assert held == [True] * 3


def test_a_stop_request_that_only_a_listing_shows_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_in(tmp_path)

    def publish(run: Run, key: TaskKey) -> None:
        publish_task(run, key)
        SweepPaths(run.root.parent).stop_request.touch()

    hide_from_lookups(monkeypatch, "stop.json")
    done, _ = controlled(run, monkeypatch, publish, ends=False)
    assert 0 < len(done) < len(run.graph().tasks())


def test_a_listener_that_cannot_complete_its_files_does_not_end_a_sweep_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, runs: object) -> None:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr("core_hpc.controller.tracking.Tracking.close", fail)
    closed: list[int] = []
    close = CountsCache.close
    monkeypatch.setattr(CountsCache, "close", lambda self, runs: (close(self, runs), closed.append(1)))
    _, printed = controlled(run_in(tmp_path), monkeypatch, publish_task)
    assert "Tracking could not complete its files (OSError: [Errno 122] Disk quota exceeded)" in printed
    assert closed == [1]


@pytest.mark.parametrize(
    ("scored", "left", "horizons"),
    [
        (True, "job", [Horizon(1, 1), Horizon(2, 3)]),
        (True, "checkpoint", [Horizon(1, 1), Horizon(2, 3)]),
        (True, None, [Horizon(1, 3)]),
        (False, "job", [Horizon(1, 3)]),
    ],
)
def test_an_iteration_keeps_its_learning_rates_once_an_update_has_begun(
    scored: bool, left: str | None, horizons: list[Horizon], tmp_path: Path
) -> None:
    """Otherwise the models of an iteration would differ in their learning rates."""

    def a_file(folder: Path) -> dict[str, tuple[int, str]]:
        (folder / "state").touch()
        return {}

    run, update = run_in(tmp_path), TaskKey(1, "update", "a")
    for key in run.graph().tasks():
        if key.iteration == 1 and key.phase not in ("update", "evaluate") and (scored or key.phase != "score"):
            publish_task(run, key)
    if left == "job":
        submissions = SubmissionFolder(run.paths.slurm)
        submissions.write(new_submission("update", "update-0001", [[update]], start_id="s", mem_gb=1))
    elif left == "checkpoint":
        folder, name = run.paths.checkpoint_folder(update), run.paths.checkpoint_name(update, 2)
        manifests.publish(folder, name, a_file, as_folder=True)
    sweep = load_sweep(tmp_path / "s.yaml", ["iterations=3"])
    (progress,) = open_runs(sweep, {}, Console(file=io.StringIO()), verify=False)
    assert progress.run.horizons() == horizons


def test_a_start_with_the_same_iterations_looks_for_no_begun_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their search lists everything that is published, which takes long in a large sweep on a network file system."""
    searched: list[object] = []
    monkeypatch.setattr(controller, "_begun_updates", lambda plan, paths: searched.append(plan) or ())
    run_in(tmp_path)
    for iterations, num_searches in ((1, 0), (3, 1), (3, 1)):
        sweep = load_sweep(tmp_path / "s.yaml", [f"iterations={iterations}"])
        open_runs(sweep, {}, Console(file=io.StringIO()), verify=False)
        assert len(searched) == num_searches
