"""Rescoring: the original does not change, new verdicts are counted and used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis.__main__ import main
from analysis.counts.load import load_run
from analysis.exchange.folder import import_predictions, verifier_version
from analysis.exchange.rescore import CHANGE_TABLE, PASS_CHANGE_TABLE, rescore, rescore_report
from core_hpc.common.errors import InputError, StoreError
from core_hpc.runs.choice import Choice
from core_hpc.runs.folder import read_identity
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths
from core_hpc.store.schema import COLD, EVALUATE, HINTS, PROBLEMS, RESCUE, ROLLOUTS, SCORE, SCORES
from core_hpc.store.shards import publish_frame, read_manifest_table, read_rows, task_of_manifest
from tests.support.analysis_data import config, make_run, pick, publish_rollouts, rollout
from tests.support.whole_run import scores_of

RIGHT, OFF = "#### 2", "#### 3"


def row(text: str, verdict: str, **values: Any) -> dict[str, Any]:
    """A completion with the verdict of the first verifier."""
    answer = None if verdict == "no_answer" else "old"
    return rollout(text=text, verdict=verdict, correct=verdict == "correct", answer=answer, gold="2", **values)


def stored_run(folder: Path) -> Path:
    """A run in which the stored verdicts of ada's cold t0 (wrong) and t1 (correct) are false."""
    run = make_run(folder)
    for split, names in (("train", ("t0", "t1", "t2")), ("evaluation", ("p0", "p1", "p2"))):
        rows = [
            (name, "What?", "2", "number", json.dumps({"source_group": "g" if name == "p0" else "h"})) for name in names
        ]
        problems = pl.DataFrame(rows, schema=PROBLEMS.schema, orient="row")
        publish_frame(RunPaths(run).problems, split, problems, PROBLEMS)
    cold = [
        row(RIGHT, "wrong", problem_id="t0"),
        row(OFF, "correct", problem_id="t1"),
        row(OFF, "wrong", problem_id="t2"),
    ]
    cold += [row(RIGHT, "correct", problem_id=t, model="bob") for t in ("t0", "t1", "t2")]
    again: dict[str, Any] = {"phase": RESCUE, "teacher_model": "bob", "teacher_sample_index": 0}
    rescues = [
        row(RIGHT, "correct", problem_id="t0", cold_failed=True, hint_given=True, **again),
        row(OFF, "wrong", problem_id="t0", cold_failed=True, sample_index=1, **again),
        row(RIGHT, "timeout", problem_id="t2", cold_failed=True, hint_given=True, **again),
        row(OFF, "wrong", problem_id="t1", cold_failed=False, **again),
    ]
    held_out: dict[str, Any] = {"phase": EVALUATE, "iteration": 0}
    evaluated = [
        row(RIGHT, "wrong", problem_id="p0", **held_out),
        row("well", "no_answer", problem_id="p1", **held_out),
    ]
    evaluated += [
        row(OFF, "correct", problem_id="p2", **held_out),
        row(RIGHT, "correct", problem_id="p2", sample_index=1, **held_out),
    ]
    publish_rollouts(run, [*cold, *rescues, *evaluated])
    hint = {
        "run_id": "demo",
        "iteration": 1,
        "model": "ada",
        "problem_id": "t0",
        "cold_failed": True,
        "teacher_model": "bob",
        "teacher_sample_index": 0,
        "hint": "think",
        "num_hint_tokens": 1,
        "reason": "rescue",
        "hint_draws": [True, False],
    }
    publish_frame(RunPaths(run).phase_folder("hint", 1), "team-p000", pl.DataFrame([hint], schema=HINTS.schema), HINTS)
    (run / "horizon.json").write_text("[]")
    manifests.make_folder(RunPaths(run).phase_folder("score", 1))
    return run


def checksums(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def rows_of(run: Path, phase: str) -> pl.DataFrame:
    return read_rows(run, ROLLOUTS, phases=[phase])


def test_the_original_does_not_change_and_the_copy_is_complete(tmp_path: Path) -> None:
    run = stored_run(tmp_path / "run")
    before = checksums(run)
    done = rescore(run, tmp_path / "out")
    assert checksums(run) == before
    assert done.path == tmp_path / "out"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "run"]
    unchanged = [c for c in ROLLOUTS.schema if c not in ("answer", "verdict", "correct", "cold_failed")]
    for phase in (COLD, RESCUE, EVALUATE):
        old, new = rows_of(run, phase), rows_of(done.path, phase)
        assert new.select(unchanged).equals(old.select(unchanged))
    for name in ("problems/train", "problems/evaluation", "hint/iteration=0001/team-p000"):
        table = HINTS if name.startswith("hint") else PROBLEMS
        old, new = (
            read_manifest_table(manifests.read_manifest(root / f"{name}.manifest.json"), table)
            for root in (run, done.path)
        )
        assert new.equals(old)
    assert manifests.read_json(done.path / "config.json") == manifests.read_json(run / "config.json")
    assert sorted(p.name for p in done.path.iterdir()) == [
        "cold",
        "config.json",
        "evaluate",
        "hint",
        "problems",
        "rescue",
        "run.json",
    ]


def test_new_verdicts(tmp_path: Path) -> None:
    done = rescore(stored_run(tmp_path / "run"), tmp_path / "out")
    evaluated = rows_of(done.path, EVALUATE).select("problem_id", "sample_index", "answer", "verdict", "correct")
    assert evaluated.rows() == [
        ("p0", 0, "2", "correct", True),
        ("p1", 0, None, "no_answer", False),
        ("p2", 0, "3", "wrong", False),
        ("p2", 1, "2", "correct", True),
    ]
    assert done.changes.schema == CHANGE_TABLE
    changed = done.changes.filter(pl.col("before") != pl.col("after"))
    assert changed.rows() == [
        ("cold", "ada", "correct", "wrong", 1),
        ("cold", "ada", "wrong", "correct", 1),
        ("evaluate", "ada", "correct", "wrong", 1),
        ("evaluate", "ada", "wrong", "correct", 1),
        ("rescue", "ada", "timeout", "correct", 1),
    ]
    assert done.changes["n"].sum() == 6 + 4 + 4


def test_cold_failures_follow_the_new_verdicts(tmp_path: Path) -> None:
    done = rescore(stored_run(tmp_path / "run"), tmp_path / "out")
    cases = (
        rows_of(done.path, RESCUE)
        .select("problem_id", "sample_index", "cold_failed")
        .sort("problem_id", "sample_index")
    )
    assert cases.rows() == [("t0", 0, False), ("t0", 1, False), ("t1", 0, True), ("t2", 0, True)]
    assert done.notes == [
        "cold failures among the cases that were sampled again: 1 fewer and 1 more by the new verdicts"
    ]
    hint = read_manifest_table(
        manifests.read_manifest(done.path / "hint/iteration=0001/team-p000.manifest.json"), HINTS
    )
    assert hint["cold_failed"].to_list() == [True]  # the value at the time of the draw


def test_cold_failed_does_not_change_without_a_published_cold_completion(tmp_path: Path) -> None:
    run = stored_run(tmp_path / "run")
    (run / "cold/iteration=0001/ada-p000.manifest.json").unlink()
    rescues = rows_of(rescore(run, tmp_path / "out").path, RESCUE)
    cases = rescues.select("problem_id", "cold_failed").unique().sort("problem_id")
    assert cases.rows() == [("t0", True), ("t1", False), ("t2", True)]


def test_pass_at_1_before_and_after(tmp_path: Path) -> None:
    passes = rescore(stored_run(tmp_path / "run"), tmp_path / "out").passes
    assert passes.schema == PASS_CHANGE_TABLE
    of = {
        when: pick(passes, phase="evaluate", iteration=0, model="ada", when=when)
        for when in ("before", "after", "difference")
    }
    assert of["before"]["estimate"] == pytest.approx((0 + 0 + 1) / 3)
    assert of["after"]["estimate"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert of["difference"]["estimate"] == pytest.approx(1 / 6)
    assert of["difference"]["low"] <= 1 / 6 <= of["difference"]["high"]
    assert "fewer than 100 problems" in of["difference"]["note"]
    bob = pick(passes, phase="cold", iteration=1, model="bob", when="difference")
    assert (bob["estimate"], bob["low"], bob["high"]) == (0, -1, 1)  # all problems are of one source group
    assert set(passes["phase"]) == {"cold", "evaluate"}  # not rescue, whose completions saw hints


def test_the_interval_of_a_difference_is_that_of_its_note(tmp_path: Path) -> None:
    """Student's t of the differences and of two pseudo-problems with the largest difference."""
    lines = [
        {"problem": f"q{i}", "model": "ada", "sample": 0, "text": "#### 7", "correct": i > 0, "gold": "7"}
        for i in range(5)
    ]
    (tmp_path / "foreign.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = rescore(import_predictions(tmp_path / "foreign.jsonl", tmp_path / "run").path, tmp_path / "out")
    row = pick(done.passes, when="difference")
    values = np.array([1, 0, 0, 0, 0, -1, 1])
    half = stats.t.ppf(0.975, 4) * values.std() / 7**0.5
    expected = (1 / 5, 1 / 7 - half, 1 / 7 + half)
    assert (row["estimate"], row["low"], row["high"]) == pytest.approx(expected)
    assert "differences: Student's t" in rescore_report(done)[1].notes[0]


def test_the_identity_records_the_verifiers(tmp_path: Path) -> None:
    run = stored_run(tmp_path / "run")
    manifests.write_json(
        RunPaths(run).identity,
        {"run_id": "demo", "provenance": {"core_hpc": "0.1", "git_commit": "abc", "python": "3"}},
    )
    done = rescore(run, tmp_path / "out")
    identity = read_identity(done.path)
    assert identity["run_id"] == "demo"
    known = {"core_hpc": "0.1", "git_commit": "abc"}
    assert identity["rescored"] == {"original": str(run), "verifier": verifier_version(), "verifier_before": known}
    twice = rescore(done.path, tmp_path / "twice")
    assert read_identity(twice.path)["rescored"]["verifier_before"] == verifier_version()
    assert twice.changes.filter(pl.col("before") != pl.col("after")).height == 0


def test_completion_that_cannot_be_verified_keeps_its_verdict(tmp_path: Path) -> None:
    lines = [
        {"problem": "q1", "model": "ada", "sample": 0, "answer": "7", "correct": True, "gold": "72"},
        {"problem": "q1", "model": "ada", "sample": 1, "text": "#### 72", "correct": False, "gold": "72"},
        {"problem": "q2", "model": "ada", "sample": 0, "text": "#### 5", "correct": True, "gold": "see page 5"},
    ]
    (tmp_path / "foreign.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = rescore(import_predictions(tmp_path / "foreign.jsonl", tmp_path / "run").path, tmp_path / "out")
    assert rows_of(done.path, EVALUATE).select("problem_id", "answer", "verdict").rows() == [
        ("q1", "7", "correct"),
        ("q1", "72", "correct"),
        ("q2", "5", "correct"),
    ]
    assert done.notes == [
        "2 completions kept their verdicts: their texts are not stored, or their answers cannot be verified"
    ]
    assert "imported" in read_identity(done.path)
    assert not (done.path / "config.json").exists()


def test_a_damaged_file_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    run = stored_run(tmp_path / "run")
    damaged = next((run / "rescue").glob("*/ada-p000.*.parquet"))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(StoreError, match=str(damaged)):
        rescore(run, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_an_unknown_problem_is_an_error(tmp_path: Path) -> None:
    run = stored_run(tmp_path / "run")
    publish_rollouts(run, [row(RIGHT, "correct", problem_id="t9", iteration=2)])
    with pytest.raises(
        StoreError, match=r"cold/iteration=0002/ada.*parquet: problem 't9' is not among the run's problems"
    ):
        rescore(run, tmp_path / "out")


def test_output_folders_that_are_rejected(tmp_path: Path) -> None:
    run = stored_run(tmp_path / "sweep" / "run")
    before = checksums(run)
    for out, message in [
        (run / "again", "is inside the run folder"),
        (run, "is inside the run folder"),
        (tmp_path, "is not empty"),
    ]:
        with pytest.raises(InputError, match=message):
            rescore(run, out)
    with pytest.raises(InputError, match="neither a run folder nor a sweep folder"):
        rescore(tmp_path / "absent", tmp_path / "out")
    assert checksums(run) == before


def test_files_without_a_manifest_are_not_read(tmp_path: Path) -> None:
    """The unfinished file of a killed writer is neither read nor copied."""
    run = stored_run(tmp_path / "run")
    (run / "cold/iteration=0001/ada-p000.0123456789ab.parquet").write_bytes(b"torn")
    done = rescore(run, tmp_path / "out")
    keys = {str(task_of_manifest(p)) for p in (done.path / "cold" / "iteration=0001").glob("*.manifest.json")}
    assert keys == {"cold/0001/ada/000", "cold/0001/bob/000"}
    assert len(list((done.path / "cold" / "iteration=0001").iterdir())) == 4


def test_a_run_that_chooses_its_problems_by_scores_can_be_analysed_again_and_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The choice is that of the first verifier, by which all pass rates of iteration 1 were 0."""
    protocol = {"choose": "pass_rate", "problems_per_iteration": 3, "cold_samples": 1, "rescue_samples": 1}
    made = config(protocol=protocol, iterations=2)
    run, names = make_run(tmp_path / "run", made), [f"t{i}" for i in range(9)]
    problems = [(name, "What?", "2", "number", "{}") for name in names]
    publish_frame(
        RunPaths(run).problems, "train", pl.DataFrame(problems, schema=PROBLEMS.schema, orient="row"), PROBLEMS
    )
    choice, found = Choice(run, made), []
    for iteration in (1, 2):
        found.append(choice.problems(iteration, pl.Series(names)))
        for model, text, verdict in (("ada", RIGHT, "wrong"), ("bob", OFF, "wrong")):
            rows = [
                row(text, verdict, iteration=iteration, problem_id=names[i], model=model, num_completion_tokens=3)
                for i in found[-1]
            ]
            folder = RunPaths(run).phase_folder(COLD, iteration)
            publish_frame(folder, f"{model}-p000", pl.DataFrame(rows, schema=ROLLOUTS.schema), ROLLOUTS)
        scored = scores_of([rows_of(run, COLD).filter(pl.col("iteration") == iteration)])
        publish_frame(RunPaths(run).phase_folder(SCORE, iteration), "team-p000", scored, SCORES)
    counted = load_run(run).counts
    for source, out in ((run, tmp_path / "out"), (tmp_path / "out", tmp_path / "twice")):
        assert main(["rescore", str(source), "--out", str(out)]) == 0
        assert main(["passk", str(out), "--phase", "cold", "--k", "1", "--format", "json"]) == 0
        assert '"estimate":1.0' in capsys.readouterr().out
        copied = Choice(out, made)
        assert [copied.problems(i, pl.Series(names)) for i in (1, 2)] == found
        assert load_run(out).counts.drop("c", "first_correct").equals(counted.drop("c", "first_correct"))
    assert not RunPaths(run).chosen.exists()


def test_report(tmp_path: Path) -> None:
    verdicts, passes = rescore_report(rescore(stored_run(tmp_path / "run"), tmp_path / "out"))
    assert "5 of 14 verdicts changed" in verdicts.notes
    assert verdicts.shown.columns == ["phase", "model", "before", "after", "n"]
    assert verdicts.shown.height == 5
    line = pick(passes.shown, phase="evaluate", model="ada")
    assert line["before"].startswith("33.3 [")
    assert line["difference"].startswith("+16.7 [")
