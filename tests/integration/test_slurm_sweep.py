"""Sweeps on a real SLURM cluster.

Their results are those of the driver `local`, and each sweep has one controller, detached or not.
"""

import json
import os
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import yaml
from core_hpc.common.ownership import OTHERS_MAY_WRITE
from core_hpc.runs.folder import list_runs
from core_hpc.slurm.records import ENDED, FAILED, OPEN, SubmissionFolder
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths
from tests.support import tiny
from tests.support.cluster import DevCluster
from tests.support.harness import differences, evaluate, launch, launched_and_held, published_content, wait_for
from tests.support.second_user import as_colleague, project_folder, under_umask
from tests.support.tiny import tiny_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SLURM: dict[str, Any] = {
    "cpus": 1,
    "mem_gb": 1.8,
    "time_min": 10,
    "poll_s": [0.3, 1],
    "lost_after_s": 15,
    "gpus_per_node": 1,
    "signal_delay_s": 15,
    "generate": {"parts_per_job": 2},
    "update": {"nodes": 2, "gpus_per_node": 1},
}
PROTOCOL = {**tiny.PROTOCOL, "problems_per_part": 4}
GRID: dict[str, Any] = {"grid": {"seed": [7, 8]}, "protocol": PROTOCOL}
ONE_PART: dict[str, Any] = {"iterations": 1, "protocol": {**PROTOCOL, "problems_per_part": 8}}


AS_COLLEAGUE = """
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*")):
    if not path.is_dir():
        path.read_bytes()
try:
    pathlib.Path(sys.argv[2]).write_text("{}")
except PermissionError:
    print("read everything, could not write")
"""


def arrays(**changes: Any) -> dict[str, Any]:
    """A cluster section for the driver `arrays`; `changes` are fields of its section `slurm`."""
    return {"driver": "arrays", "threads": 1, "update_ranks": 2, "slurm": {**SLURM, **changes}}


def records(run: Path) -> list[str]:
    """Names of all submissions of a run."""
    return [name for name, _ in SubmissionFolder(RunPaths(run).slurm).names(OPEN, ENDED, FAILED)]


@pytest.fixture(scope="module")
def sections(full: bool) -> dict[str, Any]:
    """Of the sweep that the driver `local` runs once for this file: one run and iteration, with --full 2 and 3."""
    return {"iterations": 3, **GRID} if full else {"iterations": 1, "protocol": PROTOCOL}


@pytest.fixture(scope="module")
def reference(tiny_models: list[Path], sections: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sweep that the driver `local` has run."""
    folder = tmp_path_factory.mktemp("reference")
    local = {"num_running": 1, "threads": 1, "update_ranks": 2}
    here = launch(tiny_sweep(folder / "local.yaml", tiny_models, folder / "local", cluster=local, **sections))
    assert here.returncode == 0, here.stdout + here.stderr
    return folder / "local" / "tiny"


@pytest.fixture(scope="module")
def swept(
    cluster: DevCluster, tiny_models: list[Path], sections: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str]]:
    """The output folder of the same sweep, which the driver `arrays` has run, and what the launcher printed.

    The folder is in the project folder of a group, and the umask is 002, as on many clusters.
    """
    with project_folder() as project:
        sweep = tmp_path_factory.mktemp("swept") / "arrays.yaml"
        tiny_sweep(sweep, tiny_models, project / "outputs", cluster=arrays(), **sections)
        with under_umask(0o002):
            done = launch(sweep, env=cluster.environment(), timeout_s=900)
        assert done.returncode == 0, done.stdout + done.stderr
        yield project / "outputs", done.stdout


def test_a_whole_sweep_leaves_nothing_that_the_group_can_change(swept: tuple[Path, str]) -> None:
    """Files of all libraries, SLURM's logs and TensorBoard's included; a colleague in the group reads them."""
    output, _ = swept
    found = {path: path.stat().st_mode for path in [output, *output.rglob("*")]}
    assert len(found) > 50
    assert [str(path) for path, mode in found.items() if mode & OTHERS_MAY_WRITE] == []
    assert [str(path) for path, mode in found.items() if not mode & stat.S_IRGRP] == []
    shown = as_colleague(AS_COLLEAGUE, output, list_runs(output / "tiny")[0] / "config.json")
    assert shown.stdout == "read everything, could not write\n", shown.stderr


def test_arrays_over_several_nodes_publish_what_the_local_driver_publishes(
    cluster: DevCluster,
    tiny_models: list[Path],
    reference: Path,
    swept: tuple[Path, str],
    sections: dict[str, Any],
    tmp_path: Path,
) -> None:
    """2 models, with updates of 2 ranks on 2 nodes. Rows, adapters and optimizer states are identical bit by bit."""
    output, printed = swept
    runs = list_runs(reference)
    # Per run: two evaluations of 4 tasks, and 8 tasks per iteration.
    num_tasks = len(runs) * (8 + 8 * sections["iterations"])
    assert f"{len(runs)} run(s), {num_tasks} tasks; SLURM arrays" in printed
    assert "of a core" in printed
    assert len(runs) == (2 if "grid" in sections else 1)
    for run in runs:
        other = output / "tiny" / run.name
        assert differences(run, other) == []
        assert not [name for name, state in SubmissionFolder(RunPaths(other).slurm).names(OPEN, FAILED) if state]
        updates = [s for s in SubmissionFolder(RunPaths(other).slurm).read(ENDED) if s.group == "update"]
        (job,) = {s.job for s in updates if s.name.startswith("update-0001")}
        assert cluster.run("sacct", "-X", "-n", "-P", "-j", str(job), "-o", "NNodes").split() == ["2", "2"]
    sweep = tiny_sweep(tmp_path / "arrays.yaml", tiny_models, output, cluster=arrays(), **sections)
    again = launch(sweep, env=cluster.environment())
    assert "everything is done" in again.stdout
    assert again.returncode == 0


@pytest.mark.parametrize(
    "driver", ["arrays", pytest.param("resident", marks=pytest.mark.full(reason="evaluations with another driver"))]
)
def test_an_evaluation_in_jobs_publishes_what_the_local_driver_publishes(
    cluster: DevCluster, reference: Path, tmp_path: Path, driver: str
) -> None:
    """Before and after the first update of a run, on two parts. The fake engine reads the bytes of the adapters."""
    source = list_runs(reference)[0]
    profile = tmp_path / "profile.yaml"
    section = arrays(update={"nodes": 1, "gpus_per_node": 1})
    profile.write_text(yaml.safe_dump({**section, "update_ranks": 1, "driver": driver}), encoding="utf-8")
    what = [source, "--iteration", "0", "1", "--problems", "{source: generated, count: 5, seed: 9}"]
    names = {place: f"{place}-{driver}" for place in ("here", "there")}
    here = evaluate(*what, "--name", names["here"])
    assert here.returncode == 0, here.stdout + here.stderr
    there = evaluate(*what, "--name", names["there"], "--cluster", profile, env=cluster.environment())
    assert there.returncode == 0, there.stdout + there.stderr
    runs = list_runs(reference.parent / names["here"])
    assert len(runs) == 2
    for run in runs:
        other = reference.parent / names["there"] / run.name
        assert len(published_content(run)) == 4  # two models, two parts
        assert differences(run, other) == []
        assert records(other)
    again = evaluate(*what, "--name", names["there"], "--cluster", profile, env=cluster.environment())
    assert "everything is done" in again.stdout, again.stdout + again.stderr


@pytest.mark.full(reason="the usual run has controllers that SLURM warns and kills, and a second one on one machine")
def test_jobs_continue_after_ctrl_c_and_a_second_controller_is_refused(
    cluster: DevCluster, tiny_models: list[Path], tmp_path: Path
) -> None:
    sweep = tiny_sweep(tmp_path / "tiny.yaml", tiny_models, tmp_path / "out", cluster=arrays(), **ONE_PART)
    hold = tmp_path / "hold"
    with launched_and_held(sweep, "task.started@cold/0001/m0", hold, env=cluster.environment()) as first:
        second = launch(sweep, env=cluster.environment())
        assert second.returncode == 3
        assert f"process {first.pid}" in second.stderr
        first.send_signal(signal.SIGINT)
        printed, _ = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "SLURM jobs that were submitted continue" in printed
    (run,) = list_runs(tmp_path / "out" / "tiny")
    submitted = records(run)
    assert "RUNNING" in cluster.run("squeue", "-h", "-o", "%T", "-j", hold.read_text().split()[1])
    Path(f"{hold}.go").touch()
    done = launch(sweep, env=cluster.environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(submitted) <= set(records(run))
    cold = [name for name in records(run) if name.startswith("cold-0001")]
    assert len(cold) == 1, "the cold task was submitted again"


def test_a_sweep_survives_the_end_of_its_detached_controllers(
    cluster: DevCluster, tiny_models: list[Path], tmp_path: Path
) -> None:
    """SLURM warns the first controller and kills the second.

    The third finishes, and no job remains.
    """
    section = {**arrays(update={"nodes": 1, "gpus_per_node": 1}), "update_ranks": 1}
    sweep = tiny_sweep(tmp_path / "tiny.yaml", tiny_models, tmp_path / "out", cluster=section, **ONE_PART)
    holds = [tmp_path / f"hold{i}" for i in range(2)]
    faults = ";".join(
        f"hold task.started@{t}:{m}" for t, m in zip(("cold/0001/m0", "update/0001/m0"), holds, strict=True)
    )
    started = launch(sweep, "--detach", env={**cluster.environment(), "CORE_HPC_FAULT": faults})
    assert started.returncode == 0, started.stdout + started.stderr
    assert "its controller is SLURM job" in started.stdout
    refused = launch(sweep, env=cluster.environment())
    assert refused.returncode == 3
    assert "is the controller of this sweep" in refused.stderr
    controllers = SubmissionFolder(tmp_path / "out" / "tiny" / "slurm")
    claim = tmp_path / "out" / "tiny" / "claim.json"

    def holder() -> int | None:
        try:
            return int(json.loads(claim.read_text())["job"])
        except (OSError, ValueError):
            return None

    wait_for(holds[0].exists, "the cold task")
    first = holder()
    assert first is not None
    cluster.run("scancel", "--signal=USR2", str(first))
    wait_for(lambda: holder() not in (None, first), "the second controller")
    second = holder()
    Path(f"{holds[0]}.go").touch()
    wait_for(holds[1].exists, "the update")
    cluster.run("scancel", "--signal=KILL", str(second))
    wait_for(lambda: holder() not in (None, second), "the third controller")
    Path(f"{holds[1]}.go").touch()
    (run,) = list_runs(tmp_path / "out" / "tiny")
    wait_for(lambda: not claim.exists() and not cluster.run("squeue", "-h", "-o", "%i").strip(), "the end of all jobs")
    wait_for(lambda: not controllers.names(OPEN), "the records of the controllers")
    assert len(controllers.names(ENDED)) >= 3
    logs = "".join(p.read_text() for p in controllers.root.glob("*/*_log.out"))
    assert "asked to end; the successor" in logs
    assert "taking them over" in logs
    assert "Pass@1" in logs
    submitted = [name for name in records(run) if name.startswith(("cold", "update"))]
    assert len(submitted) == 2, "a task was submitted twice"
    done = launch(sweep, env=cluster.environment())
    assert "everything is done" in done.stdout, done.stdout + done.stderr


def test_jobs_that_slurm_would_refuse_are_reported_before_anything_is_created(
    cluster: DevCluster, tiny_models: list[Path], tmp_path: Path
) -> None:
    section = arrays(partition="nowhere")
    sweep = tiny_sweep(tmp_path / "tiny.yaml", tiny_models, tmp_path / "out", cluster=section)
    done = launch(sweep, env=cluster.environment())
    assert done.returncode == 2
    assert "jobs of `generate`" in done.stderr
    assert "invalid partition" in done.stderr.lower()
    assert not (tmp_path / "out").exists()
    nothing = launch(sweep, env={"PATH": f"{Path(sys.executable).parent}{os.pathsep}/nonexistent"})
    assert nothing.returncode == 2
    assert "sbatch is not on PATH" in nothing.stderr


@pytest.mark.full(reason="the usual run has one chained sweep, in tests/faults/test_chaos.py")
def test_chained_phases_publish_the_same_with_two_arrays_per_iteration(
    cluster: DevCluster, tiny_models: list[Path], tmp_path: Path
) -> None:
    """In iteration 1 one model is late, so the job of the other leaves its rescue to a third job.

    In iteration 2 no job waits long.
    """
    sections = {"iterations": 2, "protocol": {**PROTOCOL, "problems_per_part": 8}}
    local = {"num_running": 1, "threads": 1, "update_ranks": 2}
    here = launch(tiny_sweep(tmp_path / "local.yaml", tiny_models, tmp_path / "local", cluster=local, **sections))
    assert here.returncode == 0, here.stdout + here.stderr
    sweep = tiny_sweep(
        tmp_path / "chained.yaml", tiny_models, tmp_path / "chained", cluster=arrays(chain_wait_s=20), **sections
    )
    hold = tmp_path / "hold"
    with launched_and_held(sweep, "task.started@cold/0001/m1", hold, env=cluster.environment()) as controller:
        (run,) = list_runs(tmp_path / "chained" / "tiny")
        folder = SubmissionFolder(RunPaths(run).slurm)

        def end_of_other_job() -> Any:
            (submission,) = (s for s in folder.read(OPEN) if s.name.startswith("cold-0001"))
            path = folder.status_file(submission, 0)
            return path.exists() and manifests.read_json(path)["outcome"]

        wait_for(end_of_other_job, "the end of the job of the model that was not held")
        assert end_of_other_job()["left"] == ["hint/0001/team/000", "rescue/0001/m0/000"]
        assert not (RunPaths(run).phase_folder("hint", 1)).exists()
        Path(f"{hold}.go").touch()
        printed, _ = controller.communicate(timeout=600)
    assert controller.returncode == 0, printed
    (reference,) = list_runs(tmp_path / "local" / "tiny")
    assert differences(reference, run) == []
    # There is no array of hints or updates, and one of rescues only because a job did not wait for
    # long. On a slow machine a job may be late in iteration 2 as well.
    submitted = {name.rpartition("-")[0] for name in records(run)} - {"rescue-0002"}
    assert {name for name in submitted if not name.startswith("evaluate")} == {
        "cold-0001",
        "cold-0002",
        "rescue-0001",
        "score-0001",
        "score-0002",
    }
    assert folder.names(OPEN, FAILED) == []
