"""Calls of sbatch, and what its answers mean.

In: a batch script. Out: the id of the job, or a `RefusedError` that classifies the answer. A site
may wrap sbatch, print notices, or answer late. So a job id is read only from a line of its own,
and an answer that is not understood proves neither that the job was taken nor that it was refused:
the caller then looks for the job by its name.
"""

from __future__ import annotations

import re
import subprocess

from core_hpc.common.errors import CoreHpcError
from core_hpc.slurm.reasons import correction

SBATCH_LIMIT_S = 120.0
"""How long sbatch may take. It repeats its request while slurmctld is busy."""
LIMIT = re.compile(r"accounting/qos policy|submit ?job|submit limit|job limit|too many", re.IGNORECASE)
"""Messages of sbatch about too many jobs, of this user or of a group of users. The sentence about the policy also
appears with a limit per job, which is recognised by its name (`correction`)."""
OWN_LIMIT = re.compile(r"\b(?:QOSMax(?:Submit)?Jobs?PerUser|AssocMax(?:Submit)?Jobs?)Limit\b")
"""Limits that count only jobs of this user."""
PASSING = re.compile(
    r"socket timed out|unable to contact slurm|connection refused|zero bytes|temporar|backup controller|try again"
    r"|slurmdbd|partition not available|node not available|nodes are busy"
    r"|munge|authentication|(?:unable to status|cannot stat) file|invalid user id",
    re.IGNORECASE,
)
"""Messages of sbatch after which a later attempt may succeed. Those of the last line are about the node of the
controller or that of slurmctld: munged or the directory of users does not answer, or slurm.conf is being replaced."""
PERMANENT = re.compile(
    r"invalid|unrecognized|unknown option|not permitted|permission denied|not allowed|does not exist|exceed|too long"
    r"|can ?not be satisfied|node configuration is not available|script is empty|no such file|unable to open"
    r"|must specify|dependency problem|unsupported|not supported|is not on path",
    re.IGNORECASE,
)
"""Messages of sbatch about a request that it will never accept."""
_TAKEN = re.compile(r"Submitted batch job ([0-9]{1,18})(?: on cluster \S+)?")


class RefusedError(CoreHpcError):
    """sbatch did not report that it has taken a submission.

    Attributes:
        passing: a later attempt may succeed.
        limit: there are too many jobs, of this user or of a group of users.
        own_limit: there are too many jobs of this user, whatever others have in the queue.
        understood: the message is a known one.
        correction: what to change in the cluster profile, if this refusal cannot pass.
    """

    def __init__(self, message: str, *, answered: bool = True) -> None:
        """Classify a message; `answered`: sbatch ended and reported that it failed."""
        super().__init__(message)
        per_job = correction(message) if answered else None
        self.correction = per_job or "correct the cluster profile"
        self.limit = answered and per_job is None and bool(LIMIT.search(message))
        self.own_limit = self.limit and bool(OWN_LIMIT.search(message))
        passing = per_job is None and (self.limit or not answered or bool(PASSING.search(message)))
        permanent = per_job is not None or (not passing and bool(PERMANENT.search(message)))
        self.understood = passing or permanent
        self.passing = not permanent

    @property
    def unsure(self) -> bool:
        """SLURM may have taken the job nevertheless."""
        return self.passing and not self.limit


def run_sbatch(script: str, *, limit_s: float = SBATCH_LIMIT_S) -> int:
    """Submit the text of a batch script in the present environment.

    Returns:
        The id of the job.

    Raises:
        RefusedError: sbatch refused the script, or its answer was not understood.
    """
    try:
        done = subprocess.run(
            ["sbatch"],
            input=script,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise RefusedError(f"no answer within {limit_s:g} s", answered=False) from e
    except FileNotFoundError as e:
        raise RefusedError("sbatch is not on PATH: load the site's SLURM module") from e
    except OSError as e:  # a login node may have no process or memory left
        raise RefusedError(f"could not be started: {e}", answered=False) from e
    answer = " ".join((done.stderr if done.returncode else done.stdout + done.stderr).split())
    if done.returncode != 0:
        raise RefusedError(answer[-2000:] or f"exit status {done.returncode} without a message")
    job = job_of(done.stdout)
    if job is None:
        raise RefusedError(f"no job id in its answer {answer[:500]!r}", answered=False)
    return job


def job_of(output: str) -> int | None:
    """The job id in the output of sbatch; None when no line, or several lines, name one.

    >>> job_of("Project 4711 has 12 hours left\\nSubmitted batch job 77\\n"), job_of("77 jobs of yours wait\\n")
    (77, None)
    """
    found = {int(match[1]) for line in output.splitlines() if (match := _TAKEN.fullmatch(line.strip()))}
    return found.pop() if len(found) == 1 else None
