"""Cached counts: counts that are stored in the run folder, so that they are not computed again.

The input is a run folder. The output is the counts of every iteration whose cached counts are still
valid. Cached counts are valid while the folders that they were counted from hold exactly the same
files, by name and size. This is enough, because every publication has its own file names. Invalid
cached counts are ignored; the caller then counts the shards (`counts/load.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import polars as pl

from analysis.counts.counts import ANSWERS, COUNTS, Counted
from analysis.counts.scan import in_threads
from core_hpc.common.errors import StoreError
from core_hpc.store import manifests, parquet
from core_hpc.store.leftovers import remove_leftovers
from core_hpc.store.manifests import Manifest
from core_hpc.store.paths import MANIFEST_SUFFIX, RunPaths, phase_iteration
from core_hpc.store.schema import GENERATION_PHASES

_COUNTS_FILE = "counts.parquet"
_FILES = {_COUNTS_FILE: COUNTS, "answers.parquet": ANSWERS}


def read(run: Path, *, answers: bool, iterations: Collection[int] | None = None) -> dict[int, Counted]:
    """Read the valid cached counts of a run, by iteration.

    Args:
        run: the run folder.
        answers: also read the answer counts; without it these frames are empty.
        iterations: the iterations to read; default: all.
    """
    valid = {i: found for i, found in _valid_manifests(run).items() if iterations is None or i in iterations}
    found = in_threads(lambda manifest: _frames(manifest, answers=answers), valid.values())
    return {iteration: counted for iteration, counted in zip(valid, found, strict=True) if counted is not None}


def iterations(run: Path) -> set[int]:
    """Return the iterations that have valid cached counts."""
    return set(_valid_manifests(run))


def _valid_manifests(run: Path) -> dict[int, Manifest]:
    def read_valid(path: Path) -> Manifest | None:
        iteration = _iteration_of(path)
        if iteration is None:
            return None
        try:
            manifest = manifests.read_manifest(path)
            return manifest if manifest.stats.get("sources") == sources(run, iteration) else None
        except (StoreError, OSError):
            return None  # the cache is optional: the shards are counted instead

    found = in_threads(read_valid, manifests.list_manifests(RunPaths(run).kept))
    valid = [(_iteration_of(manifest.path), manifest) for manifest in found if manifest is not None]
    return {iteration: manifest for iteration, manifest in valid if iteration is not None}


def _iteration_of(manifest: Path) -> int | None:
    """The iteration of cached counts; None if the name is not that of cached counts."""
    return phase_iteration(manifest.name.removesuffix(MANIFEST_SUFFIX))


def _frames(manifest: Manifest, *, answers: bool) -> Counted | None:
    try:
        manifests.check_files(manifest, checksum=True)
        frames = [
            parquet.read(manifest.file(f"/{name}"), num_rows=None if answers or name == _COUNTS_FILE else 0)
            for name in _FILES
        ]
    except (StoreError, ValueError, pl.exceptions.PolarsError, OSError):
        return None
    if any(frame.schema != schema for frame, schema in zip(frames, _FILES.values(), strict=True)):
        return None
    return Counted(*frames)


def sources(run: Path, iteration: int) -> dict[str, list[list[Any]]]:
    """List the names and sizes of the published files with rollouts of an iteration, by phase."""
    listing = {}
    for phase in GENERATION_PHASES:
        folder = RunPaths(run).phase_folder(phase, iteration)
        names = sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
        listing[phase] = [[path.name, path.stat().st_size] for path in names]
    return listing


def write(run: Path, iteration: int, counted: Counted, listing: dict[str, list[list[Any]]]) -> None:
    """Store the counts of an iteration and replace older ones.

    Only the process that holds the claim of the sweep may call this.

    Args:
        run: the run folder.
        iteration: the iteration.
        counted: its counts.
        listing: the result of `sources`, taken before the rows were counted.
    """
    folder, name = RunPaths(run).kept, f"iteration={iteration:04d}"
    (folder / f"{name}{MANIFEST_SUFFIX}").unlink(missing_ok=True)
    remove_leftovers(folder)

    def fill(temporary: Path) -> dict[str, tuple[int, str]]:
        for file, frame in zip(_FILES, (counted.counts.select(list(COUNTS)), counted.answers), strict=True):
            frame.write_parquet(temporary / file)
        return {}

    manifests.publish(folder, name, fill, as_folder=True, stats=lambda: {"sources": listing})
