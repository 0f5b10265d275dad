"""Differences between all arms of a study: order, correction, and the parts of the variance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from analysis.counts.counts import ANSWERS
from analysis.counts.load import RunData
from analysis.metrics.arms import arms_of, arms_report, arms_table
from analysis.metrics.compare import MEAN, compare, margin_of
from analysis.metrics.compare_table import compare_report
from analysis.metrics.contrasts import CONTRASTS_TABLE, arms_among, contrasts_report, contrasts_table
from analysis.metrics.fields import grouped, varied_fields
from analysis.metrics.pairs import primary_of
from analysis.metrics.variance import VARIANCE_TABLE, variance_report, variance_table
from analysis.stats.decisions import holm
from core_hpc.common.errors import InputError
from core_hpc.config.analysis import AnalysisSection
from tests.support.analysis_data import config, counts_frame, pick

PRIMARY = {"arms": ["core", "alone"], "metric": "team_pass@2"}


def run(
    label: str, seed: int, c: Any, *, primary: dict[str, Any] | None = PRIMARY, name: str = "demo", **changes: Any
) -> RunData:
    """Make a run of the sweep `name` with the counts (2, P) of 8 completions."""
    analysis = {"primary": primary, "margin": 0.03}
    run_config = config(name=name, seed=seed, evaluation={"samples": 8}, analysis=analysis, **changes)
    counts = counts_frame(8, np.asarray(c), iteration=2)
    path = Path(f"/nowhere/{name}/{label}-0a1b2c3d")
    return RunData(path, run_config, ["ada", "bob"], counts, pl.DataFrame(schema=ANSWERS))


def study(primary: dict[str, Any] | None = PRIMARY) -> list[RunData]:
    """Three arms with two seeds each on 150 problems. The arm core is better than the others."""
    rng = np.random.default_rng(1)
    skill = rng.beta(0.5, 0.5, (2, 150))
    arms = {"alone": (0.0, 0.04), "core": (0.15, 0.05), "twin": (0.0, 0.06)}
    return [
        run(
            f"{name}-seed-{seed}",
            seed,
            rng.binomial(8, np.clip(skill + gain, 0, 1)),
            primary=primary,
            update={"kl_weight": weight},
        )
        for name, (gain, weight) in arms.items()
        for seed in (1, 2)
    ]


def test_arms_are_runs_that_differ_in_their_seed_only() -> None:
    arms = arms_among(study())
    assert {name: [data.config.seed for data in runs if data.config] for name, runs in arms.items()} == {
        "alone": [1, 2],
        "core": [1, 2],
        "twin": [1, 2],
    }


def test_the_primary_comparison_is_first_and_not_corrected() -> None:
    frame = contrasts_table(arms_among(study()), ks=[1, 2])
    assert frame.schema == CONTRASTS_TABLE
    assert set(frame["arm_a"]) == {"alone"}
    first = frame.row(0, named=True)
    assert (first["arm_b"], first["measure"], first["k"], first["primary"]) == ("core", "team_pass", 2, True)
    assert frame["primary"].sum() == 1
    assert first["p_holm"] == first["p"]
    others = frame.filter(~pl.col("primary"))
    # Two models, the team, two matched budgets and two gains at two k, and the coverage; two arms.
    assert others.height == 2 * (2 * 7 + 1) - 1
    # Pass@2 of a model is also its matched budget at k = 1: two rows, but one test.
    twice = (pl.col("measure") == "matched_pass") & (pl.col("k") == 1)
    tests = others.filter(~twice)
    assert tests.height == others.height - 4
    assert tests["p_holm"].to_list() == holm(tests["p"].to_list())
    assert (others["p_holm"] >= others["p"]).all()
    for copy in others.filter(twice).iter_rows(named=True):
        row = pick(others, arm_b=copy["arm_b"], measure="pass", model=copy["model"], k=2)
        assert [copy[name] for name in ("p", "p_holm", "verdict")] == [row[name] for name in ("p", "p_holm", "verdict")]
    alone = compare(arms_among(study())["alone"], arms_among(study())["core"], ks=[1, 2])
    own = pick(alone, seed=MEAN, measure="team_pass", k=2)
    assert [own[name] for name in ("estimate", "low", "high", "p")] == [
        first[name] for name in ("estimate", "low", "high", "p")
    ]


def test_rows_of_one_quantity_are_one_test() -> None:
    """With 8 completions: Pass@2, 4 and 8 of two models are matched budgets too, and coverage is team Pass@8."""
    arms = arms_among(study(None))
    core, alone = arms["core"], arms["alone"]
    frame = compare(core, alone, ks=[1, 2, 4, 8]).filter(pl.col("p").is_not_null(), seed=MEAN)
    same = frame.with_columns(equal=pl.col("estimate").round(9))
    assert same.filter(measure="coverage")["equal"].item() == same.filter(measure="team_pass", k=8)["equal"].item()
    # Four k have Pass@k of two models and of the team, and one gain; three of them have the matched gain as well.
    num_tests = 4 * (2 + 1 + 1) + 3
    assert frame.height == num_tests + 3 * 2 + 1
    assert frame["p_holm"].min() == pytest.approx(min(1, num_tests * frame["p"].min()))
    table = compare_report(core, alone, ks=[1, 2, 4, 8])
    assert any(f"correction for the {num_tests} tests of this table" in note for note in table.notes)


def test_a_copy_of_the_primary_comparison_is_not_corrected() -> None:
    primary = {"arms": ["core", "alone"], "metric": "pass@2", "model": "ada"}
    frame = contrasts_table(arms_among(study(primary)), ks=[1, 2]).filter(arm_b="core")
    first, copy = frame.row(0, named=True), pick(frame, measure="matched_pass", model="ada", k=1)
    assert (first["measure"], first["primary"], copy["primary"]) == ("pass", True, False)
    assert copy["p_holm"] == copy["p"] == first["p_holm"]


def test_the_k_of_the_primary_comparison_is_always_computed() -> None:
    frame = contrasts_table(arms_among(study()), ks=[1])
    assert frame.row(0, named=True)["k"] == 2
    assert frame.filter(k=2).height == 1  # nothing else that was not asked for
    core, alone = arms_among(study())["core"], arms_among(study())["alone"]
    swapped = compare(core, alone, ks=[1])
    assert pick(swapped, primary=True)["estimate"] == -frame.row(0, named=True)["estimate"]
    untrained = [RunData(d.path, d.config, d.models, counts_frame(8, [[1] * 9] * 2), d.answers) for d in core]
    assert not compare(untrained, untrained, ks=[1], iterations=(0, 0))["primary"].any()


def test_the_primary_comparison_is_that_of_a_further_set_too() -> None:
    """A set may have a hyphen in its name, like the labels of runs."""
    found = contrasts_table(arms_among(study()), ks=[2])
    for name in ("greedy", "hard-ones"):
        arms = arms_among([replace(data, evaluation_set=name) for data in study()])
        assert list(arms) == ["alone", "core", "twin"]
        assert contrasts_table(arms, ks=[2]).equals(found)


def primary_arms(runs: list[RunData]) -> list[tuple[str, str]]:
    """The arms of the primary rows, B and A."""
    frame = contrasts_table(arms_among(runs), ks=[2]).filter("primary")
    return list(frame.select("arm_b", "arm_a").iter_rows())


def several(name: str, weights: dict[str, float]) -> list[RunData]:
    """Runs of a sweep with one KL weight per label."""
    c = np.random.default_rng(4).integers(0, 9, (2, 30))
    return [run(label, 1, c, name=name, update={"kl_weight": weight}) for label, weight in weights.items()]


def test_the_name_of_a_sweep_is_not_the_name_of_each_of_its_arms() -> None:
    grid = several("core", {"seed-1-loss-grpo": 0.01, "seed-1-loss-gspo": 0.02, "seed-1-loss-dapo": 0.03})
    alone = several("alone", {"seed-1": 0.04})
    assert primary_arms([*grid, *alone]) == []
    one_arm = several("core", {"seed-1": 0.01})
    assert primary_arms([*one_arm, *alone]) == [("core", "alone")]
    assert primary_arms([*several("core", {"run": 0.01}), *alone]) == [("core", "alone")]


def test_a_sweep_may_have_the_name_of_one_of_its_arms() -> None:
    runs = several("core", {"core": 0.01, "alone": 0.02, "no-hints": 0.03})
    assert primary_arms(runs) == [("core", "alone")]


def test_one_pair_of_arms_is_primary_if_two_sweeps_have_arms_of_the_same_names() -> None:
    runs = several("one", {"core": 0.01, "alone": 0.02}) + several("two", {"core": 0.03, "alone": 0.04})
    assert list(arms_among(runs)) == ["one/core", "one/alone", "two/core", "two/alone"]
    assert primary_arms(runs) == [("one/core", "one/alone")]


def evaluations(sweep: str, seeds: Sequence[int]) -> list[RunData]:
    """What `core_hpc.evaluate` makes of the seeds of an arm: each run has the adapters and the base of its seed."""
    c = np.random.default_rng(5).integers(0, 9, (2, 30))
    runs = []
    for seed in seeds:
        folder = f"/nowhere/{sweep}/seed-{seed}-0a1b2c3d"
        team = [
            {"name": n, "model": f"{folder}/warmup/iteration=0000/{n}", "adapter": f"{folder}@40:{n}"}
            for n in ("ada", "bob")
        ]
        data = run(f"seed-{seed}-iteration-40-hard", seed, c, name=sweep, iterations=0, team=team)
        runs.append(replace(data, counts=data.counts.with_columns(iteration=pl.lit(0, pl.Int32))))
    return runs


def test_evaluations_of_the_seeds_of_an_arm_are_one_arm() -> None:
    core, alone = evaluations("core", (1, 2)), evaluations("alone", (1, 2))
    assert arms_among([*core, *alone]) == {"core/iteration-40-hard": core, "alone/iteration-40-hard": alone}
    assert pick(compare(alone, core, ks=[1]), seed=MEAN, measure="team_pass", k=1)["num_seeds"] == 2
    with pytest.raises(InputError, match=r"one configuration: its runs differ in team\.0\.adapter"):
        compare([core[0], alone[1]], [core[0]], ks=[1])
    elsewhere = [replace(data, path=Path("/elsewhere", *data.path.parts[2:])) for data in evaluations("core", (3, 4))]
    assert len(arms_among([*core, *elsewhere])) == 2
    by = varied_fields([*core, *alone])
    assert by == [f"team.{model}.{field}" for model in ("ada", "bob") for field in ("model", "adapter")]
    assert list(grouped([*core, *alone], by).values()) == [alone, core]


def test_without_a_declaration_everything_is_corrected() -> None:
    frame = contrasts_table(arms_among(study(None)), ks=[1])
    assert not frame["primary"].any()
    assert frame["p_holm"].to_list() == holm(frame["p"].to_list())
    with pytest.raises(InputError, match="one arm only"):
        contrasts_table({"core": study()[:2]}, ks=[1])


def test_the_report_states_the_result_and_both_intervals() -> None:
    arms = arms_among(study())
    table = contrasts_report(arms, ks=[2])
    line = table.shown.row(0, named=True)
    assert line["arms"] == "core - alone"
    assert line["measure"] == "primary: team Pass@2"
    assert line["these seeds only"].startswith("[+")
    assert {"p", "corrected p", "P(B > A)", "result"} <= set(line)
    assert table.notes[0] == "primary comparison, declared in the sweep file: core - alone, team_pass@2"
    assert any("Holm's correction for the 15 tests of this table (the primary" in note for note in table.notes)
    two = compare_report(arms["alone"], arms["core"], ks=[2])
    assert two.shown.row(0, named=True)["measure"] == "primary: team Pass@2"


def test_other_fields_of_the_evaluation_are_always_named_first() -> None:
    arms = arms_among(study())
    generated = {"source": "generated", "count": 20}
    fields: dict[str, Any] = {
        "name": "demo",
        "problems": {"train": generated, "evaluation": generated, "num_examples": 2},
        "evaluation": {"samples": 8, "sampling": {"temperature": 0.1}},
        "analysis": {"primary": PRIMARY, "margin": 0.03},
        "update": {"loss": "gspo", "kl_weight": 0.3},
        "protocol": {"cold_samples": 3, "rescue_samples": 3, "problems_per_iteration": 7, "problems_per_part": 7},
    }
    hot = [replace(data, config=config(seed=seed, **fields)) for seed, data in enumerate(arms["core"], start=1)]
    expected = [
        "problems.num_examples: 0 in {}, 2 in {}",
        "evaluation.sampling.temperature: 0.7 in {}, 0.1 in {}",
    ]
    notes = contrasts_report(arms | {"core": hot}, ks=[1]).notes
    assert [line for line in notes if " in alone, " in line] == [line.format("alone", "core") for line in expected]
    notes = compare_report(arms["alone"], hot, ks=[1]).notes
    lines = [line for line in notes if " in A, " in line]
    assert lines[:2] == [line.format("A", "B") for line in expected]
    assert lines[2].startswith("update.loss")


def test_arms_with_many_useless_completions_or_with_different_numbers_are_named() -> None:
    """150 problems with 8 completions per model and seed."""

    def with_useless(data: RunData, column: str, each: int) -> RunData:
        wanted = pl.col("problem_id") < f"p{each:05d}"
        return replace(data, counts=data.counts.with_columns(pl.when(wanted).then(8).otherwise(0).alias(column)))

    arms = arms_among(study())
    few = {name: [with_useless(d, "num_truncated", 6) for d in runs] for name, runs in arms.items()}
    assert not any("WARNING" in note for note in contrasts_report(few, ks=[1]).notes)
    apart = few | {"core": [with_useless(d, "num_truncated", 12) for d in arms["core"]]}
    line = "WARNING: completions cut at the token limit (percent): {}: ada 4.0, bob 4.0; {}: ada 8.0, bob 8.0"
    assert f"{line.format('alone', 'core')}; twin: ada 4.0, bob 4.0" in contrasts_report(apart, ks=[1]).notes
    assert line.format("A", "B") in compare_report(apart["alone"], apart["core"], ks=[1]).notes
    evaluated = arms_of(apart)
    levels = arms_report(evaluated, arms_table(evaluated, ks=[1]))[0]
    assert any(line.format("alone", "core") in note for note in levels.notes)
    many = {name: [with_useless(d, "num_no_answer", 20) for d in runs] for name, runs in arms.items()}
    assert any("completions without an answer (percent)" in note for note in contrasts_report(many, ks=[1]).notes)


def test_a_pair_with_one_seed_beside_pairs_with_several_is_marked() -> None:
    arms = arms_among(study(None))
    mixed = {"alone": arms["alone"][:1], "core": arms["core"], "twin": arms["twin"][:1]}
    frame = contrasts_table(mixed, ks=[1])
    for row in frame.iter_rows(named=True):
        one_seed = row["arm_b"] == "twin"
        assert (row["seed"] != MEAN) is one_seed
        assert ("one pair of seeds: interval over problems only" in row["note"].split("; ")) is one_seed
        assert ("interval over problems and seeds" in row["note"].split("; ")) is not one_seed
    notes = contrasts_report(mixed, ks=[1]).notes
    both = "B - A: 95 % interval for other problems and other seeds"
    assert f"{both} (for other problems only, where there is one pair of seeds)" in notes
    assert both in contrasts_report(arms, ks=[1]).notes
    for pairs in (arms, {name: runs[:1] for name, runs in arms.items()}):
        assert not contrasts_table(pairs, ks=[1])["note"].str.contains("one pair of seeds").any()


def test_verdicts_use_the_margin_of_the_sweep() -> None:
    c = np.random.default_rng(2).binomial(8, 0.5, (2, 400))
    equal = compare([run("core", 1, c)], [run("alone", 1, c, update={"kl_weight": 0.0})], ks=[1])
    assert pick(equal, measure="pass", model="ada", k=1)["verdict"] == "equivalent within 3 points"
    narrow = compare([run("core", 1, c)], [run("alone", 1, c, update={"kl_weight": 0.0})], ks=[1], margin=0.001)
    assert pick(narrow, measure="pass", model="ada", k=1)["verdict"] == "not resolved"
    better = compare([run("core", 1, c)], [run("alone", 1, np.minimum(8, c + 2))], ks=[1])
    assert pick(better, measure="pass", model="ada", k=1)["verdict"] == "different"


def with_analysis(data: RunData, **fields: Any) -> RunData:
    assert data.config is not None
    return replace(data, config=data.config.model_copy(update={"analysis": AnalysisSection.model_validate(fields)}))


def test_the_margin_does_not_depend_on_the_order_of_the_runs() -> None:
    """A sweep file without a margin declares none."""
    declared, other, silent = (
        with_analysis(run("core", 1, [[1]] * 2), **fields) for fields in ({"margin": 0.03}, {"margin": 0.01}, {})
    )
    assert margin_of([silent, declared]) == margin_of([declared, silent]) == 0.03
    assert margin_of([silent]) == 0.02
    with pytest.raises(InputError, match=r"analysis\.margin\): 0\.01 in .*, 0\.03 in .*; give --margin"):
        margin_of([declared, other])


def test_the_primary_comparison_does_not_depend_on_the_order_of_the_runs() -> None:
    """The sweep of A declares a comparison with a third arm, that of B one with A."""
    a = with_analysis(run("alone", 1, [[1]] * 2), primary={"arms": ["alone", "old"], "metric": "team_pass@1"})
    b = with_analysis(run("core", 1, [[1]] * 2), primary={"arms": ["core", "alone"], "metric": "team_pass@2"})
    for sides in (([a], [b]), ([b], [a])):
        primary = primary_of(*sides)
        assert primary is not None
        assert primary.metric == "team_pass@2"
    another = with_analysis(a, primary={"arms": ["core", "alone"], "metric": "team_pass@1"})
    assert primary_of([another], [b]) is primary_of([b], [another]) is None


# --- parts of the variance -----------------------------------------------------------------------


def test_the_parts_of_the_variance_add_up() -> None:
    arms = arms_among(study())
    frame = variance_table(arms["alone"], arms["core"], ks=[1, 2])
    assert frame.schema == VARIANCE_TABLE
    assert frame["part"].to_list()[:3] == ["problems", "samples", "seeds"]
    for part in frame.partition_by("measure", "model", "k"):
        assert part["share"].sum() == pytest.approx(1)
        assert part["note"].n_unique() == 1
    assert set(frame["num_seeds"]) == {2}


def test_sampling_is_found_where_there_is_nothing_else() -> None:
    rng = np.random.default_rng(3)
    a, b = (
        [run(name, s, rng.binomial(8, 0.5, (2, 600)), update={"kl_weight": w}) for s in (1, 2, 3)]
        for name, w in (("alone", 0.0), ("core", 0.1))
    )
    frame = variance_table(a, b, ks=[1])
    row = pick(frame, measure="pass", model="ada", part="samples")
    # The variance of one sample is 1/4; there are 8 samples, 600 problems, 3 seeds and 2 sides.
    assert row["variance"] == pytest.approx(2 * 0.25 / (8 * 600 * 3), rel=0.1)


def test_one_pair_of_runs_and_too_few_samples() -> None:
    a, b = study()[0], study()[2]
    frame = variance_table([a], [b], ks=[1, 8])
    assert pick(frame, measure="pass", model="ada", k=1, part="seeds")["variance"] is None
    assert pick(frame, measure="pass", model="ada", k=8, part="samples")["note"] == (
        "undefined: needs 16 completions per problem"
    )
    table = variance_report([a], [b], ks=[1, 8])
    assert "one pair of runs: the part of seeds is unknown, and not in the standard error" in table.notes
    line = pick(table.shown, model="team", measure="team Pass@1")
    assert line["seeds"] == "–"
    assert line["interval with twice as many"].startswith("twice the problems: ")
    assert pick(table.shown, model="team", measure="team Pass@8")["standard error"] == "–"
