"""The declared primary comparison of a sweep: what is accepted, and the message for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.metrics.sides import GAIN
from analysis.stats.decisions import MARGIN
from core_hpc.common.errors import ConfigError
from core_hpc.config.analysis import MODEL_MEASURES, TEAM_MEASURES, AnalysisSection
from core_hpc.runs.arms import names_of_arm
from core_hpc.runs.sweep import Sweep, load_sweep
from tests.support.harness import ROOT

PLAIN: dict[str, Any] = {
    "name": "demo",
    "iterations": 1,
    "team": [{"name": name, "model": "fake:any", "engine": "fake"} for name in ("ada", "bob")],
    "problems": {"train": {"source": "generated", "count": 8}, "evaluation": {"source": "generated", "count": 8}},
    "evaluation": {"samples": 8},
    "runs": [{"label": "core"}, {"label": "alone", "update": {"group": "model"}, "protocol": {"rescue_samples": 0}}],
}


def sweep(folder: Path, primary: dict[str, Any], **changes: Any) -> Sweep:
    """Load a sweep file with this primary comparison. JSON is YAML."""
    path = folder / "demo.yaml"
    path.write_text(json.dumps({**PLAIN, "analysis": {"primary": primary}, **changes}), encoding="utf-8")
    return load_sweep(path)


def declared(metric: str = "team_pass@2", arms: tuple[str, str] = ("core", "alone"), **more: str) -> dict[str, Any]:
    return {"arms": list(arms), "metric": metric, **more}


@pytest.mark.parametrize(
    "primary",
    [
        declared(),
        declared("gain_matched_budget@4"),
        declared("matched_pass@4", model="bob"),
        declared("pass@8", model="ada"),
    ],
)
def test_a_valid_comparison_changes_no_run(tmp_path: Path, primary: dict[str, Any]) -> None:
    plain = tmp_path / "plain.yaml"
    plain.write_text(json.dumps(PLAIN), encoding="utf-8")
    loaded = sweep(tmp_path, primary)
    assert [run.run_id for run in loaded.runs] == [run.run_id for run in load_sweep(plain).runs]
    found = loaded.runs[1].config.analysis.primary
    assert found is not None
    assert (found.arms, f"{found.measure}@{found.k}", found.model) == (
        ("core", "alone"),
        primary["metric"],
        primary.get("model"),
    )


@pytest.mark.parametrize(
    ("primary", "message"),
    [
        (declared(arms=("core", "independent")), r"primary\.arms\.1: there is no arm 'independent'.*alone, core"),
        (declared(arms=("core", "core")), r"analysis\.primary: arms: both are 'core'"),
        (declared("team_pas@2"), r"analysis\.primary: metric: unknown measure 'team_pas'; known measures: team_pass, "),
        (declared("team_pass"), r"analysis\.primary\.metric: "),
        (declared("pass@2"), r"metric: pass@2 is of one model; add `model: NAME`"),
        (declared("team_pass@2", model="ada"), r"metric: team_pass@2 is of the team; leave `model` out"),
        (declared("pass@2", model="cy"), r"analysis\.primary\.model: 'cy' is not in the team \(ada, bob\)"),
        (declared("team_pass@9"), r"team_pass@9 needs 9 completions per problem and model.*samples is 8"),
        (declared("gain_matched_budget@5"), r"gain_matched_budget@5 needs 10 completions"),
    ],
)  # fmt: skip
def test_mistakes_are_reported_before_anything_is_created(
    tmp_path: Path, primary: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep(tmp_path, primary)


def test_the_team_must_have_two_models_for_a_measure_of_the_team(tmp_path: Path) -> None:
    runs = [{"label": name, "seed": s, "protocol": {"rescue_samples": 0}} for s, name in enumerate(("core", "alone"))]
    with pytest.raises(ConfigError, match=r"team_pass@2 needs a team of two models or more; use pass@2"):
        sweep(tmp_path, declared(), team=PLAIN["team"][:1], runs=runs)


def test_the_runs_of_a_sweep_share_the_comparison(tmp_path: Path) -> None:
    other = [{"label": "core"}, {"label": "alone", "seed": 1, "analysis": {"margin": 0.05}}]
    with pytest.raises(ConfigError, match=r"analysis\.margin: 0\.02 in run core, but 0\.05 in run alone.*together"):
        sweep(tmp_path, declared(), runs=other)


def test_arms_of_a_grid_and_of_the_folder(tmp_path: Path) -> None:
    grid = {"seed": [1, 2], "protocol.scope": ["failed", "all"]}
    loaded = sweep(tmp_path, declared(arms=("scope-all", "scope-failed")), runs=None, grid=grid)
    assert names_of_arm("demo", loaded.runs[3].label) == {"seed-2-scope-all", "scope-all"}
    (tmp_path / "other.yaml").write_text("name: independent\n", encoding="utf-8")
    (tmp_path / "broken.yaml").write_text("a: [", encoding="utf-8")
    for more in ({"runs": None}, {"runs": None, "grid": {"seed": [1, 2]}}):
        sweep(tmp_path, declared(arms=("demo", "independent")), **more)


@pytest.mark.parametrize(
    ("more", "labels"),
    [({}, "alone, core"), ({"runs": None, "grid": {"update.loss": ["grpo", "gspo"]}}, "loss-grpo, loss-gspo")],
)
def test_the_name_of_a_sweep_is_no_arm_if_its_runs_have_labels(
    tmp_path: Path, more: dict[str, Any], labels: str
) -> None:
    (tmp_path / "other.yaml").write_text("name: independent\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"arms\.0: 'demo' is this sweep, .*; name one of its labels: {labels}$"):
        sweep(tmp_path, declared(arms=("demo", "independent")), **more)


def test_the_replication_declares_its_comparison() -> None:
    for name in ("core", "independent", "core_without_hints"):
        primary = load_sweep(ROOT / "yaml" / "replication" / f"{name}.yaml").runs[0].config.analysis.primary
        assert primary is not None
        assert (primary.arms, primary.metric) == (("core", "independent"), "team_pass@2")


def test_the_configuration_and_the_analysis_agree() -> None:
    assert {"team_pass", *GAIN.values()} == set(TEAM_MEASURES)
    assert set(MODEL_MEASURES) == {"pass", "matched_pass"}
    assert AnalysisSection().margin == MARGIN
