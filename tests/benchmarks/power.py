"""Whether the power that `python -m analysis plan` promises is the power of simulated comparisons.

    python -m tests.benchmarks.power --out FILE

A simulated comparison has two arms, S training seeds per arm, P problems and n completions per
problem. The probability that a completion is correct is a sum: the problem, an effect of the arm
that differs between problems, the seed of the arm, and the seed on this problem. All parts of the
variance are therefore known in closed form. A comparison finds a difference if the 95 % interval that
`python -m analysis compare` reports (`stats/uncertainty.py`) does not contain 0, that is, if p < 0.05.

For each design the benchmark compares the share of comparisons that find the smallest detectable
effect with the wanted 80 %, and the share that find an effect of 0 with 5 %. The second figure is
also one minus the coverage of the reported interval.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.stats.estimators import FloatArray, IntArray
from analysis.stats.power import ALPHA, POWER, Design, Parts, resolution
from analysis.stats.uncertainty import of_differences
from tests.benchmarks.measure import measured, print_table, report

DESIGNS = [
    Design(problems, samples, seeds)
    for seeds in (1, 2, 3, 5, 10)
    for problems, samples in ((100, 4), (200, 4), (1000, 1))
]


@dataclass(frozen=True, kw_only=True)
class World:
    """Standard deviations of the parts of the probability that a completion is correct."""

    difficulty: float = 0.08  # between problems, the same in both arms
    problem: float = 0.06  # of the effect between problems
    seed: float = 0.012  # between the seeds of an arm
    interaction: float = 0.04  # of a seed on a single problem

    @property
    def parts(self) -> Parts:
        """The parts of the variance of a difference, in closed form."""
        # E p (1 - p) of both arms, with mean 1/2: twice 1/4 - Var(p), and half of the effect in each arm.
        of_probability = self.difficulty**2 + self.problem**2 / 4 + self.seed**2 + self.interaction**2
        of_completion = 2 * (0.25 - of_probability)
        return Parts(
            problem=self.problem**2,
            seed=2 * self.seed**2,
            interaction=2 * self.interaction**2,
            sampling=lambda n: of_completion / n,
        )


def successes(rng: np.random.Generator, world: World, design: Design, effect: float) -> IntArray:
    """Draw the correct completions of a comparison: (2, S, P), arm by seed by problem.

    The distributions are uniform, so that no probability has to be cut at 0 or 1.
    """
    problems, samples, seeds = design
    level = 0.5 + _uniform(rng, world.difficulty, problems)
    half = (effect + _uniform(rng, world.problem, problems)) / 2
    arms = np.stack([level - half, level + half])[:, None, :]
    chance = arms + _uniform(rng, world.seed, (2, seeds, 1)) + _uniform(rng, world.interaction, (2, seeds, problems))
    assert chance.min() > 0
    assert chance.max() < 1
    return rng.binomial(samples, chance)


def _uniform(rng: np.random.Generator, deviation: float, shape: Any) -> FloatArray:
    half = deviation * np.sqrt(3)
    return rng.uniform(-half, half, shape)


def found(correct: IntArray, samples: int) -> tuple[bool, bool]:
    """Whether B minus A is found to be above 0, and below 0."""
    low, high = of_differences((correct[1] - correct[0]) / samples).interval(1 - ALPHA)
    return low > 0, high < 0


def compared(
    rng: np.random.Generator, world: World, design: Design, num_studies: int, *, other_seeds: bool = True
) -> dict[str, float]:
    """Compare promised and simulated power of a design, in percent.

    With one seed per arm the question is about these runs, so the seeds vary nothing.
    """
    if design.seeds == 1 or not other_seeds:
        world = World(difficulty=world.difficulty, problem=world.problem, seed=0.0, interaction=world.interaction)
    promised = resolution(world.parts, design)
    shares = {}
    for name, effect in (("power", promised.detectable), ("false", 0.0)):
        hits = np.array(
            [found(successes(rng, world, design, effect), design.samples) for _ in range(num_studies)], dtype=float
        )
        shares[name] = hits[:, 0].mean() if name == "power" else hits.sum(axis=1).mean()
    return {
        "detectable_points": round(100 * promised.detectable, 2),
        "power_percent": round(100 * shares["power"], 1),
        "false_percent": round(100 * shares["false"], 1),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of all figures")
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    with measured() as cost:
        figures = {
            f"{d.seeds} seeds, {d.problems} problems x {d.samples}": compared(rng, World(), d, options.studies)
            for d in DESIGNS
        }
    error = 100 * np.sqrt(POWER * (1 - POWER) / options.studies)
    settings = {"studies": options.studies, "seed": options.seed, "standard_error_percent": round(error, 2)}
    report(options.out, {**settings, "cost": cost.figures(), "figures": figures})
    title = f"{options.studies} studies; promised power {POWER:.0%}, false findings {ALPHA:.0%}"
    lines = {
        name: f"detects {f['detectable_points']:5.2f} points   power {f['power_percent']:5.1f} %   "
        f"false {f['false_percent']:4.1f} %"
        for name, f in figures.items()
    }
    print_table(title, lines)


if __name__ == "__main__":
    main()
