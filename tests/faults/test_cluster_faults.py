"""A sweep on a real SLURM cluster publishes the same results whatever happens to it.

The usual test run does three faults in one iteration, which its chaos never causes.
The full matrix has every fault at every phase:

    python -m pytest tests/faults/test_cluster_faults.py --full -s
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core_hpc.store.schema import PHASES
from tests.support.cluster import SMALL_JOBS, DevCluster
from tests.support.cluster_faults import Disturber, Fault
from tests.support.harness import differences, launch, leftovers, the_run
from tests.support.shared_runs import ONE_PART
from tests.support.tiny import tiny_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SLURM = {
    "partition": "preempt",
    **SMALL_JOBS,
    "array_parallelism": 1,
    "exclude_after": 50,
}
HOSTS = ["cold/{}/m0/000", "hint/{}/team/000", "rescue/{}/m0/000", "score/{}/team/000", "update/{}/m0/000"]

SHORT = [
    Fault("preempted", "cold/0001/m0/000"),
    Fault("power cut", "score/0001/team/000"),
    Fault("disk full", "update/0001/m0/000", "publish.data_in_place"),
]


def _first(task: str) -> list[Fault]:
    """Faults of a first iteration, in the order in which a task passes the fault points."""
    kinds = ["worker killed", "element cancelled", "preempted", "disk full"]
    return [*(Fault(kind, task) for kind in kinds), Fault("controller killed", task, "publish.data_in_place")]


def _second(task: str) -> list[Fault]:
    """Faults of a second iteration."""
    kinds = ["job killed", "power cut", "time limit", "file altered", "slurmctld restarted"]
    return [Fault(kind, task) for kind in kinds] + [Fault("slurmdbd restarted", task, "publish.before_manifest")]


MATRIX = {
    "first": [
        Fault("waiting element cancelled, worker killed", "evaluate/0000/m0/000"),
        *_first("evaluate/0000/m0/000"),
        *(fault for host in HOSTS for fault in _first(host.format("0001"))),
    ],
    "second": [*(fault for host in HOSTS for fault in _second(host.format("0002"))), *_second("evaluate/0002/m0/000")],
}
"""Every fault at every phase.

One sweep has them in its first iteration, the other in its second.
"""


@pytest.fixture(scope="module")
def sections(full: bool) -> dict[str, Any]:
    """What the sweeps of this file have in common. The matrix needs two iterations."""
    return {"runs": [{**ONE_PART, "iterations": 2} if full else ONE_PART]}


@pytest.fixture(scope="module")
def undisturbed(
    request: pytest.FixtureRequest,
    tiny_models: list[Path],
    sections: dict[str, Any],
    full: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    if not full:
        found: Path = request.getfixturevalue("shared_runs")["one-part"]
        return found
    folder = tmp_path_factory.mktemp("undisturbed")
    done = launch(tiny_sweep(folder / "tiny.yaml", tiny_models, folder / "out", **sections))
    assert done.returncode == 0, done.stdout + done.stderr
    return the_run(folder / "out" / "tiny")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a small file system that a test can fill without harm."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1200m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"mounting a small file system needs root ({done.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(
    "chosen",
    ["short", *(pytest.param(name, marks=pytest.mark.full(reason="every fault at every phase")) for name in MATRIX)],
)
def test_faults_lose_nothing_and_change_nothing(
    chosen: str,
    cluster: DevCluster,
    tiny_models: list[Path],
    undisturbed: Path,
    sections: dict[str, Any],
    small_disk: Path,
    tmp_path: Path,
    full: bool,
) -> None:
    if chosen == "short" and full:
        pytest.skip("with --full the matrix has every fault of the short list")
    faults = MATRIX.get(chosen, SHORT)
    section = {"driver": "arrays", "threads": 1, "max_attempts": 30, "slurm": SLURM}
    sweep = tiny_sweep(tmp_path / "tiny.yaml", tiny_models, small_disk / "out", **sections, cluster=section)
    output = small_disk / "out" / "tiny"
    disturber = Disturber(cluster=cluster, sweep=sweep, folder=tmp_path, output=output, faults=list(faults))
    try:
        run = disturber.run()
    finally:
        print(
            f"\n{len(disturber.report)} of {len(faults)} faults, {disturber.starts} starts of the launcher",
            *disturber.report,
            sep="\n",
        )
        (tmp_path / "report.txt").write_text("\n".join(disturber.report))
    assert len(disturber.report) == len(faults)
    assert differences(undisturbed, run) == []
    submitted = disturber.submissions()
    too_often = {task: (n, 1 + disturber.extra[task]) for task, n in submitted.items() if n > 1 + disturber.extra[task]}
    assert too_often == {}, "some tasks were submitted more often than the faults explain"
    done = launch(sweep, env=cluster.environment())
    assert "everything is done" in done.stdout
    assert leftovers(run, PHASES) == []
