"""A start that finds everything done: it completes curves and their copies for W&B, and changes nothing else.

The last tasks may have been published without a controller, and a copy may have failed or been killed.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from core_hpc.controller import run_tracker
from core_hpc.controller.completion import complete_curves
from core_hpc.controller.control import control
from core_hpc.controller.start import Start
from core_hpc.controller.tracking import Tracking
from core_hpc.controller.wandb_copy import WandbCopy
from core_hpc.runs.events import Done, TaskRef
from core_hpc.runs.folder import Run
from core_hpc.runs.sweep import load_sweep
from core_hpc.schedule.progress import inspect_run
from core_hpc.store import manifests
from tests.support.harness import flip_a_byte
from tests.support.tiny import tiny_sweep
from tests.support.tracked_run import evaluated_run, make_run, publish_evaluation, tensorboard_points, written_points
from tests.support.wandb_package import RecordingRun, RecordingWandb

NOTHING = "nothing was changed."
COMPLETED = "completed the curves of 1 run(s)"
COPIED = "copied 1 run(s) for W&B"
FAILED = "curves or W&B copies of 1 run(s) are still incomplete"
PROJECT = "a-project"


def start(run: Run, **tracking: str) -> str:
    """What a start of the finished sweep prints."""
    folder, out = run.root.parents[2], io.StringIO()
    sweep = load_sweep(
        tiny_sweep(folder / "tiny.yaml", [Path("/m0"), Path("/m1")], folder / "out", iterations=0, tracking=tracking)
    )
    (progress,), finished = control(sweep, Start.new(verify=False), {}, Console(file=out, width=1000))
    assert finished
    assert progress.finished
    return out.getvalue()


def killed_start(run: Run) -> None:
    """A start that sees the last publication. It is killed before it closes its files."""
    progress, _ = inspect_run(run)
    tracking = Tracking()
    for listener in (tracking, WandbCopy(tracking, print)):
        listener.on_event(progress, Done(TaskRef(run.run_id, max(progress.published))))


def see_nothing(run: Run) -> None:
    for part in range(3):
        publish_evaluation(run, 0, part, correct=True)


def see_one_part(run: Run) -> None:
    publish_evaluation(run, 0, 0, correct=True)
    killed_start(run)
    for part in (1, 2):
        publish_evaluation(run, 0, part, correct=True)


def end_before_the_last_part(run: Run) -> None:
    """The start ends without a kill, because a user asked it to stop."""
    for part in (0, 1):
        publish_evaluation(run, 0, part, correct=True)
    progress, _ = inspect_run(run)
    tracking = Tracking()
    tracking.on_event(progress, Done(TaskRef(run.run_id, max(progress.published))))
    tracking.close([progress])
    publish_evaluation(run, 0, 2, correct=True)


def see_all_and_close_nothing(run: Run) -> None:
    see_nothing(run)
    killed_start(run)


def snapshot(run: Run) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("before", [see_nothing, see_one_part, end_before_the_last_part, see_all_and_close_nothing])
def test_points_that_no_controller_has_written_are_written_once(tmp_path: Path, before: Callable[[Run], None]) -> None:
    run = make_run(tmp_path, iterations=0)
    before(run)
    assert COMPLETED in start(run)
    found = written_points(run)
    assert set(found.values()) == {1}
    tags = {(where, tag) for where, tag, _, _ in found}
    for where in ("m0", "m1", "team"):
        assert (where, "1_evaluation/pass/k1") in tags
        assert ("team", f"final/pass/k1/{where}") in tags
    complete = snapshot(run)
    assert NOTHING in start(run)
    assert snapshot(run) == complete


def test_only_the_run_that_lacks_points_is_changed(tmp_path: Path) -> None:
    for name in ("whole", "lacking"):
        (tmp_path / name).mkdir()
    whole, lacking = (evaluated_run(tmp_path / name) for name in ("whole", "lacking"))
    start(whole)
    complete, messages = snapshot(whole), list[str]()
    runs = [replace(inspect_run(run)[0], run=replace(run, run_id=name)) for name, run in (("w", whole), ("l", lacking))]
    assert complete_curves(runs, messages.append) == COMPLETED
    assert messages == []
    assert snapshot(whole) == complete
    assert set(written_points(lacking).values()) == {1}


def test_the_files_of_another_version_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = evaluated_run(tmp_path)
    start(run)
    complete = snapshot(run)
    monkeypatch.setattr(run_tracker, "__version__", "another")
    assert NOTHING in start(run)
    assert snapshot(run) == complete


def make_again(run: Run, part: int, *, correct: bool) -> None:
    """Set the publications of a part aside and make them again, as a resident job does."""
    for key in {k for k in inspect_run(run)[0].published if k.part == part}:
        manifests.set_aside(run.paths.task_manifest(key))
    publish_evaluation(run, 0, part, correct=correct)


def test_points_of_a_publication_that_was_made_again_are_replaced(tmp_path: Path) -> None:
    run = evaluated_run(tmp_path)
    start(run)
    make_again(run, 0, correct=False)
    assert COMPLETED in start(run)
    (value,) = {v for (_, tag, _, v) in written_points(run) if tag == "1_evaluation/pass/k1"}
    assert value == pytest.approx(2 / 3, abs=1e-4)


@pytest.mark.parametrize("what", ["record", "folder"])
def test_event_files_that_were_removed_are_written_again(tmp_path: Path, what: str) -> None:
    run = evaluated_run(tmp_path)
    start(run)
    points = written_points(run)
    if what == "record":
        (run.paths.tensorboard / "written.jsonl").unlink()
    else:
        for path in (run.paths.tensorboard / "m0").iterdir():
            path.unlink()
    assert COMPLETED in start(run)
    assert written_points(run) == points


def test_a_failure_is_reported_and_the_next_start_completes_the_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evaluated_run(tmp_path)

    def fail(*arguments: Any, **named: Any) -> None:
        raise OSError(122, "Disk quota exceeded")

    with monkeypatch.context() as patched:
        patched.setattr("core_hpc.controller.event_files.EventFiles.record", fail)
        printed = start(run)
    assert f"the curves of {run.run_id} could not be completed: OSError: [Errno 122] Disk quota exceeded" in printed
    assert "The next start attempts it again" in printed
    assert FAILED in printed
    assert COMPLETED not in printed
    assert NOTHING not in printed
    assert COMPLETED in start(run)


def test_damage_that_is_found_meanwhile_names_the_option_that_sets_it_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evaluated_run(tmp_path)
    path = manifests.read_manifest(run.paths.task_manifest(max(inspect_run(run)[0].published))).file(".parquet")
    on_finished = Tracking.on_finished

    def damaged(self: Tracking, progress: Any) -> None:
        flip_a_byte(path)
        on_finished(self, progress)

    monkeypatch.setattr(Tracking, "on_finished", damaged)
    printed = start(run)
    assert f"{path}: " in printed
    assert "Start again with --verify" in printed
    assert FAILED in printed


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_a_copy_that_failed_is_written_by_the_next_start(
    package: RecordingWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise ConnectionResetError("the service has ended")

    run = evaluated_run(tmp_path, wandb=PROJECT)
    with monkeypatch.context() as patched:
        patched.setattr(RecordingWandb if call == "init" else RecordingRun, call, fail)
        printed = start(run, wandb=PROJECT)
    assert "The next start writes all of them" in printed
    assert f"{COMPLETED}, {FAILED}" in printed
    printed = start(run, wandb=PROJECT)
    assert COPIED in printed
    assert COMPLETED not in printed
    assert package.runs[-1].finished
    assert package.runs[-1].points() == tensorboard_points(run.paths.tensorboard)
    complete = snapshot(run)
    assert NOTHING in start(run, wandb=PROJECT)
    assert snapshot(run) == complete


def test_a_copy_that_was_killed_is_written_under_the_same_id(package: RecordingWandb, tmp_path: Path) -> None:
    run = evaluated_run(tmp_path, wandb=PROJECT)
    killed_start(run)
    assert f"{COMPLETED}, {COPIED}" in start(run, wandb=PROJECT)
    killed, whole = package.runs
    assert not killed.finished
    assert whole.arguments["id"] == killed.arguments["id"]
    assert whole.points() == tensorboard_points(run.paths.tensorboard)


def test_a_copy_of_an_earlier_version_is_written_once_more(package: RecordingWandb, tmp_path: Path) -> None:
    run = evaluated_run(tmp_path, wandb=PROJECT)
    start(run, wandb=PROJECT)
    uid = package.runs[0].arguments["id"]
    manifests.write_json(run.paths.wandb_id, {"id": uid})
    assert COPIED in start(run, wandb=PROJECT)
    assert NOTHING in start(run, wandb=PROJECT)
    assert [copied.arguments["id"] for copied in package.runs] == [uid, uid]


def test_a_finished_run_is_copied_once_if_this_is_asked_for_later(package: RecordingWandb, tmp_path: Path) -> None:
    run = evaluated_run(tmp_path)
    assert COMPLETED in start(run)
    printed = start(run, wandb=PROJECT)
    assert COPIED in printed
    assert COMPLETED not in printed
    assert NOTHING in start(run, wandb=PROJECT)
    (copied,) = package.runs
    assert copied.points() == tensorboard_points(run.paths.tensorboard)
    run.paths.wandb_id.unlink()  # the user wants another id, because the run was deleted in W&B
    assert COPIED in start(run, wandb=PROJECT)
    assert package.runs[1].arguments["id"] != copied.arguments["id"]
    assert list(run.paths.wandb.iterdir()) == [package.runs[1].folder]
    run.paths.wandb_id.unlink()
    assert NOTHING in start(run)


def test_points_that_came_while_no_copy_was_asked_for_are_copied(package: RecordingWandb, tmp_path: Path) -> None:
    run = evaluated_run(tmp_path, wandb=PROJECT)
    start(run, wandb=PROJECT)
    make_again(run, 0, correct=False)
    assert COMPLETED in start(run)
    assert COPIED in start(run, wandb=PROJECT)
    assert package.runs[-1].points() == tensorboard_points(run.paths.tensorboard)


def test_a_torn_file_with_the_id_is_reported(package: RecordingWandb, tmp_path: Path) -> None:
    run = evaluated_run(tmp_path, wandb=PROJECT)
    run.paths.wandb_id.write_text("[]")
    printed = start(run, wandb=PROJECT)
    assert "wandb.json: torn, altered or of another version" in printed
    assert f"{COMPLETED}, {FAILED}" in printed
