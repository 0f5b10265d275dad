"""The commands of SLURM: read the queue, accounting, limits and partitions, and cancel jobs.

In: job ids. Out: plain records (`slurm/parse.py`), or a SlurmUnavailableError when SLURM does not
answer, so that a caller cannot confuse "no answer" with "no jobs". This is the only module that
runs squeue, sacct, scontrol, sacctmgr, sinfo and scancel. It does not submit (`slurm/submit.py`)
and decides nothing. It relies on these facts, measured with SLURM 22.05:

- `squeue -t all` keeps ended jobs with their final state for MinJobAge (300 s). There are two
  exceptions. A pending array element that is cancelled alone disappears at once. When the last
  pending elements of an array are cancelled one by one, one line with the bare array id stays:
  CANCELLED, no index. If a whole array is cancelled, its pending elements stay as CANCELLED.
- sacct lags behind by 2 to 5 s. During this time it reports a requeued job as PREEMPTED or
  NODE_FAIL, although squeue reports it as PENDING.
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
from core_hpc.common.ownership import user_name
from core_hpc.slurm.parse import (
    ACTIVE,
    FINAL,
    QUEUE_FORMAT,
    AccountingEntry,
    Association,
    JobId,
    Limits,
    Partition,
    Place,
    QueueEntry,
    QueueLimit,
    SlurmUnavailableError,
    is_number,
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
    "certainly_ended",
    "clean_environment",
    "slurm_installed",
]

_ACCOUNTING_FIELDS = "JobID,State,ExitCode,NodeList,Start,End"
_ENDED_WORDS = ("Invalid job id", "already completing or completed")
SLURM_VARIABLE = r"SLURM_(?!(CONF|CONF_SERVER|JWT)$)"
"""Matches variables of a job or of a user's habits, and not those that every command needs to reach SLURM: where its
configuration is, and the user's token."""
_CHANGES_OUTPUT = re.compile(rf"{SLURM_VARIABLE}|(SQUEUE|SACCT|SACCTMGR|SCANCEL|SCONTROL|SINFO)_")
_CANCEL_CHUNK = 500
_LIMITS_KEPT_S = 300.0
DENIED = re.compile(r"permission denied|not authorized|not permitted", re.IGNORECASE)
"""Messages of SLURM about what it does not show to this user."""
DEFAULT_ARRAY_SIZE = 1001
"""MaxArraySize of a SLURM whose configuration does not set it."""
_SINCE_MARGIN_S = 3600.0
"""The clocks of the hosts may differ by so much."""


def slurm_installed() -> bool:
    """Whether jobs can be submitted from this machine: sbatch is on PATH."""
    return shutil.which("sbatch") is not None


class Slurm:
    """Runs the commands of SLURM. `calls` counts the calls of each command."""

    def __init__(self, *, timeout_s: float = 60.0) -> None:
        self.timeout_s = timeout_s
        self.calls: Counter[str] = Counter()
        self._limits: dict[tuple[str | None, str | None, str | None], tuple[float, Limits]] = {}

    # --- jobs ------------------------------------------------------------------------------------

    def queue(self) -> list[QueueEntry]:
        """All jobs of this user, with those that ended within MinJobAge. Runs squeue once.

        Every array element has an entry of its own.
        """
        return parse_queue(self._output("squeue", "-r", "-t", "all", "-u", str(os.getuid()), "-O", QUEUE_FORMAT))

    def has_ended(self, job: int, user: str | None = None) -> bool:
        """Whether SLURM confirms that no element of a job can run any more.

        Args:
            job: the id of the job.
            user: the login name of its owner; None: this user.

        Raises:
            SlurmUnavailableError: SLURM neither lists the job nor denies that it exists, or it
                denies that although it hides the jobs of other users.
        """
        elements = self.elements(job)
        if elements is None and user not in (None, user_name(os.getuid())) and not self._shows_jobs_of_others():
            raise SlurmUnavailableError(f"SLURM may hide job {job} of user {user} (PrivateData)")
        return not any(entry.active for entry in elements or ())

    def active_elements(self, job: int) -> set[JobId]:
        """The elements of a job of this user that may still run.

        Raises:
            SlurmUnavailableError: SLURM neither lists the job nor denies that it exists.
        """
        return {entry.id for entry in self.elements(job) or () if entry.active}

    def elements(self, job: int) -> list[QueueEntry] | None:
        """The elements of a job; None: SLURM denies that it exists. Runs squeue once, for this job alone."""
        done = self._run("squeue", "-r", "-t", "all", "-j", str(job), "-O", QUEUE_FORMAT)
        if done.returncode != 0 and "Invalid job id" in done.stderr:
            return None
        entries = parse_queue(_checked(done))
        if not entries:
            raise SlurmUnavailableError(f"squeue reported nothing about job {job}")
        return entries

    def _shows_jobs_of_others(self) -> bool:
        """Whether it is certain that this user sees the jobs of all users.

        With PrivateData=jobs SLURM answers "Invalid job id" for a waiting job of another user.
        """
        private = self.config().get("PrivateData")
        return private is not None and not {"jobs", "all"} & set(private.lower().split(","))

    def accounting(self, jobs: Collection[int], *, since: float) -> dict[JobId, AccountingEntry] | None:
        """What the accounting knows about jobs. Runs sacct once.

        Elements that never started share one row, which is also returned under the bare array id.
        Where squeue knows a job as well, believe squeue.

        Args:
            since: time of the first submission, in seconds since 1970.

        Returns:
            An entry per job or element; None when accounting is off or does not answer.
        """
        if not jobs:
            return {}
        start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since - _SINCE_MARGIN_S))
        ids = ",".join(map(str, sorted(jobs)))
        output = self._accounting_output("sacct", "-X", "-n", "-P", "-j", ids, "-S", start, "-o", _ACCOUNTING_FIELDS)
        return None if output is None else parse_accounting(output)

    def cancel(self, jobs: Sequence[JobId | int]) -> None:
        """Cancel jobs, arrays or elements. Those that have ended already are no error."""
        for first in range(0, len(jobs), _CANCEL_CHUNK):
            done = self._run("scancel", *map(str, jobs[first : first + _CANCEL_CHUNK]))
            errors = [s for s in done.stderr.splitlines() if s.strip() and not any(w in s for w in _ENDED_WORDS)]
            if errors and done.returncode != 0:
                raise SlurmUnavailableError(f"scancel: {errors[-1].strip()}")

    def cancel_named(self, name: str, jobs: Sequence[JobId]) -> None:
        """Cancel those of these jobs that have this name in the queue. SLURM may have given an id again."""
        if jobs:
            named = {entry.id for entry in self.queue() if entry.name == name}
            self.cancel([job for job in jobs if job in named])

    # --- the site --------------------------------------------------------------------------------

    def config(self) -> dict[str, str]:
        """The configuration of SLURM, as `scontrol show config` prints it. Read once.

        It is empty where the site does not show it to users.
        """
        return self._config

    @functools.cached_property
    def _config(self) -> dict[str, str]:
        return parse_config(self._shown("scontrol", "show", "config"))

    def nodes(self, partition: str | None) -> dict[str, str]:
        """The state of every node by name, as sinfo prints it (with * if it does not respond)."""
        where = ("-p", partition) if partition is not None else ()
        return dict(rows(self._output("sinfo", "-h", "-N", "-o", "%N|%T", *where), 2))

    def partitions(self) -> dict[str, Partition]:
        """The partitions that this user sees, by name. Runs two commands."""
        described = self._shown("scontrol", "-o", "show", "partition")
        nodes = self._output("sinfo", "-h", "-o", "%R|%G|%c|%m")
        return parse_partitions(described, nodes, self.config().get("PreemptType", ""))

    def associations(self) -> list[Association] | None:
        """What this user may use on this cluster; None: accounting is off or does not answer."""
        fields = "format=account,partition,qos,defaultqos,maxsubmitjobs,grpsubmitjobs"
        cluster = self.config().get("ClusterName")
        where = (f"user={_user()}", *([f"cluster={cluster}"] if cluster else []))
        output = self._accounting_output("sacctmgr", "-n", "-P", "-r", "show", "assoc", "where", *where, fields)
        return None if output is None else parse_associations(output)

    def qos(self) -> dict[str, int | None] | None:
        """How many jobs of a user each QOS allows in the queue.

        Returns:
            The number by name of the QOS (None: no limit); None when accounting does not answer.
        """
        fields = "format=name,maxsubmitjobsperuser,maxsubmitjobsperaccount,grpsubmitjobs"
        output = self._accounting_output("sacctmgr", "-n", "-P", "-r", "show", "qos", fields)
        return None if output is None else {name: least(limits) for name, *limits in rows(output, 4)}

    def default_account(self) -> str | None:
        """The account of jobs that do not name one; None when it is not known."""
        fields = "format=user,defaultaccount"
        output = self._accounting_output("sacctmgr", "-n", "-P", "-r", "show", "user", _user(), fields)
        return next((account for user, account in rows(output or "", 2) if user == _user()), None) or None

    def limits(self, *, partition: str | None, qos: str | None, account: str | None) -> Limits:
        """How many jobs an array may have, and the queue. The answer is cached for some minutes.

        The limits of the queue are those of the association, its QOS, and the QOS of the
        partition. Each counts only the jobs under it. Limits that SLURM does not enforce are ignored.
        """
        asked, now = (partition, qos, account), time.monotonic()
        known = self._limits.get(asked)
        if known is not None and now - known[0] < _LIMITS_KEPT_S:
            return known[1]
        config = self.config()
        # Where the configuration is not shown, SLURM's default holds. sbatch refuses what is too large.
        size = config.get("MaxArraySize", "")
        sizes = [int(size) if is_number(size) else DEFAULT_ARRAY_SIZE]
        sizes += map(int, re.findall(r"max_array_tasks=(\d{1,9})", config.get("SchedulerParameters", "")))
        queue: tuple[QueueLimit, ...] = ()
        enforced = set(config.get("AccountingStorageEnforce", "unknown").lower().split(","))
        if {"limits", "safe", "all", "unknown"} & enforced:
            associations, by_qos = self.associations(), self.qos()
            if associations is not None and by_qos is not None:
                account = account or self.default_account()
                queue = self._queue_limits(associations, by_qos, partition, qos, account)
            elif known is not None:
                queue = known[1].queue  # accounting does not answer now
        limits = Limits(max(1, min(sizes)), queue)  # MaxArraySize is 0 where arrays are switched off
        self._limits[asked] = (now, limits)
        return limits

    def _queue_limits(
        self,
        associations: list[Association],
        by_qos: dict[str, int | None],
        partition: str | None,
        qos: str | None,
        account: str | None,
    ) -> tuple[QueueLimit, ...]:
        partitions = self.partitions()
        partition = partition or next((p.name for p in partitions.values() if p.is_default), None)
        mine = [a for a in associations if a.account == account and a.partition in (partition, None)]
        mine.sort(key=lambda a: a.partition is None)  # the one with this partition comes first
        qos = qos or (mine[0].default_qos if mine else None) or "normal"
        known = [(a.max_submitted, Place(account=account, partition=a.partition)) for a in mine[:1]]
        known.append((by_qos.get(qos), Place(qos=qos)))
        if partition in partitions:
            known.append((by_qos.get(partitions[partition].qos or ""), Place(partition=partition)))
        return tuple(QueueLimit(most, place) for most, place in known if most is not None)

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
            message = f"{command[0]} is not on PATH: this machine has no SLURM, or its module is not loaded"
            raise CoreHpcError(message) from e
        except subprocess.TimeoutExpired as e:
            raise SlurmUnavailableError(f"{command[0]} did not answer within {self.timeout_s:.0f} s") from e
        except OSError as e:
            # A login node may have no process or memory left, or SLURM's folder is not mounted.
            raise SlurmUnavailableError(f"{command[0]} could not be started: {e}") from e

    def _output(self, *command: str) -> str:
        return _checked(self._run(*command))

    def _shown(self, *command: str) -> str:
        """The output of a command; empty where the site does not show it to users."""
        try:
            return self._output(*command)
        except SlurmUnavailableError as e:
            if DENIED.search(str(e)):
                return ""
            raise

    def _accounting_output(self, *command: str) -> str | None:
        """None when accounting is off, does not answer, or is not available to users."""
        if shutil.which(command[0]) is None:
            return None
        try:
            return self._output(*command)
        except SlurmUnavailableError:
            return None


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without variables that change the output of SLURM's commands.

    Such variables choose formats, filters or other clusters.
    """
    kept = {k: v for k, v in environment.items() if not _CHANGES_OUTPUT.match(k)}
    # Times are seconds since 1970. Lists of array elements are complete, not cut at 64 characters.
    return {**kept, "LC_ALL": "C", "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}


def _checked(done: subprocess.CompletedProcess[str]) -> str:
    """The output of a command. If it failed, raise a SlurmUnavailableError with its last line."""
    if done.returncode == 0:
        return done.stdout
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    reason = lines[-1] if lines else f"exit status {done.returncode}, no output"
    raise SlurmUnavailableError(f"{done.args[0]}: {reason}")


def certainly_ended(slurm: Slurm, job: int | None, user: str) -> bool:
    """Whether SLURM confirms that a job has ended. It may hide those of another user."""
    try:
        return job is not None and slurm.has_ended(job, user)
    except SlurmUnavailableError:
        return False


@functools.cache
def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # no passwd entry, as in some containers; SLURM also accepts the id
        return str(os.getuid())
