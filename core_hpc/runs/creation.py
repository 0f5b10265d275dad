"""Creates run folders, and starts runs: what a start writes into them.

In: a planned run, its problems, and what preparation found out about its models. Out: an open `Run`.
`run.json` is written last, at the first start only. `config.json` and `horizon.json` follow every start.
Whether the run may be started is checked in `conflicts.py`, and its tasks are run elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from core_hpc.common import ownership
from core_hpc.common.errors import StoreError
from core_hpc.config.identity import scientific_fields
from core_hpc.extensions import sources
from core_hpc.extensions.points import uses
from core_hpc.problems.splits import Splits, problems_digest
from core_hpc.runs import provenance
from core_hpc.runs.adapters import freeze_adapter
from core_hpc.runs.folder import ModelFacts, Run, facts_in, read_identity
from core_hpc.runs.graph import extend_horizon
from core_hpc.runs.sweep import RunPlan
from core_hpc.store import manifests, shards
from core_hpc.store.paths import RunPaths, SweepPaths, TaskKey
from core_hpc.store.schema import PROBLEMS, UPDATE


def _json_or_none(path: Path) -> Any | None:
    try:
        return manifests.read_json(path)
    except StoreError:
        return None


def create(plan: RunPlan, folder: Path, splits: Splits, facts: Mapping[str, ModelFacts]) -> Run:
    """Create a run folder and start the run.

    The identity is written last, so an interrupted creation is simply repeated.
    """
    paths = SweepPaths(folder).run(plan.run_id)
    for path in (paths.problems, paths.logs, paths.tensorboard):
        manifests.make_folder(path)
    sources.write_copies(paths.extensions, uses(plan.config), plan.sources)
    frozen = {name: _freeze(paths.problems, name, frame) for name, frame in splits.by_name().items()}
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
        manifest = shards.publish_frame(folder, name, problems, PROBLEMS) if not manifests.is_file(path) else None
        try:
            return shards.read_manifest_table(manifest or manifests.read_manifest(path), PROBLEMS, checksum=True)
        except manifests.DamagedError:
            manifests.set_aside(path)
    raise StoreError(f"{path}: what is written here is damaged at once; check the disk")


def start(plan: RunPlan, folder: Path, *, begun: Callable[[], Collection[TaskKey]] = tuple) -> Run:
    """Open an existing run with the configuration of this start, and record that configuration.

    Args:
        begun: returns the updates that are not published and that an earlier start has begun, or may have. It is
            called only if the horizons would change without them.
    """
    paths = RunPaths(folder / plan.run_id)
    ownership.withdraw_writing(paths.root)
    identity = read_identity(paths.root)
    if identity["run_id"] != plan.run_id:
        raise StoreError(f"{paths.identity}: is the identity of {identity['run_id']}; restore this file from a backup")
    run = Run(plan.run_id, paths, plan.config, facts_in(identity))
    sources.write_copies(paths.extensions, uses(plan.config), plan.sources)
    sources.remember_copies(paths.extensions, uses(plan.config), own=True)
    config = plan.config.model_dump(mode="json")
    if _json_or_none(paths.config) != config:
        manifests.write_json(paths.config, config)
    old = run.horizons() if manifests.is_file(paths.horizon) else []
    published = shards.published_keys(run.root, (UPDATE,))
    new = extend_horizon(old, plan.config.iterations, published)
    if new != old:
        new = extend_horizon(old, plan.config.iterations, [*published, *begun()])
    if new != old:
        manifests.write_json(paths.horizon, [asdict(h) for h in new])
    return run
