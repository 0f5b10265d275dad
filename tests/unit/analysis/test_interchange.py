"""Import and export: fields, messages about bad lines, round trips, atomic writes."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from analysis.counts.counts import count_rows
from analysis.counts.load import load_run
from analysis.exchange import predictions, sources
from analysis.exchange.export import export_predictions
from analysis.exchange.folder import import_predictions, verifier_version
from analysis.exchange.lines import PER_COMPLETION, PER_PROBLEM
from analysis.exchange.predictions import valid_name
from core_hpc.common.errors import InputError, StoreError
from core_hpc.config.base import NAME_PATTERN
from core_hpc.runs.evaluation import subject_of
from core_hpc.runs.folder import read_identity
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths
from core_hpc.store.schema import EVALUATE, PROBLEMS, ROLLOUTS
from core_hpc.store.shards import publish_frame, published_keys, read_manifest_table, read_rows
from tests.support.analysis_data import (
    evaluated_run,
    evaluation_rows,
    make_run,
    publish_rollouts,
    rollout,
    run_with_own_kind,
)

RIGHT, WRONG, NONE = "So it is #### 72", "The answer is 71.", "I do not know"


def problem_line(problem: Any = "q1", model: str = "ada", **changes: Any) -> dict[str, Any]:
    line = {"example_id": problem, "model": model, "gold": "72", "completions": [RIGHT, WRONG, NONE], **changes}
    return {key: value for key, value in line.items() if value is not ...}


def completion_line(problem: str = "q1", model: str = "ada", sample: int = 0, **changes: Any) -> dict[str, Any]:
    line = {
        "problem": problem,
        "model": model,
        "sample": sample,
        "answer": "72",
        "correct": True,
        "gold": "72",
        **changes,
    }
    return {key: value for key, value in line.items() if value is not ...}


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8"
    )
    return path


def rows_of(run: Path) -> pl.DataFrame:
    return read_rows(run, ROLLOUTS, phases=[EVALUATE])


def problems_in(run: Path) -> pl.DataFrame:
    return read_manifest_table(manifests.read_manifest(RunPaths(run).problems / "evaluation.manifest.json"), PROBLEMS)


def rejected(tmp_path: Path, lines: list[Any], **options: Any) -> str:
    """The message about a file that the import must reject without writing anything."""
    file = write(tmp_path / "foreign.jsonl", lines)
    with pytest.raises(InputError) as e:
        import_predictions(file, tmp_path / "out", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["foreign.jsonl"]
    return str(e.value)


# --- import --------------------------------------------------------------------------------------


def test_one_line_per_problem_is_verified(tmp_path: Path) -> None:
    lines = [
        problem_line("q1", "ada", token_counts=[5, 6, 7], truncated=[False, False, True], subject="algebra", level=3),
        problem_line(2, "ada", gold=1200, completions=["\\boxed{1,200.0}", "1200"], question="How many?"),
        problem_line("q1", "bob", gold="72.0", completions=["72"], data_set="gsm8k", source_group="g1"),
        problem_line(2, "bob", gold="1200", completions=["-1200"], subject="", level=" "),
    ]
    done = import_predictions(write(tmp_path / "foreign.jsonl", lines), tmp_path / "out")
    assert (done.num_problems, done.num_completions, done.left_out, done.notes) == (2, {"ada": 5, "bob": 2}, [], [])
    rows = rows_of(done.path)
    assert rows.select("model", "problem_id", "sample_index", "answer", "verdict", "gold").rows() == [
        ("ada", "q1", 0, "72", "correct", "72"),
        ("ada", "q1", 1, "71", "wrong", "72"),
        ("ada", "q1", 2, None, "no_answer", "72"),
        ("ada", "2", 0, "1200", "correct", "1200"),
        ("ada", "2", 1, "1200", "correct", "1200"),
        ("bob", "q1", 0, "72", "correct", "72"),
        ("bob", "2", 0, "-1200", "wrong", "1200"),
    ]
    assert rows["num_completion_tokens"].to_list() == [5, 6, 7, 0, 0, 0, 0]
    assert rows["finish_reason"].to_list() == ["stop", "stop", "length", *["stop"] * 4]
    assert (rows["correct"] == (rows["verdict"] == "correct")).all()
    problems = problems_in(done.path)
    assert problems.select("problem_id", "question", "gold").rows() == [("q1", "", "72"), ("2", "How many?", "1200")]
    metadata = {"data_set": "gsm8k", "level": "3", "source_group": "g1", "subject": "algebra"}
    assert [json.loads(m) for m in problems["metadata"]] == [metadata, {}]
    data = load_run(done.path)
    assert (data.config, data.models) == (None, ["ada", "bob"])
    assert data.counts.group_by("model").agg(pl.col("n", "c").sum()).sort("model").rows() == [
        ("ada", 5, 3),
        ("bob", 2, 1),
    ]
    assert data.counts.filter(pl.col("problem_id") == "q1")["source_group"].unique().to_list() == ["g1"]


def test_one_line_per_completion(tmp_path: Path) -> None:
    lines = [
        completion_line(sample=1, answer=72.0),
        completion_line(sample=0, correct=False, answer="71", token_count=9, truncated=True),
        completion_line(sample=2, correct=..., answer=..., text=RIGHT),
        completion_line(sample=3, correct=..., answer=..., text=NONE),
        completion_line(sample=4, correct=..., answer="72.00"),
        completion_line(sample=5, correct=False, answer=None),
        completion_line(sample=6, correct=False, answer="72", verdict="timeout"),
        completion_line(sample=7, correct=False, answer=..., text=RIGHT),  # verdict is given
        completion_line(sample=8, correct=..., answer=None, text=RIGHT),
    ]
    done = import_predictions(write(tmp_path / "foreign.jsonl", lines), tmp_path / "out")
    rows = rows_of(done.path)
    assert rows.select("sample_index", "answer", "verdict", "correct").rows() == [
        (0, "71", "wrong", False),
        (1, "72", "correct", True),
        (2, "72", "correct", True),
        (3, None, "no_answer", False),
        (4, "72", "correct", True),
        (5, None, "no_answer", False),
        (6, "72", "timeout", False),
        (7, "72", "wrong", False),
        (8, "72", "correct", True),
    ]
    assert rows.select("num_completion_tokens", "finish_reason").row(0) == (9, "length")


def test_completions_are_numbered_from_0_in_the_order_of_their_samples(tmp_path: Path) -> None:
    found = {("ada", "q1"): (2, 1), ("ada", "q2"): (30, 7, 8), ("bob", "q1"): (0,), ("bob", "q2"): (5, 0)}
    lines = [
        completion_line(problem, model, sample, correct=False, answer=str(sample))
        for (model, problem), samples in found.items()
        for sample in samples
    ]
    run = import_predictions(write(tmp_path / "in.jsonl", lines), tmp_path / "out").path
    rows = rows_of(run).sort("model", "problem_id", "sample_index")
    assert rows.group_by("model", "problem_id", maintain_order=True).agg("sample_index", "answer").rows() == [
        ("ada", "q1", [0, 1], ["1", "2"]),
        ("ada", "q2", [0, 1, 2], ["7", "8", "30"]),
        ("bob", "q1", [0], ["0"]),
        ("bob", "q2", [0, 1], ["0", "5"]),
    ]


def test_lines_marked_as_sampled_without_a_hint_are_imported(tmp_path: Path) -> None:
    lines = [
        problem_line("q1", hint_used=False, round="A"),
        problem_line("q2", hint_used=[False, False, False], round=None),
        problem_line("q3", hint_used=0, round=1),
    ]
    done = import_predictions(write(tmp_path / "foreign.jsonl", lines), tmp_path / "out")
    assert (done.num_completions, done.notes) == ({"ada": 9}, [])


def test_a_line_with_a_hint_is_refused_with_the_remedy(tmp_path: Path) -> None:
    text = rejected(tmp_path, [completion_line(sample=0), completion_line(sample=1, hint_used=True)])
    assert "foreign.jsonl, line 2: 'hint_used' is True" in text
    assert "remove the lines with hints from the file" in text


def test_gold_answer_that_is_not_needed_may_be_any_text(tmp_path: Path) -> None:
    lines = [
        completion_line("q1", gold=..., answer="X"),
        completion_line("q2", gold="see page 3", answer="page 3", text="It is on page 3"),
    ]
    done = import_predictions(write(tmp_path / "foreign.jsonl", lines), tmp_path / "out")
    assert problems_in(done.path).select("gold", "answer_kind").rows() == [("", "given"), ("see page 3", "given")]
    assert rows_of(done.path)["correct"].to_list() == [True, True]
    assert load_run(done.path).counts["c"].to_list() == [1, 1]


def test_other_kinds_of_answers(tmp_path: Path) -> None:
    letters = problem_line(
        "q1", gold="b", answer_kind="letter", completions=["The answer is (B).", "\\boxed{C}", "a proton"]
    )
    formulas = problem_line(
        "q2", gold="\\frac12", answer_kind="latex", completions=["\\boxed{\\dfrac{1}{2}}", "\\boxed{0.51}"]
    )
    done = import_predictions(write(tmp_path / "foreign.jsonl", [letters, formulas]), tmp_path / "out")
    assert rows_of(done.path)["verdict"].to_list() == ["correct", "wrong", "no_answer", "correct", "wrong"]
    assert problems_in(done.path)["answer_kind"].to_list() == ["letter", "latex"]


def test_identity_records_the_origin(tmp_path: Path) -> None:
    file = write(tmp_path / "foreign.jsonl", ["", problem_line(), "   "])
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    done = import_predictions(file, tmp_path / "sub" / "out")
    identity = read_identity(done.path)
    assert identity["run_id"] == "out" == rows_of(done.path)["run_id"][0]
    imported = identity["imported"]
    assert imported["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (imported["form"], imported["lines"], imported["models"]) == (PER_PROBLEM, 1, ["ada"])
    assert imported["file"] == str(file)
    assert imported["verifier"] == verifier_version()
    assert not RunPaths(done.path).config.exists()
    assert [str(key) for key in published_keys(done.path)] == ["evaluate/0000/ada/000"]


def test_invalid_model_names_are_mapped_and_reported(tmp_path: Path) -> None:
    lines = [problem_line(model="Qwen/Qwen2.5-7B"), problem_line(model="ada", vote=3, Gold="x")]
    done = import_predictions(write(tmp_path / "foreign.jsonl", lines), tmp_path / "out")
    assert list(done.num_completions) == ["qwen-qwen2-5-7b", "ada"]
    assert done.notes == [
        "model 'Qwen/Qwen2.5-7B' has the name `qwen-qwen2-5-7b` in the new folder",
        "ignored fields: vote, Gold",
    ]
    assert read_identity(done.path)["imported"]["model_names"] == {"qwen-qwen2-5-7b": "Qwen/Qwen2.5-7B", "ada": "ada"}


@pytest.mark.parametrize("name", ["x" * 80, "--A b--", "É", "ada\n", "../../etc"])
def test_valid_names_are_valid(name: str) -> None:
    assert valid_name(name) == "" or re.fullmatch(NAME_PATTERN, valid_name(name))


def test_adversarial_texts_are_stored_unchanged(tmp_path: Path) -> None:
    texts = [
        "\\boxed{" * 5000,
        "((((" * 5000,
        "9" * 100_000,
        "#### 1e999999",
        "<answer>" * 3000 + "72",
        "\x00#### 72",
        "😀#### 72",
    ]
    done = import_predictions(write(tmp_path / "foreign.jsonl", [problem_line(completions=texts)]), tmp_path / "out")
    rows = rows_of(done.path)
    assert rows["text"].to_list() == texts
    assert rows["correct"].to_list() == [False, False, False, False, True, True, True]


# --- bad files -----------------------------------------------------------------------------------

BAD_LINES: list[tuple[Any, str]] = [
    (problem_line(gold=...), "no field 'gold'"),
    (problem_line(completions=...), "no field 'completions'"),
    (problem_line(model=...), "no field 'model'"),
    (problem_line(completions="72"), "'completions' should be a valid list, not '72'"),
    (problem_line(completions=[]), "'completions' list should have at least 1 item after validation, not 0"),
    (problem_line(completions=["a", 5]), "'completions' (entry 1) should be a valid string, not 5"),
    (problem_line(token_counts=[1, 2]), "3 completions, but 2 entries in 'token_counts'; give one per completion"),
    (problem_line(token_counts=[1, -2, 3]), "'token_counts' (entry 1) should be greater than or equal to 0, not -2"),
    (problem_line(truncated=[True]), "3 completions, but 1 entries in 'truncated'"),
    (problem_line(gold="x + 1"), "'gold' 'x + 1' is not an answer of kind number, so nothing can be verified"),
    (problem_line(gold=True), "'gold' must be text or a number, not True"),
    (problem_line(answer_kind="colour"), "'answer_kind' unknown answer kind 'colour'; known: "),
    (problem_line(answer_kind="given"), "'gold' '72' is not an answer of kind given, so nothing can be verified"),
    (problem_line(example_id=["q1"]), "'example_id' must be text or a number, not ['q1']"),
    (problem_line(example_id=" "), "'example_id' is empty"),
    (problem_line(subject={}), "'subject' must be text or a number, not {}"),
    (problem_line(phase="cold"), "'phase' should be 'evaluate', not 'cold'"),
    (problem_line(hint_used=True), "'hint_used' is True, so the line was sampled with a hint"),
    (problem_line(hint_used=[False, True, False]), "'hint_used' is [False, True, False], so the line was sampled"),
    (problem_line(hint_used="true"), "'hint_used' is 'true', so the line was sampled with a hint"),
    (problem_line(round="B"), "'round' is 'B', so the line was sampled with a hint"),
    (
        problem_line(model="team"),
        "model 'team' has the name that is reserved for the whole team; give it another name",
    ),
    (problem_line(model="模型"), "model '模型' has no character that is valid in a file name"),
    ('{"example_id": "q1", "gold": NaN}', "not JSON (expected value, character 30)"),
    (
        '{"example_id": "q1", "model": "ada", "gold": 1e999, "completions": ["1"]}',
        "'gold' is inf, which is not a finite number",
    ),
    ('{"example_id": "q1"', "not JSON"),
    ('{"example_id": "q1", "model": "ada", "gold": "1", "completions": ["\\ud800"]}', "not JSON"),
    ("[" * 3000, "not JSON (recursion limit exceeded"),
    ('["q1"]', "not a JSON object, but ['q1']"),
    (
        {"question": "why?"},
        "not one of the two forms: give 'example_id' and 'completions' or 'problem' and 'sample' "
        "(the line has 'question')",
    ),
    ({"example_id": "q1", "sample": 1}, "not one of the two forms"),
    (
        completion_line(),
        "has the form 'one line per completion', but earlier lines have the form 'one line per problem'; "
        "split the file",
    ),
]

BAD_COMPLETIONS: list[tuple[Any, str]] = [
    (completion_line(sample=-1), "'sample' should be greater than or equal to 0, not -1"),
    (completion_line(sample=2**31), "'sample' should be less than 2147483648"),
    (completion_line(sample=1.5), "'sample' should be a valid integer, not 1.5"),
    (completion_line(sample=True), "'sample' should be a valid integer, not True"),
    (completion_line(correct=1), "'correct' should be a valid boolean, not 1"),
    (completion_line(answer=...), "no field 'text' or 'answer'; give one of them"),
    (completion_line(answer=None), "'correct' is true, but there is no answer; give 'answer' or 'text'"),
    (completion_line(correct=..., gold=...), "no 'gold', so nothing can be verified"),
    (completion_line(correct=..., gold="B"), "'gold' 'B' is not an answer of kind number"),
    (
        completion_line(correct=..., answer_kind="given"),
        "'gold' '72' is not an answer of kind given, so nothing can be verified",
    ),
    (completion_line(answer_kind="colour"), "'answer_kind' unknown answer kind 'colour'; known: given, integer, "),
    (completion_line(verdict="timeout"), "'verdict' is timeout, so 'correct' must be false"),
    (completion_line(verdict="correct", correct=...), "'verdict' is correct, so 'correct' must be true"),
    (completion_line(verdict="maybe"), "'verdict' should be 'correct', 'wrong', 'no_answer' or 'timeout', not 'maybe'"),
    (completion_line(hint_used=1), "'hint_used' is 1, so the line was sampled with a hint"),
    (completion_line(round="b"), "'round' is 'b', so the line was sampled with a hint"),
    (completion_line(text=7), "'text' should be a valid string, not 7"),
    (
        completion_line(gold="73"),
        "'gold' of problem 'q1' is '73', but '72' on line 1; use the same value on all lines",
    ),
    (completion_line(question="Who?"), "'question' of problem 'q1' is 'Who?', but 'How many?' on line 1"),
    (completion_line(level="5"), "'level' of problem 'q1' is '5', but '4' on line 1"),
    (
        completion_line(sample=0),
        "model 'ada', problem 'q1', sample 0 is also on line 1; remove one of the lines",
    ),
    (
        completion_line(model="ADA", sample=9),
        "model 'ADA' would get the name `ada` in files, which model 'ada' has already; give it another name",
    ),
]


@pytest.mark.parametrize(("bad", "message"), BAD_LINES)
def test_a_bad_line_of_problems(tmp_path: Path, bad: Any, message: str) -> None:
    text = rejected(tmp_path, [problem_line("q0"), bad])
    assert f"foreign.jsonl, line 2: {message}" in text
    assert "1 bad line; nothing was written" in text


@pytest.mark.parametrize(("bad", "message"), BAD_COMPLETIONS)
def test_a_bad_line_of_completions(tmp_path: Path, bad: Any, message: str) -> None:
    text = rejected(tmp_path, [completion_line(sample=0, question="How many?", level=4), bad])
    assert f"foreign.jsonl, line 2: {message}" in text


def test_all_bad_lines_are_listed_in_order(tmp_path: Path) -> None:
    lines = [
        problem_line("q0"),
        problem_line(gold=..., model=...),
        problem_line("q0"),
        problem_line("q3"),
        "{",
        problem_line("q3", gold=5),
    ]
    text = rejected(tmp_path, lines)
    assert "4 bad lines" in text
    found = [line.split("jsonl, ")[1].split(":")[0] for line in text.splitlines()[1:]]
    assert found == ["line 2", "line 3", "line 5", "line 6"]
    assert "line 2: no field 'model'; no field 'gold'" in text
    assert "line 3: model 'ada', problem 'q0' is also on line 1" in text


def test_a_long_list_of_mistakes_is_cut_and_counted(tmp_path: Path) -> None:
    text = rejected(tmp_path, ["{"] * 50 + [problem_line()] * 50)
    assert "99 bad lines" in text
    assert len(text.splitlines()) == 1 + predictions.MAX_LISTED + 1
    assert text.endswith("and 79 more")


def test_a_model_name_is_rejected_once(tmp_path: Path) -> None:
    assert "1 bad line;" in rejected(tmp_path, [problem_line(f"q{i}", model="team") for i in range(5)])


def test_a_very_long_line_is_rejected_without_reading_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 1 << 20)
    huge = problem_line("q1", completions=["x" * (5 << 20)])
    text = rejected(tmp_path, [problem_line("q0"), huge, "{"])
    assert "line 2: longer than 1 MiB; write one line per completion" in text
    assert "line 3: not JSON" in text


@pytest.mark.parametrize("lines", [[], ["", "  "]])
def test_an_empty_file(tmp_path: Path, lines: list[str]) -> None:
    assert "has no predictions" in rejected(tmp_path, lines)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        import_predictions(tmp_path / "absent.jsonl", tmp_path / "out")
    with pytest.raises(InputError, match="Is a directory"):
        import_predictions(tmp_path, tmp_path / "out")
    (tmp_path / "foreign.jsonl").write_bytes(b'{"example_id": "\xff"}\n')
    with pytest.raises(InputError, match=r"line 1: not JSON .*UTF-8"):
        import_predictions(tmp_path / "foreign.jsonl", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["foreign.jsonl"]


MISSING = [problem_line("q1", "ada"), problem_line("q2", "ada"), problem_line("q2", "bob"), problem_line("q3", "bob")]


def test_a_problem_missing_for_a_model(tmp_path: Path) -> None:
    text = rejected(tmp_path, MISSING)
    assert "2 bad lines" in text
    assert "line 1: problem 'q1' is missing for bob; add it, or import with --lenient" in text
    assert "line 4: problem 'q3' is missing for ada" in text


def test_lenient_import_leaves_such_problems_out_and_lists_them(tmp_path: Path) -> None:
    done = import_predictions(write(tmp_path / "foreign.jsonl", MISSING), tmp_path / "out", lenient=True)
    assert done.left_out == ["problem 'q1': missing for bob", "problem 'q3': missing for ada"]
    assert problems_in(done.path)["problem_id"].to_list() == ["q2"]
    assert rows_of(done.path)["problem_id"].unique().to_list() == ["q2"]
    assert load_run(done.path).counts.height == 2


def test_lenient_import_needs_a_common_problem_and_accepts_no_other_mistake(tmp_path: Path) -> None:
    assert "no problem has predictions of all models" in rejected(tmp_path, [MISSING[0], MISSING[3]], lenient=True)
    assert "line 5: no field 'gold'" in rejected(tmp_path, [*MISSING, problem_line(gold=...)], lenient=True)


def test_a_folder_that_is_not_empty_stays_unchanged(tmp_path: Path) -> None:
    file = write(tmp_path / "foreign.jsonl", [problem_line()])
    (tmp_path / "out").mkdir()
    import_predictions(file, tmp_path / "out")
    with pytest.raises(InputError, match="is not empty"):
        import_predictions(file, tmp_path / "out")
    with pytest.raises(InputError, match="is a file"):
        import_predictions(file, file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["foreign.jsonl", "out"]


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifests, "write_json", full)
    file = write(tmp_path / "foreign.jsonl", [problem_line()])
    with pytest.raises(OSError, match="No space"):
        import_predictions(file, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["foreign.jsonl"]


# --- export --------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tallied(run: Path, iteration: int) -> list[tuple[Any, ...]]:
    """The numbers behind all tables, counted with a dictionary instead of `count_rows`."""
    tally: dict[tuple[str, str], list[Any]] = {}
    for row in rows_of(run).filter(pl.col("iteration") == iteration).iter_rows(named=True):
        cell = tally.setdefault((row["model"], row["problem_id"]), [0, 0, 0, 0, 0, set(), []])
        cell[0] += 1
        cell[1] += row["correct"]
        cell[2] += row["verdict"] == "timeout"
        cell[3] += row["finish_reason"] == "length"
        cell[4] += row["num_completion_tokens"]
        cell[5].add(row["gold"])
        cell[6].append((row["sample_index"], row["answer"], row["text"]))
    return sorted((key, *cell[:5], sorted(cell[5]), sorted(cell[6])) for key, cell in tally.items())


def counted(run: Path, iteration: int) -> list[tuple[Any, ...]]:
    """The counts of an iteration as the tables use them, without its number."""
    return count_rows(rows_of(run).filter(pl.col("iteration") == iteration)).drop("iteration").rows()


@pytest.mark.parametrize("iteration", [None, 0])
def test_export_and_import_give_the_same_completions(tmp_path: Path, iteration: int | None) -> None:
    run = evaluated_run(tmp_path / "run")
    done = export_predictions(run, tmp_path / "out.jsonl", iteration=iteration)
    which = 2 if iteration is None else iteration
    assert (done.iteration, done.num_completions, done.notes) == (which, {"ada": 24, "bob": 24}, [])
    back = import_predictions(done.path, tmp_path / "back")
    assert counted(back.path, 0) == counted(run, which)
    assert tallied(back.path, 0) == tallied(run, which)
    columns = ["problem_id", "question", "gold", "answer_kind"]
    original = read_manifest_table(
        manifests.read_manifest(RunPaths(run).problems / "evaluation.manifest.json"), PROBLEMS
    )
    assert problems_in(back.path).select(columns).rows() == original.select(columns).rows()
    assert load_run(back.path).counts.select("level", "subject", "data_set").unique().height == 2
    again = export_predictions(back.path, tmp_path / "again.jsonl")
    assert again.path.read_bytes() == done.path.read_bytes()
    with pytest.raises(InputError, match="inside the run folder, which must not change"):
        export_predictions(run, run / "config.json")
    with pytest.raises(InputError, match="imported predictions have no weights"):
        subject_of([str(back.path)], iterations=[], base=None)


def test_one_line_per_problem_gives_the_same_texts_with_new_verdicts(tmp_path: Path) -> None:
    run = evaluated_run(tmp_path / "run")
    done = export_predictions(run, tmp_path / "out.jsonl", PER_PROBLEM)
    lines = lines_of(done.path)
    assert [(line["model"], line["example_id"]) for line in lines] == [
        (m, f"p{i}") for m in ("ada", "bob") for i in range(6)
    ]
    assert lines[1]["token_counts"] == [1, 2, 3, 4]
    assert lines[1]["truncated"] == [False, False, False, True]
    back = import_predictions(done.path, tmp_path / "back")
    # The texts of the time-outs are correct, and verification does not time out here.
    verified = [(key, n, c + timeouts, 0, *rest) for key, n, c, timeouts, *rest in tallied(run, 2)]
    assert tallied(back.path, 0) == verified
    assert sum(timeouts for _, _, _, timeouts, *_ in tallied(run, 2)) > 0


def test_given_verdicts_and_other_kinds_survive_export_and_import(tmp_path: Path) -> None:
    lines = [
        completion_line("q1", gold=..., answer="X", correct=False),
        completion_line("q2", gold="see page 3", answer="page 3", text="It is on page 3"),
        completion_line("q3", gold="b", answer_kind="letter", answer="(B)"),
        completion_line("q4", gold="5", answer=None, correct=False, verdict="timeout"),
    ]
    once = import_predictions(write(tmp_path / "foreign.jsonl", lines), tmp_path / "once").path
    twice = import_predictions(export_predictions(once, tmp_path / "out.jsonl").path, tmp_path / "twice").path
    assert tallied(twice, 0) == tallied(once, 0)
    assert problems_in(twice).drop("metadata").equals(problems_in(once).drop("metadata"))
    assert problems_in(twice)["answer_kind"].to_list() == ["given", "given", "letter", "number"]
    assert rows_of(twice)["verdict"].to_list() == ["wrong", "correct", "correct", "timeout"]
    assert rows_of(twice)["answer"].to_list() == ["X", "page 3", "B", None]


def test_verdicts_of_the_users_own_kind_survive_export_and_import(tmp_path: Path) -> None:
    run = run_with_own_kind(tmp_path / "run")
    once = export_predictions(run, tmp_path / "once.jsonl").path
    back = import_predictions(once, tmp_path / "back").path
    assert tallied(back, 0) == tallied(run, 1)
    assert rows_of(back)["verdict"].to_list() == rows_of(run)["verdict"].to_list()
    columns = ["problem_id", "question", "gold", "answer_kind"]
    assert problems_in(back).select(columns).rows() == [
        ("p0", "How many?", "1,200", "given"),
        ("p1", "Which?", "blue", "given"),
    ]
    assert export_predictions(back, tmp_path / "twice.jsonl").path.read_bytes() == once.read_bytes()
    with pytest.raises(InputError, match=r"problem 'p0', model ada: .* export one line per completion"):
        export_predictions(run, tmp_path / "out.jsonl", PER_PROBLEM)


def test_a_given_verdict_is_not_computed(tmp_path: Path) -> None:
    line = completion_line(answer_kind="given", gold="72", correct=False, answer=..., text=RIGHT)
    done = import_predictions(write(tmp_path / "foreign.jsonl", [line]), tmp_path / "out")
    assert rows_of(done.path).select("answer", "verdict", "gold").rows() == [(None, "no_answer", "72")]


def test_export_is_ordered_and_reproducible(tmp_path: Path) -> None:
    run = evaluated_run(tmp_path / "run")
    (tmp_path / "a.jsonl").write_text("old")
    first, second = (export_predictions(run, tmp_path / name).path for name in ("a.jsonl", "b.jsonl"))
    assert first.read_bytes() == second.read_bytes()
    keys = [(line["model"], line["problem"], line["sample"]) for line in lines_of(first)]
    assert keys == sorted(keys)
    assert len(set(keys)) == 48
    assert {line["phase"] for line in lines_of(first)} == {"evaluate"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "run"]


def test_cold_completions_are_exported_but_not_imported_as_held_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    problem = pl.DataFrame([("t0", "What?", "2", "number", "{}")], schema=PROBLEMS.schema, orient="row")
    publish_frame(RunPaths(run).problems, "train", problem, PROBLEMS)
    publish_rollouts(run, [rollout(problem_id="t0", sample_index=s, model=m) for m in ("ada", "bob") for s in range(2)])
    done = export_predictions(run, tmp_path / "cold.jsonl", phase="cold")
    assert (done.iteration, done.num_completions) == (1, {"ada": 2, "bob": 2})
    assert lines_of(done.path)[0]["question"] == "What?"
    with pytest.raises(InputError, match="line 1: 'phase' should be 'evaluate', not 'cold'"):
        import_predictions(done.path, tmp_path / "back")


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    run = evaluated_run(tmp_path / "sweep" / "run")
    out = tmp_path / "out.jsonl"
    known = "iterations that are published in part or in full"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"iteration": 7}, f"iteration 7 of phase evaluate is not published; {known}: 0, 2"),
        ({"phase": "cold"}, f"no iteration of phase cold is published for every model; {known}: none"),
        ({"phase": "score"}, "phase 'score' cannot be exported; use one of evaluate, cold, rescue"),
        ({"phase": "rescue", "form": "problem"}, "phase rescue needs one line per completion"),
        ({"form": "csv"}, "unknown form 'csv'; use one of problem, completion"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            export_predictions(run, out, **options)
    with pytest.raises(InputError, match="is a folder"):
        export_predictions(run, tmp_path)
    make_run(tmp_path / "sweep" / "other")
    with pytest.raises(InputError, match="has 2 runs; give one of other, run"):
        export_predictions(tmp_path / "sweep", out)
    assert not out.exists()


def test_answers_without_texts_need_one_line_per_completion(tmp_path: Path) -> None:
    run = import_predictions(write(tmp_path / "foreign.jsonl", [completion_line()]), tmp_path / "run").path
    with pytest.raises(InputError, match=r"answers without texts, or .*; export one line per completion"):
        export_predictions(run, tmp_path / "out.jsonl", PER_PROBLEM)
    assert lines_of(export_predictions(run, tmp_path / "out.jsonl", PER_COMPLETION).path)[0]["answer"] == "72"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["foreign.jsonl", "out.jsonl", "run"]


def test_a_damaged_file_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    run = evaluated_run(tmp_path / "run")
    damaged = next((run / "evaluate" / "iteration=0002").glob("bob-p001.*.parquet"))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(StoreError, match=str(damaged)):
        export_predictions(run, tmp_path / "out.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    export_predictions(run, tmp_path / "out.jsonl", iteration=0)


def test_the_latest_iteration_is_one_that_every_model_has(tmp_path: Path) -> None:
    run = evaluated_run(tmp_path / "run")
    publish_rollouts(run, evaluation_rows({"ada": [[True]]}, 4))
    assert export_predictions(run, tmp_path / "out.jsonl").iteration == 2
    part = export_predictions(run, tmp_path / "out.jsonl", iteration=4)
    assert part.num_completions == {"ada": 1, "bob": 0}
    assert part.notes == ["the models have different numbers of completions (is the run in progress?): ada 1, bob 0"]
