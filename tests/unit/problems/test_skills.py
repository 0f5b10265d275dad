"""Skill families: worked solutions against formulas of their own, shares, seeds and held-out problems."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from core_hpc.answers.extract import extract_answer, verify_many
from core_hpc.common.errors import InputError
from core_hpc.config.problems import FileProblems, GeneratedProblems, ProblemsSection
from core_hpc.config.warmup import WarmupSection
from core_hpc.problems.generators import generate
from core_hpc.problems.skills import FAMILIES, OPERATORS
from core_hpc.problems.splits import make_splits, source_mistakes, warmup_problems
from core_hpc.protocol.hints import make_hint
from core_hpc.protocol.leaks import leak_of
from core_hpc.store.schema import LEAK_RESULT

FORMULAS = {
    "plus": lambda a, b, base: (a + b) % base,
    "times": lambda a, b, base: (a * b) % base,
    "zib": lambda a, b, base: (2 * a + b) % base,
    "minus": lambda a, b, base: (a - b) % base,
    "gap": lambda a, b, base: abs(a - b),
    "gorp": lambda a, b, base: abs(base - 1 - a - b),
}


def skills(count: int, seed: int = 0, **options: int) -> GeneratedProblems:
    return GeneratedProblems(source="generated", task="skills", count=count, seed=seed, options=options)


def gold_by_formula(question: str, base: int) -> int:
    """The answer of a question, read from its text."""
    expression = re.sub(r"[()]", "", question.removeprefix("Digit by digit: ").removesuffix(" = ?")).split()
    digits, rest = [int(d) for d in expression[0]], expression[1:]
    while rest:
        name, number, *rest = rest
        digits = [FORMULAS[name](a, int(b), base) for a, b in zip(digits, number, strict=True)]
    return int("".join(map(str, digits)))


@pytest.mark.parametrize("base", [10, 5])
def test_solutions_and_answers_of_every_family(base: int) -> None:
    source = skills(20 * len(FAMILIES), num_digits=3, base=base, **dict.fromkeys(FAMILIES, 1))
    items = generate(source, 720, "train", set())
    assert Counter(i.metadata["subject"] for i in items) == dict.fromkeys(FAMILIES, 20)
    assert set(FORMULAS) == set(OPERATORS)
    assert len({i.question for i in items}) == len(items)
    for item in items:
        assert int(item.gold) == gold_by_formula(item.question, base)
        assert not {str(digit) for digit in range(base, 10)} & set(item.question + item.gold)
        solution = str(item.metadata["solution"])
        for left, right in re.findall(r"([\d+*-]+)=(\d+)", solution):
            assert eval(left) == int(right), solution
        assert item.metadata["level"] == ("composite" if "_then_" in item.metadata["subject"] else "single")
    answers = [(extract_answer(str(i.metadata["solution"]), "number"), i.gold, "number") for i in items]
    assert set(verify_many(answers)) == {"correct"}


def test_a_hint_from_a_solution_keeps_the_reasoning_and_not_the_answer() -> None:
    for item in generate(skills(60, **dict.fromkeys(FAMILIES, 1)), 36, "train", set()):
        solution = str(item.metadata["solution"])
        hint = make_hint(
            solution, item.gold, "number", tokenize=list, detokenize="".join, max_tokens=1000, style="full"
        )
        assert hint is not None
        assert hint.strip() == solution.partition(" ####")[0]
        if int(item.gold) > 9:  # a number of one digit is the result of its last step
            assert leak_of(hint, item.gold, "number") != LEAK_RESULT, hint


def test_shares_seeds_and_problems_that_are_taken() -> None:
    source = skills(40, zib=3, gorp_then_plus=1)
    train = generate(source, 40, "train", set())
    assert Counter(i.metadata["subject"] for i in train) == {"zib": 30, "gorp_then_plus": 10}
    assert generate(source, 40, "train", set()) == train
    assert generate(skills(40, seed=1, zib=3, gorp_then_plus=1), 40, "train", set()) != train
    taken = {i.question for i in train}
    later = generate(source, 40, "train", set(taken))
    assert not taken & {i.question for i in later}
    assert json.dumps(dict(train[0].metadata))  # plain values


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"zab": 1}, "options.zab"),
        ({"zib": 0}, "options.zib"),
        ({"num_digits": 10}, "options.num_digits"),
        ({"base": 1}, "options.base"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], field: str) -> None:
    assert [name for name, _ in source_mistakes(skills(4, **options))] == [field]


def test_a_warm_up_has_no_held_out_problem_and_knows_what_is_hinted() -> None:
    # With one digit there are few questions, so a draw without care would repeat held-out ones.
    held_out = make_splits(ProblemsSection(train=skills(9, num_digits=1), evaluation=skills(60, num_digits=1, gap=1)))
    section = WarmupSection(problems=skills(20, num_digits=1, gap=1), hinted=[skills(10, num_digits=1, gap=1, zib=1)])
    questions = set(held_out.evaluation["question"])
    frame = warmup_problems(section, questions)
    assert not set(frame["question"]) & questions
    assert frame["problem_id"].n_unique() == 30
    assert [json.loads(m).get("hinted", False) for m in frame["metadata"]] == [False] * 20 + [True] * 10
    assert frame.equals(warmup_problems(section, questions))


def test_a_warm_up_from_a_file_needs_solutions(tmp_path: Path) -> None:
    rows = [
        {"id": f"p{i}", "question": f"What is {i} + 1?", "answer": i + 1, "solution": f"#### {i + 1}"} for i in range(4)
    ]
    path = tmp_path / "solved.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    section = WarmupSection(problems=FileProblems(source="jsonl", path=str(path)))
    assert warmup_problems(section, {"what is 2 +  1?"})["problem_id"].to_list() == ["p0", "p1", "p3"]
    unsolved = [{k: v for k, v in r.items() if k != "solution"} for r in rows]
    path.write_text("\n".join(json.dumps(r) for r in unsolved), encoding="utf-8")
    with pytest.raises(InputError, match="has no worked solutions"):
        warmup_problems(section, set())
