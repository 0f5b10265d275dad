"""The user's own problem files, and the problems that splits must not share."""

import codecs
import gzip
import hashlib
import json
import time
from pathlib import Path

import polars as pl
import pytest

from core_hpc.answers.extract import verify
from core_hpc.common.errors import InputError
from core_hpc.config.problems import FileProblems, GeneratedProblems, ProblemsSection
from core_hpc.problems.files import MAX_ROWS_VARIABLE, own_row, read_items
from core_hpc.problems.splits import make_splits, problems_of_iteration
from core_hpc.store.schema import CORRECT


def generated(count: int, seed: int = 0, **options: int) -> GeneratedProblems:
    return GeneratedProblems(source="generated", count=count, seed=seed, options=options)


def section(train: object, evaluation: object, num_examples: int = 0, **more: object) -> ProblemsSection:
    return ProblemsSection(train=train, evaluation=evaluation, num_examples=num_examples, **more)  # type: ignore[arg-type]


# --- the user's own files ------------------------------------------------------------------------


def write(path: Path, *rows: object) -> str:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return str(path)


def jsonl(path: Path, *rows: object, **more: object) -> FileProblems:
    return FileProblems(source="jsonl", path=write(path, *rows), **more)  # type: ignore[arg-type]


GOOD = {"id": "a", "question": "1+1?", "answer": 2, "subject": "sums"}


def test_hostile_lines_are_bad_rows(tmp_path: Path) -> None:
    def nested(depth: int) -> str:
        return json.dumps(GOOD)[:-1] + ', "more": ' + "[" * depth + "]" * depth + "}"

    rows = [nested(40), nested(900), nested(100_000), json.dumps(GOOD)[:-1] + f', "more": {"9" * 5000}}}']
    source = jsonl(tmp_path / "p.jsonl", *rows)
    with pytest.raises(InputError) as caught:
        make_splits(section(source, generated(2)))
    _, *found = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in found] == ["- line 2", "- line 3", "- line 4"]
    assert "more than 50 lists or objects inside each other" in found[0]


def test_a_deep_value_of_a_parquet_file_is_a_bad_row(tmp_path: Path) -> None:
    value: object = 1
    for _ in range(60):
        value = [value]
    pl.DataFrame([{**GOOD, "more": value}]).write_parquet(tmp_path / "p.parquet")
    with pytest.raises(InputError, match="row 1: more than 50 lists"):
        read_items(tmp_path / "p.parquet", "parquet", own_row("number"))


def test_a_parquet_file_of_150_million_rows_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, num_rows = tmp_path / "p.parquet", 150_000_000
    pl.LazyFrame({"x": [1]}).select(pl.repeat(1, num_rows, dtype=pl.Int8).alias("id")).sink_parquet(path)
    monkeypatch.setattr(pl, "read_parquet", lambda _: pytest.fail("was read"))
    started = time.process_time()
    with pytest.raises(InputError) as caught:
        read_items(path, "parquet", own_row("number"))
    assert time.process_time() - started < 5
    assert "150,000,000 rows, but at most 1,000,000 are read" in str(caught.value)
    assert "sink_parquet" in str(caught.value)
    assert f"export {MAX_ROWS_VARIABLE}=150000000" in str(caught.value)


def test_the_limit_of_rows_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**GOOD, "id": i, "question": f"{i}+1?"} for i in range(5)]
    pl.DataFrame(rows).write_parquet(tmp_path / "p.parquet")
    pl.DataFrame(rows).select("id", "question", "answer").write_csv(tmp_path / "p.csv")
    write(tmp_path / "p.jsonl", *rows)
    for limit, accepted in (("4", False), ("5", True)):
        monkeypatch.setenv(MAX_ROWS_VARIABLE, limit)
        for container in ("parquet", "csv", "jsonl"):
            path = tmp_path / f"p.{container}"
            if accepted:
                assert len(read_items(path, container, own_row("number"))) == 5
                continue
            with pytest.raises(InputError, match="at most 4 are read"):
                read_items(path, container, own_row("number"))
    monkeypatch.setenv(MAX_ROWS_VARIABLE, "many")
    with pytest.raises(InputError, match="'many' is not a number of rows"):
        read_items(tmp_path / "p.csv", "csv", own_row("number"))


def test_jsonl(tmp_path: Path) -> None:
    rows = [{**GOOD, "id": i, "question": f"{i}+1?", "answer": f"{i + 1:,}"} for i in range(1000, 1010)]
    splits = make_splits(section(jsonl(tmp_path / "t.jsonl", *rows, count=4, seed=3), generated(5)))
    assert splits.train.height == 4
    assert set(splits.train["gold"]) <= {str(i + 1) for i in range(1000, 1010)}
    assert json.loads(splits.train["metadata"][0]) == {"subject": "sums"}


def test_parquet_gives_the_same_problems_as_jsonl(tmp_path: Path) -> None:
    rows = [
        {"id": str(i), "question": f"How much is {i} + 1?", "answer": float(i + 1), "level": i, "more": [i, None]}
        for i in range(9)
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "t.parquet")
    parquet = FileProblems(source="parquet", path=str(tmp_path / "t.parquet"))
    ours = make_splits(section(parquet, generated(5))).train
    assert ours.equals(make_splits(section(jsonl(tmp_path / "t.jsonl", *rows), generated(5))).train)
    assert ours["gold"].to_list() == [str(i + 1) for i in range(9)]
    assert json.loads(ours["metadata"][3]) == {"level": "3", "more": [3, None]}


def test_rows_without_an_id_get_one_from_their_content(tmp_path: Path) -> None:
    rows = [{"question": "1+1?", "answer": 2}, {"id": "b", "question": "2+1?", "answer": 3}]
    rows += [{"question": "Which?", "answer": "x", "answer_kind": "text", "options": o} for o in (["x"], ["y"])]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for name, mark in (("plain.jsonl", b""), ("marked.jsonl", codecs.BOM_UTF8)):
        (tmp_path / name).write_bytes(mark + text.encode())
    pl.DataFrame(rows[:2]).write_parquet(tmp_path / "p.parquet")
    items = read_items(tmp_path / "plain.jsonl", "jsonl", own_row("number"))
    ids = [item.problem_id for item in items]
    assert (ids[0], ids[1]) == ("q-" + hashlib.sha256(b"1+1?").hexdigest()[:12], "b")
    assert len(set(ids)) == 4
    assert items == read_items(tmp_path / "marked.jsonl", "jsonl", own_row("number"))
    assert [i.problem_id for i in read_items(tmp_path / "p.parquet", "parquet", own_row("number"))] == ids[:2]
    (tmp_path / "twice.jsonl").write_text(text.splitlines(keepends=True)[0] * 2, encoding="utf-8")
    with pytest.raises(InputError, match=r"line 2: line 1 has the same id .*remove one, or give both an 'id'"):
        read_items(tmp_path / "twice.jsonl", "jsonl", own_row("number"))
    (tmp_path / "long.jsonl").write_text(json.dumps({**rows[0], "big": {"n": [10**40, 7]}}), encoding="utf-8")
    (item,) = read_items(tmp_path / "long.jsonl", "jsonl", own_row("number"))
    assert item.metadata["big"] == {"n": [str(10**40), 7]}, "Polars reads no JSON with such a number"


@pytest.mark.parametrize(
    ("kind", "first", "again", "accepted"),
    [
        ("number", "4", "5", False),
        ("number", "1/2", "0.50", True),
        ("text", "New York", "new  york", True),
        ("text", "Paris", "Rome", False),
        ("latex", "(x+1)^2", "x^2+2x+1", True),
        ("latex", "x+1", "x+2", False),
    ],
)
def test_a_question_has_one_answer_in_a_file(kind: str, first: str, again: str, accepted: bool, tmp_path: Path) -> None:
    rows = [
        {"id": "a", "question": "How much?", "answer": first},
        {"id": "b", "question": "How many?", "answer": "7"},
        {"id": "c", "question": " How  much?", "answer": again},
    ]
    source = jsonl(tmp_path / "p.jsonl", *rows, answer_kind=kind)
    if accepted:
        assert make_splits(section(source, generated(2), instruction="Solve.")).train.height == 3
        return
    with pytest.raises(InputError) as caught:
        make_splits(section(source, generated(2), instruction="Solve."))
    assert str(caught.value) == (
        f"{source.path}, line 3: the answer is {again!r}, but line 1 has the same question with the answer {first!r}, "
        "and at most one of them can be right; correct the wrong answer, or remove its row"
    )


def test_a_question_without_an_id_is_no_reason_to_keep_two_answers(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "p.jsonl", *({"question": "1+1?", "answer": a} for a in (2, 3)))
    with pytest.raises(InputError, match="line 2: the answer is '3', but line 1 has the same question"):
        make_splits(section(source, generated(2)))


def test_options_may_be_a_mapping_from_letters(tmp_path: Path) -> None:
    """Also in Parquet, where the options that a row lacks are null."""
    question = {"id": "a", "question": "Prime? A) 4 B) 7", "answer": "B", "answer_kind": "letter"}
    rows = [
        {**question, "options": {"A": "4", "B": "7"}},
        {
            **question,
            "id": "b",
            "question": "Prime? a) 4 b) 6 c) 7",
            "answer": "C",
            "options": {"a": "4", "b": "6", "c": "7"},
        },
    ]
    other = {**question, "id": "c", "options": {"text": ["4", "7"], "label": ["1", "2"]}}
    write(tmp_path / "t.jsonl", *rows, other)
    assert [i.gold for i in read_items(tmp_path / "t.jsonl", "jsonl", own_row("number"))] == ["B", "C", "B"]
    same = [
        {**row, "options": dict.fromkeys("ABC") | {k.upper(): v for k, v in row["options"].items()}} for row in rows
    ]
    pl.DataFrame(same).write_parquet(tmp_path / "t.parquet")
    assert [i.gold for i in read_items(tmp_path / "t.parquet", "parquet", own_row("number"))] == ["B", "C"]


def test_answer_kinds_of_a_source_and_of_a_row(tmp_path: Path) -> None:
    rows = [
        {"id": "l", "question": "q1", "answer": r"$\dfrac12$"},
        {"id": "n", "question": "q2", "answer": "1,000", "answer_kind": "number"},
        {"id": "i", "question": "q3", "answer": "007", "answer_kind": "integer"},
        {"id": "c", "question": "q4 A) X  1 B) 4", "answer": "(b)", "answer_kind": "letter", "options": ["x 1", 4.0]},
        {"id": "t", "question": "q5", "answer": " New  York ", "answer_kind": "text"},
        {"id": "d", "question": "q6", "answer": "x", "answer_kind": None},
    ]
    train = make_splits(section(jsonl(tmp_path / "t.jsonl", *rows, answer_kind="latex"), generated(5))).train
    assert train["answer_kind"].to_list() == ["latex", "number", "integer", "letter", "text", "latex"]
    assert train["gold"].to_list() == [r"\frac{1}{2}", "1000", "7", "B", "New York", "x"]
    for gold, kind in train.select("gold", "answer_kind").iter_rows():
        assert verify(gold, gold, kind) == CORRECT


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([GOOD, {"id": "b", "question": "x"}], "line 2: no field 'answer'"),
        ([GOOD, {**GOOD, "id": "b", "question": " "}], "line 2: 'question' is empty"),
        ([GOOD, {**GOOD, "id": ""}], "line 2: 'id' is empty"),
        ([GOOD, {**GOOD, "id": "b", "answer": None}], "line 2: 'answer' is null"),
        ([GOOD, {**GOOD, "id": True}], "line 2: 'id' must be text or a number, not bool"),
        ([GOOD, '{"id": "b", "question": "x", "answer": NaN}'], "line 2: 'answer' is nan"),
        ([GOOD, '{"id": "b", "question": "x", "answer": 1e999}'], "line 2: 'answer' is inf"),
        ([GOOD, {**GOOD, "id": "b", "answer": "many"}], "line 2: the answer 'many' is not a finite number"),
        ([GOOD, {**GOOD, "question": "y"}], "line 2: line 1 has the same id 'a'"),
        ([GOOD, "", {**GOOD, "question": "y"}], "line 3: line 1 has the same id 'a'"),
        ([GOOD, '{"id": "b", '], r"line 2: not JSON \(.* at column 12\)"),
        ([GOOD, "{"], r"line 2: only \{, but JSON Lines has a whole object in each line"),
        (["[", "]"], r"line 1: only \[, but JSON Lines has a whole object in each line"),
        ([GOOD, "[" * 100_000], "line 2: JSON that cannot be parsed"),
        ([GOOD, '{"id": ' + "9" * 5000 + "}"], "line 2: JSON that cannot be parsed"),
        (["[1]"], "line 1: not a JSON object"),
        ([], "the file has no problems"),
        ([GOOD, '{"id": "b", "question": "\\ud800", "answer": 1}'], "line 2: 'question' has half a character"),
        (
            [{**GOOD, "answer_kind": "colour"}],
            "line 1: unknown answer_kind 'colour'; known: number, integer, latex, letter, text",
        ),
        (
            [{**GOOD, "answer_kind": "integer", "answer": 1000}],
            "line 1: the answer '1000' is not an integer from 0 to 999",
        ),
        (
            [{**GOOD, "answer_kind": "latex", "answer": "\\frac{1}{2"}],
            "line 1: the answer .* is not LaTeX with matching braces",
        ),
        ([{**GOOD, "answer_kind": "letter", "answer": "K"}], "line 1: the answer 'K' is not a letter from A to J"),
        (
            [{**GOOD, "answer_kind": "letter", "answer": "C", "options": ["x", "y"]}],
            "line 1: the answer C is not one of its 2 options",
        ),
        (
            [{**GOOD, "question": "Prime? A) 4", "answer_kind": "letter", "answer": "B", "options": ["4", 7, "9"]}],
            "line 1: the question does not have the option '7', and prompts show the question only; write the options "
            r"into the question, as 'A\) 4'",
        ),
        (
            [{**GOOD, "answer_kind": "letter", "answer": "C", "options": {"A": "x", "B": "y"}}],
            "line 1: the answer C is not one of its options A, B",
        ),
        (
            [{**GOOD, "question": "Prime? A) 4", "answer_kind": "letter", "answer": "B", "options": {"A": 4, "B": 7}}],
            "line 1: the question does not have the option '7'",
        ),
        (
            [{**GOOD, "answer_kind": "text", "answer": "..."}],
            "line 1: the answer '...' is not text .* more than punctuation",
        ),
        (
            [{**GOOD, "answer_kind": "text", "answer": ">"}],
            "line 1: the answer '>' is not text .* more than punctuation",
        ),
        ([{**GOOD, "level": [1]}], "line 1: 'level' must be text or a number, not list"),
    ],
)
def test_bad_rows_are_reported_by_number(tmp_path: Path, rows: list[object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        make_splits(section(jsonl(tmp_path / "t.jsonl", *rows), generated(5)))


def test_up_to_ten_bad_rows_are_reported_at_once(tmp_path: Path) -> None:
    rows = [{**GOOD, "id": i, "question": f"q{i}", "answer": "many" if i % 2 else i} for i in range(40)]
    with pytest.raises(InputError) as caught:
        make_splits(section(jsonl(tmp_path / "t.jsonl", *rows, "{"), generated(5)))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("t.jsonl: 21 bad rows")
    assert [line.split(":")[0].strip(" -") for line in lines[1:11]] == [f"line {n}" for n in range(2, 22, 2)]
    assert lines[11:] == ["  ... and 11 more"]


@pytest.mark.parametrize(
    ("answer", "expected"), [(float("nan"), "row 2: 'answer' is nan"), (None, "row 2: 'answer' is null")]
)
def test_bad_rows_of_parquet_are_reported_by_number(tmp_path: Path, answer: float | None, expected: str) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame({"id": ["a", "b"], "question": ["x", "y"], "answer": [1.0, answer]}).write_parquet(path)
    with pytest.raises(InputError, match=expected):
        make_splits(section(FileProblems(source="parquet", path=str(path)), generated(5)))


def test_decimals_of_parquet_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    answers = pl.Series(["1.50", "-2.00"]).cast(pl.Decimal(10, 2))
    pl.DataFrame({"question": ["x", "y"], "answer": answers}).write_parquet(path)
    train = make_splits(section(FileProblems(source="parquet", path=str(path)), generated(5))).train
    assert train["gold"].to_list() == ["1.5", "-2"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (gzip.compress(b"{}", mtime=0), "is compressed with gzip; unpack it first, for example with gunzip"),
        (
            f"{json.dumps(GOOD)}\n{{'größe': 1}}\n".encode("latin-1"),
            r"is not UTF-8 \(line 2, byte 5\); save it as UTF-8",
        ),
        (b"PAR1\xff", "is a Parquet file, not text"),
    ],
)
def test_a_file_that_is_no_text_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"t\.jsonl {expected}"):
        make_splits(section(FileProblems(source="jsonl", path=str(path)), generated(5)))


def test_metadata_is_always_readable_json(tmp_path: Path) -> None:
    row = (
        '{"id": "a", "question": "x", "answer": 1, "score": NaN, "deep": [{"x": -Infinity}], '
        '"odd": "\\ud800z", "subject": null}'
    )
    (metadata,) = make_splits(section(jsonl(tmp_path / "t.jsonl", row), generated(5))).train["metadata"]
    assert json.loads(metadata, parse_constant=pytest.fail) == {
        "score": None,
        "deep": [{"x": None}],
        "odd": "?z",
        "subject": None,
    }


def test_other_file_mistakes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        make_splits(section(FileProblems(source="jsonl", path=str(tmp_path / "none")), generated(5)))
    with pytest.raises(InputError, match="has 1 problems, but the configuration asks for 2"):
        make_splits(section(jsonl(tmp_path / "t.jsonl", GOOD, count=2), generated(5)))
    with pytest.raises(InputError, match="num_examples"):
        make_splits(section(jsonl(tmp_path / "t.jsonl", GOOD), generated(5), 1))
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"bad\.parquet: cannot be read"):
        make_splits(section(FileProblems(source="parquet", path=str(tmp_path / "bad.parquet")), generated(5)))
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"bad\.jsonl is UTF-16; save it as UTF-8"):
        make_splits(section(FileProblems(source="jsonl", path=str(tmp_path / "bad.jsonl")), generated(5)))


# --- problems that training and evaluation must not share ----------------------------------------


WORDS = (
    "A farmer has seven cows and sells two of them to his neighbour for ninety coins each before the winter comes "
    "to the valley"
)


def question(i: int, text: str = WORDS) -> dict[str, object]:
    return {
        "id": f"q{i}",
        "question": f"{text} {' '.join(f'w{i}x{j}' for j in range(24))}",
        "answer": i,
        "solution": f"#### {i}",
    }


def test_a_shared_question_is_an_error(tmp_path: Path) -> None:
    train, evaluation = (
        jsonl(tmp_path / "t.jsonl", GOOD),
        jsonl(tmp_path / "e.jsonl", {**GOOD, "id": "z", "question": "1+1?  "}),
    )
    for choice in ("error", "allow"):
        with pytest.raises(InputError, match=r"share 1 question.*for example a of training and z of evaluation"):
            make_splits(section(train, evaluation, near_duplicates=choice))


def test_near_duplicates_are_an_error_or_dropped_or_kept(tmp_path: Path) -> None:
    rows = [question(i) for i in range(6)]
    changed = {**question(3), "id": "e3", "question": str(question(3)["question"]).replace("seven", "eight")}
    train, evaluation = (
        jsonl(tmp_path / "t.jsonl", *rows),
        jsonl(tmp_path / "e.jsonl", question(7), changed, {**question(5), "id": "e5"}),
    )
    with pytest.raises(InputError, match="share 1 question"):
        make_splits(section(train, evaluation))
    dropped = make_splits(section(train, evaluation, near_duplicates="drop"))
    assert dropped.train["problem_id"].to_list() == ["q0", "q1", "q2", "q4"]
    assert dropped.evaluation["problem_id"].to_list() == ["q7", "e3", "e5"]
    evaluation = jsonl(tmp_path / "e.jsonl", question(7), changed)
    with pytest.raises(
        InputError, match=r"1 training problem\(s\) are nearly .*q3 of training and e3 of evaluation.*share 9\d%"
    ):
        make_splits(section(train, evaluation))
    assert make_splits(section(train, evaluation, near_duplicates="allow")).train.height == 6


def test_two_draws_from_one_file_are_disjoint(tmp_path: Path) -> None:
    rows = [question(i) for i in range(20)]
    for choice in ("error", "drop"):
        one = jsonl(tmp_path / "t.jsonl", *rows, count=13, seed=1)
        splits = make_splits(section(one, jsonl(tmp_path / "t.jsonl", *rows, count=7, seed=1), near_duplicates=choice))
        assert set(splits.train["problem_id"]) | set(splits.evaluation["problem_id"]) == {f"q{i}" for i in range(20)}
        with pytest.raises(InputError, match=r"has 20 problems, (1\d?|8) of them are used"):
            make_splits(section(one, jsonl(tmp_path / "t.jsonl", *rows, count=8, seed=1), near_duplicates=choice))
    with pytest.raises(InputError, match="share 13 question"):
        make_splits(section(one, jsonl(tmp_path / "t.jsonl", *rows)))


def test_worked_examples_are_in_no_split_and_not_near_a_held_out_problem(tmp_path: Path) -> None:
    near = {**question(9), "id": "near", "question": str(question(9)["question"]).replace("seven", "eight")}
    train = jsonl(tmp_path / "t.jsonl", near, *[question(i) for i in range(4)], count=2, seed=0)
    splits = make_splits(section(train, jsonl(tmp_path / "e.jsonl", question(9)), 2, near_duplicates="drop"))
    names = {*splits.train["problem_id"], *splits.examples["problem_id"]}
    assert names == {"q0", "q1", "q2", "q3"}


def test_near_duplicates_are_allowed_among_generated_problems() -> None:
    splits = make_splits(section(generated(60, num_terms=30), generated(60, seed=2, num_terms=30)))
    assert splits.train.height == splits.evaluation.height == 60


# --- iterations ----------------------------------------------------------------------------------


def test_iterations_cover_every_problem_once_per_epoch() -> None:
    epoch = [problems_of_iteration(12, 4, i, seed=5) for i in (1, 2, 3)]
    assert sorted(r for rows in epoch for r in rows) == list(range(12))
    second = [problems_of_iteration(12, 4, i, seed=5) for i in (4, 5, 6)]
    assert sorted(r for rows in second for r in rows) == list(range(12))
    assert epoch != second
    assert problems_of_iteration(12, 4, 1, seed=6) != epoch[0]
    assert len(problems_of_iteration(13, 4, 3, seed=5)) == 4
