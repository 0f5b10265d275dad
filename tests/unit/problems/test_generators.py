"""Generated problems: correct, distinct, and equal in every process."""

import json
import subprocess
import sys
from importlib.util import find_spec

import polars as pl
import pytest

from core_hpc.answers.extract import extract_answer
from core_hpc.common.errors import InputError
from core_hpc.config.problems import GeneratedProblems, GymProblems, ProblemsSection
from core_hpc.problems import generators
from core_hpc.problems.splits import make_splits, source_mistakes


def generated(count: int, seed: int = 0, **options: int) -> GeneratedProblems:
    return GeneratedProblems(source="generated", count=count, seed=seed, options=options)


def section(train: object, evaluation: object, num_examples: int = 0, **more: object) -> ProblemsSection:
    return ProblemsSection(train=train, evaluation=evaluation, num_examples=num_examples, **more)  # type: ignore[arg-type]


def test_generated_problems_are_correct_distinct_and_deterministic() -> None:
    splits = make_splits(section(generated(200, num_terms=4), generated(100, seed=0, num_terms=4), 3))
    everything = pl.concat([splits.train, splits.evaluation, splits.examples])
    assert everything["question"].n_unique() == everything["problem_id"].n_unique() == 303
    for question, gold, metadata in everything.select("question", "gold", "metadata").iter_rows():
        expression = question.removeprefix("What is ").removesuffix("?")
        assert set(expression) <= set("0123456789 +-")
        assert eval(expression) == int(gold) >= 0
        solution = json.loads(metadata)["solution"]
        assert solution.endswith(f" #### {gold}")
        for step in solution.partition(" ####")[0].split("."):
            left, _, right = step.partition("=")
            assert not step.strip() or eval(left) == int(right)
    again = make_splits(section(generated(200, num_terms=4), generated(100, seed=0, num_terms=4), 3))
    assert again.train.equals(splits.train)
    assert again.evaluation.equals(splits.evaluation)
    other = make_splits(section(generated(200, seed=1, num_terms=4), generated(100, num_terms=4)))
    assert not other.train.equals(splits.train)


def test_too_few_different_problems() -> None:
    with pytest.raises(InputError, match="too few different problems"):
        make_splits(section(generated(50, num_terms=2, max_value=3, subtract=0), generated(5)))


# --- reasoning-gym -------------------------------------------------------------------------------


needs_gym = pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed (extra gym)")


def gym(task: str, count: int, seed: int = 0, **more: object) -> GymProblems:
    return GymProblems(source="reasoning_gym", task=task, count=count, seed=seed, **more)  # type: ignore[arg-type]


@needs_gym
def test_reasoning_gym_problems_are_correct_distinct_and_deterministic() -> None:
    source = gym("chain_sum", 30, options={"min_terms": 2, "max_terms": 3, "max_digits": 2})
    splits = make_splits(section(source, gym("chain_sum", 20, options=source.options)))
    everything = pl.concat([splits.train, splits.evaluation])
    assert everything["question"].n_unique() == 50
    for question_text, gold in everything.select("question", "gold").iter_rows():
        assert eval(question_text.rpartition(": ")[2].removesuffix("=")) == int(gold)
    assert json.loads(splits.train["metadata"][4]) == {
        "data_set": "chain_sum",
        "subject": "arithmetic",
        "source_index": 4,
    }
    again = generators.generate(source, 30, "train", set())
    assert [item.question for item in again] == splits.train["question"].to_list()


@needs_gym
def test_a_task_that_depends_on_the_order_of_sets_is_equal_in_every_process() -> None:
    code = """
        from core_hpc.config.problems import GymProblems
        from core_hpc.problems.generators import generate
        source = GymProblems(source="reasoning_gym", task="isomorphic_strings", count=5, answer_kind="text")
        print([item.question for item in generate(source, 5, "train", set())])
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, env={"PYTHONHASHSEED": s, "PATH": ""}
        ).stdout
        for s in ("1", "2")
    }
    assert len(outputs) == 1


@needs_gym
def test_reasoning_gym_examples_and_kinds() -> None:
    splits = make_splits(section(gym("gsm_symbolic", 3), generated(5), 2))
    assert all(
        extract_answer(json.loads(m)["solution"], "number") == g
        for m, g in splits.examples.select("metadata", "gold").iter_rows()
    )
    with pytest.raises(InputError, match="chain_sum has no worked solutions"):
        make_splits(section(gym("chain_sum", 3), generated(5), 1))
    with pytest.raises(
        InputError, match=r"task word_sorting: the answer .* is not a finite number; set its answer_kind"
    ):
        make_splits(section(gym("word_sorting", 2), generated(5)))


@needs_gym
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (gym("chain_sums", 2), "task chain_sums with its defaults: there is no such task; similar names: chain_sum"),
        (gym("chain_sum", 2, options={"terms": 3}), "task chain_sum with .'terms': 3.: TypeError: .*'terms'"),
        (gym("chain_sum", 2, options={"min_terms": 9}), "AssertionError: max_terms must be >= min_terms"),
        (
            gym("chain_sum", 30, options={"min_terms": 1, "max_terms": 1, "max_digits": 1}),
            "too few different problems: found 10 of 30",
        ),
    ],
)
def test_options_that_reasoning_gym_rejects_are_an_input_error(source: GymProblems, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        make_splits(section(source, generated(5)))


@needs_gym
def test_reserved_options_of_reasoning_gym_and_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_mistakes(gym("chain_sum", 2, options={"seed": 3})) == [
        ("options.seed", "is set from the seed and count of the source; leave it out")
    ]
    monkeypatch.setattr(generators, "find_spec", lambda name: None)
    assert source_mistakes(gym("chain_sum", 2)) == [
        ("source", "reasoning_gym is not installed; run: pip install 'core_hpc[gym]'")
    ]
