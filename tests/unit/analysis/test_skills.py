"""Own, foreign and further problems: figures by hand, and roles that sweeps declare."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from analysis.counts.load import RunData
from analysis.metrics.arms import BASE
from analysis.metrics.compare import MEAN
from analysis.metrics.skills import (
    SKILL_CONTRASTS_TABLE,
    SKILLS_TABLE,
    declared_skills,
    skill_contrasts_table,
    skills_reports,
    skills_table,
)
from core_hpc.common.errors import InputError
from tests.support.analysis_data import config, counts_frame, pick
from tests.unit.analysis.test_arms import data, held_out

SKILLS = {"analysis": {"skills": {"ada": ["plus"], "bob": ["gap", "gorp"]}}}
SUBJECTS: list[str | None] = ["plus", "gap", "gorp", "plus_then_gap", None]
"""Of the five problems of a run, in the order of their ids."""


def run(seed: int, c: list[list[int]], iteration: int = 2, *, arm: float = 0.0, **sections: object) -> RunData:
    """A run whose models solve c of 4 completions of each problem, after training; none before it."""
    found = data(
        seed, held_out(np.zeros((2, 5), int), 0), held_out(c, iteration), update={"kl_weight": arm}, **sections
    )
    return _with_subjects(found)


def _with_subjects(found: RunData, names: list[str | None] = SUBJECTS) -> RunData:
    ids = found.counts["problem_id"].unique().sort().to_list()
    subjects = pl.col("problem_id").replace_strict(dict(zip(ids, names, strict=True)), return_dtype=pl.String)
    return replace(found, counts=found.counts.with_columns(subject=subjects))


def two_arms() -> dict[str, list[RunData]]:
    one = [run(s, [[4, 0, 0, 1, 2], [0, 4, 2, 0, 0]], **SKILLS) for s in (1, 2)]
    two = [run(s, [[4, 2, 1, 1, s], [0, 4, 4, 4, 0]], arm=0.5, **SKILLS) for s in (1, 2)]
    return {"one": one, "two": two}


def test_levels_by_hand() -> None:
    frame = skills_table(two_arms(), ks=[1])
    assert frame.schema == SKILLS_TABLE
    expected = {
        ("one", "ada", "ada"): ("own", 1.0),
        ("one", "ada", "bob"): ("foreign", 0.0),
        ("one", "bob", "ada"): ("foreign", 0.0),
        ("one", "bob", "bob"): ("own", (4 + 2) / 8),
        ("two", "ada", "bob"): ("foreign", (2 + 1) / 8),
        ("two", "ada", "rest"): ("rest", (1 / 4 + 1.5 / 4) / 2),
        (BASE, "bob", "bob"): ("own", 0.0),
    }
    for (arm, model, problems), (role, level) in expected.items():
        row = pick(frame, arm=arm, seed=MEAN, measure="pass", model=model, problems=problems)
        assert (row["role"], row["estimate"]) == (role, pytest.approx(level))
    team = pick(frame, arm="two", seed="1", measure="team_pass", problems="rest")
    assert (team["role"], team["estimate"]) == (None, pytest.approx((1 + 1 / 4) / 2))


def test_differences_by_hand_and_one_correction_for_all_groups() -> None:
    frame = skill_contrasts_table(two_arms(), ks=[1])
    assert frame.schema == SKILL_CONTRASTS_TABLE
    assert frame["arm_a"].unique().to_list() == ["one"]
    learned = pick(frame, measure="pass", model="ada", problems="bob")
    assert (learned["role"], learned["estimate"]) == ("foreign", pytest.approx(3 / 8))
    assert pick(frame, measure="pass", model="ada", problems="ada")["estimate"] == 0
    # The smallest of all p values of all groups is multiplied by their number.
    smallest = frame.sort("p").row(0, named=True)
    assert frame.height == 9
    assert smallest["p_holm"] == pytest.approx(min(1.0, 9 * smallest["p"]))
    assert not frame["primary"].any()


def test_report_tables() -> None:
    levels, differences = skills_reports(two_arms(), ks=[1])
    assert levels.shown.columns[:5] == ["k", "arm", "ada, own", "ada, of bob", "ada, rest"]
    assert "problems of bob: gap, gorp" in levels.notes
    assert differences.shown["skill"].unique().sort().to_list() == ["of ada", "of bob", "rest"]
    assert [table.name for table in skills_reports({"one": two_arms()["one"]}, ks=[1])] == ["skills"]


@pytest.mark.parametrize(
    ("subjects", "empty"),
    [(["plus", "gap", "gorp", "gap", "plus"], "rest"), (["plus", "plus", "plus", "plus_then_gap", None], "bob")],
)
def test_a_group_without_a_held_out_problem_is_left_out(subjects: list[str | None], empty: str) -> None:
    arms = {
        name: [_with_subjects(run(s, [[4, 0, s, 1, 2], [0, 4, 2, 0, 0]], arm=w, **SKILLS), subjects) for s in (1, 2)]
        for name, w in (("one", 0.1), ("two", 0.5))
    }
    trained = counts_frame(4, [[4], [4]], phase="cold").with_columns(problem_id=pl.lit("t"), subject=pl.lit("gorp"))
    arms["one"][0] = replace(arms["one"][0], counts=pl.concat([arms["one"][0].counts, trained], how="diagonal"))
    left = [name for name in ("ada", "bob", "rest") if name != empty]
    levels = skills_table(arms, ks=[1])
    assert levels["problems"].unique(maintain_order=True).to_list() == left
    # The mean of ada over the problems with the subject plus.
    expected = np.mean([[4, 2], [4, 2]] if empty == "rest" else [[4, 0, 1], [4, 0, 2]]) / 4
    own = pick(levels, arm="one", seed=MEAN, measure="pass", model="ada", problems="ada")
    assert own["estimate"] == pytest.approx(expected)
    tables = skills_reports(arms, ks=[1])
    assert len(tables) == 2
    without = ("rest",) if empty == "rest" else ("of bob", "bob, own")
    assert not any(name.endswith(without) for name in tables[0].shown.columns)
    for table in tables:
        assert f"left out, because it has no held-out problem: {empty}" in table.notes


def test_a_team_of_one_model_has_no_columns_of_the_team() -> None:
    alone = data(
        1,
        counts_frame(4, [[4, 0, 2, 1, 2]], models=("ada",), iteration=2),
        models=("ada",),
        analysis={"skills": {"ada": ["plus", "gap"]}},
    )
    levels = skills_reports({"one": [_with_subjects(alone)]}, ks=[1])[0]
    assert levels.shown.columns == ["k", "arm", "ada, own", "ada, rest"]
    assert [row[2][:4] for row in levels.shown.rows()] == ["50.0"]
    assert not any(note.startswith("team") for note in levels.notes)


def test_runs_without_or_with_different_skills() -> None:
    silent = {"one": [run(1, [[4] * 5] * 2)]}
    assert declared_skills(silent) == {}
    with pytest.raises(InputError, match=r"no run declares `analysis.skills`"):
        skills_table(silent, ks=[1])
    other = {"analysis": {"skills": {"ada": ["gap"]}}}
    with pytest.raises(InputError, match=r"not the same in .* and in "):
        declared_skills({**two_arms(), "three": [run(1, [[4] * 5] * 2, arm=0.7, **other)]})


@pytest.mark.parametrize(
    ("skills", "message"),
    [
        ({"ada": ["plus"], "bob": ["plus"]}, "the subject 'plus' stands twice"),
        ({"ada": ["plus", "plus"]}, "the subject 'plus' stands twice"),
        ({"eve": ["plus"]}, "eve is not in the team"),
    ],
)
def test_wrong_declarations(skills: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(analysis={"skills": skills})
