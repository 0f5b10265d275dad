"""Arms: means by hand, intervals against a bootstrap in plain Python, and invalid arms."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from analysis.counts.counts import ANSWERS
from analysis.counts.load import RunData
from analysis.metrics.arms import ARMS_TABLE, BASE, PHI, arms_of, arms_report, arms_table
from analysis.metrics.compare import MEAN
from analysis.metrics.overlap import overlap_table
from analysis.metrics.passk import pass_at_k_table
from analysis.metrics.rescue import UPLIFT, rescue_table
from analysis.report.figures import arms_figure
from analysis.stats.intervals import NUM_DRAWS
from analysis.stats.student import t_quantile
from analysis.stats.uncertainty import Uncertainty, variances
from core_hpc.common.errors import InputError
from core_hpc.config.warmup import WarmupSection
from tests.support.analysis_data import config, counts_frame, pick, rescue_counts

TEAM = ("ada", "bob")


def data(seed: int | None, *counts: pl.DataFrame, models: tuple[str, ...] = TEAM, **changes: Any) -> RunData:
    """Make a run with these counts; with seed None, imported predictions."""
    team = [{"name": name, "model": "fake:any", "engine": "fake"} for name in models]
    run_config = None if seed is None else config(seed=seed, team=team, evaluation={"samples": 4}, **changes)
    path, answers = Path(f"/nowhere/sweep/{seed}"), pl.DataFrame(schema=ANSWERS)
    return RunData(path, run_config, list(models), pl.concat(counts), answers)


def held_out(c: Any, iteration: int, n: int = 4) -> pl.DataFrame:
    return counts_frame(n, np.asarray(c), iteration=iteration)


def cases(rng: np.random.Generator, num_problems: int = 60) -> pl.DataFrame:
    """Make rescues of ada on hard and easy problems, with and without the hint."""
    made = []
    for p in range(num_problems):
        hinted, control = (int(rng.binomial(n, x)) for n, x in ((3, rng.beta(1, 1)), (2, 0.3)))
        case = {"problem": f"t{p:03d}", "student": "ada", "teacher": "bob"}
        made.append({**case, "hinted": (hinted, 3), "control": (control, 2)})
    return rescue_counts(made)


def table(named: dict[str, list[RunData]], ks: tuple[int, ...] = (1, 2)) -> pl.DataFrame:
    frame = arms_table(arms_of(named), ks=list(ks))
    assert frame.schema == ARMS_TABLE
    return frame


def test_levels_by_hand() -> None:
    """Two seeds, two problems, four completions per model.

    The second arm has no evaluation of the untrained models.
    """
    first = [
        data(s, held_out([[0, 2], [1, 0]], 0), held_out(c, 3))
        for s, c in ((2, [[4, 2], [1, 1]]), (1, [[4, 0], [1, 1]]))
    ]
    second = [data(s, held_out([[4, 4], [4, 4]], 2), update={"kl_weight": 0.0}) for s in (1, 2)]
    frame = table({"one": first, "two": second})
    assert frame["arm"].unique(maintain_order=True).to_list() == [BASE, "one", "two"]
    ada = pick(frame, arm="one", seed=MEAN, measure="pass", model="ada", k=1)
    assert ada["estimate"] == pytest.approx((6 / 8 + 4 / 8) / 2)
    assert (ada["num_seeds"], ada["seed_min"], ada["seed_max"], ada["num_problems"]) == (2, 4 / 8, 6 / 8, 2)
    # Only on the second problem can all completions fail.
    of_two = pick(frame, arm="one", seed="2", measure="team_pass", k=1)
    assert of_two["estimate"] == pytest.approx(1 - (2 / 4) * (3 / 4) / 2)
    team = pick(frame, arm="one", seed=MEAN, measure="team_pass", k=1)
    assert team["estimate"] == pytest.approx(((1 - (2 / 4) * (3 / 4) / 2) + (1 - (4 / 4) * (3 / 4) / 2)) / 2)
    matched = pick(frame, arm="one", seed=MEAN, measure="matched_pass", model="bob", k=1)
    # One of four completions is correct, so half of all pairs contain it.
    assert (matched["candidates"], matched["estimate"]) == (2, pytest.approx(1 / 2))
    assert pick(frame, arm=BASE, seed=MEAN, measure="pass", model="ada", k=1)["estimate"] == 2 / 8
    assert pick(frame, arm="two", seed=MEAN, measure="team_pass", k=2)["estimate"] == 1
    assert frame.filter(arm=BASE)["measure"].unique().sort().to_list() == ["matched_pass", "pass", PHI, "team_pass"]
    assert "fewer than 100 problems" in ada["note"]


def test_a_single_run_has_the_figures_of_its_own_tables() -> None:
    rng = np.random.default_rng(1)
    run = data(1, held_out(rng.integers(0, 5, (2, 150)), 2), cases(rng))
    frame = table({"arm": [run]})
    figures = ["estimate", "low", "high", "num_problems", "note"]
    for row in pass_at_k_table(run.counts, ks=[1, 2]).iter_rows(named=True):
        if row["measure"] in ("pass", "team_pass", "matched_pass"):
            for seed in ("1", MEAN):
                own = pick(frame, seed=seed, measure=row["measure"], model=row["model"], k=row["k"])
                assert [own[f] for f in figures] == [row[f] for f in figures]
    phi = pick(overlap_table(run.counts), level="sample", model_a="ada", model_b="bob", measure="phi")
    uplift = pick(rescue_table(run.counts), group="all", rate="uplift")
    for measure, expected in ((PHI, phi), (UPLIFT, uplift)):
        own = pick(frame, seed=MEAN, measure=measure)
        assert [own[f] for f in figures] == pytest.approx([expected[f] for f in figures])
        assert (own["num_seeds"], own["seed_min"]) == (1, None)


def plain_interval(per_seed: Any, problems: list[Any]) -> tuple[float, float]:
    """Percentile interval of the mean over seeds. Every problem is drawn for all seeds together."""
    dice = random.Random(3)
    means = [statistics.fmean(per_seed(dice.choices(problems, k=len(problems)))) for _ in range(NUM_DRAWS)]
    cuts = statistics.quantiles(means, n=40, method="inclusive")
    return cuts[0], cuts[-1]


def test_uplift_of_an_arm_takes_a_problem_in_all_seeds_as_dependent() -> None:
    rng = np.random.default_rng(5)
    runs = [data(s, held_out(rng.integers(0, 5, (2, 10)), 2), cases(rng)) for s in (1, 2, 3)]
    row = pick(table({"arm": runs}), seed=MEAN, measure=UPLIFT)
    rows = [run.counts.filter(phase="rescue").sort("problem_id") for run in runs]
    hinted, control = ([r.filter(hint_given=hint)["c"].to_list() for r in rows] for hint in (True, False))

    def uplifts(problems: list[int]) -> list[float]:
        return [
            sum(h[p] for p in problems) / (3 * len(problems)) - sum(c[p] for p in problems) / (2 * len(problems))
            for h, c in zip(hinted, control, strict=True)
        ]

    each = uplifts(list(range(60)))
    assert row["estimate"] == pytest.approx(statistics.fmean(each))
    assert (row["seed_min"], row["seed_max"]) == pytest.approx((min(each), max(each)))
    # With rates of about a half, the interval is near that of a bootstrap of whole problems.
    assert (row["problems_low"], row["problems_high"]) == pytest.approx(
        plain_interval(uplifts, list(range(60))), abs=0.02
    )


def test_correlation_of_an_arm_is_the_mean_over_its_seeds() -> None:
    rng = np.random.default_rng(7)
    skill = rng.beta(0.5, 0.5, 120)
    sides = [rng.binomial(4, [skill, skill]) for _ in range(2)]
    frame = table({"arm": [data(s, held_out(c, 1)) for s, c in enumerate(sides)]})
    row = pick(frame, seed=MEAN, measure=PHI)

    def phis(problems: list[int]) -> list[float]:
        out = []
        for c in sides:
            a, b = 1 - c[:, problems] / 4
            # The covariance of the chances, over the standard deviations of the draws.
            variances = [x.mean() * (1 - x.mean()) for x in (a, b)]
            out.append(float(np.cov(a, b, ddof=0)[0, 1] / np.sqrt(np.prod(variances))))
        return out

    each = phis(list(range(120)))
    assert row["estimate"] == pytest.approx(statistics.fmean(each))
    assert (row["seed_min"], row["seed_max"]) == pytest.approx((min(each), max(each)))
    expected = plain_interval(phis, list(range(120)))
    assert (row["problems_low"], row["problems_high"]) == pytest.approx(expected, abs=0.02)


def test_the_interval_of_a_mean_over_seeds_contains_the_spread_of_the_seeds() -> None:
    """The seeds of a share: the same interval as from the values of every seed and problem."""
    rng = np.random.default_rng(8)
    skill = rng.beta(2, 2, 300)
    counts = [rng.binomial(4, np.clip(skill + shift, 0, 1), (2, 300)) for shift in (-0.1, 0.0, 0.15)]
    row = pick(
        table({"arm": [data(s, held_out(c, 1)) for s, c in enumerate(counts)]}),
        seed=MEAN,
        measure="pass",
        model="ada",
        k=1,
    )
    found = variances(np.stack([c[0] / 4 for c in counts]))
    error = (row["problems_high"] - row["problems_low"]) / 2 / t_quantile(0.975, 299)
    known = Uncertainty(estimate=row["estimate"], below=error, above=error, df=299, num_seeds=3)
    low, high = replace(known, rest=found.rest, seeds=found.seeds).interval()
    assert (row["low"], row["high"]) == pytest.approx((max(0, low), min(1, high)), abs=0.005)
    assert row["low"] < row["seed_min"] < row["seed_max"] < row["high"]


def test_equal_seeds_give_the_interval_of_one_seed() -> None:
    """Three copies of one run have no new information about problems."""
    c = np.random.default_rng(6).binomial(4, np.random.default_rng(2).beta(0.5, 0.5, (2, 150)))
    frame = table({"arm": [data(s, held_out(c, 1)) for s in (1, 2, 3)]})
    for measure in ("team_pass", "pass", PHI):
        where = {"measure": measure, "k": 1} | ({"model": "ada"} if measure == "pass" else {})
        one, mean = pick(frame, seed="2", **where), pick(frame, seed=MEAN, **where)
        assert (mean["estimate"], mean["low"], mean["high"]) == pytest.approx(
            (one["estimate"], one["low"], one["high"])
        )


def test_all_arms_use_the_same_problems() -> None:
    whole = [data(s, held_out([[4] * 5, [0] * 5], 1)) for s in (1, 2)]
    cut = data(3, held_out([[4] * 5, [0] * 5], 1).filter(pl.col("problem_id") < "p00003"))
    frame = table({"whole": whole, "cut": [cut]})
    levels = frame.filter(pl.col("measure") == "pass")
    assert set(levels["num_problems"]) == {3}
    assert levels["note"].str.contains("2 problems left out: not in every run").all()
    other = held_out([[4] * 5, [0] * 5], 1).with_columns(problem_id="x" + pl.col("problem_id"))
    with pytest.raises(InputError, match="no held-out problem in common"):
        table({"whole": whole, "other": [data(1, other)]})


def test_invalid_arms() -> None:
    good = [data(1, held_out([[1], [1]], 1))]
    cases_of_error = [
        ([data(1, held_out([[1], [1]], 0))], "no evaluation after training is published yet"),
        (
            [data(1, held_out([[1], [1]], 1)), data(2, held_out([[1], [1]], 1), update={"kl_weight": 0.0})],
            "bad is not one configuration",
        ),
        (
            [data(1, counts_frame(4, [[1], [1]], models=("ada", "cy"), iteration=1), models=("ada", "cy"))],
            "bad has ada, cy; all arms must have the same models",
        ),
    ]
    for runs, message in cases_of_error:
        with pytest.raises(InputError, match=message):
            arms_of({"good": good, "bad": runs})


def test_imported_predictions_are_no_base() -> None:
    good, imported = data(1, held_out([[1], [1]], 1)), data(None, held_out([[1], [1]], 0))
    assert [arm.name for arm in arms_of({"imported": [imported], "good": [good]})] == ["imported", "good"]


def test_runs_that_only_evaluate_are_arms_and_no_base() -> None:
    one, two = (data(1, held_out([[c], [1]], 0), iterations=0) for c in (1, 3))
    arms = arms_of({"one": [one], "two": [two]})
    assert [arm.name for arm in arms] == ["one", "two"]
    frame = arms_table(arms, ks=[1])
    assert pick(frame, arm="two", seed=MEAN, measure="pass", model="ada", k=1)["estimate"] == pytest.approx(3 / 4)
    levels, _ = arms_report(arms, frame)
    assert any("two: without training" in note for note in levels.notes)
    trained = data(1, held_out([[2], [2]], 0), held_out([[4], [4]], 2))
    assert [arm.name for arm in arms_of({"evaluated": [one], "trained": [trained]})] == [BASE, "evaluated", "trained"]


def test_an_arm_with_one_run_beside_arms_with_several_is_marked() -> None:
    rng = np.random.default_rng(5)
    runs = [data(s, held_out(rng.integers(0, 5, (2, 20)), 2)) for s in (1, 2, 3)]
    note = "one: one run, interval over problems only"
    for named, expected in (({"two": runs[:2], "one": runs[2:]}, True), ({"two": runs[:2], "three": runs}, False)):
        arms = arms_of(named)
        frame = arms_table(arms, ks=[1])
        for report in arms_report(arms, frame):
            assert (note in report.notes) is expected
        assert arms_figure(frame).caption.endswith(f"the first arm. {note}." if expected else "the first arm.")
    single = arms_figure(arms_table(arms_of({"one": runs[:1], "other": runs[1:2]}), ks=[1]))
    assert "and seeds" not in single.caption


def test_report() -> None:
    rng = np.random.default_rng(4)
    one = [
        data(s, held_out(rng.integers(0, 3, (2, 20)), 0), held_out(rng.integers(0, 5, (2, 20)), 2), cases(rng))
        for s in (1, 2)
    ]
    two = [data(s, held_out(rng.integers(0, 5, (2, 20)), 2), protocol={"rescue_samples": 0}) for s in (1, 2)]
    arms = arms_of({"one": one, "two": two})
    frame = arms_table(arms, ks=[1, 4])
    levels, errors = arms_report(arms, frame)
    assert levels.shown.columns == ["k", "arm", "ada Pass@k", "bob Pass@k", "team Pass@k", "ada Pass@2k", "bob Pass@2k"]
    assert levels.shown.select("k", "arm").rows() == [(k, arm) for k in ("1", "4") for arm in (BASE, "one", "two")]
    assert list(levels.starts) == [3]
    assert set(levels.shown.filter(k="4")["ada Pass@2k"]) == {"–"}  # there are not eight completions
    row = pick(frame, arm="one", seed=MEAN, measure="pass", model="ada", k=1)
    low, high = (f"{100 * row[end]:.1f}" for end in ("seed_min", "seed_max"))
    cell = levels.shown.filter(k="1", arm="one")["ada Pass@k"][0]
    assert cell.startswith(f"{100 * row['estimate']:.1f} [")
    assert cell.endswith(f"({low}–{high})")
    assert "base: untrained, seeds 1, 2 of /nowhere/sweep" in levels.notes
    assert "one: after iteration 2, seeds 1, 2 of /nowhere/sweep" in levels.notes
    assert "protocol.rescue_samples: 1 in one, 0 in two" in levels.notes
    assert errors.shown["arm"].to_list() == [BASE, "one", "two"]
    assert [text == "–" for text in errors.shown["rescue uplift"]] == [True, False, True]
    assert "two: no hinted rescue completions" in errors.notes


def test_models_before_training_are_named_by_their_warm_up() -> None:
    rng = np.random.default_rng(4)
    runs = [data(s, *(held_out(rng.integers(0, 5, (2, 20)), i) for i in (0, 2))) for s in (1, 2)]
    warm = []
    for own in runs:
        assert own.config is not None
        ada, bob = own.config.team
        team = (
            ada.model_copy(update={"warmup": WarmupSection.model_construct(problems=own.config.problems.train)}),
            bob,
        )
        warm.append(replace(own, config=own.config.model_copy(update={"team": team})))
    for chosen, expected in ((runs, "untrained"), (warm, "after the warm-up")):
        arms = arms_of({"one": chosen})
        assert f"base: {expected}, seeds 1, 2 of /nowhere/sweep" in arms_report(arms, arms_table(arms, ks=[1]))[0].notes


def test_figure_points() -> None:
    rng = np.random.default_rng(4)
    runs = [data(s, held_out(rng.integers(0, 5, (2, 20)), 0), held_out(rng.integers(0, 5, (2, 20)), 2)) for s in (1, 2)]
    frame = table({"one": runs}, ks=(1, 2, 4))
    points = arms_figure(frame).points
    # At k = 4 the matched budget of 8 completions is undefined.
    rows = [
        "team Pass@1, 2 candidates",
        "ada Pass@2, 2 candidates",
        "bob Pass@2, 2 candidates",
        "team Pass@2, 4 candidates",
    ]
    rows += ["ada Pass@4, 4 candidates", "bob Pass@4, 4 candidates", "team Pass@4, 8 candidates"]
    assert points["row"].unique(maintain_order=True).to_list() == rows
    own = pick(points, row="bob Pass@4, 4 candidates", arm="one", seed="2")
    c = runs[1].counts.filter(model="bob", iteration=2)["c"]
    assert own["estimate"] == pytest.approx((c > 0).mean())
    alone = counts_frame(4, rng.integers(0, 5, (1, 20)), models=("ada",), iteration=1)
    single = table({"one": [data(1, alone, models=("ada",))]}, ks=(1,))
    assert arms_figure(single).points["row"].unique().to_list() == ["ada Pass@1, 1 candidate"]
