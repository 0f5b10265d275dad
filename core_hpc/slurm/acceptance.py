"""Whether SLURM would accept the jobs of a profile, before anything is prepared or submitted.

In: a cluster section. Out: messages, or an InputError with the refusals that cannot pass with time.
It runs `sbatch --test-only` and submits nothing.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from core_hpc.common.errors import InputError
from core_hpc.config.cluster import ClusterSection
from core_hpc.slurm.commands import Slurm, SlurmUnavailableError
from core_hpc.slurm.sbatch import RefusedError
from core_hpc.slurm.submit import batch_script, job_parameters, submission_environment

CONFIGURATION = re.compile(r"configuration is not available", re.IGNORECASE)
"""The answer of SLURM when it finds no nodes for a job, whatever the reason."""
NO_CLUSTER = re.compile(r"could not establish a configuration source", re.IGNORECASE)
"""The answer of sbatch on a machine that has SLURM's commands and belongs to no cluster."""
USABLE_NODE = re.compile(r"(idle|mixed|allocated|completing|planned)[-+]?")
"""States of nodes that run jobs, as sinfo prints them."""


class NoClusterError(InputError):
    """This machine has SLURM's commands, but belongs to no cluster."""


def check_accepted(cluster: ClusterSection, slurm: Slurm) -> list[str]:
    """Check with SLURM that it would accept the jobs of a cluster profile. Nothing is submitted.

    `sbatch --test-only` also refuses jobs that cannot start now, for example while nodes are
    drained or registering, although sbatch takes such jobs. Only a refusal that cannot pass with
    time is an error.

    Returns:
        Other refusals, as messages for the user.

    Raises:
        InputError: SLURM would refuse some of the jobs at any time; with its messages. Or there is no
            cluster (`NoClusterError`).
        SlurmUnavailableError: SLURM does not answer.
    """
    checked = set()
    mistakes, passing = [], []
    for group in cluster.groups:
        parameters = job_parameters(cluster, group, name="core_hpc-check", comment="")
        script = batch_script(cluster, Path("/dev/null"), parameters, num_elements=1)
        if script in checked:
            continue
        checked.add(script)
        answer = _test(script)
        if answer is None:
            continue
        if NO_CLUSTER.search(answer):
            raise NoClusterError(
                f"this machine has SLURM's commands, but belongs to no cluster ({answer}); start the sweep on a login "
                "node, or use `driver: local`"
            )
        message = f"cluster.slurm, jobs of `{group}`: {answer or 'sbatch refused without a message'}"
        refused = RefusedError(answer)
        if not refused.passing and not _nodes_are_away(answer, slurm, parameters.get("partition")):
            mistakes.append(f"{message}; {refused.correction}")
        else:
            passing.append(f"{message}. SLURM cannot place these jobs at present; they wait in the queue")
    if mistakes:
        raise InputError(
            "SLURM would refuse these jobs; nothing was submitted\n" + "\n".join(f"  - {m}" for m in mistakes)
        )
    return passing


def _test(script: str) -> str | None:
    """The answer of `sbatch --test-only`, or None if SLURM would accept the script."""
    command = ["sbatch", "--test-only"]
    with submission_environment(script):
        try:
            done = subprocess.run(
                command, input=script, text=True, errors="replace", capture_output=True, timeout=60, check=False
            )
        except subprocess.TimeoutExpired as e:
            message = "sbatch --test-only did not answer within 60 s; try again when SLURM answers"
            raise SlurmUnavailableError(message) from e
        except OSError as e:
            raise SlurmUnavailableError(f"sbatch could not be started: {e}") from e
    return None if done.returncode == 0 else " ".join(done.stderr.split()).removeprefix("allocation failure: ")


def _nodes_are_away(answer: str, slurm: Slurm, partition: str | None) -> bool:
    """Whether a refusal that concerns nodes may be due to nodes that cannot be used at present.

    In such a refusal SLURM does not distinguish them from nodes that do not exist.
    """
    if not CONFIGURATION.search(answer):
        return False
    states = slurm.nodes(partition).values()
    if not all(USABLE_NODE.fullmatch(state) for state in states):
        return True
    state = slurm.partitions().get(partition or "")
    return state is not None and state.state != "UP"
