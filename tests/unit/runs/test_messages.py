"""Messages and status files survive JSON, and files that earlier versions wrote are still read."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_hpc.runs.job_status import JobEnd, JobStatus, RunningTask, StopReason
from core_hpc.runs.outcome import Outcome, OutcomeKind, Progress
from core_hpc.runs.worker_messages import CommandKind, MessageKind, WorkerCommand, WorkerMessage

ROOT = Path(__file__).parents[3]
TEXT, SECONDS, NUMBER = st.text(max_size=8), st.floats(0, 1e10), st.integers(0, 10**9)
PROGRESS = st.builds(Progress, NUMBER, NUMBER, NUMBER)
OUTCOMES = st.builds(Outcome, st.sampled_from(OutcomeKind), TEXT, st.booleans(), TEXT, TEXT, TEXT, TEXT, TEXT, SECONDS)
RUNNING = st.builds(RunningTask, SECONDS, PROGRESS, SECONDS) | st.builds(RunningTask, SECONDS)
ENDS = st.builds(
    JobEnd,
    st.sampled_from(OutcomeKind),
    TEXT,
    st.none() | st.sampled_from(StopReason),
    st.booleans(),
    st.none() | st.lists(TEXT).map(tuple),
    TEXT,
    TEXT,
    TEXT,
    TEXT,
)
STATUSES = st.builds(
    JobStatus,
    job=TEXT,
    restarts=NUMBER,
    node=TEXT,
    pid=NUMBER,
    started=SECONDS,
    published=NUMBER,
    progress=st.none() | st.tuples(TEXT, st.builds(RunningTask, SECONDS, PROGRESS, SECONDS)),
    stopping=st.none() | st.sampled_from(StopReason),
    outcome=st.none() | ENDS,
    running=st.dictionaries(TEXT, RUNNING, max_size=2),
    failures=st.lists(OUTCOMES, max_size=2).map(tuple),
)
MESSAGES = st.builds(
    WorkerMessage, st.sampled_from(MessageKind), TEXT, TEXT, st.none() | PROGRESS, st.none() | OUTCOMES
)
COMMANDS = st.builds(WorkerCommand, st.sampled_from(CommandKind), TEXT, TEXT)


@given(st.one_of(OUTCOMES, RUNNING, ENDS, STATUSES, MESSAGES, COMMANDS))
def test_json_keeps_everything(item: Any) -> None:
    assert type(item).from_json(json.loads(json.dumps(item.to_json()))) == item


def test_a_status_file_of_an_array_element_of_the_last_release_is_read() -> None:
    """As version 0.1 wrote it: no task's start, no running tasks, an outcome with only the fields that it needs."""
    text = (
        '{"job": "70", "restarts": 0, "node": "n2", "pid": 7, "started": 100.0, "published": 1, "progress": '
        '{"task": "cold/0001/m0/000", "done": 3, "total": 8, "tokens": 90, "time": 130.0}, "stopping": "time limit", '
        '"outcome": {"kind": "stopped", "reason": "time limit", "message": "between two tasks", "gained": true}}'
    )
    status = JobStatus.from_json(json.loads(text))
    assert status.progress == ("cold/0001/m0/000", RunningTask(0.0, Progress(3, 8, 90), 130.0))
    assert (status.stopping, status.published, status.running) == (StopReason.TIME_LIMIT, 1, {})
    assert status.outcome == JobEnd(OutcomeKind.STOPPED, "between two tasks", StopReason.TIME_LIMIT, gained=True)


def test_a_status_file_of_a_resident_job_of_the_last_release_is_read() -> None:
    text = (
        '{"job": "71", "restarts": 1, "node": "n1", "pid": 8, "started": 5.0, "published": 0, "progress": null, '
        '"stopping": null, "outcome": {"kind": "gave up", "message": "m", "traceback": ""}, "running": '
        '{"cold/0001/a/000": {"started": 6.0, "done": 1, "total": 2, "tokens": 3, "time": 7.0}, '
        '"hint/0001/team/000": {"started": 6.5}}, "failures": [{"kind": "error", "message": "ValueError: no", '
        '"traceback": "Traceback", "log": "/w.log", "task": "cold/0001/b/000", "time": 4.0}]}'
    )
    status = JobStatus.from_json(json.loads(text))
    assert status.running["cold/0001/a/000"] == RunningTask(6.0, Progress(1, 2, 3), 7.0)
    assert status.running["hint/0001/team/000"] == RunningTask(6.5)
    (failure,) = status.failures
    assert (failure.kind, failure.counted, failure.log, failure.time) == (OutcomeKind.ERROR, True, "/w.log", 4.0)
    assert status.outcome == JobEnd(OutcomeKind.GAVE_UP, "m")


@pytest.mark.parametrize("kind", OutcomeKind)
def test_only_these_ends_are_no_failures(kind: OutcomeKind) -> None:
    assert kind.is_failure is (kind.value not in ("done", "stopped", "abandoned"))


def test_kinds_are_literals_in_the_modules_of_messages_only() -> None:
    """No package compares or makes a kind as a string: `x.kind == "failed"`, `Outcome("error")`, {"kind": ...}."""
    packages = ("schedule", "local", "slurm", "controller", "phases")
    paths = [path for package in packages for path in sorted((ROOT / "core_hpc" / package).rglob("*.py"))]
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare | ast.Call | ast.Dict) and _names_a_kind(node)
    ]
    assert not found


def _names_a_kind(node: ast.Compare | ast.Call | ast.Dict) -> bool:
    if isinstance(node, ast.Dict):
        return any(isinstance(key, ast.Constant) and key.value == "kind" for key in node.keys)
    if isinstance(node, ast.Call):
        is_outcome = isinstance(node.func, ast.Name) and node.func.id in ("Outcome", "JobEnd", "WorkerMessage")
        return is_outcome and any(_is_literal(argument) for argument in node.args[:1])
    sides = (node.left, *node.comparators)
    return any(isinstance(side, ast.Attribute) and side.attr == "kind" for side in sides) and any(
        map(_is_literal, sides)
    )


def _is_literal(node: ast.expr) -> bool:
    values = {kind.value for enum in (OutcomeKind, MessageKind) for kind in enum}
    return isinstance(node, ast.Constant) and node.value in values
