"""The identity of a run: a field that is written with its own default changes nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from core_hpc.config.identity import config_hash, scientific_fields
from core_hpc.config.run import RunConfig
from core_hpc.runs.sweep import load_sweep
from tests.support.harness import ROOT
from tests.unit.config.test_sweep import MINIMAL

GYM = {"source": "reasoning_gym", "task": "chain_sum", "count": 4}
FILE = {"source": "jsonl", "path": "problems.jsonl"}
HUB = {"source": "gsm8k"}
VARIANTS: dict[str, dict[str, Any]] = {
    "minimal": {},
    **{f"loss {loss}": {"update": {"loss": loss}} for loss in ("dapo", "dr_grpo", "gspo", "sapo", "cispo")},
    **{
        f"importance {kind}": {"update": {"importance": {"kind": kind}}}
        for kind in ("sequence_mask", "geometric_truncate", "token_band", "geometric_reject", "none")
    },
    "full": {"team": [{"name": "a", "model": "x", "tuning": "full"}, {"name": "b", "model": "y"}]},
    "gym": {"problems": {"train": GYM, "evaluation": {**GYM, "seed": 1}}},
    "file": {"problems": {"train": FILE, "evaluation": HUB}},
}

Place = tuple[str | int, ...]


def places(value: Any, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every field of a configuration with its resolved value: the sections, and their fields."""
    if path:
        yield path, value
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from places(getattr(value, name), (*path, name))
    elif isinstance(value, (list, tuple)) and value and isinstance(value[0], BaseModel):
        for i, member in enumerate(value):
            yield from places(member, (*path, i))


def plain(value: Any) -> Any:
    """A value as a sweep file writes it."""
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def spellings(value: Any) -> list[Any]:
    """A value, and the same number as an integer or as a decimal number."""
    out = [value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        out += [other for other in (float(value), int(value)) if other == value]
    return out


def with_value(sweep: dict[str, Any], path: Place, value: Any) -> dict[str, Any]:
    sweep = copy.deepcopy(sweep)
    *parents, last = path
    place: Any = sweep
    for name in parents:
        place = place[name] if isinstance(name, int) else place.setdefault(name, {})
    place[last] = value
    return sweep


def run_id(sweep: dict[str, Any]) -> str:
    return config_hash(scientific_fields(RunConfig.model_validate(sweep)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_written_default_is_the_same_run_as_an_omitted_one(variant: str) -> None:
    sweep = {**MINIMAL, **VARIANTS[variant]}
    config = RunConfig.model_validate(sweep)
    found = list(places(config))
    assert len(found) > 150
    expected = run_id(sweep)
    differing = [
        f"{'.'.join(map(str, path))}: {spelled}"
        for path, value in found
        for spelled in spellings(plain(value))
        if run_id(with_value(sweep, path, spelled)) != expected
    ]
    assert differing == []


def test_a_written_default_in_a_file_or_on_the_command_line_is_the_same_run(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(MINIMAL))
    (omitted,) = load_sweep(path).runs
    (overridden,) = load_sweep(path, ["team.a.lora.alpha=32", "evaluation.sampling.top_p=0.9"]).runs
    assert overridden.run_id == omitted.run_id
    everything = plain(omitted.config)
    path.write_text(json.dumps(everything))
    (written,) = load_sweep(path).runs
    assert written.run_id == omitted.run_id
    assert written.config == omitted.config


def test_a_section_written_in_part_keeps_the_defaults_of_its_place(tmp_path: Path) -> None:
    """The sampling of the evaluation has a longer default than that of training."""
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps({**MINIMAL, "evaluation": {"sampling": {"temperature": 0}}, "reward": {"rescue": {}}}))
    config = load_sweep(path).runs[0].config
    assert config.evaluation.sampling.max_new_tokens == 4096
    assert config.protocol.sampling.max_new_tokens == 3072
    assert config.reward.rescue.weight == 0.15


def test_another_value_is_another_run() -> None:
    for path, value in ((("team", 0, "lora"), {"alpha": 33}), (("evaluation", "sampling"), {"max_new_tokens": 3072})):
        assert run_id(with_value(MINIMAL, path, value)) != run_id(MINIMAL)


def test_the_identity_of_the_quickstart_is_that_of_earlier_versions() -> None:
    (run,) = load_sweep(ROOT / "yaml" / "quickstart.yaml").runs
    assert run.run_id == "run-2bd72823"
