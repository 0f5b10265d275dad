"""The files of a published update, in the folder layout of this version and of earlier ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core_hpc.common.errors import StoreError
from core_hpc.phases import update
from core_hpc.store import manifests
from core_hpc.store.leftovers import remove_leftovers
from core_hpc.store.manifests import Manifest
from core_hpc.store.paths import EARLIER_OPTIMIZER_STATE, OPTIMIZER_STATE
from core_hpc.training.state_io import PARTS, TrainingState, read_state, write_position

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
