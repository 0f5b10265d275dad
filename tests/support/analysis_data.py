"""Artificial counts, rollout rows and run folders for the tests of analysis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from analysis.counts.counts import COUNTS
from core_hpc.config.run import RunConfig
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths
from core_hpc.store.schema import (
    COLD,
    CORRECT,
    EVALUATE,
    NO_ANSWER,
    PROBLEMS,
    RESCUE,
    ROLLOUTS,
    TIMEOUT,
    WRONG,
)
from core_hpc.store.shards import publish_frame


def counts_frame(
    n: Any, c: Any, *, models: tuple[str, ...] = ("ada", "bob"), phase: str = EVALUATE, iteration: int = 0
) -> pl.DataFrame:
    """Make counts of completions without hints from (M, P) arrays of n and c."""
    n, c = np.broadcast_arrays(np.asarray(n), np.asarray(c))
    rows = [
        {
            "iteration": iteration,
            "phase": phase,
            "model": model,
            "problem_id": f"p{p:05d}",
            "hint_given": False,
            "n": int(n[m, p]),
            "c": int(c[m, p]),
            "num_timeout": 0,
            "num_truncated": 0,
            "num_no_answer": 0,
            "first_correct": None if c[m, p] == 0 else 0,
        }
        for m, model in enumerate(models)
        for p in range(c.shape[1])
    ]
    return pl.DataFrame(rows, schema=COUNTS)


def rescue_counts(cases: list[dict[str, Any]], *, iteration: int = 1) -> pl.DataFrame:
    """Make counts of rescue completions.

    A case has the fields problem, student, teacher, hinted (c, n), control (c, n), and optionally
    cold_failed and iteration.
    """
    rows = [
        {
            "iteration": case.get("iteration", iteration),
            "phase": RESCUE,
            "model": case["student"],
            "problem_id": case["problem"],
            "hint_given": hint,
            "cold_failed": case.get("cold_failed", True),
            "teacher_model": case["teacher"],
            "n": case[kind][1],
            "c": case[kind][0],
            "num_timeout": 0,
            "num_truncated": 0,
            "num_no_answer": 0,
            "first_correct": None if case[kind][0] == 0 else 0,
        }
        for case in cases
        for hint, kind in ((True, "hinted"), (False, "control"))
        if case[kind][1]
    ]
    return pl.DataFrame(rows, schema=COUNTS)


def rollout(**values: Any) -> dict[str, Any]:
    """Make a complete rollout row."""
    row = {
        "run_id": "demo",
        "iteration": 1,
        "phase": "cold",
        "model": "ada",
        "problem_id": "p0",
        "sample_index": 0,
        "adapter_iteration": 0,
        "seed": 1,
        "prompt_token_ids": [1],
        "completion_token_ids": [2],
        "logprobs": [-0.5],
        "temperature": 0.7,
        "top_p": 0.9,
        "num_prompt_tokens": 1,
        "num_completion_tokens": 1,
        "finish_reason": "stop",
        "text": "2",
        "answer": "2",
        "gold": "2",
        "correct": False,
        "cold_failed": None,
        "hint_given": False,
        "teacher_model": None,
        "teacher_sample_index": None,
        **values,
    }
    return {"verdict": CORRECT if row["correct"] else WRONG, **row}


def rollouts(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=ROLLOUTS.schema)


def config(**changes: Any) -> RunConfig:
    """Make the configuration of a run with two fake models."""
    plain: dict[str, Any] = {
        "name": "demo",
        "iterations": 2,
        "team": [{"name": name, "model": "fake:any", "engine": "fake"} for name in ("ada", "bob")],
        "problems": {"train": {"source": "generated", "count": 20}, "evaluation": {"source": "generated", "count": 20}},
        "evaluation": {"samples": 4},
    }
    return RunConfig.model_validate({**plain, **changes})


def make_run(folder: Path, run_config: RunConfig | None = None) -> Path:
    """Make a run folder in which nothing is published."""
    manifests.make_folder(folder)
    manifests.write_json(RunPaths(folder).identity, {"run_id": "demo"})
    manifests.write_json(RunPaths(folder).config, (run_config or config()).model_dump(mode="json"))
    return folder


def publish_rollouts(run: Path, rows: list[dict[str, Any]]) -> None:
    """Publish complete rollout rows as the phases do: one shard per phase, iteration and model.

    The problems and the configuration of the run are changed so that they expect exactly these
    rows.
    """
    frame = rollouts(rows)
    _publish_problems(run, frame)
    _expect_rows(run, frame)
    for part in frame.partition_by("phase", "iteration", "model"):
        phase, iteration, model = part.select("phase", "iteration", "model").row(0)
        publish_frame(RunPaths(run).phase_folder(phase, iteration), f"{model}-p000", part, ROLLOUTS)


def _publish_problems(run: Path, frame: pl.DataFrame) -> None:
    for split, phases in (("train", [COLD, RESCUE]), ("evaluation", [EVALUATE])):
        used = frame.filter(pl.col("phase").is_in(phases)).select("problem_id", "gold")
        used = used.unique("problem_id").sort("problem_id")
        if used.height and not (RunPaths(run).problems / f"{split}.manifest.json").exists():
            constants = {"question": "What?", "answer_kind": "number", "metadata": "{}"}
            problems = used.with_columns(**{name: pl.lit(text) for name, text in constants.items()})
            publish_frame(RunPaths(run).problems, split, problems.select(list(PROBLEMS.columns)), PROBLEMS)


def _expect_rows(run: Path, frame: pl.DataFrame) -> None:
    plain = manifests.read_json(RunPaths(run).config)
    num_problems = pl.struct("iteration", "model", "problem_id").n_unique()
    sizes = dict(frame.group_by("phase").agg(pl.len() // num_problems).rows())
    fields = {
        COLD: ("protocol", "cold_samples"),
        RESCUE: ("protocol", "rescue_samples"),
        EVALUATE: ("evaluation", "samples"),
    }
    for phase, (section, field) in fields.items():
        plain[section][field] = sizes.get(phase, plain[section][field])
    num_trained = frame.filter(pl.col("phase") != EVALUATE)["problem_id"].n_unique()
    plain["protocol"]["problems_per_iteration"] = num_trained or plain["protocol"]["problems_per_iteration"]
    manifests.write_json(RunPaths(run).config, plain)


def evaluation_rows(correct: dict[str, list[list[bool]]], iteration: int) -> list[dict[str, Any]]:
    """Make evaluation rows from a mapping model -> problem -> sample -> correct."""
    return [
        rollout(phase=EVALUATE, iteration=iteration, model=model, problem_id=f"p{p}", sample_index=s, correct=bool(hit))
        for model, problems in correct.items()
        for p, samples in enumerate(problems)
        for s, hit in enumerate(samples)
    ]


def run_with_set(folder: Path) -> Path:
    """Make a run with the problems p0 and p1, and those of the further set `long`, long/p0 and long/p1.

    Ada solves p0 and long/p1; bob solves nothing.
    """
    section = {"name": "long", "problems": {"source": "generated", "count": 2, "task": "arithmetic"}}
    run = make_run(folder, config(evaluation={"samples": 2, "sets": [section]}))
    own = evaluation_rows({"ada": [[True, False], [False, False]], "bob": [[False, False]] * 2}, 0)
    further = evaluation_rows({"ada": [[False, False], [True, False]], "bob": [[False, False]] * 2}, 0)
    publish_rollouts(run, own + [{**row, "problem_id": f"long/{row['problem_id']}"} for row in further])
    return run


def pick(frame: pl.DataFrame, **where: Any) -> dict[str, Any]:
    """Return the only row with these values."""
    rows = frame.filter(pl.all_horizontal(pl.col(column).eq_missing(pl.lit(value)) for column, value in where.items()))
    assert rows.height == 1, f"{rows.height} rows for {where}"
    return rows.row(0, named=True)


def evaluated_run(folder: Path) -> Path:
    """Evaluations 0 and 2 of two models, in two parts, with time-outs and truncation."""
    run = make_run(folder)
    rows = [
        (f"p{i}", f"What is {i}?", str(i), "number", json.dumps({"level": str(i % 2), "subject": "sums"}))
        for i in range(6)
    ]
    problems = pl.DataFrame(rows, schema=PROBLEMS.schema, orient="row")
    publish_frame(RunPaths(run).problems, "evaluation", problems, PROBLEMS)
    texts = {"correct": "#### {}", "wrong": "#### -1", "no_answer": "hm", "timeout": "#### {}"}
    for iteration in (0, 2):
        for m, model in enumerate(("ada", "bob")):
            for part in (0, 1):
                completions = []
                for i in range(3 * part, 3 * part + 3):
                    for s in range(4):
                        num_verdicts = 4 if model == "bob" else 3
                        verdict = list(texts)[(i * s + m + iteration) % num_verdicts]
                        text = texts[verdict].format(i)
                        completions.append(
                            rollout(
                                phase=EVALUATE,
                                iteration=iteration,
                                model=model,
                                problem_id=f"p{i}",
                                sample_index=s,
                                verdict=verdict,
                                correct=verdict == "correct",
                                text=text,
                                gold=str(i),
                                num_completion_tokens=i + s,
                                answer={"wrong": "-1", "no_answer": None}.get(verdict, str(i)),
                                finish_reason="length" if s == 3 else "stop",
                            )
                        )
                frame = pl.DataFrame(completions, schema=ROLLOUTS.schema)
                publish_frame(RunPaths(run).phase_folder(EVALUATE, iteration), f"{model}-p{part:03d}", frame, ROLLOUTS)
    return run


def run_with_own_kind(folder: Path) -> Path:
    """An evaluation with answers of a kind of the user, for whom 1,200 and 1200 are different answers."""
    run = make_run(folder)
    rows = [("p0", "How many?", "1,200", "mine", "{}"), ("p1", "Which?", "blue", "mine", "{}")]
    publish_frame(
        RunPaths(run).problems, "evaluation", pl.DataFrame(rows, schema=PROBLEMS.schema, orient="row"), PROBLEMS
    )
    answers = {"p0": ("1,200", "1200", None, "1,200"), "p1": ("blue", "007", None, "blue")}
    verdicts = (CORRECT, WRONG, NO_ANSWER, TIMEOUT)
    publish_rollouts(
        run,
        [
            rollout(
                phase=EVALUATE,
                model=model,
                problem_id=problem,
                sample_index=i,
                gold=gold,
                text=f"I think {answer} #### 5",
                answer=answer,
                verdict=verdict,
                correct=verdict == CORRECT,
            )
            for model in ("ada", "bob")
            for problem, _, gold, *_ in rows
            for i, (answer, verdict) in enumerate(zip(answers[problem], verdicts, strict=True))
        ],
    )
    return run
