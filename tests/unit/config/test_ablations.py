"""Shipped sweeps with several arms: valid, with budgets and costs as their comments state.

Nothing is downloaded. A sweep that needs a data set is checked as far as its file goes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from core_hpc.config.identity import flatten, scientific_fields
from core_hpc.config.problems import DataSetProblems
from core_hpc.config.run import RunConfig
from core_hpc.controller import estimate
from core_hpc.controller.plan import most_work
from core_hpc.controller.prepare import splits_of
from core_hpc.runs.graph import Graph
from core_hpc.runs.sweep import RunPlan, load_sweep
from tests.support.harness import ROOT

FOLDERS = ("ablations", "paper", "paper/readings", "replication")
SWEEPS = [path for folder in FOLDERS for path in sorted((ROOT / "yaml" / folder).glob("*.yaml"))]
PAPER = sorted((ROOT / "yaml" / "paper").glob("*.yaml"))
READINGS = sorted((ROOT / "yaml" / "paper" / "readings").glob("*.yaml"))
ARMS = ("core", "core_own_baseline", "core_without_hints", "independent")


def runs_of(name: str) -> dict[str, RunPlan]:
    return {run.label: run for run in load_sweep(ROOT / "yaml" / f"{name}.yaml").runs}


def differing(a: RunConfig, b: RunConfig) -> dict[str, object]:
    """Scientific fields of `b` that differ from those of `a`."""
    ours, theirs = flatten(scientific_fields(a)), flatten(scientific_fields(b))
    return {key: theirs.get(key) for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)}


def budget(config: RunConfig) -> tuple[int, ...]:
    """(most completions per problem and model, problems, optimizer steps)."""
    protocol = config.protocol
    steps = config.iterations * config.steps_per_iteration
    return protocol.cold_samples + protocol.rescue_samples, config.iterations * protocol.problems_per_iteration, steps


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_sweep_with_arms_is_valid(path: Path) -> None:
    for run in load_sweep(path).runs:
        if run.config.problems.train.source == "generated":
            assert splits_of(run).evaluation.height >= 200


def test_no_two_sweeps_share_a_folder() -> None:
    folders = [load_sweep(path).folder for path in SWEEPS]
    assert len(set(folders)) == len(folders)


def test_each_arm_of_parts_changes_only_what_its_label_names() -> None:
    runs = {label: run.config for label, run in runs_of("ablations/parts").items()}
    assert {label: differing(runs["core"], config) for label, config in runs.items()} == {
        "core": {},
        "independent": {"update.group": "model", "protocol.cold_samples": 3, "protocol.rescue_samples": 0},
        "without-hint": {"protocol.hint_probability": 0},
        "shared-rescues": {"update.share_rescues": 0.2},
        "without-rescue-phase": {"protocol.cold_samples": 3, "protocol.rescue_samples": 0},
        "without-rescue-reward": {"reward.rescue.weight": 0},
        "without-cross": {"reward.cross.weight": 0},
        "without-trace-accuracy": {"reward.trace_accuracy.weight": 0},
    }
    assert len({budget(config) for config in runs.values()}) == 1
    assert all(config.protocol.even_budget for config in runs.values())


def test_the_arms_of_hint_leak_change_only_the_leaks_and_have_equal_budgets() -> None:
    keep, cut, reject = (run.config for run in runs_of("ablations/hint_leak").values())
    assert [differing(keep, other) for other in (keep, cut, reject)] == [
        {},
        {"protocol.hint_leak": "cut"},
        {"protocol.hint_leak": "reject"},
    ]
    assert all(config.protocol.even_budget for config in (keep, cut, reject))


def test_the_arms_of_baseline_change_only_the_baseline_and_have_equal_budgets() -> None:
    configs = [run.config for run in runs_of("ablations/baseline").values()]
    assert [differing(configs[0], other) for other in configs] == [
        {},
        {"update.baseline": "model"},
        {"update.baseline": "model_phase"},
    ]
    assert all(config.protocol.even_budget for config in configs)


def test_the_arms_of_choose_change_only_the_choice() -> None:
    order, pass_rate = (run.config for run in runs_of("ablations/choose").values())
    assert differing(order, pass_rate) == {"protocol.choose": "pass_rate"}
    assert budget(order) == budget(pass_rate)


def test_the_arms_of_teach_have_equal_budgets_and_only_core_has_no_lessons() -> None:
    runs = {label: run.config for label, run in runs_of("ablations/teach").items()}
    assert {label for label, config in runs.items() if not config.update.teach.is_on} == {"core"}
    assert differing(runs["core"], runs["core-and-lessons"])["update.teach.weight"] == 0.8
    assert len({budget(config) for config in runs.values()}) == 1
    assert all(config.protocol.even_budget or not config.protocol.rescue_samples for config in runs.values())


def test_the_arms_of_hint_source_change_only_the_source() -> None:
    peer, shuffled, own = (run.config for run in runs_of("ablations/hint_source").values())
    assert [differing(peer, other) for other in (shuffled, own)] == [
        {"protocol.hint_source": "shuffled"},
        {"protocol.hint_source": "own"},
    ]
    assert budget(peer) == budget(shuffled) == budget(own)


def test_the_arms_of_team_pass_have_equal_budgets() -> None:
    runs = {label: run.config for label, run in runs_of("ablations/team_pass").items()}
    assert {label: config.update.team_pass.is_on for label, config in runs.items()} == {
        "reward": False,
        "half": True,
        "team-pass": True,
        "later": True,
        "alone": True,
    }
    assert len({budget(config) for config in runs.values()}) == 1
    assert differing(runs["team-pass"], runs["alone"]) == {"update.group": "model"}


def test_the_arms_of_rescue_context_have_equal_budgets() -> None:
    runs = {label: run.config for label, run in runs_of("ablations/rescue_context").items()}
    assert len({budget(config) for config in runs.values()}) == 1
    assert all(config.protocol.even_budget for config in runs.values())
    assert differing(runs["hinted"], runs["older-trainer"]) == {
        "update.rescue_context": "plain",
        "update.rescue_others": "plain",
        "update.ratio": "current",
        "update.baseline": "model_batch",
    }


def test_the_arms_of_reliance_have_equal_budgets() -> None:
    configs = [run.config for run in runs_of("ablations/reliance").values()]
    assert len({budget(config) for config in configs}) == 1
    assert all(config.protocol.even_budget for config in configs)
    assert [config.update.reliance_scale for config in configs] == [None, 0.3, None, 0.3]


def test_the_arms_of_hacpo_sample_as_much_as_independent_training() -> None:
    runs = {label: run.config for label, run in runs_of("ablations/hacpo").items()}
    assert budget(runs["independent"]) == budget(runs["hacpo"])
    assert differing(runs["independent"], runs["hacpo"])["update.hacpo.enabled"] is True
    assert all(config.reward.exploit.partial == "none" for config in runs.values())
    assert all(config.reward.cross.weight == 0 for config in runs.values())


def test_the_arms_of_self_teacher_have_equal_budgets() -> None:
    configs = [run.config for run in runs_of("ablations/self_teacher").values()]
    assert [config.update.self_teacher.kind for config in configs] == ["none", "rlsd", "sdpo"]
    assert len({budget(config) for config in configs}) == 1
    assert all(config.protocol.even_budget for config in configs)


def test_the_default_of_a_field_that_was_added_later_is_not_part_of_the_identity() -> None:
    keep, cut, _ = runs_of("ablations/hint_leak").values()
    assert "hint_leak" not in scientific_fields(keep.config)["protocol"]
    assert scientific_fields(cut.config)["protocol"]["hint_leak"] == "cut"
    assert keep.run_id.rpartition("-")[2] != cut.run_id.rpartition("-")[2]
    assert load_sweep(ROOT / "yaml" / "quickstart.yaml").runs[0].run_id == "run-2bd72823"


def test_arms_of_the_replication_have_equal_budgets_seeds_and_problems() -> None:
    arms = {arm: list(runs_of(f"replication/{arm}").values()) for arm in ARMS}
    assert {arm: [run.config.seed for run in runs] for arm, runs in arms.items()} == {arm: [1, 2, 3] for arm in ARMS}
    first = {arm: runs[0] for arm, runs in arms.items()}
    changes = {arm: differing(first["core"].config, run.config) for arm, run in first.items()}
    assert changes["core_own_baseline"] == {"update.baseline": "model"}
    assert changes["core_without_hints"] == {"protocol.hint_probability": 0}
    assert changes["independent"] == {"update.group": "model", "protocol.cold_samples": 6, "protocol.rescue_samples": 0}
    assert {arm: run.config.evaluation.before for arm, run in first.items()} == {arm: arm == "core" for arm in ARMS}
    splits = splits_of(first["core"])
    num_held_out = splits.evaluation.height
    graphs = [
        (run, Graph.of(run.config, num_evaluation_problems=num_held_out)) for runs in arms.values() for run in runs
    ]
    work = {most_work(run, replace(graph, evaluate_before=True), {"": num_held_out}) for run, graph in graphs}
    assert len(work) == 1
    assert len({budget(run.config) for runs in arms.values() for run in runs}) == 1
    assert all(run.config.protocol.even_budget for runs in arms.values() for run in runs)
    assert splits.train.height == first["core"].config.iterations * 24, "each training problem is used once"


@pytest.mark.parametrize("path", PAPER, ids=lambda p: p.stem)
def test_a_paper_run_has_the_papers_budget_and_states_its_cost(path: Path) -> None:
    (run,) = load_sweep(path).runs
    config, protocol = run.config, run.config.protocol
    train, held_out = config.problems.train, config.problems.evaluation
    assert isinstance(train, DataSetProblems)
    assert isinstance(held_out, DataSetProblems)
    assert (train.source, train.count) in {("gsm8k", 1000), ("math", 1000), ("aime", 792), ("gpqa", 348)}
    assert config.iterations * protocol.problems_per_iteration == 2 * train.count, "two epochs, no problem left out"
    assert protocol.problems_per_iteration % config.update.problems_per_step == 0, "no smaller last step"
    assert (protocol.cold_samples, protocol.rescue_samples) == (2, 1)
    assert (config.update.problems_per_step, config.seed) == (4, 42)
    assert stated_cost(path) == cost([run])


def cost(runs: Sequence[RunPlan]) -> tuple[float, float]:
    """H100-hours if completions have a tenth of their greatest length on average, and if they have all of it."""

    def hours(run: RunPlan, share: float) -> float:
        held_out = run.config.problems.evaluation
        assert isinstance(held_out, DataSetProblems)
        return estimate.hours(run.config, {"": 2 * held_out.count}, share, estimate.DEVICES[0])

    low, high = (round(sum(hours(run, share) for run in runs), 1) for share in (0.1, 1.0))
    return low, high


def stated_cost(path: Path) -> tuple[float, float]:
    """The H100-hours in the comment of a sweep file."""
    stated = re.search(
        r"Estimated cost: ([\d.]+) H100-hours if completions have 10 % .* ([\d.]+) if all", path.read_text()
    )
    assert stated is not None
    return float(stated[1]), float(stated[2])


def test_every_paper_run_has_its_readings() -> None:
    assert [path.name for path in READINGS] == [path.name for path in PAPER]


@pytest.mark.parametrize("path", READINGS, ids=lambda p: p.stem)
def test_readings_are_those_of_the_papers_run_at_no_greater_budget(path: Path) -> None:
    sweep = load_sweep(path)
    (paper,) = load_sweep(path.parents[1] / path.name).runs
    changes = {run.label: differing(paper.config, run.config) for run in sweep.runs}
    cold_alone = {"protocol.cold_samples": 3, "protocol.rescue_samples": 0}
    lessons = runs_of("ablations/teach")["lessons-and-rehearsal"].config
    assert changes.pop("lessons") == differing(runs_of("ablations/parts")["core"].config, lessons) | cold_alone
    assert changes == {
        "paper": {},
        "older-trainer": differing(
            *(runs_of("ablations/rescue_context")[x].config for x in ("hinted", "older-trainer"))
        ),
        "independent": {"update.group": "model", **cold_alone},
    }
    assert {budget(run.config) for run in sweep.runs} == {budget(paper.config)}
    assert stated_cost(path) == cost(sweep.runs)
