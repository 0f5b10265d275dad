"""Sweeps that only evaluate: problem sets, ways of sampling, names, and mistakes in the arguments."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import yaml
from core_hpc.common.errors import ConfigError, InputError
from core_hpc.config.run import RunConfig
from core_hpc.controller.plan import planned_scripts
from core_hpc.controller.prepare import splits_of
from core_hpc.evaluate import build_parser, content, main, text_of
from core_hpc.extensions.sources import source_of
from core_hpc.models.adapters import adapter_digest, find_adapter
from core_hpc.runs.creation import create
from core_hpc.runs.evaluation_arguments import parse_set
from core_hpc.runs.folder import ModelFacts, open_run
from core_hpc.runs.graph import Graph
from core_hpc.runs.sweep import Sweep, load_sweep, resolve_sweep
from core_hpc.store.manifests import publish, read_manifest
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import EVALUATE, UPDATE, WARMUP
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


def test_names_that_look_like_numbers_are_written_as_texts(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    assert main(["x/7e8", "--problems", "gsm8k", "--name", "1e5", "--write", str(path)]) == 0
    written = load_sweep(path)
    assert (written.name, [m.name for m in written.runs[0].config.team]) == ("1e5", ["7e8"])


@pytest.mark.parametrize(
    ("text", "name", "source"),
    [
        ("gsm8k", "gsm8k", {"source": "gsm8k"}),
        ("gpqa:diamond", "gpqa-diamond", {"source": "gpqa", "subset": "diamond"}),
        ("math:full:train", "math-full-train", {"source": "math", "subset": "full", "split": "train"}),
        (
            "a b/My.Set.jsonl:latex",
            "my-set",
            {"source": "jsonl", "path": "/in/a b/My.Set.jsonl", "answer_kind": "latex"},
        ),
        ("own=x.parquet", "own", {"source": "parquet", "path": "/in/x.parquet"}),
        ("s={source: jsonl, path: x.jsonl}", "s", {"source": "jsonl", "path": "/in/x.jsonl"}),
        ("s={source: generated, task: skills, count: 3}", "s", {"source": "generated", "task": "skills", "count": 3}),
    ],
)
def test_problem_sets(text: str, name: str, source: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the same name in another folder is another problem set, so its path is absolute."""
    monkeypatch.setattr(Path, "absolute", lambda path: Path("/in", path))
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
        (["x/y", "--problems", "generated:skills"], "count: is missing; add --count N"),
        (["x/y", "--problems", "gsm8k", "--samples", "0"], "evaluation.samples: input should be greater than 0"),
        (["x/y", "--count", "5"], "--count: needs --problems"),
        (["x/y", "--problems", "{source: [}"], "not valid YAML: line 1: "),
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


# --- runs ----------------------------------------------------------------------------------------


def small_adapter(folder: Path) -> Path:
    """The two files of an adapter, as PEFT names them."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    tensors = {f"base_model.model.q_proj.lora_{part}.weight": np.ones((2, 2), np.float32) for part in "AB"}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def weights(publication: Path) -> dict[str, tuple[int, str]]:
    """Fill a publication with what stands for weights."""
    (publication / "weights").write_text("weights")
    return {}


def trained_run(folder: Path, *, num_examples: int = 0) -> Path:
    """A run of three kinds of models. Two updates of each are published, but the third model has only one."""
    adapter = small_adapter(folder / "start")
    warm = {"problems": {"source": "generated", "task": "skills", "count": 8}}
    own = {"evaluation_sampling": {"temperature": 0.5, "top_p": 0.8}, "engine": "transformers", "learning_rate": 1e-5}
    data = {
        "name": "first",
        "iterations": 3,
        "seed": 5,
        "output": str(folder / "out"),
        "team": [
            {"name": "begun", "model": "org/base", "revision": "abc", "adapter": str(adapter), **own},
            {"name": "whole", "model": "org/base", "revision": "abc", "tuning": "full"},
            {"name": "warm", "model": "tiny:llama-1m", "lora": {"rank": 4}, "warmup": warm},
        ],
        "problems": {
            "train": {"source": "generated", "count": 8, "seed": 1},
            "evaluation": {"source": "generated", "count": 3, "seed": 2},
            "num_examples": num_examples,
            "instruction": "Think.",
        },
        "protocol": {"problems_per_iteration": 4, "problems_per_part": 2},
        "evaluation": {"samples": 3, "sampling": {"temperature": 0.9}},
        "cluster": {"threads": 3},
        "analysis": {"skills": {"warm": ["plus"]}},
    }
    path = folder / "first.yaml"
    path.write_text(yaml.safe_dump(data))
    (plan,) = (made := load_sweep(path)).runs
    facts = {m.name: ModelFacts("0" * 64, 512, "plain") for m in plan.config.team}
    facts["begun"] = replace(facts["begun"], adapter=adapter_digest(adapter), commit="c0")
    run = create(plan, made.folder, splits_of(plan), facts)
    keys = [TaskKey(i, UPDATE, m) for i, m in ((1, "begun"), (2, "begun"), (1, "whole"), (2, "whole"), (1, "warm"))]
    for key in [*keys, TaskKey(0, WARMUP, "warm")]:
        publish(run.paths.task_folder(key), run.paths.task_name(key), weights, as_folder=True)
    return run.root


def published(run: Path, key: TaskKey) -> str:
    return str(read_manifest(RunPaths(run).task_manifest(key)).folder)


def test_every_kind_of_model_is_taken_as_it_was_after_an_iteration(tmp_path: Path) -> None:
    run = trained_run(tmp_path)
    made = sweep(str(run), "--iteration", "0", "last")
    assert made.name == "evaluate-first"
    assert made.folder == tmp_path / "out" / "evaluate-first"
    before, after = (plan.config for plan in made.runs)
    assert [plan.label for plan in made.runs] == ["iteration-0-held-out-t0.9", "iteration-1-held-out-t0.9"]
    assert [(m.name, m.tuning) for m in before.team] == [("begun", "lora"), ("whole", "full"), ("warm", "lora")]
    warm = published(run, TaskKey(0, WARMUP, "warm"))
    assert [(m.model, m.revision) for m in before.team] == [("org/base", "c0"), ("org/base", "abc"), (warm, None)]
    assert before.team[0].adapter == str(read_manifest(RunPaths(run).adapter_manifest("begun")).folder)
    assert [m.adapter for m in before.team[1:]] == [None, None]
    whole = published(run, TaskKey(1, UPDATE, "whole"))
    assert [(m.model, m.revision) for m in after.team] == [("org/base", "c0"), (whole, None), (warm, None)]
    assert [m.adapter for m in after.team] == [f"{run}@1:begun", None, f"{run}@1:warm"]
    assert all(m.warmup is None for config in (before, after) for m in config.team)
    assert (after.team[2].lora, after.team[0].engine) == (before.team[2].lora, "transformers")
    assert find_adapter(after.team[2].adapter or "", name="x").base == fingerprint_of(warm)


def fingerprint_of(folder: str) -> str:
    """Stands for the fingerprint of a folder that has no model (see `_fingerprints`)."""
    return f"fingerprint of {folder}"


@pytest.fixture(autouse=True)
def _fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core_hpc.models.adapters.fingerprint", lambda folder: fingerprint_of(str(folder)))


def test_the_settings_of_the_run_are_kept(tmp_path: Path) -> None:
    run = trained_run(tmp_path)
    source = open_run(run).config
    (held_out,) = (plan.config for plan in sweep(str(run), "--iteration", "1").runs)
    assert held_out.problems == source.problems
    assert (held_out.seed, held_out.evaluation, held_out.cluster) == (5, source.evaluation, source.cluster)
    assert held_out.protocol.problems_per_part == 2
    assert held_out.analysis == source.analysis
    for model in held_out.team:
        assert held_out.sampling_of(model, EVALUATE) == source.sampling_of(source.model(model.name), EVALUATE)
    changed = ("--temperature", "0", "--max-new-tokens", "7")
    (other,) = (plan.config for plan in sweep(str(run), *changed, "--problems", "gpqa:diamond").runs)
    found = [other.sampling_of(model, EVALUATE) for model in other.team]
    assert [(s.temperature, s.top_p, s.max_new_tokens) for s in found] == [(0, 0.8, 7), (0, 0.9, 7), (0, 0.9, 7)]
    assert other.problems.train.source == "none"
    assert other.problems.instruction != "Think."  # its answers are letters
    (same,) = (plan.config for plan in sweep(str(run), "--problems", "gsm8k").runs)
    assert same.problems.instruction == "Think."


def test_worked_examples_come_from_the_training_problems_of_the_run(tmp_path: Path) -> None:
    run = trained_run(tmp_path, num_examples=2)
    (plan,) = sweep(str(run), "--problems", "{source: generated, task: skills, count: 2}").runs
    assert plan.config.problems.train == open_run(run).config.problems.train
    assert splits_of(plan).examples.equals(open_run(run).split("examples"))


def test_another_profile_replaces_the_cluster_of_the_run(tmp_path: Path) -> None:
    data = content(build_parser().parse_args([str(trained_run(tmp_path)), "--cluster", "one_node"]))
    assert data["cluster"] == {"profile": "one_node"}


def test_iterations_that_are_not_published_for_all_models(tmp_path: Path) -> None:
    run = trained_run(tmp_path)
    assert "--iteration 2:" in (text := mistake(str(run), "--iteration", "2"))
    assert "there are 0, 1" in text
    assert "a run is evaluated alone" in mistake(str(run), str(run))
    assert "--base is for PEFT folders" in mistake(str(run), "--base", "x")


def runs_of_files(folder: Path, **changes: Any) -> list[Path]:
    """The runs of a sweep with one model and problems from files, each with one update."""
    for name in ("train", "test"):
        rows = [
            {"id": f"{name}{i}", "question": f"{name} {i}?", "answer": i, "solution": f"#### {i}"} for i in range(4)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    problems = {
        "train": {"source": "jsonl", "path": str(folder / "train.jsonl"), "count": 2},
        "evaluation": {"source": "jsonl", "path": str(folder / "test.jsonl")},
        **changes.pop("problems", {}),
    }
    data = {
        "name": "files",
        "iterations": 1,
        "output": str(folder / "out"),
        "team": [{"name": "m", "model": "org/base"}],
        "problems": problems,
        "protocol": {"problems_per_iteration": 2, **changes.pop("protocol", {})},
        **changes,
    }
    path = folder / "files.yaml"
    path.write_text(yaml.safe_dump(data))
    made, found = load_sweep(path), []
    for plan in made.runs:
        run = create(plan, made.folder, splits_of(plan), {"m": ModelFacts("0" * 64, 512, "plain")})
        key = TaskKey(1, UPDATE, "m")
        publish(run.paths.task_folder(key), run.paths.task_name(key), weights, as_folder=True)
        found.append(run.root)
    return found


def test_functions_of_a_run_are_taken_from_its_copies(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "def prompt(question, hint, examples, instruction, style):\n    return question\n\n\n"
        "def norm(text):\n    return text.strip()\n"
    )
    problems = {"answer_kinds": {"mine": {"normalize": "own.py:norm"}}}
    protocol = {"prompt_function": {"function": "own.py:prompt"}}
    (run,) = runs_of_files(tmp_path, problems=problems, protocol=protocol)
    own.write_text("def prompt(question, hint, examples, instruction, style):\n    return 'changed'\n")
    for sets in ((), ("--problems", f"{tmp_path}/test.jsonl:mine")):
        (plan,) = sweep(str(run), *sets).runs
        assert plan.config.protocol.prompt_function is not None
        used = [plan.config.protocol.prompt_function.function, plan.config.problems.answer_kinds["mine"].normalize]
        assert [source_of(reference or "").text.count("strip") for reference in used] == [1, 1]


def test_problems_that_changed_since_the_run_began_are_refused(tmp_path: Path) -> None:
    (run,) = runs_of_files(tmp_path, problems={"num_examples": 1})
    test, train = tmp_path / "test.jsonl", tmp_path / "train.jsonl"
    old = test.read_text()
    test.write_text(old.replace("test 1?", "test 1 now?"))
    assert "the sources of its problems (evaluation) now give others than when the run began" in mistake(str(run))
    sweep(str(run), "--problems", str(test))  # named on purpose
    test.write_text(old)
    sweep(str(run))
    train.write_text(train.read_text().replace("####", "So ####"))  # worked examples are part of the prompts
    assert "(examples) now give others" in mistake(str(run))
    assert "(examples) now give others" in mistake(str(run), "--problems", "gsm8k")


def test_runs_of_a_sweep_can_be_evaluated_under_one_name(tmp_path: Path) -> None:
    one, two = runs_of_files(tmp_path, grid={"seed": [1, 2]})
    labels = [plan.label for run in (one, two) for plan in sweep(str(run)).runs]
    assert labels == ["seed-1-iteration-1-held-out-t0.7", "seed-2-iteration-1-held-out-t0.7"]
