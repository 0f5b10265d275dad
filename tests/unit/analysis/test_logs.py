"""Export as logs of Inspect and lm-evaluation-harness: their formats, and the way back by the import.

`inspect_log_schema.json` has the pydantic models of inspect_ai 0.3.285 as JSON Schema. The fields of
lm-evaluation-harness are those of `SampleResult` and `EvalResults` in its 0.4.13.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import polars as pl
import pytest

from analysis.__main__ import main
from analysis.exchange.converters import INSPECT, LM_EVAL, Origin
from analysis.exchange.folder import import_predictions
from analysis.exchange.logs import WRITERS, export_logs
from core_hpc.common.errors import InputError, StoreError
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths
from core_hpc.store.schema import ATTRIBUTES, EVALUATE, PROBLEMS, ROLLOUTS
from core_hpc.store.shards import publish_frame, read_manifest_table, read_rows
from tests.support.analysis_data import (
    config,
    evaluated_run,
    evaluation_rows,
    make_run,
    publish_rollouts,
    rollout,
    run_with_own_kind,
)

COMPARED = [
    "model",
    "problem_id",
    "sample_index",
    "text",
    "answer",
    "gold",
    "verdict",
    "correct",
    "num_completion_tokens",
    "finish_reason",
]
SCHEMA = json.loads((Path(__file__).parent / "inspect_log_schema.json").read_text(encoding="utf-8"))
SAMPLE_RESULT = {
    "doc_id": int,
    "doc": dict,
    "target": str,
    "arguments": dict,
    "resps": list,
    "filtered_resps": list,
    "filter": str,
    "metrics": list,
    "doc_hash": str,
    "prompt_hash": str,
    "target_hash": str,
}
EVAL_RESULTS = {
    "results",
    "group_subtasks",
    "configs",
    "versions",
    "n-shot",
    "higher_is_better",
    "n-samples",
    "config",
    "git_hash",
    "date",
    "model_source",
    "model_name",
    "model_name_sanitized",
    "system_instruction",
    "system_instruction_sha",
    "fewshot_as_multiturn",
    "chat_template",
    "chat_template_sha",
    "task_hashes",
    "total_evaluation_time_seconds",
}


def completions(run: Path, iteration: int) -> list[tuple[Any, ...]]:
    rows = read_rows(run, ROLLOUTS, phases=[EVALUATE]).filter(pl.col("iteration") == iteration)
    return rows.select(COMPARED).sort("model", "problem_id", "sample_index").rows()


def problems(run: Path) -> list[tuple[Any, ...]]:
    manifest = manifests.read_manifest(RunPaths(run).problems / "evaluation.manifest.json")
    frame = read_manifest_table(manifest, PROBLEMS)
    known = [{name: json.loads(text).get(name) for name in ATTRIBUTES} for text in frame["metadata"]]
    shared = frame.select("problem_id", "question", "gold", "answer_kind").rows()
    # Without a `data_set`, a problem gets the name of its source when it is read.
    return sorted(
        (*row, known[i]["subject"], known[i]["level"], known[i]["source_group"]) for i, row in enumerate(shared)
    )


def files_of(folder: Path, software: str) -> list[Path]:
    return sorted(folder.rglob("*.eval" if software == INSPECT else "samples_*.jsonl"))


def back(folder: Path, software: str, *, iteration: int = 0) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The completions and the problems of all files of an export, each imported for itself."""
    rows: list[tuple[Any, ...]] = []
    known: list[tuple[Any, ...]] = []
    for i, file in enumerate(files_of(folder, software)):
        run = import_predictions(file, folder.parent / f"back-{i}", origin=Origin(software)).path
        rows += completions(run, iteration)
        known += problems(run)
    return sorted(rows, key=lambda row: row[:3]), sorted(set(known))


def entries(log: Path) -> dict[str, Any]:
    with zipfile.ZipFile(log) as archive:
        assert archive.testzip() is None
        return {name: json.loads(archive.read(name)) for name in archive.namelist()}


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# --- the way back --------------------------------------------------------------------------------


@pytest.mark.parametrize("software", WRITERS)
@pytest.mark.parametrize("iteration", [None, 0])
def test_an_import_gives_the_same_completions(tmp_path: Path, software: str, iteration: int | None) -> None:
    run = evaluated_run(tmp_path / "run")
    done = export_logs(run, tmp_path / "logs", software, iteration=iteration)
    which = 2 if iteration is None else iteration
    assert (done.iteration, done.num_completions, done.notes) == (which, {"ada": 24, "bob": 24}, [])
    rows, known = back(done.path, software)
    assert rows == completions(run, which)
    assert {row[6] for row in rows} == {"correct", "wrong", "no_answer", "timeout"}
    assert known == problems(run)


@pytest.mark.parametrize("software", WRITERS)
def test_given_verdicts_and_other_kinds_survive(tmp_path: Path, software: str) -> None:
    """Neither program has these fields, so a plain import would verify again, and differ."""
    common = {"model": "ada", "data_set": "own", "source_group": "g"}
    lines: list[dict[str, Any]] = [
        {"problem": "a/1", "sample": 0, "answer": "X", "correct": False, **common},
        {"problem": "a/1", "sample": 3, "answer": None, "text": "It is #### 5", "correct": False, **common},
        {"problem": "b", "sample": 0, "answer": "(B)", "gold": "b", "answer_kind": "letter", **common},
        {"problem": "c", "sample": 1, "text": "[invalid]", "gold": "see #### 3", "correct": True, **common},
        {"problem": "d", "sample": 0, "text": '\x00 "quoted" \u2028 😀', "answer": "5", "gold": "5", **common},
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    run = import_predictions(tmp_path / "own.jsonl", tmp_path / "run").path
    rows, known = back(export_logs(run, tmp_path / "logs", software).path, software)
    assert rows == completions(run, 0)
    assert [row[4] for row in rows] == ["X", None, "B", None, "5"]
    assert known == problems(run)


@pytest.mark.parametrize("software", WRITERS)
def test_verdicts_of_the_users_own_kind_survive(tmp_path: Path, software: str) -> None:
    run = run_with_own_kind(tmp_path / "run")
    rows, known = back(export_logs(run, tmp_path / "logs", software).path, software)
    assert rows == completions(run, 1)
    assert [(row[0], row[2], row[3]) for row in known] == [("p0", "1,200", "given"), ("p1", "blue", "given")]


@pytest.mark.parametrize("software", WRITERS)
def test_cold_completions_are_exported_but_not_imported_as_held_out(tmp_path: Path, software: str) -> None:
    run = make_run(tmp_path / "run")
    publish_rollouts(run, [rollout(problem_id="t0", sample_index=s, model=m) for m in ("ada", "bob") for s in range(2)])
    done = export_logs(run, tmp_path / "logs", software, phase="cold", models=["bob"])
    assert (done.iteration, done.num_completions) == (1, {"bob": 2})
    (file,) = files_of(done.path, software)
    with pytest.raises(InputError, match="'phase' should be 'evaluate', not 'cold'"):
        import_predictions(file, tmp_path / "back", origin=Origin(software))


@pytest.mark.parametrize("software", WRITERS)
def test_every_problem_set_is_a_task(tmp_path: Path, software: str) -> None:
    source = {"source": "generated", "count": 2}
    sets = [{"name": "far", "problems": source, "samples": 3, "sampling": {"temperature": 0.25}}]
    run = make_run(tmp_path / "run", config(evaluation={"samples": 2, "sets": sets}))
    names = {"p0": 2, "p1": 2, "far/p0": 3, "far/p1": 3}
    rows = [("What?", name) for name in names]
    frame = pl.DataFrame([(n, q, "2", "number", "{}") for q, n in rows], schema=PROBLEMS.schema, orient="row")
    publish_frame(RunPaths(run).problems, "evaluation", frame, PROBLEMS)
    made = [
        rollout(phase=EVALUATE, iteration=1, problem_id=name, sample_index=s, correct=name == "far/p1")
        for name, num in names.items()
        for s in range(num)
    ]
    frame = pl.DataFrame(made, schema=ROLLOUTS.schema)
    publish_frame(RunPaths(run).phase_folder(EVALUATE, 1), "ada-p000", frame, ROLLOUTS)
    done = export_logs(run, tmp_path / "logs", software, models=["ada"])
    assert done.notes == []
    found = {}
    for file in files_of(done.path, software):
        if software == INSPECT:
            log = entries(file)["header.json"]
            spec, metrics = log["eval"], log["results"]["scores"][0]["metrics"]
            temperature = spec["model_generate_config"]["temperature"]
            found[spec["task"]] = (spec["dataset"]["sample_ids"], metrics["accuracy"]["value"], temperature)
        else:
            (results,) = (json.loads(f.read_text()) for f in file.parent.glob("results_*.json"))
            task = file.name.split("_2")[0].removeprefix("samples_")
            ids = [record["doc"]["id"] for record in records(file)]
            temperature = results["configs"][task]["generation_kwargs"]["temperature"]
            found[task] = (ids, results["results"][task]["pass@1,none"], temperature)
    main_set = config().problems.evaluation
    assert main_set.source == "generated"
    assert found == {main_set.task: (["p0", "p1"], 0.0, 0.7), "far": (["far/p0", "far/p1"], 0.5, 0.25)}


# --- the formats ---------------------------------------------------------------------------------


def shares(run: Path, model: str) -> list[float]:
    """The share of correct completions of each problem, counted with a dictionary."""
    found: dict[str, list[bool]] = {}
    for row in read_rows(run, ROLLOUTS, phases=[EVALUATE]).filter(iteration=2, model=model).iter_rows(named=True):
        found.setdefault(row["problem_id"], []).append(row["correct"])
    return [sum(marks) / len(marks) for marks in found.values()]


def check(value: Any, name: str) -> None:
    """Compare an object with the pydantic model of Inspect, in which no other field is allowed."""
    schema = {"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]}
    errors = [f"{e.json_path}: {e.message}" for e in jsonschema.Draft202012Validator(schema).iter_errors(value)]
    assert errors == []


def test_the_schema_refuses_what_inspect_would_not_read() -> None:
    with pytest.raises(AssertionError, match="'epoch' is a required property"):
        check({"id": "p0", "input": "", "target": ""}, "EvalSample")
    with pytest.raises(AssertionError, match="'colour' was unexpected"):
        check({"name": "accuracy", "value": 1.0, "colour": 1}, "EvalMetric")


def test_a_log_has_the_fields_of_inspect(tmp_path: Path) -> None:
    run = evaluated_run(tmp_path / "run")
    logs = [entries(file) for file in files_of(export_logs(run, tmp_path / "logs", INSPECT).path, INSPECT)]
    assert {log["header.json"]["eval"]["model"] for log in logs} == {"core_hpc/ada", "core_hpc/bob"}
    ids = [log["header.json"]["eval"][name] for log in logs for name in ("eval_id", "run_id", "task_id")]
    assert len(set(ids)) == 6
    for log in logs:
        header, samples = log["header.json"], [log[name] for name in log if name.startswith("samples/")]
        check(header, "EvalLog")
        assert (header["version"], header["status"]) == (2, "success")
        assert log["_journal/start.json"].keys() == {"version", "eval", "plan"}
        check(log["_journal/start.json"]["eval"], "EvalSpec")
        for sample in samples:
            check(sample, "EvalSample")
            assert f"samples/{sample['id']}_epoch_{sample['epoch']}.json" in log
        for summary in log["summaries.json"]:
            check(summary, "EvalSampleSummary")
        # The viewer lists the summaries, and opens a sample by its id and epoch.
        keys = {(sample["id"], sample["epoch"]) for sample in samples}
        assert {(summary["id"], summary["epoch"]) for summary in log["summaries.json"]} == keys
        assert keys == {(f"p{i}", epoch) for i in range(6) for epoch in (1, 2, 3, 4)}
        assert header["eval"]["config"]["epochs"] == log["_journal/start.json"]["eval"]["config"]["epochs"] == 4
        expected = shares(run, header["eval"]["metadata"]["core_hpc"]["model"])
        (score,), num = header["results"]["scores"], header["results"]["completed_samples"]
        assert (score["scored_samples"], num) == (6, 24)
        assert score["metrics"]["accuracy"]["value"] == pytest.approx(statistics.fmean(expected))
        assert score["metrics"]["stderr"]["value"] == pytest.approx(statistics.stdev(expected) / 6**0.5)
        values = {s["scores"]["core_hpc"]["metadata"]["verdict"]: s["scores"]["core_hpc"]["value"] for s in samples}
        assert values.items() <= {"correct": "C", "wrong": "I", "no_answer": "N", "timeout": "I"}.items()


def test_records_and_results_have_the_fields_of_lm_eval(tmp_path: Path) -> None:
    run = evaluated_run(tmp_path / "run")
    folder = export_logs(run, tmp_path / "logs", LM_EVAL).path
    assert sorted(path.name for path in folder.iterdir()) == ["ada", "bob"]
    for model in ("ada", "bob"):
        (file,), (path,) = (folder / model).glob("samples_*.jsonl"), (folder / model).glob("results_*.json")
        task = "addition_chain"
        # The software takes what is between the first and the last underscore as the task.
        assert file.name[file.name.find("_") + 1 : file.name.rfind("_")] == task
        assert file.name.rsplit("_", 1)[1].removesuffix(".jsonl") == path.stem.removeprefix("results_")
        rows, results = records(file), json.loads(path.read_text(encoding="utf-8"))
        for i, row in enumerate(rows):
            assert {name: type(row[name]) for name in SAMPLE_RESULT} == SAMPLE_RESULT
            assert row.keys() == {*SAMPLE_RESULT, *row["metrics"], "core_hpc"}
            assert (row["doc_id"], row["doc"]["id"]) == (i, f"p{i}")
            assert [len(texts) for texts in row["resps"]] == [4]
            hashed = {
                "doc_hash": json.dumps(row["doc"], indent=2, ensure_ascii=False),
                "prompt_hash": row["arguments"]["gen_args_0"]["arg_0"],
                "target_hash": row["target"],
            }
            assert {name: row[name] for name in hashed} == {name: sha256(text) for name, text in hashed.items()}
        hashes = "".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows)
        assert results.keys() == EVAL_RESULTS
        assert results["task_hashes"] == {task: sha256(hashes)}
        expected = shares(run, model)
        assert [row["pass@1"] for row in rows] == expected
        figures = results["results"][task]
        assert figures["pass@1,none"] == pytest.approx(statistics.fmean(expected))
        assert figures["pass@1_stderr,none"] == pytest.approx(statistics.stdev(expected) / 6**0.5)
        assert (figures["sample_len"], results["n-samples"][task]) == (6, {"original": 6, "effective": 6})


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("software", WRITERS)
def test_an_export_is_reproducible(tmp_path: Path, software: str) -> None:
    run = evaluated_run(tmp_path / "run")
    (tmp_path / "b").mkdir()  # an empty folder may exist
    contents = []
    for name in ("a", "b"):
        folder = export_logs(run, tmp_path / name, software).path
        files = [path for path in folder.rglob("*") if path.is_file()]
        contents.append({path.relative_to(folder): path.read_bytes() for path in files})
    assert contents[0] == contents[1]


# --- what cannot be exported ---------------------------------------------------------------------


def test_a_run_in_progress_is_exported_with_a_note(tmp_path: Path) -> None:
    run = evaluated_run(tmp_path / "run")
    publish_rollouts(run, evaluation_rows({"ada": [[True, False, True, True]]}, 4))
    done = export_logs(run, tmp_path / "logs", INSPECT, iteration=4)
    assert done.num_completions == {"ada": 4, "bob": 0}
    assert done.notes[1] == "not all completions are published yet: addition_chain of ada"
    (file,) = files_of(done.path, INSPECT)
    header = entries(file)["header.json"]
    assert (header["status"], header["results"]["total_samples"]) == ("cancelled", 24)


@pytest.mark.parametrize("software", WRITERS)
def test_what_cannot_be_exported(tmp_path: Path, software: str) -> None:
    run, out = evaluated_run(tmp_path / "run"), tmp_path / "logs"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"phase": "rescue"}, f"{software} has no field for what phase rescue adds .*; leave --to out, or use --phase"),
        ({"iteration": 7}, "iteration 7 of phase evaluate is not published; .*: 0, 2"),
        ({"models": ["eve"]}, "--model eve: .* has no such model, only ada, bob"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            export_logs(run, out, software, **options)
    assert not out.exists()
    damaged = next((run / "evaluate" / "iteration=0002").glob("bob-p001.*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(StoreError, match=str(damaged)):
        export_logs(run, out, software)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=f"{out}: is not empty; give another folder as --out"):
        export_logs(run, out, software, iteration=0)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = evaluated_run(tmp_path / "run")
    command = ["export", str(run), "--to", "lm-eval", "--model", "bob", "--iteration", "0"]
    assert main([*command, "--out", str(tmp_path / "logs")]) == 0
    assert "phase evaluate of iteration 0; bob (24 completions)" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["bob"]
    assert main([*command, "--out", str(tmp_path / "more"), "--form", "problem"]) == 2
    assert "--form problem is for JSON lines; leave --form or --to lm-eval out" in capsys.readouterr().err
    assert main(["export", str(run), "--out", str(tmp_path / "bob.jsonl"), "--model", "bob"]) == 0
    lines = records(tmp_path / "bob.jsonl")
    assert {line["model"] for line in lines} == {"bob"}


def test_the_page_has_every_format() -> None:
    page = (Path(__file__).parents[3] / "analysis" / "README.md").read_text(encoding="utf-8")
    assert not [name for name in WRITERS if f"--to {name}" not in page]
