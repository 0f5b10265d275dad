"""Sources of a hint: the same cases and draws for each of them, and the text that they should have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from core_hpc.config.run import RunConfig
from core_hpc.phases.hint import _hint_rows, _sources
from core_hpc.store.schema import HINTS
from tests.unit.phases.test_hint_leak import DATA, LetterTokenizer

PROBLEMS = ("p", "q", "r", "s")
ORDER = ["a", "b"]


def text_of(model: str, problem: str, sample: int) -> str:
    return f"{model} takes {problem} and {sample}. #### 11"


def groups(solved: dict[str, str]) -> list[pl.DataFrame]:
    """Two cold completions of both models for each problem. `solved`: the models that are correct."""
    return [
        pl.DataFrame(
            [
                {
                    "problem_id": problem,
                    "phase": "cold",
                    "model": model,
                    "sample_index": k,
                    "correct": model in models,
                    "score": float(k),
                    "text": text_of(model, problem, k),
                    "gold": "11",
                }
                for model in ORDER
                for k in (0, 1)
            ]
        )
        for problem, models in solved.items()
    ]


def hints(source: str, solved: dict[str, str], **protocol: Any) -> pl.DataFrame:
    """The hints of the hint phase for all problems and students."""
    settings = {"hint_source": source, "rescue_samples": 6, **protocol}
    config = RunConfig.model_validate({**DATA, "protocol": settings})
    run, key = SimpleNamespace(config=config, run_id="r"), SimpleNamespace(iteration=1)
    context: Any = SimpleNamespace(run=run, key=key, tokenizer=lambda model: LetterTokenizer())
    kinds = dict.fromkeys(solved, "number")
    parts = groups(solved)
    others = _sources(parts, ORDER, kinds)
    rows = [row for group in parts for row in _hint_rows(context, group, ORDER, "number", others)]
    return pl.DataFrame(rows, schema=HINTS.schema)


SOLVED = {"p": "a", "q": "a", "r": "b", "s": "ab"}


def test_the_sources_have_the_same_cases_and_draws() -> None:
    same = ["model", "problem_id", "cold_failed", "reason", "hint_draws"]
    peer, shuffled, own = (hints(source, SOLVED).select(same) for source in ("peer", "shuffled", "own"))
    assert peer.equals(shuffled)
    assert peer.equals(own)
    assert peer.filter(reason="rescue").select("model", "problem_id").rows() == [("b", "p"), ("b", "q"), ("a", "r")]
    assert {draw for draws in peer["hint_draws"] for draw in draws} == {True, False}


@pytest.mark.parametrize("source", ["peer", "shuffled", "own"])
def test_each_hint_is_of_its_source(source: str) -> None:
    for row in hints(source, SOLVED).filter(reason="rescue").iter_rows(named=True):
        teacher, problem = row["teacher_model"], row["hint_problem_id"]
        assert row["hint"] == text_of(teacher, problem, row["teacher_sample_index"]).removesuffix(" #### 11")
        assert (teacher == row["model"]) == (source == "own")
        assert (problem == row["problem_id"]) == (source != "shuffled")
        assert teacher in SOLVED[problem] or source == "own"
        assert row["teacher_sample_index"] == 1, "the completion with the highest score"


def test_shuffled_hints_are_drawn_from_all_other_problems_with_a_teacher() -> None:
    """Also from those that the student solved itself."""
    solved = {f"p{i}": "a" if i % 2 else "ab" for i in range(40)}
    found = hints("shuffled", solved).filter(model="b", reason="rescue")
    assert found.height == 20
    assert found["hint_problem_id"].n_unique() > 8
    assert {solved[problem] for problem in found["hint_problem_id"]} == {"a", "ab"}
    assert hints("shuffled", solved).equals(hints("shuffled", solved))


def test_without_another_problem_there_is_no_shuffled_hint() -> None:
    found = hints("shuffled", {"p": "a"}).filter(model="b")
    assert found.select("reason", "hint", "hint_problem_id").row(0) == ("no_hint", None, None)
    assert found["hint_draws"].to_list() == [[]]


def test_the_leak_is_that_of_the_problem_for_which_the_hint_is_used() -> None:
    parts = groups({"p": "a", "q": "a"})
    parts[1] = parts[1].with_columns(gold=pl.lit("7"), text=pl.lit("3 + 8 = 11. 11 - 4 = 7. #### 7"))
    config = RunConfig.model_validate({**DATA, "protocol": {"hint_source": "shuffled"}})
    run, key = SimpleNamespace(config=config, run_id="r"), SimpleNamespace(iteration=1)
    context: Any = SimpleNamespace(run=run, key=key, tokenizer=lambda model: LetterTokenizer())
    others = _sources(parts, ORDER, dict.fromkeys("pq", "number"))
    row = next(r for r in _hint_rows(context, parts[0], ORDER, "number", others) if r["model"] == "b")
    assert (row["hint"], row["leak"]) == ("3 + 8 = 11. 11 - 4 = 7.", "result")


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ({"hint_source": "shuffled", "rescue_samples": 0}, "no effect without hints"),
        ({"hint_source": "own", "hint_style": "strategy"}, "set hint_style to full"),
    ],
)
def test_a_source_without_hints_is_a_configuration_error(protocol: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate({**DATA, "protocol": protocol})
