"""What the controller asks Slurm and tells it: the queue, accounting, limits, partitions; and the cancelling of jobs.

In: job ids. Out: plain records of what Slurm said, or SlurmUnavailableError when it did not answer, so that nobody
concludes from silence. The only module that runs squeue, sacct, scontrol, sacctmgr, sinfo and scancel. It does not
submit (submissions.py) and decides nothing. Facts on which it rests (measured with Slurm 22.05):

- `squeue -t all` keeps jobs that ended for MinJobAge (300 s) with their final state. A pending array element that was
  cancelled by itself leaves at once and without trace; one cancelled with its whole array stays as CANCELLED. When the
  last pending elements of an array go one by one, one line of the bare array id stays: CANCELLED, no index.
- sacct lags by 2 to 5 s, and calls a requeued job PREEMPTED or NODE_FAIL for as long, while squeue has it PENDING.
"""

from __future__ import annotations

import functools
import os
import pwd
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from core_hpc.common.errors import CoreHpcError
from core_hpc.slurm.parse import (
    ACTIVE,
    FINAL,
    QUEUE_FORMAT,
    AccountingEntry,
    Association,
    JobId,
    Limits,
    Partition,
    QueueEntry,
    SlurmUnavailableError,
    least,
    parse_accounting,
    parse_associations,
    parse_config,
    parse_partitions,
    parse_queue,
    rows,
)

__all__ = [
    "ACTIVE",
    "FINAL",
    "AccountingEntry",
    "Association",
    "JobId",
    "Limits",
    "Partition",
    "QueueEntry",
    "Slurm",
    "SlurmUnavailableError",
    "clean_environment",
    "slurm_installed",
]

_ACCOUNTING_FIELDS = "JobID,State,ExitCode,NodeList,Start,End"
_ENDED_WORDS = ("Invalid job id", "already completing or completed")
_KEPT_VARIABLES = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")
_CLEANED_PREFIXES = ("SLURM_", "SQUEUE_", "SACCT_", "SACCTMGR_", "SCANCEL_", "SCONTROL_", "SINFO_")
_CANCEL_CHUNK = 500
_LIMITS_KEPT_S = 300.0
_SINCE_MARGIN_S = 3600.0  # clocks of the hosts may differ


def slurm_installed() -> bool:
    """Whether jobs can be submitted from this machine: sbatch is on PATH."""
    return shutil.which("sbatch") is not None


class Slurm:
    """The commands of Slurm. `calls` counts them by name."""

    def __init__(self, *, timeout_s: float = 60.0) -> None:
        self.timeout_s = timeout_s
        self.calls: Counter[str] = Counter()
        self._limits: dict[tuple[str | None, str | None, str | None], tuple[float, Limits]] = {}

    # --- jobs ------------------------------------------------------------------------------------

    def queue(self) -> list[QueueEntry]:
        """All jobs of this user, array elements one by one, with those that ended within MinJobAge. One squeue."""
        return parse_queue(self._answer("squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-O", QUEUE_FORMAT))

    def has_ended(self, job: int) -> bool:
        """True only on Slurm's word that no element of the job can run any more."""
        done = self._run("squeue", "-h", "-r", "-t", "all", "-j", str(job), "-O", QUEUE_FORMAT)
        if done.returncode != 0 and "Invalid job id" in done.stderr:
            return True
        entries = parse_queue(_checked(done))
        if not entries:
            raise SlurmUnavailableError(f"squeue said nothing about job {job}")
        return not any(entry.active for entry in entries)

    def accounting(self, jobs: Collection[int], *, since: float) -> dict[JobId, AccountingEntry] | None:
        """What sacct remembers of jobs since a time (s since 1970); None when accounting is off or does not answer. One sacct.

        Elements which never started share one row; it is also under the bare array id. Where squeue knows a job, too,
        squeue is right.
        """
        if not jobs:
            return {}
        start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since - _SINCE_MARGIN_S))
        ids = ",".join(map(str, sorted(jobs)))
        answer = self._accounting_answer("sacct", "-X", "-n", "-P", "-j", ids, "-S", start, "-o", _ACCOUNTING_FIELDS)
        return None if answer is None else parse_accounting(answer)

    def cancel(self, jobs: Sequence[JobId | int]) -> None:
        """Cancel jobs, arrays or elements; those that have ended are no error."""
        for first in range(0, len(jobs), _CANCEL_CHUNK):
            done = self._run("scancel", *map(str, jobs[first : first + _CANCEL_CHUNK]))
            complaints = [s for s in done.stderr.splitlines() if s.strip() and not any(w in s for w in _ENDED_WORDS)]
            if complaints and done.returncode != 0:
                raise SlurmUnavailableError(f"scancel: {complaints[-1].strip()}")

    # --- the site --------------------------------------------------------------------------------

    def config(self) -> dict[str, str]:
        """Slurm's configuration as `scontrol show config` prints it; asked once."""
        return self._config

    @functools.cached_property
    def _config(self) -> dict[str, str]:
        return parse_config(self._answer("scontrol", "show", "config"))

    def nodes(self, partition: str | None) -> dict[str, str]:
        """Node name -> state as sinfo writes it (a * after it: the node does not respond)."""
        where = ("-p", partition) if partition is not None else ()
        lines = self._answer("sinfo", "-h", "-N", "-o", "%N|%T", *where).splitlines()
        return dict(line.split("|", 1) for line in lines)

    def partitions(self) -> dict[str, Partition]:
        """The partitions that this user sees, by name. Two calls."""
        described = self._answer("scontrol", "-o", "show", "partition")
        return parse_partitions(
            described, self._answer("sinfo", "-h", "-o", "%R|%G|%c|%m"), self.config().get("PreemptType", "")
        )

    def associations(self) -> list[Association] | None:
        """What accounting allows this user on this cluster; None when it is off or does not answer."""
        fields = "format=account,partition,qos,defaultqos,maxsubmitjobs,grpsubmitjobs"
        where = (f"user={_user()}", f"cluster={self.config().get('ClusterName', '')}")
        answer = self._accounting_answer("sacctmgr", "-n", "-P", "-r", "show", "assoc", "where", *where, fields)
        return None if answer is None else parse_associations(answer)

    def qos(self) -> dict[str, int | None] | None:
        """QOS name -> jobs that it lets a user have in the queue (None: any number); None when accounting does not answer."""
        fields = "format=name,maxsubmitjobsperuser,maxsubmitjobsperaccount,grpsubmitjobs"
        answer = self._accounting_answer("sacctmgr", "-n", "-P", "-r", "show", "qos", fields)
        return None if answer is None else {name: least(limits) for name, *limits in rows(answer)}

    def default_account(self) -> str | None:
        """The account that a job without one is charged to."""
        answer = self._accounting_answer("sacctmgr", "-n", "-P", "-r", "show", "user", _user(), "format=defaultaccount")
        return (answer or "").strip() or None

    def limits(self, *, partition: str | None, qos: str | None, account: str | None) -> Limits:
        """How many jobs fit in one array and in the queue; what is known is kept for some minutes.

        The least of the limits of the association, its QOS and the partition's QOS. Those that Slurm does not enforce do not count.
        """
        asked, now = (partition, qos, account), time.monotonic()
        if asked in self._limits and now - self._limits[asked][0] < _LIMITS_KEPT_S:
            return self._limits[asked][1]
        config = self.config()
        sizes = [int(config["MaxArraySize"])]
        sizes += map(int, re.findall(r"max_array_tasks=(\d+)", config.get("SchedulerParameters", "")))
        limits = Limits(min(sizes), None)
        if {"limits", "safe", "all"} & set(config.get("AccountingStorageEnforce", "").lower().split(",")):
            associations, by_qos = self.associations(), self.qos()
            if associations is None or by_qos is None:
                return limits
            limits = Limits(
                min(sizes), self._max_submitted(associations, by_qos, partition, qos, account or self.default_account())
            )
        self._limits[asked] = (now, limits)
        return limits

    def _max_submitted(
        self,
        associations: list[Association],
        by_qos: dict[str, int | None],
        partition: str | None,
        qos: str | None,
        account: str | None,
    ) -> int | None:
        partitions = self.partitions()
        partition = partition or next((p.name for p in partitions.values() if p.is_default), None)
        mine = [a for a in associations if a.account == account and a.partition in (partition, None)]
        mine.sort(key=lambda a: a.partition is None)  # that of the partition itself comes first
        names = [qos or (mine[0].default_qos if mine else None) or "normal"]
        if partition in partitions:
            names.append(partitions[partition].qos or "")
        known = [a.max_submitted for a in mine[:1]] + [by_qos.get(name) for name in names]
        return min((n for n in known if n is not None), default=None)

    # --- running commands ------------------------------------------------------------------------

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        self.calls[command[0]] += 1
        try:
            return subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=self.timeout_s,
                stdin=subprocess.DEVNULL,
                env=clean_environment(os.environ),
            )
        except FileNotFoundError as e:
            raise CoreHpcError(
                f"{command[0]} is not on PATH: this machine has no Slurm, or its module is not loaded"
            ) from e
        except subprocess.TimeoutExpired as e:
            raise SlurmUnavailableError(f"{command[0]} did not answer within {self.timeout_s:.0f} s") from e
        except OSError as e:  # no process or no memory left on a busy login node, Slurm's folder not mounted just now
            raise SlurmUnavailableError(f"{command[0]} could not be started: {e}") from e

    def _answer(self, *command: str) -> str:
        return _checked(self._run(*command))

    def _accounting_answer(self, *command: str) -> str | None:
        """None when accounting is off (the command says so and fails), does not answer, or its command is kept from users."""
        if shutil.which(command[0]) is None:
            return None
        try:
            return self._answer(*command)
        except SlurmUnavailableError:
            return None


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what changes how Slurm's commands print (formats, filters, other clusters)."""
    kept = {k: v for k, v in environment.items() if k in _KEPT_VARIABLES or not k.startswith(_CLEANED_PREFIXES)}
    # Times as seconds since 1970; lists of array elements in full, not cut after 64 characters.
    return {**kept, "LC_ALL": "C", "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}


def _checked(done: subprocess.CompletedProcess[str]) -> str:
    """What a command printed; SlurmUnavailableError with Slurm's words when it failed."""
    if done.returncode == 0:
        return done.stdout
    words = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    raise SlurmUnavailableError(f"{done.args[0]}: {words[-1] if words else f'exit status {done.returncode}, no words'}")


@functools.cache
def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name
