"""Short names of runs for TensorBoard: what its own reader of folders finds below the links."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.io_wrapper import GetLogdirSubdirectories

from analysis.__main__ import main
from analysis.exchange.curve_links import link_curves
from analysis.exchange.folder import import_predictions
from core_hpc.common.errors import InputError
from core_hpc.store.paths import RunPaths
from tests.support.analysis_data import make_run


def run_with_curves(folder: Path) -> Path:
    """A run with the event files of a model and of the team."""
    for name in ("ada", "team"):
        events = RunPaths(make_run(folder)).tensorboard / name
        events.mkdir(parents=True)
        (events / "events.out.tfevents.1.host.1.0").write_bytes(b"")
    return folder


def names(logdir: Path) -> list[str]:
    """The runs that TensorBoard lists."""
    return sorted(str(Path(found).relative_to(logdir)) for found in GetLogdirSubdirectories(str(logdir)))


def contents(folder: Path) -> list[tuple[str, bool]]:
    return sorted((str(path.relative_to(folder)), path.is_symlink()) for path in folder.rglob("*"))


def test_names_have_no_hash_unless_two_runs_share_one(tmp_path: Path) -> None:
    sweep = tmp_path / "first"
    for run_id in ("seed-1-25b396c0", "seed-2-1f9b2bd0", "own-11111111", "own-22222222"):
        run_with_curves(sweep / run_id)
    before = contents(sweep)
    linked = link_curves([sweep, sweep / "seed-1-25b396c0"], tmp_path / "curves")
    assert names(sweep)[0] == "own-11111111/tensorboard/ada"
    runs = ("own-11111111", "own-22222222", "seed-1", "seed-2")
    assert names(linked.path) == [f"{run}/{name}" for run in runs for name in ("ada", "team")]
    assert linked.runs["seed-1"] == sweep / "seed-1-25b396c0"
    assert contents(sweep) == before
    # The curves of a run in progress grow, and a restart replaces their files.
    events = sweep / "seed-1-25b396c0" / "tensorboard" / "ada" / "events.out.tfevents.1.host.1.0"
    events.rename(events.with_name("events.out.tfevents.2.host.1.0"))
    assert [path.name for path in (linked.path / "seed-1" / "ada").iterdir()] == ["events.out.tfevents.2.host.1.0"]


def test_names_of_several_sweeps_begin_with_the_sweep(tmp_path: Path) -> None:
    only = run_with_curves(tmp_path / "one" / "run-33333333")
    run_with_curves(tmp_path / "two" / "run-33333333")
    run_with_curves(tmp_path / "two" / "seed-1-44444444")
    assert names(link_curves([only], tmp_path / "a").path) == ["one/ada", "one/team"]
    found = names(link_curves([tmp_path / "one", tmp_path / "two"], tmp_path / "b").path)
    assert found == [f"{run}/{name}" for run in ("one", "two/run", "two/seed-1") for name in ("ada", "team")]


def test_what_cannot_be_linked(tmp_path: Path) -> None:
    run_with_curves(tmp_path / "x" / "same" / "run-33333333")
    twin = run_with_curves(tmp_path / "y" / "same" / "seed-1-44444444")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"y/same and .*x/same have the same name; give one of them at a time"):
        link_curves([tmp_path / "y" / "same", tmp_path / "x" / "same"], tmp_path / "curves")
    with pytest.raises(InputError, match="is not empty; give another folder as --out"):
        link_curves([twin], twin)
    assert contents(tmp_path) == before
    (tmp_path / "p.jsonl").write_text('{"problem": "a", "model": "ada", "sample": 0, "answer": "1", "correct": true}\n')
    imported = import_predictions(tmp_path / "p.jsonl", tmp_path / "imported").path
    with pytest.raises(InputError, match=r"imported: no run has curves for TensorBoard"):
        link_curves([imported], tmp_path / "curves")
    linked = link_curves([imported, twin], tmp_path / "curves")
    assert linked.notes == [f"{imported}: has no curves for TensorBoard"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_with_curves(tmp_path / "first" / "seed-1-25b396c0")
    assert main(["tensorboard", str(tmp_path / "first"), "--out", str(tmp_path / "curves")]) == 0
    out = capsys.readouterr().out
    assert out == f"written: {tmp_path}/curves: seed-1\nopen with: tensorboard --logdir {tmp_path}/curves\n"
