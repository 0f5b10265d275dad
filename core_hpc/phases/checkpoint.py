"""Checkpoints of an update that has not published yet: storing them, and finding the one to go on from.

In: positions of an update between two optimizer steps (training/checkpoint.py). Out: publications of store.py beside
the phases, which only the next attempt of the same task reads. The newest two are kept, none once the update itself is
published. They are no results: a damaged or foreign one is removed, and at worst the update starts anew.
When a checkpoint is taken is not decided here.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core_hpc.common.errors import StoreError
from core_hpc.store import manifests, shards
from core_hpc.store.paths import MANIFEST_SUFFIX, RunPaths, TaskKey
from core_hpc.store.schema import STEPS

if TYPE_CHECKING:
    from core_hpc.training.interruption import Checkpoint, ResumePoint
    from core_hpc.training.trainer import Trainer

NUM_KEPT = 2
log = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one update task."""

    def __init__(self, paths: RunPaths, key: TaskKey, identity: dict[str, Any]) -> None:
        """`identity` is plain data, with `run_id`: two attempts share it exactly when they compute the same."""
        self._folder = paths.checkpoint_folder(key)
        self._paths, self._key, self._identity = paths, key, identity

    def find(self, trainer: Trainer) -> ResumePoint | None:
        """The newest checkpoint that is whole and of this very task, or None. Collective: rank 0 chooses for all.

        Raises:
            StoreError: this rank cannot read what rank 0 chose.
        """
        if trainer.rank == 0:
            found = self._newest()
            trainer.from_rank_zero(found.steps.height if found else 0)
            return found
        num_steps = trainer.from_rank_zero(0)
        return self._chosen(num_steps) if num_steps else None

    def save(self, checkpoint: Checkpoint) -> bool:
        """Publish a checkpoint and remove old ones. Only rank 0. A failure is logged and costs the checkpoint only."""
        num_steps = checkpoint.steps.height

        def fill(folder: Path) -> dict[str, tuple[int, str]]:
            checkpoint.write(folder)
            return {"steps.parquet": write_steps(folder, checkpoint.steps, self._identity["run_id"], self._key)}

        name = self._paths.checkpoint_name(self._key, num_steps)
        try:
            manifests.publish(self._folder, name, fill, as_folder=True, stats=lambda: {"identity": self._identity})
            oldest_kept = min(self._stored()[:NUM_KEPT], default=0)
        except (OSError, StoreError, pl.exceptions.PolarsError) as e:
            log.warning("%s: no checkpoint after step %d (%s: %s)", self._key, num_steps, type(e).__name__, e)
            return False
        _remove(self._paths, self._key, lambda n: n < oldest_kept)
        log.info("%s: checkpoint after step %d", self._key, num_steps)
        return True

    def _manifest_path(self, num_steps: int) -> Path:
        return self._folder / f"{self._paths.checkpoint_name(self._key, num_steps)}{MANIFEST_SUFFIX}"

    def _stored(self) -> list[int]:
        return stored_steps(self._paths, self._key)

    def _newest(self) -> ResumePoint | None:
        for num_steps in self._stored():
            try:
                found = self._load(num_steps)
            except StoreError as e:
                # Else it would stand in the way of the checkpoint after the same step.
                log.warning("%s: a checkpoint is not used, and removed: %s", self._key, e)
                _remove(self._paths, self._key, lambda n, bad=num_steps: n == bad)  # type: ignore[misc]
            else:
                log.info("%s: goes on from its checkpoint after step %d", self._key, num_steps)
                return found
        return None

    def _chosen(self, num_steps: int) -> ResumePoint:
        path = self._manifest_path(num_steps)
        if not manifests.is_visible(path, published_s=time.time()):
            raise StoreError(
                f"{path}: rank 0 goes on from this checkpoint, but {socket.gethostname()} does not see it; "
                "is the run folder on a file system that all nodes of the update share?"
            )
        try:
            return self._load(num_steps)
        except (
            manifests.DamagedError
        ) as e:  # rank 0 has just found it whole; what reports damage would make a phase task again
            raise StoreError(
                f"{e}; rank 0 goes on from this checkpoint, but {socket.gethostname()} reads it otherwise"
            ) from e

    def _load(self, num_steps: int) -> ResumePoint:
        from core_hpc.training.interruption import ResumePoint

        manifest = manifests.read_manifest(self._manifest_path(num_steps))
        stored = manifest.stats.get("identity", {})
        if differing := sorted(k for k in {*stored, *self._identity} if stored.get(k) != self._identity.get(k)):
            raise StoreError(f"{manifest.path}: of another update; they differ in {', '.join(differing)}")
        steps = shards.read_manifest_table(manifest, STEPS, checksum=True)
        if steps["step"].to_list() != list(range(1, num_steps + 1)):
            raise StoreError(f"{manifest.path}: does not hold the steps 1 to {num_steps}")
        return ResumePoint(manifest.file("optimizer.safetensors").parent, steps.drop("run_id", "iteration", "model"))


def stored_steps(paths: RunPaths, key: TaskKey) -> list[int]:
    """Steps done at each checkpoint of an update, newest first."""
    names, folder = _names(paths, key), paths.checkpoint_folder(key)
    return sorted((int(m[1]) for p in manifests.list_manifests(folder) if (m := names.fullmatch(p.name))), reverse=True)


def write_steps(folder: Path, steps: pl.DataFrame, run_id: str, key: TaskKey) -> tuple[int, str]:
    """Write the metrics of an update's steps as a complete table; returns (rows, table name) for its manifest."""
    identity = {"run_id": pl.lit(run_id), "iteration": pl.lit(key.iteration, pl.Int32), "model": pl.lit(key.model)}
    return shards.write_frame(
        folder / "steps.parquet", steps.with_columns(**identity).select(list(STEPS.schema)), STEPS
    )


def remove_checkpoints(paths: RunPaths, key: TaskKey) -> None:
    """Remove every trace of an update's checkpoints, as far as that is possible."""
    _remove(paths, key, lambda num_steps: True)
    with contextlib.suppress(OSError):  # not empty: another model's update is under way
        paths.checkpoint_folder(key).rmdir()


def _names(paths: RunPaths, key: TaskKey) -> re.Pattern[str]:
    """File names of checkpoints of a task, with those that a killed writer left; group 1 is the number of steps."""
    return re.compile(rf"\.?{re.escape(paths.task_name(key))}-step(\d+)\..+")


def _remove(paths: RunPaths, key: TaskKey, which: Callable[[int], bool]) -> None:
    """Remove checkpoints, manifests first. Another attempt of the task may be doing the same."""
    folder, names = paths.checkpoint_folder(key), _names(paths, key)
    with contextlib.suppress(OSError):
        found = [p for p in folder.iterdir() if (m := names.fullmatch(p.name)) and which(int(m[1]))]
        for path in sorted(found, key=lambda p: not p.name.endswith(MANIFEST_SUFFIX)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
