"""Chains of phases in one element of an array (`slurm.chain_wait_s`), complete and incomplete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core_hpc.runs.events import Event
from core_hpc.runs.folder import Run
from core_hpc.runs.graph import Graph
from core_hpc.slurm.arrays import chains_of
from core_hpc.slurm.executor import SlurmExecutor
from core_hpc.slurm.records import ENDED, OPEN, Submission, SubmissionFolder
from core_hpc.store import manifests
from core_hpc.store.paths import TEAM, TaskKey
from tests.support.fake_slurm import FakeSlurm, executor_of, kind_of, publish, run_of

GRAPH = Graph(
    models=("a", "b"),
    iterations=2,
    num_parts=4,
    num_evaluation_parts=1,
    evaluate_every=0,
    evaluate_before=True,
    has_rescue=True,
)

Make = Callable[..., tuple[SlurmExecutor, Run]]


@pytest.fixture
def make(tmp_path: Path, slurm: FakeSlurm) -> Make:
    def build(**protocol: Any) -> tuple[SlurmExecutor, Run]:
        run = run_of(tmp_path, "arrays", protocol=protocol, chain_wait_s=5)
        return executor_of(run, slurm, start_id="start001", notify=print), run

    return build


def cold(model: str, part: int = 0) -> TaskKey:
    return TaskKey(1, "cold", model, part)


def rescue(model: str, part: int = 0) -> TaskKey:
    return TaskKey(1, "rescue", model, part)


def hint(part: int = 0) -> TaskKey:
    return TaskKey(1, "hint", TEAM, part)


def score(part: int = 0) -> TaskKey:
    return TaskKey(1, "score", TEAM, part)


def update(model: str) -> TaskKey:
    return TaskKey(1, "update", model)


def ask(executor: SlurmExecutor, run: Run, *keys: TaskKey) -> list[TaskKey]:
    return [task.key for task in executor.submit([(run, key) for key in keys])]


def events(executor: SlurmExecutor, *, polls: int = 40) -> list[Event]:
    return [event for _ in range(polls) for event in executor.poll()]


def ended(executor: SlurmExecutor) -> list[tuple[str, TaskKey]]:
    """Done and failed tasks."""
    return [(kind_of(e), e.task.key) for e in events(executor) if kind_of(e) in ("done", "failed")]


def left(slurm: FakeSlurm, run: Run, submission: Submission, index: int, *keys: TaskKey) -> None:
    """An element ends and leaves tasks to other jobs."""
    message = f"{keys[0]} was not published within 5 s"
    body = {"kind": "done", "left": [str(key) for key in keys], "message": message}
    path = SubmissionFolder(run.paths.slurm).status_file(submission, index)
    manifests.write_json(path, {"node": "n1", "published": 1, "stopping": None, "outcome": body})
    slurm.set(submission, index, "COMPLETED")


def test_a_chain_does_not_end_with_an_update_that_waits_for_the_one_before() -> None:
    """With staleness, iteration 2 may be scored while a model is still updated in iteration 1."""
    graph = replace(GRAPH, staleness=1)
    open_tasks = {TaskKey(1, "update", "b"), *(TaskKey(2, p, m) for p in ("score", "update") for m in (TEAM, "a", "b"))}
    published = {key for key in graph.tasks() if key.iteration <= 2 and replace(key, part=0) not in open_tasks}
    ready = [key for key in graph.ready(published) if key.phase == "score"]
    assert ready == [TaskKey(2, "score", TEAM, p) for p in range(4)]
    (chain,) = chains_of(graph, ready, published, 1)
    assert chain == [*ready, TaskKey(2, "update", "a")]
    both = chains_of(graph, ready, published | {TaskKey(1, "update", "b")}, 1)
    assert [chain[-1] for chain in both] == [TaskKey(2, "update", m) for m in "ab"]
    # Without any such update the scores are an ordinary array.
    assert chains_of(graph, ready, published - {TaskKey(1, "update", "a")}, 1) == []


def test_a_chain_is_cold_hint_rescue_and_each_model_begins_with_another_part() -> None:
    keys = [cold(m, p) for p in range(4) for m in "ab"]
    chains = chains_of(GRAPH, keys, set(), 2)
    assert chains == [
        [cold("a", 0), cold("a", 1), hint(0), rescue("a", 0), hint(1), rescue("a", 1)],
        [cold("a", 2), cold("a", 3), hint(2), rescue("a", 2), hint(3), rescue("a", 3)],
        [cold("b", 0), cold("b", 1), hint(1), rescue("b", 1), hint(0), rescue("b", 0)],
        [cold("b", 2), cold("b", 3), hint(3), rescue("b", 3), hint(2), rescue("b", 2)],
    ]
    for chain in chains:  # a task comes after those of its inputs that are in the chain
        for place, key in enumerate(chain):
            assert not set(GRAPH.inputs(key)) & set(chain[place:])


def test_a_repeated_cold_task_makes_a_chain_of_its_model_only() -> None:
    assert chains_of(GRAPH, [cold("b", 3)], {cold("a", 3)}, 2) == [[cold("b", 3), hint(3), rescue("b", 3)]]


def test_an_update_follows_if_all_scores_of_its_iteration_are_published_or_in_the_chain() -> None:
    assert chains_of(GRAPH, [score(2), score(3)], {score(0)}, 9) == []
    assert chains_of(GRAPH, [score(2), score(3)], {score(0), score(1)}, 9) == [
        [score(2), score(3), update("a")],
        [score(3), score(2), update("b")],
    ]


def test_published_tasks_are_left_out_and_without_a_further_task_there_is_no_chain() -> None:
    assert chains_of(GRAPH, [hint(0)], {rescue("a", 0)}, 1) == [[hint(0), rescue("b", 0)]]
    assert chains_of(GRAPH, [hint(0)], {rescue("a", 0), rescue("b", 0)}, 1) == []
    assert chains_of(GRAPH, [cold("a")], {rescue("a"), hint()}, 1) == []


def test_tasks_of_an_open_chain_are_not_submitted_again(make: Make, slurm: FakeSlurm) -> None:
    executor, run = make()
    assert ask(executor, run, cold("a"), cold("b")) == [cold("a"), cold("b")]
    (submission,) = slurm.submitted
    assert submission.group == "generate"
    assert submission.elements == [[str(k) for k in (cold(m), hint(), rescue(m))] for m in "ab"]
    for index in (0, 1):
        slurm.set(submission, index, "RUNNING")
    started = [e.task.key for e in events(executor) if kind_of(e) == "started"]
    # The scheduler ignores events of tasks that it did not submit.
    assert started == [key for m in "ab" for key in (cold(m), hint(), rescue(m))]
    for key in (cold("a"), cold("b")):
        publish(run, key)
    assert {e.task.key for e in events(executor)} == {cold("a"), cold("b")}
    assert ask(executor, run, hint()) == [hint()]
    assert [(kind_of(e), e.task.key) for e in events(executor)] == [("started", hint())]
    publish(run, hint())
    events(executor)
    assert ask(executor, run, rescue("a"), rescue("b")) == [rescue("a"), rescue("b")]
    for key in (rescue("a"), rescue("b")):
        publish(run, key)
    assert {kind_of(e) for e in events(executor)} == {"started", "done"}
    assert len(slurm.submitted) == 1
    assert len(SubmissionFolder(run.paths.slurm).names(ENDED)) == 1
    assert ask(executor, run, score()) == [score()]
    assert slurm.submitted[1].group == "update"
    assert slurm.submitted[1].elements == [[str(score()), str(update(m))] for m in "ab"]


def test_tasks_that_an_element_left_are_submitted_when_they_are_ready(make: Make, slurm: FakeSlurm) -> None:
    """Model b is late, so the element of model a ends without its rescue. This is no failure."""
    executor, run = make()
    ask(executor, run, cold("a"), cold("b"))
    (submission,) = slurm.submitted
    publish(run, cold("a"))
    left(slurm, run, submission, 0, hint(), rescue("a"))
    assert ended(executor) == [("done", cold("a"))]
    publish(run, cold("b"))
    events(executor)
    assert ask(executor, run, hint()) == [hint()]
    publish(run, hint())
    publish(run, rescue("b"))
    events(executor)
    assert ask(executor, run, rescue("a")) == [rescue("a")]
    assert [s.elements for s in slurm.submitted[1:]] == [[[str(rescue("a"))]]]
    assert [name for name, _ in SubmissionFolder(run.paths.slurm).names(ENDED)] == [submission.name]


def test_submitted_tasks_that_an_element_left_are_released(make: Make, slurm: FakeSlurm) -> None:
    executor, run = make()
    ask(executor, run, cold("a"), cold("b"))
    (submission,) = slurm.submitted
    for key in (cold("a"), cold("b")):
        publish(run, key)
    events(executor)
    assert ask(executor, run, hint()) == [hint()]
    for index, model in enumerate("ab"):
        left(slurm, run, submission, index, hint(), rescue(model))
    released = [e.task.key for e in events(executor) if kind_of(e) == "released"]
    assert hint() in released
    assert ask(executor, run, hint()) == [hint()]
    assert slurm.submitted[-1].elements == [[str(hint()), str(rescue(m))] for m in "ab"]


def test_an_element_counts_as_ended_only_when_its_publications_are_seen(make: Make, slurm: FakeSlurm) -> None:
    executor, run = make()
    ask(executor, run, cold("a"))
    left(slurm, run, slurm.submitted[0], 0, hint(), rescue("a"))
    assert executor.poll() == []
    publish(run, cold("a"))
    assert ended(executor) == [("done", cold("a"))]
    assert SubmissionFolder(run.paths.slurm).names(OPEN) == []


def test_a_failure_in_a_later_phase_is_reported_once(make: Make, slurm: FakeSlurm) -> None:
    executor, run = make()
    ask(executor, run, cold("a"), cold("b"))
    (submission,) = slurm.submitted
    for key in (cold("a"), cold("b")):
        publish(run, key)
    slurm.set(submission, 0, "NODE_FAIL")
    assert [e.task.key for e in events(executor) if kind_of(e) == "failed"] == [hint()]


def test_without_rescue_only_scores_and_updates_are_a_chain(make: Make, slurm: FakeSlurm) -> None:
    executor, run = make(rescue_samples=0)
    ask(executor, run, cold("a"), cold("b"))
    assert slurm.submitted[0].elements == [[str(cold("a"))], [str(cold("b"))]]
    ask(executor, run, score())
    assert slurm.submitted[1].elements == [[str(score()), str(update(m))] for m in "ab"]
