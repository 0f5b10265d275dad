"""Messages for mistakes whose words come from a library: they are written for the user of a sweep file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

import yaml
from core_hpc import launch
from core_hpc.common.errors import ConfigError
from core_hpc.config.fields import run_config_schema
from core_hpc.config.problems import PROBLEM_SOURCES
from core_hpc.runs.bases import PROFILES
from core_hpc.runs.explain import PATTERNS
from core_hpc.runs.sweep import load_sweep
from core_hpc.slurm.parse import parse_minutes
from tests.unit.config.test_sweep import MINIMAL, mistakes, write

PROBLEMS = MINIMAL["problems"]


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("gms8k", "did you mean `gsm8k`?"),
        ("GSM8K", "did you mean `gsm8k`?"),
        ("reasoning-gym", "did you mean `reasoning_gym`?"),
        ("csv", f"known: {', '.join(PROBLEM_SOURCES)}"),
    ],
)
def test_an_unknown_source_gets_the_nearest_name(source: str, advice: str, tmp_path: Path) -> None:
    found = mistakes(tmp_path, problems={**PROBLEMS, "train": {"source": source, "count": 4}})
    assert found == [f"problems.train.source: no source {source!r}; {advice}"]


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    found = mistakes(tmp_path, problems={**PROBLEMS, "train": {"count": 4}})
    assert found == [f"problems.train.source: is missing; known: {', '.join(PROBLEM_SOURCES)}"]


@pytest.mark.parametrize(
    ("changes", "path", "values"),
    [
        ({"seed": [1, 2, 3]}, "seed", "[1, 2, 3]"),
        ({"protocol": {"scope": ["failed", "all"]}}, "protocol.scope", "[failed, all]"),
        ({"protocol": {"hint_probability": [0, 0.75]}}, "protocol.hint_probability", "[0, 0.75]"),
        ({"update": {"loss": ["grpo", "gspo"]}}, "update.loss", "[grpo, gspo]"),
        ({"protocol": {"even_budget": [True, False]}}, "protocol.even_budget", "[true, false]"),
        ({"team": [{"name": "a", "model": ["x", "y"]}]}, "team.0.model", "[x, y]"),
        (
            {"problems": {**PROBLEMS, "train": {"source": "generated", "count": [4, 8]}}},
            "problems.train.count",
            "[4, 8]",
        ),
    ],
)
def test_a_list_of_values_is_a_grid(changes: dict[str, object], path: str, values: str, tmp_path: Path) -> None:
    (message,) = mistakes(tmp_path, **changes)
    assert message == (
        f"{path}: is a list, but needs one value. For a run with each of these values, write it in grid: "
        f"`grid: {{{path}: {values}}}`"
    )
    # What the message advises is a valid file, with a run for each value.
    advised = yaml.safe_load(re.findall("`(.*)`", message)[0])
    plain = {**MINIMAL, **{k: v for k, v in changes.items() if k == "team"}}
    if "team" in changes:
        plain["team"] = [{"name": "a", "model": "x"}]
        plain["protocol"] = {"rescue_samples": 0}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**plain, **advised}))
    assert len(load_sweep(tmp_path / "sweep.yaml").runs) == len(next(iter(advised["grid"].values())))


def test_a_long_list_is_not_repeated_in_full(tmp_path: Path) -> None:
    (message,) = mistakes(tmp_path, seed=list(range(10_000)))
    assert message.startswith("seed: is a list, but needs one value.")
    assert len(message) < 300


@pytest.mark.parametrize(
    ("given", "advised"), [("Qwen2.5-7B", "qwen2-5-7b"), ("A b", "a-b"), ("_x", "x"), ("ü", ""), ("a" * 99, "a" * 63)]
)
def test_a_name_in_capitals_gets_a_name_that_works(given: str, advised: str, tmp_path: Path) -> None:
    team = [{"name": given, "model": "x"}, {"name": "other", "model": "y"}]
    (message,) = mistakes(tmp_path, team=team)
    assert message.startswith(f"team.0.name: {given!r} is not a name for files and tables")
    assert "small letters a to z" in message
    assert ("write `" in message) == bool(advised)
    if advised:
        assert f"write `{advised}`" in message
        team[0]["name"] = advised
        assert load_sweep(write(tmp_path, team=team)).runs


def test_every_pattern_of_the_configuration_is_explained() -> None:
    patterns = set(re.findall(r'"pattern": "((?:[^"\\]|\\.)*)"', json.dumps(run_config_schema())))
    assert len(patterns) > 1
    assert patterns <= set(PATTERNS)


def test_a_value_where_a_section_belongs(tmp_path: Path) -> None:
    (message,) = mistakes(tmp_path, protocol=3)
    assert message.startswith("protocol: needs keys of its own, for example `protocol: {choose: ...}`")


def test_an_empty_section_is_taken_for_one_without_its_lines(tmp_path: Path) -> None:
    (message,) = mistakes(tmp_path, protocol=None)
    assert message.startswith("protocol: needs keys of its own, but has none; remove the line `protocol:` to use the ")
    (message,) = mistakes(tmp_path, problems=None)
    assert "remove the line" not in message, "problems has no defaults"


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"seed": True}, "seed"),
        ({"protocol": {"cold_samples": True}}, "protocol.cold_samples"),
        ({"update": {"learning_rate": True}}, "update.learning_rate"),
        ({"cluster": {"kv_cache_gb": True}}, "cluster.kv_cache_gb"),
    ],
)
def test_true_is_no_number(changes: dict[str, object], path: str, tmp_path: Path) -> None:
    assert mistakes(tmp_path, **changes) == [
        f"{path}: must be a number, not true (YAML reads yes and on as true, no and off as false)"
    ]


def test_an_empty_stop_string_is_refused(tmp_path: Path) -> None:
    """It would end every completion before its first token."""
    team = [{"name": "a", "model": "x", "stop_strings": ["###", ""]}, {"name": "b", "model": "y"}]
    (message,) = mistakes(tmp_path, team=team)
    assert message.startswith("team.0.stop_strings.1: string should have at least 1 character")


def test_a_list_for_a_field_that_runs_share_is_no_grid(tmp_path: Path) -> None:
    found = mistakes(tmp_path, cluster={"slurm": {"partition": ["a", "b"]}})
    assert found == ["cluster.slurm.partition: is a list, but needs one value: `partition: a,b`"]
    assert mistakes(tmp_path, cluster={"update_ranks": [1, 2]}) == [
        "cluster.update_ranks: is a list, but needs one value"
    ]


PER_EPOCH = (
    "; a list has one value per epoch or iteration. For a run with each value, write it in grid: "
    "`grid: {reward.cross.weight: [...]}`"
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"reward": {"cross": {"weight": -1}}},
            "reward.cross.weight: input should be greater than or equal to 0 (it is -1)",
        ),
        (
            {"reward": {"cross": {"weight": [0, -0.1]}}},
            f"reward.cross.weight.1: input should be greater than or equal to 0 (it is -0.1){PER_EPOCH}",
        ),
        ({"reward": {"cross": {"weight": {"a": 1}}}}, "reward.cross.weight: is a mapping of keys, but needs one value"),
        ({"seed": {"a": 1}}, "seed: is a mapping of keys, but needs one value"),
        ({"team": MINIMAL["team"][0]}, "team: must be a list: begin each member with a hyphen, as `- name: ...`"),  # type: ignore[index]
        ({"cluster": {"slurm": {"setup": "a: b"}}}, "cluster.slurm.setup: must be a list: `setup: ['a: b']`"),
        ({"cluster": {"slurm": {"exclude": {"a": 1}}}}, "cluster.slurm.exclude: must be a list"),
        ({"cluster": {"slurm": {"poll_s": 3}}}, "cluster.slurm.poll_s: must be a list (it is 3)"),
        (
            {"cluster": {"slurm": {"options": ["a"]}}},
            "cluster.slurm.options: must be a mapping, such as `options: {key: value}`",
        ),
        ({"cluster": {"slurm": {"options": {"a": [1]}}}}, "cluster.slurm.options.a: is a list, but needs one value"),
        (
            {"problems": {**PROBLEMS, "train": [{"source": "generated", "count": 4}]}},
            "problems.train: is a list, but needs one source; write `train: {source: ...}`",
        ),
    ],
)
def test_a_list_or_a_mapping_in_the_wrong_place(changes: dict[str, object], expected: str, tmp_path: Path) -> None:
    assert mistakes(tmp_path, **changes) == [expected]


def test_an_example_of_a_section_is_one_for_its_place(tmp_path: Path) -> None:
    (message,) = mistakes(tmp_path, cluster="one_node")
    assert message.startswith("cluster: needs keys of its own, for example `cluster: {profile: one_node}`; ")
    found = mistakes(tmp_path, team=["a", "b"])
    assert [m.partition(";")[0] for m in found] == [
        f"team.{i}: needs keys of its own, for example `- name: ...`" for i in (0, 1)
    ]


def test_a_path_into_a_list_has_a_member(tmp_path: Path) -> None:
    (message,) = mistakes(tmp_path, lora={"rank": 4})
    assert message == "lora: unknown key; did you mean `team.0.lora`?"
    assert load_sweep(write(tmp_path), ["team.0.lora.rank=4"]).runs[0].config.team[0].lora.rank == 4
    (message,) = mistakes(tmp_path, "team.lora.rank=4")
    assert message == "--set team.lora.rank: the list has no member 'lora' (its members: a, b)"
    (message,) = mistakes(tmp_path, reward={"weight": 1})
    assert "`reward.parts.NAME.weight`" in message


def test_a_source_that_is_no_mapping(tmp_path: Path) -> None:
    (message,) = mistakes(tmp_path, problems={**PROBLEMS, "train": "train.jsonl"})
    assert message.startswith("problems.train.source: is missing; known: generated")


def test_a_rule_about_several_sections_begins_with_the_field(tmp_path: Path) -> None:
    (message,) = mistakes(tmp_path, iterations=10**12)
    assert message.startswith("iterations: 1,000,000,000,000 iterations")


def test_mistakes_of_single_runs(tmp_path: Path) -> None:
    runs = [{"lable": "a"}, {"label": "b", "seed": 2}]
    assert mistakes(tmp_path, runs=runs) == ["runs.0.lable: unknown key; did you mean `label`?"]
    runs = [{"label": "a", "base": "x.yaml"}, {"label": "b", "seed": 2}]
    assert mistakes(tmp_path, runs=runs) == ["base: belongs to the whole sweep file; a single run cannot have it"]
    (message,) = mistakes(tmp_path, runs=[{"label": "a", "cluster": {"profile": "one_node"}}])
    assert message.startswith("run a: cluster.profile: all runs share one profile")
    runs = [{"label": False}, {"label": "b", "seed": 2}]
    assert mistakes(tmp_path, runs=runs) == ["runs.0.label: YAML reads it as false; put it in quotes"]
    found = mistakes(tmp_path, update={True: 3})
    assert found == ["update.1: YAML reads this key (yes, on or a number) as True; put it in quotes"]
    twice = {"evaluation.samples": 2, "evaluation": {"samples": 8}}
    found = mistakes(tmp_path, runs=[{"label": "a", **twice}])
    assert found == ["runs.0.evaluation.samples: stands there twice; leave one of them out"]
    found = mistakes(tmp_path, grid={"evaluation.samples": [2, 4], "evaluation": {"samples": [8]}})
    assert found == ["grid.evaluation.samples: stands there twice; leave one of them out"]
    found = mistakes(tmp_path, grid={"team.c.lora.rank": [4, 8]})
    assert len(found) == 2, "not also that the runs are equal"
    assert all("the list has no member 'c'" in message for message in found)


def test_a_key_with_its_value_attached(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(MINIMAL) + "protocol: {cold_samples:4}\n")
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    assert caught.value.mistakes == [
        "protocol.cold_samples:4: a space is missing after the colon; write `cold_samples: 4`"
    ]


def test_names_with_colons_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`:a:` is the name of a picture for rich."""
    path = tmp_path / "sweep.yaml"
    path.write_text("team: [{name:a: 1}]\n")
    assert launch.main([str(path)]) == 2
    assert "name:a: " in capsys.readouterr().err


# --- base files ----------------------------------------------------------------------------------


def test_a_missing_base_is_a_mistake_of_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text(yaml.safe_dump(MINIMAL))
    path = write(tmp_path, base="quikstart.yaml")
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    assert caught.value.source == str(path)
    (message,) = caught.value.mistakes
    assert message == (
        f"base: there is no file {tmp_path / 'quikstart.yaml'}; did you mean `quickstart.yaml`? "
        "(base is a path relative to this file)"
    )


@pytest.mark.parametrize("base", ["", "."])
def test_a_base_that_is_a_folder_is_a_mistake_of_the_file_that_names_it(base: str, tmp_path: Path) -> None:
    path = write(tmp_path, base=base)
    with pytest.raises(ConfigError, match="base: there is no file") as caught:
        load_sweep(path)
    assert caught.value.source == str(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("name: größe\n".encode("latin-1"), r"is not UTF-8 (line 1, byte 9); save it as UTF-8"),
        ("name: x\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    ],
)
def test_a_file_in_another_encoding(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_sweep(tmp_path / "sweep.yaml")
    assert caught.value.mistakes == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cluster: {driver: arrays}\n", "cluster: a profile has the fields of the section `cluster` at its top level"),
        ("", "the file must be a mapping of keys, for example `driver: arrays`"),
    ],
)
def test_a_profile_that_is_none(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(tmp_path, cluster={"profile": "site.yaml"}))
    assert caught.value.source == str(tmp_path / "site.yaml")
    assert caught.value.mistakes[0].startswith(expected)


def test_an_empty_name_of_a_profile_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As from a variable of the shell that is not set. The sweep would run on this machine."""
    assert launch.main([str(write(tmp_path)), "--dry-run", "--cluster", ""]) == 2
    assert "--cluster: is empty" in capsys.readouterr().err


def test_a_missing_base_profile_lists_the_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "my_site.yaml").write_text("base: one_nodes\nslurm: {account: a}\n")
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(tmp_path, cluster={"profile": "my_site.yaml"}))
    assert caught.value.source == str(tmp_path / "my_site.yaml")
    (message,) = caught.value.mistakes
    assert message.startswith("base: no profile 'one_nodes'; did you mean `one_node`?")
    assert str(PROFILES) in message
    assert all(path.stem in message for path in PROFILES.glob("*.yaml"))


def test_a_profile_inherits_from_a_shipped_one_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder, and with the fields of the shipped profile below its own."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "mine.yaml").write_text("base: one_node\nslurm: {account: a}\n")
    monkeypatch.chdir(tmp_path)
    cluster = load_sweep(write(tmp_path), profile="site/mine.yaml").cluster
    shipped = load_sweep(write(tmp_path), profile="one_node").cluster
    assert cluster.slurm.account == "a"
    assert cluster.model_dump(exclude={"slurm": {"account"}, "profile": True}) == shipped.model_dump(
        exclude={"slurm": {"account"}, "profile": True}
    )


def test_a_profile_beside_it_has_priority_over_a_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "one_node.yaml").write_text("slurm: {account: mine}\n")
    (tmp_path / "site.yaml").write_text("base: one_node\n")
    assert load_sweep(write(tmp_path, cluster={"profile": "site.yaml"})).cluster.slurm.account == "mine"


def test_a_profile_may_adapt_the_shipped_one_of_its_name(tmp_path: Path) -> None:
    """`base: one_node` in one_node.yaml is the shipped profile, not the file itself."""
    (tmp_path / "one_node.yaml").write_text("base: one_node\nslurm: {account: mine}\n")
    cluster = load_sweep(write(tmp_path, cluster={"profile": "one_node.yaml"})).cluster
    assert (cluster.driver, cluster.slurm.account) == ("arrays", "mine")


# --- time limits ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("04:00:00", 240),
        ("4:00:00", 240),
        ("1:30:00", 90),
        ("'1:30:00'", 90),
        ("00:00:01", 1),
        ("100:00:00", 6000),
        ("2-00:00:00", 2880),
        ("1-12:30:01", 2191),
    ],
)
def test_a_time_limit_is_read_as_slurm_writes_it(text: str, minutes: int, tmp_path: Path) -> None:
    """SLURM's own reader of its times (`slurm/parse.py`) is the reference."""
    path = write(tmp_path)
    path.write_text(f"{path.read_text()}cluster: {{slurm: {{time_min: {text}, update: {{time_min: {text}}}}}}}\n")
    slurm = load_sweep(path).cluster.slurm
    assert (slurm.time_min, slurm.update.time_min) == (minutes, minutes)
    assert load_sweep(write(tmp_path), [f"cluster.slurm.time_min={text}"]).cluster.slurm.time_min == minutes
    if text != "90":
        assert minutes - 1 < (parse_minutes(text.strip("'")) or 0) <= minutes


@pytest.mark.parametrize("text", ["1:30", "1-12", "2 hours", "soon:1:2", "1:60:00", "0:00:00", "-5", "1:30:00.5"])
def test_a_time_limit_that_is_not_clear_is_refused(text: str, tmp_path: Path) -> None:
    (message,) = mistakes(tmp_path, f"cluster.slurm.time_min={text}")
    assert message.startswith("cluster.slurm.time_min: ")
    assert text in ("-5", "0:00:00") or "write minutes (90)" in message


def test_an_editor_accepts_both_forms_of_a_time_limit() -> None:
    schema = json.loads((Path(__file__).parents[3] / "yaml" / "sweep.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    for value in (90, "04:00:00"):
        assert validator.is_valid({**MINIMAL, "cluster": {"slurm": {"time_min": value}}})
    assert not validator.is_valid({**MINIMAL, "cluster": {"slurm": {"time_min": 0}}})
