"""Selectors against an enumeration of all draws in plain Python, against votes, and by hand."""

from __future__ import annotations

import json
from itertools import permutations, product
from math import comb
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import polars as pl
import pytest

from analysis.counts.completions import COMPLETIONS, load_completions
from analysis.counts.counts import ANSWERS
from analysis.counts.load import load_run
from analysis.exchange.folder import import_predictions
from analysis.metrics.draws import stored
from analysis.metrics.selectors import SELECTOR_TABLE, SELECTORS, selector_table
from analysis.metrics.votes import vote_table
from analysis.report.further_figures import selectors_figure
from analysis.report.further_tables import selectors_report
from tests.support.analysis_data import make_run, pick, publish_rollouts, rollout

Completion = tuple[str | None, int, float | None]  # answer (2: correct), tokens, mean log-probability
Sampled = dict[str, list[list[Completion]]]


def frame_of(sampled: Sampled) -> pl.DataFrame:
    rows = [
        (model, f"p{p}", i, answer, answer == "2", tokens, logprob, None)
        for model, problems in sampled.items()
        for p, completions in enumerate(problems)
        for i, (answer, tokens, logprob) in enumerate(completions)
    ]
    return pl.DataFrame(rows, schema=COMPLETIONS, orient="row")


def random_sampled(seed: int, models: tuple[str, ...], num_problems: int, n: int) -> Sampled:
    rng = np.random.default_rng(seed)
    answers = np.array(["2", "3", "4", None], dtype=object)

    def one() -> list[Completion]:
        return [(a, int(rng.integers(5, 90)), float(-rng.random())) for a in rng.choice(answers, n)]

    return {m: [one() for _ in range(num_problems)] for m in models}


def won(answers: list[str | None]) -> float:
    """Chance that the correct answer wins a vote, with ties at random."""
    votes = {a: answers.count(a) for a in answers if a is not None}
    best = [a for a, n in votes.items() if n == max(votes.values())]
    return float("2" in best) / len(best) if best else 0.0


def chosen(selector: str, draw: list[list[Completion]]) -> tuple[float, int]:
    """Correctness and tokens of one selector for one draw: model -> completions, in plain Python."""
    turns = [draw[m][i] for i in range(len(draw[0])) for m in range(len(draw))]
    total = sum(t for _, t, _ in turns)
    if selector == "oracle":
        return float(any(a == "2" for a, _, _ in turns)), total
    if selector == "majority":
        return won([a for a, _, _ in turns]), total
    if selector == "confidence":
        answered = [c for c in turns if c[0] is not None]
        return (float(max(answered, key=lambda c: c[2] or 0.0)[0] == "2") if answered else 0.0), total
    if selector == "first_agree":
        seen: list[str | None] = []
        spent = 0
        for answer, tokens, _ in turns:
            spent += tokens
            if answer is not None and answer in seen:
                return float(answer == "2"), spent
            seen.append(answer)
        return float(next((a for a in seen if a is not None), None) == "2"), spent
    assert selector == "gated"
    spent, asked = 0, []
    for completions in draw:
        spent += sum(t for _, t, _ in completions)
        asked += [a for a, _, _ in completions]
        own = {a for a, _, _ in completions}
        if completions is not draw[-1] and len(own) == 1 and None not in own:
            return float(own == {"2"}), spent
    return won(asked), spent


@pytest.mark.parametrize(
    ("names", "k", "n"),
    [(("ada", "bob"), 2, 2), (("ada", "bob"), 2, 4), (("ada", "bob", "cyd"), 2, 3), (("ada", "bob"), 3, 4)],
)
def test_every_selector_is_its_mean_over_all_orders(names: tuple[str, ...], k: int, n: int) -> None:
    sampled = random_sampled(len(names) + k + n, names, 5, n)
    table = selector_table(frame_of(sampled), ks=[k], models=names, num_draws=4000)
    labels = [("oracle", "team"), ("majority", "team"), ("confidence", "team"), ("first_agree", "team")]
    labels += [("gated", " > ".join([m, *(o for o in names if o != m)])) for m in names]
    for selector, label in labels:
        order = label.split(" > ") if " > " in label else list(names)
        solved, spent = [], []
        for p in range(5):
            draws = [list(map(list, d)) for d in product(*(permutations(sampled[m][p], k) for m in order))]
            results = [chosen(selector, draw) for draw in draws]
            solved.append(mean(r[0] for r in results))
            spent.append(mean(r[1] for r in results))
        at: dict[str, Any] = {"selector": selector, "model": label, "k": k}
        exact = 1e-9 if selector not in ("first_agree", "gated") else 0.02
        assert pick(table, figure="accuracy", **at)["estimate"] == pytest.approx(mean(solved), abs=exact), label
        assert pick(table, figure="tokens", **at)["estimate"] == pytest.approx(mean(spent), rel=max(exact, 1e-9))
        if sum(solved):
            ratio = pick(table, figure="tokens_per_solved", **at)["estimate"]
            assert ratio == pytest.approx(sum(spent) / sum(solved), rel=5 * exact)
    assert set(table["selector"]) == set(SELECTORS) - {"single"}


def test_draws_of_k_have_the_expectation_of_votes_and_pass_at_k() -> None:
    """Majority and oracle of few of many completions are known exactly from the other tables."""
    sampled = random_sampled(1, ("ada", "bob"), 40, 6)
    table = selector_table(frame_of(sampled), ks=[2], models=["ada", "bob"])
    rows = frame_of(sampled).group_by("model", "problem_id", "answer", "correct").len("n")
    answers = rows.with_columns(iteration=0, phase=pl.lit("evaluate")).select(
        pl.col(c).cast(t) for c, t in ANSWERS.items()
    )
    votes = vote_table(answers, ks=[2])
    expected = pick(votes, measure="team_maj", k=2)["estimate"]
    got = pick(table, selector="majority", model="team", figure="accuracy")["estimate"]
    assert got == pytest.approx(expected, abs=1e-9)
    fails = [
        np.prod([comb(6 - sum(a == "2" for a, _, _ in sampled[m][p]), 2) / comb(6, 2) for m in sampled])
        for p in range(40)
    ]
    got = pick(table, selector="oracle", model="team", figure="accuracy")["estimate"]
    assert got == pytest.approx(1 - float(np.mean(fails)), abs=1e-9)
    single = pick(table, selector="oracle", model="ada", k=4, figure="accuracy")
    assert single["candidates"] == 4  # the budget of the team
    below = pick(table, selector="majority", model="team", figure="below_oracle")["estimate"]
    accuracy = {s: pick(table, selector=s, model="team", figure="accuracy")["estimate"] for s in ("oracle", "majority")}
    assert below == pytest.approx(accuracy["oracle"] - accuracy["majority"], abs=1e-12)


def test_a_gate_saves_tokens_by_hand() -> None:
    sampled: Sampled = {
        "ada": [[("2", 10, -1.0), ("2", 10, -1.0)], [("3", 10, -1.0), ("4", 10, -0.1)]],
        "bob": [[("3", 100, -0.5), ("3", 100, -0.5)], [("2", 100, -2.0), ("2", 100, -2.0)]],
    }
    table = selector_table(frame_of(sampled), ks=[2], models=["ada", "bob"])
    gate = {m: pick(table, selector="gated", model="ada > bob", figure=m)["estimate"] for m in ("accuracy", "tokens")}
    assert gate == {"accuracy": 1.0, "tokens": pytest.approx((20 + 220) / 2)}
    other = {m: pick(table, selector="gated", model="bob > ada", figure=m)["estimate"] for m in ("accuracy", "tokens")}
    assert other == {"accuracy": 0.5, "tokens": 200}  # bob always agrees with himself
    team = {m: pick(table, selector="majority", model="team", figure=m)["estimate"] for m in ("accuracy", "tokens")}
    assert team == {"accuracy": pytest.approx((1 / 2 + 1) / 2), "tokens": 220}
    # The most confident completions are those of bob on the first problem (3) and of ada on the second (4).
    assert pick(table, selector="confidence", model="team", figure="accuracy")["estimate"] == 0


def test_missing_log_probabilities_few_completions_and_missing_problems() -> None:
    sampled = random_sampled(3, ("ada", "bob"), 3, 2)
    sampled["ada"][0] = [("2", 5, None), ("3", 5, None)]
    sampled["bob"] = sampled["bob"][:2]
    table = selector_table(frame_of(sampled), ks=[2, 3], models=["ada", "bob"])
    confident = pick(table, selector="confidence", model="team", k=2, figure="accuracy")
    assert confident["estimate"] is None
    assert "no log-probabilities" in confident["note"]
    assert "1 problems left out" in confident["note"]
    assert pick(table, selector="majority", model="team", k=2, figure="accuracy")["num_problems"] == 2
    few = pick(table, selector="majority", model="team", k=3, figure="tokens")
    assert few["estimate"] is None
    assert "fewer than 3 completions of some model" in few["note"]
    assert selector_table(pl.DataFrame(schema=COMPLETIONS), ks=[1], models=["ada", "bob"]).schema == SELECTOR_TABLE


def test_tokens_that_are_not_recorded_are_not_0(tmp_path: Path) -> None:
    """An import without token counts: the costs of its model and of the team are undefined."""
    lines = [
        {"example_id": f"q{i}", "model": model, "gold": "2", "completions": ["2", "3"], **tokens}
        for i in range(3)
        for model, tokens in (("ada", {"token_counts": [4, 6]}), ("bob", {}))
    ]
    file = tmp_path / "foreign.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = load_run(import_predictions(file, tmp_path / "run").path)
    frame = load_completions(data, iteration=0)
    assert set(frame.filter(model="ada")["num_tokens"]) == {4, 6}
    assert frame.filter(model="bob")["num_tokens"].to_list() == [None] * 6
    table = selector_table(frame, ks=[1, 2], models=["ada", "bob"])
    assert pick(table, model="ada", selector="single", figure="tokens")["estimate"] == 5
    for figure in ("tokens", "tokens_per_solved"):
        here = table.filter(pl.col("figure") == figure, pl.col("model") != "ada")
        assert here.height > 0
        assert set(here["estimate"]) == {None}
        assert all(note.startswith("undefined: token counts are not recorded") for note in here["note"])
    assert (
        table.filter(pl.col("figure") == "accuracy", pl.col("selector") != "confidence")["estimate"].null_count() == 0
    )
    shown = selectors_report(table)
    assert pick(shown.shown, models="bob", selector="one completion")["tokens per solved problem"] == "–"
    assert any(note.endswith("token counts are not recorded") for note in shown.notes)
    assert selectors_figure(table).points.height == 0


def test_completions_of_a_run_have_tokens_and_mean_log_probabilities(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = [
        rollout(
            phase="evaluate",
            iteration=0,
            model=m,
            sample_index=s,
            correct=s == 0,
            answer=None if s == 2 else str(s),
            logprobs=[] if s == 1 else [-0.5, -1.0],
            num_completion_tokens=7 + s,
        )
        for m in ("ada", "bob")
        for s in range(3)
    ]
    publish_rollouts(run, rows)
    frame = load_completions(load_run(run), iteration=0).sort("model", "sample_index")
    assert frame.schema == COMPLETIONS
    assert frame["num_tokens"].to_list() == [7, 8, 9] * 2
    assert frame["mean_logprob"].to_list() == [-0.75, None, -0.75] * 2
    s = stored(frame, ["ada", "bob"])
    assert s.classes.tolist() == [[[0, 1, -1]], [[0, 1, -1]]]
    assert load_completions(load_run(run), iteration=1).height == 0
