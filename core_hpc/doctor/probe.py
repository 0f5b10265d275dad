"""One test job of the doctor: what is known about it, and what its reports mean for the user.

In: a `Probe` that has ended or has waited too long, and the reports of its nodes in its folder. Out: findings. The
jobs are submitted in `doctor/job.py`, and the reports are written in `doctor/node.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core_hpc.common.errors import InputError
from core_hpc.config.cluster import ClusterSection
from core_hpc.config.slurm import PhaseGroup
from core_hpc.doctor.checks import FAIL, OK, WARN, Finding
from core_hpc.doctor.machine import judge_gpus
from core_hpc.doctor.node import report_name
from core_hpc.local.gpus import check_slices
from core_hpc.slurm.outcomes import OOM_WORDS
from core_hpc.store import manifests

WAITING_S = 300.0
"""How long a test job may wait in the queue."""
SILENCE_S = 90.0
"""How long after a job's end its report may take to become visible."""
SLOW_FILE_S, SLOW_IMPORT_S, SKEW_S = 10.0, 120.0, 30.0


@dataclass(kw_only=True)
class Probe:
    """One test job, and what is known about it. Times are those of `time.monotonic`.

    Attributes:
        packages: packages to import on the node.
        job: id of the job; 0 before it is submitted.
        waiting_since: since when it waits in the queue, or None.
        ended: when it was seen to have ended.
        pinged: when the file that the node answers was written.
        answered: when the answer became visible here.
        reported: messages about its state that were reported already.
        never: why it can never start with this profile, if SLURM's reason proves that.
    """

    groups: list[PhaseGroup]
    cluster: ClusterSection
    packages: tuple[str, ...]
    folder: Path
    job: int = 0
    state: str = ""
    waiting_since: float | None = None
    ended: float | None = None
    pinged: float | None = None
    answered: float | None = None
    reported: set[str] = field(default_factory=set)
    never: str | None = None

    @property
    def name(self) -> str:
        return f"test job of {', '.join(f'`{g}`' for g in self.groups)}"

    @property
    def group(self) -> PhaseGroup:
        """The group whose job is submitted. `update` is the last one, because only its job has several ranks."""
        return self.groups[-1]

    @property
    def num_ranks(self) -> int:
        return self.cluster.update_ranks if self.group == "update" else 1


def judge(probe: Probe, *, given: bool) -> Iterator[Finding]:
    """Findings of one test job.

    Args:
        given: whether the user named a sweep. Without one it is unknown which packages are needed.
    """
    reports = []
    for rank in range(probe.num_ranks):
        path = probe.folder / report_name(rank)
        if path.exists():
            reports.append(manifests.read_json(path))
    if probe.never is not None:
        what = f"{probe.name}: job {probe.job} {probe.never}, and was cancelled"
        yield Finding(FAIL, what, "correct the cluster profile")
        return
    if not reports and probe.state == "PENDING":
        what = f"{probe.name}: job {probe.job} still waits after {WAITING_S:.0f} s, and was cancelled"
        advice = "run this again when the queue is shorter; squeue --start shows when waiting jobs may begin"
        yield Finding(WARN, what, advice)
        return
    if len(reports) < probe.num_ranks:
        yield _no_report(probe, len(reports))
    if reports:
        yield from judge_reports(probe.name, reports, cluster=probe.cluster, group=probe.group, given=given)
        yield from _slices(probe, reports)
        yield _visibility(probe, reports[0])


def _slices(probe: Probe, reports: list[dict[str, Any]]) -> Iterator[Finding]:
    """Whether what runs in this job can use the GPUs that were granted, if they are slices (MIG)."""
    cluster, groups = probe.cluster, set(probe.groups)
    try:
        check_slices(
            [name for report in reports for name in report["gpu_names"]],
            update_ranks=cluster.update_ranks if groups & {"update", "resident"} else 1,
            engine_gpus=cluster.engine_gpus if groups & {"generate", "resident"} else 1,
        )
    except InputError as e:
        yield Finding(FAIL, f"{probe.name}: {e}")


def _no_report(probe: Probe, count: int) -> Finding:
    logs = sorted(probe.folder.glob("*_log.out"))
    log = "\n".join(path.read_text(encoding="utf-8", errors="replace")[-1500:] for path in logs[:1]).strip()
    what = f"{probe.name}: job {probe.job} ended ({probe.state}) with {count} of {probe.num_ranks} reports"
    if log:
        advice = "correct cluster.slurm.setup or cluster.slurm.python, then run this again"
        if "No module named 'core_hpc'" in log:
            advice = (
                "start from the folder of the repository, or install core_hpc into the environment "
                "(pip install --no-deps -e .)"
            )
        elif OOM_WORDS.search(log):
            advice = "raise mem_gb: not even the packages could be imported"
        return Finding(FAIL, f"{what}; its log ends with:\n{log}", advice)
    advice = (
        "the nodes do not see this folder, or only under another path: "
        "give a folder on the shared file system as `output`"
    )
    return Finding(FAIL, f"{what} and no log in {probe.folder}", advice)


def _visibility(probe: Probe, report: dict[str, Any]) -> Finding:
    """Judge how long a file takes to become visible on the node and its answer here, and whether the clocks agree."""
    if probe.pinged is None or probe.answered is None:
        what = f"{probe.name}: a file written here was not seen on {report['node']} within {SILENCE_S:.0f} s"
        return Finding(
            FAIL, what, "the nodes do not see new files of `output`: give a folder on the shared file system"
        )
    seconds = probe.answered - probe.pinged
    skew = report["answered_at"] - time.time() + (time.monotonic() - probe.answered)
    if abs(skew) > SKEW_S + seconds:
        what = f"{probe.name}: the clock of {report['node']} differs by {skew:.0f} s from this machine's"
        return Finding(WARN, what, "times in logs and status will disagree; ask the site to synchronise clocks")
    what = f"{probe.name}: a file is seen on {report['node']} and its answer here within {seconds:.1f} s"
    if seconds > SLOW_FILE_S:
        lost_after_s = max(90, round(3 * seconds))
        advice = f"set cluster.slurm.lost_after_s to {lost_after_s} or more, so that the controller waits for files"
        return Finding(WARN, what, advice)
    return Finding(OK, what)


def judge_reports(
    name: str, reports: list[dict[str, Any]], *, cluster: ClusterSection, group: PhaseGroup, given: bool
) -> Iterator[Finding]:
    """Findings about the reports of one test job's ranks."""
    first, job = reports[0], cluster.slurm.job(group)
    limit = "no limit set" if first["mem_limit_gb"] is None else f"limit {first['mem_limit_gb']:.1f} GB"
    gpus = f"{first['gpus_visible']} GPU(s) granted" if first["gpus_visible"] else "no GPU granted"
    nodes = ", ".join(dict.fromkeys(r["node"] for r in reports))
    what = (
        f"{name} on {nodes}: Python {first['python']}, {first['cpus']} cores, "
        f"{first['mem_gb']:.0f} GB of memory ({limit}), {gpus}, {first['tmp_free_gb']:.0f} GB free in {first['tmp']}"
    )
    if first["cpus"] < job["cpus"]:
        yield Finding(
            WARN,
            f"{what}: fewer cores than requested ({job['cpus']})",
            "tasks will be slow: read the site's rules for cpus-per-task",
        )
    elif first["mem_gb"] < job["mem_gb"]:
        yield Finding(
            WARN, f"{what}: less memory than requested ({job['mem_gb']:g} GB)", "lower mem_gb, or use other nodes"
        )
    else:
        yield Finding(OK, what)
    if not first["name_resolves"]:
        advice = "ranks on several nodes use SLURM's address of the node instead; add the node to DNS or /etc/hosts"
        status = WARN if cluster.slurm.update.nodes > 1 else OK
        yield Finding(status, f"{name}: {first['node']} does not resolve its own name", advice)
    for report in reports:
        yield from _imports(name, report, given=given)
        if report["meeting"]:
            advice = (
                "the ranks of an update could not communicate: check firewalls between nodes, "
                "or set cluster.slurm.update.nodes: 1"
            )
            yield Finding(FAIL, f"{name}: {report['meeting']}", advice)
        if report["missing_models"]:
            advice = "put the models on the shared file system, under the same path on all nodes"
            yield Finding(FAIL, f"{name}: {report['node']} does not see {', '.join(report['missing_models'])}", advice)
    yield from _gpus(name, first, wanted=cluster.slurm.num_gpus(group))


def _imports(name: str, report: dict[str, Any], *, given: bool) -> Iterator[Finding]:
    for package, (seconds, error) in report["imports"].items():
        where = f"{name}: import {package} on {report['node']}"
        if error:
            command = f"{report['executable']} -c 'import {package}'"
            advice = f"run `{command}` on a node; then fix the environment or cluster.slurm.setup"
            yield Finding(FAIL if given else WARN, f"{where} failed: {error}", advice)
        elif seconds > SLOW_IMPORT_S:
            yield Finding(
                WARN,
                f"{where} took {seconds:.0f} s",
                "put the environment on a faster file system, or into a container",
            )
        else:
            yield Finding(OK, f"{where} took {seconds:.1f} s")


def _gpus(name: str, report: dict[str, Any], *, wanted: int) -> Iterator[Finding]:
    if report["gpus_visible"] < wanted:
        what = f"{name}: {wanted} GPU(s) requested, {report['gpus_visible']} granted on {report['node']}"
        yield Finding(FAIL, what, "check gres and gpus_per_node of the profile against `sinfo -o '%P %G'`")
        return
    if not wanted:
        return
    if report["gpu"] is None:
        advice = "if these are real GPUs, their driver does not work there: ask the site"
        yield Finding(
            WARN, f"{name}: {wanted} GPU(s) granted, but nvidia-smi does not answer on {report['node']}", advice
        )
        return
    yield judge_gpus(f"{name}: {report['node']}", report["gpu"], report["torch_cuda"])
    seen = report["torch_gpus"]
    if seen is not None and seen < wanted:
        advice = "check whether a container hides them (cluster.slurm.srun_args), and whether the driver fits torch"
        yield Finding(FAIL, f"{name}: torch sees {seen} of {wanted} GPU(s) on {report['node']}", advice)
