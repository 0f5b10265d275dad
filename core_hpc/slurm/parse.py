"""Parsing of what the commands of SLURM print.

In: text. Out: plain records. The functions are pure; the commands run in `slurm/commands.py`.
Sites print notices before the answers of the commands (quotas, maintenance). A line that does not
have the form of an answer is left out. Output of squeue without its header, or with an unexpected
format, raises a SlurmUnavailableError, and nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from core_hpc.common.errors import CoreHpcError

ACTIVE = frozenset(
    {
        "PENDING",
        "RUNNING",
        "SUSPENDED",
        "COMPLETING",
        "CONFIGURING",
        "REQUEUED",
        "REQUEUE_FED",
        "REQUEUE_HOLD",
        "SPECIAL_EXIT",
        "RESIZING",
        "RESV_DEL_HOLD",
        "SIGNALING",
        "STAGE_OUT",
        "STOPPED",
        "EXPEDITING",
        "POWER_UP_NODE",
        "UPDATE_DB",
    }
)
"""States in which a job may still run or run again."""
FINAL = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "TIMEOUT",
    }
)
"""States in which a job has ended. A state in neither set (of a later SLURM) proves nothing."""

_FIELD, _RECORD = "\x1f", "\x1e\n"
"""Separators. The name of a job may contain any character, also a line break, so it comes last."""
_QUEUE_FIELDS = (
    *("ArrayJobID", "ArrayTaskID", "State", "Reason", "RestartCnt", "NodeList"),
    *("Account", "Partition", "QOS", "Name"),
)
QUEUE_FORMAT = ",".join(f"{name}:{_FIELD}" for name in _QUEUE_FIELDS[:-1]) + f",{_QUEUE_FIELDS[-1]}:{_RECORD[0]}"
MOST_INDEX = 4_000_000
"""SLURM has no array with a larger index."""
_HEADER = re.compile(r"[A-Z_]+")
_JOB_ID = re.compile(r"([0-9]{1,18})(?:_([0-9]{1,18}|\[.*\])|\+[0-9]+)?")
_EXIT_CODE = re.compile(r"([0-9]{1,9})(?::([0-9]{1,9}))?")
_STATE = re.compile(r"[A-Z_]+")
_SETTING = re.compile(r"\w+")


class SlurmUnavailableError(CoreHpcError):
    """SLURM did not answer (slurmctld is down, or a time-out). Nothing is known about its jobs."""


@dataclass(frozen=True, order=True, slots=True)
class JobId:
    """An ordinary job (index None) or an element of an array.

    >>> str(JobId(123, 4)), str(JobId(123))
    ('123_4', '123')
    """

    job: int
    index: int | None = None

    def __str__(self) -> str:
        return f"{self.job}" if self.index is None else f"{self.job}_{self.index}"


class Place(NamedTuple):
    """What the limits of the queue refer to.

    Of a job: its values; None where they are not known. Of a limit: the values that it counts; None for any.
    """

    account: str | None = None
    partition: str | None = None
    qos: str | None = None


ANYWHERE = Place()


@dataclass(frozen=True)
class QueueEntry:
    """A line of squeue. `restarts` counts the requeues. `nodes` is empty while the job waits."""

    id: JobId
    name: str
    state: str
    reason: str
    nodes: str
    restarts: int
    place: Place = ANYWHERE

    @property
    def active(self) -> bool:
        return self.state not in FINAL


@dataclass(frozen=True)
class AccountingEntry:
    """A line of sacct. `start` and `end` are seconds since 1970; None: not started, not ended."""

    state: str
    exit_code: int
    signal: int
    nodes: str
    start: float | None
    end: float | None


@dataclass(frozen=True)
class QueueLimit:
    """At most `most` jobs of this user in the queue, among those of a place."""

    most: int
    place: Place = ANYWHERE

    def counts(self, job: Place) -> bool:
        """Whether a job at this place counts. A waiting job may name several partitions."""
        return all(
            wanted is None or has is None or wanted in has.split(",")
            for wanted, has in zip(self.place, job, strict=True)
        )


@dataclass(frozen=True)
class Limits:
    """Limits for the jobs of this user.

    Attributes:
        max_array_size: elements of one array.
        queue: the known limits of jobs in the queue.
    """

    max_array_size: int
    queue: tuple[QueueLimit, ...] = ()

    @property
    def max_submitted(self) -> int | None:
        """The smallest limit of jobs in the queue; None: no limit is known."""
        return min((limit.most for limit in self.queue), default=None)


@dataclass(frozen=True)
class Association:
    """A permission of this user: an account, the QOS that it may use, and their limit.

    `partition` None: it holds for all partitions. `max_submitted`: jobs in the queue; None: no
    limit.
    """

    account: str
    partition: str | None
    qos: tuple[str, ...]
    default_qos: str | None
    max_submitted: int | None


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A partition of the cluster.

    Attributes:
        time_limit_min: longest time limit of a job; None: no limit.
        preemptible: jobs of other partitions may end its jobs, which then have `grace_s` left.
        gres: every kind of `gres` that a node of it has.
        cpus: CPUs of the node with the most.
        mem_gb: memory of the node with the most.
    """

    name: str
    is_default: bool
    time_limit_min: float | None
    state: str
    qos: str | None
    preemptible: bool
    grace_s: int
    gres: tuple[str, ...]
    cpus: int
    mem_gb: float


def parse_queue(text: str) -> list[QueueEntry]:
    """Parse the output of `squeue -O` with `QUEUE_FORMAT` and its header.

    The header proves that squeue listed the jobs. Without it, an empty output would look like an
    empty queue.

    Raises:
        SlurmUnavailableError: the output has no header, is cut off, or has another format.
    """
    *records, rest = text.split(_RECORD)
    if _FIELD in rest or rest.strip()[:1].isdigit():  # a record without its end; a notice may come last
        raise _not_understood(rest)
    header, *records = records or [""]
    names = _queue_fields(header)
    names[0] = names[0].rpartition("\n")[2]  # a notice may come first
    if not all(_HEADER.fullmatch(name) for name in names):
        raise SlurmUnavailableError(f"squeue: its output has no header: {header[:200]!r}")
    entries = []
    for record in records:
        if not record.strip():
            continue
        job, index, state, reason, restarts, nodes, *place, name = _queue_fields(record)
        if not is_number(job) or not _STATE.fullmatch(state):
            raise _not_understood(record)
        id = JobId(int(job), int(index) if is_number(index) else None)
        num_restarts = int(restarts) if is_number(restarts) else 0
        entries.append(QueueEntry(id, name, state, reason, nodes, num_restarts, Place(*map(_given, place))))
    return entries


def _queue_fields(record: str) -> list[str]:
    fields = record.split(_FIELD, len(_QUEUE_FIELDS) - 1)
    if len(fields) != len(_QUEUE_FIELDS):
        raise _not_understood(record)
    return fields


def _not_understood(record: str) -> SlurmUnavailableError:
    return SlurmUnavailableError(f"squeue: its output was not understood: {record[:200]!r}")


def parse_accounting(text: str) -> dict[JobId, AccountingEntry]:
    """Parse the output of `sacct -X -P`. Lines of another form are left out.

    A row that several elements share is returned under the id of each element, and under the bare
    id.
    """
    found: dict[JobId, AccountingEntry] = {}
    for id, state, exit_code, nodes, start, end in rows(text, 6):
        match, code, word = _JOB_ID.fullmatch(id), _EXIT_CODE.fullmatch(exit_code), _STATE.match(state)
        if match is None or code is None or word is None:
            continue
        where = "" if nodes == "None assigned" else nodes
        entry = AccountingEntry(word[0], int(code[1]), int(code[2] or 0), where, _seconds(start), _seconds(end))
        job, index = int(match[1]), match[2]
        if index is not None and is_number(index):
            found[JobId(job, int(index))] = entry
        else:
            found[JobId(job)] = entry
            for i in expand_indices(index.strip("[]") if index else ""):
                found.setdefault(JobId(job, i), entry)
    return found


def expand_indices(text: str) -> Iterator[int]:
    """The indices of an array expression of SLURM. A tail that SLURM cut off (...) is left out.

    >>> list(expand_indices("0-2,5,10-20:5%3"))
    [0, 1, 2, 5, 10, 15, 20]
    """
    for part in text.partition("%")[0].split(","):
        if match := re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9}))?)?", part):
            first = int(match[1])
            yield from range(first, min(int(match[2] or first), MOST_INDEX) + 1, int(match[3] or 1) or 1)


def parse_config(text: str) -> dict[str, str]:
    """Parse the output of `scontrol show config`. Only lines `Name = value` are settings."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, equals, value in pairs if equals and _SETTING.fullmatch(key.strip())}


def parse_partitions(described: str, nodes: str, preempt_type: str) -> dict[str, Partition]:
    """Combine the output of two commands into partitions by name.

    Args:
        described: output of `scontrol -o show partition`.
        nodes: output of `sinfo -o '%R|%G|%c|%m'`.
        preempt_type: PreemptType of the configuration.
    """
    kinds: dict[str, list[list[str]]] = {}
    for name, *kind in rows(nodes, 4):
        kinds.setdefault(name, []).append(kind)
    found = {}
    for line in described.splitlines():
        values = dict(token.split("=", 1) for token in line.split() if "=" in token)
        if "PartitionName" not in values:
            continue
        name = values["PartitionName"]
        preempt_mode = values.get("PreemptMode", "OFF").split(",")[0]
        mine = kinds.get(name, [])
        found[name] = Partition(
            name=name,
            is_default=values.get("Default") == "YES",
            time_limit_min=parse_minutes(values.get("MaxTime", "")),
            state=values.get("State", "UNKNOWN"),
            qos=_given(values.get("QoS", "")),
            preemptible=preempt_type == "preempt/partition_prio" and preempt_mode != "OFF",
            grace_s=_leading_int(values.get("GraceTime", "")),
            gres=tuple(sorted({g for k in mine if (g := _given(k[0]))})),
            cpus=max((_leading_int(k[1]) for k in mine), default=0),
            mem_gb=max((_leading_int(k[2]) for k in mine), default=0) / 1024,
        )
    return found


def parse_minutes(text: str) -> float | None:
    """The minutes of a time [days-]hours:minutes:seconds; None for any other text (no limit).

    >>> parse_minutes("2-00:30:00"), parse_minutes("01:30:30"), parse_minutes("UNLIMITED")
    (2910.0, 90.5, None)
    """
    match = re.fullmatch(r"(?:([0-9]{1,9})-)?([0-9]{1,9}):([0-9]{1,9}):([0-9]{1,9})", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(x or 0) for x in match.groups())
    return (days * 24 + hours) * 60 + minutes + seconds / 60


def parse_associations(text: str) -> list[Association]:
    """Parse the output of `sacctmgr show assoc` with the fields of `Slurm.associations`."""
    found = []
    for account, partition, qos, default_qos, *limits in rows(text, 6):
        names = tuple(name for name in qos.split(",") if name)
        found.append(Association(account, partition or None, names, default_qos or None, least(limits)))
    return found


def rows(text: str, width: int) -> Iterator[list[str]]:
    """The fields of each line that has `width` of them. Other lines are notices of the site."""
    return (fields for line in text.splitlines() if len(fields := line.split("|")) == width)


def least(numbers: Iterable[str]) -> int | None:
    """The smallest of these numbers; None when none of the texts is a number."""
    return min((int(n) for n in numbers if is_number(n)), default=None)


def is_number(text: str) -> bool:
    """Whether a text is a number that SLURM may print: up to 18 digits."""
    return re.fullmatch(r"[0-9]{1,18}", text) is not None


def _seconds(text: str) -> float | None:
    return float(text) if is_number(text) else None


def _given(text: str) -> str | None:
    return None if text in ("", "N/A", "(null)") else text


def _leading_int(text: str) -> int:
    match = re.match(r"[0-9]{1,18}", text)
    return int(match[0]) if match else 0
