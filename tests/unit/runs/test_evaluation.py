"""Sweeps that only evaluate: problem sets, ways of sampling, names, and mistakes in the arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import yaml
from core_hpc.common.errors import ConfigError, InputError
from core_hpc.config.run import RunConfig
from core_hpc.controller.plan import planned_scripts
from core_hpc.evaluate import build_parser, content, main, text_of
from core_hpc.runs.evaluation import parse_set
from core_hpc.runs.graph import Graph
from core_hpc.runs.sweep import Sweep, load_sweep, resolve_sweep
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import EVALUATE
from tests.unit.config.test_sweep import MINIMAL


def sweep(*arguments: str, overrides: list[str] | None = None) -> Sweep:
    data = content(build_parser().parse_args(arguments))
    return resolve_sweep(Path("evaluate"), text_of(data, arguments), data, overrides or [])


def mistake(*arguments: str) -> str:
    with pytest.raises(InputError) as error:
        sweep(*arguments)
    return str(error.value)


def test_every_set_and_temperature_is_a_run_with_one_evaluation() -> None:
    made = sweep(
        "org/Big-1.5B", "--problems", "gsm8k:test", "hard=math:math-500", "--temperature", "0", "0.6", "--samples", "4"
    )
    configs = {plan.label: plan.config for plan in made.runs}
    assert list(configs) == ["gsm8k-test-greedy", "gsm8k-test-t0.6", "hard-greedy", "hard-t0.6"]
    assert {c.problems.evaluation.source for c in configs.values()} == {"gsm8k", "math"}
    found = {name: (c.evaluation.samples, c.evaluation.sampling.temperature) for name, c in configs.items()}
    assert found["hard-greedy"] == (1, 0.0)
    assert found["hard-t0.6"] == (4, 0.6)
    assert made.name == "evaluate-big-1-5b"
    for config in configs.values():
        assert [(m.name, m.model, m.tuning, m.lora) for m in config.team] == [
            ("big-1-5b", "org/Big-1.5B", "full", None)
        ]
        graph = Graph.of(config, num_evaluation_problems=300)
        assert graph.tasks() == (TaskKey(0, EVALUATE, "big-1-5b", 0), TaskKey(0, EVALUATE, "big-1-5b", 1))


def test_what_is_written_is_the_same_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.yaml"
    arguments = ["a/x", "b/x", "--problems", "aime:2025", "--temperature", "0", "1", "--output", str(tmp_path)]
    assert main([*arguments, "--write", str(path)]) == 0
    assert f"python -m core_hpc.launch {path}" in capsys.readouterr().out
    written, direct = load_sweep(path), sweep(*arguments)
    assert [plan.run_id for plan in written.runs] == [plan.run_id for plan in direct.runs]
    assert written.folder == direct.folder == tmp_path / "evaluate-x"
    assert [m.name for m in written.runs[0].config.team] == ["x", "x-2"]
    assert main([*arguments, "--write", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "name", "source"),
    [
        ("gsm8k", "gsm8k", {"source": "gsm8k"}),
        ("gpqa:diamond", "gpqa-diamond", {"source": "gpqa", "subset": "diamond"}),
        ("math:full:train", "math-full-train", {"source": "math", "subset": "full", "split": "train"}),
        ("a b/My.Set.jsonl:latex", "my-set", {"source": "jsonl", "path": "a b/My.Set.jsonl", "answer_kind": "latex"}),
        ("own=x.parquet", "own", {"source": "parquet", "path": "x.parquet"}),
        ("s={source: generated, task: skills, count: 3}", "s", {"source": "generated", "task": "skills", "count": 3}),
    ],
)
def test_problem_sets(text: str, name: str, source: dict[str, Any]) -> None:
    found = parse_set(text, count=None)
    assert (found.name, found.source) == (name, source)


def test_a_count_is_for_the_sets_without_their_own() -> None:
    assert parse_set("gsm8k", count=9).source["count"] == 9
    assert parse_set("{source: gsm8k, count: 2}", count=9).source["count"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x/y"], "--problems: is missing"),
        (["x/y", "--problems", "gsm9k"], "unknown problem set; write one of"),
        (["x/y", "--problems", "generated:skills"], "count: Field required"),
        (["x/y", "--problems", "{source: [}"], "not valid YAML"),
        (["x/y", "--problems", "gsm8k", "gsm8k"], "two sets have the name gsm8k"),
        (["x/y", "--problems", "gsm8k", "--iteration", "3"], "x/y is not a run folder"),
    ],
)
def test_mistakes_in_arguments(arguments: list[str], message: str) -> None:
    assert message in mistake(*arguments)


def test_mistakes_of_the_sweep_have_their_place() -> None:
    with pytest.raises(ConfigError, match=r"problems.evaluation.subset: unknown subset 'math-50'"):
        sweep("x/y", "--problems", "{source: math, subset: math-50}")
    with pytest.raises(ConfigError, match=r"temperature: input should be greater than or equal to 0"):
        sweep("x/y", "--problems", "gsm8k", "--temperature", "-1")


def test_a_peft_folder_needs_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert "names no base model; add --base" in mistake(str(tmp_path), "--problems", "gsm8k")


@pytest.mark.parametrize("driver", ["arrays", "resident"])
def test_the_batch_scripts_of_a_run_that_only_evaluates_are_shown(driver: str) -> None:
    made = sweep("x/y", "--problems", "gsm8k", overrides=[f"cluster.driver={driver}"])
    scripts = planned_scripts(made, Graph.of(made.runs[0].config, num_evaluation_problems=10))
    wanted = "generate (here evaluate)" if driver == "arrays" else "resident"
    assert list(scripts) == [wanted, "controller (--detach only)"]


# --- iterations: 0 -------------------------------------------------------------------------------


def config(**changes: Any) -> RunConfig:
    return RunConfig.model_validate({**MINIMAL, "iterations": 0, **changes})


def test_a_run_that_only_evaluates_can_be_trained_later_if_it_has_training_problems() -> None:
    assert config().iterations == 0
    none = {**MINIMAL["problems"], "train": {"source": "none"}}  # type: ignore[dict-item]
    assert config(problems=none).problems.train.source == "none"
    with pytest.raises(ValueError, match=r"problems.train: its source is none"):
        config(problems=none, iterations=1)
    with pytest.raises(ValueError, match=r"worked examples are drawn from problems.train"):
        config(problems={**none, "num_examples": 1})
    with pytest.raises(ValueError, match="nothing is left to do"):
        config(evaluation={"before": False})


def test_the_written_file_names_the_command(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    assert main(["x/y", "--problems", "gsm8k", "--write", str(path)]) == 0
    assert path.read_text().startswith("# Written by: python -m core_hpc.evaluate x/y --problems gsm8k")
    assert yaml.safe_load(path.read_text())["iterations"] == 0
