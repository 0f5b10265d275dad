"""The arms of yaml/teaching/: the same warm-ups, problems and budget; disjoint skills."""

from __future__ import annotations

import itertools
import json

import pytest

from core_hpc.config.identity import flatten, scientific_fields
from core_hpc.config.problems import GeneratedProblems
from core_hpc.config.run import RunConfig
from core_hpc.controller.prepare import splits_of
from core_hpc.problems.skills import FAMILIES, OPERATORS
from core_hpc.problems.splits import EVALUATION, TRAIN
from core_hpc.runs.sweep import RunPlan, load_sweep
from tests.support.harness import ROOT

FOLDER = ROOT / "yaml" / "teaching"
TEACH = {
    f"update.teach.{n}" for n in ("max_per_problem", "objective", "rehearsal", "teacher", "weight", "weight_iterations")
}
CHANGES = {
    "tier1_independent": {"protocol.cold_samples", "protocol.rescue_samples", "update.group", "update.learning_rate"},
    "tier1_without_hints": {"protocol.hint_probability"},
    "tier1_shared_rescues": {"update.share_rescues"},
    "tier1_shuffled_hints": {"protocol.hint_source"},
    "tier1_own_baseline": {"update.baseline"},
    "tier1_plain_rescues": {"update.baseline", "update.rescue_context", "update.rescue_correction"},
    "tier1_teach": {"update.baseline", "update.kl_weight", *TEACH},
    "tier1_teach_alone": {
        "protocol.cold_samples",
        "protocol.rescue_samples",
        "update.group",
        "update.kl_weight",
        *TEACH,
    },
    "tier1_hacpo": {
        "protocol.cold_samples",
        "protocol.rescue_samples",
        "reward.rescue.weight",
        "reward.trace_accuracy.weight",
        "update.loss",
        "update.ratio",
        "update.clip_low",
        "update.clip_high",
        "update.kl_weight",
        *(f"update.hacpo.{n}" for n in ("alpha", "clip_delta", "clip_step", "enabled", "window")),
    },
    "tier2_core": {
        "protocol.cold_samples",
        "protocol.rescue_samples",
        "protocol.even_budget",
        "protocol.hint_tokens",
        "update.group",
        "update.kl_weight",
        "update.learning_rate",
    },
    "tier2_independent_kl": {"update.kl_weight", "update.learning_rate"},
    "tier2_teach_alone": TEACH | {"update.teach.weight_end"},
}
TIERS = ("tier1", "tier2")
SHARED_SKILLS = ("shared_skills_independent", "shared_skills_teach_alone")


def runs_of(name: str) -> list[RunPlan]:
    return list(load_sweep(FOLDER / f"{name}.yaml").runs)


def completions(config: RunConfig) -> int:
    return config.protocol.cold_samples + config.protocol.rescue_samples


def test_every_arm_is_listed() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*TIERS, *CHANGES, *SHARED_SKILLS}


@pytest.mark.parametrize("arm", CHANGES)
def test_an_arm_differs_from_its_base_only_in_what_it_tests(arm: str) -> None:
    base, other = runs_of(arm.partition("_")[0]), runs_of(arm)
    assert [run.config.seed for run in base] == [run.config.seed for run in other]
    for a, b in zip(base, other, strict=True):
        ours, theirs = flatten(scientific_fields(a.config)), flatten(scientific_fields(b.config))
        assert {k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k)} == CHANGES[arm]
        assert completions(a.config) == completions(b.config) == 3
        assert a.config.output == b.config.output  # so that they share their warm-ups
        assert a.config.iterations == b.config.iterations


@pytest.mark.parametrize("tier", TIERS)
def test_every_seed_has_warm_ups_of_its_own(tier: str) -> None:
    """With one warm-up for all seeds, their spread would not contain that of the warm-up."""
    for plan in runs_of(tier):
        warmups = [plan.config.warmup_of(model) for model in plan.config.team]
        assert [w.seed for w in warmups if w is not None] == [plan.config.seed] * 2


@pytest.mark.parametrize("tier", TIERS)
def test_no_composite_can_be_solved_with_own_operators_alone(tier: str) -> None:
    """A model that takes an own operator for the foreign one would be rewarded, and would seem to have both skills.

    In base 4 `plus` and `zib` solve all of `gap_then_zib`, because 2 (a + b) and 2 |a - b| differ by a multiple of 4.
    """
    config = runs_of(tier)[0].config
    skills, source = config.analysis.skills, config.problems.evaluation
    assert isinstance(source, GeneratedProblems)
    base, num_digits = source.options.get("base", 10), source.options.get("num_digits", 2)

    def share(family: str, own: list[str]) -> float:
        """The largest share of right answers with own operators instead of foreign ones."""
        first, second = FAMILIES[family]

        def value(one: str, two: str, a: int, b: int, c: int) -> int:
            return OPERATORS[two](OPERATORS[one](a, b, base)[1], c, base)[1]

        triples = list(itertools.product(range(base), repeat=3))
        replacements = itertools.product([first] if first in own else own, [second] if second in own else own)
        right = (sum(value(*pair, *t) == value(first, second, *t) for t in triples) for pair in replacements)
        return (max(right) / len(triples)) ** num_digits

    composites = [name for name in source.options if len(FAMILIES.get(name, ())) == 2]
    assert len(composites) == 3
    assert max(share(family, own) for family in composites for own in skills.values()) < 0.25
    assert tier != "tier1" or share("gap_then_zib", skills["ann"]) == 1


def problems_of_families(plan: RunPlan) -> dict[str, dict[str, float]]:
    """How many problems of each family the warm-up of each model has."""
    found = {}
    for name, source in ((m.name, m.warmup.problems) for m in plan.config.team if m.warmup is not None):
        assert isinstance(source, GeneratedProblems)
        shares = {k: v for k, v in source.options.items() if k in FAMILIES}
        found[name] = {k: source.count * v / sum(shares.values()) for k, v in shares.items()}
    return found


def test_shared_skills_are_added_to_the_warm_ups_of_tier1_and_the_arms_differ_as_there() -> None:
    disjoint = runs_of("tier1")[0]
    own, skills = problems_of_families(disjoint), disjoint.config.analysis.skills
    for alone, lessons in zip(*map(runs_of, SHARED_SKILLS), strict=True):
        ours, theirs = flatten(scientific_fields(alone.config)), flatten(scientific_fields(lessons.config))
        changed = {k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k)}
        assert changed == {"update.learning_rate", "update.kl_weight", *TEACH}
        num_shared = int(alone.label.removeprefix("shared-"))
        for name, found in problems_of_families(alone).items():
            (peer,) = (skills[other] for other in skills if other != name)
            assert set(found) - set(own[name]) == set(peer[:num_shared])
            assert {k: found[k] for k in own[name]} == pytest.approx(own[name], rel=1e-3)


@pytest.mark.parametrize("tier", TIERS)
def test_each_model_is_warmed_on_its_own_skills_and_composites_need_both(tier: str) -> None:
    plan = runs_of(tier)[0]
    splits, owners = splits_of(plan), {name: set(own) for name, own in plan.config.analysis.skills.items()}
    assert owners.keys() == {m.name for m in plan.config.team}
    singles = set().union(*owners.values())
    for model, own in owners.items():
        rows = [json.loads(m) for m in splits.warmups[model]["metadata"]]
        worked = {operator for r in rows if not r.get("hinted") for operator in FAMILIES[r["subject"]]}
        assert worked == own
        assert {r["subject"] for r in rows if r.get("hinted")} == singles
        assert not set(splits.warmups[model]["question"]) & set(splits.evaluation["question"])
    families = {
        name: {json.loads(m)["subject"] for m in getattr(splits, name)["metadata"]} for name in (TRAIN, EVALUATION)
    }
    composites = families[EVALUATION] - singles
    assert families[EVALUATION] > singles
    for family in composites:
        assert all(own & set(FAMILIES[family]) for own in owners.values()), family
    chains = families[TRAIN] - families[EVALUATION]
    assert families[TRAIN] >= families[EVALUATION]
    assert bool(chains) == (tier == "tier1")
    for family in chains:  # they belong to one model, which the warm-up has taught them
        assert any(own >= set(FAMILIES[family]) for own in owners.values()), family
