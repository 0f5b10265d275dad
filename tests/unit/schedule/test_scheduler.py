"""The scheduler with listeners and tasks that fail, and with a claim that is lost. No executor has processes."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from core_hpc.common.errors import ClaimLostError, StoreError
from core_hpc.runs.events import Done, Event, Failed, Progressed, Released, Started, Stopped, TaskRef, Waiting
from core_hpc.runs.folder import Run
from core_hpc.runs.outcome import Outcome, OutcomeKind, Progress
from core_hpc.schedule import scheduler
from core_hpc.schedule.base import Adopted
from core_hpc.schedule.progress import RunProgress, inspect_run
from core_hpc.schedule.scheduler import Scheduler
from core_hpc.store import manifests
from core_hpc.store.manifests import DamagedError
from core_hpc.store.paths import TaskKey
from tests.support.executors import Instant
from tests.support.fake_slurm import publish, run_of

DAMAGED = TaskKey(1, "score", "team")


class Reader:
    """A listener that runs a function for every event, and at the end."""

    def __init__(self, on_event: Callable[[RunProgress], None], at_end: Callable[[RunProgress], None]) -> None:
        self._on_event, self._at_end = on_event, at_end
        self.seen: list[Event] = []

    def on_event(self, progress: RunProgress, event: Event) -> None:
        self.seen.append(event)
        self._on_event(progress)

    def on_finished(self, progress: RunProgress) -> None:
        self._at_end(progress)


def nothing(progress: RunProgress) -> None:
    pass


def damage(run: Run) -> None:
    """Alter the shard of a task."""
    manifests.read_manifest(run.paths.task_manifest(DAMAGED)).file(".txt").write_text("altered")


def read_scores(progress: RunProgress) -> None:
    path = progress.run.paths.task_manifest(DAMAGED)
    if DAMAGED in progress.published:
        manifests.check_files(manifests.read_manifest(path), checksum=True)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return run_of(tmp_path, "arrays")


@pytest.mark.parametrize("at_end", [False, True])
def test_a_damaged_shard_that_a_listener_finds_is_set_aside_and_made_again(run: Run, at_end: bool) -> None:
    progress, executor, messages = inspect_run(run)[0], Instant(publish), list[str]()
    damaged: list[int] = []

    def damage_once(progress: RunProgress) -> None:
        if DAMAGED in progress.published and not damaged:
            damaged.append(1)
            damage(progress.run)

    def read_late(progress: RunProgress) -> None:
        if not at_end or progress.finished:
            read_scores(progress)

    def read_at_end(progress: RunProgress) -> None:
        damage_once(progress)
        read_scores(progress)

    listeners = [Reader(nothing if at_end else damage_once, nothing), Reader(read_late, read_at_end)]
    assert Scheduler([progress], executor, listeners, max_attempts=3, notify=messages.append).run()
    assert progress.finished
    assert progress.stopped is None
    assert executor.done.count(DAMAGED) == 2
    assert len(executor.done) == len(progress.graph.tasks()) + 1
    (message,) = messages
    assert "Reader of" in message
    assert "7 bytes, but its manifest records 0" in message
    folder = run.paths.task_folder(DAMAGED)
    assert len(list(folder.glob("*.set-aside-*"))) == 1
    manifests.check_files(manifests.read_manifest(run.paths.task_manifest(DAMAGED)), checksum=True)


def test_damage_that_returns_stops_the_run(run: Run) -> None:
    """As on a disk that damages what is written."""
    progress, executor, messages = inspect_run(run)[0], Instant(publish), list[str]()

    def damage_and_read(progress: RunProgress) -> None:
        damage(progress.run)
        read_scores(progress)

    reader = Reader(nothing, damage_and_read)
    assert Scheduler([progress], executor, [reader], max_attempts=3, notify=messages.append).run()
    assert executor.done.count(DAMAGED) == 3
    assert progress.stopped is not None
    assert f"{DAMAGED} failed 3 times" in progress.stopped


def test_a_listener_that_fails_does_not_end_a_sweep_and_is_named_once(run: Run) -> None:
    progress, executor, messages = inspect_run(run)[0], Instant(publish), list[str]()

    def fail(progress: RunProgress) -> None:
        raise KeyError("num_tokens")

    reader, witness = Reader(fail, fail), Reader(nothing, nothing)
    assert Scheduler([progress], executor, [reader, witness], max_attempts=1, notify=messages.append).run()
    assert progress.finished
    assert len(executor.done) == len(witness.seen) == len(progress.graph.tasks())
    assert messages == [f"Reader of {run.run_id} failed: KeyError: 'num_tokens'; the sweep continues without it"]


def test_a_shard_that_was_replaced_meanwhile_is_not_set_aside(run: Run) -> None:
    progress, executor, messages = inspect_run(run)[0], Instant(publish), list[str]()
    path = run.paths.task_manifest(DAMAGED)

    def report_old_damage(progress: RunProgress) -> None:
        raise DamagedError(path, f"{path}: was damaged, and is not any more")

    reader = Reader(nothing, nothing)
    reader.on_finished = report_old_damage  # type: ignore[method-assign]
    assert Scheduler([progress], executor, [reader], max_attempts=3, notify=messages.append).run()
    assert executor.done.count(DAMAGED) == 1
    assert path.exists()


def test_a_publication_with_a_lost_row_is_made_again_at_once(run: Run) -> None:
    """The row was lost before the manifest was written, so only the configuration shows that it is missing."""
    progress, messages = inspect_run(run)[0], list[str]()
    cold, short = TaskKey(1, "cold", "a"), list[TaskKey]()

    def publish_short_once(run: Run, key: TaskKey) -> None:
        publish(run, key)
        if key == cold and not short:
            short.append(key)
            path = run.paths.task_manifest(key)
            body = manifests.read_json(path)
            body["files"][0]["rows"] -= 1
            manifests.write_json(path, body)

    executor = Instant(publish_short_once)
    assert Scheduler([progress], executor, [], max_attempts=3, notify=messages.append).run()
    assert progress.finished
    assert progress.stopped is None
    assert executor.done.count(cold) == 2
    assert len(list(run.paths.task_folder(cold).glob("*.set-aside-*"))) == 1


def test_nothing_is_submitted_or_changed_after_the_claim_is_lost(run: Run) -> None:
    progress, executor = inspect_run(run)[0], Instant(publish)
    seen: list[int] = []

    def require_claim() -> None:
        if len(executor.done) > 3:
            seen.append(len(executor.done))
            raise ClaimLostError("claim.json: another controller has taken the sweep")

    reader = Reader(nothing, nothing)
    scheduler = Scheduler([progress], executor, [reader], max_attempts=1, require_claim=require_claim)
    with pytest.raises(ClaimLostError):
        scheduler.run()
    assert seen == [len(executor.done)]
    assert len(executor.done) < len(progress.graph.tasks())
    assert len(reader.seen) < len(executor.done)  # the events after the loss were not handled


# --- errors of the file system -------------------------------------------------------------------


class Shaky(Instant):
    """An executor whose polls fail with the given errors, each once; None: the poll succeeds."""

    def __init__(self, *errors: OSError | None) -> None:
        super().__init__(publish)
        self.errors = list(errors)

    def poll(self) -> list[Event]:
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        return super().poll()


STALE = OSError(errno.ESTALE, "Stale file handle", "/x")


def test_a_pass_with_an_error_of_the_file_system_is_repeated(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "FILES_RETRY_S", 0.0)
    progress, executor, messages = inspect_run(run)[0], Shaky(STALE, STALE, None, STALE), list[str]()
    failing = [OSError(errno.EIO, "Input/output error")]

    def stop_requested() -> bool:
        if failing:
            raise failing.pop()
        return False

    work = Scheduler([progress], executor, [], max_attempts=1, stop_requested=stop_requested, notify=messages.append)
    assert work.run()
    assert progress.finished
    assert len(executor.done) == len(progress.graph.tasks())
    first, again, *second = messages
    assert first.startswith("[Errno 5] Input/output error; waiting for the file system"), "errors in a row: one message"
    assert again == "the file system works again"
    assert second == ["[Errno 116] Stale file handle: '/x'; waiting for the file system for up to 10 min", again]


def test_a_file_system_that_does_not_recover_ends_the_controller(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "FILES_RETRY_S", 0.0)
    monkeypatch.setattr(scheduler, "FILES_PATIENCE_S", 0.05)
    executor = Shaky(*[STALE] * 100_000)
    with pytest.raises(StoreError, match=r"Stale file handle: '/x'\. The file system has reported errors"):
        Scheduler([inspect_run(run)[0]], executor, [], max_attempts=1).run()


def test_a_full_disk_ends_the_controller_at_once(run: Run) -> None:
    with pytest.raises(OSError, match="No space left"):
        Scheduler(
            [inspect_run(run)[0]], Shaky(OSError(errno.ENOSPC, "No space left on device")), [], max_attempts=1
        ).run()


# --- failed attempts -----------------------------------------------------------------------------

COLD = TaskKey(1, "cold", "a")


class Failing(Instant):
    """An executor in which COLD fails with the given outcomes before it is published."""

    def __init__(self, *outcomes: Outcome) -> None:
        super().__init__(publish)
        self.outcomes = list(outcomes)
        self.adopted = Adopted()
        self.submitted: list[list[TaskRef]] = []
        self.abandoned: list[str] = []
        self.num_polls = 0

    def adopt(self, runs: Sequence[Run]) -> Adopted:
        return self.adopted

    def submit(self, wanted: Sequence[tuple[Run, TaskKey]]) -> list[TaskRef]:
        self.submitted.append([TaskRef(run.run_id, key) for run, key in wanted])
        fails = [(run, key) for run, key in wanted if key == COLD and self.outcomes]
        taken = super().submit([item for item in wanted if item not in fails])
        self._events += [Failed(TaskRef(run.run_id, key), self.outcomes.pop(0)) for run, key in fails]
        return taken + [TaskRef(run.run_id, key) for run, key in fails]

    def poll(self) -> list[Event]:
        self.num_polls += 1
        assert self.num_polls < 200, "the scheduler waits for a task that never ends"
        return super().poll()

    def abandon(self, run: Run, why: str) -> list[TaskRef]:
        self.abandoned.append(why)
        return []


ERROR, PREEMPTED = Outcome(OutcomeKind.ERROR, "no luck", log="x.log"), Outcome(OutcomeKind.PREEMPTED, counted=False)
FINAL = Outcome(OutcomeKind.FINAL, "no", traceback="Trace\n", log="x.log")
"""Every further attempt would fail in the same way."""


def test_only_failures_that_count_use_up_the_attempts_of_a_task(run: Run) -> None:
    progress, executor = inspect_run(run)[0], Failing(ERROR, *[PREEMPTED] * 5, ERROR)
    assert Scheduler([progress], executor, [], max_attempts=3).run()
    assert progress.finished
    assert (progress.attempts, progress.failures) == ({COLD: 2}, 2)
    assert executor.abandoned == []


@pytest.mark.parametrize(
    ("outcomes", "max_attempts", "why"),
    [
        ([ERROR, PREEMPTED, ERROR], 2, f"{COLD} failed 2 times: no luck\nlog: x.log"),
        ([ERROR], 1, f"{COLD} failed 1 time: no luck\nlog: x.log"),
        ([FINAL], 9, f"{COLD} failed 1 time: no\nTrace\nlog: x.log"),
    ],
)
def test_a_run_stops_after_its_last_attempt(run: Run, outcomes: list[Outcome], max_attempts: int, why: str) -> None:
    progress, executor = inspect_run(run)[0], Failing(*outcomes)
    assert Scheduler([progress], executor, [], max_attempts=max_attempts).run()
    assert progress.stopped == why
    assert executor.abandoned == [why]
    assert not progress.finished
    assert executor.outcomes == []


def test_what_an_earlier_controller_left_is_taken_over(run: Run) -> None:
    """A task that runs is not submitted again, one that is published is over, and failures count."""
    publish(run, TaskKey(0, "evaluate", "a"))
    progress, executor = inspect_run(run)[0], Failing(ERROR)
    runs, over = (TaskRef(run.run_id, TaskKey(0, "evaluate", m)) for m in "ba")
    executor.adopted = Adopted(tasks=[over, runs], failures=[Failed(TaskRef(run.run_id, COLD), ERROR)])
    publish(run, runs.key)
    executor._events.append(Done(runs))
    assert Scheduler([progress], executor, [], max_attempts=3).run()
    assert progress.finished
    assert progress.attempts == {COLD: 2}
    assert not {over, runs} & {task for call in executor.submitted for task in call}
    again, stopped = inspect_run(run)[0], Failing()
    again.withdraw(COLD)
    other = TaskKey(1, "cold", "b")
    failed = [Failed(TaskRef(run.run_id, key), how) for key, how in ((COLD, ERROR), (other, PREEMPTED))]
    stopped.adopted = Adopted(failures=failed, stopped={run.run_id: "later"})
    assert Scheduler([again], stopped, [], max_attempts=1).run()
    assert again.stopped is not None
    assert again.stopped.startswith(f"{COLD} failed 1 time"), "the first reason stays"
    assert stopped.submitted == []


def test_runs_advance_together(tmp_path: Path) -> None:
    """Tasks of an earlier iteration are offered first, whichever run they belong to."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    runs = [inspect_run(run_of(tmp_path / name, "arrays"))[0] for name in ("one", "two")]
    runs[1].run = replace(runs[1].run, run_id="other")
    executor = Failing()
    assert Scheduler(runs, executor, [], max_attempts=1).run()
    first = [(task.key.iteration, task.run_id) for task in executor.submitted[0]]
    assert [iteration for iteration, _ in first] == sorted(iteration for iteration, _ in first)
    assert {run_id for iteration, run_id in first if iteration == 0} == {p.run.run_id for p in runs}
    assert {iteration for iteration, _ in first} == {0, 1}


# --- events --------------------------------------------------------------------------------------


class Manual(Instant):
    """An executor that takes every task, and reports the given events."""

    def __init__(self, *polls: list[Event]) -> None:
        super().__init__(lambda run, key: None)
        self.polls = list(polls)
        self.seen: list[tuple[int, bool]] = []
        self.progress: RunProgress | None = None

    def poll(self) -> list[Event]:
        super().poll()
        assert self.progress is not None
        self.seen.append((self.progress.num_running, COLD in self.progress.waiting))
        return self.polls.pop(0)


def test_a_task_waits_runs_and_may_go_back_to_the_queue(run: Run) -> None:
    task, progress = TaskRef(run.run_id, COLD), inspect_run(run)[0]
    foreign = TaskRef(run.run_id, TaskKey(2, "cold", "a"))
    some = Progress(1, 2, 3)
    executor = Manual(
        [Started(task), Started(foreign)],
        [Waiting(task), Waiting(foreign), Progressed(foreign, some), Released(foreign)],
        [Progressed(task, some)],
        [Released(task)],
        [Stopped(task)],
        [],
    )
    executor.progress, reader = progress, Reader(nothing, nothing)
    scheduler = Scheduler([progress], executor, [reader], max_attempts=1, stop_requested=lambda: not executor.polls)
    assert not scheduler.run()
    assert executor.seen == [(0, True), (1, False), (0, True), (1, False), (0, True), (0, True)]
    assert executor.done.count(COLD) == 3, "after it was released, and after it stopped"
    assert [type(event) for event in reader.seen] == [Started, Waiting, Progressed, Released, Stopped]
    assert progress.attempts == {}


def test_listeners_see_each_publication_once_with_its_statistics(run: Run) -> None:
    def publish_with_number(run: Run, key: TaskKey) -> None:
        publish(run, key)
        path = run.paths.task_manifest(key)
        manifests.write_json(path, {**manifests.read_json(path), "stats": {"iteration": key.iteration}})

    class Twice(Instant):
        def poll(self) -> list[Event]:
            return [event for event in super().poll() for _ in range(2)]

    progress, reader = inspect_run(run)[0], Reader(nothing, nothing)
    assert Scheduler([progress], Twice(publish_with_number), [reader], max_attempts=1).run()
    seen = [(event.task.key, event.stats) for event in reader.seen if isinstance(event, Done)]
    assert len(seen) == len(reader.seen) == len(progress.graph.tasks())
    assert all(stats == {"iteration": key.iteration} for key, stats in seen)
