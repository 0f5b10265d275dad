"""Facts about a run: models, problems, versions, machine, hours and tokens.

The input is the `RunData` of a run, its cost and its recorded identity. The output is pairs of
name and text for report.md and report.html. Facts that the run did not record are left out.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import polars as pl

from analysis.counts.load import RunData, problems_of
from analysis.timing.cost import Cost
from core_hpc.config.identity import flatten
from core_hpc.problems.sets import set_of
from core_hpc.problems.splits import EVALUATION, TRAIN
from core_hpc.runs.folder import read_identity


def facts_of(data: RunData, cost: Cost) -> list[tuple[str, str]]:
    """Names and values of all facts, in the order of the report."""
    identity = read_identity(data.path)
    provenance = _provenance(identity.get("provenance", {}))
    return [("run folder", str(data.path)), *_models(data, identity), *_problems(data), *_work(cost), *provenance]


def configuration_text(data: RunData) -> str:
    """The resolved configuration, one field per line."""
    if data.config is None:
        return "imported predictions: there is no configuration"
    fields = flatten(data.config.model_dump(mode="json"))
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in fields.items())


def _models(data: RunData, identity: Mapping[str, Any]) -> list[tuple[str, str]]:
    if data.config is None:
        origin = identity["imported"]
        source = f"{origin['file']}, sha256 {origin['sha256'][:12]}" if "file" in origin else "unknown"
        return [("models", ", ".join(data.models)), ("imported from", source)]
    known = identity.get("models", {})
    facts = []
    for model in data.config.team:
        fingerprint = known.get(model.name, {}).get("fingerprint", "")
        weights = f", weights {fingerprint[:12]}" if fingerprint else ""
        trained = "all weights trained" if model.lora is None else f"LoRA rank {model.lora.rank}"
        facts.append((f"model {model.name}", f"{model.model}, engine {model.engine}, {trained}{weights}"))
    return facts


def _problems(data: RunData) -> list[tuple[str, str]]:
    problems = problems_of(data.path, data.config)
    facts = []
    sets = list(data.sets)
    named = [(TRAIN, "", "training problems"), (EVALUATION, "", "held-out problems")]
    named += [(EVALUATION, own, f"problems of set {own}") for own in sets]
    for split, own, name in named:
        part = problems.filter(pl.col("split") == split, (pl.col("split") == TRAIN) | (set_of(sets) == own))
        if part.height:
            sources = ", ".join(part["data_set"].unique(maintain_order=True).sort().to_list())
            facts.append((name, f"{part.height:,} from {sources}"))
    return facts


def _work(cost: Cost) -> list[tuple[str, str]]:
    if cost.began is None or cost.ended is None:
        return []
    total = cost.table.row(-1, named=True)
    gpu = "GPU-hours not recorded" if total["gpu_hours"] is None else f"{total['gpu_hours']:,.2f} GPU-hours"
    sampled, trained = (f"{total[name] or 0:,}" for name in ("sampled_tokens", "trained_tokens"))
    began, ended = (datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC") for at in (cost.began, cost.ended))
    hours = f"{(cost.ended - cost.began) / 3600:,.2f} hours, pauses included"
    return [
        ("time", f"{began} to {ended} ({hours}) on {', '.join(cost.hosts)}"),
        ("work", f"{gpu}, {total['core_hours']:,.2f} core-hours, {total['tasks']:,} tasks"),
        ("tokens", f"{sampled} sampled, {trained} trained on"),
    ]


def _provenance(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not provenance:
        return []
    modified = ", with uncommitted changes" if provenance["git_modified"] else ""
    packages = ", ".join(f"{name} {version}" for name, version in provenance["packages"].items())
    return [
        ("core_hpc", f"{provenance['core_hpc']}, git {provenance['git_commit'] or 'unknown'}{modified}"),
        ("packages", f"Python {provenance['python']}, {packages}"),
        ("started on", f"{provenance['platform']}, {provenance['num_cores']} cores, {provenance['mem_gb']:g} GB"),
        ("command", shlex.join(provenance["command"])),
    ]
