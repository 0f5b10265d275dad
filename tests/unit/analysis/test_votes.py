"""The vote tables against an enumeration of all draws in exact fractions."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import combinations, product
from typing import Any

import numpy as np
import polars as pl
import pytest

from analysis.counts.counts import ANSWERS
from analysis.metrics.votes import VOTES, agreement, ballots, vote_table
from tests.support.analysis_data import pick
from tests.support.source_groups import assert_same_figures, grouped

CORRECT = ("2", "2.0")  # two spellings of the correct answer
Sampled = dict[str, list[list[str | None]]]


def answers_of(sampled: Sampled, *, iteration: int = 0) -> pl.DataFrame:
    """Make answer counts from a mapping model -> problem -> answer of each completion."""
    rows = [
        (iteration, "evaluate", model, f"p{p}", answer, answer in CORRECT, n)
        for model, problems in sampled.items()
        for p, answers in enumerate(problems)
        for answer, n in Counter(answers).items()
    ]
    return pl.DataFrame(rows, schema=ANSWERS, orient="row")


def elected(answers: tuple[str | None, ...]) -> dict[str, Fraction]:
    """Return the winners of one vote, with their shares of a tie."""
    votes = Counter("2" if a in CORRECT else a for a in answers if a is not None)
    best = [a for a, count in votes.items() if count == max(votes.values())]
    return {a: Fraction(1, len(best)) for a in best}


def enumerated(problems: list[list[list[str | None]]], k: int) -> dict[str, Fraction]:
    """Mean over problems and over all joint draws of k completions per model.

    problems: problem -> model -> answers.
    """
    sums: Counter[str] = Counter()
    for models in problems:
        draws = list(product(*(combinations(answers, k) for answers in models)))
        for draw in draws:
            own = [elected(part) for part in draw]
            agreed = {a: np.prod([o.get(a, Fraction(0)) for o in own]) for a in own[0]}
            sums["team_maj"] += elected(sum(draw, ())).get("2", Fraction(0)) / len(draws)
            sums["gated_answered"] += sum(agreed.values(), Fraction(0)) / len(draws)
            sums["gated_correct"] += agreed.get("2", Fraction(0)) / len(draws)
    out = {name: value / len(problems) for name, value in sums.items()}
    return {**out, "gated_accuracy": out["gated_correct"] / out["gated_answered"]}


@pytest.mark.parametrize("num_models", [2, 3])
def test_every_vote_is_the_share_of_all_draws(num_models: int) -> None:
    rng = np.random.default_rng(num_models)
    choices = np.array(["2", "2.0", "3", "4", "5", None], dtype=object)
    names = ("ada", "bob", "cyd")[:num_models]
    sampled: Sampled = {name: [rng.choice(choices, 4).tolist() for _ in range(6)] for name in names}
    table = vote_table(answers_of(sampled), ks=[1, 2])
    for k in (1, 2):
        for measure, expected in enumerated([[sampled[m][p] for m in names] for p in range(6)], k).items():
            row = pick(table, measure=measure, k=k)
            assert row["estimate"] == pytest.approx(float(expected), abs=1e-12), measure
            assert (row["model"], row["candidates"]) == ("team", num_models * k)
        for name in names:
            for measure, spent in (("maj", k), ("matched_maj", num_models * k)):
                row = pick(table, measure=measure, model=name, k=k)
                assert row["candidates"] == spent
                if spent <= 4:
                    draws = [draw for answers in sampled[name] for draw in combinations(answers, spent)]
                    won = [elected(draw).get("2", Fraction(0)) for draw in draws]
                    assert row["estimate"] == pytest.approx(float(sum(won) / len(won)), abs=1e-12)
                else:
                    assert row["estimate"] is None
                    assert f"6 problems have fewer than {spent} completions" in row["note"]


def test_spellings_blanks_and_unanimity_by_hand() -> None:
    sampled: Sampled = {"ada": [["2", "2.0", "3"], [None, None, None]], "bob": [["3", "3", "2"], [None, "4", "4"]]}
    table = vote_table(answers_of(sampled), ks=[3])
    got = {(row["measure"], row["model"]): row["estimate"] for row in table.iter_rows(named=True)}
    assert got["maj", "ada"] == 1 / 2  # two spellings win against 3; without any vote there is no answer
    assert got["maj", "bob"] == 0
    assert got["team_maj", "team"] == pytest.approx((1 / 2 + 0) / 2)  # 3 votes each for 2 and 3
    assert got["gated_answered", "team"] == 0  # a model without a vote agrees with none
    assert got["gated_accuracy", "team"] is None
    accuracy = pick(table, measure="gated_accuracy")
    assert "denominator is 0" in accuracy["note"]
    assert set(table["measure"]) == set(VOTES)


def test_models_that_always_or_never_agree() -> None:
    same = [["2"] * 4] * 3 + [["7"] * 4] * 2
    table = vote_table(answers_of({"ada": same, "bob": same}), ks=[2])
    assert pick(table, measure="gated_answered")["estimate"] == 1
    assert pick(table, measure="gated_accuracy")["estimate"] == pytest.approx(3 / 5)
    apart = vote_table(answers_of({"ada": same, "bob": [["8"] * 4] * 5}), ks=[2])
    assert pick(apart, measure="gated_answered")["estimate"] == 0
    assert pick(apart, measure="team_maj")["estimate"] == pytest.approx(3 / 5 / 2)


def test_a_problem_missing_for_one_model_and_few_completions() -> None:
    b = ballots(answers_of({"ada": [["2"] * 3] * 2, "bob": [["2"] * 3]}), models=["ada", "bob"], iteration=0)
    assert b.problem_ids.tolist() == ["p0"]
    assert b.note == "1 problems left out: not published for every model"
    assert np.isnan(agreement(b, 4)).all()
    table = vote_table(answers_of({"ada": [["2"] * 3], "bob": [["2"] * 2]}), ks=[3])
    assert pick(table, measure="maj", model="ada")["estimate"] == 1
    for measure in ("team_maj", "gated_answered", "gated_accuracy", "gated_correct"):
        row = pick(table, measure=measure)
        assert row["estimate"] is None
        assert row["note"].startswith("undefined: 1 problems have fewer than 3 completions of some model")


def test_copies_in_one_source_group_change_no_interval() -> None:
    rng = np.random.default_rng(5)
    sampled: Sampled = {
        m: rng.choice(np.array(["2", "3", "4", None], dtype=object), (110, 4)).tolist() for m in ("ada", "bob")
    }
    answers = answers_of(sampled)
    assert_same_figures(vote_table(answers, ks=[1, 2]), vote_table(grouped(answers, 2), ks=[1, 2]))


def test_iterations_nothing_published_and_team_of_one() -> None:
    both: list[Any] = [answers_of({"ada": [["2"]], "bob": [["3"]]}, iteration=i) for i in (0, 3)]
    assert vote_table(pl.concat(both), ks=[1])["iteration"].unique().sort().to_list() == [0, 3]
    assert vote_table(pl.DataFrame(schema=ANSWERS), ks=[1]).height == 0
    assert set(vote_table(answers_of({"ada": [["2"]]}), ks=[1])["measure"]) == {"maj"}
