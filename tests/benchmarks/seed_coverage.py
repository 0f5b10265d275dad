"""How often the interval over problems and seeds contains the true difference, in simulated studies.

    python -m tests.benchmarks.seed_coverage --out FILE

A study compares two configurations, A and B. Each has runs with 2 to 10 seeds, which are evaluated
on the same 100 to 1,000 problems with 8 completions. On the scale of log odds, a completion is
correct with the difficulty of the problem, plus the effect of B on this problem, plus the effect of
the run (its seed), plus an effect of the run on this problem. The true difference is the mean over
all problems and all seeds. A world fixes the sizes of these effects; in one of them seeds have no
effect at all.

The method of `analysis/stats/uncertainty.py` is compared with those that were not chosen. The same
method for the mean level of A (tables `arms`, `rank` and `learning`) is measured in the same studies.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.stats.estimators import FloatArray, pass_at_k
from analysis.stats.intervals import CONFIDENCE, share
from analysis.stats.student import t_quantile
from analysis.stats.uncertainty import Uncertainty, mean_over_seeds, of_differences, problems_alone
from tests.benchmarks.measure import measured, print_table, report

SEEDS, PROBLEMS, SAMPLES = (2, 3, 5, 10), (100, 200, 1000), 8
LOWEST_PERCENT, HIGHEST_PERCENT = 93.0, 97.0
BOOTSTRAP_DRAWS, BOOTSTRAP_STUDIES = 400, 200
CHOSEN, LEVEL = "chosen", "level of A"


@dataclass(frozen=True, kw_only=True)
class World:
    """Sizes of the effects: standard deviations on the scale of log odds."""

    difficulty: float = 2.0
    effect: float = 0.3  # mean effect of B
    effect_sd: float = 0.4  # between problems
    seed_sd: float  # between runs
    interaction_sd: float  # of a run, between problems


WORLDS = {
    "no seed effect": World(seed_sd=0.0, interaction_sd=0.0),
    "seeds help on different problems": World(seed_sd=0.0, interaction_sd=0.7),
    "small seed effect": World(seed_sd=0.1, interaction_sd=0.4),
    "large seed effect": World(seed_sd=0.4, interaction_sd=0.4),
    "only sampling": World(effect=0.0, effect_sd=0.0, seed_sd=0.0, interaction_sd=0.0),
}


def _chances(rng: np.random.Generator, world: World, num_seeds: int, num_problems: int) -> FloatArray:
    """Chances (2, S, P) that a completion is correct, for A and B."""
    difficulty = rng.normal(0, world.difficulty, num_problems)
    effect = rng.normal(world.effect, world.effect_sd, num_problems)
    runs = rng.normal(0, world.seed_sd, (2, num_seeds, 1))
    odds = difficulty + runs + rng.normal(0, world.interaction_sd, (2, num_seeds, num_problems))
    odds[1] += effect
    return 1 / (1 + np.exp(-odds))


def truth(rng: np.random.Generator, world: World, k: int, size: int) -> tuple[float, float]:
    """The true difference and level of A of Pass@k: means over `size` problems, each with a run of its own."""
    difficulty = rng.normal(0, world.difficulty, size)
    effect = rng.normal(world.effect, world.effect_sd, size)
    spread = float(np.hypot(world.seed_sd, world.interaction_sd))
    a, b = (1 / (1 + np.exp(-(difficulty + own + rng.normal(0, spread, size)))) for own in (0.0, effect))
    return float(((1 - a) ** k - (1 - b) ** k).mean()), float((1 - (1 - a) ** k).mean())


def study(
    rng: np.random.Generator, world: World, k: int, num_seeds: int, num_problems: int
) -> tuple[FloatArray, FloatArray]:
    """The Pass@k (S, P) of A and of B in one study."""
    chances = _chances(rng, world, num_seeds, num_problems)
    a, b = (pass_at_k(np.full(c.shape, SAMPLES), c, k) for c in rng.binomial(SAMPLES, chances))
    return a, b


# --- methods -------------------------------------------------------------------------------------

TAIL = (1 + CONFIDENCE) / 2
Interval = tuple[float, float]


def _around(u: Uncertainty, half: float) -> Interval:
    return u.estimate - half, u.estimate + half


def _problems(u: Uncertainty) -> float:
    return float(problems_alone(np.array((u.below + u.above) / 2), u.rest, u.df))


def _satterthwaite(u: Uncertainty, values: FloatArray) -> Interval:
    problems, own = _problems(u), len(values) - 1
    df = (problems + u.seeds) ** 2 / (problems**2 / u.df + u.seeds**2 / own)
    return _around(u, t_quantile(TAIL, df) * float(np.sqrt(problems + u.seeds)))


def _sum_of_squares(u: Uncertainty, values: FloatArray) -> Interval:
    problems = _problems(u)
    square = t_quantile(TAIL, u.df) ** 2 * problems + t_quantile(TAIL, len(values) - 1) ** 2 * u.seeds
    return _around(u, float(np.sqrt(square)))


def _over_seeds_only(u: Uncertainty, values: FloatArray) -> Interval:
    return _around(u, t_quantile(TAIL, len(values) - 1) * float(np.sqrt(u.seeds)))


def _two_way_bootstrap(u: Uncertainty, values: FloatArray) -> Interval:
    """Problems and seeds are drawn with replacement, independently (Owen 2007)."""
    rng, (num_seeds, num_problems) = np.random.default_rng(1), values.shape
    seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), BOOTSTRAP_DRAWS) / num_seeds
    problems = rng.multinomial(num_problems, np.full(num_problems, 1 / num_problems), BOOTSTRAP_DRAWS) / num_problems
    low, high = np.quantile(((problems @ values.T) * seeds).sum(axis=1), (1 - TAIL, TAIL))
    return float(low), float(high)


METHODS: dict[str, Callable[[Uncertainty, FloatArray], Interval]] = {
    CHOSEN: lambda u, values: u.interval(),
    "over problems only": lambda u, values: u.given_seeds.interval(),
    "over seeds only (t)": _over_seeds_only,
    "Satterthwaite": _satterthwaite,
    "sum of squared half-widths": _sum_of_squares,
    "two-way bootstrap": _two_way_bootstrap,
}


def level_interval(values: FloatArray) -> Interval:
    """The interval of the mean level of (S, P) Pass@k over problems and seeds."""
    of_seeds = [share(own, samples_per_unit=SAMPLES) for own in values]
    whole = mean_over_seeds(share(values.mean(axis=0), samples_per_unit=SAMPLES * len(values)), of_seeds)
    assert whole is not None
    assert whole.low is not None
    assert whole.high is not None
    return whole.low, whole.high


def coverage(
    world: World,
    *,
    num_seeds: int,
    num_problems: int,
    num_studies: int,
    seed: int,
    k: int = 1,
    methods: tuple[str, ...] = (CHOSEN,),
    population: int = 1_000_000,
) -> dict[str, float]:
    """Percentage of simulated studies in which the interval of each method contains the true difference.

    LEVEL is a further name in `methods`: the interval of the mean level of A.
    """
    rng = np.random.default_rng([seed, num_seeds, num_problems, k])
    true, true_level = truth(rng, world, k, population)
    found: dict[str, list[bool]] = {name: [] for name in methods}
    for i in range(num_studies):
        a, b = study(rng, world, k, num_seeds, num_problems)
        values = b - a
        known = of_differences(values)
        for name in methods:
            if name == LEVEL:
                low, high = level_interval(a)
                found[name].append(low <= true_level <= high)
            elif name != "two-way bootstrap" or i < BOOTSTRAP_STUDIES:
                low, high = METHODS[name](known, values)
                found[name].append(low <= true <= high)
    return {name: round(100 * float(np.mean(hits)), 1) for name, hits in found.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of all figures")
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--k", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with measured() as cost:
        for name, world in WORLDS.items():
            for num_seeds in SEEDS:
                for num_problems in PROBLEMS:
                    figures[f"{name}, {num_seeds} seeds x {num_problems} problems"] = coverage(
                        world,
                        num_seeds=num_seeds,
                        num_problems=num_problems,
                        num_studies=options.studies,
                        seed=options.seed,
                        k=options.k,
                        methods=(*METHODS, LEVEL),
                    )
    error = 100 * np.sqrt(0.05 * 0.95 / options.studies)
    settings = {"studies": options.studies, "samples": SAMPLES, "k": options.k, "seed": options.seed}
    target = {"target_percent": [LOWEST_PERCENT, HIGHEST_PERCENT], "standard_error_percent": round(error, 2)}
    report(options.out, {**settings, **target, "cost": cost.figures(), "figures": figures})
    title = f"coverage of 95 % intervals in {options.studies} studies, in percent; standard error {error:.1f}"
    print_table(title, {name: _line(figure) for name, figure in figures.items()})
    for method in (*METHODS, LEVEL):
        shares = [figure[method] for figure in figures.values()]
        print(f"{method}: {min(shares)} to {max(shares)} %")


def _line(figure: dict[str, float]) -> str:
    missed = not LOWEST_PERCENT <= figure[CHOSEN] <= HIGHEST_PERCENT
    return "   ".join(f"{name} {share:5.1f}" for name, share in figure.items()) + ("   OUTSIDE" if missed else "")


if __name__ == "__main__":
    main()
