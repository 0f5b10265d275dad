"""The copy of TensorBoard's points for W&B, with a stand-in for the package that records its calls.

`tests/integration/test_wandb.py` uses the real package.
"""

from __future__ import annotations

from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.controller import wandb_copy
from core_hpc.controller.tracking import Tracking
from core_hpc.controller.wandb_copy import WandbCopy, check_tracking
from core_hpc.runs.events import Done, TaskRef
from core_hpc.runs.folder import Run
from core_hpc.runs.sweep import load_sweep
from core_hpc.schedule.progress import RunProgress, inspect_run
from core_hpc.store import manifests
from tests.support.tiny import tiny_sweep
from tests.support.tracked_run import evaluated_run, make_run, tensorboard_points
from tests.support.wandb_package import RecordingRun, RecordingWandb

WANDB = {"wandb": "a-project"}


def started(run: Run, messages: list[str]) -> tuple[RunProgress, Tracking, WandbCopy]:
    """A start that has informed its listeners of the last publication."""
    progress, _ = inspect_run(run)
    tracking = Tracking()
    copy = WandbCopy(tracking, messages.append)
    inform(progress, tracking, copy)
    return progress, tracking, copy


def inform(progress: RunProgress, *listeners: Tracking | WandbCopy) -> None:
    event = Done(TaskRef(progress.run.run_id, max(progress.published)))
    for listener in listeners:
        listener.on_event(progress, event)


def test_the_copy_has_each_point_of_tensorboard_with_its_time(package: RecordingWandb, tmp_path: Path) -> None:
    run, messages = evaluated_run(tmp_path, **WANDB), list[str]()
    progress, tracking, copy = started(run, messages)
    tracking.close([progress])
    copy.close([progress])
    (copied,) = package.runs
    assert messages == []
    assert copied.finished
    assert package.ended
    assert copied.points() == tensorboard_points(run.paths.tensorboard)
    written = {manifests.read_manifest(run.paths.task_manifest(key)).writer["time"] for key in progress.published}
    assert {row["_timestamp"] for row in copied.rows if "_timestamp" in row} <= written
    assert copied.arguments["config"]["seed"] == 7


def test_another_start_begins_anew_under_the_same_id(package: RecordingWandb, tmp_path: Path) -> None:
    run, messages = evaluated_run(tmp_path, **WANDB), list[str]()
    for _ in range(2):
        progress, tracking, copy = started(run, messages)
        tracking.close([progress])
        copy.close([progress])
    first, second = package.runs
    assert first.arguments["id"] == second.arguments["id"]
    assert first.points() == second.points()
    # The stand-in gives both folders one name and does not accept a folder that exists.
    assert list(run.paths.wandb.iterdir()) == [second.folder]


def test_after_damage_the_copy_begins_anew_like_the_event_files(package: RecordingWandb, tmp_path: Path) -> None:
    run, messages = evaluated_run(tmp_path, **WANDB), list[str]()
    progress, tracking, copy = started(run, messages)
    key = max(progress.published)
    path = run.paths.task_manifest(key)
    kept = path.read_bytes()
    path.write_text("{")
    with pytest.raises(manifests.DamagedError):
        inform(progress, tracking)
    path.write_bytes(kept)
    inform(progress, tracking, copy)
    tracking.close([progress])
    copy.close([progress])
    first, second = package.runs
    assert first.finished
    assert second.points() == tensorboard_points(run.paths.tensorboard)
    assert messages == []


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_a_failure_is_reported_once_and_tensorboard_is_complete(
    package: RecordingWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    calls = []

    def fail(*args: Any, **kwargs: Any) -> None:
        calls.append(call)
        raise ConnectionResetError("the service has ended\nwith a second line")

    monkeypatch.setattr(RecordingWandb if call == "init" else RecordingRun, call, fail)
    run, messages = evaluated_run(tmp_path, **WANDB), list[str]()
    progress, tracking, copy = started(run, messages)
    inform(progress, tracking, copy)
    tracking.close([progress])
    copy.close([progress])
    assert messages == [
        f"W&B failed at {run.run_id}: ConnectionResetError: the service has ended; the sweep continues, and W&B gets "
        "no more points in this start. The next start writes all of them"
    ]
    assert len(calls) == 1
    assert package.ended
    assert tensorboard_points(run.paths.tensorboard)


def test_a_torn_file_with_the_id_is_reported(package: RecordingWandb, tmp_path: Path) -> None:
    run, messages = evaluated_run(tmp_path, **WANDB), list[str]()
    run.paths.wandb_id.write_text("[]")
    started(run, messages)
    (message,) = messages
    assert "wandb.json: torn, altered or of another version" in message


def test_no_package_is_an_error_before_a_start_even_beside_a_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = make_run(tmp_path, tracking=WANDB).config.tracking
    (tmp_path / "empty").mkdir()
    (tmp_path / "with_folder" / "wandb").mkdir(parents=True)
    for folder in ("empty", "with_folder"):
        found = PathFinder.find_spec("wandb", [str(tmp_path / folder)])
        assert (found is None) == (folder == "empty")
        monkeypatch.setattr(wandb_copy, "find_spec", lambda name, found=found: found)
        with pytest.raises(InputError, match=r"pip install 'core_hpc\[wandb\]'"):
            check_tracking(section)


def test_the_section_does_not_change_the_run(tmp_path: Path) -> None:
    ids = {
        load_sweep(tiny_sweep(tmp_path / "tiny.yaml", [Path("/m0")], tmp_path / "out", **changes)).runs[0].run_id
        for changes in ({}, {"tracking": {"wandb": "p", "wandb_mode": "online"}})
    }
    assert len(ids) == 1


@pytest.mark.parametrize("project", ["", "team/project", "a#b", "x" * 129, " x"])
def test_a_name_that_wandb_refuses_is_a_mistake_of_the_file(tmp_path: Path, project: str) -> None:
    sweep = tiny_sweep(tmp_path / "tiny.yaml", [Path("/m0")], tmp_path / "out", tracking={"wandb": project})
    with pytest.raises(CoreHpcError, match=r"tracking\.wandb"):
        load_sweep(sweep)
