"""How often intervals contain the truth with few problems, and where nearly all problems are solved.

    python -m tests.benchmarks.small_samples --out FILE

A study has 30 to 300 problems (AIME has 30) with 1 or 8 completions each. The chance that a
completion is correct has a beta distribution with a mean of 50, 90 or 99 %, in which many problems
are solved nearly always or never. B solves half of what A fails, or as much as A. In further studies,
of 100 to 1,000 problems with 8 completions, A never solves 0.2 to 2 % of the problems, while B solves
them, and all others are solved nearly always by both. The truth is that of the population of
problems, in closed form.

The figures are the level of A, and the difference B - A with the interval of
`analysis/stats/uncertainty.py`, with a percentile bootstrap, and with Student's t. A study in which
the interval has a width of 0 counts as one that does not contain the truth.

P(B > A) is right if B is better in as many studies as it states. For this, the effect of B is drawn
anew for each study, in both directions alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from analysis.stats.estimators import FloatArray
from analysis.stats.intervals import CONFIDENCE, share
from analysis.stats.student import t_quantile
from analysis.stats.uncertainty import of_differences
from tests.benchmarks.measure import measured, print_table, report

PROBLEMS, MEANS, SAMPLES, EFFECTS = (30, 100, 300), (0.5, 0.9, 0.99), (1, 8), (0.0, 0.5)
RARE = ((100, 0.02, 0.99), (300, 0.005, 0.999), (1000, 0.002, 0.999))
"""Problems, share of them that A never solves, chance that a completion of any other is correct."""
CONCENTRATION = 1.0
"""Sum of the parameters of the beta distribution: the smaller, the more extreme are the problems."""
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
DRAWS = 400
BINS = (0.0, 0.1, 0.3, 0.7, 0.9, 1.0)


def drawn(
    rng: np.random.Generator, num_problems: int, mean: float, samples: int, effect: float
) -> tuple[FloatArray, FloatArray]:
    """Shares of correct completions (P,) of A and of B. A negative effect makes A better than B."""
    chance = rng.beta(mean * CONCENTRATION, (1 - mean) * CONCENTRATION, num_problems)
    better = 1 - (1 - chance) * (1 - abs(effect))
    sides = (chance, better) if effect >= 0 else (better, chance)
    a, b = (rng.binomial(samples, side) / samples for side in sides)
    return a, b


def intervals(rng: np.random.Generator, a: FloatArray, b: FloatArray, samples: int) -> dict[str, tuple[float, float]]:
    """The intervals of one study."""
    level, change = share(a, samples_per_unit=samples), b - a
    assert level.low is not None
    assert level.high is not None
    bootstrap = change[rng.integers(0, len(change), (DRAWS, len(change)))].mean(axis=1)
    half = t_quantile(TAILS[1], len(change) - 1) * float(change.std(ddof=1)) / len(change) ** 0.5
    low, high = np.quantile(bootstrap, TAILS)
    return {
        "level": (level.low, level.high),
        "difference": of_differences(change[None]).interval(),
        "bootstrap": (float(low), float(high)),
        "t": (float(change.mean()) - half, float(change.mean()) + half),
    }


def coverage(
    *, num_problems: int, mean: float, samples: int, effect: float, num_studies: int, seed: int = 1
) -> dict[str, float]:
    """Percentage of studies whose intervals contain the truth, and the mean width of the difference in points."""
    rng = np.random.default_rng([seed, num_problems, round(1000 * mean), samples, round(10 * effect)])

    def study() -> tuple[FloatArray, FloatArray]:
        return drawn(rng, num_problems, mean, samples, effect)

    return _covered(rng, study, samples, num_studies, level=mean, difference=(1 - mean) * effect)


def rare_coverage(
    *, num_problems: int, lost: float, chance: float, samples: int, num_studies: int, seed: int = 1
) -> dict[str, float]:
    """The figures of `coverage`, where A never solves the share `lost` of problems, which B solves like all others."""
    rng = np.random.default_rng([seed, num_problems, round(10_000 * lost), samples])

    def study() -> tuple[FloatArray, FloatArray]:
        of_a = np.where(rng.random(num_problems) < lost, 0.0, chance)
        return rng.binomial(samples, of_a) / samples, rng.binomial(samples, chance, num_problems) / samples

    return _covered(rng, study, samples, num_studies, level=(1 - lost) * chance, difference=lost * chance)


def _covered(
    rng: np.random.Generator,
    study: Callable[[], tuple[FloatArray, FloatArray]],
    samples: int,
    num_studies: int,
    *,
    level: float,
    difference: float,
) -> dict[str, float]:
    truth = {"level": level}
    found: dict[str, list[bool]] = {}
    widths = []
    for _ in range(num_studies):
        for name, (low, high) in intervals(rng, *study(), samples).items():
            true = truth.get(name, difference)
            found.setdefault(name, []).append(low <= true <= high and high - low > 1e-12)
            widths += [high - low] if name == "difference" else []
    percent = {name: round(100 * float(np.mean(hits)), 1) for name, hits in found.items()}
    return {**percent, "width": round(100 * float(np.mean(widths)), 1)}


def calibration(*, num_problems: int, num_studies: int, seed: int = 1) -> dict[str, Any]:
    """For bins of P(B > A): its mean in percent, and in how many percent of the studies B is better."""
    rng = np.random.default_rng([seed, num_problems])
    chances, better = [], []
    for _ in range(num_studies):
        effect = float(rng.uniform(-0.3, 0.3))
        a, b = drawn(rng, num_problems, 0.6, 4, effect)
        chances.append(of_differences((b - a)[None]).chance_above())
        better.append(effect > 0)
    stated, true = np.array(chances), np.array(better)
    where = np.digitize(stated, BINS[1:-1])
    return {
        f"{BINS[i]:g} to {BINS[i + 1]:g}": {
            "stated_percent": round(100 * float(stated[where == i].mean()), 1),
            "true_percent": round(100 * float(true[where == i].mean()), 1),
            "studies": int((where == i).sum()),
        }
        for i in range(len(BINS) - 1)
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of all figures")
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    common = {"num_studies": options.studies, "seed": options.seed}
    with measured() as cost:
        figures = {
            f"{p} problems, {100 * mean:g} % solved, {n} samples, {'better' if effect else 'equal'}": coverage(
                num_problems=p, mean=mean, samples=n, effect=effect, **common
            )
            for p in PROBLEMS
            for mean in MEANS
            for n in SAMPLES
            for effect in EFFECTS
        }
        figures |= {
            f"{p} problems, {100 * lost:g} % solved by B only, 8 samples": rare_coverage(
                num_problems=p, lost=lost, chance=chance, samples=8, **common
            )
            for p, lost, chance in RARE
        }
        chances = {f"P(B > A), {p} problems": calibration(num_problems=p, **common) for p in PROBLEMS}
    settings = {"studies": options.studies, "seed": options.seed, "cost": cost.figures()}
    report(options.out, {**settings, "figures": figures, "chances": chances})
    lines = {
        name: "   ".join(f"{what} {value:5.1f}" for what, value in figure.items()) for name, figure in figures.items()
    }
    print_table(f"coverage of 95 % intervals in {options.studies} studies, in percent; width in points", lines)
    for name, bins in chances.items():
        print_table(
            name, {label: f"stated {b['stated_percent']} %, true {b['true_percent']} %" for label, b in bins.items()}
        )


if __name__ == "__main__":
    main()
