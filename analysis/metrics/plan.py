"""Plans of a comparison: what a design can find, and the cheapest design for a wanted effect.

The input is a `Pilot` (`metrics/pilot.py`) and lists of numbers of problems, completions and seeds.
The output is one tidy frame with a row per design (`PLAN_TABLE`), and a report table with the
cheapest design per number of seeds. The formulas are in `stats/power.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import polars as pl

from analysis.layout.tables import UNDEFINED, ReportTable, laid_out
from analysis.metrics.pilot import Pilot
from analysis.stats.power import ALPHA, POWER, Design, cheapest, power_for, resolution

PROBLEMS = (100, 200, 500, 1000, 2000)
SAMPLES = (1, 2, 4, 8, 16, 32)
SEEDS = (1, 2, 3, 5, 8, 10, 15, 20)
OTHER_SEEDS, THESE_RUNS = "other seeds", "these runs"
"""What a conclusion holds for; in both cases also for other problems."""

PLAN_TABLE = pl.Schema(
    {
        "problems": pl.Int64(),
        "samples": pl.Int64(),  # completions per problem and model
        "seeds": pl.Int64(),  # training runs per arm
        "covers": pl.String(),  # what the conclusion holds for: OTHER_SEEDS or THESE_RUNS
        "completions": pl.Int64(),  # sampled in both arms, for training and evaluation
        "standard_error": pl.Float64(),
        "detectable": pl.Float64(),  # smallest effect with the wanted power, a fraction; 1 if there is no smaller one
        "effect": pl.Float64(),  # the wanted effect; a fraction
        "power": pl.Float64(),  # for the wanted effect
        "share_problem": pl.Float64(),  # shares of the variance; null: the part is not covered
        "share_sampling": pl.Float64(),
        "share_interaction": pl.Float64(),
        "share_seed": pl.Float64(),
        "cheapest": pl.Boolean(),  # of all designs in the table that detect the wanted effect
    }
)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a comparison has to find."""

    effect: float  # a fraction
    alpha: float = ALPHA  # of the two-sided test
    power: float = POWER


def designs_of(
    pilot: Pilot,
    *,
    problems: Sequence[int] | None = None,
    samples: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Design]:
    """List the designs: every combination of the given numbers, or of the default ones.

    Designs with fewer completions than the figure needs are left out. The default numbers of
    problems include that of the pilot.
    """
    own = [] if pilot.num_problems is None else [pilot.num_problems]
    of_problems = sorted({*(problems or (*PROBLEMS, *own))})
    return [
        Design(*numbers)
        for numbers in product(of_problems, sorted({*(samples or SAMPLES)}), sorted({*(seeds or SEEDS)}))
        if numbers[1] >= pilot.k and numbers[0] >= 2
    ]


def completions_of(pilot: Pilot, design: Design) -> int:
    """Completions that both arms sample, in training and in one evaluation."""
    evaluated = design.problems * design.samples * pilot.num_models
    return 2 * design.seeds * (pilot.num_training + evaluated)


def plan_table(pilot: Pilot, designs: Sequence[Design], wanted: Wanted) -> pl.DataFrame:
    """Compute the resolution, the power and the cost of designs.

    Args:
        pilot: parts of the variance and cost of a training.
        designs: the designs.
        wanted: effect, level and power.

    Returns:
        A frame with the schema `PLAN_TABLE`, one row per design. If the variance over seeds is
        known, only designs with several seeds can be the cheapest, because one seed per arm shows
        nothing about other seeds.
    """
    rows: list[dict[str, Any]] = []
    for design in designs:
        found = resolution(pilot.parts, design, alpha=wanted.alpha, power=wanted.power)
        parts, covers_seeds = pilot.parts.shares(design), pilot.parts.covers_seeds(design)
        total = sum(parts.values())
        shares = {f"share_{name}": part / total if total else None for name, part in parts.items()}
        rows.append(
            {
                **design._asdict(),
                "covers": OTHER_SEEDS if covers_seeds else THESE_RUNS,
                "completions": completions_of(pilot, design),
                "standard_error": found.standard_error,
                "detectable": found.detectable,
                "effect": wanted.effect,
                "power": power_for(pilot.parts, design, wanted.effect, alpha=wanted.alpha),
                **shares,
                **({} if covers_seeds else {"share_seed": None}),
                "cheapest": False,
            }
        )
    wide = [i for i, row in enumerate(rows) if row["covers"] == OTHER_SEEDS or pilot.parts.seed is None]
    best = cheapest([(rows[i]["completions"], rows[i]["detectable"]) for i in wide], wanted.effect)
    if best is not None:
        rows[wide[best]]["cheapest"] = True
    return pl.DataFrame(rows, schema=PLAN_TABLE)


def plan_report(pilot: Pilot, frame: pl.DataFrame, wanted: Wanted) -> ReportTable:
    """Format a plan: for each number of seeds, the cheapest design that finds the effect.

    Where no design of this number of seeds is enough, the one with the best resolution is shown.
    """
    rows: list[list[object]] = []
    best: set[tuple[int, str]] = set()
    for (seeds,), part in sorted(frame.partition_by("seeds", as_dict=True).items()):
        enough = part.filter(pl.col("detectable") <= wanted.effect).sort("completions", "detectable")
        row = (enough if enough.height else part.sort("detectable", "completions")).row(0, named=True)
        if row["cheapest"]:
            best.add((len(rows), "completions"))
        rows.append(
            [
                seeds,
                row["problems"],
                row["samples"],
                row["covers"],
                f"{row['completions']:,}",
                f"{100 * row['detectable']:.1f}",
                f"{100 * row['power']:.0f}",
                " / ".join(
                    UNDEFINED if row[f"share_{p}"] is None else f"{100 * row[f'share_{p}']:.0f}" for p in _PARTS
                ),
            ]
        )
    percent = f"{100 * wanted.effect:g}"
    columns = [
        "seeds per arm",
        "problems",
        "completions per problem",
        "holds for",
        "completions",
        "detectable (points)",
        f"power for {percent} points (%)",
        "% of variance",
    ]
    title = f"Designs that find a difference of {percent} points in {pilot.figure}"
    shown = laid_out(columns, rows)
    return ReportTable("plan", title, frame, shown, _notes(pilot, wanted, found=bool(best)), best=best)


def resolution_report(pilot: Pilot) -> ReportTable:
    """Format what comparisons of the size of the pilot, and of larger sizes, can find.

    The rows have the problems of the pilot, and twice and four times as many, with 1, 4 and 16
    completions each. There is one seed per arm, because one run shows nothing about other seeds.
    """
    sizes = [pilot.num_problems * factor for factor in (1, 2, 4)] if pilot.num_problems else list(PROBLEMS)
    numbers = sorted({max(pilot.k, n) for n in (1, 4, 16)})
    frame = plan_table(pilot, designs_of(pilot, problems=sizes, samples=numbers, seeds=[1]), Wanted(effect=0.03))
    shown = [
        [
            row["problems"],
            row["samples"],
            f"{100 * row['detectable']:.1f}",
            f"{100 * row['share_problem']:.0f}",
            f"{100 * row['share_sampling']:.0f}",
        ]
        for row in frame.iter_rows(named=True)
        if row["share_problem"] is not None
    ]
    columns = ["problems", "completions per problem", "detectable (points)"]
    columns += ["problems (% of variance)", "sampling (% of variance)"]
    notes = [
        f"smallest difference in {pilot.figure} between two runs that is found with {POWER:.0%} power at {ALPHA:.0%}",
        "for these two runs only: one run does not show the variation over seeds; use: python -m analysis plan",
        *pilot.notes[:-1],
    ]
    title = f"What a comparison of two runs can find ({pilot.figure})"
    return ReportTable("resolution", title, frame, laid_out(columns, shown), notes)


_PARTS = ("problem", "sampling", "interaction", "seed")


def _notes(pilot: Pilot, wanted: Wanted, *, found: bool) -> list[str]:
    parts = pilot.parts
    seed = UNDEFINED if parts.seed is None else f"{100 * parts.seed**0.5:.1f}"
    first = pilot.k if pilot.k > 1 else 1
    deviations = (
        f"standard deviation of the difference, in points: {100 * parts.problem**0.5:.1f} over problems, "
        f"{100 * parts.sampling(first) ** 0.5:.1f} by sampling {first} per problem, "
        f"{100 * parts.interaction**0.5:.1f} by the seed on a single problem, {seed} over seeds"
    )
    cost = (
        f"completions: both arms, evaluation and training ({pilot.num_training:,} per run)"
        if pilot.num_training
        else "completions: evaluation of both arms; training is not counted"
    )
    return [
        f"detectable: smallest difference that is found with {wanted.power:.0%} power, two-sided at {wanted.alpha:.0%}",
        *([] if found else ["no design of the table finds the wanted difference for what it has to hold for"]),
        "% of variance: from problems / sampling / what a seed changes on a single problem / seeds",
        deviations,
        cost,
        *pilot.notes,
    ]
