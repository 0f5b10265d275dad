"""The section `cluster` of the configuration: where and how tasks run.

Every field is operational. Nothing here changes results beyond rounding. What jobs ask SLURM for is in
`slurm.py`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from core_hpc.config.base import PositiveInt, Section, operational
from core_hpc.config.slurm import PhaseGroup, SlurmSection

Driver = Literal["local", "arrays", "resident"]

GROUPS: dict[Driver, tuple[PhaseGroup, ...]] = {
    "local": (),
    "arrays": ("generate", "score", "update", "controller"),
    "resident": ("resident", "controller"),
}
"""The phase groups whose jobs a driver submits."""


class ClusterSection(Section):
    """Where and how tasks run. Nothing here changes results beyond rounding."""

    profile: str | None = operational(
        None, description="cluster profile to inherit from: a name in yaml/cluster, or the path of a YAML file"
    )
    driver: Driver = operational(
        "local",
        description="local: this machine; arrays: one SLURM job array per phase; resident: one SLURM job per run",
    )
    num_running: PositiveInt | None = operational(
        None, description="tasks at the same time on this machine; null: by cores or GPUs"
    )
    num_alive: PositiveInt | None = operational(
        None, description="warm workers kept in memory; null: all if there are no GPUs"
    )
    threads: PositiveInt | None = operational(
        None, description="CPU threads per task; null: cores / num_running, or the cores of the job"
    )
    gpus: list[int] | None = operational(None, description="indices of the GPUs to use; null: all visible GPUs")
    gpu_sharing: Literal["auto", "evict", "split", "sleep"] = operational(
        "evict",
        description="workers on one GPU (drivers local and resident). evict: one at a time, which ends when another "
        "needs the GPU; split: all stay and take turns, each engine with its gpu_memory_share; sleep: as split, but an "
        "engine (vllm) frees its memory between its turns; auto: the best of these that memory allows. All "
        "but evict are experimental: no GPU has run them",
    )
    parts_in_engine: PositiveInt = operational(
        1,
        description="parts of one model that an engine samples at the same time (vllm; drivers local and resident). "
        "Above 1, last digits depend on what happens to run together. Experimental on a GPU: no GPU has run it",
    )
    update_ranks: PositiveInt = operational(
        1,
        description="processes (ZeRO-2 ranks) of one update task; with resident, all on its one node. Above 1 "
        "experimental on GPUs: only CPUs have run it",
    )
    zero_stage: Literal[2, 3] = operational(
        2,
        description="what the ranks of an update divide among them. 2: gradients and optimizer; 3: also the frozen "
        "weights of the layers (tuning: lora), for a base model that does not fit on one GPU. 3 is experimental on "
        "GPUs: only CPUs have run it",
    )
    engine_gpus: PositiveInt = operational(
        1,
        description="GPUs of one engine (vllm), all on one node: each computes a part of every layer (tensor "
        "parallelism), for a model that does not fit on one GPU; on a CPU: processes. Above 1 experimental on GPUs: "
        "only CPUs have run it",
    )
    max_attempts: PositiveInt = operational(3, description="attempts of one task before its run stops")
    max_num_seqs: PositiveInt | None = operational(
        None, description="completions that an engine decodes at the same time; null: 64 on a CPU, 256 on a GPU"
    )
    kv_cache_gb: float | None = operational(
        None, gt=0, description="KV cache of a vLLM engine, in GB; null: 0.5 on a CPU, by gpu_memory_share on a GPU"
    )
    gpu_memory_share: float = operational(
        0.85, gt=0, le=1, description="share of a GPU's memory that one vLLM engine takes"
    )
    slurm: SlurmSection = operational(SlurmSection(), description="settings of the drivers arrays and resident")

    @property
    def uses_slurm(self) -> bool:
        """Whether tasks become SLURM jobs."""
        return self.driver != "local"

    @property
    def groups(self) -> tuple[PhaseGroup, ...]:
        """The phase groups whose jobs the driver submits."""
        return GROUPS[self.driver]

    @model_validator(mode="after")
    def _ranks_fill_nodes(self) -> ClusterSection:
        nodes = self.slurm.update.nodes
        if self.driver == "arrays" and self.update_ranks % nodes:
            raise ValueError(
                f"update_ranks ({self.update_ranks}) must be a multiple of slurm.update.nodes ({nodes}), "
                "so that every node has the same number of ranks"
            )
        return self

    @model_validator(mode="after")
    def _sleeping_engines(self) -> ClusterSection:
        if self.gpu_sharing in ("auto", "sleep") and self.parts_in_engine > 1:
            raise ValueError(
                f"gpu_sharing: {self.gpu_sharing} lets engines sleep between two parts, which does not work with "
                f"parts_in_engine: {self.parts_in_engine}; remove parts_in_engine, or use gpu_sharing: split or evict"
            )
        return self

    @model_validator(mode="after")
    def _several_ranks_to_divide(self) -> ClusterSection:
        if self.zero_stage == 3 and self.update_ranks == 1:
            raise ValueError(
                "zero_stage: 3 divides the base weights among the ranks, but update_ranks is 1; set update_ranks to 2 "
                "or more, or leave zero_stage out"
            )
        return self

    @model_validator(mode="after")
    def _gpus_of_an_engine(self) -> ClusterSection:
        group: PhaseGroup = "resident" if self.driver == "resident" else "generate"
        num_gpus = self.slurm.num_gpus(group)
        if self.uses_slurm and 0 < num_gpus < self.engine_gpus:
            raise ValueError(
                f"engine_gpus ({self.engine_gpus}) must not exceed the GPUs of a job of slurm.{group} ({num_gpus}), "
                f"because an engine runs on one node; lower engine_gpus, or raise slurm.{group}.gpus_per_node"
            )
        return self

    @model_validator(mode="after")
    def _gpus_of_the_ranks(self) -> ClusterSection:
        group: PhaseGroup = "resident" if self.driver == "resident" else "update"
        job, nodes = ("the resident job", 1) if group == "resident" else ("an update", self.slurm.update.nodes)
        num_gpus = nodes * self.slurm.num_gpus(group)
        if self.uses_slurm and 0 < num_gpus < self.update_ranks:
            raise ValueError(
                f"update_ranks ({self.update_ranks}) must not exceed the {num_gpus} GPUs of {job} (slurm.{group}), "
                f"because each rank needs one of its own; lower update_ranks, or raise slurm.{group}.gpus_per_node"
            )
        return self
