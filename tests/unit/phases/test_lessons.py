"""Lessons: which texts of peers a model learns, as which rows, and which own texts it rehearses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from core_hpc.config.run import RunConfig
from core_hpc.config.teach import TeachSection
from core_hpc.models.prompts import PromptBuilder
from core_hpc.phases.lessons import successes
from core_hpc.phases.update import training_rows
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import COLD, RESCUE, UPDATE
from core_hpc.training.batching import Row
from tests.support.tiny import byte_tokenizer
from tests.unit.phases import test_traps
from tests.unit.phases.test_hint_leak import DATA
from tests.unit.phases.test_traps import context, rollout_rows, scored_run

KEY = {"run_id": "r", "iteration": 1}
TOKENIZER = byte_tokenizer(template="{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}")


def test_only_cold_successes_of_peers_where_the_model_failed_are_candidates() -> None:
    """All combinations of two cold results of the models a and b; rescues and texts that were cut do not matter."""
    rows = []
    for number, results in enumerate(itertools.product((False, True), repeat=4)):
        for (model, sample), correct in zip(itertools.product("ab", (0, 1)), results, strict=True):
            row = {**KEY, "phase": COLD, "model": model, "problem_id": f"p{number:02}", "sample_index": sample}
            rows.append({**row, "correct": correct, "truncated": False, "reward": 0.5})
        rows.append({**row, "sample_index": 2, "correct": results[-1], "truncated": True, "reward": 0.5})
        for model in "ab":
            rows.append({**rows[-1], "phase": RESCUE, "model": model, "correct": True})
    found = successes(pl.DataFrame(rows), "a")
    wanted = [
        (row["problem_id"], "b", row["sample_index"])
        for row in rows
        if row["phase"] == COLD and row["model"] == "b" and row["correct"] and not row["truncated"]
        if not any(
            r["correct"] for r in rows if (r["problem_id"], r["model"], r["phase"]) == (row["problem_id"], "a", COLD)
        )
    ]
    assert found.select("problem_id", "model", "sample_index").rows() == wanted
    assert len(wanted) == 4


def rows_of_model(folder: Path, model: str, rate: Any = None, **teach: Any) -> list[Row]:
    """The rows of an update after the real score phase. Model b failed the problem `hard`, and a did not."""
    run = scored_run(folder, teach={"weight": 0.8, **teach})
    task = context(run, TaskKey(1, UPDATE, model))
    task.model = run.config.model(model)
    task.prompt_builder = lambda _: PromptBuilder(TOKENIZER, "chat", "")
    task.stop_strings = lambda _: ()
    return training_rows(task, rate)


@pytest.mark.parametrize("objective", ["likelihood", "shaped"])
def test_a_model_learns_the_text_of_the_peer_on_its_plain_prompt(tmp_path: Path, objective: str) -> None:
    *own, lesson = rows_of_model(tmp_path, "b", objective=objective)
    assert all(row.lesson is None and row.objective == "policy" for row in own)
    assert lesson.key == ("hard", COLD, 1, "a")
    (text,) = {r["text"] for r in rollout_rows("a", COLD) if (r["problem_id"], r["sample_index"]) == ("hard", 1)}
    assert TOKENIZER.decode(lesson.completion_token_ids) == f"{text}</s>"
    assert lesson.prompt_token_ids == PromptBuilder(TOKENIZER, "chat", "").build("")
    values = (lesson.advantage, lesson.weight, lesson.objective, lesson.source, lesson.behaviour_logprobs)
    assert values == (1.0, 0.8, objective, "taught", None)


def test_a_model_that_did_not_fail_learns_nothing_from_peers(tmp_path: Path) -> None:
    assert all(row.lesson is None for row in rows_of_model(tmp_path, "a"))


def test_rehearsed_texts_are_own_correct_cold_completions(tmp_path: Path) -> None:
    """One lesson and a rehearsal of 1: the only correct cold completion of b is that of `easy`."""
    rows = rows_of_model(tmp_path, "b", rehearsal=1)
    rehearsed = [row for row in rows if row.lesson == "rehearsed"]
    assert [row.key for row in rehearsed] == [("easy", COLD, 0, "rehearsed")]
    (own,) = [row for row in rows if row.key == ("easy", COLD, 0)]
    assert rehearsed[0].completion_token_ids == own.completion_token_ids
    assert rehearsed[0].prompt_token_ids == own.prompt_token_ids
    assert (rehearsed[0].weight, rehearsed[0].advantage, rehearsed[0].objective) == (0.8, 1.0, "likelihood")


def test_completions_that_were_cut_are_neither_lessons_nor_rehearsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their end is unknown, and an invented one would teach a model to end in the middle of a sentence."""
    monkeypatch.setattr(test_traps, "rollout_rows", cut(COLD))
    for model in "ab":
        (folder := tmp_path / model).mkdir()
        assert all(row.lesson is None for row in rows_of_model(folder, model, rehearsal=1))


def cut(phase: str) -> Callable[[str, str], list[dict[str, Any]]]:
    """The rollouts of the test run, all of them cut at the token limit in one phase."""

    def rows(model: str, of_phase: str) -> list[dict[str, Any]]:
        return [
            {**row, "finish_reason": "length" if of_phase == phase else "stop"} for row in rollout_rows(model, of_phase)
        ]

    return rows


def test_a_weight_of_zero_in_an_iteration_gives_no_lessons(tmp_path: Path) -> None:
    assert all(row.lesson is None for row in rows_of_model(tmp_path, "b", weight=0, weight_end=1, weight_iterations=2))


def failing_b_run(folder: Path, rate: Callable[[Sequence[Row]], list[float]] | None, **teach: Any) -> list[int]:
    """Sample indices of the lessons for b, where both completions of a are correct and differ."""
    before = dict(test_traps.ANSWERS)
    test_traps.ANSWERS["a", "hard"] = ([True, True], None)
    try:
        rows = rows_of_model(folder, "b", rate, **teach)
    finally:
        test_traps.ANSWERS.update(before)
    found = [row.key[2] for row in rows if row.lesson == "taught"]
    return [index for index in found if isinstance(index, int)]


@pytest.mark.parametrize("nearest", [0, 1])
def test_the_teacher_by_likelihood_is_the_text_that_the_model_finds_most_probable(tmp_path: Path, nearest: int) -> None:
    def rate(rows: Sequence[Row]) -> list[float]:
        return [-0.5 if row.key[2] == nearest else -3.0 for row in rows]

    assert failing_b_run(tmp_path, rate, teacher="likelihood") == [nearest]


def test_the_number_of_lessons_per_problem_is_limited(tmp_path: Path) -> None:
    assert sorted(failing_b_run(tmp_path, None, max_per_problem=5)) == [0, 1]


def test_a_random_teacher_is_the_same_in_every_attempt(tmp_path: Path) -> None:
    found = [
        failing_b_run(tmp_path / str(n), None, teacher="random") for n in range(2) if not (tmp_path / str(n)).mkdir()
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 1


def test_a_text_that_does_not_fit_is_left_out(tmp_path: Path) -> None:
    from core_hpc.phases.lessons import candidate_rows

    found = pl.DataFrame(
        [{**KEY, "phase": COLD, "model": "a", "problem_id": "p", "sample_index": k, "text": t, "question": "?"}
         for k, t in enumerate(("short", "much longer"))]
    )  # fmt: skip
    rows = candidate_rows(found, PromptBuilder(TOKENIZER, "chat", ""), (), weight=1.0, max_tokens=6)
    assert [row is not None for row in rows] == [True, False]


def test_mistakes_in_the_configuration_are_reported() -> None:
    with pytest.raises(ValidationError, match="weight_end and weight_iterations belong together"):
        TeachSection(weight=1, weight_end=0)
    alone = {**DATA, "team": DATA["team"][:1], "protocol": {"rescue_samples": 0}, "update": {"teach": {"weight": 1}}}
    with pytest.raises(ValidationError, match="no peer to learn from"):
        RunConfig.model_validate(alone)
