"""The frozen problems of a run: checked at every start, and made again if they are damaged.

In: a run. Out: messages about what was made again. Problems are made again only if their source
gives the same problems as at the first start. Otherwise the run cannot continue, because its
results would belong to other problems; the error names what to restore.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from core_hpc.common.errors import InputError, StoreError
from core_hpc.problems.sets import all_problems
from core_hpc.problems.splits import SPLITS, problems_digest, warmup_split
from core_hpc.runs.folder import Run, read_identity
from core_hpc.store import manifests, parquet, shards
from core_hpc.store.manifests import DamagedError, sha256_file
from core_hpc.store.schema import PROBLEMS


def restore_problems(run: Run) -> list[str]:
    """Check the frozen problems of a run, and make damaged ones again from their source.

    Only the holder of the sweep's claim, or a job of this sweep, may call this.

    Returns:
        One message per split that was made again.

    Raises:
        StoreError: Problems are damaged and cannot be made again. The message names what to restore.
    """
    damaged = {name: error for name in _names(run) if (error := _damage(run, name)) is not None}
    if not damaged:
        return []
    where = ", ".join(str(run.paths.problems / f"{name}.*") for name in damaged)
    advice = f"Restore {where} from a backup, or start a new run (--set name=...)"
    try:
        made = all_problems(run.config).by_name()
    except InputError as e:
        raise StoreError(f"{'; '.join(map(str, damaged.values()))}. The source does not help: {e}\n{advice}") from e
    for name, error in damaged.items():
        if not _is_as_frozen(run, name, made[name]):
            raise StoreError(
                f"{error}. The source of the problems gives other problems now, or it cannot be proven that they are "
                f"the same\n{advice}"
            )
    return [_make_again(run, name, made[name], error) for name, error in damaged.items()]


def _names(run: Run) -> list[str]:
    """The splits, and the problems of warm-ups."""
    return [*SPLITS, *(warmup_split(m.name) for m in run.config.team if m.warmup is not None)]


def _damage(run: Run, name: str) -> StoreError | None:
    """What is wrong with a split, or None."""
    try:
        run.split(name)
    except DamagedError as e:
        return e
    except StoreError as e:
        path = _manifest_path(run, name)
        if manifests.is_file(path):  # of another version, or the file system does not answer: that is no damage
            raise
        return e
    return None


def _manifest_path(run: Run, name: str) -> Path:
    return run.paths.problems / f"{name}.manifest.json"


def _is_as_frozen(run: Run, name: str, frame: pl.DataFrame) -> bool:
    """Whether problems that were made again are those of the first start.

    Runs of earlier versions have no digest in `run.json`. For them the checksum in the manifest
    decides, or a data file with the same problems.
    """
    recorded = read_identity(run.root).get("problems", {}).get(name)
    if recorded is not None:
        return bool(recorded == problems_digest(frame))
    with contextlib.suppress(StoreError), TemporaryDirectory() as folder:
        path = Path(folder, "shard.parquet")
        shards.write_frame(path, frame, PROBLEMS)
        if manifests.read_manifest(_manifest_path(run, name)).files[0].sha256 == sha256_file(path):
            return True
    return any(_has(path, frame) for path in run.paths.problems.glob(f"{name}.*.parquet"))


def _has(path: Path, frame: pl.DataFrame) -> bool:
    """Whether a file has exactly these problems."""
    try:
        return parquet.read(path).equals(frame)
    except (pl.exceptions.PolarsError, OSError):
        return False


def _make_again(run: Run, name: str, frame: pl.DataFrame, error: StoreError) -> str:
    aside = ""
    with contextlib.suppress(FileNotFoundError):  # the manifest is missing, or a job was faster
        aside = f"; set aside as {manifests.set_aside(_manifest_path(run, name)).name}"
    shards.publish_frame(run.paths.problems, name, frame, PROBLEMS)
    return f"damaged: {error}{aside}, and made again from the same source"
