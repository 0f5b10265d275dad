"""Published data sets, from files and from the cache of huggingface, without a network."""

import csv
import json
import socket
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core_hpc.answers.extract import extract_answer
from core_hpc.common import hub
from core_hpc.common.errors import InputError
from core_hpc.config.problems import PROBLEM_SOURCES, DataSetProblems, GeneratedProblems, ProblemsSection
from core_hpc.config.run import RunConfig
from core_hpc.problems import datasets
from core_hpc.problems.sets import all_problems
from core_hpc.problems.splits import Splits, make_splits, source_mistakes
from tests.unit.config.test_sweep import MINIMAL


def generated(count: int, seed: int = 0, **options: int) -> GeneratedProblems:
    return GeneratedProblems(source="generated", count=count, seed=seed, options=options)


def section(train: object, evaluation: object, num_examples: int = 0, **more: object) -> ProblemsSection:
    # There is no default instruction if training and evaluation have different kinds of answers.
    fields: dict[str, Any] = {"instruction": "Solve it.", "num_examples": num_examples, **more}
    return ProblemsSection(train=train, evaluation=evaluation, **fields)  # type: ignore[arg-type]


def write(path: Path, *rows: object) -> str:
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return str(path)


def data_set(source: str, path: Path, **more: object) -> DataSetProblems:
    return DataSetProblems(source=source, path=str(path), **more)  # type: ignore[arg-type]


def train_of(source: DataSetProblems, **more: object) -> list[dict[str, Any]]:
    frame = make_splits(section(source, generated(5), **more)).train
    return [{**row, "metadata": json.loads(row["metadata"])} for row in frame.to_dicts()]


def test_gsm8k_format(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": f"Work.\n#### {i},000"} for i in range(4)]
    write(tmp_path / "train.jsonl", *rows)
    splits = make_splits(section(data_set("gsm8k", tmp_path / "train.jsonl", count=2), generated(5), 2))
    assert set(splits.train["gold"]) <= {"0", "1000", "2000", "3000"}
    assert splits.examples.height == 2
    assert not set(splits.examples["question"]) & set(splits.train["question"])
    assert json.loads(splits.train["metadata"][0])["data_set"] == "gsm8k"
    write(tmp_path / "bad.jsonl", *rows, {"question": "q", "answer": "7"})
    with pytest.raises(InputError, match=r"line 5: 'answer' has no '#### <number>'"):
        make_splits(section(data_set("gsm8k", tmp_path / "bad.jsonl"), generated(5)))
    pl.DataFrame(rows).write_parquet(tmp_path / "train.parquet")
    assert train_of(data_set("gsm8k", tmp_path / "train.parquet")) == train_of(
        data_set("gsm8k", tmp_path / "train.jsonl")
    )


def test_math_formats(tmp_path: Path) -> None:
    rows = [
        {
            "problem": "Half?",
            "level": "Level 5",
            "type": "Algebra",
            "solution": r"It is \boxed{1}, no, $\boxed{\dfrac{1}{2}}$.",
        },
        {"problem": "Nine?", "level": "Level ?", "type": "Number Theory", "solution": r"So $\boxed 9$."},
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "train.parquet")
    first, second = train_of(data_set("math", tmp_path / "train.parquet"))
    assert (first["problem_id"], first["gold"], first["answer_kind"]) == ("train-00001", r"\frac{1}{2}", "latex")
    assert first["metadata"] == {
        "data_set": "math",
        "subject": "Algebra",
        "level": "5",
        "solution": rows[0]["solution"],
    }
    assert second["gold"] == "9"
    row = {
        "problem": "p",
        "solution": "none",
        "answer": r"\frac34",
        "subject": "Algebra",
        "level": 2,
        "unique_id": "test/algebra/1.json",
    }
    (found,) = train_of(data_set("math", Path(write(tmp_path / "test.jsonl", row))))
    assert (found["problem_id"], found["gold"]) == ("test/algebra/1.json", r"\frac{3}{4}")
    assert found["metadata"]["level"] == "2"
    with pytest.raises(InputError, match=r"line 1: 'solution' has no \\boxed"):
        train_of(data_set("math", Path(write(tmp_path / "bad.jsonl", {"problem": "p", "solution": "It is 7."}))))


def write_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_aime_formats(tmp_path: Path) -> None:
    row = {
        "ID": "1983-1",
        "Year": 1983,
        "Problem Number": 1,
        "Question": "Find $m+n$,\nplease.",
        "Answer": "060",
        "Part": "",
    }
    (found,) = train_of(data_set("aime", write_csv(tmp_path / "a.csv", [row])))
    assert (found["problem_id"], found["question"]) == ("1983-1", row["Question"])
    assert (found["gold"], found["answer_kind"]) == ("60", "integer")
    assert found["metadata"] == {"data_set": "aime", "year": "1983", "problem number": "1"}
    pl.DataFrame({"id": [60], "problem": ["p"], "solution": ["s"], "answer": ["204"], "year": [2024]}).write_parquet(
        tmp_path / "b.parquet"
    )
    (found,) = train_of(data_set("aime", tmp_path / "b.parquet"))
    assert (found["problem_id"], found["gold"]) == ("60", "204")
    with pytest.raises(InputError, match=r"row 1: the answer '1024' is not an integer from 0 to 999"):
        train_of(data_set("aime", write_csv(tmp_path / "c.csv", [{**row, "Answer": "1024"}])))


def gpqa_row(i: int) -> dict[str, object]:
    wrong = {f"Incorrect Answer {k}": f"wrong {k} of {i}" for k in (1, 2, 3)}
    return {
        "Record ID": f"rec{i}",
        "Question": f"What is  {i}?\nChoose.",
        "Correct Answer": f"right {i}\n",
        **wrong,
        "High-level domain": "Physics",
        "Subdomain": "Optics",
        "Writer's Difficulty Estimate": "Hard",
        "Explanation": "So.",
    }


def test_gpqa_options_are_shuffled_by_the_seed(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "gpqa_main.csv", [gpqa_row(i) for i in range(60)])
    found = train_of(data_set("gpqa", path))
    assert found == train_of(data_set("gpqa", path))
    for i, row in enumerate(found):
        stem, options = row["question"].split("\n\n")
        shown = dict(line.split(") ") for line in options.splitlines())
        assert stem == f"What is  {i}?\nChoose."
        assert sorted(shown) == ["A", "B", "C", "D"]
        assert sorted(shown.values()) == sorted([f"right {i}", *(f"wrong {k} of {i}" for k in (1, 2, 3))])
        assert shown[row["gold"]] == f"right {i}"
        assert (row["problem_id"], row["answer_kind"]) == (f"rec{i}", "letter")
        assert row["metadata"]["solution"] == f"So.\n#### {row['gold']}"
    assert {k: found[0]["metadata"][k] for k in ("data_set", "subject", "level", "subdomain")} == {
        "data_set": "gpqa",
        "subject": "Physics",
        "level": "Hard",
        "subdomain": "Optics",
    }
    golds = [row["gold"] for row in found]
    # 15 of 60 draws are expected; the probability of a count outside these bounds is below 1e-3.
    assert all(5 <= golds.count(letter) <= 25 for letter in "ABCD")
    other = [row["gold"] for row in train_of(data_set("gpqa", path, seed=1))]
    assert 5 <= sum(a == b for a, b in zip(golds, other, strict=True)) <= 30


def test_the_same_options_in_another_order_are_the_same_problem(tmp_path: Path) -> None:
    main = data_set("gpqa", write_csv(tmp_path / "main.csv", [gpqa_row(i) for i in range(10)]), seed=1)
    diamond = data_set("gpqa", write_csv(tmp_path / "diamond.csv", [gpqa_row(i) for i in range(3)]), seed=2)
    with pytest.raises(InputError, match="share 3 question"):
        make_splits(section(main, diamond))
    assert make_splits(section(main, diamond, near_duplicates="drop")).train.height == 7
    stem = {"Question": "Which is true?"}
    first, second = gpqa_row(1) | stem, gpqa_row(2) | stem
    one, other = (data_set("gpqa", write_csv(tmp_path / f"{row['Record ID']}.csv", [row])) for row in (first, second))
    splits = make_splits(section(one, other))
    assert splits.train.height == splits.evaluation.height == 1


def gpqa_source(tmp_path: Path, num_rows: int, **more: object) -> dict[str, Any]:
    """The first problems of GPQA; another number of them has another order of the options."""
    path = write_csv(tmp_path / f"{num_rows}.csv", [gpqa_row(i) for i in range(num_rows)])
    return {"source": "gpqa", "path": str(path), "seed": num_rows, **more}


def problems_of_run(problems: dict[str, Any], own_set: dict[str, Any], **model: Any) -> Splits:
    made = {"source": "generated", "count": 2}
    evaluation = {"sets": [{"name": "s", "problems": own_set, "instruction": "Only the letter."}]}
    run = {
        "team": [{"name": "a", "model": "x", **model}, {"name": "b", "model": "y"}],
        "problems": {"train": made, "evaluation": made, "instruction": "Only the answer.", **problems},
        "evaluation": evaluation,
    }
    return all_problems(RunConfig.model_validate({**MINIMAL, **run}))


def test_a_held_out_problem_with_its_options_in_another_order_is_in_no_warm_up(tmp_path: Path) -> None:
    whole, held_out = gpqa_source(tmp_path, 10), gpqa_source(tmp_path, 3)
    own_set = gpqa_source(tmp_path, 5)
    made = problems_of_run({"evaluation": held_out}, own_set, warmup={"problems": whole})
    assert made.evaluation.height == 3 + 5
    assert made.warmups["a"]["problem_id"].to_list() == [f"rec{i}" for i in range(5, 10)]


@pytest.mark.parametrize(("near_duplicates", "kept"), [("error", ["c"]), ("drop", ["c"]), ("allow", ["b", "c"])])
def test_a_problem_of_a_file_that_is_nearly_a_held_out_one_is_in_no_warm_up(
    tmp_path: Path, near_duplicates: str, kept: list[str]
) -> None:
    asked = "Tom has 3 red apples and buys 4 green apples at the market today. How many apples has he?"
    questions = {"a": asked, "b": asked.replace("Tom", "Jim"), "c": asked.replace("3 red", "5 red")}
    solved = [{"id": i, "question": q, "answer": 7, "solution": "#### 7"} for i, q in questions.items()]
    whole, held_out = tmp_path / "solved.jsonl", tmp_path / "held_out.jsonl"
    whole.write_text("\n".join(json.dumps(row) for row in solved), encoding="utf-8")
    held_out.write_text(json.dumps(solved[0]), encoding="utf-8")
    warmup = {"problems": {"source": "jsonl", "path": str(whole)}}
    problems = {"evaluation": {"source": "jsonl", "path": str(held_out)}, "near_duplicates": near_duplicates}
    made = problems_of_run(problems, gpqa_source(tmp_path, 2), warmup=warmup)
    assert made.warmups["a"]["problem_id"].to_list() == kept


def test_a_set_shares_no_problem_with_training_in_any_order_of_the_options(tmp_path: Path) -> None:
    train = {"train": gpqa_source(tmp_path, 3), "near_duplicates": "allow"}
    with pytest.raises(InputError, match=r"evaluation.sets.0.problems: 3 question\(s\) are"):
        problems_of_run(train, gpqa_source(tmp_path, 10))
    drawn = problems_of_run(train, gpqa_source(tmp_path, 10, count=7))
    assert drawn.evaluation["problem_id"].to_list()[2:] == [f"s/rec{i}" for i in range(3, 10)]


def test_medmcqa_format(tmp_path: Path) -> None:
    row = {
        "id": "e9",
        "question": "Which one?",
        "opa": "w",
        "opb": "x",
        "opc": "y",
        "opd": "z",
        "cop": 2,
        "choice_type": "single",
        "exp": "Because.",
        "subject_name": "Anatomy",
        "topic_name": None,
    }
    pl.DataFrame([row]).write_parquet(tmp_path / "train.parquet")
    (found,) = train_of(data_set("medmcqa", tmp_path / "train.parquet"))
    assert (found["problem_id"], found["gold"]) == ("e9", "C")
    assert found["question"] == "Which one?\n\nA) w\nB) x\nC) y\nD) z"
    metadata = {"data_set": "medmcqa", "subject": "Anatomy", "topic": None, "solution": "Because.\n#### C"}
    assert found["metadata"] == metadata
    bad = [{**row, "id": "t1", "cop": -1}, {**row, "id": "t2", "cop": 4}, {**row, "id": "t3", "opb": None}]
    pl.DataFrame(bad).write_parquet(tmp_path / "bad.parquet")
    for name, cop in (("text", "2"), ("float", 2.0)):
        pl.DataFrame([{**row, "cop": cop}]).write_csv(tmp_path / f"{name}.CSV")
        assert train_of(data_set("medmcqa", tmp_path / f"{name}.CSV"))[0]["gold"] == "C"
    pl.DataFrame([{**row, "cop": 2.0}]).write_parquet(tmp_path / "float.parquet")
    assert train_of(data_set("medmcqa", tmp_path / "float.parquet"))[0]["gold"] == "C"
    pl.DataFrame([{**row, "cop": "2.5"}]).write_csv(tmp_path / "bad.csv")
    with pytest.raises(InputError, match=r"row 1: 'cop' must be .* not '2.5'"):
        train_of(data_set("medmcqa", tmp_path / "bad.csv"))
    pl.DataFrame([row]).write_csv(tmp_path / "train.tsv", separator="\t")
    with pytest.raises(InputError, match=r"train.tsv: the format .* one of .parquet, .csv, .jsonl, .ndjson, .json"):
        train_of(data_set("medmcqa", tmp_path / "train.tsv"))
    with pytest.raises(
        InputError,
        match=r"(?s)3 bad rows.*row 1: its answer is withheld.*row 2: 'cop' must be.*row 3: 'opb' is null",
    ):
        train_of(data_set("medmcqa", tmp_path / "bad.parquet"))


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of huggingface, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_in_cache(cache: Path, files: datasets.HubFiles, name: str) -> Path:
    """The path of a commit's file in the documented cache layout of huggingface."""
    path = cache / f"datasets--{files.repository.replace('/', '--')}" / "snapshots" / files.revision / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_a_file_missing_from_the_cache_is_an_error_with_the_command(offline_hub: Path) -> None:
    with pytest.raises(InputError) as caught:
        make_splits(section(DataSetProblems(source="gpqa", subset="diamond"), generated(5)))
    message = str(caught.value)
    assert "HF_HUB_OFFLINE is set" in message
    revision = "633f5ee89ab8ad4522a9f850766b73f62147ffdd"
    assert f"hf download Idavidrein/gpqa gpqa_diamond.csv --repo-type dataset --revision {revision}" in message


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A hub whose port nobody listens to, with a client that is not set offline. The value is the port."""
    from huggingface_hub import constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return port


def test_without_a_network_the_hub_is_not_asked_again_and_again(
    no_network: int, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError) as caught:
        make_splits(section(DataSetProblems(source="gsm8k"), generated(5)))
    message = str(caught.value)
    assert "is not in the local cache, and the hub cannot be reached (127.0.0.1: Connection refused)" in message
    assert "hf download openai/gsm8k" in message
    assert "Retry" not in caplog.text


def test_without_a_network_the_cache_is_used(no_network: int, tmp_path: Path) -> None:
    path = put_in_cache(tmp_path / "hub", datasets.HUB["gsm8k"]["main"], "main/train-00000-of-00001.parquet")
    pl.DataFrame({"question": [f"q{i}" for i in range(5)], "answer": ["#### 7"] * 5}).write_parquet(path)
    assert len(train_of(DataSetProblems(source="gsm8k"))) == 5


def test_the_hub_is_reached_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """On many clusters only the proxy can be reached, and names of the internet are not known."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert hub._address("https://hub.example") == ("127.0.0.1", 3128)
    monkeypatch.setenv("no_proxy", "hub.example")
    assert hub._address("https://hub.example") == ("hub.example", 443)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert hub._connection_problem("127.0.0.1", server.getsockname()[1]) is None


def test_a_pinned_commit_is_read_from_the_cache_without_a_network(offline_hub: Path) -> None:
    files = datasets.HUB["gsm8k"]["main"]
    for split, start in (("train", 0), ("test", 50)):
        path = put_in_cache(offline_hub, files, f"main/{split}-00000-of-00001.parquet")
        pl.DataFrame({"question": [f"q{start + i}" for i in range(5)], "answer": ["#### 7"] * 5}).write_parquet(path)
    source = DataSetProblems(source="gsm8k")
    splits = make_splits(section(source, source))
    assert splits.train["problem_id"].to_list() == [f"train-{i:05d}" for i in range(1, 6)]
    assert splits.evaluation["problem_id"].to_list() == [f"test-{i:05d}" for i in range(1, 6)]
    assert splits.evaluation["question"].to_list() == [f"q{i}" for i in range(50, 55)]


def test_another_repository_with_the_same_format(offline_hub: Path) -> None:
    own = datasets.HubFiles("me/mine", "a" * 40, {})
    for name in ("a.jsonl", "b.jsonl"):
        write(put_in_cache(offline_hub, own, name), {"question": f"from {name}", "answer": "#### 7"})
    source = DataSetProblems(source="gsm8k", repository="me/mine", revision="a" * 40, files=["a.jsonl", "b.jsonl"])
    assert [row["problem_id"] for row in train_of(source)] == ["gsm8k-0-00001", "gsm8k-1-00001"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"path": "x", "split": "train"}, r"path \(a file\) excludes split \(of the hub\)"),
        ({"repository": "a/b"}, "needs all of repository, revision and files"),
        ({"repository": "a/b", "revision": "main", "files": ["x"]}, "revision"),
        ({"repository": "a/b", "revision": "a" * 40, "files": ["x"], "split": "train"}, "neither subset nor split"),
    ],
)
def test_contradictions_in_a_data_set(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        DataSetProblems(source="gsm8k", **fields)


def test_unknown_subsets_and_splits_are_found_without_a_network() -> None:
    assert source_mistakes(DataSetProblems(source="gpqa", subset="diamant")) == [
        ("subset", "unknown subset 'diamant'; gpqa has main, diamond, extended")
    ]
    assert source_mistakes(DataSetProblems(source="math", subset="math-500", split="train")) == [
        ("split", "unknown split 'train'; math-500 of math has test")
    ]
    assert source_mistakes(DataSetProblems(source="aime", subset=2024)) == []  # type: ignore[arg-type]


def test_every_source_has_a_format_and_every_pin_is_a_commit() -> None:
    assert (
        set(datasets.ROW_FORMATS)
        == set(datasets.HUB)
        == set(PROBLEM_SOURCES) - {"generated", "reasoning_gym", "function", "jsonl", "parquet", "none"}
    )
    for subsets in datasets.HUB.values():
        for files in subsets.values():
            assert len(files.revision) == 40
            assert int(files.revision, 16)
            assert all(files.splits.values())


GSM8K = Path(__file__).parents[4] / "shared" / "data" / "gsm8k"


@pytest.mark.skipif(not GSM8K.is_dir(), reason="the files of GSM8K are not in ../shared/data/gsm8k")
def test_the_published_gsm8k() -> None:
    train = data_set("gsm8k", GSM8K / "train.jsonl", count=1000)
    splits = make_splits(section(train, data_set("gsm8k", GSM8K / "test.jsonl"), 4))
    assert (splits.train.height, splits.evaluation.height, splits.examples.height) == (1000, 1319, 4)
    for gold, metadata in splits.evaluation.select("gold", "metadata").iter_rows():
        assert extract_answer(json.loads(metadata)["solution"], "number") == gold
    whole = make_splits(section(data_set("gsm8k", GSM8K / "train.jsonl"), data_set("gsm8k", GSM8K / "test.jsonl")))
    assert whole.train.height == 7473  # there are no near-duplicates between the splits
