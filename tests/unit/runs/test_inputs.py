"""New runs of a started sweep have the problems and the weights of the runs that began before."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from core_hpc.common.errors import RunConflictError
from core_hpc.config.run import RunConfig
from core_hpc.controller.plan import make_plan
from core_hpc.controller.prepare import FACTS_FILE, _write_splits
from core_hpc.controller.start import prepare_new_runs
from core_hpc.problems.sets import all_problems
from core_hpc.runs import creation
from core_hpc.runs.folder import ModelFacts
from core_hpc.runs.inputs import changed_files
from core_hpc.runs.sweep import load_sweep
from tests.unit.config.test_sweep import MINIMAL

TEAM: Any = MINIMAL["team"]
EVALUATION = {"source": "generated", "count": 4}


class Study:
    """A sweep whose training problems come from a file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.train = folder, folder / "train.jsonl"
        self.write("old")

    def write(self, word: str) -> None:
        rows = [{"question": f"What is {word} {i} plus {7 * i}?", "answer": i} for i in range(64)]
        self.train.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(self, seeds: list[int], weights: str = "a", **changes: Any) -> list[str]:
        """What a start does until the run folders exist. Return the ids of all runs."""
        problems = {
            "train": {"source": "jsonl", "path": str(self.train)},
            "evaluation": EVALUATION,
        }
        data = {**MINIMAL, "output": str(self.folder), "problems": problems, "grid": {"seed": seeds}, **changes}
        path = self.folder / "sweep.yaml"
        path.write_text(json.dumps(data))
        sweep, self.weights = load_sweep(path), weights
        prepared = prepare_new_runs(sweep, Console(quiet=True))
        for plan in sweep.runs:
            if plan.run_id in prepared:
                creation.create(plan, sweep.folder, *prepared[plan.run_id])
        return [plan.run_id for plan in sweep.runs]

    def prepare(self, command: list[str], **process: Any) -> Any:
        """What the process of the preparation writes, with facts about models that do not exist."""
        configs = [RunConfig.model_validate(c) for c in json.loads(process["input"])["configs"]]
        for number, config in enumerate(configs):
            _write_splits(Path(command[-1]), number, all_problems(config))
        facts = asdict(ModelFacts(self.weights * 64, 64, "plain"))
        names = [{m.name: facts for m in config.team} for config in configs]
        answer = {"facts": names, "splits": list(range(len(configs)))}
        Path(command[-1], FACTS_FILE).write_text(json.dumps(answer))

    def refusals(self) -> list[str]:
        """What a dry run of the last sweep file refuses."""
        return [check.what for check in make_plan(load_sweep(self.folder / "sweep.yaml")).checks if check.refuses]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    made = Study(tmp_path)
    monkeypatch.setattr("core_hpc.controller.start.subprocess", SimpleNamespace(run=made.prepare))
    return made


def test_a_new_run_with_the_same_inputs_is_created(study: Study) -> None:
    study.start([1, 2])
    assert len(study.start([1, 2, 3])) == 3


def test_a_new_run_with_a_changed_file_is_refused(study: Study) -> None:
    (first,) = study.start([1])
    study.write("new")
    with pytest.raises(RunConflictError, match=rf"seed-2-\w+: problems: the split train would not be that of {first}"):
        study.start([1, 2])
    assert any("the split train would not be that of" in refusal for refusal in study.refusals())
    assert study.start([1]) == [first]  # a started run has its own copy
    study.write("old")
    study.start([1, 2])
    assert not any("the split" in refusal for refusal in study.refusals())


def test_a_start_names_the_files_that_a_started_run_has_in_an_earlier_state(study: Study) -> None:
    """The figures of a repeated command are those of the copy."""
    (run_id,) = study.start([1])
    sweep = load_sweep(study.folder / "sweep.yaml")
    os.utime(study.train, (1, 1))
    assert changed_files(sweep) == []
    os.utime(study.train, (2**33, 2**33))
    (note,) = changed_files(sweep)
    assert note.startswith(f"{study.train} was written after {run_id} had begun.")


def test_the_instruction_does_not_hide_a_changed_file(study: Study) -> None:
    study.start([1])
    study.write("new")
    with pytest.raises(RunConflictError, match="the split train"):
        study.start([1], grid={"problems.instruction": ["Only the number."]})


def test_a_new_run_with_other_weights_is_refused(study: Study) -> None:
    (first,) = study.start([1])
    name, model = TEAM[0]["name"], TEAM[0]["model"]
    with pytest.raises(RunConflictError, match=rf"team.{name}: the model {model} would not be that of {first}"):
        study.start([1, 2], weights="b")


def test_runs_with_other_sources_or_models_are_created(study: Study) -> None:
    study.start([1])
    other = study.train.with_name("other.jsonl")
    other.write_text(study.train.read_text().replace("old", "new"))
    study.start([1], grid={"problems.train.path": [str(other)]})
    study.start([1], weights="b", grid={f"team.{m['name']}.model": ["another"] for m in TEAM})


def test_warmups_are_compared(study: Study) -> None:
    name = TEAM[0]["name"]
    source = study.folder / "warmup.jsonl"
    row = {"question": "What is 1 + 1?", "answer": 2, "solution": "1 + 1 = 2. #### 2"}
    source.write_text(json.dumps(row) + "\n")
    warmup = {"problems": {"source": "jsonl", "path": str(source)}}
    team = [{**TEAM[0], "warmup": warmup}, *TEAM[1:]]
    study.start([1], team=team)
    source.write_text(json.dumps({**row, "question": "What is 1 and 1?"}) + "\n")
    with pytest.raises(RunConflictError, match=f"the split warmup-{name} would not be that of"):
        study.start([1, 2], team=team)
