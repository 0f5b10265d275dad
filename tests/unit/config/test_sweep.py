"""Sweep files: grids, base files and overrides, and reports of all mistakes with their paths."""

from pathlib import Path

import pytest

import yaml
from core_hpc.common.errors import ConfigError
from core_hpc.config.fields import ANY, config_fields, run_config_schema
from core_hpc.config.identity import flatten, scientific_fields
from core_hpc.runs.sweep import load_sweep, parse_yaml

MINIMAL = {
    "name": "s",
    "iterations": 1,
    "team": [{"name": "a", "model": "x"}, {"name": "b", "model": "y"}],
    "problems": {"train": {"source": "generated", "count": 40}, "evaluation": {"source": "generated", "count": 4}},
}


def write(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **changes}))
    return path


def mistakes(tmp_path: Path, *overrides: str, **changes: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(tmp_path, **changes), overrides)
    return caught.value.mistakes


def test_a_minimal_file_has_the_default_values(tmp_path: Path) -> None:
    (run,) = load_sweep(write(tmp_path)).runs
    assert run.label == "run"
    protocol = run.config.protocol
    assert (protocol.cold_samples, protocol.rescue_samples, run.config.update.kl_weight) == (2, 1, 0.04)
    assert run.config.reward.explore.rule == "leave_one_out"


def test_all_mistakes_are_reported_at_once_with_path_and_advice(tmp_path: Path) -> None:
    found = mistakes(
        tmp_path,
        seed="x",
        protocol={"cold_sample": 3, "scope": "everyone", "sampling": {"top_p": 0}},
        update={"learning_rate": -1},
    )
    text = "\n".join(found)
    assert "protocol.cold_sample: unknown key; did you mean `cold_samples`?" in text
    assert any(m.startswith("protocol.scope:") and "'failed' or 'all'" in m for m in found)
    assert any(m.startswith("protocol.sampling.top_p:") and "greater than 0" in m for m in found)
    assert any(m.startswith("update.learning_rate:") and "-1" in m for m in found)
    assert any(m.startswith("seed:") for m in found)
    assert len(found) == 5


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"itertions": 3}, "did you mean `iterations`?"),
        ({"team": []}, "team: list should have at least 1 item"),
        ({"team": [{"name": "a", "model": "x"}, {"name": "a", "model": "y"}]}, "two models have the name a"),
        ({"team": [{"name": "A b", "model": "x"}]}, "team.0.name:"),
        (
            {"team": [{"name": "team", "model": "x"}]},
            "no model may have the name `team`, which stands for all models together",
        ),
        ({"grid": {}}, "grid: must be a mapping {path.to.field: [value, value]} with at least one field"),
        ({"grid": {"seed": []}}, "grid.seed: must be a list with at least one value"),
        (
            {"grid": {"seed": [1]}, "runs": [{"label": "a"}, {"label": "b", "seed": 2}]},
            "grid.seed: the run b of `runs` sets it, too; leave one of them out",
        ),
        (
            {"grid": {"seed": [1, 2], "update.learning_rate": [1e-4]}, "runs": [{"label": "x" * 78}]},
            "(labels have at most 80 characters)",
        ),
        ({"grid": {"seed": list(range(501))}, "runs": [{"label": "a"}, {"label": "b"}]}, "grid, runs: give 1002 runs"),
        ({"grid": {"seed": [1, 1]}}, "compute the same thing"),
        ({"grid": {"iterations": [1, 2]}}, "compute the same thing"),
        ({"runs": []}, "runs: must be a list of at least one mapping"),
        ({"runs": [{"label": "x", "seed": 1}, {"label": "x", "seed": 2}]}, "two runs have the label 'x'"),
        ({"update": {"learning_rate": float("nan")}}, "update.learning_rate:"),
        (
            {"problems": {**MINIMAL["problems"], "train": {"source": "generated", "count": 1, "task": "sums"}}},
            "unknown generator 'sums'",
        ),
        (
            {
                "problems": {
                    **MINIMAL["problems"],
                    "train": {"source": "generated", "count": 1, "options": {"terms": 2}},
                }
            },
            "problems.train.options.terms: unknown option; addition_chain has num_terms",
        ),
        (
            {"problems": {"train": {"source": "web"}, "evaluation": MINIMAL["problems"]["evaluation"]}},
            "no source 'web'; known: generated, reasoning_gym, jsonl, parquet, gsm8k",
        ),
        ({"problems": {"train": MINIMAL["problems"]["train"]}}, "problems.evaluation: is missing"),
        (
            {"cluster": {"zero_stage": 3}},
            "cluster: zero_stage: 3 divides the base weights among the ranks, but update_ranks is 1",
        ),
        (
            {
                "cluster": {"zero_stage": 3, "update_ranks": 2},
                "team": [{"name": "a", "model": "x"}, {"name": "b", "model": "y", "tuning": "full"}],
            },
            "divides only the frozen weights under an adapter, but b has another tuning",
        ),
        (
            {"cluster": {"zero_stage": 3, "update_ranks": 2}, "update": {"compile": True}},
            "update.compile: layers with cluster.zero_stage: 3 cannot be compiled",
        ),
        (
            {"protocol": {"max_new_tokens": 512}},
            "protocol.max_new_tokens: unknown key; did you mean `protocol.sampling.max_new_tokens`?",
        ),
        (
            {"learning_rate": 1e-5},
            "learning_rate: unknown key; did you mean `team.0.learning_rate` or `update.learning_rate`?",
        ),
        ({"reward": {"explore": {"weights": 1}}}, "reward.explore.weights: unknown key; did you mean `weight`?"),
        (
            {"team": [{"name": "a", "model": "x", "lora": {"rnk": 1}}]},
            "team.0.lora.rnk: unknown key; did you mean `rank`?",
        ),
        (
            {"team": [{"name": "a", "model": "x", "template_options": {"tokenize": False, "strftime_now": 1}}]},
            "team.0.template_options: strftime_now, tokenize: core_hpc sets this itself; leave it out",
        ),
        (
            {"team": [{"name": "a", "model": "x", "system_prompt": "Hi", "prompt_style": "plain"}]},
            "team.0: system_prompt: a plain prompt has no chat template; leave it out",
        ),
    ],
)
def test_mistake(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    assert expected in "\n".join(mistakes(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "must be a mapping"),
        ("name: a\nname: b", "occurs twice"),
        ("!!python/object:os.system {}", "not valid"),
        ("seed: 010", "line 1: 010 is a number to the base 8"),
        ("seed: 2001-13-41", "cannot be read"),
        ("? [a]\n: 1", "not valid YAML"),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load_sweep(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_number_in_quotes_is_a_text_and_ordinary_numbers_are_read() -> None:
    read = parse_yaml(
        '{a: "1:30:00", b: 90, c: 0, d: 0.5, e: 1e-5, f: -0, g: 1_000, h: 0x10, i: [1, 2.50], j: 00:11:aa}'
    )
    assert read == {
        "a": "1:30:00",
        "b": 90,
        "c": 0,
        "d": 0.5,
        "e": 1e-5,
        "f": 0,
        "g": 1000,
        "h": 16,
        "i": [1, 2.5],
        "j": "00:11:aa",
    }


def test_grid_multiplies_and_names_its_points(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, grid={"seed": [1, 2], "update.learning_rate": ["1e-5", 1e-4]}), ["iterations=3"])
    assert [r.label for r in sweep.runs] == [
        "seed-1-learning-rate-1e-05",
        "seed-1-learning-rate-0.0001",
        "seed-2-learning-rate-1e-05",
        "seed-2-learning-rate-0.0001",
    ]
    assert {(r.config.seed, r.config.update.learning_rate, r.config.iterations) for r in sweep.runs} == {
        (1, 1e-5, 3),
        (1, 1e-4, 3),
        (2, 1e-5, 3),
        (2, 1e-4, 3),
    }
    assert len({r.run_id for r in sweep.runs}) == 4


def test_every_entry_of_runs_is_run_at_every_point_of_the_grid(tmp_path: Path) -> None:
    runs = [{"label": "core"}, {"label": "Wide", "team.b.lora.rank": 32}]
    sweep = load_sweep(write(tmp_path, runs=runs), ["grid={seed: [1, 2]}"])
    found = {run.label: (run.config.model("b").lora.rank, run.config.seed) for run in sweep.runs}
    assert found == {"core-seed-1": (16, 1), "core-seed-2": (16, 2), "wide-seed-1": (32, 1), "wide-seed-2": (32, 2)}
    primary = {"arms": ["core", "wide"], "metric": "pass@1", "model": "a"}
    assert len(load_sweep(write(tmp_path, runs=runs, grid={"seed": [1, 2]}, analysis={"primary": primary})).runs) == 4


def test_runs_with_different_cluster_sections_are_refused(tmp_path: Path) -> None:
    """One driver works on all runs of a sweep, so only one of the sections could be used."""
    runs = [{"label": "a", "seed": 1}, {"label": "b", "seed": 2, "cluster": {"threads": 2}}]
    with pytest.raises(ConfigError, match=r"cluster\.threads: None in run a, but 2 in run b.*share one driver"):
        load_sweep(write(tmp_path, runs=runs))
    same = [{"label": label, "seed": seed, "cluster": {"threads": 2}} for label, seed in (("a", 1), ("b", 2))]
    assert load_sweep(write(tmp_path, runs=same)).cluster.threads == 2


@pytest.mark.parametrize("field", ["output", "name"])
def test_runs_with_different_folders_are_refused(tmp_path: Path, field: str) -> None:
    """The folder of the first run would be that of all."""
    runs = [{"label": "a", "seed": 1, field: "here"}, {"label": "b", "seed": 2, field: "there"}]
    with pytest.raises(ConfigError, match=rf"{field}: 'here' in run a, but 'there' in run b.*share one folder"):
        load_sweep(write(tmp_path, runs=runs))
    with pytest.raises(ConfigError, match=rf"{field}: 'here' in run a, but '.+' in run b.*share one folder"):
        load_sweep(write(tmp_path, runs=[runs[0], {"label": "b", "seed": 2}]))
    sweep = load_sweep(write(tmp_path, runs=[runs[0], {**runs[1], field: "here"}]))
    assert "here" in (sweep.folder.name, sweep.folder.parent.name)


def test_runs_may_override_team_members_by_name(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, runs=[{"label": "plain"}, {"label": "Wide", "team.b.lora.rank": 32}]))
    assert [r.label for r in sweep.runs] == ["plain", "wide"]
    assert [r.config.model("b").lora.rank for r in sweep.runs] == [16, 32]


def test_a_list_of_a_run_replaces_that_of_the_file(tmp_path: Path) -> None:
    team = [{"name": "a", "model": "x", "engine": "transformers"}, {"name": "b", "model": "y"}]
    alone = {"label": "alone", "team": [{"name": "a", "model": "other"}]}
    wide = {"label": "wide", "team": {"b": {"lora": {"rank": 32}}}}
    runs = load_sweep(write(tmp_path, team=team, runs=[{"label": "both"}, alone, wide])).runs
    found = {run.label: [(m.name, m.model, m.engine, m.lora.rank) for m in run.config.team] for run in runs}
    assert found == {
        "both": [("a", "x", "transformers", 16), ("b", "y", "vllm", 16)],
        "alone": [("a", "other", "vllm", 16)],
        "wide": [("a", "x", "transformers", 16), ("b", "y", "vllm", 32)],
    }


def test_base_is_inherited_and_cycles_are_refused(tmp_path: Path) -> None:
    base = write(tmp_path, seed=5)
    child = tmp_path / "child.yaml"
    child.write_text("base: sweep.yaml\nname: child\nupdate: {learning_rate: 1e-4}\n")
    (run,) = load_sweep(child).runs
    assert (run.config.name, run.config.seed, run.config.update.learning_rate) == ("child", 5, 1e-4)
    base.write_text("base: child.yaml")
    with pytest.raises(ConfigError, match="inherits from itself"):
        load_sweep(child)


def test_a_later_base_replaces_fields_of_an_earlier_one(tmp_path: Path) -> None:
    write(tmp_path, seed=5, update={"learning_rate": 1e-4})
    (tmp_path / "arms.yaml").write_text(
        "name: arms\nseed: 6\nupdate: {problems_per_step: 2}\nruns: [{label: one}, {label: two, seed: 7}]\n"
    )
    (tmp_path / "child.yaml").write_text("base: [sweep.yaml, arms.yaml]\nname: child\n")
    sweep = load_sweep(tmp_path / "child.yaml")
    assert sweep.name == "child"
    assert [(run.label, run.config.seed) for run in sweep.runs] == [("one", 6), ("two", 7)]
    assert {(run.config.update.learning_rate, run.config.update.problems_per_step) for run in sweep.runs} == {(1e-4, 2)}


@pytest.mark.parametrize("base", [3, [3], ["sweep.yaml", None], {"a": 1}])
def test_a_base_that_is_no_path_is_refused(base: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="base: must be the path of another file"):
        load_sweep(write(tmp_path, base=base))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("iterations", "write --set path.to.field=value"),
        ("team.zz.model=x", "the list has no member 'zz'"),
        ("name.x=1", "is below a plain value"),
        ("update.lr=1", "update.lr: unknown key; valid here: "),
        (".seed=1", "--set .seed=1: write --set path.to.field=value"),
        ("update..seed=1", "--set update..seed=1: write --set path.to.field=value"),
        ("base=other.yaml", "--set base: base is read before --set, and so has no effect here; write it in the sweep"),
        ("cluster.profile=one_node", "--set cluster.profile: cluster.profile is read before --set"),
        ("cluster={profile: one_node}", "--set cluster: cluster.profile is read before --set"),
        (
            "cluster.slurm.time_min=1:30",
            "slurm.time_min: is no time limit; write minutes (90), hours (01:30:00)",
        ),
    ],
)
def test_bad_override(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in "\n".join(mistakes(tmp_path, override))


def test_an_override_that_is_refused_causes_no_other_mistake(tmp_path: Path) -> None:
    (message,) = mistakes(tmp_path, f"{'.'.join('a' * 30)}=1")
    assert "a path of more than 20 parts" in message


def test_an_empty_output_is_refused(tmp_path: Path) -> None:
    """As from a variable of the shell that is not set."""
    with pytest.raises(ConfigError, match=r"output: is empty; write a folder, or `\.`"):
        load_sweep(write(tmp_path), output="")


def test_the_run_id_depends_only_on_scientific_fields(tmp_path: Path) -> None:
    def run_id(*overrides: str) -> str:
        return load_sweep(write(tmp_path), overrides).runs[0].run_id

    same = {
        run_id(),
        run_id("iterations=9"),
        run_id("name=other"),
        run_id("cluster.num_running=1"),
        run_id("output=elsewhere"),
    }
    assert len(same) == 1
    other = {
        run_id("seed=1"),
        run_id("update.learning_rate=1e-3"),
        run_id("team.a.model=z"),
        run_id("protocol.hint_tokens=7"),
    }
    assert len(other | same) == 5


def test_only_these_sections_have_operational_fields(tmp_path: Path) -> None:
    config = load_sweep(write(tmp_path)).runs[0].config
    everything, scientific = flatten(config.model_dump(mode="json")), flatten(scientific_fields(config))
    fields = [f for f in config_fields(run_config_schema()) if "added_later" in f.schema]
    added_later = {".".join(f.path).replace(f"team.{ANY}", f"team.{i}") for f in fields for i in range(2)}
    added_later |= {"team.0.warmup", "team.1.warmup"}
    operational = {path.split(".")[0] for path in set(everything) - set(scientific) - added_later}
    assert operational == {
        "name",
        "output",
        "iterations",
        "analysis",
        "cluster",
        "evaluation",
        "update",
        "extensions",
        "tracking",
    }
    assert "evaluation.samples" in scientific
