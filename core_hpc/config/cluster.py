"""The section `cluster` of the configuration: where and how tasks run. Nothing here changes results beyond rounding."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from core_hpc.config.base import PositiveInt, Section, operational


class JobSection(Section):
    """What a SLURM job asks for. Everything is optional: a phase group inherits what it does not say (`SlurmSection.job`)."""

    account: str | None = operational(None, description="sbatch --account")
    partition: str | None = operational(None, description="sbatch --partition")
    qos: str | None = operational(None, description="sbatch --qos")
    constraint: str | None = operational(None, description="sbatch --constraint")
    reservation: str | None = operational(None, description="sbatch --reservation")
    gres: str | None = operational(
        None, description="sbatch --gres, for example gpu:a100:1 (per node); or give gpus_per_node"
    )
    gpus_per_node: int | None = operational(None, ge=0, description="sbatch --gpus-per-node")
    cpus: PositiveInt | None = operational(None, description="CPU cores of one process (a rank, an engine)")
    mem_gb: float | None = operational(None, gt=0, description="memory of a node of the job")
    max_mem_gb: float | None = operational(
        None, gt=0, description="memory of the one retry after running out; default: no such retry"
    )
    time_min: PositiveInt | None = operational(None, description="time limit of one job")
    setup: list[str] | None = operational(None, description="shell lines before Python: modules, containers, caches")
    options: dict[str, str | int | bool] | None = operational(
        None, description="more sbatch options by their long name"
    )


class UpdateJobSection(JobSection):
    """The job of one update task."""

    nodes: PositiveInt = operational(
        1, description="nodes of one update task; update_ranks are spread evenly over them"
    )


class GenerateJobSection(JobSection):
    """The job of the phases with an engine: cold, rescue, evaluate."""

    parts_per_job: PositiveInt = operational(
        1, description="parts that one array element does, one after the other, with a warm engine"
    )


class ResidentJobSection(JobSection):
    """The job of the driver `resident`: a whole run, on one node, iteration after iteration."""

    cpus: PositiveInt | None = operational(None, description="CPU cores of the job; its workers share them")


class CpuJobSection(JobSection):
    """A job that needs no GPU."""

    gpus_per_node: int | None = operational(0, ge=0, description="sbatch --gpus-per-node")


class ControllerJobSection(CpuJobSection):
    """The job of a detached controller: it only looks at files and the queue."""

    cpus: PositiveInt | None = operational(1, description="CPU cores")
    mem_gb: float | None = operational(2.0, gt=0, description="memory")


JOB_DEFAULTS = {"cpus": 4, "mem_gb": 32.0, "time_min": 240}
"""What a SLURM job asks for where neither the profile nor the sweep says so."""

PhaseGroup = Literal["generate", "score", "update", "resident", "controller"]
Driver = Literal["local", "arrays", "resident"]

GROUPS: dict[Driver, tuple[PhaseGroup, ...]] = {
    "local": (),
    "arrays": ("generate", "score", "update", "controller"),
    "resident": ("resident", "controller"),
}
"""The phase groups whose jobs a driver submits."""


def gpus_of_gres(gres: str | None) -> int:
    """GPUs in a --gres value.

    >>> gpus_of_gres("gpu:a100:4,lscratch:10"), gpus_of_gres("gres/gpu:2"), gpus_of_gres("gpu"), gpus_of_gres(None)
    (4, 2, 1, 0)
    """
    total = 0
    for item in (gres or "").split(","):
        name, *rest = item.strip().partition("(")[0].split(":")
        if name.removeprefix("gres/") == "gpu":
            total += int(rest[-1]) if rest and rest[-1].isdigit() else 1
    return total


class SlurmSection(JobSection):
    """How the drivers `arrays` and `resident` submit. Fields of a job that stand here hold for all groups that do not set them."""

    generate: GenerateJobSection = operational(GenerateJobSection(), description="cold, rescue, evaluate")
    score: CpuJobSection = operational(CpuJobSection(), description="hint and score")
    update: UpdateJobSection = operational(UpdateJobSection())
    resident: ResidentJobSection = operational(
        ResidentJobSection(), description="one job a run, on one node (driver resident)"
    )
    controller: ControllerJobSection = operational(ControllerJobSection())
    python: str | None = operational(
        None, description="command that starts Python on a node; default: the Python that runs the launcher"
    )
    srun_args: list[str] = operational([], description="more arguments for srun")
    array_parallelism: PositiveInt | None = operational(None, description="elements of one array that may run at once")
    max_submitted: PositiveInt | None = operational(
        None, description="jobs of this user in the queue at most, beside the site's own limit"
    )
    signal_delay_s: int = operational(120, ge=10, description="a job is warned so long before its time limit")
    chain_wait_s: float | None = operational(
        None,
        ge=0,
        description="driver arrays: a job goes on with what follows (hint and rescue after cold, update after score) if what "
        "other jobs of its kind must do first is there within so many seconds; default: a job does one phase only",
    )
    preemption_grace_s: float = operational(
        30, gt=0, description="what the partition leaves a job after the signal of a preemption"
    )
    requeue: bool = operational(
        True, description="SLURM may put a job back into the queue when its node fails or it is preempted"
    )
    exclude: list[str] = operational([], description="nodes not to use")
    exclude_after: PositiveInt = operational(2, description="failures in a row after which a node is not used any more")
    poll_s: tuple[float, float] = operational(
        (2, 30), description="shortest and longest time between two looks at the queue"
    )
    lost_after_s: float = operational(
        90,
        gt=0,
        description="how long a job may be unknown to SLURM, or its published files invisible, before it counts as lost",
    )

    @field_validator("poll_s")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("write two positive numbers of seconds, the shorter first")
        return value

    def job(self, group: PhaseGroup) -> dict[str, Any]:
        """The fields of JobSection for a phase group: its own, else the section's, else the default."""
        own: JobSection = getattr(self, group)
        inherits_gpus = own.gpus_per_node is None and own.gres is None
        out = {}
        for name in JobSection.model_fields:
            value = getattr(own, name)
            if value is None and (name not in ("gpus_per_node", "gres") or inherits_gpus):
                value = getattr(self, name)
            out[name] = JOB_DEFAULTS.get(name) if value is None else value
        return out

    def num_gpus(self, group: PhaseGroup) -> int:
        """GPUs of one node of a phase group's job."""
        job = self.job(group)
        return int(job["gpus_per_node"] or gpus_of_gres(job["gres"]))


class ClusterSection(Section):
    """Where and how tasks run. Nothing here changes results beyond rounding."""

    profile: str | None = operational(
        None, description="cluster profile to inherit from: a name in yaml/cluster, or a YAML file"
    )
    driver: Driver = operational(
        "local",
        description="local: this machine; arrays: SLURM job arrays, one a phase; resident: one SLURM job a run, for all phases",
    )
    num_running: PositiveInt | None = operational(
        None, description="tasks at the same time on this machine; default: by cores or GPUs"
    )
    num_alive: PositiveInt | None = operational(
        None, description="warm workers kept in memory; default: all when there are no GPUs"
    )
    threads: PositiveInt | None = operational(
        None, description="CPU threads of a task; default: cores / num_running, or the job's cores"
    )
    gpus: list[int] | None = operational(None, description="GPU indices to use; default: all that are visible")
    gpu_sharing: Literal["auto", "evict", "split", "sleep"] = operational(
        "evict",
        description="evict: a GPU has one worker at a time, which ends when another needs it; split: engines and trainers stay "
        "on a GPU together and take turns, each engine with its gpu_memory_share, trainers with the rest; sleep: likewise, but an engine "
        "(vllm) leaves its memory while another worker has its turn, and its share follows from the sizes of models and GPU; auto: "
        "the best of split, sleep and evict that memory allows. Not for arrays",
    )
    parts_in_engine: PositiveInt = operational(
        1,
        description="parts of one model that an engine samples at once (vllm; not with arrays): with more than one, the rescue of parts "
        "that are done goes on beside the longest completions of others. Last digits then depend on what happened to run together",
    )
    update_ranks: PositiveInt = operational(
        1, description="processes of one update task (ZeRO-2); with resident, on its one node"
    )
    max_attempts: PositiveInt = operational(3, description="tries of one task before its run is stopped")
    kv_cache_gb: float | None = operational(
        None, gt=0, description="vLLM's KV cache; default: 0.5 on CPU, by share of memory on GPU"
    )
    gpu_memory_share: float = operational(0.85, gt=0, le=1, description="share of a GPU that one vLLM engine takes")
    slurm: SlurmSection = operational(SlurmSection(), description="used by the drivers arrays and resident")

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
        if self.driver == "arrays" and self.update_ranks % self.slurm.update.nodes:
            raise ValueError(
                f"update_ranks ({self.update_ranks}) must be a multiple of slurm.update.nodes ({self.slurm.update.nodes}), "
                "so that every node gets as many ranks"
            )
        return self

    @model_validator(mode="after")
    def _sleeping_engines(self) -> ClusterSection:
        if self.gpu_sharing in ("auto", "sleep") and self.parts_in_engine > 1:
            raise ValueError(
                f"gpu_sharing: {self.gpu_sharing} lets engines sleep between two parts: leave out parts_in_engine "
                f"({self.parts_in_engine}), or write gpu_sharing: split or evict"
            )
        return self

    @model_validator(mode="after")
    def _resident_gpus(self) -> ClusterSection:
        num_gpus = self.slurm.num_gpus("resident")
        if self.driver == "resident" and 0 < num_gpus < self.update_ranks:
            raise ValueError(
                f"update_ranks ({self.update_ranks}) are ranks on one node with the driver resident, whose job has {num_gpus} GPU(s): "
                "lower update_ranks, or raise slurm.resident.gpus_per_node"
            )
        return self
