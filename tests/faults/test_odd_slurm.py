"""A sweep on a real SLURM whose commands a site has wrapped: notices, and an sbatch that names no job."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from core_hpc.slurm.records import ENDED, FAILED, OPEN, SubmissionFolder
from core_hpc.store.paths import RunPaths
from tests.faults.chaos import write_sweep
from tests.support.cluster import DevCluster
from tests.support.harness import launch, the_run
from tests.support.tiny import PROTOCOL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.full(reason="tests/unit/slurm/test_odd_answers.py has these answers without a cluster"),
]

ONE_PART = {**PROTOCOL, "problems_per_part": 8}
NOTICE = "echo 'Maintenance on Monday | 7 jobs of 4711 = all'"
READERS = ("squeue", "sacct", "sacctmgr", "scontrol", "sinfo")
# The first call fails with an unknown error. The second takes the job and prints nothing. Later ones print another
# number before the id.
SBATCH = """
case "$*" in *--test-only*) exec "{real}" "$@";; esac
count=$(($(cat "{count}" 2>/dev/null || echo 0) + 1)); echo $count >"{count}"
case $count in
1) cat >/dev/null; echo "sbatch: error: Batch job submission failed: Unspecified error" >&2; exit 1;;
2) "{real}" "$@" >/dev/null; exit $?;;
esac
echo "This is job 4711 of your project"
exec "{real}" "$@"
"""


def wrap(folder: Path) -> None:
    """Write the wrapped commands into a folder, which comes first on PATH."""
    folder.mkdir()
    for name in (*READERS, "sbatch"):
        real = shutil.which(name)
        assert real is not None
        body = f'{NOTICE}\nexec "{real}" "$@"\n'
        if name == "sbatch":
            body = SBATCH.format(real=real, count=folder / "count")
        (folder / name).write_text(f"#!/bin/sh\n{body}")
        (folder / name).chmod(0o755)


def test_a_sweep_ends_and_no_task_is_submitted_twice(
    tiny_models: list[Path], cluster: DevCluster, tmp_path: Path
) -> None:
    wrap(tmp_path / "bin")
    sweep = write_sweep(tmp_path / "tiny.yaml", tiny_models, tmp_path / "out", "arrays", protocol=ONE_PART)
    environment = {**cluster.environment(), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = launch(sweep, "--set", "iterations=1", env=environment, timeout_s=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Unspecified error" in done.stdout
    assert "looking for a job of this name" in done.stdout
    records = SubmissionFolder(RunPaths(the_run(tmp_path / "out" / "tiny")).slurm).read(OPEN, ENDED, FAILED)
    assert {outcome.kind for record in records for outcome in record.outcomes.values()} == {"done"}
    tasks = Counter(task for record in records for element in record.elements for task in element)
    assert {task for task, times in tasks.items() if times > 1} == set()
    assert int((tmp_path / "bin" / "count").read_text()) == len(records) + 1
