"""Regression tests for the known traps of METHOD.md section 8.

This list names the tests of each trap, also those in other files. The first test checks that they
exist.

1 old log-probabilities of a rescue completion on the cold prompt
    tests/unit/training/test_batching.py::test_log_probs_equal_a_plain_forward_of_each_row
    tests/unit/phases/test_traps.py::test_every_completion_is_trained_on_with_its_own_prompt_ids
2 old log-probabilities recomputed after the update
    tests/integration/test_zero2.py::test_old_log_probs_are_those_before_the_update
    tests/integration/test_zero2.py::test_an_interrupted_update_goes_on_where_it_was_and_gives_the_same
3 max instead of min for negative advantages
    tests/unit/training/test_losses.py::test_clip_is_a_minimum_for_both_signs
4 a rescue that can never fire
    tests/unit/protocol/test_rewards.py::test_a_rescue_can_fire_and_needs_every_condition
    tests/unit/phases/test_traps.py::test_a_hinted_rescue_is_rewarded_in_the_scores
5 advantages normalized over the batch or per model
    tests/unit/phases/test_traps.py::test_advantages_are_per_problem_over_the_team
6 the first model is always the teacher
    tests/unit/protocol/test_teacher.py::test_the_first_model_is_not_always_the_teacher
7 accumulation counters that never fire; a resume that silently starts over
    tests/integration/test_zero2.py::test_equals_plain_torch_on_one_and_two_ranks
    tests/integration/test_zero2.py::test_resume_is_exact_with_as_many_ranks_and_close_with_others
    tests/integration/test_launch.py::test_a_finished_sweep_continues_with_more_iterations
8 rescue attempts and successes counted in different units
    tests/unit/analysis/test_rescue.py::test_numerators_and_denominators
9 sapo's gradient counted twice
    tests/unit/training/test_losses.py::test_sapo_counts_its_gradient_once
10 decoded text tokenized again
    tests/unit/phases/test_traps.py::test_every_completion_is_trained_on_with_its_own_prompt_ids
    tests/integration/test_real_run.py::test_behaviour_log_probabilities_equal_an_independent_forward
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

import yaml
from core_hpc.phases import score
from core_hpc.phases.context import Warm
from core_hpc.phases.update import training_rows
from core_hpc.runs.folder import Run
from core_hpc.runs.sweep import load_sweep
from core_hpc.store import shards
from core_hpc.store.paths import TEAM, RunPaths, TaskKey
from core_hpc.store.schema import COLD, PROBLEMS, RESCUE, ROLLOUTS, SCORE, SCORES, UPDATE, Table
from core_hpc.training.batching import Row

ROOT = Path(__file__).parents[3]
EMPTY: dict[Any, Any] = {pl.String: "", pl.Boolean: False, pl.List: []}


def test_every_trap_has_a_test_that_exists() -> None:
    traps = re.split(r"^(?=\d+ )", __doc__ or "", flags=re.MULTILINE)[1:]
    assert [int(trap.split()[0]) for trap in traps] == list(range(1, 11))
    for trap in traps:
        named = re.findall(r"(tests/\S+\.py)::(test_\w+)", trap)
        assert named, trap
        for file, name in named:
            assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


def frame(table: Table, rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows of a table; missing columns get empty values."""
    filler = {name: EMPTY.get(dtype.base_type(), 0) for name, dtype in table.schema.items()}
    return pl.DataFrame([{**filler, **row} for row in rows], schema=table.schema)


ANSWERS = {
    # (model, problem): whether two cold completions and, if the model failed, a rescue completion
    # are correct. One problem is easy and one is hard, and one model is better.
    ("a", "easy"): ([True, True], None),
    ("b", "easy"): ([True, False], None),
    ("a", "hard"): ([False, True], None),
    ("b", "hard"): ([False, False], True),
}


def rollout_rows(model: str, phase: str) -> list[dict[str, Any]]:
    """Rollouts whose ids do not belong to their text. Prompts with a hint are longer."""
    rows = []
    for (name, problem), (cold, rescue) in ANSWERS.items():
        verdicts = cold if phase == COLD else [rescue] if rescue is not None else []
        for k, correct in enumerate(verdicts if name == model else []):
            mark = [ord(model), ord(problem[0]), k]
            rows.append(
                {
                    "run_id": "r",
                    "iteration": 1,
                    "phase": phase,
                    "model": model,
                    "problem_id": problem,
                    "sample_index": k,
                    "gold": "12",
                    "prompt_token_ids": [*mark, *([900, 901] if phase == RESCUE else [])],
                    "completion_token_ids": [700 + k, 1, 1, 700],
                    "logprobs": [-0.5 - k] * 4,
                    "num_completion_tokens": 4,
                    "text": f"so 1 + {k} makes it",
                    "answer": "12" if correct else "13",
                    "verdict": "correct" if correct else "wrong",
                    "correct": correct,
                    "finish_reason": "stop",
                    "hint_given": phase == RESCUE,
                    "cold_failed": True if phase == RESCUE else None,
                }
            )
    return rows


class _Embedder:
    """Random directions, so different texts have different vectors."""

    def embed(self, texts: list[str]) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(len(texts), 8))


def sampled_run(
    folder: Path, *, protocol: dict[str, Any] | None = None, reward: dict[str, Any] | None = None, **update: Any
) -> Run:
    """A run whose first iteration is sampled."""
    path = folder / "sweep.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "s",
                "iterations": 1,
                "team": [{"name": n, "model": "x"} for n in "ab"],
                "problems": {split: {"source": "generated", "count": 2} for split in ("train", "evaluation")},
                "protocol": {"problems_per_iteration": 2, **(protocol or {})},
                "reward": {"distance": {"embedder": "fake:none"}, **(reward or {})},
                "update": update,
            }
        )
    )
    run = Run("r", RunPaths(folder / "run"), load_sweep(path).runs[0].config, {})
    for split in ("train", "evaluation"):
        problems = [{"problem_id": p, "answer_kind": "number"} for p in ("easy", "hard")]
        shards.publish_frame(run.paths.problems, split, frame(PROBLEMS, problems), PROBLEMS)
    for model in "ab":
        for phase in (COLD, RESCUE):
            key = TaskKey(1, phase, model)
            rows = frame(ROLLOUTS, rollout_rows(model, phase))
            shards.publish_frame(run.paths.task_folder(key), run.paths.task_name(key), rows, ROLLOUTS)
    return run


def scored_run(folder: Path, **settings: Any) -> Run:
    """A run whose first iteration is sampled, and scored by the score phase."""
    run = sampled_run(folder, **settings)
    score.run(context(run, TaskKey(1, SCORE, TEAM)))
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return scored_run(tmp_path)


def context(run: Run, key: TaskKey) -> Any:
    warm = Warm(_embedder=("fake:none", _Embedder()))  # type: ignore[arg-type]
    ignore = SimpleNamespace(lap=lambda name: None)
    return SimpleNamespace(
        run=run, key=key, paths=run.paths, warm=warm, stopwatch=ignore, progress=lambda *_: None, stats=lambda **_: dict
    )


def scores(run: Run) -> pl.DataFrame:
    return shards.read_task(run.root, TaskKey(1, SCORE, TEAM), SCORES)


def rows_of(run: Run, model: str) -> dict[tuple[object, ...], Row]:
    return {row.key: row for row in training_rows(context(run, TaskKey(1, UPDATE, model)))}


def test_every_completion_is_trained_on_with_its_own_prompt_ids(run: Run) -> None:
    """Traps 1 and 10: prompt ids (with the hint) and completion ids come from the rollout."""
    rows = rows_of(run, "b")
    rollouts = {
        (r["problem_id"], r["phase"], r["sample_index"]): r
        for phase in (COLD, RESCUE)
        for r in rollout_rows("b", phase)
    }
    assert rows.keys() == rollouts.keys()
    assert sum(row.rescue for row in rows.values()) == 1
    for key, row in rows.items():
        wanted = rollouts[key]
        assert list(row.prompt_token_ids) == wanted["prompt_token_ids"]
        assert list(row.completion_token_ids) == wanted["completion_token_ids"]
        assert list(row.behaviour_logprobs) == wanted["logprobs"]
        assert (row.rescue, row.weight) == ((True, 0.8) if wanted["phase"] == RESCUE else (False, 1.0))
    assert list(rows["hard", RESCUE, 0].prompt_token_ids)[-2:] == [900, 901]


def test_a_hinted_rescue_is_rewarded_in_the_scores(run: Run) -> None:
    """Trap 4, including the score phase."""
    rewarded = scores(run).filter(pl.col("rescue") > 0)
    assert rewarded.select("model", "problem_id", "phase").rows() == [("b", "hard", RESCUE)]


def test_advantages_are_per_problem_over_the_team(run: Run) -> None:
    """Trap 5: over both models and both phases together.

    The update uses the advantages without changes.
    """
    table = scores(run)

    def normalized(*groups: str) -> np.ndarray:
        """Advantages by the same formula over other groups, in the order of the table."""
        mean, std = pl.col("reward").mean(), pl.col("reward").std(ddof=0)
        values = (pl.col("reward") - mean) / std
        return table.select(values.over(*groups) if groups else values).to_numpy()[:, 0]

    found = table["advantage"].to_numpy()
    assert found == pytest.approx(normalized("problem_id"), abs=1e-6)
    for wrong in ((), ("model",), ("model", "problem_id"), ("problem_id", "phase")):
        assert not np.allclose(found, normalized(*wrong), atol=0.05), wrong
    for model in "ab":
        mine = table.filter(pl.col("model") == model).select("problem_id", "phase", "sample_index", "advantage").rows()
        assert {key: row.advantage for key, row in rows_of(run, model).items()} == {(p, f, k): a for p, f, k, a in mine}


def test_dr_grpo_does_not_divide_by_the_standard_deviation(tmp_path: Path) -> None:
    table = scores(scored_run(tmp_path, loss="dr_grpo"))
    centred = table.select(pl.col("reward") - pl.col("reward").mean().over("problem_id")).to_numpy()[:, 0]
    assert table["advantage"].to_numpy() == pytest.approx(centred, abs=1e-12)
