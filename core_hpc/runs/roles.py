"""TODO docstring."""

from __future__ import annotations

from core_hpc.config.cluster import ClusterSection
from core_hpc.config.run import config_hash, scientific_fields
from core_hpc.engines.shared import SHARED_KINDS
from core_hpc.runs.folder import Run
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import GENERATION_PHASES, UPDATE


def role_of(run: Run, key: TaskKey) -> str:
    """Tasks of one role can follow each other in a warm process, also those of different runs of a sweep."""
    if key.phase not in GENERATION_PHASES and key.phase != UPDATE:
        return "score"
    model, facts = run.config.model(key.model), run.facts[key.model]
    digest = config_hash({"model": scientific_fields(model), "context_tokens": facts.context_tokens})
    return f"{'update' if key.phase == UPDATE else 'generate'}-{key.model}-{digest}"


def parts_at_once(cluster: ClusterSection, run: Run, key: TaskKey) -> int:
    """Tasks that the worker of a task may do at once (cluster.parts_in_engine)."""
    is_shared = key.phase in GENERATION_PHASES and engine_kind(run, key) in SHARED_KINDS
    return cluster.parts_in_engine if is_shared else 1


def engine_kind(run: Run, key: TaskKey) -> str:
    """Which environment the worker of a task must be started with (engines.worker_environment)."""
    return run.config.model(key.model).engine if key.phase in GENERATION_PHASES else "transformers"
