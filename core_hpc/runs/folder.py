"""The run folder, found and read: its identity, its configuration, its problems and its task graph.

`run.json` is the identity (scientific fields, model fingerprints, context sizes, digests of the
problems, provenance) and never changes. `config.json` holds the configuration of the last start, and
`horizon.json` the horizons of the learning-rate schedule. Run folders are created and started in
`creation.py`. What a start may change is checked in `conflicts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import TypeAdapter

from core_hpc.common.errors import InputError, StoreError
from core_hpc.config.run import RunConfig
from core_hpc.extensions import sources
from core_hpc.extensions.points import uses
from core_hpc.problems.splits import EVALUATION
from core_hpc.runs.choice import Choice
from core_hpc.runs.graph import Graph, Horizon
from core_hpc.runs.sweep import RunPlan, Sweep, load_sweep
from core_hpc.store import manifests, shards
from core_hpc.store.paths import RunPaths, SweepPaths
from core_hpc.store.schema import PROBLEMS


@dataclass(frozen=True)
class ModelFacts:
    """What preparation found out about a model. It is part of the run's identity."""

    fingerprint: str
    context_tokens: int
    prompt_style: str
    num_weights: int = 0
    """0 if it is unknown: runs of earlier versions, or weights that are not safetensors."""
    adapter: str = ""
    """Digest of the adapter with which the model begins (`models/adapters.py`); empty: it has none."""
    commit: str = ""
    """Commit of a model of the hub, which all tasks load; empty: no such model, or a run of an earlier version."""
    end_ids: tuple[int, ...] = ()
    """The tokens at which sampling ends, sorted; empty: a run of an earlier version."""


_FACTS = TypeAdapter(dict[str, ModelFacts])
_HORIZONS = TypeAdapter(list[Horizon])


@dataclass(frozen=True)
class Run:
    """An existing run folder, with the configuration of this start."""

    run_id: str
    paths: RunPaths
    config: RunConfig
    facts: Mapping[str, ModelFacts]

    @property
    def root(self) -> Path:
        """The run folder."""
        return self.paths.root

    def split(self, name: str) -> pl.DataFrame:
        """The problems of a split, which are fixed since the first start, as `schema.PROBLEMS`."""
        manifest = manifests.read_manifest(self.paths.problems / f"{name}.manifest.json")
        return shards.read_manifest_table(manifest, PROBLEMS, checksum=True)

    def num_problems(self, name: str) -> int:
        """Number of problems in a split, from its manifest alone."""
        manifest = manifests.read_manifest(self.paths.problems / f"{name}.manifest.json")
        return manifest.files[0].rows or 0

    @cached_property
    def choice(self) -> Choice:
        """Which training problems each iteration has."""
        return Choice(self.root, self.config)

    def graph(self) -> Graph:
        """The task graph of the run."""
        return Graph.of(self.config, num_evaluation_problems=self.num_problems(EVALUATION))

    def horizons(self) -> list[Horizon]:
        """The horizons of the learning-rate schedule, in the order of iterations."""
        return manifests.read_record(self.paths.horizon, _HORIZONS.validate_python)


# --- find run folders ----------------------------------------------------------------------------


def list_runs(path: Path) -> list[Path]:
    """Return the run folders of a sweep folder, or `path` itself if it is a run folder.

    Raises:
        InputError: `path` is neither.
    """
    if manifests.is_file(RunPaths(path).identity):
        return [path]
    runs = runs_in(path)
    if not runs:
        raise InputError(f"{path}: neither a run folder nor a sweep folder (no run.json in it or one level below)")
    return runs


def locate(path: Path) -> tuple[Path, list[Path]]:
    """Return the folder of a sweep and its run folders.

    Args:
        path: The sweep folder, the sweep file, or one run folder. In the last case only this run is
            returned.

    Raises:
        InputError: `path` is none of these, or the sweep has not been started.
    """
    folder = path
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        folder = load_sweep(path).folder
        if not folder.is_dir():
            raise InputError(
                f"{path}: there is no {folder}. Start it (python -m core_hpc.launch {path}), or name the sweep's folder"
            )
    if manifests.is_file(RunPaths(folder).identity):
        return folder.absolute().parent, [folder.absolute()]
    paths, runs = SweepPaths(folder), runs_in(folder)
    if not runs and not any(p.exists() for p in (paths.claim, paths.source, paths.slurm)):
        raise InputError(
            f"{path}: neither a sweep's file nor its folder nor a run's folder (no run.json in it or one level below)"
        )
    return folder.absolute(), [run.absolute() for run in runs]


def runs_in(folder: Path) -> list[Path]:
    """The run folders in a folder. A link such as `latest` to one of them is not another run."""
    found = sorted(path.parent for path in folder.glob("*/run.json")) if folder.is_dir() else []
    own = {path.resolve() for path in found if not path.is_symlink()}
    return [path for path in found if not path.is_symlink() or path.resolve() not in own]


def exists(plan: RunPlan, folder: Path) -> bool:
    """Whether the run's folder has been created completely."""
    return manifests.is_file(RunPaths(folder / plan.run_id).identity)


# --- read a run folder ---------------------------------------------------------------------------


def read_identity(run: Path, *, own: bool = False) -> dict[str, Any]:
    """Read the identity of a run: scientific fields, model fingerprints, provenance.

    Args:
        own: Refuse a file that somebody else may have written (OwnershipError).
    """
    return manifests.read_record(RunPaths(run).identity, _parse_identity, own=own)


def read_run_config(run: Path, *, own: bool = False) -> RunConfig:
    """Read the configuration of the run's last start. StoreError if this version cannot read it.

    Args:
        own: Refuse a file that somebody else may have written (OwnershipError).
    """
    read = manifests.read_own_json if own else manifests.read_json
    try:
        return RunConfig.model_validate(read(RunPaths(run).config))
    except ValueError as e:
        raise StoreError(f"{RunPaths(run).config}: not a configuration of this version ({e})") from e


def open_run(root: Path, *, own: bool = False) -> Run:
    """Open a run folder as its last start left it. Tasks use this.

    Args:
        own: Refuse files that somebody else may have written (OwnershipError). Jobs use this,
            because the configuration names what they run.
    """
    identity = read_identity(root, own=own)
    run = Run(identity["run_id"], RunPaths(root), read_run_config(root, own=own), facts_in(identity))
    sources.remember_copies(run.paths.extensions, uses(run.config), own=own)
    return run


def facts_in(identity: Mapping[str, Any]) -> dict[str, ModelFacts]:
    """What preparation found out about the models, from the identity of a run."""
    return _FACTS.validate_python(identity.get("models", {}))


def _parse_identity(data: Any) -> dict[str, Any]:
    """Check the content of `run.json`. An error if it is not the identity of a run."""
    identity = {**data}
    if not isinstance(identity["run_id"], str):
        raise ValueError("run_id is no text")
    if wrong := [name for name in ("scientific", "problems") if not isinstance(identity.get(name, {}), dict)]:
        raise ValueError(f"{wrong[0]} is no object")
    if "imported" not in identity:
        facts_in(identity)
    return identity


def started_sweep(folder: Path, run_ids: Sequence[str]) -> Sweep:
    """Return the sweep of these runs as it was last started. The sweep file is not read.

    Raises:
        OwnershipError: Somebody else may have written its configuration.
    """
    plans = []
    for run_id in run_ids:
        root = folder / run_id
        label = read_identity(root, own=True).get("label", run_id)
        plans.append(RunPlan(label, run_id, read_run_config(root, own=True)))
    return Sweep(folder, "", plans[0].config.name, folder, tuple(plans))
