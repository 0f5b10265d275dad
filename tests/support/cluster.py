"""A real Slurm cluster on this machine for tests: slurm/devcluster.sh, wrapped. Knows nothing of core_hpc."""

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

import pytest

SCRIPT = Path(__file__).parents[2] / "slurm" / "devcluster.sh"
FOLDER_PREFIX = "core-hpc-test-"
CANNOT_INSTALL = 77
"""Exit status of `devcluster.sh install` where this user or this machine cannot install Slurm."""
USABLE = frozenset({"idle", "planned"})
"""States of a node without jobs that takes some (as `sinfo` says)."""
OUTER = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SINFO_", "SACCT_", "SALLOC_", "SCANCEL_", "DEVCLUSTER_")
"""Variables of a surrounding job, or of a user's habits."""


class ClusterError(RuntimeError):
    """A command of the cluster failed; the message holds its words."""


class DevCluster:
    """One cluster in one folder.

    Args:
        home: folder of the cluster, with a short path (unix sockets).
        port: first of 2 + nodes free ports.
        prefix: what node names begin with; no other cluster on this machine may have the same.
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
        """Start whatever does not run, and wait until every node is usable."""
        self._script("up", str(nodes))
        self._num_nodes = nodes

    def down(self) -> None:
        """Stop the cluster and delete its folder."""
        self._script("down", "--wipe")

    def kill_node(self, name: str) -> None:
        """Power cut: SIGKILL to everything on a node. Slurm notices it after 10 to 30 s."""
        self._script("kill-node", name)

    def start_node(self, name: str) -> None:
        self._script("start-node", name)

    def stop_ctld(self) -> None:
        """Stop slurmctld: sbatch, squeue and scancel get no answer, running jobs go on."""
        self._script("stop-ctld")

    def start_ctld(self) -> None:
        self._script("start-ctld")

    def stop_dbd(self) -> None:
        """Stop slurmdbd: sacct and sacctmgr get no answer."""
        self._script("stop-dbd")

    def start_dbd(self) -> None:
        self._script("start-dbd")

    def environment(self) -> dict[str, str]:
        """os.environ for processes that are to use this cluster and no other."""
        return _clean_environment() | {"SLURM_CONF": str(self.home / "etc" / "slurm.conf")}

    def run(self, *command: str) -> str:
        """Standard output of a Slurm command; raises ClusterError with its words when it fails."""
        return _run(command, self.environment())

    def wait_idle(self, timeout_s: float = 60) -> None:
        """Wait until no job of ours is in the queue and every node takes jobs."""
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
    """A fresh cluster beside whatever else runs on this machine; installs Slurm if need be, skips the test if it cannot."""
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
    """Hold a lock that ends with this process, however it ends."""
    fresh = folder / "owner.new"
    with fresh.open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        fresh.rename(folder / "owner")  # locked before anybody can find it
        yield


def remove_abandoned() -> None:
    """Take down clusters of test sessions that were killed."""
    for owner in Path("/tmp").glob(f"{FOLDER_PREFIX}*/owner"):
        with contextlib.suppress(OSError), owner.open("r+") as file:  # somebody else's, in use, or just gone
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            DevCluster(owner.parent / "c", port=0, prefix="abandoned").down()
            shutil.rmtree(owner.parent)


def require_slurm() -> None:
    """Install what is missing of Slurm as root on Debian; elsewhere skip, saying why."""
    done = subprocess.run([SCRIPT, "install"], capture_output=True, text=True, check=False)
    if done.returncode == CANNOT_INSTALL:
        pytest.skip(done.stderr.strip().removeprefix("devcluster: "))
    if done.returncode:
        raise ClusterError(f"{SCRIPT} install: {done.stderr.strip()}")


def free_ports(count: int) -> int:
    """First of `count` neighbouring ports that nobody listens on, below those that Linux hands out by itself."""
    for _ in range(1000):
        first = random.SystemRandom().randrange(20000, 32000)
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
        return first
    raise ClusterError(f"no {count} neighbouring free ports between 20000 and 32000")


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(OUTER)}


def _run(command: tuple[str, ...], env: dict[str, str]) -> str:
    if shutil.which(command[0]) is None:
        raise ClusterError(f"no {command[0]} on this machine")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180, check=False)
    if done.returncode:
        raise ClusterError(
            f"{' '.join(command)} ended with status {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout
