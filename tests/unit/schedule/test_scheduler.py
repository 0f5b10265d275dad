"""The scheduler with listeners that fail, and with a claim that is lost. The executor publishes at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from core_hpc.common.errors import ClaimLostError
from core_hpc.runs.events import Event
from core_hpc.runs.folder import Run
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
