"""Checks of SLURM: whether it answers, what the site allows, and whether it would accept the jobs of the profile.

In: a `Subject`. Out: `Finding`s. SLURM is queried through `slurm/commands.py`, and nothing is submitted
(`sbatch --test-only`). The compute nodes are checked in `doctor/job.py`.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from core_hpc.common.errors import InputError
from core_hpc.config.cluster import ClusterSection
from core_hpc.doctor.checks import FAIL, OK, WARN, Check, Finding, Subject, run_checks
from core_hpc.slurm.acceptance import check_accepted
from core_hpc.slurm.commands import Partition

NEEDED_COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
ACCOUNTING_COMMANDS = ("sacct", "sacctmgr")
SLOW_ANSWER_S = 5.0
FEW_JOBS = 20
ACCOUNTING_ADVICE = "jobs that have left the queue cannot be looked up; only status files and logs show how they ended"


def check_slurm(subject: Subject) -> Iterator[Finding]:
    """Run all checks of SLURM, if it is installed and answers."""
    if not subject.asks_slurm:
        yield Finding(OK, "SLURM: not used by this sweep (cluster.driver: local)")
        return
    missing = [c for c in NEEDED_COMMANDS if shutil.which(c) is None]
    if missing:
        advice = "load the site's SLURM module, run this on a login node, or use `driver: local`"
        yield Finding(FAIL, f"SLURM: {', '.join(missing)} not on PATH", advice)
        return
    started = time.monotonic()
    config = subject.slurm.config()  # SlurmUnavailableError becomes a finding, and the other checks are skipped
    seconds = time.monotonic() - started
    version, name = config.get("SLURM_VERSION", "?"), config.get("ClusterName", "?")
    what = f"SLURM {version}, cluster {name}: answers in {seconds:.1f} s"
    if seconds > SLOW_ANSWER_S:
        yield Finding(WARN, what, "it is busy: raise cluster.slurm.poll_s, so that the controller asks less often")
    else:
        yield Finding(OK, what)
    yield from run_checks(SLURM_CHECKS, subject)


def check_partitions(subject: Subject) -> Iterator[Finding]:
    """Report the partitions."""
    partitions = subject.slurm.partitions()
    if not partitions:
        yield Finding(FAIL, "SLURM: no partition that you may use", "ask the site for access")
        return
    yield Finding(OK, f"partitions: {'; '.join(_described(p) for p in partitions.values())}")


def _described(partition: Partition) -> str:
    limit = "no time limit" if partition.time_limit_min is None else f"at most {partition.time_limit_min:g} min"
    parts = [limit, f"{partition.cpus} cores", f"{partition.mem_gb:.0f} GB", *partition.gres]
    parts += [f"preemptible ({partition.grace_s} s)"] if partition.preemptible else []
    parts += [partition.state] if partition.state != "UP" else []
    return f"{partition.name}{'*' if partition.is_default else ''} ({', '.join(parts)})"


def check_limits(subject: Subject) -> Iterator[Finding]:
    """Report how many jobs may be submitted. The controller respects the limits; the user should know them."""
    jobs = [subject.cluster.slurm.job(group) for group in subject.cluster.groups or ("generate",)]
    asked = {(job["partition"], job["qos"], job["account"]) for job in jobs}
    for partition, qos, account in sorted(asked, key=str):
        limits = subject.slurm.limits(partition=partition, qos=qos, account=account)
        where = ", ".join(
            f"{name} {value}" for name, value in (("partition", partition), ("qos", qos), ("account", account)) if value
        )
        most = (
            "no limit of jobs in the queue"
            if limits.max_submitted is None
            else f"at most {limits.max_submitted} jobs in the queue"
        )
        what = f"limits{f' ({where})' if where else ''}: arrays of up to {limits.max_array_size} elements, {most}"
        if limits.max_submitted is not None and limits.max_submitted < FEW_JOBS:
            yield Finding(WARN, what, "the sweep will be slow; raise generate.parts_per_job, or ask for another QOS")
        else:
            yield Finding(OK, what)


def check_queue(subject: Subject) -> Iterator[Finding]:
    """Report the jobs of this user in the queue."""
    states = Counter(entry.state for entry in subject.slurm.queue() if entry.active)
    listed = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    yield Finding(OK, f"your jobs in the queue: {listed or 'none'}")


def check_accounting(subject: Subject) -> Iterator[Finding]:
    """Check whether ended jobs can be looked up."""
    missing = [c for c in ACCOUNTING_COMMANDS if shutil.which(c) is None]
    if missing:
        yield Finding(WARN, f"accounting: {', '.join(missing)} not on PATH", ACCOUNTING_ADVICE)
    elif subject.slurm.accounting([1], since=time.time()) is None:
        storage = subject.slurm.config().get("AccountingStorageType", "unknown")
        yield Finding(WARN, f"accounting ({storage}) does not answer", ACCOUNTING_ADVICE)
    else:
        yield Finding(OK, f"accounting answers; your default account: {subject.slurm.default_account() or 'none'}")


# --- the profile ---------------------------------------------------------------------------------


def check_profile(subject: Subject) -> Iterator[Finding]:
    """Check partition, time, account and QOS of each phase group; then let SLURM test the jobs."""
    if not subject.submits:
        yield Finding(
            OK,
            "cluster profile: none is named; give one with --cluster NAME, or a sweep with `driver: arrays` "
            "or `resident`",
        )
        return
    partitions = subject.slurm.partitions()
    cluster = subject.cluster
    findings = [*_partition_findings(cluster, partitions), *_permission_findings(subject, cluster)]
    try:
        for message in check_accepted(cluster, subject.slurm):
            findings.append(Finding(WARN, message, "start the sweep anyway, or ask the site when its nodes return"))
    except InputError as e:
        findings.append(Finding(FAIL, " ".join(str(e).split()), "correct these fields of the profile"))
    yield from dict.fromkeys(findings)
    if not any(f.status == FAIL for f in findings):
        yield Finding(OK, f"cluster profile {cluster.profile or '(in the sweep)'}: SLURM would accept its jobs")


def _groups_by(cluster: ClusterSection, *fields: str) -> dict[tuple[Any, ...], str]:
    """Values of these fields -> the phase groups that ask for them, as text for a message."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for group in cluster.groups:
        job = cluster.slurm.job(group)
        groups.setdefault(tuple(job[field] for field in fields), []).append(f"`{group}`")
    return {values: f"jobs of {', '.join(names)}" for values, names in groups.items()}


def _partition_findings(cluster: ClusterSection, partitions: dict[str, Partition]) -> Iterator[Finding]:
    default = next((p.name for p in partitions.values() if p.is_default), "")
    for (named, time_min), jobs in _groups_by(cluster, "partition", "time_min").items():
        name = named or default
        partition = partitions.get(name)
        if partition is None:
            what = f"there is no partition {name}" if name else "no partition is named, and there is no default"
            yield Finding(FAIL, f"{jobs}: {what}", f"write one of {', '.join(partitions)} as cluster.slurm.partition")
            continue
        if partition.state != "UP":
            yield Finding(
                WARN,
                f"{jobs} would wait: partition {name} is {partition.state}",
                "run sinfo, or use another partition",
            )
        limit = partition.time_limit_min
        if limit is not None and time_min > limit:
            what = f"{jobs} ask for {time_min} min, partition {name} allows {limit:g}: they might wait forever"
            yield Finding(FAIL, what, f"lower time_min to {int(limit)}")
        if partition.preemptible and not cluster.slurm.requeue:
            yield Finding(
                WARN, f"partition {name} is preemptible, and requeue is false", "set cluster.slurm.requeue: true"
            )
        if partition.preemptible and partition.grace_s < cluster.slurm.preemption_grace_s:
            what = (
                f"partition {name} gives a preempted job {partition.grace_s} s to end, "
                f"and preemption_grace_s of the profile is {cluster.slurm.preemption_grace_s:g}"
            )
            yield Finding(
                WARN,
                what,
                f"set cluster.slurm.preemption_grace_s: {max(1, partition.grace_s)}, so that jobs stop in time",
            )


def _permission_findings(subject: Subject, cluster: ClusterSection) -> Iterator[Finding]:
    """Compare account and QOS with SLURM's accounting. A mismatch is a failure only where SLURM enforces them."""
    associations, known_qos = subject.slurm.associations(), subject.slurm.qos()
    enforced = subject.slurm.config().get("AccountingStorageEnforce", "none").lower() not in ("none", "0", "")
    status, ending = (FAIL, "") if enforced else (WARN, "; SLURM does not check it here")
    for (account, qos), jobs in _groups_by(cluster, "account", "qos").items():
        mine = [a for a in associations or [] if account is None or a.account == account]
        if account is not None and associations and not mine:
            accounts = ", ".join(sorted({a.account for a in associations}))
            yield Finding(
                status, f"{jobs}: you are not in account {account}{ending}", f"write one of {accounts} as account"
            )
        if qos is None or known_qos is None:
            continue
        if qos not in known_qos:
            yield Finding(
                status, f"{jobs}: there is no QOS {qos}{ending}", f"write one of {', '.join(known_qos)} as qos"
            )
        elif mine and not any(qos in a.qos for a in mine):
            allowed = ", ".join(sorted({q for a in mine for q in a.qos})) or "none"
            yield Finding(status, f"{jobs}: QOS {qos} is not open to you{ending}", f"use one of: {allowed}")


SLURM_CHECKS: tuple[Check, ...] = (check_partitions, check_limits, check_queue, check_accounting, check_profile)
