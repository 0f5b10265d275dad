"""Submissions to SLURM: what is asked for, the record of what was asked, and the call of submitit.

A record is written before sbatch is called, and its unique name is the job's name: a controller that dies in between
finds the job again by that name. A record's suffix says what it is good for, so that a listing tells without reading:

    RUN/slurm/NAME.open.json      elements of it may be waiting or running
    RUN/slurm/NAME.ended.json     all its elements did their tasks
    RUN/slurm/NAME.failed.json    closed, and some element failed (its outcomes say how)
    RUN/slurm/NAME/               script, logs, element-0000.json: the status files of element.py

When something is submitted, and what follows from an outcome, is decided in executor.py, arrays.py and resident.py.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.config.cluster import ClusterSection, PhaseGroup
from core_hpc.slurm.commands import SlurmUnavailableError
from core_hpc.slurm.records import Submission, SubmissionFolder
from core_hpc.store import manifests
from core_hpc.store.schema import GENERATION_PHASES, UPDATE

OUTER_JOB = re.compile(
    r"SLURM_(?!CONF$)|SLURMD_|SRUN_|PMI_|PMIX_|(CUDA|ROCR)_VISIBLE_DEVICES$|SUBMITIT_(?!PREEMPT)|CORE_HPC_(RENDEZVOUS|JOB_START)$"
)
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PASSING = re.compile(
    r"socket timed out|unable to contact slurm|connection refused|zero bytes|temporarily|backup controller|try again"
    r"|accounting/qos policy|submit ?job|submit limit|job limit|too many|slurmdbd",
    re.IGNORECASE,
)
LIMIT = re.compile(r"accounting/qos policy|submit ?job|submit limit|job limit|too many", re.IGNORECASE)


class RefusedError(CoreHpcError):
    """sbatch did not take a submission. `passing`: it may later; `limit`: this user has too many jobs."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.passing = bool(PASSING.search(words))
        self.limit = bool(LIMIT.search(words))


def group_of(phase: str) -> PhaseGroup:
    """The phase group whose job section a phase uses."""
    return "generate" if phase in GENERATION_PHASES else "update" if phase == UPDATE else "score"


# --- what is asked for ---------------------------------------------------------------------------


def python_command(cluster: ClusterSection) -> str:
    return cluster.slurm.python or shlex.quote(sys.executable)


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
    """submitit's parameters of a job of this group."""
    slurm = cluster.slurm
    job = slurm.job(group)
    nodes, ranks = (slurm.update.nodes, cluster.update_ranks) if group == "update" else (1, 1)
    setup = ['CORE_HPC_JOB_START="$(date +%s)"', "export CORE_HPC_JOB_START", *(job["setup"] or [])]
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
        # Since Slurm 22.05 a step does not inherit cpus-per-task. A rank that fails must end the others, which wait for it.
        "srun_args": [f"--cpus-per-task={job['cpus']}", "--kill-on-bad-exit=1", "--wait=120", *slurm.srun_args],
    }
    return {k: v for k, v in parameters.items() if v is not None or k == "wckey"}


def batch_script(cluster: ClusterSection, folder: Path, parameters: dict[str, Any], *, num_elements: int) -> str:
    """The script that submitit gives to sbatch. Needs no SLURM."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = folder.absolute()
    command = f"{python_command(cluster)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return str(
        _make_sbatch_string(
            command=command, folder=folder, map_count=num_elements if num_elements > 1 else None, **parameters
        )
    )


# --- submitting ----------------------------------------------------------------------------------


@contextlib.contextmanager
def submission_environment() -> Iterator[None]:
    """An environment in which sbatch starts a job of its own right, also from inside another job.

    Variables of the outer job would leak into the new one (sbatch passes the environment on); SLURM_CONF must stay.
    """
    hidden = {k: os.environ.pop(k) for k in list(os.environ) if OUTER_JOB.match(k) or k in RANK_VARIABLES}
    try:
        yield
    finally:
        os.environ.update(hidden)


def submit(
    cluster: ClusterSection, folder: Path, parameters: dict[str, Any], calls: Sequence[Callable[[], Any]]
) -> int:
    """Submit one array (a plain job if there is one call only); returns its job id. RefusedError has sbatch's words."""
    from submitit.core.utils import FailedJobError
    from submitit.slurm.slurm import SlurmExecutor

    manifests.make_folder(folder)
    executor = SlurmExecutor(folder, python=python_command(cluster))
    executor.update_parameters(**parameters)
    try:
        with submission_environment(), contextlib.redirect_stderr(io.StringIO()):
            jobs = executor.submit_array(list(calls))
    except FailedJobError as e:
        for path in folder.glob("*"):
            path.unlink()
        folder.rmdir()
        raise RefusedError(" ".join(str(e).split()) or "sbatch failed without a word") from e
    return int(jobs[0].job_id.partition("_")[0])


def submit_elements(
    folder: SubmissionFolder, submission: Submission, cluster: ClusterSection, run_root: Path
) -> Submission:
    """Record, submit, record the job's id. The returned submission has its job."""
    from core_hpc.slurm.element import ElementSpec, run_element
    from core_hpc.slurm.resident_job import run_resident

    slurm = cluster.slurm
    job = slurm.job(submission.group)
    folder.write(submission)
    calls = [
        functools.partial(
            run_resident if submission.group == "resident" else run_element,
            ElementSpec(
                str(run_root),
                tuple(tasks),
                str(folder.status_file(submission, i)),
                cluster.threads or job["cpus"],
                job["time_min"],
                slurm.signal_delay_s,
                slurm.preemption_grace_s,
                slurm.chain_wait_s or 0.0,
            ),
        )
        for i, tasks in enumerate(submission.elements)
    ]
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
    except RefusedError:
        folder.discard(submission)
        raise
    submission = replace(submission, job=number)
    folder.write(submission)
    return submission


def check_accepted(cluster: ClusterSection) -> None:
    """Ask SLURM whether it would take the jobs of a profile, without submitting any; InputError with its words if not."""
    asked = set()
    mistakes = []
    for group in cluster.groups:
        parameters = job_parameters(cluster, group, name="core_hpc-check", comment="")
        script = batch_script(cluster, Path("/dev/null"), parameters, num_elements=1)
        if script in asked:
            continue
        asked.add(script)
        with submission_environment():
            try:
                done = subprocess.run(
                    ["sbatch", "--test-only"], input=script, text=True, capture_output=True, timeout=60, check=False
                )
            except subprocess.TimeoutExpired as e:
                raise SlurmUnavailableError(
                    "sbatch --test-only did not answer within 60 s; try again when SLURM is well"
                ) from e
        words = " ".join(done.stderr.split())
        if done.returncode != 0 and not PASSING.search(words):
            mistakes.append(f"cluster.slurm, jobs of `{group}`: {words.removeprefix('allocation failure: ')}")
    if mistakes:
        raise InputError(
            "SLURM would refuse these jobs; nothing was submitted\n" + "\n".join(f"  - {m}" for m in mistakes)
        )
