"""Import of files that other software wrote. The fixtures have the fields of the real files.

lm-evaluation-harness 0.4.13 (`evaluation_tracker.save_results_samples`), Inspect 0.3.260
(`inspect_ai.log.EvalLog`), TRL 1.16.0 (`GRPOTrainer.log`) and verl 0.8.0
(`RayPPOTrainer._dump_generations`).
"""

from __future__ import annotations

import codecs
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from analysis.__main__ import main
from analysis.counts.load import load_run
from analysis.exchange.converters import INSPECT, LM_EVAL, ORIGINS, TRL, VERL, Origin, as_verdict
from analysis.exchange.folder import import_predictions
from core_hpc.common.errors import InputError
from core_hpc.problems.files import id_of
from core_hpc.runs.folder import read_identity
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths
from core_hpc.store.schema import EVALUATE, PROBLEMS, ROLLOUTS
from core_hpc.store.shards import read_manifest_table, read_rows

RIGHT, WRONG = "9 * 8 = 72\n#### 72", "It is 71.\n#### 71"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def imported(file: Path, name: str = "jsonl", **choices: Any) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The completions and the problems of the imported folder."""
    run = import_predictions(file, file.parent / "out", origin=Origin(name, **choices)).path
    problems = manifests.read_manifest(RunPaths(run).problems / "evaluation.manifest.json")
    return read_rows(run, ROLLOUTS, phases=[EVALUATE]), read_manifest_table(problems, PROBLEMS)


def refused(file: Path, name: str = "jsonl", **choices: Any) -> str:
    with pytest.raises(InputError) as e:
        import_predictions(file, file.parent / "out", origin=Origin(name, **choices))
    assert not (file.parent / "out").exists()
    return str(e.value)


def outcomes(rows: pl.DataFrame) -> list[tuple[Any, ...]]:
    return rows.select("model", "problem_id", "sample_index", "answer", "verdict").rows()


# --- own fields: a mapping, Parquet --------------------------------------------------------------

OWN = [
    {"qid": "a", "prompt": "What is 9 * 8?", "out": {"text": RIGHT}, "llm": "ada", "reference": 72},
    {"qid": "a", "prompt": "What is 9 * 8?", "out": {"text": WRONG}, "llm": "ada", "reference": 72},
    {"qid": "b", "prompt": "What is 9 * 9?", "out": {"text": "#### 81"}, "llm": "ada", "reference": 81},
]
OWN_MAP = {"problem": "qid", "question": "prompt", "text": "out.text", "model": "llm", "gold": "reference"}


@pytest.mark.parametrize("container", ["jsonl", "jsonl with a byte order mark", "parquet"])
def test_mapped_fields_are_verified_and_numbered(tmp_path: Path, container: str) -> None:
    file = write_lines(tmp_path / "own", OWN)
    if container == "parquet":
        pl.DataFrame(OWN).write_parquet(file)
    elif container != "jsonl":
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    rows, problems = imported(file, fields=OWN_MAP)
    assert outcomes(rows) == [
        ("ada", "a", 0, "72", "correct"),
        ("ada", "a", 1, "71", "wrong"),
        ("ada", "b", 0, "81", "correct"),
    ]
    assert problems["question"].to_list() == ["What is 9 * 8?", "What is 9 * 9?"]
    assert load_run(tmp_path / "out").counts["c"].to_list() == [1, 1]


def test_parquet_with_the_fields_of_core_hpc_needs_no_mapping(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"problem": "a", "model": "ada", "sample": 0, "text": RIGHT, "gold": "72", "token_count": 5},
        {"problem": "a", "model": "ada", "sample": 1, "text": WRONG, "gold": "72", "token_count": None},
    ]
    pl.DataFrame(lines).write_parquet(tmp_path / "p.parquet")
    rows, _ = imported(tmp_path / "p.parquet")
    assert rows["verdict"].to_list() == ["correct", "wrong"]
    assert rows["num_completion_tokens"].to_list() == [5, 0]


def test_a_problem_without_an_id_gets_one_from_its_question(tmp_path: Path) -> None:
    choices = {"question": "prompt", "text": "out.text", "gold": "reference"}
    rows, problems = imported(write_lines(tmp_path / "own.jsonl", OWN), fields=choices, model="bob")
    first, second = (id_of(row["prompt"]) for row in (OWN[0], OWN[2]))
    assert rows["problem_id"].to_list() == [first, first, second]
    assert problems["problem_id"].to_list() == [first, second]
    assert rows["model"].unique().to_list() == ["bob"]


def test_only_wanted_records_are_read_and_the_choices_are_recorded(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "own.jsonl", [{**row, "round": i} for i, row in enumerate(OWN)])
    rows, _ = imported(file, fields=OWN_MAP, where={"round": "1"})
    assert outcomes(rows) == [("ada", "a", 0, "71", "wrong")]
    origin = read_identity(tmp_path / "out")["imported"]
    assert (origin["from"], origin["map"], origin["where"]) == ("jsonl", OWN_MAP, {"round": "1"})


def test_a_mistake_names_file_row_and_remedy(tmp_path: Path) -> None:
    pl.DataFrame(OWN).write_parquet(tmp_path / "own.parquet")
    without_model = {name: path for name, path in OWN_MAP.items() if name != "model"}
    text = refused(tmp_path / "own.parquet", fields=without_model)
    assert "own.parquet: 3 bad rows" in text
    assert "own.parquet, row 2: no field 'model'; give the name of the model with --model NAME" in text
    text = refused(tmp_path / "own.parquet", fields={**OWN_MAP, "gold": "out.gold"})
    assert "row 1: no field 'out.gold' (the record has qid, prompt, out, llm, reference)" in text
    text = refused(tmp_path / "own.parquet", fields={"text": "out.text"}, model="ada")
    assert "--map problem=FIELD" in text
    assert "no field 'step'" in refused(tmp_path / "own.parquet", fields=OWN_MAP, where={"step": "3"})


@pytest.mark.parametrize("value", [0.5, "P", -1, "yes", [1]])
def test_a_value_between_right_and_wrong_is_no_verdict(value: Any) -> None:
    with pytest.raises(ValueError, match="no verdict"):
        as_verdict(value, "reward")


@pytest.mark.parametrize(
    ("value", "correct"), [(1.0, True), (0, False), ("C", True), ("N", False), ("false", False), (None, None)]
)
def test_verdicts(value: Any, correct: bool | None) -> None:
    assert as_verdict(value, "reward") is correct


# --- lm-evaluation-harness -----------------------------------------------------------------------


def lm_eval_row(doc_id: int = 0, texts: tuple[str, ...] = (RIGHT,), **changes: Any) -> dict[str, Any]:
    row = {
        "doc_id": doc_id,
        "doc": {"question": f"Question {doc_id}?", "answer": "9 * 8 = <<9*8=72>>72\n#### 72"},
        "target": "9 * 8 = <<9*8=72>>72\n#### 72",
        "arguments": {"gen_args_0": {"arg_0": "Question: ...", "arg_1": {"until": ["Question:"], "do_sample": False}}},
        "resps": [list(texts)],
        "filtered_resps": [texts[0].rsplit(" ", 1)[-1]],
        "filter": "strict-match",
        "metrics": ["exact_match"],
        "doc_hash": "6ab2",
        "prompt_hash": "f1d0",
        "target_hash": "39ba",
        "exact_match": 1.0,
    }
    return row | changes


def lm_eval_file(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    return write_lines(tmp_path / "Qwen__Qwen3-4B" / "samples_gsm8k_2026-08-01T10-11-12.345678.jsonl", rows)


def test_samples_of_lm_eval(tmp_path: Path) -> None:
    invalid = {"filtered_resps": ["[invalid]"], "exact_match": 0.0}
    file = lm_eval_file(tmp_path, [lm_eval_row(0), lm_eval_row(1, ("I do not know",), **invalid)])
    rows, problems = imported(file, LM_EVAL)
    assert outcomes(rows) == [
        ("qwen__qwen3-4b", "0", 0, "72", "correct"),
        ("qwen__qwen3-4b", "1", 0, None, "no_answer"),
    ]
    assert rows["text"].to_list() == [RIGHT, "I do not know"]
    assert problems.select("question", "gold", "answer_kind").rows() == [
        ("Question 0?", "72", "number"),
        ("Question 1?", "72", "number"),
    ]
    assert json.loads(problems["metadata"][0])["data_set"] == "gsm8k"


def test_repeats_of_lm_eval_are_verified_here(tmp_path: Path) -> None:
    file = lm_eval_file(tmp_path, [lm_eval_row(0, (RIGHT, WRONG, RIGHT))])
    rows, _ = imported(file, LM_EVAL, model="ada")
    assert outcomes(rows) == [
        ("ada", "0", 0, "72", "correct"),
        ("ada", "0", 1, "71", "wrong"),
        ("ada", "0", 2, "72", "correct"),
    ]


def test_a_filter_of_lm_eval_is_chosen(tmp_path: Path) -> None:
    flexible = lm_eval_row(0, filter="flexible-extract", exact_match=0.0)
    file = lm_eval_file(tmp_path, [lm_eval_row(0), flexible])
    text = refused(file, LM_EVAL)
    assert "line 2: 'filter' is 'flexible-extract', but 'strict-match' on earlier records" in text
    assert "--where filter=strict-match" in text
    rows, _ = imported(file, LM_EVAL, where={"filter": "flexible-extract"})
    assert rows["verdict"].to_list() == ["wrong"]


def test_what_lm_eval_cannot_give_is_refused_with_the_remedy(tmp_path: Path) -> None:
    choice = lm_eval_row(resps=[[["-3.2", "False"]], [["-1.5", "True"]]], metrics=["acc"], acc=1.0)
    assert "output_type: generate_until" in refused(lm_eval_file(tmp_path, [choice]), LM_EVAL)
    two = lm_eval_row(metrics=["exact_match", "bleu"], bleu=0.3)
    assert "--map correct=exact_match" in refused(lm_eval_file(tmp_path, [two]), LM_EVAL)
    assert "'bleu' is 0.3, which is no verdict" in refused(
        lm_eval_file(tmp_path, [two]), LM_EVAL, fields={"correct": "bleu"}
    )
    assert "no field 'doc_id', so it is not of lm-eval" in refused(lm_eval_file(tmp_path, OWN), LM_EVAL)
    again = refused(lm_eval_file(tmp_path, [lm_eval_row(0), lm_eval_row(0)]), LM_EVAL)
    assert "line 2: model 'Qwen__Qwen3-4B', problem '0', sample 0 is also on line 1" in again


# --- Inspect -------------------------------------------------------------------------------------


def inspect_sample(sample_id: int | str = 1, epoch: int = 1, text: str = RIGHT, **changes: Any) -> dict[str, Any]:
    message = {"id": "m2", "role": "assistant", "content": text, "source": "generate"}
    sample = {
        "id": sample_id,
        "epoch": epoch,
        "input": f"Question {sample_id}?",
        "target": "72",
        "messages": [{"id": "m1", "role": "user", "content": f"Question {sample_id}?", "source": "input"}, message],
        "output": {
            "model": "Qwen/Qwen3-4B",
            "choices": [{"message": message, "stop_reason": "stop"}],
            "completion": text,
            "usage": {"input_tokens": 66, "output_tokens": 12, "total_tokens": 78},
            "time": 1.2,
        },
        "scores": {"match": {"value": "C" if text == RIGHT else "I", "answer": text.split()[-1], "history": []}},
        "metadata": {"level": 3},
        "store": {},
        "events": [],
        "model_usage": {},
        "attachments": {},
    }
    return sample | changes


def inspect_log(samples: list[dict[str, Any]]) -> dict[str, Any]:
    spec = {
        "eval_id": "e1",
        "run_id": "r1",
        "created": "2026-08-21T12:53:13+00:00",
        "task": "gsm8k",
        "task_id": "t1",
        "task_version": 0,
        "dataset": {"name": "gsm8k-test", "samples": 2, "sample_ids": [1, 2], "shuffled": False},
        "model": "hf/Qwen/Qwen3-4B",
        "model_args": {},
        "config": {"epochs": 2},
    }
    return {"version": 2, "status": "success", "eval": spec, "plan": {}, "stats": {}, "samples": samples}


def write_archive(path: Path, log: dict[str, Any], *, zstandard: bool) -> Path:
    """A log as a zip archive; Inspect 0.3.260 compresses with Zstandard, earlier releases deflate."""
    header = {name: value for name, value in log.items() if name != "samples"}
    entries = {f"samples/{s['id']}_epoch_{s['epoch']}.json": s for s in log["samples"]}
    contents = {"_journal/start.json": header, **entries, "summaries.json": [], "header.json": header}
    if not zstandard:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, value in contents.items():
                archive.writestr(name, json.dumps(value))
        return path
    data, directory = b"", b""
    for name, value in contents.items():
        plain = json.dumps(value).encode()
        packed = pa.compress(plain, codec="zstd", asbytes=True)
        common = struct.pack("<HHHHHLLLHH", 63, 0, 93, 0, 33, zlib.crc32(plain), len(packed), len(plain), len(name), 0)
        offset = len(data)
        data += b"PK\x03\x04" + common + name.encode() + packed
        directory += b"PK\x01\x02" + struct.pack("<H", 63) + common
        directory += struct.pack("<HHHLL", 0, 0, 0, 0, offset) + name.encode()
    end = struct.pack("<HHHHLLH", 0, 0, len(contents), len(contents), len(directory), len(data), 0)
    path.write_bytes(data + directory + b"PK\x05\x06" + end)
    return path


@pytest.mark.parametrize("container", ["json", "deflate", "zstandard"])
def test_logs_of_inspect(tmp_path: Path, container: str) -> None:
    samples = [inspect_sample(i, epoch, text) for i in (1, 10, 2) for epoch, text in ((1, RIGHT), (2, WRONG))]
    file = tmp_path / "2026-08-21_gsm8k_t1.log"
    if container == "json":
        file.write_text(json.dumps(inspect_log(samples)), encoding="utf-8")
    else:
        write_archive(file, inspect_log(samples), zstandard=container == "zstandard")
    rows, problems = imported(file, INSPECT)
    name = "hf-qwen-qwen3-4b"
    expected = [(name, p, s, a, v) for p in ("1", "10", "2") for s, a, v in ((0, "72", "correct"), (1, "71", "wrong"))]
    assert outcomes(rows) == expected
    assert rows["num_completion_tokens"].unique().to_list() == [12]
    assert problems["question"].to_list() == ["Question 1?", "Question 10?", "Question 2?"]
    assert json.loads(problems["metadata"][0]) == {"data_set": "gsm8k-test", "level": "3"}


def test_conversations_and_cut_completions_of_inspect(tmp_path: Path) -> None:
    sample = inspect_sample(
        "x",
        input=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "attachment://77"}],
        attachments={"77": "A long question?"},
        target="B",
        choices=["70", "72"],
        scores={"choice": {"value": "I", "answer": "A"}},
    )
    sample["output"]["choices"][0]["stop_reason"] = "max_tokens"
    file = tmp_path / "log.json"
    file.write_text(json.dumps(inspect_log([sample])), encoding="utf-8")
    rows, problems = imported(file, INSPECT)
    assert rows.select("answer", "verdict", "finish_reason").rows() == [("A", "wrong", "length")]
    assert problems.select("question", "gold", "answer_kind").rows() == [("A long question?", "B", "letter")]


def test_what_inspect_cannot_give_is_refused_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "log.json"
    stopped = inspect_sample(2, scores=None, error={"message": "out of memory", "traceback": ""})
    both = inspect_sample(3, scores={"match": {"value": "C"}, "judge": {"value": 0.5}})
    partly = inspect_sample(4, scores={"match": {"value": "P"}})
    file.write_text(json.dumps(inspect_log([inspect_sample(1), stopped, both, partly])), encoding="utf-8")
    text = refused(file, INSPECT)
    assert "log.json: 3 bad samples" in text
    assert "sample 2: sample 2, epoch 1, stopped with an error; run `inspect eval-retry LOG`" in text
    assert "sample 3: several scores (match, judge); choose with --map correct=scores.match.value" in text
    assert "sample 4: 'scores.match.value' is 'P', which is no verdict" in text
    file.write_text(json.dumps({"eval": {}}), encoding="utf-8")
    assert "without samples" in refused(file, INSPECT)
    file.write_text("[1, 2]", encoding="utf-8")
    assert "is not a JSON object; give a log of Inspect" in refused(file, INSPECT)
    file.write_bytes(b"PK\x03\x04 cut")
    assert "not a readable log of Inspect" in refused(file, INSPECT)


# --- TRL and verl --------------------------------------------------------------------------------


def trl_file(tmp_path: Path, **changes: Any) -> Path:
    """Two completions of each of two prompts, as texts or, with a chat template, as messages."""
    columns = {
        "step": [40] * 4,
        "prompt": ["What is 9 * 8?"] * 2 + ["What is 9 * 9?"] * 2,
        "completion": [RIGHT, WRONG, "#### 81", "#### 80"],
        "accuracy_reward": [1.0, 0.0, 1.0, 0.0],
        "advantage": [0.7, -0.7, 0.7, -0.7],
    }
    path = tmp_path / "completions_00040.parquet"
    pl.DataFrame(columns | changes).write_parquet(path)
    return path


EXPECTED = [("72", "correct"), ("71", "wrong"), ("81", "correct"), ("80", "wrong")]


def test_completions_of_trl(tmp_path: Path) -> None:
    rows, problems = imported(trl_file(tmp_path), TRL, model="ada")
    assert rows.select("answer", "verdict").rows() == EXPECTED
    assert rows["sample_index"].to_list() == [0, 1, 0, 1]
    assert problems["question"].to_list() == ["What is 9 * 8?", "What is 9 * 9?"]


def test_conversations_of_trl_with_a_logged_gold_answer(tmp_path: Path) -> None:
    prompts = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Number {i}?"}] for i in (1, 2)
    ]
    texts = (RIGHT, WRONG, "#### 81", "#### 80")
    file = trl_file(
        tmp_path,
        prompt=[prompts[0], prompts[0], prompts[1], prompts[1]],
        completion=[[{"role": "assistant", "content": text}] for text in texts],
        format_reward=[1.0, 1.0, 0.5, 1.0],
        solution=["72", "72", "81", "81"],
    )
    assert "several possible verdicts (accuracy_reward, format_reward)" in refused(file, TRL, model="ada")
    rows, problems = imported(file, TRL, model="ada", fields={"gold": "solution"})
    assert rows.select("answer", "verdict").rows() == EXPECTED
    assert problems.select("question", "gold").rows() == [("Number 1?", "72"), ("Number 2?", "81")]


def verl_rows(**changes: Any) -> list[dict[str, Any]]:
    """The reward of math_dapo: 1 and -1, with the verdict and the answer it found."""
    return [
        {
            "input": f"user\nWhat is 9 * {n}?\nassistant\n",
            "output": text,
            "gts": str(9 * n),
            "score": 1.0 if right else -1.0,
            "step": 12,
            "acc": right,
            "pred": text.split()[-1],
            **changes,
        }
        for n, text, right in ((8, RIGHT, True), (8, WRONG, False), (9, "#### 81", True), (9, "#### 80", False))
    ]


def test_generations_of_verl(tmp_path: Path) -> None:
    rows, problems = imported(write_lines(tmp_path / "12.jsonl", verl_rows()), VERL, model="ada")
    assert rows.select("answer", "verdict").rows() == EXPECTED
    assert rows["sample_index"].to_list() == [0, 1, 0, 1]
    assert problems["gold"].to_list() == ["72", "81"]


def test_steps_of_training_do_not_mix(tmp_path: Path) -> None:
    rows = verl_rows()
    rows[3]["step"] = 13
    file = write_lines(tmp_path / "all.jsonl", rows)
    assert "line 4: 'step' is 13, but 12 on earlier records" in refused(file, VERL, model="ada")
    kept, _ = imported(file, VERL, model="ada", where={"step": "12"})
    assert kept.height == 3


def test_a_reward_of_verl_that_is_no_verdict_is_verified_here(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k not in ("acc", "pred")} for row in verl_rows()]
    file = write_lines(tmp_path / "12.jsonl", rows)
    assert "'score' is -1.0, which is no verdict" in refused(file, VERL, model="ada")
    kept, _ = imported(file, VERL, model="ada", fields={"gold": "gts"})
    assert kept.select("answer", "verdict").rows() == EXPECTED


# --- the command line ----------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_lines(tmp_path / "all.jsonl", verl_rows() + verl_rows(step=13))
    arguments = ["import", str(file), "--out", str(tmp_path / "out"), "--from", "verl", "--model", "ada"]
    assert main([*arguments, "--where", "step=13", "--map", "correct=acc"]) == 0
    assert "2 problems; ada (4 completions)" in capsys.readouterr().out
    for wrong, message in (("colour=acc", "'colour' is not a field of core_hpc"), ("acc", "'acc' is not a pair")):
        with pytest.raises(SystemExit):
            main([*arguments, "--map", wrong])
        assert message in capsys.readouterr().err


def test_the_page_has_every_origin() -> None:
    page = (Path(__file__).parents[3] / "analysis" / "README.md").read_text(encoding="utf-8")
    assert not [name for name in ORIGINS if f"--from {name}" not in page]
