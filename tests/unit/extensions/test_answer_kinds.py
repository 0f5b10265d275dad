"""Kinds of answers of the user: Roman numerals of the shipped example against a second table of values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from core_hpc.answers.extract import extract_answer, verify_many
from core_hpc.answers.kinds import answer_kind, own_kinds
from core_hpc.answers.own import kinds_of
from core_hpc.common.errors import InputError
from core_hpc.config.problems import OwnAnswerKind, ProblemsSection
from core_hpc.extensions import sources
from core_hpc.extensions.sources import Source, read_source
from core_hpc.problems.splits import make_splits
from core_hpc.store.schema import CORRECT, NO_ANSWER, TIMEOUT, WRONG
from tests.support.examples import EXAMPLES

ROMAN = {"I": 1, "IV": 4, "IX": 9, "XIV": 14, "XL": 40, "XC": 90, "CD": 400, "MCMXCIV": 1994}


def kind_of(source: Source, *names: str) -> OwnAnswerKind:
    sources.remember([source])
    return OwnAnswerKind.model_validate({name: source.reference(name) for name in names})


def example(*names: str) -> OwnAnswerKind:
    return kind_of(read_source(EXAMPLES / "my_answers.py"), *names)


@pytest.mark.parametrize("names", [("normalize",), ("normalize", "extract", "verify")])
def test_numerals_are_read_and_compared(names: tuple[str, ...]) -> None:
    """With `normalize` alone the usual places are searched, and `####` is one of them."""
    with own_kinds(kinds_of({"roman": example(*names)})):
        for numeral, value in ROMAN.items():
            assert answer_kind("roman").gold(numeral) == str(value)
            assert extract_answer(f"We add them.\n#### {numeral.lower()}", "roman") == str(value)
        claims = [("9", "IX", "roman"), ("IX", "9", "roman"), ("8", "IX", "roman"), (None, "IX", "roman")]
        assert verify_many(claims) == [CORRECT, CORRECT, WRONG, NO_ANSWER]
        mixed = [("IX", "IX", "roman"), ("0.5", "1/2", "number"), ("x", "IX", "roman")]
        assert verify_many(mixed) == [CORRECT, CORRECT, WRONG]


def test_the_default_places_are_searched_without_extract() -> None:
    with own_kinds(kinds_of({"roman": example("normalize")})):
        assert extract_answer(r"Thus \boxed{XIV}. The rest is easy.", "roman") == "14"
        assert extract_answer("<answer>XL</answer>", "roman") == "40"
        assert extract_answer("I do not know.", "roman") is None


def test_a_kind_is_known_only_within_its_run() -> None:
    with own_kinds(kinds_of({"roman": example("normalize")})):
        answer_kind("roman")
    with pytest.raises(ValueError, match="unknown answer kind 'roman'"):
        answer_kind("roman")


def test_two_runs_may_give_a_name_to_different_functions() -> None:
    shout = kind_of(Source("my_answers.py", "def normalize(text):\n    return text.upper()\n"), "normalize")
    whisper = kind_of(Source("my_answers.py", "def normalize(text):\n    return text.lower()\n"), "normalize")
    for kind, expected in ((shout, "AB"), (whisper, "ab"), (shout, "AB")):
        with own_kinds(kinds_of({"case": kind})):
            assert extract_answer("#### Ab", "case") == expected


def test_a_comparison_that_hangs_is_a_timeout_and_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core_hpc.answers.own.CPU_LIMIT_S", 0.5)
    text = "def normalize(text):\n    return text\n\ndef verify(answer, gold):\n"
    text += "    while answer == 'hang': pass\n    return True"
    with own_kinds(kinds_of({"slow": kind_of(Source("my_answers.py", text), "normalize", "verify")})):
        claims = [("a", "b", "slow"), ("hang", "b", "slow"), ("c", "b", "slow")]
        assert verify_many(claims) == [CORRECT, TIMEOUT, CORRECT]


def test_equal_answers_are_compared_once(tmp_path: Path) -> None:
    text = "def normalize(text):\n    return text\n\ndef verify(answer, gold):\n"
    text += f"    open({str(tmp_path / 'calls')!r}, 'a').write(answer)\n    return answer == gold"
    with own_kinds(kinds_of({"noted": kind_of(Source("my_answers.py", text), "normalize", "verify")})):
        claims = [("a", "a", "noted"), ("b", "a", "noted"), ("a", "a", "noted"), ("b", "a", "noted")]
        assert verify_many(claims) == [CORRECT, WRONG, CORRECT, WRONG]
    assert sorted((tmp_path / "calls").read_text()) == ["a", "b"]


def section(path: Path, kind: str, **kinds: Any) -> ProblemsSection:
    train = {"source": "jsonl", "path": str(path), "answer_kind": kind}
    evaluation = {"source": "generated", "count": 2}
    return ProblemsSection.model_validate(
        {"answer_kinds": kinds, "train": train, "evaluation": evaluation, "instruction": "Solve it."}
    )


def test_a_file_of_problems_may_name_the_kind(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"id": n, "question": n, "answer": n}) + "\n" for n in ROMAN))
    problems = section(path, "roman", roman=example("normalize"))
    with own_kinds(kinds_of(problems.answer_kinds)):
        frame = make_splits(problems).train
    assert frame["gold"].to_list() == [str(value) for value in ROMAN.values()]
    assert frame["answer_kind"].unique().to_list() == ["roman"]
    path.write_text(json.dumps({"id": 1, "question": "q", "answer": "IIX"}))
    refused = pytest.raises(InputError, match="the answer 'IIX' is not an answer of the kind roman")
    with own_kinds(kinds_of(problems.answer_kinds)), refused:
        make_splits(problems)


def test_wrong_names_of_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"unknown answer_kind 'romn'; known: number, .*, text, roman"):
        section(tmp_path, "romn", roman=example("normalize"))
    with pytest.raises(ValidationError, match="there is a kind letter already"):
        section(tmp_path, "letter", letter=example("normalize"))
