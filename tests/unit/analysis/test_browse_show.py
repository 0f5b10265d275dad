"""The command show prints what is stored about one problem, and refuses unclear ids."""

from __future__ import annotations

import io
import json
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from analysis.browse.terminal import _found, show
from analysis.counts.load import load_run
from analysis.exchange.folder import import_predictions
from core_hpc.common.errors import InputError
from tests.support.analysis_data import run_with_set
from tests.support.report_data import MARKUP, full_run


def printed(run: Path, problem: str, **options: int | bool) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(load_run(run, answers=False), problem, console, **options)  # type: ignore[arg-type]
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_everything_about_a_problem_is_printed(tmp_path: Path) -> None:
    text = printed(full_run(tmp_path / "run"), "t0")
    for expected in (
        "run run, train problem, iteration 1 (published: 1)",
        "gold answer: 2",
        f"cold ada t0 1 {MARKUP}",
        f"cold bob t0 0 {MARKUP}",
        "hint from bob #0, 5 tokens",
        "rescue #1 with the hint: correct",
        "rescue #2 without the hint (control): wrong",
        f"rescue t0 2 {MARKUP}",
    ):
        assert expected in text
    assert "reward 0.00, advantage +0.00, exploit 0.00" in text


def test_a_hint_of_another_problem_names_it(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run", hint_problem="t1")
    text = printed(run, "t0")
    assert f"hint from bob #0, made from problem t1, 5 tokens\nhint t0 {MARKUP}\n" in text
    assert "what the hint cut" not in text
    assert "what the hint cut" in printed(run, "t1")


def test_the_latest_iteration_is_shown_unless_another_is_named(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run")
    assert "iteration 1 (published: 0, 1)" in printed(run, "p0")
    assert "iteration 0 (published: 0, 1)" in printed(run, "p0", iteration=0)
    with pytest.raises(InputError, match="iteration 7 has no completions of p0"):
        printed(run, "p0", iteration=7)


def test_a_token_count_that_is_not_recorded_is_not_shown_as_0(tmp_path: Path) -> None:
    lines = [
        {"example_id": "q1", "model": "m", "gold": "7", "completions": ["#### 7", ""]},
        {"example_id": "q2", "model": "m", "gold": "7", "completions": ["#### 7", "8"], "token_counts": [5, 3]},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = import_predictions(tmp_path / "in.jsonl", tmp_path / "run").path
    unknown, known = printed(run, "q1"), printed(run, "q2")
    assert "evaluate #0: correct, answer 7\n" in unknown
    assert "evaluate #1: no answer, 0 tokens\n" in unknown, "an empty completion has none"
    assert "evaluate #0: correct, answer 7, 5 tokens\n" in known


def test_an_unclear_id_is_refused(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run")
    with pytest.raises(InputError, match="2 problems have 't' in their id; give a longer part: t0, t1"):
        printed(run, "t")
    with pytest.raises(InputError, match="no published problem has 'zz' in its id"):
        printed(run, "zz")


def test_an_id_of_both_splits_is_found_with_its_split(tmp_path: Path) -> None:
    """Ids of files are often counted from 1 in each."""
    run = full_run(tmp_path / "run")
    rows = pl.DataFrame({"split": ["train", "evaluation", "train"], "problem_id": ["1", "1", "11"]})
    data = load_run(run)
    with pytest.raises(InputError, match="both splits have the id '1'; give evaluation/1 or train/1"):
        _found(data, rows, "1")
    assert _found(data, rows, "train/1") == ("train", "1")
    assert _found(data, rows, "11") == ("train", "11")


def test_problems_of_a_further_set_are_found(tmp_path: Path) -> None:
    text = printed(run_with_set(tmp_path / "run"), "long/p1")
    assert "long/p1" in text
    assert "evaluation problem, iteration 0 (published: 0)" in text
