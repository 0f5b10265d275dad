"""The reference of all fields: yaml/README.md and the JSON Schema are current and correct."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from core_hpc.common.errors import ConfigError, InputError
from core_hpc.config import reference
from core_hpc.config.base import ADDED_LATER, Section
from core_hpc.config.fields import ANY, config_fields, run_config_schema
from core_hpc.config.identity import flatten, scientific_fields
from core_hpc.config.yaml_text import parse_yaml
from core_hpc.runs.sweep import load_sweep
from tests.support.harness import ROOT

YAML = ROOT / "yaml"
SWEEPS = sorted(path for path in YAML.rglob("*.yaml") if path.parent.name != "cluster")
QUICKSTART = parse_yaml((YAML / "quickstart.yaml").read_text(encoding="utf-8"))
OPTIONAL = (
    "team.0.warmup.",
    "protocol.hint_function.",
    "protocol.prompt_function.",
    "reward.explore.rule_function.",
    "reward.parts.",
    "update.advantage_function.",
    "update.loss_function.",
)
"""Sections that a configuration does not have unless it names them."""
VALIDATOR = jsonschema.Draft202012Validator(json.loads(reference.schema_text()))


def mistakes(sweep: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(sweep)]


def loads(sweep: dict[str, Any], folder: Path) -> bool:
    """Whether `load_sweep` accepts the file. JSON is YAML."""
    path = folder / "sweep.yaml"
    path.write_text(json.dumps(sweep), encoding="utf-8")
    try:
        load_sweep(path)
    except ConfigError:
        return False
    return True


def changed(path: str, value: Any) -> dict[str, Any]:
    """The quickstart with another value at a path."""
    sweep = copy.deepcopy(QUICKSTART)
    *parents, last = path.split("/")
    place: Any = sweep
    for name in parents:
        place = place[int(name)] if name.isdigit() else place.setdefault(name, {})
    place[last] = value
    return sweep


def test_the_page_and_the_schema_are_current() -> None:
    advice = "run: python -m core_hpc.config.reference --write"
    page = (YAML / reference.PAGE).read_text(encoding="utf-8")
    assert page == reference.with_tables(page, source=reference.PAGE), advice
    assert (YAML / reference.SCHEMA).read_text(encoding="utf-8") == reference.schema_text(), advice


def test_a_page_without_the_comments_is_refused() -> None:
    with pytest.raises(InputError, match=r"README\.md: has no lines"):
        reference.with_tables("# Title", source="README.md")


def test_every_field_has_a_description_and_a_row_of_its_own() -> None:
    fields = config_fields(run_config_schema())
    assert not [field.path for field in fields if not field.schema.get("description")]
    rows = [line for line in reference.tables().splitlines() if line.startswith("| `")]
    for prefix in ("protocol.", "reward.", "evaluation.", "problems.train.", f"team.{ANY}."):
        sources = [field for field in fields if field.path[2:4] in reference.WARMUP_SOURCES]  # as problems.train
        sources += [field for field in fields if field.path[:4] == reference.SET_SOURCE]
        paths = [".".join(field.path) for field in fields if not field.holds_sections and field not in sources]
        expected = [path for path in paths if path.startswith(prefix)]
        assert [row.split("`")[1] for row in rows if row.startswith(f"| `{prefix}")] == expected


def sections_added_later(section: Section, prefix: str = "") -> list[str]:
    """Paths of the sections that earlier versions do not have."""
    found = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            found += [prefix + name] if field.json_schema_extra == ADDED_LATER else []
            found += sections_added_later(value, f"{prefix}{name}.")
    return found


def test_the_tables_name_the_fields_of_the_identity() -> None:
    """A field is called scientific in the tables if and only if it enters the hash of the run."""
    config = load_sweep(YAML / "quickstart.yaml").runs[0].config
    in_identity = {path for path in flatten(scientific_fields(config)) if not path.startswith("problems.")}
    sections = tuple(f"{path}." for path in sections_added_later(config))
    assert "update.teach." in sections
    absent = (*sections, "team.0.warmup.", "evaluation.sets.0.")
    for field in config_fields(run_config_schema()):
        path = ".".join("0" if part == ANY else part for part in field.path)
        if not field.holds_sections and not path.startswith("problems."):
            # Such a field, or one of such a section, is in the identity only if it is changed or there is one.
            at_default = "added_later" in field.schema or path.startswith((*absent, *OPTIONAL))
            assert (path in in_identity) == (not field.operational and not at_default), path


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_shipped_sweep_names_the_schema_and_is_valid(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert mistakes(parse_yaml(text)) == []
    first, _, _ = text.partition("\n")
    key, _, schema = first.partition("=")
    assert key == "# yaml-language-server: $schema"
    assert (path.parent / schema).resolve() == YAML / reference.SCHEMA


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sed", 1),
        ("protocol/cold_sample", 1),
        ("protocol/scope", "everyone"),
        ("update/kl_weight", -1),
        ("update/importance/kinds", "none"),
        ("team/0/lora", {"rnk": 8}),
        ("team", [{"name": "a"}]),
        ("problems/train/cuont", 72),
        ("cluster/slurm/partitoin", "gpu"),
        ("grid", {"seed": 1}),
        ("grid", {"seed": []}),
        ("grid", {"protocol.scop": ["all"]}),
        ("grid", {"protocol": {"scop": ["all"]}}),
        ("grid", {"team.gemma3.lora.rnk": [8]}),
        ("runs", []),
        ("runs", [{"label": "a", "protocol.scop": "all"}]),
        ("runs", [{"label": "a", "update": {"grup": "model"}}]),
    ],
)
def test_the_schema_and_the_loader_refuse_a_mistake(path: str, value: Any, tmp_path: Path) -> None:
    assert mistakes(changed(path, value))
    assert not loads(changed(path, value), tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("update/kl_weight", None),
        ("problems/instruction", None),
        ("reward/explore/weight", [0.3, 0.1, 0]),
        ("team/0/tuning", "full"),
        ("cluster/slurm/options", {"mail-type": "END"}),
        ("problems/evaluation", {"source": "aime", "subset": 2024}),
        ("grid", {"seed": [1, 2], "protocol": {"scope": ["all"]}, "team.gemma3.lora.rank": [8, 16]}),
        ("grid", {"reward.explore.weight": [0, [0.2, 0.1]], "problems.train.options.num_terms": [2, 3]}),
        ("grid", {"team": {"gemma3": {"learning_rate": [1e-5, 2e-5]}}}),
        ("runs", [{"label": "a"}, {"team": {"gemma3": {"lora": {"rank": 8}}}}, {"team.0.lora.rank": 4}]),
        ("runs", [{"seed": 1, "cluster.slurm.options.mail-type": "END"}]),
    ],
)
def test_the_schema_and_the_loader_accept_what_is_correct(path: str, value: Any, tmp_path: Path) -> None:
    assert mistakes(changed(path, value)) == []
    assert loads(changed(path, value), tmp_path)


def test_only_a_file_that_stands_alone_needs_the_required_fields() -> None:
    assert mistakes({"base": "other.yaml", "problems": {"train": {"count": 10}}}) == []
    assert "'team' is a required property" in " ".join(mistakes({"name": "a", "iterations": 1}))
