"""Problem sources: determinism, disjoint splits, and bad rows named with their line."""

import json
from pathlib import Path

import polars as pl
import pytest

from core_hpc.config import FileProblems, GeneratedProblems, ProblemsSection
from core_hpc.errors import InputError
from core_hpc.problems import make_splits, problems_of_iteration


def generated(count: int, seed: int = 0, **options: int) -> GeneratedProblems:
    return GeneratedProblems(source="generated", count=count, seed=seed, options=options)


def section(train: object, evaluation: object, num_examples: int = 0) -> ProblemsSection:
    return ProblemsSection(train=train, evaluation=evaluation, num_examples=num_examples)  # type: ignore[arg-type]


def test_generated_problems_are_right_distinct_and_deterministic() -> None:
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


def write(path: Path, *rows: object) -> str:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return str(path)


def jsonl(path: Path, *rows: object, **more: object) -> FileProblems:
    return FileProblems(source="jsonl", path=write(path, *rows), **more)  # type: ignore[arg-type]


GOOD = {"id": "a", "question": "1+1?", "answer": 2, "subject": "sums"}


def test_jsonl(tmp_path: Path) -> None:
    rows = [{**GOOD, "id": i, "question": f"{i}+1?", "answer": f"{i + 1:,}"} for i in range(1000, 1010)]
    splits = make_splits(section(jsonl(tmp_path / "t.jsonl", *rows, count=4, seed=3), generated(5)))
    assert splits.train.height == 4
    assert set(splits.train["gold"]) <= {str(i + 1) for i in range(1000, 1010)}
    assert json.loads(splits.train["metadata"][0]) == {"subject": "sums"}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([GOOD, {"id": "b", "question": "x"}], "line 2: no field 'answer'"),
        ([GOOD, {**GOOD, "id": "b", "question": " "}], "line 2: 'question' is empty"),
        ([GOOD, {**GOOD, "id": "b", "answer": None}], "line 2: 'answer' must be text or a number, not NoneType"),
        ([GOOD, '{"id": "b", "question": "x", "answer": NaN}'], "line 2: 'answer' is nan"),
        ([GOOD, {**GOOD, "id": "b", "answer": "many"}], "line 2: the answer 'many' is not a finite number"),
        ([GOOD, {**GOOD, "question": "y"}], "id 'a' of problem 2 is also that of problem 1"),
        ([GOOD, "{"], "line 2: not JSON"),
        (["[1]"], "line 1: not a JSON object"),
        ([], "has no problems"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        make_splits(section(jsonl(tmp_path / "t.jsonl", *rows), generated(5)))


def test_other_file_mistakes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        make_splits(section(FileProblems(source="jsonl", path=str(tmp_path / "none")), generated(5)))
    with pytest.raises(InputError, match="has 1 problems, the configuration asks for 2"):
        make_splits(section(jsonl(tmp_path / "t.jsonl", GOOD, count=2), generated(5)))
    with pytest.raises(InputError, match="share 1 question"):
        make_splits(section(jsonl(tmp_path / "t.jsonl", GOOD), jsonl(tmp_path / "e.jsonl", {**GOOD, "question": "1+1?  "})))
    with pytest.raises(InputError, match="num_examples"):
        make_splits(section(jsonl(tmp_path / "t.jsonl", GOOD), generated(5), 1))


def test_gsm8k_format(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": f"Work.\n#### {i},000"} for i in range(4)]
    source = FileProblems(source="gsm8k", path=write(tmp_path / "train.jsonl", *rows), count=2)
    splits = make_splits(section(source, generated(5), 2))
    assert set(splits.train["gold"]) <= {"0", "1000", "2000", "3000"}
    assert splits.examples.height == 2
    assert not set(splits.examples["question"]) & set(splits.train["question"])
    bad = FileProblems(source="gsm8k", path=write(tmp_path / "bad.jsonl", *rows, {"question": "q", "answer": "7"}))
    with pytest.raises(InputError, match=r"line 5: 'answer' has no '#### <number>'"):
        make_splits(section(bad, generated(5)))


def test_iterations_cover_every_problem_once_an_epoch() -> None:
    epoch = [problems_of_iteration(12, 4, i, seed=5) for i in (1, 2, 3)]
    assert sorted(r for rows in epoch for r in rows) == list(range(12))
    second = [problems_of_iteration(12, 4, i, seed=5) for i in (4, 5, 6)]
    assert sorted(r for rows in second for r in rows) == list(range(12))
    assert epoch != second
    assert problems_of_iteration(12, 4, 1, seed=6) != epoch[0]
    assert len(problems_of_iteration(13, 4, 3, seed=5)) == 4


GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"


@pytest.mark.skipif(not GSM8K.is_dir(), reason="GSM8K's own files are not beside the checkout (../shared/data/gsm8k)")
def test_gsm8k_itself() -> None:
    train = FileProblems(source="gsm8k", path=str(GSM8K / "train.jsonl"), count=1000)
    test = FileProblems(source="gsm8k", path=str(GSM8K / "test.jsonl"))
    splits = make_splits(section(train, test, 4))
    assert (splits.train.height, splits.evaluation.height, splits.examples.height) == (1000, 1319, 4)
    from core_hpc.answers import extract_answer

    for gold, metadata in splits.evaluation.select("gold", "metadata").iter_rows():
        assert extract_answer(json.loads(metadata)["solution"], "number") == gold
