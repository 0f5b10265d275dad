"""Parts of the variance of a comparison, estimated from the runs of a pilot or assumed from rates.

The input is the `RunData` of one arm or two arms, or a few rates. The output is a `Pilot`: the parts
of the variance of the difference between two arms (`stats/power.py`), what they are based on, and
the cost of a training. `metrics/plan.py` makes designs from it.

Estimates are corrected for the sampling of completions, which needs 2 k completions per problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
import polars as pl

from analysis.counts.counts import Panel, iterations_of, panel
from analysis.counts.load import RunData
from analysis.metrics.pairs import check_one_configuration, check_same_problems, evaluation_of, pairs_of
from analysis.metrics.passk import TEAM
from analysis.stats.estimators import FloatArray, IntArray, team_pass_at_k
from analysis.stats.power import Parts, planned_sampling_variance
from analysis.stats.uncertainty import variances
from analysis.stats.variance import sampling_variance
from core_hpc.common.errors import InputError
from core_hpc.store.schema import COLD, RESCUE

CORRELATION, SPREAD = 0.9, 0.7
"""Assumptions where nothing is measured: the correlation between the arms of the probabilities that
a problem is solved, and the share of p (1 - p) that is variance over problems."""


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """What is known about the variance and the cost of a comparison of two arms."""

    parts: Parts
    figure: str  # what is compared, as text
    k: int  # completions that the figure needs per model; a design has at least as many
    num_models: int  # models whose completions the figure uses
    num_problems: int | None  # held-out problems of the pilot; None: rates
    num_training: int  # completions sampled in the training of one run
    notes: tuple[str, ...]  # where each part comes from


class _Arm(NamedTuple):
    """Panels of the runs of an arm, on the same problems, with only the models of the figure."""

    panels: list[Panel]
    k: int

    @property
    def values(self) -> FloatArray:
        """(S, P) estimates of the figure."""
        return np.stack([team_pass_at_k(p.n, p.c, self.k) for p in self.panels])

    def noise(self) -> float:
        """Mean over runs and problems of the variance from the sampling of the pilot."""
        return float(np.mean([sampling_variance(p.n, p.c, self.k) for p in self.panels]))

    def sampling(self, num_samples: int) -> float:
        """Mean over runs and problems of the variance from num_samples completions."""
        found = [planned_sampling_variance(p.n, p.c, self.k, num_samples) for p in self.panels]
        return max(float(np.mean(found)), 0.0)


class _Crossed(NamedTuple):
    """Variances per problem, per seed and per both, of values of shape (S, P)."""

    problem: float  # without what is sampled anew with every seed, if there are several
    seed: float | None  # None: one seed
    both: float


def _crossed(values: FloatArray, groups: IntArray | None) -> _Crossed:
    num_seeds, num_problems = values.shape
    mean = variances(values, groups)
    if num_seeds == 1:
        return _Crossed(num_problems * mean.problems, None, 0.0)
    return _Crossed(
        num_problems * max(mean.problems - mean.rest, 0.0),
        num_seeds * max(mean.seeds - mean.rest, 0.0),
        num_seeds * num_problems * mean.rest,
    )


def pilot_of_rates(
    rate: float, *, spread: float = SPREAD, correlation: float = CORRELATION, seed_sd: float | None = None
) -> Pilot:
    """Make a pilot from the Pass@1 of a model and assumptions.

    With the probability p of a problem to be solved, whose mean is `rate`: its variance over
    problems is spread rate (1 - rate), and the rest of rate (1 - rate) is sampling.

    Args:
        rate: Pass@1 of an arm, between 0 and 1.
        spread: share of the variance of single completions that is between problems.
        correlation: correlation of p between the arms.
        seed_sd: standard deviation over seeds of the Pass@1 of an arm; None: unknown.

    Raises:
        InputError: a value is out of its range.
    """
    for name, value, high in (("--rate", rate, 1.0), ("--spread", spread, 1.0), ("--correlation", correlation, 1.0)):
        if not 0 <= value <= high or (name == "--rate" and value in (0, 1)):
            raise InputError(f"{name}: {value:g} is out of range; give a share between 0 and 1")
    variance = rate * (1 - rate)
    parts = Parts(
        problem=2 * spread * variance * (1 - correlation),
        seed=None if seed_sd is None else 2 * seed_sd**2,
        interaction=0.0,
        sampling=lambda n: 2 * (1 - spread) * variance / n,
    )
    notes = (
        f"assumed: Pass@1 of {rate:.0%}; {spread:.0%} of the variance of a completion is between problems (--spread)",
        f"assumed: correlation {correlation:g} of the problems' chances between the arms (--correlation)",
        "no change of a single problem by the seed",
        _seed_note(seed_sd, None),
    )
    return Pilot(parts=parts, figure="Pass@1", k=1, num_models=1, num_problems=None, num_training=0, notes=tuple(notes))


def pilot_of_runs(
    base: Sequence[RunData],
    against: Sequence[RunData] = (),
    *,
    k: int = 1,
    model: str = TEAM,
    correlation: float = CORRELATION,
    seed_sd: float | None = None,
) -> Pilot:
    """Estimate the parts of the variance from runs.

    Args:
        base: the seeds of one configuration; one run is enough, but does not show the seeds' part.
        against: the seeds of the other arm. The parts are then those of this very difference.
            Without it, both arms are taken to vary like `base`, and the part of the problems is
            that of the change by training. If the untrained models are not evaluated, it is
            computed from `correlation`.
        k: completions per model.
        model: a model, or TEAM for team Pass@k.
        correlation: correlation between the arms of the probabilities that a problem is solved.
        seed_sd: standard deviation over seeds of the figure of an arm, instead of an estimate.

    Raises:
        InputError: the runs cannot be compared, or have fewer than 2 k completions per problem.
    """
    members = _members(base[0], model)
    if against:
        parts, notes, num_problems = _between(base, against, k, members)
    else:
        parts, notes, num_problems = _within(base, k, members, correlation)
    if seed_sd is not None:
        parts = Parts(
            problem=parts.problem, seed=2 * seed_sd**2, interaction=parts.interaction, sampling=parts.sampling
        )
    name = f"team Pass@{k}" if len(members) > 1 else f"Pass@{k} of {members[0]}"
    trained = base[0].counts.filter(pl.col("phase").is_in([COLD, RESCUE]))
    num_seeds = len(base) if not against else min(len(base), len(against))
    return Pilot(
        parts=parts,
        figure=name,
        k=k,
        num_models=len(members),
        num_problems=num_problems,
        num_training=int(trained["n"].sum()),
        notes=(*notes, _seed_note(seed_sd, num_seeds)),
    )


def _seed_note(given: float | None, num_seeds: int | None) -> str:
    if given is not None:
        return f"given: standard deviation {100 * given:g} points of an arm over seeds (--seed-sd)"
    if num_seeds is None or num_seeds < 2:
        return (
            "the seeds' part is unknown: no design covers other seeds; give several seeds per arm, or --seed-sd POINTS"
        )
    few = "; with so few seeds it is very uncertain" if num_seeds < 5 else ""
    return f"the seeds' part is estimated from {num_seeds} seeds{few}"


def _members(data: RunData, model: str) -> list[str]:
    if model == TEAM:
        return list(data.models)
    if model not in data.models:
        raise InputError(f"--model: {data.path} has no model {model!r}; its models: {', '.join(data.models)}, {TEAM}")
    return [model]


def _arm(panels: Sequence[Panel], members: Sequence[str], k: int) -> _Arm:
    """Restrict the panels to their common problems and to the models of the figure."""
    common = reduce(np.intersect1d, [p.problem_ids for p in panels])
    if len(common) < 2:
        raise InputError("the runs have fewer than two held-out problems in common; a pilot needs more")
    own = [p.restricted(common).of([p.models.index(name) for name in members]) for p in panels]
    fewest = min(int(p.n.min()) for p in own)
    if fewest < 2 * k:
        raise InputError(
            f"the pilot has {fewest} completions per problem; Pass@{k} needs at least {2 * k} to separate the sampling "
            "from the problems; raise evaluation.samples, lower --k, or give --rate instead of --base"
        )
    return _Arm(own, k)


def _within(
    base: Sequence[RunData], k: int, members: Sequence[str], correlation: float
) -> tuple[Parts, list[str], int]:
    """Parts of the difference of two arms that vary like one."""
    check_one_configuration("--base", base)
    check_same_problems(base)
    at = [evaluation_of(data) for data in base]
    after = [panel(data.counts, models=data.models, iteration=i) for data, i in zip(base, at, strict=True)]
    untrained = [
        0 in iterations_of(data.counts, models=data.models) and i > 0 for data, i in zip(base, at, strict=True)
    ]
    if all(untrained):
        before = [panel(data.counts, models=data.models, iteration=0) for data in base]
        both = _arm([*before, *after], members, k)
        arm = _Arm(both.panels[len(base) :], k)
        first = _Arm(both.panels[: len(base)], k)
        change = _crossed(arm.values - first.values, arm.panels[0].groups)
        problem = change.problem - (arm.noise() + first.noise() if len(base) == 1 else 0.0)
        note = "the problems' part is that of the change by training in the pilot"
    else:
        arm = _arm(after, members, k)
        own = _crossed(arm.values, arm.panels[0].groups)
        problem = 2 * (1 - correlation) * (own.problem - (arm.noise() if len(base) == 1 else 0.0))
        note = f"assumed: correlation {correlation:g} of the problems' chances between the arms (--correlation)"
    own = _crossed(arm.values, arm.panels[0].groups)
    parts = Parts(
        problem=max(problem, 0.0),
        seed=None if own.seed is None else 2 * own.seed,
        interaction=2 * max(own.both - arm.noise(), 0.0) if own.seed is not None else 0.0,
        sampling=lambda n: 2 * arm.sampling(n),
    )
    return parts, ["both arms are taken to vary like the pilot", note], arm.panels[0].num_problems


def _between(
    base: Sequence[RunData], against: Sequence[RunData], k: int, members: Sequence[str]
) -> tuple[Parts, list[str], int]:
    """Parts of the difference of two arms that were both run."""
    pairs = pairs_of(base, against)
    whole = _arm([p for pair in pairs for p in (pair.a, pair.b)], members, k)
    a, b = _Arm(whole.panels[::2], k), _Arm(whole.panels[1::2], k)
    # One run that is paired with several seeds does not show how much its own arm varies.
    paired_seeds = min(len(base), len(against)) > 1
    count = len(pairs) if paired_seeds else 1
    noise = a.noise() + b.noise()
    found = _crossed((b.values - a.values)[:count], a.panels[0].groups)
    parts = Parts(
        problem=max(found.problem - (noise if found.seed is None else 0.0), 0.0),
        seed=found.seed,
        interaction=max(found.both - noise, 0.0) if found.seed is not None else 0.0,
        sampling=lambda n: a.sampling(n) + b.sampling(n),
    )
    return (
        parts,
        ["the parts are those of the difference between the two arms of the pilot"],
        whole.panels[0].num_problems,
    )
