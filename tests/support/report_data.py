"""Test data for reports: score rows, optimizer steps, hints, and a whole run with all of them.

This module contains no tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from core_hpc.store.paths import TEAM, RunPaths
from core_hpc.store.schema import COLD, HINT, HINTS, RESCUE, SCORE, SCORES, STEPS, UPDATE
from core_hpc.store.shards import publish_frame
from tests.support.analysis_data import evaluation_rows, make_run, publish_rollouts, rollout

MARKUP = "<script>alert('x')</script> & 50 % of $x_1$ ```"
"""A text with markup. Every output format must show it as plain text."""

_KEY = ("phase", "model", "problem_id", "sample_index")


def _correct(*problems: str) -> list[list[bool]]:
    """Correctness by problem and completion, from one text of 0 and 1 per problem."""
    return [[completion == "1" for completion in problem] for problem in problems]


BEFORE = {"ada": _correct("1000", "0000", "1111"), "bob": _correct("0000", "0110", "1111")}
AFTER = {"ada": _correct("1110", "0001", "1111"), "bob": _correct("0010", "0111", "1111")}
"""Correctness in the evaluations before and after training: model -> problem -> completion."""


def score(**values: Any) -> dict[str, Any]:
    """A complete score row with default values, changed by `values`."""
    return {
        "run_id": "demo",
        "iteration": 1,
        "phase": COLD,
        "model": "ada",
        "problem_id": "p0",
        "sample_index": 0,
        "correct": False,
        "verdict": "wrong",
        "cold_failed": None,
        "hint_given": False,
        "teacher_model": None,
        "num_completion_tokens": 1,
        "truncated": False,
        "exploit": 0.0,
        "explore": 0.0,
        "rescue": 0.0,
        "trace_accuracy": 0.0,
        "cross": 0.0,
        "reward": 0.0,
        "advantage": 0.0,
        "zero_signal": True,
        "team_pass_advantage": None,
        **values,
    }


def step(**values: Any) -> dict[str, Any]:
    """A complete row of an optimizer step with default values, changed by `values`."""
    numbers = {name: 0.5 for name, (dtype, _) in STEPS.columns.items() if dtype == pl.Float64()}
    counts = {"step": 1, "global_step": 1, "num_completions": 2, "num_tokens": 30, "num_lessons": 0}
    return {"run_id": "demo", "iteration": 1, "model": "ada", **counts, **numbers, **values}


def publish_scores(run: Path, rows: list[dict[str, Any]], *, iteration: int = 1, part: int = 0) -> None:
    frame = pl.DataFrame(rows, schema=SCORES.schema)
    publish_frame(RunPaths(run).phase_folder(SCORE, iteration), f"{TEAM}-p{part:03d}", frame, SCORES)


def publish_steps(run: Path, rows: list[dict[str, Any]], *, iteration: int = 1, model: str = "ada") -> None:
    frame = pl.DataFrame(rows, schema=STEPS.schema)
    publish_frame(RunPaths(run).phase_folder(UPDATE, iteration), f"{model}-p000", frame, STEPS)


def full_run(folder: Path, *, hint_problem: str | None = None) -> Path:
    """A run of one iteration: ada fails on t0 and t1, and is rescued by hints from bob.

    Args:
        folder: of the run.
        hint_problem: the problem that all hints were made from; None: not recorded, as in files of
            an earlier version.
    """
    run = make_run(folder)
    cold = [
        rollout(
            model=model,
            problem_id=problem,
            sample_index=sample,
            correct=model == "bob",
            text=f"cold {model} {problem} {sample} {MARKUP}",
            answer="7",
        )
        for model in ("ada", "bob")
        for problem in ("t0", "t1")
        for sample in range(2)
    ]
    rescues = [
        rollout(
            phase=RESCUE,
            model="ada",
            problem_id=problem,
            sample_index=sample,
            hint_given=sample < 2,
            correct=sample == 1,
            cold_failed=True,
            teacher_model="bob",
            teacher_sample_index=0,
            text=f"rescue {problem} {sample} {MARKUP}",
        )
        for problem in ("t0", "t1")
        for sample in range(3)
    ]
    publish_rollouts(run, [*evaluation_rows(BEFORE, 0), *evaluation_rows(AFTER, 1), *cold, *rescues])
    hints = [
        {
            "run_id": "demo",
            "iteration": 1,
            "model": "ada",
            "problem_id": problem,
            "cold_failed": True,
            "teacher_model": "bob",
            "teacher_sample_index": 0,
            "hint": f"hint {problem} {MARKUP}",
            "num_hint_tokens": 5,
            "reason": "rescue",
            "hint_draws": [True, True, False],
            "hint_problem_id": hint_problem,
        }
        for problem in ("t0", "t1")
    ]
    publish_frame(RunPaths(run).phase_folder(HINT, 1), f"{TEAM}-p000", pl.DataFrame(hints, schema=HINTS.schema), HINTS)
    publish_scores(run, [score(**{name: row[name] for name in (*_KEY, "correct")}) for row in (*cold, *rescues)])
    for model in ("ada", "bob"):
        publish_steps(run, [step(model=model)], model=model)
    return run
