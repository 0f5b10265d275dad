"""Random faults in running sweeps: the short form of `python -m tests.faults.chaos`."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core_hpc.runs.folder import Run
from core_hpc.slurm.records import SubmissionFolder, new_submission
from core_hpc.store import manifests
from core_hpc.store.paths import TaskKey
from tests.faults.chaos import disturbed, read_results, table
from tests.support import chaos as chaos_module
from tests.support.chaos import TOKEN, Chaos, Fault, Result
from tests.support.cluster import DevCluster
from tests.support.harness import wait_for
from tests.support.shared_runs import PLAIN
from tests.support.whole_run import publish_task, run_in

COLD = TaskKey(1, "cold", "a")

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


def chaos_in(folder: Path, output: Path, cluster: Any = None) -> Chaos:
    return Chaos(driver="local", seed=0, num_faults=0, sweep=folder, folder=folder, output=output, cluster=cluster)


class OneJob:
    """NOT a cluster: its queue has one job."""

    def run(self, *command: str) -> str:
        return "5 RUNNING\n"


def publish_other_weights(run: Run, key: TaskKey) -> None:
    """Replace the adapter of an update by another one, whose manifest is right."""
    path = run.paths.task_manifest(key)
    weights = manifests.read_manifest(path).file("adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[::-1])
    body = manifests.read_json(path)
    (entry,) = (e for e in body["files"] if e["name"].endswith("adapter_model.safetensors"))
    entry["sha256"] = manifests.sha256_file(weights)
    manifests.write_json(path, body)


def test_everything_that_is_left_over_or_differs_at_the_end_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chaos_module, "END_S", 0.0)
    for name in ("reference", "disturbed"):
        (tmp_path / name).mkdir()
        run = run_in(tmp_path / name)
        for key in sorted(run.graph().tasks()):
            publish_task(run, key)
    (reference,) = (path.parent for path in tmp_path.glob("reference/s/*/run.json"))
    output = run.root.parent
    assert list(chaos_in(tmp_path, output).violated_at_end(reference, run.root)) == []

    update = run.paths.task_folder(TaskKey(1, "update", "a"))
    half, temporary = update / "a-p000.0123456789ab.parquet", output / ".claim.json.01234567.tmp"
    for path in (half, temporary, output / "claim.json"):
        path.touch()
    publish_other_weights(run, TaskKey(1, "update", "b"))
    folder = SubmissionFolder(run.paths.slurm)
    for claim, submitted in (("one", 1.0), ("two", 2.0), ("one", 3.0)):
        record = new_submission("generate", "cold-0001", [[COLD]], start_id="s", mem_gb=1, claim=claim)
        folder.write(replace(record, submitted=submitted))
    chaos = chaos_in(tmp_path, output, OneJob())
    chaos.faults.append(Fault(kind="worker killed", target="w", at_s=0.0, recovery_s=1000.0))
    code = [sys.executable, "-c", "import time; time.sleep(60)", "-m", "core_hpc.phases.worker"]
    with subprocess.Popen(code, env={**os.environ, TOKEN: chaos.token}) as worker:
        wait_for(lambda: bool(chaos.processes("worker")), "the process")
        found = list(chaos.violated_at_end(reference, run.root))
        worker.kill()
    assert found == [
        "differs from the undisturbed run: update/0001/b/000 adapter_model.safetensors",
        "controllers one and two worked at the same time",
        f"left over: {half}",
        f"left over: {temporary}",
        "left over: the claim",
        "left over: an open submission",
        f"left over: worker {worker.pid}",
        "left over: SLURM job 5",
        "worker killed: recovered only after 1000 s",
    ]


def test_what_the_logs_show_is_found(tmp_path: Path) -> None:
    """A second start after a publication, and two controllers at once."""
    chaos = chaos_in(tmp_path, tmp_path)
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
