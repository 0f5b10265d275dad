"""Kill the launcher between phases, tasks while they publish, and damage files: no result is lost or changes.

One run is continued by a chain of starts. In each start a task of one or two phases is killed
(SIGKILL) at a fault point while it publishes, and the launcher is killed as soon as the last of these
phases has published something. The last start is not disturbed. The usual run has a short chain in
one iteration.
"""

from pathlib import Path
from typing import Any

import pytest

from core_hpc.store import manifests, shards
from core_hpc.store.paths import RunPaths
from core_hpc.store.schema import COLD, EVALUATE, HINT, PHASES, RESCUE, SCORE, UPDATE
from tests.support.harness import differences, flip_a_byte, launch, launch_and_kill, leftovers, the_run
from tests.support.shared_runs import PLAIN
from tests.support.tiny import tiny_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHORT = [
    [(COLD, 1, "publish.data_in_place"), (HINT, 1, "publish.before_manifest")],
    [(UPDATE, 1, "publish.before_manifest")],
]
CHAIN = [
    [(EVALUATE, 0, "publish.before_manifest")],
    [(COLD, 1, "publish.data_in_place")],
    [(HINT, 1, "publish.started")],
    [(RESCUE, 1, "publish.before_manifest")],
    [(SCORE, 1, "publish.data_in_place")],
    [(UPDATE, 1, "publish.before_manifest")],
    [(COLD, 2, "publish.done")],
    [(UPDATE, 2, "publish.data_in_place")],
]
"""By start of the launcher: phase, iteration and fault point of the tasks that are killed."""


@pytest.fixture(scope="module")
def sections(full: bool) -> dict[str, Any]:
    """Of the killed sweeps: one iteration, with --full two."""
    return {"iterations": 2} if full else {"runs": [PLAIN]}


@pytest.fixture(scope="module")
def undisturbed(request: pytest.FixtureRequest, full: bool) -> Path:
    found: Path = (
        request.getfixturevalue("undisturbed_run")(2) if full else request.getfixturevalue("shared_runs")["plain"]
    )
    return found


def test_kills_between_phases_and_while_publishing(
    undisturbed: Path, tiny_models: list[Path], sections: dict[str, Any], full: bool, tmp_path: Path
) -> None:
    sweep = tiny_sweep(tmp_path / "tiny.yaml", tiny_models, tmp_path / "out", **sections)
    fired = []
    for number, faults in enumerate(CHAIN if full else SHORT):
        markers = [tmp_path / f"marker-{number}-{phase}" for phase, _, _ in faults]
        entries = [
            f"kill {point}@/{phase}/iteration={iteration:04d}/:{marker}"
            for (phase, iteration, point), marker in zip(faults, markers, strict=True)
        ]
        last = f"*/{faults[-1][0]}/iteration={faults[-1][1]:04d}/*.manifest.json"

        def phase_published(last: str = last, marker: Path = markers[-1]) -> bool:
            return marker.exists() and bool(list((tmp_path / "out" / "tiny").glob(last)))

        killed = launch_and_kill(sweep, phase_published, tmp_path / "log", env={"CORE_HPC_FAULT": ";".join(entries)})
        fired.append((faults, [marker.exists() for marker in markers], killed))
    assert all(all(tasks_died) and launcher_died for _, tasks_died, launcher_died in fired), fired
    done = launch(sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    run = the_run(tmp_path / "out" / "tiny")
    assert differences(undisturbed, run) == []
    assert leftovers(run, PHASES) == []
    assert not (tmp_path / "out" / "tiny" / "claim.json").exists()


@pytest.mark.full(reason="test_damage.py damages files of a running and of a finished sweep")
def test_a_damaged_shard_is_set_aside_and_replaced(
    undisturbed: Path, tiny_models: list[Path], sections: dict[str, Any], tmp_path: Path
) -> None:
    """The next start finds a missing file.

    Other damage is found by the task that reads the file.
    """
    sweep = tiny_sweep(tmp_path / "tiny.yaml", tiny_models, tmp_path / "out", **sections)
    folder = tmp_path / "out" / "tiny"
    assert launch_and_kill(
        sweep, lambda: len(list(folder.glob("*/cold/iteration=0001/*.manifest.json"))) == 4, tmp_path / "log"
    )
    run = the_run(folder)
    keys = [k for k in shards.published_keys(run) if k.phase == COLD]
    paths = [manifests.read_manifest(RunPaths(run).task_manifest(k)).file(".parquet") for k in keys[:2]]
    flip_a_byte(paths[0])
    paths[1].unlink()
    # The controller reads evaluations, for TensorBoard.
    evaluated = next(k for k in shards.published_keys(run) if k.phase == EVALUATE)
    path = manifests.read_manifest(RunPaths(run).task_manifest(evaluated)).file(".parquet")
    flip_a_byte(path)
    done = launch(sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "damaged:" in done.stdout
    assert "checksum differs" in done.stdout
    assert differences(undisturbed, run) == []
