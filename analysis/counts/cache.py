"""Counts that a run keeps beside its shards, so that reading it again takes no time.

In: a run folder. Out: the counts of each iteration whose kept ones still match what is published. They match when the folders
that they were counted from hold exactly the same files, by name and size: the name of a published file says which
publication it is of. Whatever does not match is ignored, and read from the shards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from analysis.counts.counts import ANSWERS, COUNTS, Counted
from analysis.counts.scan import in_threads
from core_hpc.common.errors import StoreError
from core_hpc.store import manifests
from core_hpc.store.manifests import Manifest
from core_hpc.store.paths import MANIFEST_SUFFIX, RunPaths
from core_hpc.store.schema import GENERATION_PHASES

_COUNTS_FILE = "counts.parquet"
_FILES = {_COUNTS_FILE: COUNTS, "answers.parquet": ANSWERS}


def read(run: Path, *, answers: bool) -> dict[int, Counted]:
    """Kept counts by iteration, of those that match; without answers these are empty."""
    matching = _matching(run)
    found = in_threads(lambda manifest: _frames(manifest, answers=answers), matching.values())
    return {iteration: counted for iteration, counted in zip(matching, found, strict=True) if counted is not None}


def iterations(run: Path) -> set[int]:
    """Iterations whose counts are kept and match."""
    return set(_matching(run))


def _matching(run: Path) -> dict[int, Manifest]:
    def one(path: Path) -> Manifest | None:
        try:
            manifest = manifests.read_manifest(path)
            return manifest if manifest.stats.get("sources") == sources(run, _iteration_of(manifest)) else None
        except (StoreError, OSError):
            return None  # kept counts are never needed

    found = in_threads(one, manifests.list_manifests(RunPaths(run).kept))
    return {_iteration_of(manifest): manifest for manifest in found if manifest is not None}


def _iteration_of(manifest: Manifest) -> int:
    return int(manifest.path.name.removesuffix(MANIFEST_SUFFIX).partition("=")[2])


def _frames(manifest: Manifest, *, answers: bool) -> Counted | None:
    try:
        manifests.check_files(manifest, checksum=True)
        frames = [
            pl.read_parquet(manifest.file(f"/{name}"), n_rows=None if answers or name == _COUNTS_FILE else 0)
            for name in _FILES
        ]
    except (StoreError, ValueError, pl.exceptions.PolarsError, OSError):
        return None
    if any(frame.schema != schema for frame, schema in zip(frames, _FILES.values(), strict=True)):
        return None
    return Counted(*frames)


def sources(run: Path, iteration: int) -> dict[str, list[list[Any]]]:
    """Name and size of every file that the rollouts of an iteration are published in, by phase."""
    listing = {}
    for phase in GENERATION_PHASES:
        folder = RunPaths(run).phase_folder(phase, iteration)
        names = sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
        listing[phase] = [[path.name, path.stat().st_size] for path in names]
    return listing


def write(run: Path, iteration: int, counted: Counted, listing: dict[str, list[list[Any]]]) -> None:
    """Keep the counts of an iteration, in place of older ones. For the holder of the sweep's claim.

    Args:
        listing: `sources`, taken before the rows were counted.
    """
    folder, name = RunPaths(run).kept, f"iteration={iteration:04d}"
    (folder / f"{name}{MANIFEST_SUFFIX}").unlink(missing_ok=True)
    manifests.remove_leftovers(folder)

    def fill(temporary: Path) -> dict[str, tuple[int, str]]:
        for file, frame in zip(_FILES, (counted.counts, counted.answers), strict=True):
            frame.write_parquet(temporary / file)
        return {}

    manifests.publish(folder, name, fill, as_folder=True, stats=lambda: {"sources": listing})
