"""The driver `resident` outside its jobs, with a fake queue.

tests/integration/test_resident.py has a real job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core_hpc.common.errors import InputError
from core_hpc.local import executor as local_executor
from core_hpc.runs.events import Done, Event, Failed, TaskRef
from core_hpc.runs.folder import Run
from core_hpc.runs.job_status import JobStatus
from core_hpc.runs.outcome import Outcome, OutcomeKind
from core_hpc.schedule.base import Adopted
from core_hpc.schedule.progress import RunProgress, inspect_run
from core_hpc.schedule.scheduler import Scheduler
from core_hpc.slurm import element, resident_job
from core_hpc.slurm.executor import SlurmExecutor
from core_hpc.slurm.records import ENDED, FAILED, OPEN, Submission, SubmissionFolder, new_submission
from core_hpc.slurm.resident_job import run_resident
from core_hpc.slurm.watch import OpenSubmission
from core_hpc.store import manifests, shards
from core_hpc.store.paths import TaskKey
from tests.support.fake_slurm import SWEEP, FakeSlurm, executor_of, failures, kind_of, publish, run_of

A, B = (TaskKey(1, "cold", model, 0) for model in "ab")
TIME_LIMIT = {"kind": "stopped", "reason": "time limit", "message": "between two tasks"}


Make = Callable[..., tuple[SlurmExecutor, Run, list[str]]]


@pytest.fixture
def make(tmp_path: Path, slurm: FakeSlurm) -> Make:
    def build(start_id: str = "start001", **changes: Any) -> tuple[SlurmExecutor, Run, list[str]]:
        run, messages = run_of(tmp_path, "resident", **changes), list[str]()
        return executor_of(run, slurm, start_id=start_id, notify=messages.append), run, messages

    return build


class Job:
    """Does what the job does that was submitted last: publishes, fails, writes its status, ends."""

    def __init__(self, run: Run, slurm: FakeSlurm) -> None:
        self._run, self._slurm, self.submission = run, slurm, slurm.submitted[-1]
        self._body: dict[str, Any] = {
            "node": "n1",
            "started": time.time(),
            "published": 0,
            "progress": None,
            "stopping": None,
            "outcome": None,
            "running": {},
            "failures": [],
        }
        slurm.set(self.submission, 0, "RUNNING")

    def publish(self, key: TaskKey) -> None:
        publish(self._run, key)
        self.write(published=self._body["published"] + 1)

    def fail(self, key: TaskKey, **fields: Any) -> None:
        failure = {
            "kind": "error",
            "message": "ValueError: no",
            "traceback": "Traceback",
            "log": "/w.log",
            "task": str(key),
            "time": 0.0,
        }
        self.write(failures=[*self._body["failures"], {**failure, **fields}])

    def write(self, **changes: Any) -> None:
        self._body |= changes
        manifests.write_json(SubmissionFolder(self._run.paths.slurm).status_file(self.submission, 0), self._body)

    def end(self, outcome: dict[str, Any], state: str = "COMPLETED") -> None:
        self.write(outcome=outcome)
        self._slurm.set(self.submission, 0, state)


def events(executor: SlurmExecutor, *, polls: int = 20) -> list[Event]:
    return [event for _ in range(polls) for event in executor.poll()]


def kinds(found: list[Event]) -> list[tuple[str, TaskKey]]:
    return [(kind_of(e), e.task.key) for e in found]


def state_of(run: Run) -> RunProgress:
    return inspect_run(run)[0]


def test_a_run_gets_one_job_for_all_its_open_tasks_and_no_further_job(make: Make, slurm: FakeSlurm) -> None:
    executor, run, _ = make()
    publish(run, A)
    assert [t.key for t in executor.submit([(run, B)])] == [B]
    (submission,) = slurm.submitted
    assert submission.keys(0) == [key for key in run.graph().tasks() if key != A]
    assert (submission.group, submission.mem_gb) == ("resident", 10)
    job = Job(run, slurm)
    job.write(running={str(B): {"started": 1.0, "done": 3, "total": 8, "tokens": 9, "time": 2.0}})
    assert kinds(events(executor))[:2] == [("started", B), ("progressed", B)]
    job.publish(B)
    hint = TaskKey(1, "hint", "team", 0)
    job.publish(hint)  # before the scheduler has submitted it
    assert kinds(events(executor)) == [("done", B), ("done", hint)]
    rescue = TaskKey(1, "rescue", "a", 0)
    assert [t.key for t in executor.submit([(run, rescue)])] == [rescue]
    assert len(slurm.submitted) == 1


def test_the_successor_gets_the_open_tasks_and_a_time_limit_after_publications_does_not_count(
    make: Make, slurm: FakeSlurm
) -> None:
    """Every job publishes five tasks and then reaches its time limit, until the run is finished."""
    executor, run, _ = make()
    jobs: list[Job] = []
    done: list[list[TaskKey]] = []
    look = slurm.queue

    def queue() -> Any:
        if not slurm.submitted:
            return look()
        if len(slurm.submitted) > len(jobs):
            jobs.append(Job(run, slurm))
            done.append([])
        left = [key for key in jobs[-1].submission.keys(0) if not run.paths.task_manifest(key).exists()]
        if len(done[-1]) == 5 and left:
            jobs[-1].end(TIME_LIMIT)
        elif left:  # one task per look, in the order of the graph
            jobs[-1].publish(left[0])
            done[-1].append(left[0])
        return look()

    slurm.queue = queue  # type: ignore[method-assign]
    progress = state_of(run)
    seen: list[Event] = []

    class Recorder:
        def on_event(self, progress: RunProgress, event: Event) -> None:
            seen.append(event)

        def on_finished(self, progress: RunProgress) -> None:
            assert progress.finished

    assert Scheduler([progress], executor, [Recorder()], max_attempts=1).run()
    assert progress.finished
    assert progress.stopped is None
    tasks = list(run.graph().tasks())
    assert [key for keys in done for key in keys] == tasks
    assert len(jobs) == -(-len(tasks) // 5) > 3
    assert [j.submission.keys(0) for j in jobs] == [tasks[5 * i :] for i in range(len(jobs))]
    assert [e.task.key for e in seen if kind_of(e) == "done"] == tasks
    failed = [e.outcome for e in failures(seen)]
    assert len(failed) == len(jobs) - 1
    assert not any(f.counted for f in failed)
    assert "reached its time limit" in failed[0].message
    folder = SubmissionFolder(run.paths.slurm)
    assert [len(folder.names(state)) for state in (OPEN, FAILED, ENDED)] == [0, len(jobs) - 1, 1]


def test_a_time_limit_without_publications_counts_for_the_first_open_task(make: Make, slurm: FakeSlurm) -> None:
    executor, run, _ = make()
    first = run.graph().tasks()[0]
    executor.submit([(run, first), (run, B)])
    Job(run, slurm).end({**TIME_LIMIT, "gained": False})
    found = events(executor)
    (failed,) = failures(found)
    assert (failed.task.key, failed.outcome.counted) == (first, True)
    assert ("released", B) in kinds(found), "the scheduler offers it again, so that it gets a new job"
    assert [t.key for t in executor.submit([(run, B)])] == [B]
    assert len(slurm.submitted) == 2
    later, run, _ = make()
    adopted = later.adopt([run])
    assert (adopted.tasks, [failed.task.key for failed in adopted.failures]) == ([], [first])


def test_failures_inside_count_as_under_the_other_drivers_and_stop_the_run_with_the_same_message(
    make: Make, slurm: FakeSlurm
) -> None:
    executor, run, _ = make()
    progress = state_of(run)
    looks = 0
    look = slurm.queue
    jobs: list[Job] = []

    def queue() -> Any:
        nonlocal looks
        looks += bool(slurm.submitted)
        if not jobs and slurm.submitted:
            jobs.append(Job(run, slurm))
        if looks in (2, 4, 6):
            jobs[0].fail(A)
        if looks == 6:
            jobs[0].end({"kind": "gave up", "message": "...", "traceback": ""}, "FAILED")
        return look()

    slurm.queue = queue  # type: ignore[method-assign]
    assert Scheduler([progress], executor, [], max_attempts=3).run()
    assert progress.stopped == f"{A} failed 3 times: ValueError: no\nTraceback\nlog: /w.log"
    assert progress.failures == 3
    assert progress.in_flight == {}
    assert len(slurm.submitted) == 1


@pytest.mark.parametrize("gives_up", [False, True])
def test_a_run_that_was_stopped_gets_no_job_from_a_successor_of_the_controller(
    make: Make, slurm: FakeSlurm, gives_up: bool
) -> None:
    """The first controller cancels the job of the run, or the job has ended before."""
    executor, run, _ = make()
    look, jobs = slurm.queue, list[Job]()

    def queue() -> Any:
        if slurm.submitted and not jobs:
            jobs.append(Job(run, slurm))
            jobs[0].fail(A, kind="final", message="the loss is NaN")
            if gives_up:
                message = f"{A} failed 1 time: the loss is NaN\nTraceback\nlog: /w.log"
                jobs[0].end({"kind": "gave up", "message": message}, "FAILED")
        return look()

    slurm.queue = queue  # type: ignore[method-assign]
    progress = state_of(run)
    assert Scheduler([progress], executor, [], max_attempts=3).run()
    for path in SubmissionFolder(run.paths.slurm).root.glob("*/element-*.json"):
        path.unlink()  # a start removes them once no job is open
    later, run, _ = make()
    restored = state_of(run)
    assert Scheduler([restored], later, [], max_attempts=3, stop_requested=lambda: len(slurm.submitted) > 1).run()
    assert len(slurm.submitted) == 1
    assert restored.stopped is not None
    assert restored.stopped.splitlines()[0] == str(progress.stopped).splitlines()[0]
    assert restored.stopped.splitlines()[0] == f"{A} failed 1 time: the loss is NaN"


def test_a_full_disk_inside_a_job_is_final_and_the_job_is_cancelled(make: Make, slurm: FakeSlurm) -> None:
    executor, run, _ = make()
    assert len(executor.submit([(run, A), (run, B)])) == 2
    Job(run, slurm).fail(A, message="OSError: [Errno 28] No space left on device")
    (failed,) = failures(events(executor))
    assert failed.outcome.kind == "final"
    assert B in [t.key for t in executor.abandon(run, "a full disk")]
    assert slurm.cancelled == [slurm.submitted[0].job_id(0)]
    events(executor)
    assert len(slurm.submitted) == 1, "a run that was stopped gets no successor"


def test_a_damaged_publication_that_the_job_makes_again_is_reported_again(make: Make, slurm: FakeSlurm) -> None:
    executor, run, _ = make()
    for key in (A, B):
        publish(run, key)
    hint = TaskKey(1, "hint", "team", 0)
    executor.submit([(run, hint)])
    job, manifest = Job(run, slurm), run.paths.task_manifest(A)
    manifests.set_aside(manifest)
    job.fail(hint, kind="damaged", message="torn", manifest=str(manifest))
    (failed,) = failures(events(executor))
    assert (failed.task.key, failed.outcome.manifest) == (hint, str(manifest))
    assert [t.key for t in executor.submit([(run, A)])] == [A], "the open job makes it again"
    job.publish(A)
    assert ("done", A) in kinds(events(executor))


def test_controller_and_job_may_set_the_same_file_aside(
    make: Make, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, run, _ = make()
    publish(run, A)
    progress = state_of(run)
    manifest = run.paths.task_manifest(A)
    set_aside = manifests.set_aside

    def second(path: Path) -> Path:
        """Another process sets the file aside between the check and the call."""
        set_aside(path)
        return set_aside(path)

    monkeypatch.setattr(manifests, "set_aside", second)
    manifest.write_text("torn")
    assert inspect_run(run)[0].published == set(), "not published, and no error"
    assert not manifest.exists()

    publish(run, A)
    manifest.write_text("torn")
    scheduler = Scheduler([progress], executor, [], max_attempts=3)
    damaged = Outcome(OutcomeKind.DAMAGED, "torn", manifest=str(manifest))
    scheduler._handle(Failed(TaskRef(run.run_id, B), damaged))
    assert (A in progress.published, manifest.exists(), progress.stopped) == (False, False, None)


def test_a_worker_that_died_ends_the_job_and_out_of_memory_gets_more_memory(make: Make, slurm: FakeSlurm) -> None:
    executor, run, _ = make(max_mem_gb=25)
    executor.submit([(run, A), (run, B)])
    job = Job(run, slurm)
    died = {"kind": "died", "message": "worker ended with signal SIGKILL", "traceback": "", "task": str(B)}
    job.end(died, "OUT_OF_MEMORY")
    log = SubmissionFolder(run.paths.slurm).log(job.submission, 0)
    log.write_text("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=100.0.")
    (failed,) = failures(events(executor))
    assert (failed.outcome.kind, failed.outcome.counted) == ("out of memory", False)
    executor.submit([(run, A), (run, B)])
    assert [s.mem_gb for s in slurm.submitted] == [10, 25]
    Job(run, slurm).end(died, "FAILED")
    (failed,) = failures(events(executor))
    assert (failed.task.key, failed.outcome.kind, failed.outcome.counted) == (B, "died", True)


def test_a_later_controller_takes_over_a_running_job(make: Make, slurm: FakeSlurm) -> None:
    executor, run, _ = make()
    executor.submit([(run, A), (run, B)])
    job = Job(run, slurm)
    job.fail(B)
    progress = state_of(run)
    job.publish(A)  # after the new controller has read the run, before it takes over the job
    later, run, messages = make()
    adopted = later.adopt([run])
    assert (adopted.tasks, [failed.task.key for failed in adopted.failures]) == ([], [B])
    assert any("1 submission(s) of an earlier start" in message for message in messages)
    assert [t.key for t in later.submit([(run, key) for key in progress.ready() if key.phase == "cold"])] == [B]
    assert kinds(events(later)) == [("done", A)], "the failure was already counted"
    by_user, run, _ = make(start_id="start002")
    assert by_user.adopt([run]).failures == []
    assert len(slurm.submitted) == 1


def test_tasks_wait_while_the_queue_is_full(make: Make, slurm: FakeSlurm) -> None:
    executor, run, messages = make(max_submitted=1)
    other = new_submission("generate", "cold-0001", [[A]], start_id="x", mem_gb=1)
    other.job = 1
    slurm.set(other, 0, "RUNNING")
    executor.poll()
    assert executor.submit([(run, A)]) == []
    assert any("room for 0 more" in message for message in messages)
    slurm.entries.clear()
    events(executor)
    assert [t.key for t in executor.submit([(run, A)])] == [A]


def test_jobs_of_another_driver_are_not_taken_over(make: Make) -> None:
    executor, run, _ = make()
    folder = SubmissionFolder(run.paths.slurm)
    folder.write(new_submission("generate", "cold-0001", [[A]], start_id="x", mem_gb=1))
    with pytest.raises(InputError, match=r"of another driver.*core_hpc\.cancel"):
        executor.adopt([run])


class Publishing:
    """An executor inside a job: a task is published as soon as it begins."""

    def __init__(self, *_: object, **__: object) -> None:
        self.done: list[Event] = []

    def adopt(self, runs: object) -> Adopted:
        return Adopted()

    def submit(self, wanted: Sequence[tuple[Run, TaskKey]]) -> list[TaskRef]:
        for run, key in wanted:
            publish(run, key)
        taken = [TaskRef(run.run_id, key) for run, key in wanted]
        self.done += [Done(task) for task in taken]
        return taken

    def poll(self) -> list[Event]:
        events, self.done = self.done, []
        return events

    def close(self) -> None:
        pass


def spec_of(run: Run, submission: Submission, status: Path) -> element.ElementSpec:
    return element.ElementSpec(
        run=str(run.root),
        tasks=tuple(submission.elements[0]),
        status=str(status),
        threads=1,
        time_min=60,
        signal_delay_s=120,
        preemption_grace_s=30,
    )


@pytest.mark.parametrize("every", [0, 1])
def test_a_job_that_waited_while_the_run_was_continued_with_more_iterations_does_its_own_tasks(
    make: Make, slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """Its record is closed when they are published, and then another job does the others."""
    executor, run, _ = make()
    executor.submit([(run, A)])
    (submission,) = slurm.submitted
    for field, value in (("iterations", 4), ("evaluation", {"every": every})):
        monkeypatch.setitem(SWEEP, field, value)
    executor, run, _ = make()
    executor.adopt([run])
    monkeypatch.setattr(resident_job, "LocalExecutor", Publishing)
    monkeypatch.setattr(element.signal, "signal", lambda *_: None)
    run_resident(spec_of(run, submission, tmp_path / "status.json"))
    done = submission.keys(0)
    assert set(shards.published_keys(run.root)) == set(done)
    end = manifests.read_record(tmp_path / "status.json", JobStatus.from_file).outcome
    assert end is not None
    assert end.kind == OutcomeKind.DONE
    events(executor)
    executor.submit([(run, TaskKey(3, "cold", "a", 0))])
    assert slurm.submitted[1].keys(0) == [key for key in run.graph().tasks() if key not in done]


def test_a_job_makes_publications_again_that_were_damaged_when_it_began(
    make: Make, slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller, or the job when it begins, has set them aside after the submission."""
    executor, run, _ = make()
    evaluation = TaskKey(0, "evaluate", "a", 0)
    for key in (evaluation, A):
        publish(run, key)
    executor.submit([(run, B)])
    (submission,) = slurm.submitted
    manifests.set_aside(run.paths.task_manifest(A))
    manifests.read_manifest(run.paths.task_manifest(evaluation)).file(".txt").write_text("changed")
    monkeypatch.setattr(resident_job, "LocalExecutor", Publishing)
    monkeypatch.setattr(element.signal, "signal", lambda *_: None)
    run_resident(spec_of(run, submission, tmp_path / "status.json"))
    assert not {evaluation, A} & set(submission.keys(0))
    assert set(shards.published_keys(run.root)) == {evaluation, A, *submission.keys(0)}


def test_jobs_of_another_driver_that_have_ended_do_not_refuse_a_start(make: Make, slurm: FakeSlurm) -> None:
    """A controller was killed, and its jobs ended without one."""
    executor, run, _ = make()
    folder = SubmissionFolder(run.paths.slurm)
    submission = new_submission("generate", "cold-0001", [[A], [B]], start_id="x", mem_gb=1)
    submission.job = 7
    folder.write(submission)
    slurm.set(submission, 1, "RUNNING")
    with pytest.raises(InputError, match="job 7 of another driver"):
        executor.adopt([run])
    slurm.set(submission, 1, "FAILED")
    assert executor.adopt([run]).tasks == []
    ((_, closed),) = folder.read_with_state(OPEN, FAILED)
    assert {(outcome.kind, outcome.counted) for outcome in closed.outcomes.values()} == {("abandoned", False)}


def unreadable_config(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ESTALE or EIO: reading raises an OSError."""
    run.paths.config.unlink()
    run.paths.config.mkdir()


def withdrawn_manifest(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller sets the manifest aside after the job has listed it."""
    monkeypatch.setattr(shards, "published_keys", lambda root: [A])


def missing_gpus(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def usable_gpus(cluster: object) -> tuple[str, ...]:
        raise InputError("cluster.gpus: [0] is out of range")

    monkeypatch.setattr(local_executor, "usable_gpus", usable_gpus)


def foreign_config(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.paths.config.chmod(0o666)


@pytest.mark.parametrize(
    ("job", "fault", "kind"),
    [
        (run_resident, unreadable_config, "error"),
        (run_resident, withdrawn_manifest, "error"),
        (run_resident, missing_gpus, "error"),
        (run_resident, foreign_config, "final"),
        (element.run_element, unreadable_config, "error"),
        (element.run_element, foreign_config, "final"),
    ],
)
def test_a_job_that_cannot_begin_is_final_only_if_every_other_job_would_end_in_the_same_way(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    job: Callable[[element.ElementSpec], None],
    fault: Callable[[Run, pytest.MonkeyPatch], None],
    kind: str,
) -> None:
    run, status = run_of(tmp_path, "resident"), tmp_path / "status.json"
    monkeypatch.setattr(element.signal, "signal", lambda *_: None)
    monkeypatch.setattr(element, "FILES_PATIENCE_S", 0.0)
    monkeypatch.setenv("CORE_HPC_JOB_START", str(time.time()))
    fault(run, monkeypatch)
    spec = element.ElementSpec(
        run=str(run.root),
        tasks=(),
        status=str(status),
        threads=1,
        time_min=60,
        signal_delay_s=120,
        preemption_grace_s=30,
    )
    with pytest.raises(element.ElementError):
        job(spec)
    end = manifests.read_record(status, JobStatus.from_file).outcome
    assert end is not None
    assert end.kind == kind


@pytest.mark.parametrize(("staleness", "expected"), [(0, {1, 2}), (1, {1, 2, 3, 4})])
def test_only_iterations_that_can_be_published_next_are_looked_for(
    tmp_path: Path, staleness: int, expected: set[int]
) -> None:
    """Without rescues and with staleness, a model may sample iteration 4 while its peer is updated in iteration 1."""
    run = run_of(tmp_path, "resident", protocol={"staleness": staleness, "rescue_samples": 0})
    graph = replace(run.graph(), iterations=6)
    left = [key for key in graph.tasks() if key.iteration > 0]
    folder = SubmissionFolder(run.paths.slurm)
    item = OpenSubmission(run, folder, new_submission("resident", "resident-0001", [left], start_id="s", mem_gb=1.0))
    assert {task.key.iteration for task, _, _ in item.awaited(0)} == expected
