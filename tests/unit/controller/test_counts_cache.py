"""When the controller caches the counts of an iteration: when all its tasks are published.

If a task is withdrawn, they are cached again after it is published again.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from analysis.counts import load
from core_hpc.common.errors import StoreError
from core_hpc.controller.counts_cache import CountsCache
from core_hpc.runs.events import Done, TaskRef
from core_hpc.runs.graph import Graph
from core_hpc.schedule.progress import RunProgress
from core_hpc.store import manifests, parquet
from core_hpc.store.manifests import DamagedError
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, SCORE
from tests.support.harness import flip_a_byte
from tests.support.whole_run import publish_task, run_in

GRAPH = Graph(
    models=("a", "b"),
    iterations=2,
    num_parts=2,
    num_evaluation_parts=1,
    evaluate_every=0,
    evaluate_before=True,
    has_rescue=True,
)


def progress() -> RunProgress:
    return RunProgress(SimpleNamespace(run_id="run", root=Path("/nowhere/run")), GRAPH, set())  # type: ignore[arg-type]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Iterations in the order in which their counts were cached."""
    seen: list[int] = []
    monkeypatch.setattr("analysis.counts.load.keep_counts", lambda run, iteration: seen.append(iteration))
    monkeypatch.setattr("analysis.counts.cache.iterations", lambda run: set(seen))
    return seen


def publish(listener: CountsCache, of: RunProgress, key: TaskKey) -> None:
    of.add_published(key)
    listener.on_event(of, Done(TaskRef("run", key)))


@pytest.mark.parametrize("backwards", [False, True])
def test_an_iteration_is_cached_when_its_last_task_is_published(counted: list[int], backwards: bool) -> None:
    of = progress()
    listener = CountsCache()
    for key in sorted(GRAPH.tasks(), reverse=backwards):
        before = {i for i in (0, 1, 2) if all(k in of.published for k in GRAPH.tasks() if k.iteration == i)}
        assert set(counted) == before
        publish(listener, of, key)
    assert sorted(counted) == [0, 1, 2]


def test_an_iteration_with_a_withdrawn_task_is_cached_again(counted: list[int]) -> None:
    of = progress()
    listener = CountsCache()
    for key in GRAPH.tasks():
        publish(listener, of, key)
    counted.clear()
    of.withdraw(TaskKey(1, COLD, "a", 1))
    publish(listener, of, TaskKey(1, SCORE, TEAM, 1))
    assert counted == []
    publish(listener, of, TaskKey(1, COLD, "a", 1))
    assert counted == [1]


def test_close_caches_what_an_earlier_controller_did_not_cache(counted: list[int]) -> None:
    of = progress()
    for key in GRAPH.tasks():
        if key.iteration < 2:
            of.add_published(key)
    of.add_published(TaskKey(2, COLD, "a"))
    counted.append(0)
    CountsCache().close([of])
    assert counted == [0, 1]


def test_damaged_rows_do_not_end_the_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Path, iteration: int) -> None:
        raise StoreError("damaged")

    monkeypatch.setattr("analysis.counts.load.keep_counts", fail)
    of = progress()
    listener = CountsCache()
    for key in GRAPH.tasks():
        publish(listener, of, key)


def test_a_damaged_shard_is_found_before_polars_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some altered bytes make Polars abort the process."""
    run = run_in(tmp_path)
    for key in run.graph().tasks():
        publish_task(run, key)
    flip_a_byte(manifests.read_manifest(run.paths.task_manifest(TaskKey(1, COLD, "a", 1))).file(".parquet"))
    monkeypatch.setattr(parquet, "scan", lambda paths: pytest.fail("the shard was read"))
    with pytest.raises(DamagedError, match="checksum differs"):
        load.keep_counts(run.root, 1)
