"""The section `team[].warmup`: identity of runs, and mistakes with their places."""

from pathlib import Path
from typing import Any

import pytest

import yaml
from core_hpc.common.errors import ConfigError
from core_hpc.config.identity import scientific_fields
from core_hpc.config.run import RunConfig
from core_hpc.runs.sweep import load_sweep
from tests.unit.config.test_sweep import MINIMAL

SOURCE = {"source": "generated", "task": "skills", "count": 8}


def config(**fields: Any) -> RunConfig:
    return RunConfig.model_validate({**MINIMAL, "team": [{"name": "a", "model": "x", **fields}]})


def test_without_a_warm_up_the_identity_is_that_of_earlier_versions() -> None:
    assert scientific_fields(config()) == scientific_fields(config(warmup=None))
    assert "warmup" not in scientific_fields(config())["team"][0]


def test_everything_of_a_warm_up_belongs_to_the_identity() -> None:
    fields = scientific_fields(config(warmup={"problems": SOURCE, "hinted": [SOURCE]}))["team"][0]["warmup"]
    assert fields["problems"]["task"] == fields["hinted"][0]["task"] == "skills"
    assert fields["learning_rate"] == 1e-4
    assert set(fields) == {
        "problems",
        "hinted",
        "tuning",
        "epochs",
        "examples_per_step",
        "learning_rate",
        "weight_decay",
        "seed",
    }


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"tuning": "full", "warmup": {"problems": SOURCE, "tuning": "lora"}}, "team.0.warmup: its tuning is lora"),
        ({"engine": "fake", "warmup": {"problems": SOURCE}}, "team.0.warmup: the fake engine samples the same"),
        ({"warmup": {"problems": {**SOURCE, "task": "skils"}}}, "team.0.warmup.problems.task: unknown generator"),
        (
            {"warmup": {"problems": SOURCE, "hinted": [SOURCE, {**SOURCE, "options": {"zab": 1}}]}},
            "team.0.warmup.hinted.1.options.zab: unknown option",
        ),
        ({"warmup": {"problem": SOURCE}}, "team.0.warmup.problem: unknown key; did you mean `problems`?"),
    ],
)
def test_mistakes_are_named_with_their_place(model: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "team": [{"name": "a", "model": "x", **model}]}), encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_sweep(path)
    assert message in str(error.value)
