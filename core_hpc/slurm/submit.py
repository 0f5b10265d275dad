"""Submissions to SLURM: the parameters of a job, its batch script, and how it is submitted.

In: a cluster section, and what a job runs. Out: batch scripts, and submitted jobs with their
records (`slurm/records.py`). A record is written before sbatch is called. Its unique name is the
name of the job, so the next controller finds the job by name if this one dies in between. What is
submitted when is decided in `slurm/executor.py` and the packing strategies.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core_hpc.common.errors import InputError
from core_hpc.config.base import CONTROL
from core_hpc.config.cluster import ClusterSection
from core_hpc.config.slurm import PhaseGroup
from core_hpc.slurm.commands import SLURM_VARIABLE, QueueEntry
from core_hpc.slurm.job import write_calls
from core_hpc.slurm.records import CALLS, SCRIPT, Submission, SubmissionFolder
from core_hpc.slurm.sbatch import RefusedError, run_sbatch
from core_hpc.store import manifests
from core_hpc.store.schema import GENERATION_PHASES, TRAINING_PHASES

OUTER_JOB = re.compile(
    SLURM_VARIABLE + r"|SLURMD_|SRUN_|PMI_|PMIX_|(CUDA|ROCR)_VISIBLE_DEVICES$|SUBMITIT_(?!PREEMPT)"
    r"|CORE_HPC_(RENDEZVOUS|JOB_START)$"
)
"""Variables that a job has from SLURM, srun, submitit or its batch script."""
JOB_VARIABLES = (
    *("JOB_NAME", "TIMELIMIT", "ARRAY_INX", "SIGNAL", "DEPENDENCY", "REQUEUE", "NO_REQUEUE", "CLUSTERS", "WAIT"),
    *("INPUT", "OUTPUT", "ERROR", "OPEN_MODE", "MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU", "CPUS_PER_GPU"),
    "TRES_PER_TASK",
)
"""Variables SBATCH_* of what core_hpc decides for every job, and of options that exclude those of its scripts."""
GPU_VARIABLES = ("GRES", "GPUS", "GPUS_PER_NODE", "GPUS_PER_SOCKET", "GPUS_PER_TASK")
"""Variables SBATCH_* that ask for GPUs. If a script has one of these options, none of the others may add to it."""
RENAMED_VARIABLES = {"switches": "REQ_SWITCH", "cpu-freq": "CPU_FREQ_REQ"}
"""Options of sbatch whose variable SBATCH_* has another name."""
SCRIPT_OPTION = re.compile(r"^#SBATCH --([a-z-]+)", re.MULTILINE)
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables of torch.distributed."""
OWN_ROOT = Path(__file__).resolve().parents[2]
"""The folder that contains the package core_hpc."""


def group_of(phase: str) -> PhaseGroup:
    """The phase group whose job section a phase uses."""
    return "generate" if phase in GENERATION_PHASES else "update" if phase in TRAINING_PHASES else "score"


# --- parameters and scripts ----------------------------------------------------------------------


def python_command(cluster: ClusterSection) -> str:
    """The Python command, as it is written into batch scripts."""
    return cluster.slurm.python or shlex.quote(sys.executable)


def _python_path() -> list[str]:
    """Shell lines so that Python in a job does not search the working directory for modules.

    This folder may be shared, and anybody who can write into it could put a module there. If
    core_hpc itself comes from the working directory, the folder is named.
    """
    lines = ["export PYTHONSAFEPATH=1"]
    if Path.cwd().resolve() == OWN_ROOT:
        lines.append(f'export PYTHONPATH={shlex.quote(str(Path.cwd()))}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    return lines


def job_parameters(
    cluster: ClusterSection,
    group: PhaseGroup,
    *,
    name: str,
    comment: str,
    mem_gb: float | None = None,
    excluded: Sequence[str] = (),
    dependency: str | None = None,
) -> dict[str, Any]:
    """The parameters of a job of this group, as submitit names them.

    Args:
        comment: shown by SLURM beside the job.
        mem_gb: memory per node; None: as configured.
        excluded: nodes to avoid, besides the configured ones.
        dependency: as for `sbatch --dependency`.
    """
    slurm = cluster.slurm
    job = slurm.job(group)
    nodes, ranks = (slurm.update.nodes, cluster.update_ranks) if group == "update" else (1, 1)
    setup = ['CORE_HPC_JOB_START="$(date +%s)"', "export CORE_HPC_JOB_START", *(job["setup"] or [])]
    setup += _python_path()
    if group == "update":
        setup.append(f'CORE_HPC_RENDEZVOUS="$({python_command(cluster)} -m core_hpc.slurm.rendezvous)" || exit 1')
        setup.append("export CORE_HPC_RENDEZVOUS")
    more: dict[str, Any] = {"requeue" if slurm.requeue else "no-requeue": True, "kill-on-invalid-dep": "yes"}
    more |= {"reservation": job["reservation"]} if job["reservation"] else {}
    more |= {k: v for k, v in (job["options"] or {}).items() if v is not False}
    exclude = ",".join(dict.fromkeys([*slurm.exclude, *excluded]))
    parameters = {
        "job_name": name,
        "comment": comment,
        "time": job["time_min"],
        "nodes": nodes,
        "ntasks_per_node": ranks // nodes,
        "cpus_per_task": job["cpus"],
        "mem": f"{round((mem_gb or job['mem_gb']) * 1024)}MB",
        "gpus_per_node": job["gpus_per_node"] or None,
        "gres": job["gres"],
        "partition": job["partition"],
        "account": job["account"],
        "qos": job["qos"],
        "constraint": job["constraint"],
        "exclude": exclude or None,
        "dependency": dependency,
        "signal_delay_s": slurm.signal_delay_s,
        "array_parallelism": slurm.array_parallelism or 100_000,
        "stderr_to_stdout": True,
        "wckey": None,
        "setup": setup,
        "additional_parameters": more,
        # Since SLURM 22.05 a step does not inherit cpus-per-task. A rank that fails must end the
        # other ranks, which would wait for it.
        # No time limit between the ends of two ranks: rank 0 may hash a large result for minutes.
        "srun_args": [f"--cpus-per-task={job['cpus']}", "--kill-on-bad-exit=1", "--wait=0", *slurm.srun_args],
    }
    return {k: v for k, v in parameters.items() if v is not None or k == "wckey"}


def batch_script(
    cluster: ClusterSection,
    folder: Path,
    parameters: dict[str, Any],
    *,
    num_elements: int,
    checksum: str = "CHECKSUM",
) -> str:
    """The batch script of a job. It can be made without SLURM.

    Args:
        folder: the folder of the submission.
        checksum: that of the file with the calls (`slurm/job.py`).
    """
    from submitit.slurm.slurm import _make_sbatch_string

    folder = folder.absolute()
    for value in (str(folder), python_command(cluster), *map(str, parameters.values())):
        if CONTROL.search(value):
            raise InputError(f"{value[:200]!r}: has a line break, which would add lines to the batch script; rename it")
    command = f"{python_command(cluster)} -u -m core_hpc.slurm.job {shlex.quote(str(folder / CALLS))} {checksum}"
    map_count = num_elements if num_elements > 1 else None
    return str(_make_sbatch_string(command=command, folder=folder, map_count=map_count, **parameters))


# --- submitting ----------------------------------------------------------------------------------


@contextlib.contextmanager
def submission_environment(script: str = "") -> Iterator[None]:
    """An environment in which sbatch starts an independent job as its script describes it, also when called in a job.

    sbatch passes its environment to the new job, so the variables of the outer job are hidden.
    Those that sbatch needs to reach SLURM stay visible. A variable SBATCH_* has priority over the
    script, so it stays only where the script leaves the choice to the site, such as its account.
    """
    away = {*RANK_VARIABLES, *_replacing(script)}
    hidden = {k: os.environ.pop(k) for k in list(os.environ) if OUTER_JOB.match(k) or k in away}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _replacing(script: str) -> set[str]:
    """The variables that would replace what a batch script sets."""
    names = {RENAMED_VARIABLES.get(o, o.upper().replace("-", "_")) for o in SCRIPT_OPTION.findall(script)}
    more = GPU_VARIABLES if not names.isdisjoint(GPU_VARIABLES) else ()
    return {f"SBATCH_{name}" for name in (*names, *JOB_VARIABLES, *more)}


def submit(
    cluster: ClusterSection, folder: Path, parameters: dict[str, Any], calls: Sequence[functools.partial[None]]
) -> int:
    """Submit one array, or an ordinary job if there is only one call.

    Args:
        folder: for the script, the calls and the logs.
        calls: what each element runs (`slurm/job.py`).

    Returns:
        The id of the job.

    Raises:
        RefusedError: sbatch refused the submission; with its message. If it is `unsure`, the folder
            stays, because SLURM may have taken the job.
    """
    manifests.make_folder(folder)
    checksum = write_calls(folder, calls)
    script = batch_script(cluster, folder, parameters, num_elements=len(calls), checksum=checksum)
    manifests.write_synced(folder / SCRIPT, script.encode())
    try:
        with submission_environment(script):
            return run_sbatch(script)
    except RefusedError as e:
        if not e.unsure:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def find_job(entries: Iterable[QueueEntry], submission: Submission) -> int | None:
    """The job of a submission among the entries of the queue, by its unique name."""
    return next((entry.id.job for entry in entries if entry.name == submission.name), None)


def submit_elements(
    folder: SubmissionFolder, submission: Submission, cluster: ClusterSection, run_root: Path
) -> Submission:
    """Write the record of a submission, submit it, and write the id of its job into the record.

    Returns:
        The submission with its job.

    Raises:
        RefusedError: sbatch refused it, and the record is removed; or it is `unsure`, and the
            record stays without a job.
    """
    from core_hpc.slurm.element import ElementSpec, run_element
    from core_hpc.slurm.resident_job import run_resident

    slurm = cluster.slurm
    job = slurm.job(submission.group)
    folder.write(submission)
    in_job = run_resident if submission.group == "resident" else run_element
    calls = []
    for index, tasks in enumerate(submission.elements):
        spec = ElementSpec(
            run=str(run_root),
            tasks=tuple(tasks),
            status=str(folder.status_file(submission, index)),
            threads=cluster.threads or job["cpus"],
            time_min=job["time_min"],
            signal_delay_s=slurm.signal_delay_s,
            preemption_grace_s=slurm.preemption_grace_s,
            chain_wait_s=slurm.chain_wait_s or 0.0,
            engine_gpus=cluster.engine_gpus,
        )
        calls.append(functools.partial(in_job, spec))
    parameters = job_parameters(
        cluster,
        submission.group,
        name=submission.name,
        comment=f"core_hpc {run_root.name}",
        mem_gb=submission.mem_gb,
        excluded=submission.excluded,
    )
    try:
        number = submit(cluster, folder.folder(submission), parameters, calls)
    except RefusedError as e:
        if not e.unsure:
            folder.discard(submission)
        raise
    submission = replace(submission, job=number)
    folder.write(submission)
    return submission
