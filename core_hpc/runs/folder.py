"""The run folder: created once from a resolved configuration, opened by later starts and by tasks.

`run.json` is the identity (scientific fields, model fingerprints, context sizes, digests of the
problems, provenance) and never changes. `config.json` holds the configuration of the last start, and `horizon.json` the
horizons of the learning-rate schedule. A folder that was made with other scientific fields is
refused, and the message names the fields. Launching and scheduling are not in this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import TypeAdapter

from core_hpc.common import ownership
from core_hpc.common.errors import InputError, RunConflictError, StoreError
from core_hpc.config.identity import flatten, scientific_fields
from core_hpc.config.run import RunConfig
from core_hpc.extensions import sources
from core_hpc.extensions.points import uses
from core_hpc.problems.splits import EVALUATION, SPLITS, Splits, problems_digest
from core_hpc.runs import provenance
from core_hpc.runs.adapters import freeze_adapter
from core_hpc.runs.choice import Choice
from core_hpc.runs.graph import Graph, Horizon, extend_horizon
from core_hpc.runs.sweep import RunPlan, Sweep, load_sweep
from core_hpc.store import manifests, shards
from core_hpc.store.paths import RunPaths, SweepPaths
from core_hpc.store.schema import PROBLEMS, UPDATE


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
    if RunPaths(path).identity.is_file():
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
    if RunPaths(folder).identity.is_file():
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
    run = Run(identity["run_id"], RunPaths(root), read_run_config(root, own=own), _facts_in(identity))
    sources.remember_copies(run.paths.extensions, uses(run.config))
    return run


def _facts_in(identity: Mapping[str, Any]) -> dict[str, ModelFacts]:
    return _FACTS.validate_python(identity.get("models", {}))


def _parse_identity(data: Any) -> dict[str, Any]:
    """Check the content of `run.json`. An error if it is not the identity of a run."""
    identity = {**data}
    if not isinstance(identity["run_id"], str):
        raise ValueError("run_id is no text")
    if wrong := [name for name in ("scientific", "problems") if not isinstance(identity.get(name, {}), dict)]:
        raise ValueError(f"{wrong[0]} is no object")
    if "imported" not in identity:
        _facts_in(identity)
    return identity


def _json_or_none(path: Path) -> Any | None:
    try:
        return manifests.read_json(path)
    except StoreError:
        return None


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


# --- create and start runs -----------------------------------------------------------------------


def exists(plan: RunPlan, folder: Path) -> bool:
    """Whether the run's folder has been created completely."""
    return RunPaths(folder / plan.run_id).identity.is_file()


def with_started_ids(sweep: Sweep) -> Sweep:
    """Give every run the id with which an earlier version started it.

    The id was once made from the text of the numbers, so `32` and `32.0` gave two ids. A folder
    with the same label and equal scientific fields is the folder of the run.
    """
    return replace(sweep, runs=tuple(_as_started(plan, sweep.folder) for plan in sweep.runs))


def _as_started(plan: RunPlan, folder: Path) -> RunPlan:
    if exists(plan, folder):
        return plan
    fields = flatten(scientific_fields(plan.config))
    for found in _folders_with_label(plan.label, folder):
        if flatten(read_identity(found).get("scientific", {})) == fields:
            return replace(plan, run_id=found.name)
    return plan


def _folders_with_label(label: str, folder: Path) -> list[Path]:
    return [path.parent for path in sorted(folder.glob(f"{label}-????????/run.json"))]


def check_conflicts(sweep: Sweep) -> None:
    """Check that no run of this sweep was started with other scientific fields.

    Raises:
        RunConflictError: There is such a run. The message names the fields.
    """
    messages = [message for of_run in conflicts(sweep).values() for message in of_run]
    if messages:
        raise RunConflictError(
            "the scientific fields of a started run cannot change; nothing was changed\n"
            + "\n".join(messages)
            + f"\n  Undo the change, or give the sweep another name (--set name={sweep.name}-2), or write a grid with "
            "both values."
        )


def conflicts(sweep: Sweep) -> dict[str, list[str]]:
    """By run id: which started runs with the same label have other values, and which fields differ."""
    wanted = {run.run_id for run in sweep.runs}
    found: dict[str, list[str]] = {}
    for plan in sweep.runs:
        if exists(plan, sweep.folder):
            continue
        for folder in _folders_with_label(plan.label, sweep.folder):
            if folder.name in wanted:
                continue
            old = flatten(read_identity(folder).get("scientific", {}))
            new = flatten(scientific_fields(plan.config))
            changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
            lines = [f"      {key}: {_show(old, key)} -> {_show(new, key)}" for key in changed]
            message = "\n".join([f"  - {folder} was made with other values", *lines])
            found.setdefault(plan.run_id, []).append(message)
    return found


def check_iterations(sweep: Sweep) -> None:
    """Check that no run was trained for more iterations than it would have.

    Its last evaluation would be another one, and the later results would be hidden.

    Raises:
        RunConflictError: `iterations` is lower than what is trained.
    """
    messages = []
    for plan in sweep.runs:
        keys = shards.published_keys(sweep.folder / plan.run_id, (UPDATE,)) if exists(plan, sweep.folder) else []
        last = max((key.iteration for key in keys), default=0)
        if last > plan.config.iterations:
            what = f"iterations: {plan.config.iterations}, but iteration {last} is trained"
            messages.append(f"  - {plan.run_id}: {what}")
    if messages:
        raise RunConflictError(
            "a run cannot become shorter than what it has done; nothing was changed\n"
            + "\n".join(messages)
            + "\n  Set iterations to at least the last number. To study fewer iterations, evaluate an earlier one "
            "(python -m core_hpc.evaluate RUN_FOLDER --iteration I), or give the sweep another name "
            f"(--set name={sweep.name}-2)."
        )


def _show(fields: Mapping[str, Any], key: str) -> str:
    return repr(fields[key]) if key in fields else "(absent)"


def require_own_folders(sweep: Sweep) -> None:
    """Check that the folders of a sweep belong to this user, so that its jobs do not refuse them.

    Raises:
        OwnershipError: One belongs to somebody else.
    """
    for folder in (sweep.folder, *(sweep.folder / plan.run_id for plan in sweep.runs)):
        if folder.is_dir():
            ownership.require_owner(folder)


def create(plan: RunPlan, folder: Path, splits: Splits, facts: Mapping[str, ModelFacts]) -> Run:
    """Create a run folder and start the run.

    The identity is written last, so an interrupted creation is simply repeated.
    """
    paths = SweepPaths(folder).run(plan.run_id)
    for path in (paths.problems, paths.logs, paths.tensorboard):
        manifests.make_folder(path)
    frames = {name: getattr(splits, name) for name in SPLITS}
    frames |= {paths.warmup_problems(model): frame for model, frame in splits.warmups.items()}
    sources.write_copies(paths.extensions, uses(plan.config), plan.sources)
    frozen = {name: _freeze(paths.problems, name, frame) for name, frame in frames.items()}
    for model in plan.config.team:
        if model.adapter is not None:
            freeze_adapter(paths, model, facts[model.name].adapter)
    identity = {
        "run_id": plan.run_id,
        "label": plan.label,
        "scientific": scientific_fields(plan.config),
        "models": {name: asdict(f) for name, f in facts.items()},
        "problems": {name: problems_digest(problems) for name, problems in frozen.items()},
        "provenance": provenance.collect(),
    }
    manifests.write_json(paths.identity, identity)
    return start(plan, folder)


def _freeze(folder: Path, name: str, problems: pl.DataFrame) -> pl.DataFrame:
    """Publish the problems of a split, and return those that are published.

    An interrupted creation may have published them, perhaps before their source was changed.
    """
    path = folder / f"{name}.manifest.json"
    for _ in range(2):
        manifest = shards.publish_frame(folder, name, problems, PROBLEMS) if not path.exists() else None
        try:
            return shards.read_manifest_table(manifest or manifests.read_manifest(path), PROBLEMS, checksum=True)
        except manifests.DamagedError:
            manifests.set_aside(path)
    raise StoreError(f"{path}: what is written here is damaged at once; check the disk")


def start(plan: RunPlan, folder: Path) -> Run:
    """Open an existing run with the configuration of this start, and record that configuration."""
    paths = RunPaths(folder / plan.run_id)
    ownership.withdraw_writing(paths.root)
    identity = read_identity(paths.root)
    if identity["run_id"] != plan.run_id:
        raise StoreError(f"{paths.identity}: is the identity of {identity['run_id']}; restore this file from a backup")
    run = Run(plan.run_id, paths, plan.config, _facts_in(identity))
    sources.write_copies(paths.extensions, uses(plan.config), plan.sources)
    sources.remember_copies(paths.extensions, uses(plan.config))
    config = plan.config.model_dump(mode="json")
    if _json_or_none(paths.config) != config:
        manifests.write_json(paths.config, config)
    old = run.horizons() if paths.horizon.exists() else []
    new = extend_horizon(old, plan.config.iterations, shards.published_keys(run.root, (UPDATE,)))
    if new != old:
        manifests.write_json(paths.horizon, [asdict(h) for h in new])
    return run
