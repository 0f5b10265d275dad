"""core_hpc.status on records, manifests and claims of the real classes; core_hpc.cancel as far as it needs no SLURM."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from core_hpc import cancel
from core_hpc.common.errors import ClaimError, InputError
from core_hpc.common.terminal import PlainConsole
from core_hpc.controller.heartbeat import HEARTBEAT_S, Heartbeat
from core_hpc.controller.start import Start
from core_hpc.runs.folder import Run, locate
from core_hpc.runs.job_status import RunningTask
from core_hpc.runs.outcome import Outcome, OutcomeKind, Progress
from core_hpc.runs.sweep import load_sweep
from core_hpc.schedule.progress import inspect_run
from core_hpc.slurm.commands import JobId, QueueEntry, SlurmUnavailableError
from core_hpc.slurm.records import FAILED, OPEN, Submission, SubmissionFolder, new_submission
from core_hpc.status import __main__ as command
from core_hpc.status import collect, compute, pace
from core_hpc.status.model import ControllerStatus, RunStatus, SweepStatus
from core_hpc.store import manifests
from core_hpc.store.claims import claim
from core_hpc.store.manifests import Manifest
from core_hpc.store.paths import SweepPaths, TaskKey
from tests.support.created_run import create_run
from tests.support.harness import ROOT
from tests.support.tiny import tiny_sweep

COLD = [TaskKey(1, "cold", model, part) for part in (0, 1) for model in ("m0", "m1")]
ARRAYS = {"driver": "arrays", "threads": 1}


def make_run(folder: Path, **changes: Any) -> Run:
    """A run folder after a start, with nothing published."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep = load_sweep(tiny_sweep(folder / "tiny.yaml", [Path("/m0"), Path("/m1")], folder / "out", **changes))
    return create_run(sweep)


def publish(run: Run, key: TaskKey, **stats: Any) -> None:
    def fill(temporary: Path) -> dict[str, tuple[int, str]]:
        (temporary / "shard.parquet").write_bytes(b"rows")
        return {}

    given = {"seconds": {"load": 1.0, "generate": 2.0}, "num_completions": 6, **stats}
    manifests.publish(run.paths.task_folder(key), run.paths.task_name(key), fill, as_folder=False, stats=lambda: given)


def submission_of(
    run: Run, elements: Sequence[Sequence[TaskKey]], *, start_id: str = "now", job: int | None = 70
) -> Submission:
    submission = new_submission("generate", "cold-0001", elements, start_id=start_id, mem_gb=1)
    submission.job = job
    SubmissionFolder(run.paths.slurm).write(submission)
    return submission


def write_status(run: Run, submission: Submission, index: int, **changes: Any) -> None:
    """Write a status file as the job of an array element does."""
    folder = SubmissionFolder(run.paths.slurm)
    folder.folder(submission).mkdir(exist_ok=True)
    body = {
        "job": "70",
        "restarts": 0,
        "node": "n1",
        "pid": 1,
        "started": time.time() - 60,
        "published": 0,
        "progress": None,
        "stopping": None,
        "outcome": None,
    }
    manifests.write_json(folder.status_file(submission, index), {**body, **changes})


def failure(task: TaskKey, **changes: Any) -> Outcome:
    """An outcome as the executor on SLURM records it."""
    fields: dict[str, Any] = {
        "kind": "error",
        "message": "ValueError: no",
        "node": "n2",
        "counted": True,
        "log": "/logs/70_1_0_log.out",
        "task": str(task),
        "time": time.time(),
    }
    return Outcome.from_json({**fields, **changes})


def look(run: Run) -> SweepStatus:
    (found,) = compute.read_status([locate(run.root.parent)], collect.Manifests())
    return found


def shown(found: SweepStatus, *, show_all: bool = False) -> str:
    from rich.console import Console

    console = Console(width=200, record=True, file=open(os.devnull, "w", encoding="utf-8"), highlight=False)  # noqa: PTH123, SIM115
    console.print(command.render(found, show_all=show_all), soft_wrap=True)
    console.file.close()
    return console.export_text()


class FakeQueue:
    """Stands in for squeue; counts the calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *entries: QueueEntry) -> None:
        self.calls, self.entries = 0, list(entries)
        self.error: SlurmUnavailableError | None = None
        monkeypatch.setattr(collect, "slurm_installed", lambda: True)
        monkeypatch.setattr("core_hpc.slurm.commands.Slurm.queue", self.answer)

    def answer(self, _: object = None) -> list[QueueEntry]:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return self.entries


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")


def test_shares_of_truncated_and_unanswered_completions(tmp_path: Path, no_slurm: None) -> None:
    run = make_run(tmp_path)
    for model, truncated in (("m0", 5), ("m1", 0)):
        publish(run, TaskKey(0, "evaluate", model), num_truncated=truncated, num_no_answer=1)
    (status,) = look(run).runs
    assert (status.truncated_share, status.no_answer_share) == (5 / 12, 2 / 12)
    text = shown(look(run))
    assert "42%" in text
    assert "WARNING: 5 of 12 completions were cut at the token limit" in text


# --- what runs and waits -------------------------------------------------------------------------


def test_a_finished_local_run(tmp_path: Path, no_slurm: None, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    for key in run.graph().tasks():
        publish(run, key)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert command.main([str(tmp_path / "tiny.yaml"), "--watch"]) == 0, "--watch must end when all runs are finished"
    assert "finished" in capsys.readouterr().out
    assert command.main([str(run.root), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"time", "sweeps"}
    (sweep,) = answer["sweeps"]
    assert set(sweep) == {f.name for f in fields(SweepStatus)}
    assert set(sweep["controller"]) == {f.name for f in fields(ControllerStatus)}
    assert sweep["slurm"] == "not needed"
    (status,) = sweep["runs"]
    assert set(status) == {f.name for f in fields(RunStatus)}
    wanted = {
        "state": "finished",
        "iteration": 2,
        "iterations": 2,
        "done": 40,
        "total": 40,
        "waiting": 0,
        "left_s": None,
        "phases": [],
    }
    assert {k: status[k] for k in wanted} == wanted
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before, "it must not write"


def test_queue_and_records_give_counts_and_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, cluster=ARRAYS)
    pair = submission_of(run, [[COLD[0], COLD[2]], [COLD[1]], [COLD[3]]])
    unsure = submission_of(
        run, [[TaskKey(0, "evaluate", "m0", 1)]], job=None
    )  # its controller died before it knew the job
    publish(run, COLD[0])
    write_status(
        run,
        pair,
        0,
        published=1,
        progress={"task": str(COLD[2]), "done": 3, "total": 6, "tokens": 9, "time": time.time()},
    )
    queue = FakeQueue(
        monkeypatch,
        QueueEntry(JobId(70, 0), pair.name, "RUNNING", "None", "n1", 0),
        QueueEntry(JobId(70, 1), pair.name, "PENDING", "Resources", "", 0),
        QueueEntry(JobId(71), unsure.name, "PENDING", "Priority", "", 0),
        QueueEntry(JobId(70, 2), pair.name, "FAILED", "NonZeroExitCode", "n2", 0),
        QueueEntry(JobId(99), "foreign", "PENDING", "Priority", "", 0),
    )
    write_status(run, pair, 2, outcome={"kind": "died", "message": "worker ended with signal SIGKILL"})
    with claim(SweepPaths(run.root.parent).claim):
        found = look(run)
    assert queue.calls == 1
    (status,) = found.runs
    assert (status.state, status.done, status.running, status.waiting, status.total) == ("running", 1, 1, 2, 40)
    assert (status.iteration, status.phases) == (0, ["cold", "evaluate"])
    assert status.completions_per_s is not None
    assert found.waiting_reasons == {"Resources": 1, "Priority": 1}
    (unseen,) = found.failures
    assert (unseen.task, unseen.kind, unseen.counted, unseen.node) == (str(COLD[3]), "died", None, "n1")
    assert status.failed == 0
    assert "1 waiting: Priority; 1 waiting: Resources" in shown(found)


@pytest.mark.parametrize(("task_s", "expected"), [({"started": 30.0}, 2.0), ({}, 0.12)])
def test_the_speed_of_a_task_counts_from_its_own_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task_s: dict[str, float], expected: float
) -> None:
    """An element may have done other tasks before. Earlier versions wrote only the start of its process."""
    run, now = make_run(tmp_path, cluster=ARRAYS), time.time()
    pair = submission_of(run, [[COLD[0], COLD[2]]])
    at = {"task": str(COLD[2]), "done": 60, "total": 90, "tokens": 9, "time": now}
    own = {name: now - seconds for name, seconds in task_s.items()}
    write_status(run, pair, 0, started=now - 500, progress={**at, **own})
    FakeQueue(monkeypatch, QueueEntry(JobId(70), pair.name, "RUNNING", "None", "n1", 0))
    with claim(SweepPaths(run.root.parent).claim):
        (status,) = look(run).runs
    assert status.completions_per_s == pytest.approx(expected, rel=0.2)


def test_the_job_of_a_whole_run_reports_its_running_tasks_and_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, now = make_run(tmp_path, cluster={"driver": "resident", "threads": 1}), time.time()
    submission = new_submission("resident", "resident-0000", [run.graph().tasks()], start_id="now", mem_gb=1)
    submission.job = 70
    SubmissionFolder(run.paths.slurm).write(submission)
    pending = FakeQueue(monkeypatch, QueueEntry(JobId(70), submission.name, "PENDING", "Resources", "", 0))
    with claim(SweepPaths(run.root.parent).claim):
        found = look(run)
        (status,) = found.runs
        assert (status.state, status.running, status.waiting) == ("waiting", 0, len(run.graph().ready(()))), (
            "not the tasks that follow later"
        )
        assert found.waiting_reasons == {"Resources": 1}
        pending.entries = [QueueEntry(JobId(70), submission.name, "RUNNING", "None", "n1", 0)]
        publish(run, COLD[0])
        at_work = {"started": now - 10, "done": 3, "total": 6, "tokens": 9, "time": now}
        failed = {
            "task": str(COLD[1]),
            "kind": "error",
            "message": "ValueError: no",
            "traceback": "",
            "log": "/w.log",
            "time": now,
        }
        running = {str(COLD[1]): at_work, str(COLD[2]): {"started": now}}
        write_status(run, submission, 0, published=1, running=running, failures=[failed])
        (status,) = (found := look(run)).runs
    assert (status.state, status.done, status.running, status.waiting, status.phases) == ("running", 1, 2, 0, ["cold"])
    (inside,) = found.failures
    assert (inside.task, inside.message, inside.counted, inside.node, inside.log) == (
        str(COLD[1]),
        "ValueError: no",
        True,
        "n1",
        "/w.log",
    )
    assert status.completions_per_s is not None


def test_without_slurm_status_files_show_what_runs(tmp_path: Path, no_slurm: None) -> None:
    run = make_run(tmp_path, cluster=ARRAYS)
    submission = submission_of(run, [[key] for key in COLD])
    write_status(run, submission, 0)
    write_status(run, submission, 1, outcome={"kind": "done"})
    publish(run, COLD[1])
    (status,) = look(run).runs
    assert (status.state, status.done, status.running, status.waiting) == ("no controller", 1, 1, 2)
    assert "not installed" in shown(look(run))


def test_slurm_that_does_not_answer_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, cluster=ARRAYS)
    submission_of(run, [[key] for key in COLD])
    FakeQueue(monkeypatch).error = SlurmUnavailableError("squeue: Unable to contact slurm controller")
    found = look(run)
    assert found.runs[0].waiting == 4
    assert "Unable to contact" in found.slurm


def test_one_squeue_for_several_sweeps_and_none_when_nothing_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [make_run(tmp_path / name, cluster=ARRAYS) for name in ("a", "b")]
    queue = FakeQueue(monkeypatch)
    compute.read_status([locate(run.root.parent) for run in made], collect.Manifests())
    assert queue.calls == 0
    for run in made:
        submission_of(run, [[COLD[0]]])
    compute.read_status([locate(run.root.parent) for run in made], collect.Manifests())
    assert queue.calls == 1


def test_a_record_that_is_renamed_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    folder, real = SubmissionFolder(run.paths.slurm), manifests.read_json
    renamed, gone, kept = (submission_of(run, [[key]]) for key in COLD[:3])

    def read_json(path: Path) -> Any:
        if path.name == f"{renamed.name}.open.json":
            renamed.outcomes[0] = failure(COLD[0])
            folder.close(renamed)
        if path.name == f"{gone.name}.open.json":
            path.unlink(missing_ok=True)
        return real(path)

    monkeypatch.setattr(manifests, "read_json", read_json)
    found = {s.name: state for state, s in folder.read_with_state(OPEN, FAILED)}
    assert found == {renamed.name: FAILED, kept.name: OPEN}


# --- failures and stops --------------------------------------------------------------------------


def test_failures_of_the_last_start_with_their_logs(tmp_path: Path, no_slurm: None) -> None:
    run = make_run(tmp_path, cluster=ARRAYS)
    folder = SubmissionFolder(run.paths.slurm)
    for number, start_id in enumerate(("earlier", "now")):
        submission = submission_of(run, [[COLD[0]], [COLD[1]], [COLD[2]]], start_id=start_id)
        submission.submitted = time.time() - 50 + 10 * number
        submission.outcomes = {
            0: failure(COLD[0], message=f"of the start {start_id}", time=submission.submitted + 5),
            1: failure(
                COLD[1], kind="node", counted=False, message="SLURM lost the node", time=submission.submitted + 6
            ),
            2: Outcome(OutcomeKind.ABANDONED, "its run was stopped before it began", counted=False),
        }
        folder.close(submission)
    found = look(run)
    assert [(f.task, f.kind, f.counted) for f in found.failures] == [
        (str(COLD[1]), "node", False),
        (str(COLD[0]), "error", True),
    ]
    assert found.runs[0].failed == 1
    text = shown(found)
    assert "log: /logs/70_1_0_log.out" in text
    assert "of the start now" in text
    assert "of the start earlier" not in text
    assert "does not count as an attempt" in text
    submission.outcomes = {i: failure(COLD[0], time=time.time() - i) for i in range(12)}
    submission.elements = [[str(COLD[0])]] * 12
    folder.close(submission)
    assert (
        shown(look(run)).count("log: /logs") == command.NUM_SHOWN + 1
    )  # and once in the reason why the run was stopped
    assert shown(look(run), show_all=True).count("log: /logs") == 12 + 1


def test_a_run_is_stopped_after_max_attempts_until_it_is_started_again(tmp_path: Path, no_slurm: None) -> None:
    run = make_run(tmp_path, cluster={**ARRAYS, "max_attempts": 2})
    folder = SubmissionFolder(run.paths.slurm)
    for expected in ("no controller", "stopped"):
        submission = submission_of(run, [[COLD[0]]])
        submission.outcomes = {0: failure(COLD[0])}
        folder.close(submission)
        (status,) = look(run).runs
        assert status.state == expected
    assert "failed 2 time(s): ValueError: no" in status.detail
    assert "log: /logs/70_1_0_log.out" in status.detail
    with claim(SweepPaths(run.root.parent).claim):
        assert look(run).runs[0].state == "running", "the present holder of the claim has not reported that it stopped"


def test_what_the_controller_reports_about_its_runs(tmp_path: Path, no_slurm: None) -> None:
    run, sweep = make_run(tmp_path), SweepPaths(tmp_path / "out" / "tiny")
    progress, _ = inspect_run(run)
    cpu = [10.0]
    heartbeat = Heartbeat(sweep.controller, Start("now"), [progress], lambda: cpu[0])
    with claim(sweep.claim):
        heartbeat.beat()
        found = look(run)
        assert (found.runs[0].state, found.runs[0].running, found.controller.alive) == ("running", None, True)
        assert found.runs[0].phases == ["cold", "evaluate"], (
            "the phases that are ready, because local workers write no status"
        )
        assert found.controller.cpu_s_per_hour is None, "unknown in the first minute"
        progress.stopped, progress.failures, cpu[0] = (
            "cold/0001/m0/000 failed 3 times: no\nTraceback\nlog: /logs/generate.log",
            3,
            11.0,
        )
        heartbeat.beat()
        assert manifests.read_json(sweep.controller)["runs"][run.run_id]["stopped"] is None, "at most once a minute"
        heartbeat.beat(last=True)
    found = look(run)
    (status,) = found.runs
    assert (status.state, status.failed) == ("stopped", 3)
    assert "cold/0001/m0/000 failed 3 times: no; log: /logs/generate.log" in shown(found)
    body = manifests.read_json(sweep.controller)
    manifests.write_json(sweep.controller, {**body, "started": body["time"] - 2 * HEARTBEAT_S})
    assert look(run).controller.cpu_s_per_hour == 30.0
    assert "30 CPU-seconds per hour" in shown(look(run))


@pytest.mark.parametrize(
    ("changes", "alive", "state"),
    [
        ({}, True, "running"),
        ({"start_ticks": 1}, False, "no controller"),
        ({"host": "elsewhere"}, None, "running"),
        ({"host": "elsewhere", "job": 5}, True, "running"),
        ({"host": "elsewhere", "job": 6}, False, "no controller"),
    ],
)
def test_whether_the_holder_of_a_claim_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], alive: bool | None, state: str
) -> None:
    run, sweep = make_run(tmp_path), SweepPaths(tmp_path / "out" / "tiny")
    FakeQueue(
        monkeypatch,
        QueueEntry(JobId(5), "x", "RUNNING", "None", "n1", 0),
        QueueEntry(JobId(6), "x", "CANCELLED", "None", "", 0),
    )
    with claim(sweep.claim):
        body = manifests.read_json(sweep.claim)
    manifests.write_json(sweep.claim, {**body, **changes})
    found = look(run)
    assert (found.controller.alive, found.runs[0].state) == (alive, state)
    assert f"host {changes.get('host', body['host'])}" in shown(found)


def test_a_detached_controller_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, sweep = make_run(tmp_path, cluster=ARRAYS), SweepPaths(tmp_path / "out" / "tiny")
    folder = SubmissionFolder(sweep.slurm)
    submission = new_submission("controller", "controller-0001", [[]], start_id="now", mem_gb=1)
    submission.job = 80
    folder.write(submission)
    FakeQueue(monkeypatch, QueueEntry(JobId(80), submission.name, "PENDING", "Priority", "", 0))
    found = look(run)
    assert found.runs[0].state == "waiting"
    (job,) = found.controller.jobs
    assert job == {"job": 80, "state": "PENDING", "reason": "Priority", "log": str(folder.log(submission, 0))}
    FakeQueue(monkeypatch)  # it has left the queue, and its record was not closed
    assert look(run).runs[0].state == "no controller"


# --- estimates -----------------------------------------------------------------------------------


def manifest_of(end: float, seconds: float, num_completions: int = 0) -> Manifest:
    return Manifest(Path("x"), (), {"seconds": {"all": seconds}, "num_completions": num_completions}, {"time": end})


def test_completions_per_second_count_the_last_minutes() -> None:
    now = 10_000.0
    published = {COLD[0]: manifest_of(now - 50, 50.0, 100), COLD[1]: manifest_of(now - 5000, 50.0, 1000)}
    running = {COLD[2]: RunningTask(now - 100, Progress(60, 99, 0), now - 1)}
    assert pace.completions_per_s(published, running, now) == pytest.approx(1.6)
    assert pace.completions_per_s({COLD[1]: published[COLD[1]]}, {}, now) is None


# --- the command line ----------------------------------------------------------------------------


def test_it_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'submitit', 'transformers', 'tensorboard'}"
    code = f"import sys, core_hpc.status.__main__, core_hpc.cancel; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_path_that_is_no_sweep_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="neither a sweep's file nor its folder"):
        locate(tmp_path)
    sweep = tiny_sweep(tmp_path / "tiny.yaml", [Path("/m0")], tmp_path / "out")
    with pytest.raises(InputError, match=r"python -m core_hpc\.launch"):
        locate(sweep)
    monkeypatch.chdir(tmp_path)
    assert command.main([]) == 2
    assert "no sweep below ./outputs" in capsys.readouterr().err


def test_without_arguments_all_sweeps_below_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_slurm: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        make_run(tmp_path, name=name)
    (tmp_path / "out").rename(tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    assert command.main([]) == 0
    printed = capsys.readouterr().out
    assert "sweep one" in printed
    assert "sweep two" in printed


def test_a_run_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path, no_slurm: None) -> None:
    run = make_run(tmp_path)
    other = make_run(tmp_path, seed=8)
    (other.root / "config.json").write_text("{")
    status = {r.run_id: r for r in look(run).runs}
    assert status[other.run_id].state == "unreadable"
    assert "config.json" in status[other.run_id].detail
    assert status[run.run_id].state == "no controller"


# --- cancel --------------------------------------------------------------------------------------


def test_nothing_to_cancel_is_success(tmp_path: Path, no_slurm: None, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    assert cancel.main([str(tmp_path / "tiny.yaml")]) == 0
    assert "nothing to cancel" in capsys.readouterr().out
    assert not SweepPaths(run.root.parent).stop_request.exists()


def test_a_controller_on_this_machine_is_asked_to_stop(
    tmp_path: Path, no_slurm: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    sweep = SweepPaths(run.root.parent)
    held = threading.Event()

    def controller() -> None:
        with claim(sweep.claim):
            held.set()
            while not sweep.stop_request.exists():
                time.sleep(0.02)

    thread = threading.Thread(target=controller)
    thread.start()
    held.wait()
    assert cancel.main([str(sweep.root), "--run", run.run_id]) == ClaimError.exit_code
    assert "cancel the whole sweep" in capsys.readouterr().err
    assert cancel.main([str(sweep.root)]) == 0
    thread.join()
    assert "no controller works on it any longer" in capsys.readouterr().out
    assert set(manifests.read_json(sweep.stop_request)) == {"host", "pid", "user", "time"}
    assert "stop requested by" in shown(look(run))


def test_cancel_names_the_runs_it_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    assert cancel.main([str(run.root.parent), "--run", "other"]) == 2
    assert run.run_id in capsys.readouterr().err
    assert cancel.main([str(run.root)]) == 2
    assert f"--run {run.run_id}" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"host": 3}', ""])
def test_a_claim_that_cannot_be_read_is_not_shown_as_nobody(tmp_path: Path, no_slurm: None, content: str) -> None:
    """A controller may be at work, so the run is not called one without a controller."""
    run = make_run(tmp_path)
    path = SweepPaths(run.root.parent).claim
    path.write_text(content)
    found = look(run)
    assert found.controller.holder is None
    assert str(path) in found.controller.unreadable_claim
    assert f"controller: unknown, because the claim cannot be read ({path}" in shown(found)
    assert found.runs[0].state == "waiting"
    path.unlink()
    assert "controller: none" in shown(look(run))
    assert look(run).runs[0].state == "no controller"


def test_cancel_names_a_claim_that_cannot_be_read(tmp_path: Path, no_slurm: None) -> None:
    run = make_run(tmp_path)
    path = SweepPaths(run.root.parent).claim
    path.write_text("[]")
    found = subprocess.run(
        [sys.executable, "-m", "core_hpc.cancel", str(run.root.parent)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert f"{path}: is not a claim" in found.stderr
    assert "Traceback" not in found.stderr


# --- width ---------------------------------------------------------------------------------------


def statuses(*names: str) -> SweepStatus:
    """A sweep with a running run of each name."""
    at = {"iteration": 2, "iterations": 20, "phases": ["cold", "update"], "done": 10, "total": 400}
    item = {"overhead": 0.25, "largest_item": "waiting for the longest completion"}
    made = [RunStatus(run_id=f"{n}-1f9b2bd{i}", state="running", **at, **item) for i, n in enumerate(names)]  # type: ignore[arg-type]
    nobody = dict.fromkeys(("holder", "alive", "last_log", "seen", "cpu_s_per_hour", "stop_request"))
    controller = ControllerStatus(jobs=[], **nobody)  # type: ignore[arg-type]
    return SweepStatus(
        sweep="s", folder="/s", slurm="ok", controller=controller, runs=made, waiting_reasons={}, failures=[]
    )


@pytest.mark.parametrize("width", [60, 80, 100, 140, 250])
def test_names_are_short_and_columns_are_dropped_before_anything_wraps(width: int) -> None:
    names = ("loss-gspo-seed-1", "loss-gspo-seed-2", "learning-rate-1e-05-seed-1")
    console = PlainConsole(width=width, record=True, file=io.StringIO(), highlight=False)
    console.print(command.render(statuses(*names), width=width), soft_wrap=True)
    lines = console.export_text().splitlines()
    rows = [line for line in lines if line.startswith(names)]
    assert [line.split()[0] for line in rows] == [*names]
    assert all(len(line) <= width and "1f9b2bd" not in line and "running" in line for line in rows)
    header = lines[1].rstrip()
    assert ("overhead" in header) == (width == 250)
    assert header.endswith("state")


def test_runs_with_the_same_label_keep_their_ids() -> None:
    """Two versions of a sweep file have left two runs with one label."""
    text = shown(statuses("core", "core"))
    assert "core-1f9b2bd0" in text
    assert "core-1f9b2bd1" in text
