"""The run folder: made once from a resolved configuration, opened again by every later start and by every task.

`run.json` is the identity (scientific fields, model fingerprints, context sizes, provenance) and never changes;
`config.json` holds the configuration as of the last start, `horizon.json` the learning-rate horizons. A folder that
another configuration made is refused, naming the fields. Launching and scheduling are elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from core_hpc.common.errors import InputError, RunConflictError, StoreError
from core_hpc.config.run import RunConfig, flatten, scientific_fields
from core_hpc.problems.splits import EVALUATION, SPLITS, Splits
from core_hpc.runs import provenance
from core_hpc.runs.graph import Graph, Horizon, extend_horizon
from core_hpc.runs.sweep import RunPlan, Sweep, load_sweep
from core_hpc.store import manifests, shards
from core_hpc.store.paths import RunPaths, SweepPaths
from core_hpc.store.schema import PROBLEMS


@dataclass(frozen=True)
class ModelFacts:
    """What preparation found out about one model; part of the run's identity."""

    fingerprint: str
    context_tokens: int
    prompt_style: str
    num_weights: int = 0
    """0: not known (runs of earlier versions, weights that are not safetensors)."""


@dataclass(frozen=True)
class Run:
    """An existing run folder, with the configuration of this start."""

    run_id: str
    paths: RunPaths
    config: RunConfig
    facts: Mapping[str, ModelFacts]

    @property
    def root(self) -> Path:
        return self.paths.root

    def split(self, name: str) -> pl.DataFrame:
        """Frozen problems of a split, as schema.PROBLEMS."""
        manifest = manifests.read_manifest(self.paths.problems / f"{name}.manifest.json")
        return shards.read_manifest_table(manifest, PROBLEMS, checksum=True)

    def num_problems(self, name: str) -> int:
        """Size of a split, from its manifest alone."""
        manifest = manifests.read_manifest(self.paths.problems / f"{name}.manifest.json")
        return manifest.files[0].rows or 0

    def graph(self) -> Graph:
        return Graph.of(self.config, num_evaluation_problems=self.num_problems(EVALUATION))

    def horizons(self) -> list[Horizon]:
        return [Horizon(**h) for h in manifests.read_json(self.paths.horizon)]


def exists(plan: RunPlan, folder: Path) -> bool:
    """Whether the run's folder has been made completely."""
    return RunPaths(folder / plan.run_id).identity.is_file()


def check_conflicts(sweep: Sweep) -> None:
    """RunConflictError when a run of this sweep was started under another configuration; names the fields."""
    messages = []
    wanted = {run.run_id for run in sweep.runs}
    for plan in sweep.runs:
        if exists(plan, sweep.folder):
            continue
        for found in sorted(sweep.folder.glob(f"{plan.label}-????????/run.json")):
            if found.parent.name in wanted:
                continue
            old = flatten(manifests.read_json(found)["scientific"])
            new = flatten(scientific_fields(plan.config))
            changed = [
                f"{k}: {_show(old, k)} -> {_show(new, k)}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)
            ]
            messages.append(f"{found.parent} was made with other values\n" + "\n".join(f"      {c}" for c in changed))
    if messages:
        raise RunConflictError(
            "a started run keeps its scientific fields; nothing was changed\n"
            + "\n".join(f"  - {m}" for m in messages)
            + f"\n  Undo the change, or give the sweep another name (--set name={sweep.name}-2), or add a grid with both values."
        )


def _show(fields: Mapping[str, Any], key: str) -> str:
    return repr(fields[key]) if key in fields else "(absent)"


def create(plan: RunPlan, folder: Path, splits: Splits, facts: Mapping[str, ModelFacts]) -> Run:
    """Make a run folder; its identity is published last, so an interrupted creation is simply done again."""
    paths = SweepPaths(folder).run(plan.run_id)
    for path in (paths.problems, paths.logs, paths.tensorboard):
        manifests.make_folder(path)
    for name in SPLITS:
        if not (paths.problems / f"{name}.manifest.json").exists():
            shards.publish_frame(paths.problems, name, getattr(splits, name), PROBLEMS)
    identity = {
        "run_id": plan.run_id,
        "label": plan.label,
        "scientific": scientific_fields(plan.config),
        "models": {name: asdict(f) for name, f in facts.items()},
        "provenance": provenance.collect(),
    }
    manifests.write_json(paths.identity, identity)
    return start(plan, folder)


def start(plan: RunPlan, folder: Path) -> Run:
    """Open an existing run for this start's configuration: records operational fields and the horizon."""
    paths = RunPaths(folder / plan.run_id)
    facts = {name: ModelFacts(**f) for name, f in manifests.read_json(paths.identity)["models"].items()}
    run = Run(plan.run_id, paths, plan.config, facts)
    config = plan.config.model_dump(mode="json")
    if not paths.config.exists() or manifests.read_json(paths.config) != config:
        manifests.write_json(paths.config, config)
    old = run.horizons() if paths.horizon.exists() else []
    new = extend_horizon(old, plan.config.iterations, shards.published_keys(run.root))
    if new != old:
        manifests.write_json(paths.horizon, [asdict(h) for h in new])
    return run


def started_sweep(folder: Path, run_ids: Sequence[str]) -> Sweep:
    """The sweep of these run folders as it was last started, independent of the file that it came from."""
    plans = []
    for run_id in run_ids:
        root = folder / run_id
        plans.append(RunPlan(read_identity(root)["label"], run_id, read_run_config(root)))
    return Sweep(folder, "", plans[0].config.name, folder, tuple(plans))


def open_run(root: Path) -> Run:
    """Open a run folder as its last start left it (what tasks do)."""
    identity = read_identity(root)
    facts = {name: ModelFacts(**f) for name, f in identity["models"].items()}
    return Run(identity["run_id"], RunPaths(root), read_run_config(root), facts)


def list_runs(path: Path) -> list[Path]:
    """A run folder itself, or the run folders of a sweep folder; InputError when it is neither."""
    if RunPaths(path).identity.is_file():
        return [path]
    runs = sorted(p.parent for p in path.glob("*/run.json")) if path.is_dir() else []
    if not runs:
        raise InputError(f"{path}: neither a run folder nor a sweep folder (no run.json in it or one level below)")
    return runs


def read_identity(run: Path) -> dict[str, Any]:
    """The run's identity: scientific fields, model fingerprints, provenance."""
    identity: dict[str, Any] = manifests.read_json(RunPaths(run).identity)
    return identity


def read_run_config(run: Path) -> RunConfig:
    """The configuration as of the run's last start."""
    try:
        return RunConfig.model_validate(manifests.read_json(RunPaths(run).config))
    except ValueError as e:
        raise StoreError(f"{RunPaths(run).config}: not a configuration of this version ({e})") from e


def locate(path: Path) -> tuple[Path, list[Path]]:
    """Folder and run folders of a sweep, given that folder, its file, or one run folder; InputError when it is none of them."""
    folder = path
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        folder = load_sweep(path).folder
        if not folder.is_dir():
            raise InputError(
                f"{path}: there is no {folder}. Start it (python -m core_hpc.launch {path}), or name the sweep's folder"
            )
    if RunPaths(folder).identity.is_file():
        return folder.absolute().parent, [folder.absolute()]
    paths, runs = SweepPaths(folder), sorted(p.parent for p in folder.glob("*/run.json"))
    if not runs and not any(p.exists() for p in (paths.claim, paths.source, paths.slurm)):
        raise InputError(
            f"{path}: neither a sweep's file nor its folder nor a run's folder (no run.json in it or one level below)"
        )
    return folder.absolute(), [run.absolute() for run in runs]
