"""The files of a published update, in the folder layout of this version and of earlier ones."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

import pytest
import torch

from core_hpc.common.errors import StoreError
from core_hpc.phases import update
from core_hpc.store import manifests
from core_hpc.store.leftovers import remove_leftovers
from core_hpc.store.manifests import DamagedError, Manifest
from core_hpc.store.paths import EARLIER_OPTIMIZER_STATE, OPTIMIZER_STATE, OPTIMIZER_STATES
from core_hpc.training.state_io import PARTS, TrainingState, read_state, write_position
from tests.support.harness import flip_a_byte

NAMES = ("layer.weight", "head.weight")


def state() -> TrainingState:
    generator = torch.Generator().manual_seed(1)
    return TrainingState({part: {n: torch.randn(2, 3, generator=generator) for n in NAMES} for part in PARTS}, 5)


def as_earlier_version(folder: Path) -> None:
    """Move the optimizer state to where earlier versions wrote it."""
    (folder / OPTIMIZER_STATE).rename(folder / EARLIER_OPTIMIZER_STATE)
    (folder / OPTIMIZER_STATE).parent.rmdir()


def publish(folder: Path, *, earlier: bool = False) -> Manifest:
    def fill(temporary: Path) -> dict[str, tuple[int, str]]:
        write_position(temporary, state(), {})
        (temporary / "model.safetensors").write_bytes(b"weights")
        if earlier:
            as_earlier_version(temporary)
        return {}

    return manifests.publish(folder, "m0-p000", fill, as_folder=True)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_published_state_is_read(tmp_path: Path, earlier: bool) -> None:
    manifest = publish(tmp_path, earlier=earlier)
    manifests.check_files(manifest, checksum=True)
    found = read_state(manifest.folder, dict.fromkeys(NAMES, torch.Size([2, 3])))
    assert found.steps_done == 5
    assert all(torch.equal(found.parts[p][n], state().parts[p][n]) for p in PARTS for n in NAMES)


def test_only_the_weights_of_the_model_lie_in_the_folder_itself(tmp_path: Path) -> None:
    """An engine loads every safetensors file that it finds there."""
    folder = publish(tmp_path).folder
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]


def test_the_next_update_knows_the_optimizer_state_of_both_layouts(tmp_path: Path) -> None:
    """A checkpoint of an update is found again after a change of version."""
    now, before = publish(tmp_path / "now"), publish(tmp_path / "before", earlier=True)
    assert len(update._optimizer_checksum(now)) == 1
    assert update._optimizer_checksum(now) == update._optimizer_checksum(before)


def test_a_task_that_does_not_read_the_optimizer_does_not_hash_it(tmp_path: Path) -> None:
    """With tuning: full it has six times the size of the weights, and every generation task would read it."""
    manifest = publish(tmp_path)
    flip_a_byte(manifest.folder / OPTIMIZER_STATE)
    manifests.check_files(manifest, checksum=True, unread=OPTIMIZER_STATES)
    with pytest.raises(DamagedError, match="optimizer"):
        manifests.check_files(manifest, checksum=True)
    flip_a_byte(manifest.folder / "model.safetensors")
    with pytest.raises(DamagedError, match=r"model\.safetensors"):
        manifests.check_files(manifest, checksum=True, unread=OPTIMIZER_STATES)


def test_an_error_of_the_file_system_keeps_its_number(tmp_path: Path) -> None:
    """safetensors has one kind of error for all, so that a full disk looked like a damaged file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            write_position(tmp_path, state(), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(tmp_path / OPTIMIZER_STATE))


def test_a_folder_without_the_state_is_an_error(tmp_path: Path) -> None:
    write_position(tmp_path, state(), {})
    (tmp_path / OPTIMIZER_STATE).unlink()
    with pytest.raises(StoreError, match="not a complete folder of an update"):
        read_state(tmp_path, dict.fromkeys(NAMES, torch.Size([2, 3])))


def test_a_subfolder_of_an_unfinished_publication_is_removed(tmp_path: Path) -> None:
    kept = publish(tmp_path)
    left = tmp_path / "m0-p000.0123456789ab"
    left.mkdir()
    write_position(left, state(), {})
    assert remove_leftovers(tmp_path) == 1
    assert (not left.exists(), kept.folder.exists()) == (True, True)
