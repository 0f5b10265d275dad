"""Power and plans against scipy, exact enumeration, and simulated comparisons and pilots.

The power is that of the reported test. `analysis/stats/power.py` integrates it; the tests draw it.
"""

from __future__ import annotations

from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis.__main__ import main
from analysis.counts.load import RunData
from analysis.metrics.pilot import pilot_of_rates, pilot_of_runs
from analysis.metrics.plan import OTHER_SEEDS, THESE_RUNS, Wanted, completions_of, designs_of, plan_report, plan_table
from analysis.stats.power import Design, Parts, cheapest, planned_sampling_variance, power_for, resolution
from analysis.stats.student import t_quantile, t_quantiles
from analysis.stats.uncertainty import of_differences
from core_hpc.common.errors import InputError
from tests.benchmarks.power import World, compared
from tests.support.analysis_data import config, counts_frame
from tests.support.report_data import full_run

# --- Student's t ---------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [1, 1.4, 2, 3.3, 9, 60.5, 1e4])
def test_t_against_scipy(df: float) -> None:
    for share in (0.5, 0.9, 0.975, 0.9995):
        assert t_quantile(share, df) == pytest.approx(stats.t.ppf(share, df), rel=1e-9, abs=1e-12)
        assert t_quantiles(share, np.array([df, 5.0]))[0] == t_quantile(share, df)


# --- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "num_samples"), [(1, 1), (1, 3), (2, 2), (2, 5)])
def test_sampling_variance_is_unbiased(k: int, num_samples: int) -> None:
    """Enumerates the results of a pilot of two models, and those of the design."""
    p, pilot_n = (0.3, 0.8), 5

    def chance(c: int, n: int, m: int) -> float:
        return comb(n, c) * p[m] ** c * (1 - p[m]) ** (n - c)

    def fails(c: int) -> float:
        return comb(num_samples - c, k) / comb(num_samples, k)

    results = [(a, b) for a in range(num_samples + 1) for b in range(num_samples + 1)]
    weights = np.array([chance(a, num_samples, 0) * chance(b, num_samples, 1) for a, b in results])
    values = np.array([1 - fails(a) * fails(b) for a, b in results])
    variance = (weights * values**2).sum() - (weights * values).sum() ** 2
    mean = 0.0
    for a in range(pilot_n + 1):
        for b in range(pilot_n + 1):
            found = planned_sampling_variance(np.full((2, 1), pilot_n), np.array([[a], [b]]), k, num_samples)[0]
            mean += chance(a, pilot_n, 0) * chance(b, pilot_n, 1) * found
    assert mean == pytest.approx(variance, abs=1e-12)


# --- power ---------------------------------------------------------------------------------------


def test_without_seeds_it_is_nearly_the_power_of_a_paired_t_test() -> None:
    """With many problems, the two pseudo-problems of the reported test have no weight."""
    parts = Parts(problem=0.09, seed=None, interaction=0.0, sampling=lambda n: 0.2 / n)
    design = Design(20_000, 4, 1)
    found = resolution(parts, design)
    error = np.sqrt((0.09 + 0.05) / 20_000)
    assert found.standard_error == pytest.approx(error)
    for effect, alpha in ((0.0, 0.05), (0.004, 0.05), (-0.008, 0.05), (0.004, 0.2), (-0.008, 0.001)):
        exact = stats.nct.sf(stats.t.ppf(1 - alpha / 2, 19_999), 19_999, abs(effect) / error)
        assert power_for(parts, design, effect, alpha=alpha) == pytest.approx(exact, abs=2e-3)
    # Miller 2024, section 5: n = (z_a + z_b)^2 (omega^2 + sigma^2 / K) / delta^2.
    n = (1.959964 + 0.841621) ** 2 * (0.09 + 0.05) / found.detectable**2
    assert n == pytest.approx(20_000, rel=0.005)


def drawn_power(parts: Parts, design: Design, effect: float, num_studies: int) -> float:
    """Share of simulated comparisons with normal parts that have p < 0.05 and the right direction."""
    rng = np.random.default_rng(design.seeds)
    problems, samples, seeds = design
    on_one = np.sqrt(parts.interaction + parts.sampling(samples))
    found = 0
    for _ in range(num_studies):
        values = effect + rng.normal(0, np.sqrt(parts.problem), problems)
        values = values + rng.normal(0, np.sqrt(parts.seed or 0.0), (seeds, 1))
        known = of_differences(values + rng.normal(0, on_one, (seeds, problems)))
        found += known.p_value() < 0.05 and known.estimate > 0
    return found / num_studies


@pytest.mark.parametrize("seeds", [1, 2, 3, 5, 10])
def test_the_power_is_that_of_the_reported_test(seeds: int) -> None:
    """600 comparisons with normal parts; the standard error of the power is 1.6 %."""
    parts = Parts(problem=0.02, seed=2 * 0.01**2, interaction=0.01, sampling=lambda n: 0.3 / n)
    design = Design(100, 8, seeds)
    if seeds == 1:
        parts = Parts(problem=0.02, seed=None, interaction=0.01, sampling=parts.sampling)
    detectable = resolution(parts, design).detectable
    assert power_for(parts, design, detectable) == pytest.approx(0.8, abs=2e-3)
    assert drawn_power(parts, design, detectable, 600) == pytest.approx(0.8, abs=0.05)
    other = power_for(parts, design, 0.03)
    assert drawn_power(parts, design, 0.03, 600) == pytest.approx(other, abs=0.06)


def test_where_seeds_are_all_the_variance_it_is_the_t_test_over_seeds() -> None:
    parts = Parts(problem=0.0, seed=0.02**2, interaction=0.0, sampling=lambda n: 1e-9)
    for seeds in (2, 3, 8):
        design = Design(50_000, 4, seeds)
        for effect, alpha in ((0.02, 0.05), (0.06, 0.05), (0.06, 0.2)):
            shift = effect / np.sqrt(0.02**2 / seeds)
            exact = stats.nct.sf(stats.t.ppf(1 - alpha / 2, seeds - 1), seeds - 1, shift)
            assert power_for(parts, design, effect, alpha=alpha) == pytest.approx(exact, abs=2e-3)


def test_an_effect_that_cannot_be_found_is_1() -> None:
    """Two problems that both get better by 1 prove nothing."""
    parts = Parts(problem=0.01, seed=None, interaction=0.0, sampling=lambda n: 0.1 / n)
    assert resolution(parts, Design(2, 4, 1)).detectable == 1
    assert of_differences(np.ones((1, 2))).p_value() > 0.05


@pytest.mark.parametrize("design", [Design(100, 4, 1), Design(100, 4, 2), Design(100, 4, 3), Design(60, 2, 6)])
def test_promised_power_is_that_of_simulated_comparisons(design: Design) -> None:
    """500 comparisons; the standard error of the power is 1.8 %. `tests/benchmarks/power.py` has more."""
    found = compared(np.random.default_rng(design.seeds), World(), design, 500)
    assert found["power_percent"] == pytest.approx(80, abs=6)
    assert found["false_percent"] == pytest.approx(4, abs=3)


def test_more_of_everything_finds_smaller_effects() -> None:
    parts = World().parts
    base = resolution(parts, Design(200, 4, 5)).detectable
    assert resolution(parts, Design(400, 4, 5)).detectable < base
    assert resolution(parts, Design(200, 8, 5)).detectable < base
    assert resolution(parts, Design(200, 4, 10)).detectable < base


def test_of_equally_cheap_designs_the_one_that_finds_more_is_chosen() -> None:
    assert cheapest([(20, 0.01), (10, 0.04), (10, 0.03), (5, 0.1)], 0.05) == 2
    assert cheapest([(1, 0.1)], 0.05) is None


# --- pilots --------------------------------------------------------------------------------------


def runs_of(rng: np.random.Generator, chances: Any, n: int, *, before: Any = None) -> list[RunData]:
    """One run per seed, with the counts of one model. chances: (S, P)."""
    runs = []
    for seed, chance in enumerate(np.atleast_2d(chances)):
        frames = [counts_frame(n, rng.binomial(n, chance)[None], models=("ada",), iteration=2)]
        if before is not None:
            frames.append(counts_frame(n, rng.binomial(n, before)[None], models=("ada",), iteration=0))
        own = config(seed=seed, team=[{"name": "ada", "model": "fake:any", "engine": "fake"}])
        own_run = RunData(Path(f"run-{seed}"), own, ["ada"], pl.concat(frames), pl.DataFrame())
        runs.append(own_run)
    return runs


def world_chances(rng: np.random.Generator, num_seeds: int, num_problems: int) -> Any:
    """(2, S, P) chances of two arms with known parts of the variance of their difference."""
    level, effect = rng.uniform(0.35, 0.65, num_problems), rng.uniform(-0.1, 0.1, num_problems)
    arms = np.stack([level - effect / 2, level + effect / 2])[:, None, :]
    return arms + rng.uniform(-0.05, 0.05, (2, num_seeds, 1)) + rng.uniform(-0.08, 0.08, (2, num_seeds, num_problems))


def test_a_pilot_of_two_arms_finds_the_parts() -> None:
    """Means of 6 large pilots against the variances of the uniform distributions."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(6):
        a, b = world_chances(rng, 20, 500)
        parts = pilot_of_runs(runs_of(rng, a, 8), runs_of(rng, b, 8), model="ada").parts
        assert parts.seed is not None
        found.append((parts.problem, parts.seed, parts.interaction, parts.sampling(1)))
    problem, seed, interaction, sampling = np.mean(found, axis=0)
    assert problem == pytest.approx(0.2**2 / 12, rel=0.25)
    assert seed == pytest.approx(2 * 0.1**2 / 12, rel=0.25)
    assert interaction == pytest.approx(2 * 0.16**2 / 12, rel=0.25)
    mean_square = 0.25 + 0.3**2 / 12 + 0.2**2 / 12 / 4 + 0.1**2 / 12 + 0.16**2 / 12
    assert sampling == pytest.approx(2 * (0.5 - mean_square), rel=0.02)


def test_a_pilot_of_one_run_uses_the_change_by_training() -> None:
    rng = np.random.default_rng(8)
    before = rng.uniform(0.3, 0.7, 3000)
    change = rng.uniform(-0.2, 0.2, 3000)
    pilot = pilot_of_runs(runs_of(rng, before + change, 4, before=before), model="ada")
    assert pilot.parts.problem == pytest.approx(0.4**2 / 12, rel=0.15)
    assert pilot.parts.seed is None
    assert "change by training" in " ".join(pilot.notes)
    alone = pilot_of_runs(runs_of(rng, before, 16), model="ada", correlation=0.75, seed_sd=0.01)
    assert alone.parts.problem == pytest.approx(2 * 0.25 * 0.4**2 / 12, rel=0.15)
    assert alone.parts.seed == pytest.approx(2 * 0.01**2)
    several = pilot_of_runs(runs_of(rng, [before + s for s in (-0.05, 0.0, 0.05)], 4), model="ada")
    assert several.parts.seed == pytest.approx(2 * 0.05**2, rel=0.2)


def test_pilots_that_cannot_be_used() -> None:
    rng = np.random.default_rng(9)
    runs = runs_of(rng, np.full((1, 20), 0.5), 3)
    with pytest.raises(InputError, match="needs at least 4"):
        pilot_of_runs(runs, k=2, model="ada")
    with pytest.raises(InputError, match="has no model 'cyd'"):
        pilot_of_runs(runs, model="cyd")
    with pytest.raises(InputError, match="out of range"):
        pilot_of_rates(1.2)


# --- plans ---------------------------------------------------------------------------------------


def test_the_cheapest_design_is_that_of_a_search_by_hand() -> None:
    pilot = pilot_of_rates(0.6, seed_sd=0.01)
    designs = designs_of(pilot, problems=[100, 500], samples=[1, 8], seeds=[1, 3, 10])
    frame = plan_table(pilot, designs, Wanted(effect=0.03))
    assert frame.height == 12
    best = None
    for problems, samples, seeds in designs:
        variance = 2 * 0.7 * 0.24 * 0.1 / problems + 2 * 0.3 * 0.24 / (samples * seeds * problems)
        variance += 2 * 0.01**2 / seeds if seeds > 1 else 0
        row = frame.row(
            by_predicate=(pl.col("problems") == problems) & (pl.col("samples") == samples) & (pl.col("seeds") == seeds),
            named=True,
        )
        assert row["standard_error"] == pytest.approx(np.sqrt(variance))
        assert row["completions"] == 2 * seeds * problems * samples
        assert row["covers"] == (OTHER_SEEDS if seeds > 1 else THESE_RUNS)
        if seeds > 1 and row["power"] >= 0.8 and (best is None or row["completions"] < best["completions"]):
            best = row
    assert best is not None
    assert frame.filter("cheapest").rows(named=True) == [{**best, "cheapest": True}]
    shares = frame.filter(seeds=10).select(pl.sum_horizontal(r"^share_.*$"))
    assert shares.to_series().to_list() == pytest.approx([1.0] * 4)
    table = plan_report(pilot, frame, Wanted(effect=0.03))
    assert table.shown["seeds per arm"].to_list() == ["1", "3", "10"]
    assert len(table.best) == 1


def test_training_and_models_count_in_the_cost(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    (run,) = runs_of(rng, np.full((1, 20), 0.5), 4)
    cold = counts_frame(6, [[3] * 5], models=("ada",), phase="cold", iteration=1)
    trained = RunData(run.path, run.config, run.models, pl.concat([run.counts, cold]), run.answers)
    pilot = pilot_of_runs([trained], model="ada")
    assert completions_of(pilot, Design(20, 4, 3)) == 2 * 3 * (30 + 80)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--rate", "60", "--seed-sd", "1", "--effect", "3", "--format", "csv"]) == 0
    frame = pl.read_csv(capsys.readouterr().out.encode())
    assert frame.filter("cheapest").height == 1
    run = full_run(tmp_path / "run")
    assert main(["plan", "--base", str(run), "--format", "latex"]) == 0
    assert r"\begin{table}" in capsys.readouterr().out
    assert main(["plan", "--base", str(run), "--effect", "20"]) == 0
    assert "the seeds' part is unknown" in capsys.readouterr().out
    for wrong in (["plan"], ["plan", "--rate", "60", "--base", "x"], ["plan", "--rate", "60", "--power", "2"]):
        assert main(wrong) == 2
        assert capsys.readouterr().err
