"""The commands `plan` and `learning`: their options, and the tables that they print.

The input is parsed arguments and a function that loads runs. The output is `ReportTable`s. All
numbers are computed in `metrics/plan.py`, `metrics/pilot.py` and `metrics/learning.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from analysis.counts.load import RunData
from analysis.layout.tables import ReportTable
from analysis.metrics.learning import LEARNING_TABLE, learning_report, learning_table
from analysis.metrics.pairs import check_same_problems, when
from analysis.metrics.passk import TEAM, default_ks
from analysis.metrics.pilot import CORRELATION, SPREAD, pilot_of_rates, pilot_of_runs
from analysis.metrics.plan import Wanted, designs_of, plan_report, plan_table
from analysis.stats.power import ALPHA, POWER
from core_hpc.common.errors import InputError
from core_hpc.runs.names import folder_names

Load = Callable[[Sequence[Path]], list[RunData]]
"""Loads the runs of run and sweep folders."""


def add_plan_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of the command `plan`."""
    pilot = sub.add_argument_group("what is known: a pilot, or rates")
    runs = "run folder, or sweep folder whose runs differ in their seeds only"
    pilot.add_argument("--base", nargs="+", type=Path, metavar="RUN", help=f"{runs}: one arm")
    pilot.add_argument("--against", nargs="+", type=Path, metavar="RUN", help=f"{runs}: the other arm, if there is one")
    pilot.add_argument("--k", type=int, default=1, metavar="K", help="completions per model; default: %(default)s")
    pilot.add_argument("--model", default=TEAM, help="a model, or %(default)s (default) for team Pass@k")
    pilot.add_argument("--rate", type=float, metavar="PERCENT", help="Pass@1 of an arm, instead of --base")
    pilot.add_argument(
        "--spread",
        type=float,
        default=SPREAD,
        help="with --rate: share of the variance of a completion that is between problems; default: %(default)s",
    )
    pilot.add_argument(
        "--correlation",
        type=float,
        default=CORRELATION,
        help="correlation between the arms of the problems' chances, where it is not measured; default: %(default)s",
    )
    pilot.add_argument(
        "--seed-sd",
        type=float,
        metavar="POINTS",
        help="standard deviation of an arm over seeds; default: estimated if the pilot has several seeds",
    )
    wanted = sub.add_argument_group("what is wanted")
    text = "difference that the comparison should find; default: %(default)s"
    wanted.add_argument("--effect", type=float, default=3.0, metavar="POINTS", help=text)
    text = "chance to find a difference of this size; default: %(default)s"
    wanted.add_argument("--power", type=float, default=POWER, help=text)
    wanted.add_argument("--alpha", type=float, default=ALPHA, help="level of the two-sided test; default: %(default)s")
    for name, text in (
        ("problems", "numbers of held-out problems"),
        ("samples", "numbers of completions per problem and model"),
        ("seeds", "numbers of training runs per arm"),
    ):
        wanted.add_argument(f"--{name}", nargs="+", type=int, metavar="N", help=f"{text} to consider")


def plan(args: argparse.Namespace, load: Load) -> ReportTable:
    """Run the command `plan`.

    Raises:
        InputError: an option is out of range, or the runs cannot be used.
    """
    if (args.base is None) == (args.rate is None):
        raise InputError("plan: give either --base RUN (a pilot) or --rate PERCENT")
    if args.against and args.base is None:
        raise InputError("plan: --against needs --base")
    for name, low, high in (("effect", 0, 100), ("power", args.alpha, 1), ("alpha", 0, 1)):
        if not low < getattr(args, name) < high:
            raise InputError(
                f"--{name}: {getattr(args, name):g} is out of range; give a number between {low} and {high}"
            )
    for name in ("problems", "samples", "seeds", "k"):
        given = getattr(args, name) or 1
        if min(given if isinstance(given, list) else [given]) < 1:
            raise InputError(f"--{name}: numbers must be at least 1")
    seed_sd = None if args.seed_sd is None else args.seed_sd / 100
    if args.rate is not None:
        pilot = pilot_of_rates(args.rate / 100, spread=args.spread, correlation=args.correlation, seed_sd=seed_sd)
    else:
        pilot = pilot_of_runs(
            load(args.base),
            load(args.against) if args.against else (),
            k=args.k,
            model=args.model,
            correlation=args.correlation,
            seed_sd=seed_sd,
        )
    wanted = Wanted(effect=args.effect / 100, alpha=args.alpha, power=args.power)
    designs = designs_of(pilot, problems=args.problems, samples=args.samples, seeds=args.seeds)
    if not designs:
        raise InputError(f"plan: no design is left; {pilot.figure} needs at least {pilot.k} completions per problem")
    return plan_report(pilot, plan_table(pilot, designs, wanted), wanted)


def learning(args: argparse.Namespace, load: Load) -> ReportTable:
    """Run the command `learning`: the runs of each folder are the seeds of one configuration.

    Raises:
        InputError: a held-out problem differs between two runs, or a folder has several configurations.
    """
    everything: list[RunData] = []
    frames = [pl.DataFrame(schema=LEARNING_TABLE)]
    at_start: dict[str, None] = {}
    for name, folder in folder_names(args.folders).items():
        runs = load([folder])
        everything += runs
        ks = args.k or default_ks(min((data.num_samples for data in runs), default=1))
        frames.append(learning_table(runs, ks=ks, arm=name))
        at_start |= dict.fromkeys(when(data, 0) for data in runs)
    check_same_problems(everything)
    return learning_report(pl.concat(frames), at_start=" or ".join(at_start))
