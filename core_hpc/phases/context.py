"""The inputs of a phase task: run, key, progress callback, and warm objects of its process.

`Warm` holds at most one engine, one trainer and one embedder, because a worker serves one role
(`worker.py`). They are created on first use and replaced when a task needs another one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from core_hpc.common.errors import StoreError
from core_hpc.config.model import ModelSection
from core_hpc.engines import EngineSpec, create_engine, has_gpu
from core_hpc.engines.base import AdapterRef, Engine
from core_hpc.engines.share import Sharing, engine_gpus
from core_hpc.engines.shared import EngineOwner
from core_hpc.models.embedders import resolve_embedder
from core_hpc.models.folder import end_token_ids, load_tokenizer
from core_hpc.models.prompts import PromptBuilder, prompt_builder, stop_strings_of
from core_hpc.models.resolve import ResolvedModel, resolve_model
from core_hpc.problems.splits import EXAMPLES, worked_examples
from core_hpc.protocol.embeddings import Embedder, create_embedder
from core_hpc.runs.adapters import frozen_adapter
from core_hpc.runs.folder import Run
from core_hpc.store import manifests
from core_hpc.store.paths import OPTIMIZER_STATES, RunPaths, TaskKey
from core_hpc.store.schema import GENERATION_PHASES, TRAINING_PHASES, UPDATE, WARMUP

if TYPE_CHECKING:
    from core_hpc.training.trainer import Trainer

Progress = Callable[[int, int, int], None]
"""Called with (done, total, tokens so far)."""


class Stopwatch:
    """Measures named intervals in seconds, for the statistics of a task."""

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds = seconds or {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the previous lap to `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def split(self, name: str, part: str, seconds: float) -> None:
        """Move `seconds` from the lap `name` to `part`, which was the last part of this lap.

        >>> watch = Stopwatch({"load": 30.0})
        >>> watch.split("load", "compile", 20.0)
        >>> watch.seconds
        {'load': 10.0, 'compile': 20.0}
        """
        if seconds > 0:
            seconds = min(seconds, self.seconds[name])
            self.seconds[name] -= seconds
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds


def _process_times() -> dict[str, float]:
    """Start of this process, readiness for tasks and start of the SLURM job, in epoch seconds."""
    times = {"process_started": psutil.Process().create_time(), "process_ready": time.time()}
    job = os.environ.get("CORE_HPC_JOB_START")
    return {**times, "job_started": float(job)} if job else times


@dataclass(kw_only=True)
class Warm:
    """The expensive objects of a worker process, which are kept between its tasks."""

    threads: int = 1
    _engine: tuple[EngineSpec, Engine] | None = None
    _trainer: tuple[Any, Trainer] | None = None
    _embedder: tuple[str, Embedder] | None = None
    _times: dict[str, float] = field(default_factory=_process_times)
    _compile_s: float = 0.0
    _owner: EngineOwner | None = None

    def take_times(self) -> dict[str, float]:
        """The times of this process for the statistics of its first task; empty for later tasks."""
        times, self._times = self._times, {}
        return times

    def share_engine(self) -> EngineOwner:
        """Use one engine for tasks in several threads.

        The caller must run the returned owner in a thread.
        """
        self._owner = EngineOwner(self._own_engine)
        return self._owner

    def engine(self, spec: EngineSpec) -> Engine:
        """The engine for a spec; an engine with another spec is closed first."""
        return self._own_engine(spec) if self._owner is None else self._owner.engine(spec)

    def _own_engine(self, spec: EngineSpec) -> Engine:
        if self._engine is not None and self._engine[0] != spec:
            self._engine[1].close()
            self._engine = None
        if self._engine is None:
            self._engine = (spec, create_engine(spec))
            self._compile_s = self._engine[1].compile_s
        return self._engine[1]

    def sleep(self) -> None:
        """Make the engine, if there is one, release its GPU memory until the next task."""
        if self._engine is not None:
            self._engine[1].sleep()

    def take_compile_s(self) -> float:
        """Seconds of compilation for the statistics of the engine's first task, then 0."""
        seconds, self._compile_s = self._compile_s, 0.0
        return seconds

    def trainer(self, identity: Any, make: Callable[[], Trainer]) -> Trainer:
        """The trainer with this identity; `make` replaces one with another identity."""
        if self._trainer is not None and self._trainer[0] != identity:
            self._trainer[1].close()
            self._trainer = None
        if self._trainer is None:
            self._trainer = (identity, make())
        return self._trainer[1]

    def embed(self, reference: str, texts: Sequence[str]) -> np.ndarray:
        """Embeddings [n, d] of n texts by the embedder `reference`."""
        if self._embedder is None or self._embedder[0] != reference:
            self._embedder = (reference, create_embedder(resolve_embedder(reference)))
        return self._embedder[1].embed(texts)


@cache
def _resolved(reference: str, revision: str | None, trust_remote_code: bool, allow_pickle: bool) -> ResolvedModel:
    return resolve_model(reference, revision=revision, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)


@cache
def _tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    return load_tokenizer(folder, trust_remote_code=trust_remote_code)


@cache
def _end_ids(folder: Path, trust_remote_code: bool) -> frozenset[int]:
    return end_token_ids(folder, _tokenizer(folder, trust_remote_code))


@dataclass
class TaskContext:
    """One task: its identity, its inputs and its process."""

    run: Run
    key: TaskKey
    warm: Warm
    progress: Progress = lambda done, total, tokens: None
    should_stop: Callable[[], bool] = lambda: False
    """Called where a phase can be interrupted: in the update, between two optimizer steps."""
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def paths(self) -> RunPaths:
        """File names of the run."""
        return self.run.paths

    @property
    def model(self) -> ModelSection:
        """Configuration of the task's model."""
        return self.run.config.model(self.key.model)

    def resolved(self, model: ModelSection) -> ResolvedModel:
        """Weights and tokenizer of a model of the team on this machine.

        Raises:
            StoreError: they differ from those with which the run was started.
        """
        facts = self.run.facts[model.name]
        revision = facts.commit or model.revision  # a branch of the hub, and its copy in the cache, may move
        found = _resolved(model.model, revision, model.trust_remote_code, model.allow_pickle)
        recorded = facts.fingerprint
        if found.fingerprint != recorded:
            raise StoreError(
                f"{found.folder}: the weights or tokenizer of {model.name} are not those of the run (fingerprint "
                f"{found.fingerprint[:12]}, recorded {recorded[:12]}); restore them or start a new run"
            )
        if facts.end_ids and (ends := tuple(sorted(_end_ids(found.folder, model.trust_remote_code)))) != facts.end_ids:
            raise StoreError(
                f"{found.folder}: the end tokens of {model.name} (generation_config.json) are {ends}, and those of the "
                f"run are {facts.end_ids}; restore them or start a new run"
            )
        return found

    def base_folder(self, model: ModelSection) -> Path:
        """Folder of the weights with which the first iteration begins.

        These are the weights after the warm-up, if the model has one.
        """
        folder = self.resolved(model).folder
        if model.warmup is None:
            return folder
        manifest = manifests.read_manifest(self.paths.task_manifest(TaskKey(0, WARMUP, model.name)))
        manifests.check_files(manifest, checksum=True, unread=OPTIMIZER_STATES)
        return manifest.folder

    def tokenizer(self, model: ModelSection) -> Any:
        """The tokenizer of a model of the team."""
        return _tokenizer(self.resolved(model).folder, model.trust_remote_code)

    def end_ids(self, model: ModelSection) -> frozenset[int]:
        """The tokens at which sampling of a model ends."""
        return _end_ids(self.resolved(model).folder, model.trust_remote_code)

    def prompt_builder(self, model: ModelSection) -> PromptBuilder:
        """Builds the prompts of a model of the team, with the examples of this run."""
        examples = worked_examples(self.run.split(EXAMPLES))
        style, tokenizer = self.run.facts[model.name].prompt_style, self.tokenizer(model)
        end_ids = self.end_ids(model)
        return prompt_builder(self.run.config, model, tokenizer, style=style, examples=examples, end_ids=end_ids)

    def stop_strings(self, model: ModelSection) -> tuple[str, ...]:
        """The stop strings of a model of the team."""
        return stop_strings_of(self.run.facts[model.name].prompt_style, model.stop_strings)

    def engine_spec(self, iteration: int = 0) -> EngineSpec:
        """The engine for the task's model after an iteration.

        An adapter is passed to the engine with every call, so one engine serves all iterations and
        stays warm. With tuning: full every update changes the weights, and another engine is
        loaded.
        """
        config, model = self.run.config, self.model
        trained = self.update_folder(iteration) if model.tuning == "full" else None
        sharing = Sharing.of_worker(config.cluster)
        return EngineSpec(
            kind=model.engine,
            model_folder=trained or self.base_folder(model),
            dtype=model.dtype,
            max_context_tokens=self.run.facts[model.name].context_tokens,
            lora=model.lora,
            four_bit=model.tuning == "qlora",
            trust_remote_code=model.trust_remote_code,
            kv_cache_gb=config.cluster.kv_cache_gb,
            max_num_seqs=config.cluster.max_num_seqs,
            num_gpus=engine_gpus(config.cluster),
            gpu_memory_share=sharing.engine_share,
            sleeps=sharing.kind == "sleep",
        )

    def update_manifest(self, iteration: int, *, optimizer: bool = False) -> manifests.Manifest | None:
        """The update that produced the model after an iteration, with checksums verified.

        None means the base weights (iteration 0). With `optimizer`, the optimizer state is verified too;
        with tuning: full it is six times as large as the weights.
        """
        if iteration == 0:
            return None
        manifest = manifests.read_manifest(self.paths.task_manifest(TaskKey(iteration, UPDATE, self.key.model)))
        manifests.check_files(manifest, checksum=True, unread=() if optimizer else OPTIMIZER_STATES)
        return manifest

    def update_folder(self, iteration: int, *, optimizer: bool = False) -> Path | None:
        """Folder of the weights after an iteration: an adapter, or a model if tuning is full; None: iteration 0."""
        manifest = self.update_manifest(iteration, optimizer=optimizer)
        return manifest.folder if manifest is not None else None

    def first_adapter(self) -> Path | None:
        """Folder of the adapter with which the task's model begins, verified; None: it has none."""
        return frozen_adapter(self.run, self.model.name) if self.model.adapter is not None else None

    def adapter(self, iteration: int) -> AdapterRef | None:
        """Adapter of the task's model after an iteration; None for base weights or tuning: full."""
        if self.model.tuning == "full":
            return None
        folder = self.update_folder(iteration) or self.first_adapter()
        if folder is None:
            return None
        return AdapterRef(folder, f"{self.run.run_id}-{folder.name}-{iteration:04d}")

    def _num_gpus(self) -> int:
        """GPUs of the engine or of one rank, for the cost of the run (`analysis/timing/cost.py`)."""
        if self.key.phase in GENERATION_PHASES:
            return engine_gpus(self.run.config.cluster) if has_gpu() else 0
        return int(self.key.phase in TRAINING_PHASES and has_gpu())

    def stats(self, **more: Any) -> Callable[[], dict[str, Any]]:
        """A function that returns the statistics for the manifest at the time of writing."""

        def read() -> dict[str, Any]:
            self.stopwatch.lap("publish")
            return {
                "seconds": {k: round(v, 3) for k, v in self.stopwatch.seconds.items()},
                "rss_gb": round(psutil.Process().memory_info().rss / 2**30, 2),
                "threads": self.warm.threads,
                "num_gpus": self._num_gpus(),
                **self.warm.take_times(),
                **more,
            }

        return read
