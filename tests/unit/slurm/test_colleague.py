"""What a colleague of the same group can do with the sweep of another user, tried with a real second user."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from core_hpc.cancel import cancel_sweep
from core_hpc.common.errors import CoreHpcError
from core_hpc.common.terminal import PlainConsole
from core_hpc.runs.folder import Run
from core_hpc.runs.sweep import load_sweep
from core_hpc.slurm.commands import SlurmUnavailableError
from core_hpc.slurm.records import OPEN, SubmissionFolder
from core_hpc.store.claims import claim
from core_hpc.store.paths import SweepPaths, TaskKey
from tests.support.created_run import create_run, sweep_with
from tests.support.fake_slurm import FakeSlurm, executor_of, run_of
from tests.support.second_user import COLLEAGUE_UID, as_colleague_after, require_root, under_umask
from tests.support.slurm_commands import HEADER, FakeCommands

OWNER_UID = COLLEAGUE_UID + 1
"""A third user: files of root are accepted from everybody."""


def run_as_colleague(module: str, *arguments: str | Path, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command of core_hpc as the second user, with a folder of commands before those of this machine."""
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
    code = "sys.exit(command.main(sys.argv[1:]))"
    return as_colleague_after(f"import {module} as command", code, *arguments, env=environment)


@pytest.mark.parametrize("of_one_run", [False, True])
def test_cancel_by_a_colleague_names_the_owner_and_changes_nothing(project: Path, of_one_run: bool) -> None:
    """Without open records, as between two arrays or with the driver `local`, only the folder shows the owner."""
    require_root()
    with under_umask(0o002):
        run = run_of(project, "arrays")
    commands = FakeCommands(project / "bin")
    commands.command("squeue", HEADER)
    commands.folder.chmod(0o2777)
    sweep = run.root.parent
    with claim(SweepPaths(sweep).claim) as held:
        before = sorted(path.name for path in sweep.iterdir())
        more = ("--run", run.run_id) if of_one_run else ()
        done = run_as_colleague("core_hpc.cancel", sweep, *more, path=str(commands.folder))
        assert held.require()
        assert sorted(path.name for path in sweep.iterdir()) == before
    assert done.returncode == CoreHpcError.exit_code, done.stdout + done.stderr
    assert "belongs to user root" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_colleague_sees_the_status_of_a_run_with_own_functions(project: Path) -> None:
    require_root()
    with under_umask(0o022):
        sweep = load_sweep(sweep_with(project))
        run = create_run(sweep)
    for path in (sweep.folder, *sweep.folder.rglob("*")):
        os.chown(path, OWNER_UID, -1)
    done = run_as_colleague("core_hpc.status.__main__", sweep.folder, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (shown,) = json.loads(done.stdout)["sweeps"]
    assert [(r["run_id"], r["state"]) for r in shown["runs"]] == [(run.run_id, "no controller")]


def test_cancel_does_not_believe_one_empty_answer(tmp_path: Path, slurm: FakeSlurm) -> None:
    run: Run = run_of(tmp_path, "arrays")
    executor_of(run, slurm, start_id="start001", notify=print).submit([(run, TaskKey(1, "cold", "a"))])
    slurm.queue = list  # type: ignore[method-assign]
    with pytest.raises(SlurmUnavailableError, match=r"the queue has no job 100 .*, but squeue finds it by its id"):
        cancel_sweep(run.root.parent, slurm, PlainConsole())
    assert slurm.cancelled == []
    assert len(SubmissionFolder(run.paths.slurm).names(OPEN)) == 1
