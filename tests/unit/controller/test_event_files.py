"""TensorBoard's files over several starts: every point once, whatever happened to a start.

All files are read with TensorBoard's own reader, which checks the checksums.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from core_hpc.controller import event_files, run_tracker
from core_hpc.controller.event_files import RECORD, crc32c, framed
from core_hpc.controller.points import FINAL
from core_hpc.controller.run_tracker import RunTracker
from core_hpc.controller.tracking import Tracking
from core_hpc.runs.events import Done, TaskRef
from core_hpc.runs.folder import Run
from core_hpc.schedule.progress import RunProgress
from core_hpc.store import manifests
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, EVALUATE
from core_hpc.store.shards import published_keys
from tests.benchmarks.simulated_tasks import SimulatedTasks
from tests.support.tracked_run import Point, make_run, publish_evaluation, written_points

Points = Counter[Point]
"""How often a (folder, tag, step, value) is in the files."""


def points_of(run: Run) -> Points:
    """All points of a run, except the figures at the end of a start."""
    return Counter({point: n for point, n in written_points(run).items() if not point[1].startswith(FINAL)})


def fresh(run: Run) -> RunProgress:
    """The progress of a run without publications."""
    return RunProgress(run, run.graph(), set())


class Starts:
    """Publishes the tasks of a run, in starts of a controller that are killed or end."""

    def __init__(self, run: Run) -> None:
        self.run, self.tasks = run, SimulatedTasks(update_bytes=100)
        self.progress, self.listener = fresh(run), Tracking()

    def publish(self, keys: Iterable[TaskKey]) -> None:
        for key in keys:
            self.tasks.publish(self.run, key)
            self.inform(key)

    def inform(self, key: TaskKey) -> None:
        self.progress.add_published(key)
        self.listener.on_event(self.progress, Done(TaskRef(self.run.run_id, key)))

    def end(self) -> None:
        self.listener.close([self.progress])
        self.listener = Tracking()

    def killed(self) -> None:
        self.listener = Tracking()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Points, list[TaskKey]]:
    """The points of a run that one start has published, and its tasks in order."""
    run = make_run(tmp_path_factory.mktemp("whole"))
    starts, keys = Starts(run), sorted(run.graph().tasks())
    starts.publish(keys)
    starts.end()
    points = points_of(run)
    assert len({(folder, tag, step) for folder, tag, step, _ in points}) == len(points) == points.total() > 300
    return points, keys


def assert_same(run: Run, points: Points) -> None:
    """The files have the curves of the other run, and the points that are written if all are written again."""
    found = points_of(run)
    idle = "6_time/waited_s/idle"  # is there only if the machine paused between two publications
    assert {point[:3] for point in found if point[1] != idle} == {point[:3] for point in points if point[1] != idle}
    tracker = RunTracker(run, anew=True)
    tracker.catch_up(set(published_keys(run.root)))
    assert found == points_of(run)


@pytest.mark.parametrize("seed", range(5))
def test_several_starts_write_the_points_of_one(tmp_path: Path, whole: tuple[Points, list[TaskKey]], seed: int) -> None:
    points, keys = whole
    starts, rng = Starts(make_run(tmp_path)), random.Random(seed)
    cuts = sorted(rng.sample(range(1, len(keys)), 3))
    for begin, end in zip([0, *cuts], [*cuts, len(keys)], strict=True):
        own = keys[begin:end]
        unseen = rng.randrange(len(own)) if rng.random() < 0.5 else 0  # published while no controller was there
        for key in own[:unseen]:
            starts.tasks.publish(starts.run, key)
            starts.progress.add_published(key)
        starts.publish(own[unseen:])
        rng.choice([starts.end, starts.killed])()
    starts.listener.on_finished(starts.progress)
    starts.end()
    assert_same(starts.run, points)


def test_publications_without_a_controller_have_each_point_once(
    tmp_path: Path, whole: tuple[Points, list[TaskKey]]
) -> None:
    points, keys = whole
    starts = Starts(make_run(tmp_path))
    for key in keys:
        starts.tasks.publish(starts.run, key)
        starts.progress.add_published(key)
    starts.listener.on_finished(starts.progress)
    assert_same(starts.run, points)


def team_file(run: Run) -> Path:
    """The event file of the team, with the points of the first evaluation and of time."""
    (path,) = (p for p in (run.paths.tensorboard / TEAM).glob("events*") if p.suffix != event_files.END)
    return path


def cut_the_end(run: Run) -> None:
    os.truncate(team_file(run), team_file(run).stat().st_size - 3)


def lose_the_end(run: Run) -> None:
    """As after a power failure: the size is right, but the last bytes were never written."""
    content = team_file(run).read_bytes()
    team_file(run).write_bytes(content[:-40] + bytes(40))


def add_an_unrecorded_event(run: Run) -> None:
    """As when a controller is killed between an event and its record."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    event = Event(step=1, summary=Summary(value=[Summary.Value(tag="4_reward/reward", simple_value=7.0)]))
    with team_file(run).open("ab") as f:
        f.write(framed(event.SerializeToString())[:-1])


def tear_the_record(run: Run) -> None:
    """The last line is half written, so the points of the last task are not recorded."""
    path = run.paths.tensorboard / RECORD
    os.truncate(path, path.stat().st_size - 5)


def remove_the_record(run: Run) -> None:
    (run.paths.tensorboard / RECORD).unlink()


def spoil_the_record(run: Run) -> None:
    (run.paths.tensorboard / RECORD).write_bytes(b'{"made_from": []}\n[1, 2]\n\xff\n')


def add_a_file_of_an_earlier_version(run: Run) -> None:
    shutil.copy(team_file(run), run.paths.tensorboard / TEAM / "events.out.tfevents.0000000001.host.1")


def remove_a_folder(run: Run) -> None:
    shutil.rmtree(run.paths.tensorboard / TEAM)


DAMAGE = [
    cut_the_end,
    lose_the_end,
    add_an_unrecorded_event,
    tear_the_record,
    remove_the_record,
    spoil_the_record,
    add_a_file_of_an_earlier_version,
    remove_a_folder,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_after_damage_every_point_is_there_once(
    tmp_path: Path, whole: tuple[Points, list[TaskKey]], damage: Callable[[Run], None]
) -> None:
    points, keys = whole
    starts, middle = Starts(make_run(tmp_path)), len(keys) // 2
    starts.publish(keys[:middle])
    starts.end()
    damage(starts.run)
    starts.publish(keys[middle:])
    starts.end()
    assert_same(starts.run, points)


def test_a_start_reads_no_shard_whose_points_exist(
    tmp_path: Path, whole: tuple[Points, list[TaskKey]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, keys = whole
    starts = Starts(make_run(tmp_path))
    starts.publish(keys[:-1])
    starts.killed()
    written: list[TaskKey] = []
    original = RunTracker.task_published

    def noted(self: RunTracker, key: TaskKey, published: set[TaskKey]) -> None:
        written.append(key)
        original(self, key, published)

    monkeypatch.setattr(RunTracker, "task_published", noted)
    starts.publish(keys[-1:])
    assert written == keys[-1:]


def test_another_version_writes_all_points_again(
    tmp_path: Path, whole: tuple[Points, list[TaskKey]], monkeypatch: pytest.MonkeyPatch
) -> None:
    points, keys = whole
    starts = Starts(make_run(tmp_path))
    starts.publish(keys[:-1])
    starts.end()
    before = team_file(starts.run).name
    monkeypatch.setattr(run_tracker, "__version__", "another")
    monkeypatch.setattr(event_files, "_new_name", lambda: f"{event_files.PREFIX}4000000000.host.1")
    starts.publish(keys[-1:])
    assert team_file(starts.run).name != before
    assert_same(starts.run, points)


def first_evaluation(run: Run) -> dict[tuple[str, float], int]:
    """How often Pass@1 of the evaluation before training is in the files, by folder and value."""
    found = points_of(run).items()
    return {(folder, v): n for (folder, tag, step, v), n in found if (tag, step) == ("1_evaluation/pass/k1", 0)}


@pytest.mark.parametrize("restarted", [False, True])
def test_a_publication_that_is_made_again_replaces_its_points(tmp_path: Path, restarted: bool) -> None:
    run = make_run(tmp_path)
    keys = sorted(k for k in run.graph().tasks() if k.phase == EVALUATE and k.iteration == 0)
    starts, parts = Starts(run), sorted({k.part for k in keys})
    for part in parts:
        publish_evaluation(run, 0, part, correct=False)
    for key in keys:
        starts.inform(key)
    if restarted:
        starts.killed()
    for key in keys:
        manifests.set_aside(run.paths.task_manifest(key))
        starts.progress.withdraw(key)
    for part in parts:
        publish_evaluation(run, 0, part, correct=True)
    for key in keys:
        starts.inform(key)
    assert first_evaluation(run) == {(model, 1.0): 1 for model in ("m0", "m1", TEAM)}


def test_a_publication_that_was_made_again_without_a_controller_replaces_its_points(tmp_path: Path) -> None:
    # A resident job sets a damaged publication aside and makes it again, while no controller runs.
    run = make_run(tmp_path)
    keys = sorted(k for k in run.graph().tasks() if k.phase == EVALUATE and k.iteration == 0)
    starts, parts = Starts(run), sorted({k.part for k in keys})
    for part in parts:
        publish_evaluation(run, 0, part, correct=False)
    for key in keys:
        starts.inform(key)
    starts.killed()
    for key in keys:
        manifests.set_aside(run.paths.task_manifest(key))
    for part in parts:
        publish_evaluation(run, 0, part, correct=True)
    cold = next(k for k in sorted(run.graph().tasks()) if k.phase == COLD)
    starts.publish([cold])
    assert first_evaluation(run) == {(model, 1.0): 1 for model in ("m0", "m1", TEAM)}


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 7, 8, 255, 1023, 1024, 1025, 1026, 1027, 1028, 2048, 5000])
def test_records_are_framed_as_tensorboard_frames_them(size: int) -> None:
    import io

    from tensorboard.summary.writer.record_writer import RecordWriter

    data, theirs = random.Random(size).randbytes(size), io.BytesIO()
    RecordWriter(theirs).write(data)  # type: ignore[no-untyped-call]
    assert framed(data) == theirs.getvalue()


def test_the_checksum_has_the_values_of_its_standard() -> None:
    # RFC 3720, appendix B.4.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_the_session_ends_once_with_the_figures_of_the_last_evaluation(
    tmp_path: Path, whole: tuple[Points, list[TaskKey]]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    _, keys = whole
    starts = Starts(make_run(tmp_path))
    for key in keys[:-1]:
        starts.publish([key])
    starts.end()
    starts.publish(keys[-1:])
    starts.end()
    events = EventAccumulator(str(starts.run.paths.tensorboard / TEAM))
    events.Reload()
    final = [tag for tag in events.Tags()["scalars"] if tag.startswith(FINAL)]
    assert len(final) >= 3  # two models and the team
    assert all(len(events.Scalars(tag)) == 1 for tag in final)
    content = events.SummaryMetadata("_hparams_/session_end_info").plugin_data.content
    ended = plugin_data_pb2.HParamsPluginData.FromString(content).session_end_info
    assert ended.status == 1  # STATUS_SUCCESS: the first start had ended before the run was finished
