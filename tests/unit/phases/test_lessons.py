"""Lessons: which texts of peers a model learns, as which rows, and which own texts it rehearses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from core_hpc.config.run import RunConfig
from core_hpc.config.teach import TeachSection
from core_hpc.models.prompts import PromptBuilder
from core_hpc.phases.lessons import _chosen, _rehearsed, candidate_rows, lesson_rows, successes
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


@pytest.mark.parametrize(("cut_models", "lessons"), [("", ["taught", "rehearsed"]), ("a", []), ("b", ["taught"])])
def test_completions_that_were_cut_are_neither_lessons_nor_rehearsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_models: str, lessons: list[str]
) -> None:
    """Their end is unknown, and an invented one would teach a model to end in the middle of a sentence."""
    monkeypatch.setattr(test_traps, "rollout_rows", cut(COLD, cut_models))
    found = [row.lesson for row in rows_of_model(tmp_path, "b", rehearsal=1)]
    assert [lesson for lesson in found if lesson] == lessons


def cut(phase: str, models: str = "ab") -> Callable[[str, str], list[dict[str, Any]]]:
    """The rollouts of the test run, those of some models cut at the token limit in one phase."""

    def rows(model: str, of_phase: str) -> list[dict[str, Any]]:
        reason = "length" if of_phase == phase and model in models else "stop"
        return [{**row, "finish_reason": reason} for row in rollout_rows(model, of_phase)]

    return rows


def test_a_weight_of_zero_in_an_iteration_gives_no_lessons(tmp_path: Path) -> None:
    assert all(row.lesson is None for row in rows_of_model(tmp_path, "b", weight=0, weight_end=1, weight_iterations=2))


def update_of(model: str, iteration: int = 1, **teach: Any) -> Any:
    """The context of an update in a team whose order is not that of the names."""
    team = [{"name": name, "model": "x"} for name in ("c", "b", "a")]
    config = RunConfig.model_validate({**DATA, "team": team, "update": {"teach": {"weight": 1, **teach}}})
    return SimpleNamespace(run=SimpleNamespace(config=config), key=TaskKey(iteration, UPDATE, model))


def test_the_weight_follows_the_schedule_of_iterations() -> None:
    """It is 0 from the third iteration on, so that nothing is read."""
    late = update_of("b", iteration=3, weight_end=0, weight_iterations=2)
    assert lesson_rows(late, pl.DataFrame(), [], None) == []


PROBLEMS = [f"p{n:02}" for n in range(40)]


def chosen(iteration: int = 1, student: str = "b", **teach: Any) -> list[tuple[str, int]]:
    """The (model, sample index) that the student learns for each of 40 problems that a and c solve twice.

    In even problems the second sample of a has the highest reward, in odd ones all rewards are equal.
    """
    rows = [
        {"problem_id": problem, "model": model, "sample_index": k, "text": f"{model}{k}",
         "reward": 1.5 if (model, k) == ("a", 1) and n % 2 == 0 else 1.0}
        for n, problem in enumerate(PROBLEMS) for model in "ac" for k in (0, 1)
    ]  # fmt: skip
    found = pl.DataFrame(rows)
    candidates = [make_row(("x", n)) for n in range(found.height)]
    indices = _chosen(update_of(student, iteration, **teach), found, candidates, None)
    assert [found["problem_id"][i] for i in indices] == PROBLEMS
    return [(found["model"][i], found["sample_index"][i]) for i in indices]


def test_the_teacher_by_score_has_the_highest_reward_and_the_first_model_of_the_team_wins_ties() -> None:
    assert chosen(teacher="score") == [("a", 1), ("c", 0)] * 20


def test_a_random_teacher_differs_between_problems_iterations_and_students() -> None:
    first = chosen(teacher="random")
    assert set(first) == {("a", 0), ("a", 1), ("c", 0), ("c", 1)}
    assert chosen(teacher="random") == first
    assert chosen(iteration=2, teacher="random") != first
    assert chosen(student="d", teacher="random") != first


def make_row(key: tuple[object, ...], **changes: Any) -> Row:
    values: dict[str, Any] = {"problem_id": str(key[0]), "behaviour_logprobs": [-0.1], "advantage": 0.4, "weight": 1.0}
    return Row(key=key, prompt_token_ids=[1], completion_token_ids=[2], **{**values, **changes})


def test_as_many_own_texts_are_rehearsed_as_the_share_of_lessons_asks_for() -> None:
    """12 own completions, of which 10 are right; none is drawn twice, and their order stays."""
    own = [make_row((f"p{n}", COLD, 0)) for n in range(12)]
    right = frozenset(row.key for row in own[1:11])

    def rehearsed(rehearsal: float, num_lessons: int, iteration: int = 1) -> list[Row]:
        task = update_of("b", iteration, rehearsal=rehearsal, objective="shaped")
        return _rehearsed(task, own, right, num_lessons, 0.7)

    numbers = {(0.0, 5): 0, (0.5, 3): 2, (1.0, 4): 4, (1.5, 5): 8, (3.0, 9): 10, (1.0, 0): 0}
    assert {given: len(rehearsed(*given)) for given in numbers} == numbers
    assert [row.key for row in rehearsed(3.0, 9)] == [(*row.key, "rehearsed") for row in own[1:11]]
    draws = [{row.key for row in rehearsed(1.0, 4, iteration)} for iteration in (1, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len(set(map(frozenset, draws))) == 3
    for row in rehearsed(1.0, 4):
        assert (row.objective, row.lesson, row.advantage, row.weight) == ("shaped", "rehearsed", 1.0, 0.7)
        assert row.behaviour_logprobs is None


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
    found = pl.DataFrame(
        [{**KEY, "phase": COLD, "model": "a", "problem_id": "p", "sample_index": k, "text": t, "question": "?"}
         for k, t in enumerate(("short", "much longer"))]
    )  # fmt: skip
    rows = candidate_rows(found, PromptBuilder(TOKENIZER, "chat", ""), (), weight=1.0, max_tokens=6)
    assert [row is not None for row in rows] == [True, False]


def test_a_text_in_which_the_model_would_have_ended_is_left_out(tmp_path: Path) -> None:
    """Otherwise it would learn the first line, which has no answer, and an end after it."""
    texts = ("3 + 4 = 7. #### 7\n", "3 + 4 = 7.\n#### 7", "7</s>")
    found = pl.DataFrame(
        [{**KEY, "phase": COLD, "model": "a", "problem_id": "p", "sample_index": k, "text": t, "question": "?"}
         for k, t in enumerate(texts)]
    )  # fmt: skip
    builder = PromptBuilder(TOKENIZER, "chat", "", end_ids=frozenset({TOKENIZER.eos_token_id}))
    for stops, kept in ((("\n",), [True, False, False]), ((), [True, True, False])):
        rows = candidate_rows(found, builder, stops, weight=1.0, max_tokens=100)
        assert [row is not None for row in rows] == kept


def test_mistakes_in_the_configuration_are_reported() -> None:
    with pytest.raises(ValidationError, match="weight_end and weight_iterations belong together"):
        TeachSection(weight=1, weight_end=0)
    alone = {**DATA, "team": DATA["team"][:1], "protocol": {"rescue_samples": 0}, "update": {"teach": {"weight": 1}}}
    with pytest.raises(ValidationError, match="no peer to learn from"):
        RunConfig.model_validate(alone)
