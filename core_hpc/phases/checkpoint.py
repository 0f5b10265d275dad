"""Checkpoints of an update that is not published yet: storing and finding them.

In: positions of an update between two optimizer steps (`training/interruption.py`). Out:
publications in the run's folder of checkpoints, which only the next attempt of the same task reads.
The newest two are kept, and none after the update itself is published. They are no results: a
checkpoint that is damaged or belongs to another update is removed, and at worst the update starts
from the beginning. One that cannot be read now stays. This module does not decide when a checkpoint
is taken.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import re
import shutil
import socket
import time
from collections.abc import Callable
from functools import partial
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
READ_RETRIES_S = (1.0, 5.0, 15.0, 40.0)
"""Waits between attempts to read a checkpoint while the file system reports errors."""
log = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one update task."""

    def __init__(self, paths: RunPaths, key: TaskKey, identity: dict[str, Any]) -> None:
        """Open the store; nothing is read yet.

        Args:
            identity: plain data, with `run_id`; equal for two attempts if they compute the same.
        """
        self._folder = paths.checkpoint_folder(key)
        self._paths, self._key, self._identity = paths, key, identity

    def find(self, trainer: Trainer) -> ResumePoint | None:
        """The newest checkpoint that is complete and of this task, or None.

        Collective: rank 0 chooses for all ranks.

        Raises:
            StoreError: a checkpoint cannot be read now, or this rank cannot read the one that rank 0 chose.
        """
        if trainer.rank == 0:
            found = self._newest()
            trainer.from_rank_zero(found.steps.height if found else 0)
            return found
        num_steps = trainer.from_rank_zero(0)
        return self._chosen(num_steps) if num_steps else None

    def save(self, checkpoint: Checkpoint) -> bool:
        """Publish a checkpoint and remove old ones; only on rank 0.

        Returns:
            False if it could not be published. The failure is logged, and the update can continue.
        """
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
        log.info("%s: stored a checkpoint after step %d", self._key, num_steps)
        return True

    def _manifest_path(self, num_steps: int) -> Path:
        return self._folder / f"{self._paths.checkpoint_name(self._key, num_steps)}{MANIFEST_SUFFIX}"

    def _stored(self) -> list[int]:
        return stored_steps(self._paths, self._key)

    def _newest(self) -> ResumePoint | None:
        for num_steps in self._stored():
            try:
                found = self._load(num_steps)
            except manifests.UnreadableError:
                raise  # no proof of damage: the next attempt may continue from it
            except StoreError as e:
                # If it stayed, the new checkpoint after the same step could not be published.
                log.warning("%s: removed a checkpoint that cannot be used: %s", self._key, e)
                _remove(self._paths, self._key, partial(operator.eq, num_steps))
            else:
                log.info("%s: continues from its checkpoint after step %d", self._key, num_steps)
                return found
        return None

    def _chosen(self, num_steps: int) -> ResumePoint:
        path = self._manifest_path(num_steps)
        if not manifests.is_visible(path, published_s=time.time()):
            raise StoreError(
                f"{path}: rank 0 continues from this checkpoint, but {socket.gethostname()} does not see it; "
                "is the run folder on a file system that all nodes of the update share?"
            )
        try:
            return self._load(num_steps)
        except manifests.DamagedError as e:
            # Rank 0 has just found it complete. Reported as damage, it would cause a task of another
            # phase to run again.
            raise StoreError(
                f"{e}; rank 0 could read this checkpoint, but {socket.gethostname()} could not; "
                "is the run folder on a file system that all nodes of the update share?"
            ) from e

    def _load(self, num_steps: int) -> ResumePoint:
        """Read a checkpoint, with some patience for the file system."""
        for delay_s in READ_RETRIES_S:
            try:
                return self._read(num_steps)
            except (OSError, manifests.UnreadableError) as e:
                log.warning("%s: %s; reading the checkpoint again in %g s", self._key, e, delay_s)
                time.sleep(delay_s)
        try:
            return self._read(num_steps)
        except OSError as e:
            raise manifests.UnreadableError(f"{self._manifest_path(num_steps)}: cannot be read ({e})") from e

    def _read(self, num_steps: int) -> ResumePoint:
        from core_hpc.training.interruption import ResumePoint

        manifest = manifests.read_manifest(self._manifest_path(num_steps))
        stored = manifest.stats.get("identity", {})
        if differing := sorted(k for k in {*stored, *self._identity} if stored.get(k) != self._identity.get(k)):
            raise StoreError(f"{manifest.path}: belongs to another update; they differ in {', '.join(differing)}")
        steps = shards.read_manifest_table(manifest, STEPS, checksum=True)
        if steps["step"].to_list() != list(range(1, num_steps + 1)):
            raise StoreError(f"{manifest.path}: does not contain the steps 1 to {num_steps}")
        return ResumePoint(manifest.folder, steps.drop("run_id", "iteration", "model"))


def stored_steps(paths: RunPaths, key: TaskKey) -> list[int]:
    """Optimizer steps done at each checkpoint of an update, newest first."""
    names, folder = _names(paths, key), paths.checkpoint_folder(key)
    return sorted((int(m[1]) for p in manifests.list_manifests(folder) if (m := names.fullmatch(p.name))), reverse=True)


def write_steps(folder: Path, steps: pl.DataFrame, run_id: str, key: TaskKey) -> tuple[int, str]:
    """Write the metrics of an update's steps as a complete table.

    Returns:
        (number of rows, name of the table), for the manifest.
    """
    identity = {"run_id": pl.lit(run_id), "iteration": pl.lit(key.iteration, pl.Int32), "model": pl.lit(key.model)}
    return shards.write_frame(
        folder / "steps.parquet", steps.with_columns(**identity).select(list(STEPS.schema)), STEPS
    )


def remove_checkpoints(paths: RunPaths, key: TaskKey) -> None:
    """Remove all files of an update's checkpoints, as far as that is possible."""
    _remove(paths, key, lambda num_steps: True)
    with contextlib.suppress(OSError):  # not empty: the update of another model is in progress
        paths.checkpoint_folder(key).rmdir()


def _names(paths: RunPaths, key: TaskKey) -> re.Pattern[str]:
    """Pattern of the file names of a task's checkpoints, including those left by a killed writer.

    Group 1 is the number of steps. A copy that a user made has another form of name, and is kept.
    """
    uid = "[0-9a-f]{12}"
    aside = rf"{re.escape(manifests.SET_ASIDE)}[0-9a-f]{{8}}"
    manifest = rf"{re.escape(MANIFEST_SUFFIX.removeprefix('.'))}(\.{uid}\.tmp|{aside})?"
    return re.compile(rf"\.?{re.escape(paths.task_name(key))}-step(\d+)\.({manifest}|{uid}(\.tmp)?)")


def _remove(paths: RunPaths, key: TaskKey, which: Callable[[int], bool]) -> None:
    """Remove checkpoints, manifests first. Another attempt may do the same meanwhile."""
    folder, names = paths.checkpoint_folder(key), _names(paths, key)
    with contextlib.suppress(OSError):
        found = [p for p in folder.iterdir() if (m := names.fullmatch(p.name)) and which(int(m[1]))]
        for path in sorted(found, key=lambda p: not p.name.endswith(MANIFEST_SUFFIX)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
