"""The field `team[].adapter`: identity of runs, and mistakes with their places."""

from pathlib import Path
from typing import Any

import pytest

import yaml
from core_hpc.common.errors import ConfigError
from core_hpc.config.identity import scientific_fields
from core_hpc.config.run import RunConfig
from core_hpc.runs.sweep import load_sweep
from tests.unit.config.test_sweep import MINIMAL


def config(**fields: Any) -> RunConfig:
    return RunConfig.model_validate({**MINIMAL, "team": [{"name": "a", "model": "x", **fields}]})


def test_without_an_adapter_the_identity_is_that_of_earlier_versions() -> None:
    assert scientific_fields(config()) == scientific_fields(config(adapter=None))
    assert "adapter" not in scientific_fields(config())["team"][0]
    assert scientific_fields(config(adapter="out/run@3"))["team"][0]["adapter"] == "out/run@3"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"tuning": "full", "adapter": "x"}, "team.0.adapter: tuning: full trains no adapter; merge the adapter"),
        (
            {"warmup": {"problems": {"source": "generated", "count": 8}}, "adapter": "x"},
            "team.0.adapter: an adapter fits only the weights that it was trained on",
        ),
        ({"adapter": ""}, "team.0.adapter"),
    ],
)
def test_mistakes_are_named_with_their_place(model: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "team": [{"name": "a", "model": "x", **model}]}), encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_sweep(path)
    assert message in str(error.value)
