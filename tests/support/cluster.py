"""A real SLURM cluster on this machine, for tests.

This module calls `slurm/devcluster.sh`, which installs and runs SLURM, and gives every test session
its own folder, ports and node names. It does not import core_hpc.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "slurm" / "devcluster.sh"
FOLDER_PREFIX = "core-hpc-test-"
CANNOT_INSTALL = 77
"""Exit status of `devcluster.sh install` if this user or this machine cannot install SLURM."""
USABLE = frozenset({"idle", "planned"})
"""States in which a node has no job and accepts one, as `sinfo` prints them."""
OUTER = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SINFO_", "SACCT_", "SALLOC_", "SCANCEL_", "DEVCLUSTER_")
"""Prefixes of variables that a surrounding job or the user's own settings may define."""

SMALL_JOBS: dict[str, Any] = {
    "cpus": 1,
    "mem_gb": 1.8,
    "time_min": 10,
    "signal_delay_s": 15,
    "preemption_grace_s": 3,
    "poll_s": [0.2, 1],
    "lost_after_s": 12,
}
"""Fields of `cluster.slurm` for a tiny run on this cluster: small jobs, and faults that are noticed soon."""


class ClusterError(RuntimeError):
    """A command of the cluster failed. The message contains what the command printed."""


class DevCluster:
    """One cluster in one folder.

    Args:
        home: folder of the cluster. Its path must be short, because it contains unix sockets.
        port: first of 2 + nodes free ports.
        prefix: start of the node names. No other cluster on this machine may use the same one.
    """

    def __init__(self, home: Path, *, port: int, prefix: str) -> None:
        self.home = home
        self._settings = {"DEVCLUSTER_HOME": str(home), "DEVCLUSTER_PORT": str(port), "DEVCLUSTER_PREFIX": prefix}
        self._prefix = prefix
        self._num_nodes = 0

    @property
    def node_names(self) -> list[str]:
        """Names of the nodes, in order; empty before `up`."""
        return [f"{self._prefix}{i + 1}" for i in range(self._num_nodes)]

    def up(self, nodes: int = 4) -> None:
        """Start the parts that are not running, and wait until every node is usable."""
        self._script("up", str(nodes))
        self._num_nodes = nodes

    def down(self) -> None:
        """Stop the cluster and delete its folder."""
        self._script("down", "--wipe")

    def kill_node(self, name: str) -> None:
        """Kill everything on a node, as a power cut would. SLURM notices it after 10 to 30 s."""
        self._script("kill-node", name)

    def start_node(self, name: str) -> None:
        """Start a node that was killed."""
        self._script("start-node", name)

    def stop_ctld(self) -> None:
        """Stop slurmctld: sbatch, squeue and scancel get no answer, and running jobs continue."""
        self._script("stop-ctld")

    def start_ctld(self) -> None:
        """Start slurmctld again."""
        self._script("start-ctld")

    def stop_dbd(self) -> None:
        """Stop slurmdbd: sacct and sacctmgr get no answer."""
        self._script("stop-dbd")

    def start_dbd(self) -> None:
        """Start slurmdbd again."""
        self._script("start-dbd")

    def environment(self) -> dict[str, str]:
        """Return os.environ, changed so that a process uses this cluster and no other."""
        return _clean_environment() | {"SLURM_CONF": str(self.home / "etc" / "slurm.conf")}

    def run(self, *command: str) -> str:
        """Run a SLURM command and return its standard output.

        Raises:
            ClusterError: the command failed.
        """
        return _run(command, self.environment())

    def wait_idle(self, timeout_s: float = 60) -> None:
        """Wait until the queue has no job of this user and every node accepts jobs."""
        deadline = time.monotonic() + timeout_s
        while (what := self._busy()) is not None:
            if time.monotonic() > deadline:
                raise ClusterError(f"the cluster is not idle after {timeout_s:.0f} s: {what}")
            time.sleep(0.2)

    def _busy(self) -> str | None:
        if jobs := self.run("squeue", "-h", "-u", str(os.getuid()), "-o", "%i %T").split("\n")[:-1]:
            return f"{len(jobs)} job(s), {', '.join(jobs[:5])}"
        states = dict(line.split() for line in self.run("sinfo", "-h", "-N", "-o", "%N %T").splitlines())
        unusable = [f"{name} is {states.get(name)}" for name in self.node_names if states.get(name) not in USABLE]
        return ", ".join(unusable) or None

    def _script(self, *arguments: str) -> str:
        return _run((str(SCRIPT), *arguments), _clean_environment() | self._settings)


@contextlib.contextmanager
def running_cluster(nodes: int = 4) -> Iterator[DevCluster]:
    """Start a cluster beside everything else on this machine.

    Installs SLURM if needed, or skips the test.
    """
    require_slurm()
    remove_abandoned()
    port = free_ports(2 + nodes)
    with (
        tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, dir="/tmp", ignore_cleanup_errors=True) as folder,
        _owned(Path(folder)),
    ):
        cluster = DevCluster(Path(folder, "c"), port=port, prefix=f"t{port}n")
        try:
            cluster.up(nodes)
            yield cluster
        finally:
            cluster.down()


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold a lock that is released when this process ends, also when it is killed."""
    fresh = folder / "owner.new"
    with fresh.open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        fresh.rename(folder / "owner")  # renamed only now, so that nobody finds the file unlocked
        yield


def remove_abandoned() -> None:
    """Stop and remove the clusters of test sessions that were killed."""
    for owner in Path("/tmp").glob(f"{FOLDER_PREFIX}*/owner"):
        # An OSError means that the cluster belongs to another user, is in use, or was just removed.
        with contextlib.suppress(OSError), owner.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            DevCluster(owner.parent / "c", port=0, prefix="abandoned").down()
            shutil.rmtree(owner.parent)


def require_slurm() -> None:
    """Install missing parts of SLURM, which needs root on Debian.

    Elsewhere the test is skipped with the reason.
    """
    done = subprocess.run([SCRIPT, "install"], capture_output=True, text=True, check=False)
    if done.returncode == CANNOT_INSTALL:
        pytest.skip(done.stderr.strip().removeprefix("devcluster: "))
    if done.returncode:
        raise ClusterError(f"{SCRIPT} install: {done.stderr.strip()}")


def free_ports(count: int) -> int:
    """Return the first of `count` consecutive unused ports, below those that Linux assigns."""
    for _ in range(1000):
        first = random.SystemRandom().randrange(20000, 32000)
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
        return first
    raise ClusterError(f"there are no {count} consecutive free ports between 20000 and 32000")


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(OUTER)}


def _run(command: tuple[str, ...], env: dict[str, str]) -> str:
    if shutil.which(command[0]) is None:
        raise ClusterError(f"{command[0]} is not installed on this machine")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180, check=False)
    if done.returncode:
        raise ClusterError(
            f"{' '.join(command)} ended with status {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout
