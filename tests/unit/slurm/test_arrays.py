"""The decisions of the driver `arrays`, with a fake queue.

Tests with the real SLURM are in tests/integration and tests/faults.
"""

import errno
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core_hpc.common.errors import ClaimLostError
from core_hpc.controller.drivers import make_driver
from core_hpc.runs.events import TaskRef
from core_hpc.runs.folder import Run
from core_hpc.runs.job_status import JobEnd, JobStatus, RunningTask, StopReason
from core_hpc.runs.outcome import OutcomeKind, Progress
from core_hpc.schedule.progress import inspect_run
from core_hpc.schedule.scheduler import Scheduler
from core_hpc.slurm import endings, watch
from core_hpc.slurm import executor as slurm_executor
from core_hpc.slurm.commands import JobId, Limits, QueueEntry
from core_hpc.slurm.executor import SlurmExecutor
from core_hpc.slurm.parse import Place, QueueLimit
from core_hpc.slurm.records import CALLS, ENDED, FAILED, OPEN, SCRIPT, Submission, SubmissionFolder, new_submission
from core_hpc.slurm.sbatch import RefusedError
from core_hpc.store import manifests
from core_hpc.store.claims import claim
from core_hpc.store.paths import TaskKey
from tests.support.fake_slurm import FakeSlurm, executor_of, kind_of, publish, run_of


@pytest.fixture
def make(tmp_path: Path, slurm: FakeSlurm) -> Callable[..., tuple[SlurmExecutor, Run, list[str]]]:
    def build(start_id: str = "start001", **changes: Any) -> tuple[SlurmExecutor, Run, list[str]]:
        run, messages = run_of(tmp_path, "arrays", **changes), list[str]()
        return executor_of(run, slurm, start_id=start_id, notify=messages.append), run, messages

    return build


def cold(model: str, part: int = 0) -> TaskKey:
    return TaskKey(1, "cold", model, part)


def wanted(run: Run, *keys: TaskKey) -> list[tuple[Run, TaskKey]]:
    return [(run, key) for key in keys]


def poll_for(executor: SlurmExecutor, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert executor.poll() == []


def poll_until(executor: SlurmExecutor, kind: str, *, polls: int = 400) -> list[Any]:
    for _ in range(polls):
        if found := [e for e in executor.poll() if kind_of(e) == kind]:
            return found
    raise AssertionError(f"no {kind} event")


def test_after_the_claim_was_lost_nothing_is_submitted_cancelled_or_written(make: Any, slurm: FakeSlurm) -> None:
    """Another controller may take the sweep while this one waits for its next look at the queue."""
    executor, run, _ = make()
    executor.submit(wanted(run, cold("a")))
    slurm.entries.clear()  # a look would find the job lost, and write that into its record
    records = {path: path.read_bytes() for path in run.paths.slurm.rglob("*") if path.is_file()}

    def lost() -> str:
        raise ClaimLostError("claim.json: another controller has taken the sweep")

    executor._require_claim = lost
    with pytest.raises(ClaimLostError):
        poll_until(executor, "failed")
    with pytest.raises(ClaimLostError):
        executor.submit(wanted(run, cold("b")))
    assert len(slurm.submitted) == 1
    assert slurm.cancelled == []
    assert {path: path.read_bytes() for path in run.paths.slurm.rglob("*") if path.is_file()} == records


def test_a_record_carries_the_token_of_the_claim(tmp_path: Path, slurm: FakeSlurm) -> None:
    run = run_of(tmp_path, "arrays")
    with claim(tmp_path / "claim.json") as held:
        driver = make_driver([run], slurm, start_id="s", notify=print, require_claim=held.require)
        driver.executor.submit(wanted(run, cold("a")))
    (record,) = SubmissionFolder(run.paths.slurm).read(OPEN)
    assert record.claim == held.content["token"]


@pytest.mark.parametrize("error", [None, OSError(errno.EIO, "Input/output error")])
def test_after_a_request_to_stop_a_pass_submits_nothing_more(
    error: OSError | None, tmp_path: Path, slurm: FakeSlurm
) -> None:
    """With hundreds of runs, a pass of submissions takes minutes."""

    def stop_requested() -> bool:
        if slurm.submitted and error is not None:
            raise error
        return bool(slurm.submitted)

    slurm.known = Limits(max_array_size=2)
    run = run_of(tmp_path, "arrays")
    executor = make_driver([run], slurm, start_id="s", notify=print, stop_requested=stop_requested).executor
    keys = [cold("a", part) for part in range(5)]
    taken = executor.submit(wanted(run, *keys, TaskKey(1, "hint", "team")))
    assert [task.key for task in taken] == keys[:2]
    assert [s.elements for s in slurm.submitted] == [[[str(key)] for key in keys[:2]]]


def test_tasks_that_are_ready_together_are_one_array_and_parts_share_an_element(make: Any, slurm: FakeSlurm) -> None:
    executor, run, _ = make(generate={"parts_per_job": 2})
    keys = [cold(m, p) for p in range(3) for m in ("a", "b")]
    hint = TaskKey(1, "hint", "team")
    taken = executor.submit(wanted(run, *keys, hint))
    assert {t.key for t in taken} == {*keys, hint}
    first, second = slurm.submitted
    assert first.elements == [[str(cold(m, p)) for p in parts] for m in ("a", "b") for parts in ((0, 1), (2,))]
    assert second.elements == [[str(hint)]]
    assert second.job_id(0) == JobId(101)
    assert first.job_id(0) == JobId(100, 0)


def test_an_element_reports_each_of_its_tasks_when_it_is_published(make: Any, slurm: FakeSlurm) -> None:
    executor, run, _ = make(generate={"parts_per_job": 2})
    executor.submit(wanted(run, cold("a", 0), cold("a", 1)))
    (submission,) = slurm.submitted
    slurm.set(submission, 0, "RUNNING")
    assert [kind_of(e) for e in poll_until(executor, "started")] == ["started", "started"]
    publish(run, cold("a", 0))
    assert [e.task.key for e in poll_until(executor, "done")] == [cold("a", 0)]
    publish(run, cold("a", 1))
    assert [e.task.key for e in poll_until(executor, "done")] == [cold("a", 1)]
    folder = SubmissionFolder(run.paths.slurm)
    assert (folder.names(OPEN), len(folder.names(ENDED)), folder.names(FAILED)) == ([], 1, [])


def test_temporary_files_of_an_ended_submission_are_removed_after_a_while(
    make: Any, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its jobs may write their last status after their last publication."""
    executor, run, _ = make()
    for key in (cold("a"), cold("b")):
        executor.submit(wanted(run, key))
    ended, waiting = slurm.submitted
    folder = SubmissionFolder(run.paths.slurm)
    for submission in (ended, waiting):
        for name in (CALLS, SCRIPT, "element-0000.json", "100_0_log.out"):
            (folder.folder(submission) / name).write_text("{}")
    publish(run, cold("a"))
    poll_until(executor, "done")
    poll_for(executor, 0.02)
    assert len(list(folder.folder(ended).iterdir())) == 4
    monkeypatch.setattr(endings, "TIDY_AFTER_S", 0.0)
    poll_for(executor, 0.02)
    assert sorted(path.name for path in folder.folder(ended).iterdir()) == ["100_0_log.out", SCRIPT]
    assert len(list(folder.folder(waiting).iterdir())) == 4


def test_more_running_elements_than_one_look_reads_report_their_progress_in_turn(make: Any, slurm: FakeSlurm) -> None:
    """In a slow pace, all of them are due at every look."""
    executor, run, _ = make()
    keys = [cold("a", part) for part in range(watch.MAX_STATUS_READS + 10)]
    executor.submit(wanted(run, *keys))
    (submission,) = slurm.submitted
    for index, key in enumerate(keys):
        slurm.set(submission, index, "RUNNING")
        status = JobStatus(progress=(str(key), RunningTask(1.0, Progress(1, 2, 3), 4.0)))
        manifests.write_json(SubmissionFolder(run.paths.slurm).status_file(submission, index), status.to_json())
    progressed = Counter(e.task.key for _ in range(9) for e in executor.poll() if kind_of(e) == "progressed")
    assert set(progressed) == set(keys)
    assert max(progressed.values()) - min(progressed.values()) <= 1


def test_a_clock_that_is_set_back_delays_no_look(make: Any, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    executor, run, _ = make()
    executor.submit(wanted(run, cold("a")))
    poll_for(executor, 0.01)
    monkeypatch.setattr(time, "time", lambda: 1_000.0)
    publish(run, cold("a"))
    assert [e.task.key for e in poll_until(executor, "done")] == [cold("a")]


def test_arrays_respect_the_limits_of_site_and_user(make: Any, slurm: FakeSlurm) -> None:
    executor, run, messages = make()
    slurm.known = Limits(max_array_size=3, queue=(QueueLimit(7),))
    slurm.entries = {JobId(1, i): QueueEntry(JobId(1, i), "foreign", "RUNNING", "None", "n1", 0) for i in range(2)}
    executor.poll()
    keys = [cold("a", p) for p in range(9)]
    assert [t.key for t in executor.submit(wanted(run, *keys))] == keys[:5]
    assert [len(s.elements) for s in slurm.submitted] == [3, 2]
    assert any("room for 5 more" in message for message in messages)
    assert executor.submit(wanted(run, *keys[5:])) == []
    slurm.entries.clear()
    poll_until(executor, "failed")  # the queue does not know the five any more: they are lost
    assert len(executor.submit(wanted(run, *keys[5:]))) == 4


def test_jobs_under_another_qos_take_no_room_and_a_full_queue_holds_only_its_own_tasks(
    make: Any, slurm: FakeSlurm
) -> None:
    executor, run, messages = make(generate={"qos": "gpu"}, score={"qos": "cpu"})
    limits = {"gpu": Limits(1000, (QueueLimit(3, Place(qos="gpu")),)), "cpu": Limits(1000)}
    slurm.limits = lambda *, partition, qos, account: limits[qos]  # type: ignore[method-assign]
    for qos, job, number in (("cpu", 1, 100), ("gpu", 2, 1)):
        place = Place("proj", "main", qos)
        for id in (JobId(job, index) for index in range(number)):
            slurm.entries[id] = QueueEntry(id, "other", "RUNNING", "None", "n1", 0, place)
    executor.adopt([run])
    colds, hint = [cold("a", part) for part in range(5)], TaskKey(1, "hint", "team")
    assert [t.key for t in executor.submit(wanted(run, *colds, hint))] == [*colds[:2], hint]
    assert executor.submit(wanted(run, *colds[2:])) == [], "what was submitted since the last look counts"
    assert any("room for 2 more" in message for message in messages)


def test_after_a_refusal_because_of_a_limit_the_jobs_of_other_groups_do_not_wait(make: Any, slurm: FakeSlurm) -> None:
    """The limit of a group of users counts jobs that this user does not see."""
    executor, run, _ = make()
    slurm.entries[JobId(1)] = QueueEntry(JobId(1), "other", "RUNNING", "None", "n1", 0)
    executor.adopt([run])
    refusal = "sbatch: error: QOSGrpSubmitJobsLimit Batch job submission failed: Job violates accounting/QOS policy"
    slurm.refusals = [refusal]
    hint = TaskKey(1, "hint", "team")
    assert [t.key for t in executor.submit(wanted(run, cold("a"), hint))] == [hint]
    assert executor.submit(wanted(run, cold("a"))) == [], "it waits some time before the next attempt"


POLICY = "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time)"


@pytest.mark.parametrize(
    "limit", ["QOSGrpSubmitJobsLimit ", "AssocGrpSubmitJobsLimit ", "MaxSubmitJobsPerAccount ", ""]
)
def test_a_limit_that_colleagues_have_filled_never_stops_a_run(
    limit: str, make: Any, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two phases this user may have no job in the queue. An older SLURM does not name the limit."""
    monkeypatch.setattr(slurm_executor, "REFUSED_WAIT_S", 0.0)
    executor, run, messages = make()
    slurm.refusals = [f"sbatch: error: {limit}{POLICY}"] * (3 * slurm_executor.MAX_ODD_REFUSALS)
    while slurm.refusals:
        assert executor.submit(wanted(run, cold("a"))) == []
        assert executor.poll() == []
    assert "next attempt" in messages[-1]
    assert executor.submit(wanted(run, cold("a"))) == [TaskRef(run.run_id, cold("a"))]


@pytest.mark.parametrize("limit", ["QOSGrpSubmitJobsLimit", "QOSMaxSubmitJobPerUserLimit"])
def test_an_array_for_which_a_limit_has_no_room_is_submitted_in_smaller_ones(
    limit: str, make: Any, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only refusals of sbatch show how much room others leave, or a limit that the accounting does not show."""
    monkeypatch.setattr(slurm_executor, "REFUSED_WAIT_S", 0.0)
    executor, run, _ = make()
    keys, rooms, asked = [cold("a", part) for part in range(100)], [2, 3, 200], list[int]()
    accept = slurm.submit

    def submit(folder: SubmissionFolder, new: Submission, *more: Any) -> Submission:
        asked.append(len(new.elements))
        if len(new.elements) > rooms[0]:
            raise RefusedError(f"sbatch: error: {limit} {POLICY}")
        rooms[0] -= len(new.elements)
        return accept(folder, new, *more)

    monkeypatch.setattr(slurm_executor, "submit_elements", submit)
    left = list(keys)
    for _ in range(30):
        taken = {task.key for task in executor.submit(wanted(run, *left))}
        left = [key for key in left if key not in taken]
        if not rooms[0]:  # others' jobs have ended
            del rooms[0]
    assert asked == [100, 50, 25, 12, 6, 3, 1, 2, 1, 2, 1, 2, 4, 2, 4, 8, 16, 32, 33]
    assert executor.poll() == [], "no run stops"
    assert [key for new in slurm.submitted for element in new.elements for key in element] == list(map(str, keys))


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("limit", ["QOSMaxSubmitJobPerUserLimit", "AssocMaxSubmitJobLimit"])
def test_a_limit_of_this_user_that_is_reached_without_a_job_never_passes(
    limit: str, others: bool, make: Any, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is 0. With a job in the queue there may be room when that has ended."""
    monkeypatch.setattr(slurm_executor, "REFUSED_WAIT_S", 0.0)
    executor, run, _ = make()
    if others:
        slurm.entries[JobId(1)] = QueueEntry(JobId(1), "other", "RUNNING", "None", "n1", 0)
    executor.adopt([run])
    slurm.refusals = [f"sbatch: error: {limit} {POLICY}"] * slurm_executor.MAX_ODD_REFUSALS
    while slurm.refusals:
        assert executor.submit(wanted(run, cold("a"))) == []
    kinds = [event.outcome.kind for event in executor.poll()]
    assert kinds == ([] if others else ["final"])


def test_a_later_controller_takes_jobs_over_and_counts_failures_of_the_same_start(make: Any, slurm: FakeSlurm) -> None:
    executor, run, _ = make()
    executor.submit(wanted(run, cold("a"), cold("b")))
    (submission,) = slurm.submitted
    slurm.set(submission, 0, "RUNNING")
    slurm.set(submission, 1, "OUT_OF_MEMORY")
    assert [e.task.key for e in poll_until(executor, "failed")] == [cold("b")]
    later, run, messages = make()
    adopted = later.adopt([run])
    assert [t.key for t in adopted.tasks] == [cold("a")]
    assert [failed.task for failed in adopted.failures] == [TaskRef(run.run_id, cold("b"))]
    assert any("taking them over" in message for message in messages)
    publish(run, cold("a"))
    assert [e.task.key for e in poll_until(later, "done")] == [cold("a")]
    by_user, run, _ = make(start_id="start002")
    adopted = by_user.adopt([run])
    assert (adopted.tasks, adopted.failures) == ([], [])
    assert len(slurm.submitted) == 1


@pytest.mark.parametrize("end", [None, {"kind": "final", "message": "the loss is NaN"}])
def test_a_run_that_was_stopped_stays_stopped_until_the_next_start_by_the_user(
    make: Any, slurm: FakeSlurm, end: dict[str, Any] | None
) -> None:
    """A successor of the controller has the same `start_id`, and must not submit the task again."""
    look = slurm.queue

    def queue() -> list[QueueEntry]:
        """Every job that waits fails, with this end in its status file."""
        for submission in slurm.submitted:
            for index in range(len(submission.elements)):
                if slurm.entries[submission.job_id(index)].active:
                    if end is not None:
                        status = {"node": "n1", "outcome": {**end, "traceback": "Traceback"}}
                        manifests.write_json(folder.status_file(submission, index), status)
                    slurm.set(submission, index, "FAILED")
        return look()

    slurm.queue = queue  # type: ignore[method-assign]
    stopped, submitted = [], []
    for start_id in ("start001", "start001", "start002"):
        executor, run, _ = make(start_id)
        folder = SubmissionFolder(run.paths.slurm)
        progress = inspect_run(run)[0]
        assert Scheduler([progress], executor, [], max_attempts=3).run()
        stopped.append(str(progress.stopped).replace("Traceback\n", ""))  # records have no tracebacks
        submitted.append(len(slurm.submitted))
    assert "failed" in stopped[0]
    assert stopped[1] == stopped[0]
    assert submitted[1] == submitted[0] < submitted[2]


def test_without_an_answer_of_slurm_nothing_is_concluded_and_published_files_are_seen(
    make: Any, slurm: FakeSlurm
) -> None:
    executor, run, messages = make()
    executor.submit(wanted(run, cold("a"), cold("b")))
    slurm.entries.clear()
    slurm.available = False
    publish(run, cold("b"))
    assert [e.task.key for e in poll_until(executor, "done")] == [cold("b")]
    for _ in range(200):
        assert executor.poll() == []
    assert sum("does not answer" in message for message in messages) == 1
    slurm.available = True
    (lost,) = poll_until(executor, "failed")
    assert (lost.outcome.kind, lost.task.key) == ("lost", cold("a"))
    assert "SLURM answers again" in messages


def test_out_of_memory_gets_one_attempt_with_more_memory(make: Any, slurm: FakeSlurm) -> None:
    executor, run, _ = make(max_mem_gb=25)
    for mem_gb, counted in ((10, False), (25, True)):
        executor.submit(wanted(run, cold("a")))
        submission = slurm.submitted[-1]
        assert submission.mem_gb == mem_gb
        slurm.set(submission, 0, "OUT_OF_MEMORY")
        (failed,) = poll_until(executor, "failed")
        assert failed.outcome.counted is counted


def test_later_iterations_and_a_successor_know_the_memory_that_a_phase_of_a_model_needs(
    make: Any, slurm: FakeSlurm
) -> None:
    executor, run, messages = make(max_mem_gb=25)
    for part in range(2):
        executor.submit(wanted(run, cold("a", part)))
        slurm.set(slurm.submitted[-1], 0, "OUT_OF_MEMORY")
        poll_until(executor, "failed")
    assert [s.mem_gb for s in slurm.submitted] == [10, 25]
    (notice,) = (message for message in messages if "ran out" in message)
    assert (
        notice == "cold of a ran out of 10 GB; its jobs ask for 25 GB from now on. Raise mem_gb in the cluster profile"
    )
    successor, _, _ = make(max_mem_gb=25)
    successor.adopt([run])
    for later in (executor, successor):
        later.submit(wanted(run, TaskKey(2, "cold", "a"), TaskKey(2, "cold", "b")))
        assert [s.mem_gb for s in slurm.submitted[-2:]] == [25, 10]


def test_a_node_that_fails_twice_in_a_row_is_excluded_but_most_nodes_remain(make: Any, slurm: FakeSlurm) -> None:
    executor, run, messages = make()
    for part, node in enumerate(("n1", "n1", "n2", "n2", "n3", "n3")):
        executor.submit(wanted(run, cold("a", part)))
        slurm.set(slurm.submitted[-1], 0, "NODE_FAIL", node=node)
        (failed,) = poll_until(executor, "failed")
        assert failed.outcome.counted is False
    executor.submit(wanted(run, cold("a")))
    assert [s.excluded for s in slurm.submitted] == [[], [], ["n1"], ["n1"], ["n1", "n2"], ["n1", "n2"], ["n1", "n2"]]
    assert sum("excluded from now on" in message for message in messages) == 2


def test_a_task_that_loses_its_node_again_and_again_stops_its_run(make: Any, slurm: FakeSlurm) -> None:
    executor, run, _ = make()
    queue = slurm.queue

    def lose_nodes() -> list[QueueEntry]:
        for id in list(slurm.entries):
            slurm.set(slurm.submitted[id.job - 100], id.index or 0, "NODE_FAIL", node=f"n{id.job}")
        return queue()

    slurm.queue = lose_nodes  # type: ignore[method-assign]
    progress = inspect_run(run)[0]
    assert Scheduler([progress], executor, [], max_attempts=2).run()
    assert "SLURM lost the node; 7 times in a row at this task, which may be the cause" in str(progress.stopped)


def fail_with_error(executor: SlurmExecutor, run: Run, slurm: FakeSlurm, key: TaskKey, node: str, message: str) -> None:
    executor.submit(wanted(run, key))
    submission = slurm.submitted[-1]
    status = JobStatus(node=node, outcome=JobEnd(OutcomeKind.ERROR, message))
    manifests.write_json(SubmissionFolder(run.paths.slurm).status_file(submission, 0), status.to_json())
    slurm.set(submission, 0, "FAILED", node=node)
    poll_until(executor, "failed")


def test_a_task_that_fails_on_several_nodes_excludes_none_of_them(make: Any, slurm: FakeSlurm) -> None:
    executor, run, messages = make()
    for part in range(2):
        fail_with_error(executor, run, slurm, cold("a", part), "n1", "ValueError: no")
    assert executor._remedies.excluded == ["n1"], "so far only this node has failed"
    for part in range(2):
        fail_with_error(executor, run, slurm, cold("a", part), "n2", "ValueError: no")
    assert executor._remedies.excluded == []
    assert "node n1 is used again, because cold/0001/a/000 failed on n2 too" in messages
    for node in ("n2", "n3", "n3"):
        fail_with_error(executor, run, slurm, cold("a"), node, "ValueError: no")
    assert executor._remedies.excluded == []
    for part in (2, 3):
        fail_with_error(executor, run, slurm, cold("a", part), "n3", "RuntimeError: CUDA error")
    assert executor._remedies.excluded == ["n3"]
    executor.submit(wanted(run, cold("a", 4)))
    successor, _, _ = make()
    successor.adopt([run])
    assert successor._remedies.excluded == ["n3"]


def test_errors_of_a_shared_file_system_exclude_no_node(make: Any, slurm: FakeSlurm) -> None:
    executor, run, _ = make()
    for part in range(4):
        fail_with_error(executor, run, slurm, cold("a", part), "n1", "OSError: [Errno 116] Stale file handle: '/x'")
    assert executor._remedies.excluded == []


def test_the_nodes_of_a_job_of_several_nodes_are_not_excluded_as_one(make: Any, slurm: FakeSlurm) -> None:
    executor, run, messages = make()
    for part in range(3):
        executor.submit(wanted(run, cold("a", part)))
        slurm.set(slurm.submitted[-1], 0, "NODE_FAIL", node="n[0-1]")
        poll_until(executor, "failed")
    assert executor._remedies.excluded == []
    assert not any("excluded" in message for message in messages)


def test_what_a_rank_reported_before_slurm_started_the_job_again_is_not_its_end(make: Any, slurm: FakeSlurm) -> None:
    executor, run, _ = make()
    executor.submit(wanted(run, TaskKey(1, "update", "a")))
    (submission,) = slurm.submitted
    path = SubmissionFolder(run.paths.slurm).status_file(submission, 0)
    lost = JobStatus(node="n2", outcome=JobEnd(OutcomeKind.ERROR, "RuntimeError: Connection closed by peer"))
    manifests.write_json(path.with_suffix(".rank1.json"), lost.to_json())
    stopped = JobEnd(OutcomeKind.STOPPED, reason=StopReason.TIME_LIMIT, gained=True)
    manifests.write_json(path, JobStatus(node="n1", restarts=1, outcome=stopped).to_json())
    slurm.set(submission, 0, "COMPLETED")
    (failed,) = poll_until(executor, "failed")
    assert (failed.outcome.kind, failed.outcome.counted) == (OutcomeKind.TIME_LIMIT, False)


def test_a_status_file_that_a_network_file_system_hides_for_a_while_explains_the_end(
    make: Any, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was looked for before it existed appears when its folder is listed, or after a minute."""
    executor, run, _ = make()
    executor.submit(wanted(run, cold("a"), cold("b")))
    (submission,) = slurm.submitted
    path = SubmissionFolder(run.paths.slurm).status_file(submission, 0)
    read_bytes, list_names, listed = Path.read_bytes, manifests.list_names, set[Path]()

    def read(at: Path) -> bytes:
        if at == path and at.parent not in listed:
            raise FileNotFoundError(at)
        return read_bytes(at)

    def names(folder: Path) -> set[str]:
        listed.add(folder)
        return list_names(folder)

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr(manifests, "list_names", names)
    for index in (0, 1):
        slurm.set(submission, index, "FAILED")
    monkeypatch.setattr(watch, "UNSEEN_S", 0.3)
    status = JobStatus(node="n1", outcome=JobEnd(OutcomeKind.FINAL, "no such model"))
    manifests.write_json(path, status.to_json())
    began = time.monotonic()
    (final,) = poll_until(executor, "failed")
    assert (final.outcome.kind, final.outcome.message) == (OutcomeKind.FINAL, "no such model")
    (died,) = poll_until(executor, "failed")
    assert (died.task.key, died.outcome.kind) == (cold("b"), OutcomeKind.DIED)
    assert time.monotonic() - began > 0.3


def test_after_a_success_the_failures_of_a_node_count_from_zero(make: Any, slurm: FakeSlurm) -> None:
    executor, run, _ = make()
    for part, fails in enumerate((True, False, True, True)):
        executor.submit(wanted(run, cold("a", part)))
        submission = slurm.submitted[-1]
        if fails:
            slurm.set(submission, 0, "NODE_FAIL", node="n1")
            poll_until(executor, "failed")
        else:
            manifests.write_json(SubmissionFolder(run.paths.slurm).status_file(submission, 0), {"node": "n1"})
            publish(run, cold("a", part))
            poll_until(executor, "done")
        assert submission.excluded == []
    executor.submit(wanted(run, cold("b")))
    assert slurm.submitted[-1].excluded == ["n1"]


def test_after_a_temporary_refusal_there_is_another_attempt_and_any_other_refusal_stops_the_run(
    make: Any, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_executor, "REFUSED_WAIT_S", 0.05)
    executor, run, messages = make()
    slurm.refusals = [
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    ]
    assert executor.submit(wanted(run, cold("a"))) == []
    (failed,) = executor.poll()
    assert failed.outcome.kind == "final"
    assert "Invalid account" in failed.outcome.message
    slurm.entries[JobId(1)] = QueueEntry(JobId(1), "other", "RUNNING", "None", "n1", 0)
    while executor.poll() or not executor._watch.active:
        pass
    slurm.refusals = [
        "sbatch: error: AssocMaxSubmitJobLimit Batch job submission failed: Job violates accounting/QOS policy"
    ]
    assert executor.submit(wanted(run, cold("a"))) == []
    assert executor.submit(wanted(run, cold("a"))) == []
    assert "next attempt" in messages[-1]
    for _ in range(200):
        if taken := executor.submit(wanted(run, cold("a"))):
            break
        executor.poll()
    assert taken == [TaskRef(run.run_id, cold("a"))]


@pytest.mark.parametrize("known", ["complete", "incomplete", "unknown"])
def test_a_submission_whose_controller_died_is_found_by_its_name(
    known: str, make: Any, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "UNSURE_WAIT_S", 0.02)
    executor, run, _ = make()
    folder = SubmissionFolder(run.paths.slurm)
    submission = new_submission("generate", "cold-0001", [[cold("a")]], start_id="start001", mem_gb=10)
    folder.write(submission)
    manifests.make_folder(folder.folder(submission))
    if known != "unknown":
        slurm.entries[JobId(77)] = QueueEntry(JobId(77), submission.name, "RUNNING", "None", "n1", 0)
    if known == "complete":
        (folder.folder(submission) / CALLS).write_text("")
    assert [t.key for t in executor.adopt([run]).tasks] == [cold("a")]
    if known == "complete":
        assert [e.task.key for e in poll_until(executor, "started")] == [cold("a")]
        assert folder.read(OPEN)[0].job == 77
        return
    (failed,) = poll_until(executor, "failed")
    assert (failed.outcome.kind, failed.outcome.counted) == ("interrupted", False)
    assert slurm.cancelled == ([77] if known == "incomplete" else [])
    assert folder.names(OPEN, FAILED) == []


@pytest.mark.parametrize("taken", [True, False])
def test_a_submission_whose_files_fail_is_found_by_its_name(
    taken: bool, make: Any, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether sbatch was called before the error is not known."""
    monkeypatch.setattr(watch, "UNSURE_WAIT_S", 0.02)
    monkeypatch.setattr(slurm_executor, "REFUSED_WAIT_S", 0.0)

    def submit(folder: SubmissionFolder, submission: Submission, *others: Any) -> Submission:
        if taken:
            made = slurm.submit(folder, submission, *others)
            (folder.folder(made) / CALLS).touch()
            folder.write(submission)  # the id of the job could not be written
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(slurm_executor, "submit_elements", submit)
    executor, run, messages = make()
    assert [t.key for t in executor.submit(wanted(run, cold("a")))] == [cold("a")]
    assert "Stale file handle" in messages[-1]
    if taken:
        slurm.set(slurm.submitted[0], 0, "RUNNING")
        poll_until(executor, "started")
        assert SubmissionFolder(run.paths.slurm).read(OPEN)[0].job == 100
    else:
        (failed,) = poll_until(executor, "failed")
        assert (failed.outcome.kind, failed.outcome.counted) == ("interrupted", False)


@pytest.mark.parametrize("failing", ["listing", "later", "record"])
def test_an_error_of_the_file_system_loses_no_event(failing: str, make: Any, slurm: FakeSlurm) -> None:
    executor, run, _ = make()
    executor.submit(wanted(run, cold("a"), TaskKey(0, "evaluate", "a")))
    one, other = slurm.submitted
    publish(run, cold("a"))
    slurm.set(other, 0, "FAILED")
    faults = pytest.MonkeyPatch()

    def fail(*arguments: Any) -> Any:
        faults.undo()
        raise OSError(errno.ESTALE, "Stale file handle")

    if failing == "listing":
        faults.setattr(manifests, "list_names", fail)
    elif failing == "later":
        faults.setattr(executor._watch, "_explained", fail)
    else:
        close = SubmissionFolder.close
        faults.setattr(SubmissionFolder, "close", lambda s, x: close(s, x) if x.name == one.name else fail())
    found, errors = list[Any](), 0
    for _ in range(400):
        try:
            found += executor.poll()
        except OSError:
            errors += 1
    assert errors == 1
    assert [(kind_of(e), e.task.key.phase) for e in found] == [("done", "cold"), ("failed", "evaluate")]
    assert SubmissionFolder(run.paths.slurm).names(OPEN) == []
    assert executor._watch.open == []


def test_a_job_whose_dependency_is_never_satisfied_is_cancelled_and_counts(make: Any, slurm: FakeSlurm) -> None:
    executor, run, _ = make()
    executor.submit(wanted(run, cold("a")))
    slurm.set(slurm.submitted[0], 0, "PENDING", reason="DependencyNeverSatisfied", node="")
    (failed,) = poll_until(executor, "failed")
    assert failed.outcome.counted
    assert "DependencyNeverSatisfied" in failed.outcome.message
    assert slurm.cancelled == [JobId(100)]


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_job_with_the_id_and_another_name_is_left_alone(make: Any, slurm: FakeSlurm, state: str) -> None:
    """SLURM has given the id again, or the user has renamed the job: it is neither cancelled nor submitted again."""
    executor, run, messages = make(lost_after_s=0.02)
    executor.submit(wanted(run, cold("a"), cold("b")))
    for index in (0, 1):
        slurm.set(slurm.submitted[0], index, state, reason="DependencyNeverSatisfied")
        job = JobId(100, index)
        slurm.entries[job] = replace(slurm.entries[job], name="my_simulation")
    for _ in range(20):
        assert executor.poll() == []
        time.sleep(0.005)
    (message,) = (m for m in messages if "'my_simulation'" in m)
    assert "job 100 " in message
    publish(run, cold("b"))
    assert [e.task.key for e in poll_until(executor, "done")] == [cold("b")], "it was renamed and does its work"
    executor.abandon(run, "it failed")
    assert slurm.cancelled == []
    later, run, _ = make(start_id="start002", lost_after_s=0.02)
    assert later.adopt([run]).tasks == []


def test_the_end_of_a_job_with_another_name_explains_nothing(make: Any, slurm: FakeSlurm) -> None:
    executor, run, _ = make(lost_after_s=0.02)
    executor.submit(wanted(run, cold("a")))
    slurm.entries[JobId(100)] = replace(slurm.entries[JobId(100)], name="my_simulation", state="TIMEOUT")
    (failed,) = poll_until(executor, "failed")
    assert failed.outcome.kind == "lost"


def test_waiting_jobs_of_a_stopped_run_are_cancelled_when_slurm_answers_again(make: Any, slurm: FakeSlurm) -> None:
    executor, run, _ = make()
    executor.submit(wanted(run, cold("a"), cold("b")))
    poll_for(executor, 0.02)
    slurm.available = False
    executor.abandon(run, "it failed")
    poll_for(executor, 0.02)
    assert slurm.cancelled == []
    slurm.set(slurm.submitted[0], 0, "RUNNING")
    slurm.available = True
    poll_for(executor, 0.05)
    assert slurm.cancelled == [JobId(100, 1)], "an element that runs may end"
    (record,) = SubmissionFolder(run.paths.slurm).read(OPEN)
    assert {index: outcome.kind for index, outcome in record.outcomes.items()} == {1: OutcomeKind.ABANDONED}


def test_waiting_jobs_of_a_run_that_is_stopped_at_a_handover_are_cancelled(make: Any, slurm: FakeSlurm) -> None:
    """The first controller was killed before it could cancel them."""
    executor, run, _ = make()
    executor.submit(wanted(run, cold("a"), cold("b")))
    slurm.set(slurm.submitted[0], 0, "RUNNING")
    executor.submit(wanted(run, TaskKey(1, "hint", "team")))
    status = JobStatus(node="n1", outcome=JobEnd(OutcomeKind.FINAL, "no"))
    manifests.write_json(SubmissionFolder(run.paths.slurm).status_file(slurm.submitted[1], 0), status.to_json())
    slurm.set(slurm.submitted[1], 0, "FAILED")
    poll_until(executor, "failed")
    successor, _, _ = make()
    progress = inspect_run(run)[0]
    assert Scheduler([progress], successor, [], max_attempts=3).run()
    assert progress.stopped is not None
    assert slurm.cancelled == [JobId(100, 1)]


def test_a_job_above_a_limit_per_job_is_cancelled_and_its_run_stops(make: Any, slurm: FakeSlurm) -> None:
    """Without DenyOnLimit, SLURM takes such a job, which then waits for ever."""
    executor, run, _ = make(time_min=1440)
    executor.submit(wanted(run, cold("a")))
    slurm.set(slurm.submitted[0], 0, "PENDING", reason="QOSMaxWallDurationPerJobLimit", node="")
    (failed,) = poll_until(executor, "failed")
    assert failed.outcome.kind == "final"
    assert "lower time_min in the cluster profile (QOSMaxWallDurationPerJobLimit)" in failed.outcome.message
    assert slurm.cancelled == [JobId(100)]


def test_a_refusal_because_of_a_limit_per_job_stops_the_run(make: Any, slurm: FakeSlurm) -> None:
    """With DenyOnLimit, sbatch refuses it."""
    executor, run, _ = make()
    slurm.refusals = [
        "sbatch: error: QOSMaxGRESPerJob Batch job submission failed: Job violates accounting/QOS policy "
        "(job submit limit, user's size and/or time limits)"
    ]
    assert executor.submit(wanted(run, cold("a"))) == []
    (failed,) = executor.poll()
    assert failed.outcome.kind == "final"
    assert failed.outcome.message.endswith("; lower gpus_per_node or gres in the cluster profile")


def test_a_stopped_run_cancels_waiting_elements_and_keeps_running_ones(make: Any, slurm: FakeSlurm) -> None:
    executor, run, _ = make()
    executor.submit(wanted(run, cold("a"), cold("b")))
    slurm.set(slurm.submitted[0], 0, "RUNNING")
    poll_until(executor, "started")
    assert Counter(t.key for t in executor.abandon(run, "it failed")) == Counter([cold("a"), cold("b")])
    assert slurm.cancelled == [JobId(100, 1)]
    later, run, _ = make(start_id="start002")
    assert [t.key for t in later.adopt([run]).tasks] == [cold("a")]
