"""What a start checks before it creates or submits anything, with tiny models and their tokenizers."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from core_hpc.common.errors import InputError
from core_hpc.config.run import RunConfig
from core_hpc.controller import prepare as preparation
from core_hpc.controller import start
from core_hpc.controller.prepare import FACTS_FILE, main, prepare, read_splits
from core_hpc.models.folder import load_tokenizer
from core_hpc.problems.sets import all_problems
from core_hpc.problems.splits import Splits
from core_hpc.runs.sweep import load_sweep
from tests.support.architectures import make_tiny_phi3
from tests.support.tiny import tiny_sweep


def prepared(folder: Path, models: list[Path], *overrides: str, **changes: Any) -> None:
    """Prepare the first run of a tiny sweep."""
    sweep = load_sweep(tiny_sweep(folder / "tiny.yaml", models, folder / "out", **changes), overrides)
    prepare(sweep.runs[0].config)


def test_a_context_longer_than_that_of_the_model_is_refused(tiny_models: list[Path], tmp_path: Path) -> None:
    """vLLM would refuse it when it loads the model, in every attempt."""
    longer = r"team.0 \(m0\): max_context_tokens is 1025, but the model has 1024 tokens of context; lower it"
    with pytest.raises(InputError, match=longer):
        prepared(tmp_path, tiny_models, "team.m0.max_context_tokens=1025")
    prepared(tmp_path, tiny_models, "team.m0.max_context_tokens=1024")


def test_the_factors_of_a_longrope_do_not_depend_on_the_arm(tiny_models: list[Path], tmp_path: Path) -> None:
    """An arm without hints needs fewer tokens, and would be another base model. The user can choose short factors."""
    model = make_tiny_phi3(tmp_path / "phi3")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "original_max_position_embeddings": 768}))
    grid = {"protocol.rescue_samples": [0, 1], "protocol.hint_tokens": [256]}

    def contexts(models: list[Path], *overrides: str) -> list[int]:
        sweep = load_sweep(tiny_sweep(tmp_path / "tiny.yaml", models, tmp_path / "out", grid=grid), overrides)
        return [prepare(plan.config)["m0"].context_tokens for plan in sweep.runs]

    without_hints, with_hints = contexts(tiny_models[:1])
    assert without_hints < with_hints < 768
    first, second = contexts([model])
    assert first == second > 768
    assert contexts([model], f"team.m0.max_context_tokens={with_hints}") == [with_hints, with_hints]


def test_the_commit_of_a_hub_model_is_a_fact(
    tiny_models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository, commit = tmp_path / "hub" / "models--own--toy", "a" * 40
    shutil.copytree(tiny_models[0], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    models = {"a": "own/toy", "b": str(tiny_models[0])}
    team = [{"name": name, "model": model, "engine": "fake"} for name, model in models.items()]
    sweep = load_sweep(tiny_sweep(tmp_path / "tiny.yaml", [], tmp_path / "out", team=team))
    facts = prepare(sweep.runs[0].config)
    assert {name: of_model.commit for name, of_model in facts.items()} == {"a": commit, "b": ""}
    assert facts["a"].fingerprint == facts["b"].fingerprint


def test_problems_that_runs_share_are_made_once(
    tiny_models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = {"seed": [1, 2], "problems.train.seed": [1, 5]}
    sweep = load_sweep(tiny_sweep(tmp_path / "tiny.yaml", tiny_models[:1], tmp_path / "out", grid=grid))
    expected = [all_problems(plan.config) for plan in sweep.runs]
    made: list[int] = []

    def count(config: RunConfig) -> Splits:
        made.append(config.seed)
        return all_problems(config)

    monkeypatch.setattr(preparation, "all_problems", count)
    request = {"configs": [plan.config.model_dump(mode="json") for plan in sweep.runs], "sources": []}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request)))
    assert main([str(tmp_path)]) == 0
    assert len(made) == 2
    answer = json.loads((tmp_path / FACTS_FILE).read_text())
    assert len(answer["facts"]) == 4
    assert len(list(tmp_path.glob("*-train.parquet"))) == 2
    for number, splits in zip(answer["splits"], expected, strict=True):
        assert read_splits(tmp_path, number).train.equals(splits.train)


def test_the_launcher_reads_problems_that_runs_share_once(
    tiny_models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = {"seed": [1, 2], "problems.train.seed": [1, 5]}
    sweep = load_sweep(tiny_sweep(tmp_path / "tiny.yaml", tiny_models[:1], tmp_path / "out", grid=grid))
    read: list[int] = []

    def count(folder: Path, number: int) -> Splits:
        read.append(number)
        return read_splits(folder, number)

    def run_here(command: list[str], **process: Any) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(process["input"].decode()))
        main(command[-1:])

    monkeypatch.setattr(start, "read_splits", count)
    monkeypatch.setattr(start.subprocess, "run", run_here)
    found = start.prepare_new_runs(sweep, Console(quiet=True))
    assert sorted(read) == [0, 1]
    for plan in sweep.runs:
        assert found[plan.run_id][0].train.equals(all_problems(plan.config).train)


def test_runs_that_differ_only_in_seed_and_training_share_the_facts_about_their_models(
    tiny_models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding the questions of a large training set takes seconds for each model."""
    grid = {"seed": [1, 2], "update.learning_rate": [1e-4, 1e-3], "protocol.hint_tokens": [16, 256]}
    sweep = load_sweep(tiny_sweep(tmp_path / "tiny.yaml", tiny_models[:1], tmp_path / "out", grid=grid))
    expected = [{name: asdict(facts) for name, facts in prepare(plan.config).items()} for plan in sweep.runs]
    assert len({facts["m0"]["context_tokens"] for facts in expected}) == 2
    loaded: list[Path] = []

    def count(folder: Path, *, trust_remote_code: bool) -> Any:
        loaded.append(folder)
        return load_tokenizer(folder, trust_remote_code=trust_remote_code)

    monkeypatch.setattr(preparation, "load_tokenizer", count)
    request = {"configs": [plan.config.model_dump(mode="json") for plan in sweep.runs], "sources": []}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request)))
    assert main([str(tmp_path)]) == 0
    assert json.loads((tmp_path / FACTS_FILE).read_text())["facts"] == json.loads(json.dumps(expected))
    assert len(loaded) == 2


@pytest.mark.parametrize(("source", "times"), [("problems", 1), ("hinted", 2)])
def test_an_example_of_a_warmup_that_is_too_long_is_refused(
    tiny_models: list[Path], tmp_path: Path, source: str, times: int
) -> None:
    """The tokenizer has one token per byte, and the prompt of a hinted example has the solution, too."""
    words = 1000 // times // 5
    rows = [{"id": f"p{i}", "question": f"{i} + 1?", "answer": str(i + 1)} for i in range(3)]
    solutions = ["Add one.", "word " * words, "Add 1."]
    file = tmp_path / "solved.jsonl"
    own = {"source": "jsonl", "path": str(file)}
    other = {"source": "generated", "task": "skills", "count": 2}
    warmup = {"problems": own} if source == "problems" else {"problems": other, "hinted": [own]}
    team = [{"name": "m0", "model": str(tiny_models[0]), "engine": "transformers", "warmup": warmup}]

    def write(*texts: str) -> None:
        solved = [{**row, "solution": f"{text} #### {row['answer']}"} for row, text in zip(rows, texts, strict=True)]
        file.write_text("".join(json.dumps(row) + "\n" for row in solved), encoding="utf-8")

    write(*solutions)
    long = rf"team.0 \(m0\): warmup.{source}: the problem p1 needs 1\d\d\d tokens .* but the model has 1024 tokens"
    with pytest.raises(InputError, match=long):
        prepared(tmp_path, [], team=team)
    write(*["Add one."] * 3)
    prepared(tmp_path, [], team=team)
