"""What the worker of a task must be able to do: its role, its engine, and its number of parts.

Drivers use this to decide which tasks may follow each other in one warm worker process, and in
which environment a worker is started. Nothing is loaded or started here.
"""

from __future__ import annotations

from typing import Any

from core_hpc.config.cluster import ClusterSection
from core_hpc.config.identity import config_hash, scientific_fields
from core_hpc.engines.shared import SHARED_KINDS
from core_hpc.runs.folder import Run
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import GENERATION_PHASES, TRAINING_PHASES

TORCH_PACKAGES = ("torch", "transformers.models.auto.modeling_auto", "peft", "deepspeed")
VLLM_PACKAGES = ("torch", "vllm.entrypoints.llm", "vllm.v1.worker.cpu_worker")


def role_of(run: Run, key: TaskKey) -> str:
    """The role of a task. A warm worker takes any task of its role, of any run of the sweep.

    Hint and score tasks have the role `score`. The role of another task names what the worker holds
    in memory: an engine (`generate-...`) or a trainer (`update-...`), the model, and a hash of the
    settings of the model.
    """
    if key.phase not in (*GENERATION_PHASES, *TRAINING_PHASES):
        return "score"
    digest = config_hash({"model": _fields_of(run, key), "context_tokens": run.facts[key.model].context_tokens})
    return f"{'update' if key.phase in TRAINING_PHASES else 'generate'}-{key.model}-{digest}"


def warmup_group(run: Run, key: TaskKey) -> str:
    """Equal for the warm-ups of two runs only if they share one computation (`phases/warmup.py`)."""
    return config_hash({"model": _fields_of(run, key), "problems": scientific_fields(run.config.problems)})


def _fields_of(run: Run, key: TaskKey) -> dict[str, Any]:
    """The settings of the model of a task. Its warm-up may have the seed of the run."""
    model = run.config.model(key.model)
    return scientific_fields(model.model_copy(update={"warmup": run.config.warmup_of(model)}))


def engine_kind(run: Run, key: TaskKey) -> str:
    """The engine that a task needs. It decides the environment of the worker process."""
    return run.config.model(key.model).engine if key.phase in GENERATION_PHASES else "transformers"


def worker_packages(run: Run, key: TaskKey) -> tuple[str, ...]:
    """Modules that the worker of a task imports before it computes, and whose import takes seconds."""
    kind = engine_kind(run, key)
    if key.phase in TRAINING_PHASES or (kind == "transformers" and key.phase in GENERATION_PHASES):
        return TORCH_PACKAGES
    if key.phase in GENERATION_PHASES:
        return VLLM_PACKAGES if kind == "vllm" else ()
    return () if run.config.reward.distance.embedder.startswith("fake:") else TORCH_PACKAGES


def parts_at_once(cluster: ClusterSection, run: Run, key: TaskKey) -> int:
    """How many tasks the worker of this task may take at once (`cluster.parts_in_engine`)."""
    is_shared = key.phase in GENERATION_PHASES and engine_kind(run, key) in SHARED_KINDS
    return cluster.parts_in_engine if is_shared else 1
