"""The section `cluster.slurm`: what the jobs of each kind ask SLURM for.

In: plain data of a profile or a sweep file. Out: a frozen `SlurmSection`, whose `job` resolves what a job
asks for. Every field is operational. This module calls no command of SLURM.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ValidationInfo, field_validator

from core_hpc.config.base import PositiveInt, Section, on_one_line, operational

_TIME = re.compile(r"(?:(?P<days>[0-9]{1,4})-)?(?P<hours>[0-9]{1,5}):(?P<minutes>[0-5]?[0-9]):(?P<seconds>[0-5]?[0-9])")


def minutes_of(value: Any) -> Any:
    """Minutes of a time limit as SLURM writes it, [D-]HH:MM:SS. Seconds are rounded up.

    Any other value is returned as it is. SLURM reads 1:30 as minutes and seconds, and many people as hours
    and minutes, so this form is refused.

    >>> minutes_of("04:00:00"), minutes_of("1-12:30:01"), minutes_of(90)
    (240, 2191, 90)
    """
    if not isinstance(value, str) or value.strip().isdecimal():
        return value
    match = _TIME.fullmatch(value.strip())
    if match is None:
        raise ValueError("is no time limit; write minutes (90), hours (01:30:00) or days (1-00:00:00)")
    days, hours, minutes, seconds = (int(part or 0) for part in match.group("days", "hours", "minutes", "seconds"))
    return (days * 24 + hours) * 60 + minutes + (seconds > 0)


Minutes = Annotated[PositiveInt, BeforeValidator(minutes_of, json_schema_input_type=PositiveInt | str)]
"""Minutes, which a file may also give as SLURM writes a time limit."""

OPTION_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
OTHER_CLUSTER = re.compile(r"M|cl(u(s(t(e(rs?)?)?)?)?)?")
"""`clusters` of sbatch, its letter, and its beginnings, which sbatch also takes."""


class JobSection(Section):
    """What a SLURM job asks for.

    Every field is optional. A phase group takes a field that it does not set from `slurm` itself,
    and then from `JOB_DEFAULTS` (see `SlurmSection.job`).
    """

    account: str | None = operational(None, description="sbatch --account")
    partition: str | None = operational(None, description="sbatch --partition")
    qos: str | None = operational(None, description="sbatch --qos")
    constraint: str | None = operational(None, description="sbatch --constraint")
    reservation: str | None = operational(None, description="sbatch --reservation")
    gres: str | None = operational(
        None, description="sbatch --gres per node, for example gpu:a100:1; alternative to gpus_per_node"
    )
    gpus_per_node: int | None = operational(None, ge=0, description="sbatch --gpus-per-node")
    cpus: PositiveInt | None = operational(None, description="CPU cores per process (engine or rank); null: 4")
    mem_gb: float | None = operational(None, gt=0, description="memory of the job per node, in GB; null: 32")
    max_mem_gb: float | None = operational(
        None, gt=0, description="memory of the one retry after the job ran out of memory, in GB; null: no such retry"
    )
    time_min: Minutes | None = operational(
        None, description="time limit of a job: minutes (90), hours (1:30:00) or days (1-00:00:00); null: 240"
    )
    setup: list[str] | None = operational(None, description="shell lines before Python: modules, containers, caches")
    options: dict[str, str | int | bool] | None = operational(
        None, description="further sbatch options by their long names"
    )

    @field_validator("*")
    @classmethod
    def _one_line(cls, value: Any, info: ValidationInfo) -> Any:
        return value if info.field_name == "setup" else on_one_line(value)

    @field_validator("setup")
    @classmethod
    def _shell_lines(cls, value: list[str] | None) -> list[str] | None:
        for text in value or []:
            on_one_line(text.replace("\n", "").replace("\t", ""))
        return value

    @field_validator("options")
    @classmethod
    def _option_names(cls, value: dict[str, str | int | bool] | None) -> dict[str, str | int | bool] | None:
        for name in value or {}:
            if not OPTION_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not the long name of an sbatch option, such as mail-type")
            if name == "array":
                raise ValueError("array: jobs have the array elements that their tasks need; leave it out")
            if OTHER_CLUSTER.fullmatch(name):
                raise ValueError(
                    f"{name!r}: jobs run on the cluster of the machine where you start, which is the one that is asked "
                    "about them; leave it out, and start the sweep on a login node of the other cluster"
                )
        return value


class UpdateJobSection(JobSection):
    """The job of one update task."""

    nodes: PositiveInt = operational(
        1,
        description="nodes of one update task; update_ranks are spread evenly over them. Above 1 experimental on "
        "GPUs: only CPUs have run it",
    )


class GenerateJobSection(JobSection):
    """The job of the phases with an engine: cold, rescue, evaluate."""

    parts_per_job: PositiveInt = operational(
        1, description="parts that one array element does one after the other with a warm engine"
    )


class ResidentJobSection(JobSection):
    """The job of the driver `resident`: a whole run on one node, with all its iterations."""

    cpus: PositiveInt | None = operational(
        None, description="CPU cores of the job, shared by its workers; null: slurm.cpus"
    )


class CpuJobSection(JobSection):
    """A job that needs no GPU."""

    gpus_per_node: int | None = operational(0, ge=0, description="sbatch --gpus-per-node")


class ControllerJobSection(CpuJobSection):
    """The job of a detached controller, which only looks at files and at the queue."""

    cpus: PositiveInt | None = operational(1, description="CPU cores of the controller")
    mem_gb: float | None = operational(2.0, gt=0, description="memory of the controller, in GB")


JOB_DEFAULTS = {"cpus": 4, "mem_gb": 32.0, "time_min": 240}
"""What a SLURM job asks for if neither the profile nor the sweep sets it."""

PhaseGroup = Literal["generate", "score", "update", "resident", "controller"]


def gpus_of_gres(gres: str | None) -> int:
    """Count the GPUs in a --gres value.

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
    """How the drivers `arrays` and `resident` submit jobs.

    A field of `JobSection` that is set here holds for all phase groups that do not set it.
    """

    generate: GenerateJobSection = operational(GenerateJobSection(), description="jobs of cold, rescue, evaluate")
    score: CpuJobSection = operational(CpuJobSection(), description="jobs of hint and score")
    update: UpdateJobSection = operational(UpdateJobSection(), description="jobs of update")
    resident: ResidentJobSection = operational(
        ResidentJobSection(), description="the job of a run with the driver resident"
    )
    controller: ControllerJobSection = operational(
        ControllerJobSection(), description="the job of a detached controller"
    )
    python: str | None = operational(
        None, description="command that starts Python on a node; null: the Python that runs the launcher"
    )
    srun_args: list[str] = operational([], description="further arguments of srun")
    array_parallelism: PositiveInt | None = operational(
        None, description="elements of one array that may run at the same time; null: no limit"
    )
    max_submitted: PositiveInt | None = operational(
        None,
        description="most jobs of this user in the queue, under any account or QOS; null: only the limits of the site",
    )
    signal_delay_s: int = operational(120, ge=10, description="seconds before its time limit at which a job is warned")
    chain_wait_s: float | None = operational(
        None,
        ge=0,
        description="driver arrays: seconds that a job waits for the results of other jobs, to continue with the next "
        "phase (hint and rescue after cold, update after score); null: a job does one phase only",
    )
    preemption_grace_s: float = operational(
        30, gt=0, description="seconds that the partition leaves a job after the signal of a preemption"
    )
    requeue: bool = operational(
        True, description="whether SLURM may requeue a job after a node failure or a preemption"
    )
    exclude: list[str] = operational([], description="nodes that are not used")
    exclude_after: PositiveInt = operational(2, description="failures in a row after which a node is excluded")
    poll_s: tuple[float, float] = operational(
        (2, 30), description="shortest and longest time between two looks at the queue, in seconds"
    )
    lost_after_s: float = operational(
        90,
        gt=0,
        description="seconds after which a job counts as lost, if SLURM does not know it or its published files "
        "stay invisible",
    )

    @field_validator("poll_s")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("write two positive numbers of seconds, the shorter first")
        return value

    def job(self, group: PhaseGroup) -> dict[str, Any]:
        """Resolve the fields of `JobSection` for a phase group.

        A value of the group has priority over that of this section, which has priority over the
        default. GPUs are inherited only if the group asks for none itself, by gres or gpus_per_node; its gres
        replaces that of this section.
        """
        own: JobSection = getattr(self, group)
        inherits = {
            "gpus_per_node": not gpus_of_gres(own.gres),
            "gres": own.gpus_per_node is None,
        }
        out = {}
        for name in JobSection.model_fields:
            value = getattr(own, name)
            if value is None and inherits.get(name, True):
                value = getattr(self, name)
            out[name] = JOB_DEFAULTS.get(name) if value is None else value
        return out

    def gpu_mistakes(self) -> list[str]:
        """Mistakes for two requests for GPUs beside each other. A run of an earlier version may have them."""
        groups: dict[str, JobSection] = {f"slurm.{group}": getattr(self, group) for group in get_args(PhaseGroup)}
        return [
            f"{path}: gres ({job.gres}) and gpus_per_node ({job.gpus_per_node}) both ask for GPUs; keep one of them. "
            "null turns off that of a profile: gpus_per_node: null"
            for path, job in {"slurm": self, **groups}.items()
            if job.gpus_per_node and gpus_of_gres(job.gres)
        ]

    def num_gpus(self, group: PhaseGroup) -> int:
        """GPUs per node of a job of this phase group."""
        job = self.job(group)
        return int(job["gpus_per_node"] or gpus_of_gres(job["gres"]))
