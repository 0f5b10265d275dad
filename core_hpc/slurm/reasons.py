"""Reasons for which a job can never start, and what to change in the cluster profile.

In: the reason of a waiting job, or a message of sbatch, which names the same reasons. Out: what it
means. A limit per job never passes. Limits that count several jobs (`Grp`, `PerUser`, `PerAccount`,
`Jobs`, `Submit`) pass when other jobs end, and are not treated here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from core_hpc.slurm.parse import QueueEntry


class Never(NamedTuple):
    """Why a waiting job can never start, and whether a further attempt is useless."""

    why: str
    is_useless_again: bool


_NEVER = {
    "DependencyNeverSatisfied": Never("waits for a job that failed", False),
    "launch_failed_requeued_held": Never("could not be launched, and SLURM holds it", False),
    "JobHoldMaxRequeue": Never("was requeued too often, and SLURM holds it", False),
    "BadConstraints": Never("asks for what no node has: correct the cluster profile", True),
    "InvalidAccount": Never("names an account that SLURM does not know: correct the cluster profile", True),
    "InvalidQOS": Never("names a QOS that SLURM does not know: correct the cluster profile", True),
}
_PARTITION_LIMITS = {
    "PartitionTimeLimit": "asks for more time than its partition allows: lower time_min in the cluster profile",
    "PartitionNodeLimit": "asks for more nodes than its partition allows: correct the cluster profile",
}
_MOST_PER_JOB = re.compile(r"\b(?:QOS|Assoc)Max([A-Za-z]+?)(Minutes)?Per(?:Job|Node)(?:Limit)?\b|\bMaxMemPerLimit\b")
_LEAST_PER_JOB = re.compile(r"\bQOSMin([A-Z][A-Za-z]*?)(?:NotSatisfied)?\b")
_FIELDS = {
    "WallDuration": "time_min",
    "Cpu": "cpus",
    "GRES": "gpus_per_node or gres",
    "Mem": "mem_gb",
    "Memory": "mem_gb",
    "Node": "update.nodes",
}
"""What a limit per job refers to -> fields of the profile."""


def correction(text: str) -> str | None:
    """What to change in the cluster profile because of a limit per job; None: the text names no such limit.

    >>> correction("QOSMaxWallDurationPerJobLimit"), correction("QOSMaxJobsPerUserLimit")
    ('lower time_min in the cluster profile', None)
    """
    if match := _MOST_PER_JOB.search(text):
        fields = _FIELDS.get(match[1] or "Mem", "what jobs ask for")
        return f"lower {fields}{' or time_min' if match[2] else ''} in the cluster profile"
    if match := _LEAST_PER_JOB.search(text):
        return f"raise {_FIELDS.get(match[1], 'what jobs ask for')} in the cluster profile"
    return None


def why_never(job: QueueEntry) -> Never | None:
    """Why a waiting job can never start; None: it may start.

    The limit of one partition or QOS proves nothing about a job that names several.
    """
    if job.reason in _NEVER:
        return _NEVER[job.reason]
    if any("," in (name or "") for name in (job.place.partition, job.place.qos)):
        return None
    if job.reason in _PARTITION_LIMITS:
        return Never(_PARTITION_LIMITS[job.reason], True)
    change = correction(job.reason)
    return Never(f"is outside a limit per job: {change}", True) if change is not None else None
