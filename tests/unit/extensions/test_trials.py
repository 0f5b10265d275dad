"""The call of every function before a job is submitted, and problem sources that return something else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.controller.prepare import splits_of
from core_hpc.extensions.points import POINTS, uses
from core_hpc.phases.own_functions import try_functions
from core_hpc.runs.sweep import RunPlan, load_sweep
from tests.support.examples import EXAMPLES

NORMALIZE = {"normalize": "mine.py:normalize"}
GOOD = "def normalize(text):\n    return text.strip()\n\n"
PLACES: dict[str, tuple[str, dict[str, Any]]] = {
    "reward_part": ("reward.parts.x.function", {"reward": {"parts": {"x": {"function": "mine.py:wrong"}}}}),
    "hint_maker": ("protocol.hint_function.function", {"protocol": {"hint_function": {"function": "mine.py:wrong"}}}),
    "explore_rule": (
        "reward.explore.rule_function.function",
        {"reward": {"explore": {"rule_function": {"function": "mine.py:wrong"}}}},
    ),
    "advantage": (
        "update.advantage_function.function",
        {"update": {"advantage_function": {"function": "mine.py:wrong"}}},
    ),
    "answer_extract": ("problems.answer_kinds.x.extract", {"kinds": {"x": {**NORMALIZE, "extract": "mine.py:wrong"}}}),
    "answer_verify": ("problems.answer_kinds.x.verify", {"kinds": {"x": {**NORMALIZE, "verify": "mine.py:wrong"}}}),
}


def plan_in(folder: Path, source: str, *, kinds: dict[str, Any] | None = None, **more: Any) -> RunPlan:
    (folder / "mine.py").write_text(source)
    rows = [
        json.dumps({"id": i, "question": f"q{i}", "answer": i, "answer_kind": "x" if kinds else "number"})
        for i in range(40)
    ]
    (folder / "t.jsonl").write_text("\n".join(rows))
    problems: dict[str, Any] = {
        "train": {"source": "jsonl", "path": str(folder / "t.jsonl")},
        "evaluation": {"source": "generated", "count": 2},
        "answer_kinds": kinds or {},
    }
    data = {
        "name": "s",
        "iterations": 1,
        "output": str(folder),
        "team": [{"name": "a", "model": "x"}, {"name": "b", "model": "x"}],
    }
    (folder / "s.yaml").write_text(json.dumps({**data, "problems": problems, **more}))
    (plan,) = load_sweep(folder / "s.yaml").runs
    return plan


@pytest.mark.parametrize("point", PLACES)
def test_a_function_that_fails_at_once_is_reported_with_its_field_and_line(tmp_path: Path, point: str) -> None:
    path, changes = PLACES[point]
    source = f"{GOOD}def wrong({', '.join(POINTS[point].parameters)}):\n    return absent\n"
    plan = plan_in(tmp_path, source, **changes)
    with pytest.raises(InputError) as error:
        try_functions(plan.config, splits_of(plan).train)
    where = f"{tmp_path}/mine.py, line 5, in wrong"
    expected = f"{path}: {where}: NameError: name 'absent' is not defined\n    return absent\n    called with "
    assert str(error.value).startswith(expected)


@pytest.mark.parametrize(
    ("point", "body", "expected"),
    [
        (
            "reward_part",
            "[len(c.text) / len(c.text.split()) for c in completions]",
            "ZeroDivisionError: .*called with problem = '.*', completions = \\['0', empty text\\]",
        ),
        ("reward_part", "[len(c.text.encode('latin-1')) for c in completions]", r"UnicodeEncodeError: .* 'Größe ≈"),
        ("reward_part", "[1 / (len(c.text) < 9999) for c in completions]", r"word \.\.\.' \(20,000 characters\)\]"),
        ("hint_maker", "text.encode('ascii').decode()", "called with problem = '.*', text = 'Größe ≈ .* is 0.'"),
        ("advantage", "[r / sum(rewards) for r in rewards]", r"rewards = \[0\.0, 0\.0\]"),
        ("explore_rule", "distances.sum(axis=1) / distances.sum()", r"returned nan .* called with distances = array"),
        ("answer_extract", "text.split()[0]", "IndexError: .*called with text = empty text"),
        ("answer_verify", "float(answer) == float(gold)", "called with answer = 'I do not know.', gold = '"),
    ],
)
def test_a_function_that_fails_on_an_odd_text_only_is_reported_with_the_text(
    tmp_path: Path, point: str, body: str, expected: str
) -> None:
    path, changes = PLACES[point]
    source = f"{GOOD}def wrong({', '.join(POINTS[point].parameters)}):\n    return {body}\n"
    plan = plan_in(tmp_path, source, **changes)
    with pytest.raises(InputError) as error:
        try_functions(plan.config, splits_of(plan).train)
    found = " ".join(str(error.value).split())
    assert found.startswith(f"{path}: {tmp_path}/mine.py, line "), found
    assert re.search(expected, found), found


def test_verify_is_called_with_answers_that_the_own_extract_finds(tmp_path: Path) -> None:
    """It is not called with the odd texts themselves, which it never gets in a run."""
    source = (
        f"{GOOD}def extract(text):\n    return '5' if '5' in text else None\n\n"
        "def verify(answer, gold):\n    return float(answer) == float(gold)\n"
    )
    kind = {**NORMALIZE, "extract": "mine.py:extract", "verify": "mine.py:verify"}
    plan = plan_in(tmp_path, source, kinds={"x": kind})
    try_functions(plan.config, splits_of(plan).train)


def test_every_point_has_an_example_and_every_example_passes() -> None:
    used = set()
    for path in EXAMPLES.glob("*.yaml"):
        (plan,) = load_sweep(path).runs
        used |= {use.name for use in uses(plan.config)}
        try_functions(plan.config, splits_of(plan).train)
    assert used == set(POINTS)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("    return [{'question': str(i)} for i in range(count)]", r"mine\.py: row 1 of what make returned: no field"),
        ("    return [(1, 2)]", r"mine\.py, line 1: make returned tuple \(1, 2\) as row 1, not a mapping"),
        ("    return [{'question': 'same', 'answer': 1}] * count", "too few different problems: found 1 of 5"),
        ("    return [{'id': 'i', 'question': str(i), 'answer': 1} for i in range(9)]", "returned the id 'i' twice"),
        ("    return rows", r"mine\.py, line 2, in make: NameError"),
    ],
)
def test_a_problem_source_that_returns_something_else(tmp_path: Path, body: str, expected: str) -> None:
    made = {"source": "function", "function": "mine.py:make", "count": 5}
    problems = {"train": made, "evaluation": {"source": "generated", "count": 2}}
    plan = plan_in(tmp_path, f"def make(count, seed, split):\n{body}\n", problems=problems)
    with pytest.raises(CoreHpcError, match=expected):
        splits_of(plan)


def test_a_problem_source_gets_another_seed_for_every_split_and_call(tmp_path: Path) -> None:
    """Half of the rows of a call are repeated, so that a second call is needed."""
    source = (
        "def make(count, seed, split):\n"
        "    return [{'question': f'{seed} {i // 2}', 'answer': i, 'split': split} for i in range(count)]\n"
    )
    made = {"source": "function", "function": "mine.py:make", "count": 6}
    plan = plan_in(
        tmp_path, source, problems={"train": made, "evaluation": made}, protocol={"problems_per_iteration": 2}
    )
    splits = splits_of(plan)
    seeds = {name: {q.split()[0] for q in getattr(splits, name)["question"]} for name in ("train", "evaluation")}
    assert all(len(found) == 2 for found in seeds.values())
    assert seeds["train"].isdisjoint(seeds["evaluation"])
    assert [json.loads(m)["split"] for m in splits.train["metadata"]] == ["train"] * 6
    assert splits_of(plan).train.equals(splits.train)
