"""What the declared comparison of a sweep can find, before any run.

In: a sweep with `analysis.primary`, and the number of held-out problems of its runs. Out: the
smallest difference that its design detects. The formulas are those of `python -m analysis plan`,
with its assumptions about what is not measured yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from analysis.metrics.pilot import CORRELATION, SPREAD, pilot_of_rates
from analysis.stats.power import POWER, Design, resolution
from core_hpc.runs.arms import names_of_arm
from core_hpc.runs.sweep import Sweep

RATE = 0.5
"""Assumed Pass@1 of an arm. At this value a comparison finds the least."""
SEED_SD = 0.01
"""Assumed standard deviation over seeds of the figure of an arm: 1 point."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A planned comparison. Shares are between 0 and 1."""

    arms: tuple[str, str]
    metric: str
    problems: int
    samples: int
    seeds: int
    """Runs of the arm that has fewer of them in this sweep file."""
    other_file: str | None
    """An arm that is another sweep file, which is taken to have as many seeds."""
    detectable: float
    """Smallest difference that is found with `POWER`."""
    margin: float

    def __str__(self) -> str:
        first, second = self.arms
        covers = f"a standard deviation of {100 * SEED_SD:g} point over seeds" if self.seeds > 1 else "these seeds only"
        other = f" (as many for {self.other_file}, which is another file)" if self.other_file else ""
        text = (
            f"{first} - {second} in {self.metric}, with {self.problems} held-out problems, {self.samples} completions "
            f"and {self.seeds} seed(s) per arm{other}: finds a difference of {100 * self.detectable:.1f} points with "
            f"{POWER:.0%} power. Assumed: Pass@1 of {RATE:.0%}, {SPREAD:.0%} of its variance between problems, "
            f"correlation {CORRELATION:g} of the arms, {covers}. With a pilot: python -m analysis plan --base PILOT"
        )
        if self.seeds == 1:
            text += ". One seed per arm shows nothing about other seeds: add `grid: {seed: [1, 2, 3, 4, 5]}`"
        elif self.detectable > self.margin:
            text += f". That is more than the margin of {100 * self.margin:g} points (analysis.margin)"
        return text


def comparison_of(sweep: Sweep, held_out: Mapping[str, int]) -> Comparison | None:
    """The declared comparison of a sweep, or None if it declares none or both arms are other files.

    Args:
        sweep: the sweep.
        held_out: number of held-out problems by run.
    """
    first = sweep.runs[0].config
    primary = first.analysis.primary
    if primary is None:
        return None
    counts = {arm: sum(arm in names_of_arm(sweep.name, run.label) for run in sweep.runs) for arm in primary.arms}
    here = {arm: number for arm, number in counts.items() if number}
    if not here:
        return None
    seeds = min(here.values())
    others = [arm for arm in primary.arms if arm not in here]
    problems, samples = min(held_out.values()), min(run.config.evaluation.samples for run in sweep.runs)
    pilot = pilot_of_rates(RATE, seed_sd=SEED_SD)
    found = resolution(pilot.parts, Design(max(problems, 2), samples, seeds))
    return Comparison(
        arms=primary.arms,
        metric=primary.metric,
        problems=problems,
        samples=samples,
        seeds=seeds,
        other_file=others[0] if others else None,
        detectable=found.detectable,
        margin=first.analysis.margin,
    )
