"""Random faults in running sweeps: the short form of `python -m tests.faults.chaos`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.chaos import disturbed, read_results, table
from tests.support.chaos import Chaos, Fault, Result
from tests.support.cluster import DevCluster
from tests.support.shared_runs import PLAIN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def sections(full: bool) -> dict[str, Any]:
    """Of the disturbed sweeps: one iteration, with --full two."""
    return {"iterations": 2} if full else {"runs": [PLAIN]}


@pytest.fixture(scope="module")
def reference(request: pytest.FixtureRequest, full: bool) -> Path:
    found: Path = (
        request.getfixturevalue("undisturbed_run")(2) if full else request.getfixturevalue("shared_runs")["plain"]
    )
    return found


@pytest.mark.full(reason="the driver local; the usual run has chaos on SLURM, and kills of the driver local")
def test_random_faults_on_one_machine(
    tiny_models: list[Path], reference: Path, sections: dict[str, Any], tmp_path: Path
) -> None:
    result = disturbed(tmp_path / "s", tiny_models, reference, None, driver="local", seed=1, num_faults=3, **sections)
    print(table([result]))
    assert result.violations == []
    assert len(result.faults) >= 2


def test_random_faults_on_slurm(
    tiny_models: list[Path], reference: Path, sections: dict[str, Any], cluster: DevCluster, tmp_path: Path
) -> None:
    """With chained phases, of which this is also the usual run's only whole sweep."""
    result = disturbed(
        tmp_path / "s", tiny_models, reference, cluster, driver="chained", seed=1, num_faults=3, **sections
    )
    print(table([result]))
    assert result.violations == []
    assert len(result.faults) >= 2


def test_the_invariants_can_fail(tmp_path: Path) -> None:
    """A second start after a publication, and two controllers at once, are found in the logs."""
    chaos = Chaos(driver="local", seed=0, num_faults=0, sweep=tmp_path, folder=tmp_path, output=tmp_path, cluster=None)
    folder = tmp_path / "run" / "cold" / "iteration=0001"
    (tmp_path / "published.log").write_text(f"100.0 7 5 {folder}/m0-p000\n")
    (tmp_path / "starts.log").write_text("90.0 7 5 cold/0001/m0/000\n101.0 8 6 cold/0001/m0/000\n")
    assert chaos._started_again() == []
    assert chaos._controllers_at_once(tmp_path) == []
    with (tmp_path / "starts.log").open("a") as log:
        log.write("150.0 7 5 cold/0001/m0/000\n")
    assert chaos._started_again() == ["cold/0001/m0/000 started again 50.0 s after it was published"]
    assert chaos._controllers_at_once(tmp_path) == ["controllers 5 and 6 worked at the same time"]
    chaos._damaged["cold/0001/m0/000"] = 120.0
    assert chaos._started_again() == []


def test_a_long_run_continues_where_it_was_interrupted(tmp_path: Path) -> None:
    out = tmp_path / "chaos.jsonl"
    assert read_results(out) == []
    out.write_text(
        '{"driver": "local", "seed": 3, "faults": [{"kind": "worker killed", "target": "w", "at_s": 1.0, '
        '"recovery_s": 2.5}], "violations": [], "starts": 2, "tasks_started": 9, "tasks_published": 8, '
        '"seconds": 4.0}\n'
        '{"driver": "arr'
    )
    (result,) = read_results(out)
    assert result == Result(
        driver="local",
        seed=3,
        faults=[Fault(kind="worker killed", target="w", at_s=1.0, recovery_s=2.5)],
        violations=[],
        starts=2,
        tasks_started=9,
        tasks_published=8,
        seconds=4.0,
    )
    assert "| worker killed | 1 | 0 | 0 | 0 | 1 | 2.5 s | 2.5 s |" in table([result])
