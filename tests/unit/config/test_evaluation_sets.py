"""The field `evaluation.sets`: identity, the configuration of a set, its problems, and mistakes with their places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import yaml
from core_hpc.common.errors import ConfigError, InputError
from core_hpc.config.identity import scientific_fields
from core_hpc.config.run import RunConfig
from core_hpc.controller import estimate
from core_hpc.controller.plan import most_work
from core_hpc.controller.prepare import splits_of
from core_hpc.problems.sets import num_samples, set_sizes
from core_hpc.runs.graph import Graph
from core_hpc.runs.sweep import RunPlan, load_sweep
from core_hpc.store.schema import EVALUATE
from tests.support.examples import EXAMPLES
from tests.unit.config.test_sweep import MINIMAL

SAME = {"source": "generated", "count": 4}
OTHER = {"source": "generated", "task": "skills", "count": 3}
SETS = [
    {"name": "greedy", "problems": SAME, "samples": 1, "sampling": {"temperature": 0}},
    {"name": "hard", "problems": OTHER, "instruction": "Only the number."},
]


def config(sets: Any = SETS, **changes: Any) -> RunConfig:
    team = [{"name": "a", "model": "x", "evaluation_sampling": {"temperature": 0.3}}, {"name": "b", "model": "y"}]
    evaluation = {"samples": 4, "sampling": {"max_new_tokens": 50}, "sets": sets}
    return RunConfig.model_validate({**MINIMAL, "team": team, "evaluation": evaluation, **changes})


def plan(**changes: Any) -> RunPlan:
    return RunPlan("run", "run-0", config(protocol={"problems_per_iteration": 4}, **changes))


def test_without_sets_the_identity_is_that_of_earlier_versions() -> None:
    assert "sets" not in scientific_fields(config([]))["evaluation"]
    found = scientific_fields(config())["evaluation"]["sets"]
    assert [(own["name"], own["samples"]) for own in found] == [("greedy", 1), ("hard", None)]
    assert json.dumps(found)


def test_a_set_has_its_own_settings_before_those_of_a_model_and_of_the_team() -> None:
    whole = config()
    greedy, hard, main = (whole.for_set(name) for name in ("greedy", "hard", ""))
    assert [c.evaluation.samples for c in (greedy, hard, main)] == [1, 4, 4]
    temperatures = [[c.sampling_of(m, EVALUATE).temperature for m in c.team] for c in (greedy, hard, main)]
    assert temperatures == [[0, 0], [0.3, 0.7], [0.3, 0.7]]
    assert {c.sampling_of(c.team[0], EVALUATE).max_new_tokens for c in (greedy, hard, main)} == {50}
    assert hard.problems.instruction == "Only the number."
    assert greedy.problems.instruction == main.problems.instruction == whole.problems.instruction
    assert hard.problems.evaluation.source == "generated"
    assert greedy.evaluation.sets == main.evaluation.sets == []


def test_the_problems_of_all_sets_are_in_one_split_with_ids_of_their_own() -> None:
    made = splits_of(plan())
    rows = made.evaluation
    assert rows["problem_id"].n_unique() == rows.height == 4 + 4 + 3
    main = rows[:4]
    assert rows[4:8]["problem_id"].to_list() == [f"greedy/{i}" for i in main["problem_id"]]
    assert rows[4:8].drop("problem_id").equals(main.drop("problem_id"))  # equal sources: equal problems
    assert all(i.startswith("hard/") for i in rows[8:]["problem_id"])
    assert set_sizes(config(), rows) == {"": 4, "greedy": 4, "hard": 3}
    assert rows.select(num_samples(config())).to_series().to_list() == [4] * 4 + [1] * 4 + [4] * 3
    without = splits_of(plan(evaluation={"samples": 4}))
    assert without.evaluation.equals(main)
    assert without.train.equals(made.train)


def test_plan_and_estimate_count_every_set() -> None:
    run = plan(iterations=1)
    sizes = {"": 4, "greedy": 4, "hard": 3}
    graph = Graph.of(run.config, num_evaluation_problems=11)
    rollouts = 4 * (2 + 1)
    completions, tokens, _ = most_work(run, graph, sizes)
    assert completions == 2 * (rollouts + 2 * (4 * 4 + 4 * 1 + 3 * 4))
    assert tokens == 2 * (rollouts * 3072 + 2 * 32 * 50)
    sampled, _ = estimate.tokens_of(run.config, run.config.team[0], {k: 2 * n for k, n in sizes.items()}, 0.5)
    assert sampled == pytest.approx(0.5 * (rollouts * 3072 + 2 * 32 * 50))


def test_a_set_shares_no_problem_with_training(tmp_path: Path) -> None:
    rows = [{"id": f"p{i}", "question": f"What is {i} and {i}?", "answer": str(2 * i)} for i in range(8)]
    for name, part in (("train", rows[:5]), ("set", rows[4:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    train = {"source": "jsonl", "path": str(tmp_path / "train.jsonl")}
    problems = {"train": train, "evaluation": {"source": "generated", "count": 2}}
    own: dict[str, Any] = {"source": "jsonl", "path": str(tmp_path / "set.jsonl")}
    with pytest.raises(InputError, match=r"evaluation.sets.0.problems: 1 question\(s\) are .* 'What is 4 and 4\?'"):
        splits_of(plan(problems=problems, evaluation={"sets": [{"name": "s", "problems": own}]}))
    drawn = splits_of(plan(problems=problems, evaluation={"sets": [{"name": "s", "problems": {**own, "count": 3}}]}))
    assert drawn.evaluation["problem_id"].to_list()[2:] == ["s/p5", "s/p6", "s/p7"]


@pytest.mark.parametrize("near_duplicates", ["error", "drop", "allow"])
def test_a_set_has_no_worked_example(near_duplicates: str, tmp_path: Path) -> None:
    """Every prompt shows the examples with their solutions."""
    path = tmp_path / "all.jsonl"
    rows = [
        {"id": f"p{i}", "question": " ".join(f"w{i}x{k}" for k in range(9)), "answer": str(i), "solution": f"#### {i}"}
        for i in range(10)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source: dict[str, Any] = {"source": "jsonl", "path": str(path)}
    held_out = {"source": "generated", "count": 2}
    problems = {"train": {**source, "count": 5}, "evaluation": held_out, "num_examples": 3}
    problems["near_duplicates"] = near_duplicates

    def made(own: dict[str, Any]) -> Any:
        return splits_of(plan(problems=problems, evaluation={"sets": [{"name": "s", "problems": own}]}))

    drawn = made({**source, "count": 2})
    used = {*drawn.train["question"], *drawn.examples["question"]}
    assert len(used) == 8
    assert not used & set(drawn.evaluation["question"])
    with pytest.raises(InputError, match="has 10 problems, 8 of them are used"):
        made({**source, "count": 3})
    (tmp_path / "some.jsonl").write_text(json.dumps(rows[int(drawn.examples["problem_id"][0][1:])]))
    with pytest.raises(InputError, match=r"sets.0.problems: 1 question\(s\) are .* or worked examples"):
        made({**source, "path": str(tmp_path / "some.jsonl")})


@pytest.mark.parametrize("near_duplicates", ["error", "drop", "allow"])
def test_the_source_of_the_main_set_gives_its_problems(near_duplicates: str, tmp_path: Path) -> None:
    """Also with `drop`, which draws held-out problems first, and with one file for everything."""
    path = tmp_path / "all.jsonl"
    rows = [{"id": f"p{i}", "question": " ".join(f"w{i}x{k}" for k in range(9)), "answer": str(i)} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": "jsonl", "path": str(path)}
    held_out, near = {**source, "count": 10}, {"near_duplicates": near_duplicates}
    problems = {"train": {**source, "count": 20}, "evaluation": held_out, **near}
    made = splits_of(plan(problems=problems, evaluation={"sets": [{"name": "greedy", "problems": held_out}]}))
    main, greedy = made.evaluation[:10], made.evaluation[10:]
    assert greedy["problem_id"].to_list() == [f"greedy/{i}" for i in main["problem_id"]]
    assert greedy.drop("problem_id").equals(main.drop("problem_id"))
    assert not set(greedy["question"]) & set(made.train["question"])


def test_a_set_may_have_answers_of_a_kind_of_the_user(tmp_path: Path) -> None:
    """The canonical answers of the Roman numerals of the shipped example."""
    (tmp_path / "my_answers.py").write_bytes((EXAMPLES / "my_answers.py").read_bytes())
    numerals = {"IX": "9", "XL": "40", "CD": "400"}
    rows = [{"id": n, "question": f"Write {v} as a numeral.", "answer": n} for n, v in numerals.items()]
    (tmp_path / "roman.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": "jsonl", "path": str(tmp_path / "roman.jsonl"), "answer_kind": "roman"}
    own = {"name": "roman", "problems": source, "instruction": "Only the numeral."}
    kinds = {"roman": {"normalize": "my_answers.py:normalize"}}
    data = {**MINIMAL, "problems": {**MINIMAL["problems"], "answer_kinds": kinds}, "evaluation": {"sets": [own]}}
    data["protocol"] = {"problems_per_iteration": 4}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    (run,) = load_sweep(path).runs
    made = splits_of(run).evaluation.filter(pl.col("problem_id").str.starts_with("roman/"))
    assert made["gold"].to_list() == list(numerals.values())
    assert made["answer_kind"].unique().to_list() == ["roman"]
    source["answer_kind"] = "romn"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"evaluation.sets.0.problems: unknown answer_kind 'romn'; known: .*, roman"):
        load_sweep(path)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([SETS[0], SETS[0]], "evaluation.sets: two sets have the name greedy"),
        ([{"name": "A b", "problems": SAME}], "evaluation.sets.0.name: "),
        ([{"name": "a", "problems": {**OTHER, "task": "skils"}}], "evaluation.sets.0.problems.task: unknown generator"),
        ([{"name": "a", "problems": {**SAME, "cuont": 1}}], "evaluation.sets.0.problems.cuont: unknown key"),
        ([{"name": "a", "problems": {"source": "gpqa"}}], "evaluation.sets.0.instruction: the answers of a are of the"),
        ([{"name": "a", "problems": SAME, "sample": 2}], "evaluation.sets.0.sample: unknown key; did you mean"),
    ],
)
def test_mistakes_are_named_with_their_place(sets: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "evaluation": {"sets": sets}}), encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_sweep(path)
    assert message in str(error.value)


def test_a_field_of_a_set_is_named_by_the_name_of_the_set(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "evaluation": {"sets": SETS}}), encoding="utf-8")
    (run,) = load_sweep(path, ["evaluation.sets.hard.samples=2"]).runs
    assert [own.samples for own in run.config.evaluation.sets] == [1, 2]
