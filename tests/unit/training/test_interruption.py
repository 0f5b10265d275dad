"""Checkpoints of an update: the newest complete one is found, and old ones are removed."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest

from core_hpc.phases import checkpoint
from core_hpc.phases.checkpoint import CheckpointStore, remove_checkpoints
from core_hpc.store import manifests, parquet, shards
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import STEPS, UPDATE
from core_hpc.training.interruption import Checkpoint
from core_hpc.training.trainer import Trainer
from tests.support.harness import flip_a_byte

KEY = TaskKey(1, UPDATE, "m0")
IDENTITY = {"run_id": "r", "rows": "abc", "total_steps": 40}


def steps(num_steps: int) -> pl.DataFrame:
    values = {
        c: [1] * num_steps if t.is_integer() else [0.1] * num_steps
        for c, t in STEPS.schema.items()
        if c not in ("run_id", "model")
    }
    frame = pl.DataFrame({**values, "step": range(1, num_steps + 1)}).drop("iteration")
    return frame.cast({c: t for c, t in STEPS.schema.items() if c in frame.columns})


@dataclass
class FakeCheckpoint:
    steps: pl.DataFrame
    error: OSError | None = None

    def write(self, folder: Path) -> None:
        (folder / "optimizer.safetensors").write_bytes(b"weights of step %d" % self.steps.height)
        if self.error is not None:
            raise self.error


class RankZero:
    rank = 0

    def from_rank_zero(self, value: int) -> int:
        return value


def save(checkpoints: CheckpointStore, num_steps: int, error: OSError | None = None) -> bool:
    return checkpoints.save(cast(Checkpoint, FakeCheckpoint(steps(num_steps), error)))


def found_step(paths: RunPaths, key: TaskKey = KEY, **identity: Any) -> int:
    """Steps done at the checkpoint from which a new attempt would continue."""
    found = CheckpointStore(paths, key, {**IDENTITY, **identity}).find(cast(Trainer, RankZero()))
    if found is None:
        return 0
    assert (found.folder / "optimizer.safetensors").read_bytes() == b"weights of step %d" % found.steps.height
    assert found.steps.equals(steps(found.steps.height))
    return found.steps.height


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path)


@pytest.fixture
def checkpoints(paths: RunPaths) -> CheckpointStore:
    return CheckpointStore(paths, KEY, IDENTITY)


def names(paths: RunPaths) -> list[str]:
    return sorted(p.name for p in paths.checkpoint_folder(KEY).iterdir())


def test_the_newest_two_are_kept(paths: RunPaths, checkpoints: CheckpointStore) -> None:
    assert found_step(paths) == 0
    for num_steps in (3, 20, 100, 9999, 10000):
        assert save(checkpoints, num_steps)
        assert found_step(paths) == num_steps
    assert len(names(paths)) == 4
    assert [n for n in names(paths) if n.endswith(".json")] == [
        "m0-p000-step10000.manifest.json",
        "m0-p000-step9999.manifest.json",
    ]


def test_a_checkpoint_is_no_result(paths: RunPaths, checkpoints: CheckpointStore) -> None:
    save(checkpoints, 1)
    assert shards.published_keys(paths.root) == []


def test_models_do_not_see_the_checkpoints_of_each_other(paths: RunPaths, checkpoints: CheckpointStore) -> None:
    other = TaskKey(1, UPDATE, "m0-p000-step0007")
    save(checkpoints, 1)
    save(CheckpointStore(paths, other, IDENTITY), 5)
    assert (found_step(paths), found_step(paths, other)) == (1, 5)
    remove_checkpoints(paths, KEY)
    assert (found_step(paths), found_step(paths, other)) == (0, 5)
    remove_checkpoints(paths, other)
    assert not paths.checkpoint_folder(KEY).exists()
    remove_checkpoints(paths, other)


def lose_data(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()


def alter_data(folder: Path) -> None:
    (folder / "optimizer.safetensors").write_bytes(b"weights of step 9")


def alter_steps(folder: Path) -> None:
    flip_a_byte(folder / "steps.parquet")


def tear_manifest(folder: Path) -> None:
    path = folder.parent / "m0-p000-step0002.manifest.json"
    path.write_bytes(path.read_bytes()[:-20])


def other_schema(folder: Path) -> None:
    path = folder.parent / "m0-p000-step0002.manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 999}))


@pytest.mark.parametrize("damage", [lose_data, alter_data, alter_steps, tear_manifest, other_schema])
def test_a_damaged_checkpoint_is_removed_and_the_one_before_is_used(
    paths: RunPaths,
    checkpoints: CheckpointStore,
    damage: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(manifests, "VISIBILITY_DELAYS_S", (0.01,))
    save(checkpoints, 1)
    save(checkpoints, 2)
    (folder,) = (p for p in paths.checkpoint_folder(KEY).glob("m0-p000-step0002.*") if p.is_dir())
    damage(folder)
    assert found_step(paths) == 1
    assert "removed a checkpoint that cannot be used" in caplog.text
    assert not [n for n in names(paths) if "step0002" in n]
    assert save(checkpoints, 2)
    assert found_step(paths) == 2


def test_a_checkpoint_of_another_update_is_refused(
    paths: RunPaths, checkpoints: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    save(checkpoints, 1)
    save(checkpoints, 2)
    assert found_step(paths, rows="abd", seed=1) == 0
    assert caplog.text.count("they differ in rows, seed") == 2
    assert names(paths) == []


def unreadable_manifest(monkeypatch: pytest.MonkeyPatch, errors: list[OSError]) -> None:
    read_bytes = Path.read_bytes

    def read(path: Path) -> bytes:
        if path.name.endswith(".manifest.json") and errors:
            raise errors.pop()
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)


def unreadable_table(monkeypatch: pytest.MonkeyPatch, errors: list[OSError]) -> None:
    read_parquet = parquet.read

    def read(path: Path, **options: Any) -> pl.DataFrame:
        if errors:
            raise errors.pop()
        return read_parquet(path, **options)

    monkeypatch.setattr(parquet, "read", read)


def unreadable_data(monkeypatch: pytest.MonkeyPatch, errors: list[OSError]) -> None:
    sha256_file = manifests.sha256_file

    def read(path: Path) -> str:
        if errors:
            raise errors.pop()
        return sha256_file(path)

    monkeypatch.setattr(manifests, "sha256_file", read)


@pytest.mark.parametrize("unreadable", [unreadable_manifest, unreadable_table, unreadable_data])
def test_a_checkpoint_that_cannot_be_read_for_a_moment_is_kept(
    paths: RunPaths,
    checkpoints: CheckpointStore,
    unreadable: Callable[[pytest.MonkeyPatch, list[OSError]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "READ_RETRIES_S", (0.0, 0.0))
    save(checkpoints, 1)
    save(checkpoints, 2)
    before = names(paths)
    errors = [OSError(errno.EIO, "Input/output error")] * 9
    unreadable(monkeypatch, errors)
    with pytest.raises(manifests.UnreadableError, match="Input/output error"):
        found_step(paths)
    assert names(paths) == before
    del errors[1:]
    assert found_step(paths) == 2


def test_a_full_disk_costs_only_the_checkpoint(
    paths: RunPaths, checkpoints: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    save(checkpoints, 1)
    assert not save(checkpoints, 2, OSError(errno.ENOSPC, "No space left on device"))
    assert "no checkpoint after step 2" in caplog.text
    assert found_step(paths) == 1


def test_files_of_killed_writers_are_removed_with_the_others(paths: RunPaths, checkpoints: CheckpointStore) -> None:
    save(checkpoints, 1)
    folder = paths.checkpoint_folder(KEY)
    for name in (".m0-p000-step0002.0123456789ab.tmp", "m0-p000-step0002.0123456789ab"):
        (folder / name).mkdir()
        (folder / name / "optimizer.safetensors").touch()
    (folder / ".m0-p000-step0002.manifest.json.0123456789ab.tmp").touch()
    assert found_step(paths) == 1
    save(checkpoints, 3)
    save(checkpoints, 4)
    assert not [n for n in names(paths) if "step0002" in n]
    (folder / ".m0-p000-step0009.0123456789ab.tmp").mkdir()
    remove_checkpoints(paths, KEY)
    assert not folder.exists()


def test_a_checkpoint_that_another_attempt_removes_meanwhile_is_no_error(
    paths: RunPaths, checkpoints: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    class Removing(FakeCheckpoint):
        def write(self, folder: Path) -> None:
            super().write(folder)
            remove_checkpoints(paths, KEY)

    assert not checkpoints.save(cast(Checkpoint, Removing(steps(1))))
    assert save(checkpoints, 2)


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
