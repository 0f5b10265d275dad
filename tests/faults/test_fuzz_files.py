"""Every file that a controller reads, altered at random: a clear error or a repair, never a wrong result.

One file of a complete run is altered, and then the sweep is read as its commands read it: the status,
a start, the scheduler with all its listeners. What was withdrawn is published again, as its task would
do. In the end the run is as it was, or an error for the user has named what is wrong. Answers of SLURM
are fuzzed elsewhere.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.counts.load import load_run
from core_hpc import cancel
from core_hpc.common.errors import CoreHpcError
from core_hpc.common.terminal import PlainConsole
from core_hpc.controller import cancellation
from core_hpc.controller.counts_cache import CountsCache
from core_hpc.controller.heartbeat import Heartbeat
from core_hpc.controller.start import Start
from core_hpc.controller.tracking import Tracking
from core_hpc.runs import creation
from core_hpc.runs.contents import TABLE_OF
from core_hpc.runs.folder import locate
from core_hpc.runs.job_status import JobStatus
from core_hpc.runs.outcome import Outcome, OutcomeKind
from core_hpc.runs.sweep import load_sweep
from core_hpc.schedule.base import Listener
from core_hpc.schedule.progress import inspect_run
from core_hpc.schedule.scheduler import Scheduler
from core_hpc.slurm.records import FAILED, OPEN, SubmissionFolder, new_submission
from core_hpc.status import __main__ as status_command
from core_hpc.status.collect import Manifests
from core_hpc.status.compute import read_status
from core_hpc.store import manifests
from core_hpc.store.claims import claim
from core_hpc.store.paths import SweepPaths, TaskKey
from core_hpc.store.shards import read_task
from tests.support.alterations import altered_bytes, altered_json
from tests.support.executors import Instant
from tests.support.fake_slurm import FakeSlurm
from tests.support.whole_run import frame_of, publish_task, run_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep with a complete run, and with every kind of file that a controller reads."""
    folder = tmp_path_factory.mktemp("original")
    run = run_in(folder)
    for key in run.graph().tasks():
        publish_task(run, key)
    progress, messages = inspect_run(run)
    assert progress.finished
    assert messages == []
    load_run(run.root)
    CountsCache().on_finished(progress)
    paths = SweepPaths(run.root.parent)
    Heartbeat(paths.controller, Start.new(verify=False), [progress], lambda: 1.0).beat()
    manifests.write_json(paths.stop_request, manifests.writer_identity())
    with claim(paths.claim):
        content = paths.claim.read_bytes()
    dead = {**json.loads(content), "boot_id": "of-an-earlier-boot"}
    paths.claim.write_text(json.dumps(dead))
    submissions = SubmissionFolder(run.paths.slurm)
    for name, state in (("cold-0001", OPEN), ("cold-0002", FAILED)):
        submission = new_submission("generate", name, [[TaskKey(1, "cold", "a")]], start_id="now", mem_gb=1)
        submission.job = 70
        submissions.write(submission)
        status = JobStatus(job="70", node="n1", started=1.0)
        manifests.make_folder(submissions.folder(submission))
        manifests.write_json(submissions.status_file(submission, 0), status.to_json())
        if state == FAILED:
            submissions.resolve(submission, 0, Outcome(OutcomeKind.ERROR, "an error", task="cold/0001/a/000"))
            submissions.close(submission)
    return folder


# --- the invariant -------------------------------------------------------------------------------


def show_status(sweep: Path) -> None:
    for status in read_status([locate(sweep)], Manifests()):
        status_command.render(status)


def cancel_all(sweep: Path) -> None:
    """Cancel a sweep that has no job in the queue."""
    with mock.patch.multiple(cancellation, WAIT_S=0.0, POLL_S=0.0):
        cancel.cancel_sweep(sweep, FakeSlurm(), PlainConsole(file=io.StringIO()))


def use(sweep_file: Path) -> None:
    """Read and drive a sweep as its commands do. CoreHpcError: an error for the user."""
    sweep = load_sweep(sweep_file)
    (plan,) = sweep.runs
    paths, folder = SweepPaths(sweep.folder), SubmissionFolder(sweep.folder / plan.run_id / "slurm")
    errors: list[str] = []
    for command in (show_status, cancel_all):
        try:
            command(sweep.folder)
        except CoreHpcError as e:
            errors.append(str(e))
    assert all(str(sweep.folder) in error for error in errors), f"an error does not name the file: {errors}"
    paths.stop_request.unlink(missing_ok=True)
    with claim(paths.claim):
        run = creation.start(plan, sweep.folder)
        progress, _ = inspect_run(run)
        folder.read(OPEN, FAILED)
        tracking = Tracking()
        listeners: list[Listener] = [tracking, CountsCache()]
        messages: list[str] = []
        Scheduler([progress], Instant(publish_task), listeners, max_attempts=3, notify=messages.append).run()
        tracking.close([progress])
        assert not [m for m in messages if "the sweep continues without it" in m], messages
        assert progress.finished
        assert progress.stopped is None
    for key in run.graph().tasks():
        try:
            rows = read_task(run.root, key, TABLE_OF[key.phase])
        except manifests.DamagedError:
            continue  # the next task that reads it makes the same discovery
        assert rows.equals(frame_of(run, key)), f"{key} has other rows"


def kinds_of(sweep: Path) -> dict[str, list[Path]]:
    """The files of a sweep by kind, so that rare kinds are altered as often as frequent ones."""
    found: dict[str, list[Path]] = {}
    for path in sorted(p for p in sweep.rglob("*") if p.is_file() and "tensorboard" not in p.parts):
        inside = path.relative_to(sweep).parts
        kind = f"{inside[1] if len(inside) > 2 else ''} {path.suffix} {'manifest' in path.name}"
        found.setdefault(kind if len(inside) > 2 else path.name, []).append(path)
    return found


def test_no_altered_file_gives_a_traceback_or_a_wrong_result(
    original: Path, tmp_path_factory: pytest.TempPathFactory, full: bool
) -> None:
    """The usual run has fewer alterations."""

    @settings(max_examples=80 if full else 20, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def alter_one(data: st.DataObject) -> None:
        _alter_and_use(original, tmp_path_factory, data)

    alter_one()


def _alter_and_use(original: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Alter one file of a copy of the sweep, and read it as its commands do."""
    folder = tmp_path_factory.mktemp("altered") / "copy"
    shutil.copytree(original, folder)
    text = (folder / "s.yaml").read_text().replace(str(original), str(folder))
    (folder / "s.yaml").write_text(text)
    kinds = kinds_of(folder / "s")
    path = data.draw(st.sampled_from(kinds[data.draw(st.sampled_from(sorted(kinds)))]))
    content = path.read_bytes()
    is_json = path.suffix == ".json"
    new = data.draw(altered_json(content) | altered_bytes(content) if is_json else altered_bytes(content))
    path.write_bytes(new)
    with mock.patch.object(manifests, "VISIBILITY_DELAYS_S", (0.001,)), mock.patch.dict("os.environ", {"PATH": ""}):
        error = None
        try:
            use(folder / "s.yaml")
        except CoreHpcError as e:
            error = str(e)
    assert error is None or str(folder) in error, f"the error does not name the file: {error}"
    shutil.rmtree(folder.parent)
