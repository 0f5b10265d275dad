"""The adapters with which models of a run begin: copied at the first start, verified at every use.

In: `team[].adapter`, and the digest that preparation found. Out: a published folder per model in
the run folder. So a run is complete by itself, and what happens to the source later does not
matter. Which adapter a reference means, and whether it fits, is decided in `models/adapters.py`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from core_hpc.common.errors import InputError, StoreError
from core_hpc.config.model import ModelSection
from core_hpc.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_digest, copy_adapter, find_adapter
from core_hpc.store import manifests
from core_hpc.store.manifests import DamagedError
from core_hpc.store.paths import RunPaths

if TYPE_CHECKING:
    from core_hpc.runs.folder import Run


def freeze_adapter(paths: RunPaths, model: ModelSection, digest: str) -> None:
    """Copy the adapter of a model into the run folder, unless a complete copy is there.

    Args:
        paths: Of the run.
        model: A model with `adapter`.
        digest: What the adapter must have, as recorded in `run.json`.

    Raises:
        InputError: The source is missing, or has another content now.
    """
    assert model.adapter is not None
    if _damage(paths, model.name) is None:
        copied = manifests.read_manifest(paths.adapter_manifest(model.name)).folder
        if adapter_digest(copied) == digest:
            return
    source = find_adapter(model.adapter, name=model.name).folder
    if adapter_digest(source) != digest:
        raise InputError(f"team {model.name}: the adapter in {source} is not the one with which the run was started")
    with contextlib.suppress(FileNotFoundError):
        manifests.set_aside(paths.adapter_manifest(model.name))

    def fill(folder: Path) -> dict[str, tuple[int, str]]:
        copy_adapter(source, folder)
        return {}

    manifests.publish(paths.adapters, model.name, fill, as_folder=True, stats=lambda: {"source": model.adapter})


def frozen_adapter(run: Run, model: str) -> Path:
    """Folder of the adapter with which a model begins, with checksums verified.

    Raises:
        DamagedError: The copy is damaged. `restore_adapters` makes it again.
        StoreError: There is none.
    """
    return _verified(run.paths, model)


def restore_adapters(run: Run) -> list[str]:
    """Check the copies of adapters in a run folder, and make damaged ones again from their source.

    Only the holder of the sweep's claim may call this.

    Returns:
        One message per adapter that was copied again.

    Raises:
        StoreError: A copy is damaged and cannot be made again. The message names what to restore.
    """
    messages = []
    for model in run.config.team:
        damage = _damage(run.paths, model.name) if model.adapter is not None else None
        if damage is None:
            continue
        try:
            freeze_adapter(run.paths, model, run.facts[model.name].adapter)
        except (InputError, StoreError) as e:
            raise StoreError(
                f"{damage}. The source does not help: {e}\nRestore {run.paths.adapters / model.name}.* from a "
                "backup, or start a new run (--set name=...)"
            ) from e
        messages.append(f"damaged: {damage}; copied again from {model.adapter}")
    return messages


def _damage(paths: RunPaths, model: str) -> StoreError | None:
    """What is wrong with the copy of an adapter, or None."""
    try:
        _verified(paths, model)
    except DamagedError as e:
        return e
    except StoreError as e:
        if manifests.is_file(paths.adapter_manifest(model)):  # of another version, or the file system does not answer
            raise
        return e
    return None


def _verified(paths: RunPaths, model: str) -> Path:
    manifest = manifests.read_manifest(paths.adapter_manifest(model))
    manifests.check_files(manifest, checksum=True)
    if {Path(entry.name).name for entry in manifest.files} != {ADAPTER_CONFIG, ADAPTER_WEIGHTS}:
        raise DamagedError(manifest.path, f"{manifest.path}: does not name the two files of an adapter")
    return manifest.folder
