"""Pairs the runs of two sides, A and B, and checks that they can be compared.

The input is the `RunData` of both sides. The output is one `Pair` per two runs that belong
together, restricted to their common problems. If the runs cannot be compared, an `InputError` gives
the reason. This module computes no estimates; `metrics/compare.py` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from analysis.counts.counts import Panel, iterations_of, paired, panel
from analysis.counts.load import RunData, problems_of
from analysis.stats.estimators import IntArray
from analysis.stats.intervals import join_notes
from core_hpc.common.errors import InputError
from core_hpc.config.analysis import PrimarySection
from core_hpc.config.identity import flatten, scientific_fields
from core_hpc.problems.splits import EVALUATION
from core_hpc.runs.arms import arm_name, names_of_arm
from core_hpc.runs.names import label_of
from core_hpc.store.paths import TEAM

_WEIGHTS = re.compile(r"team\.[0-9]+\.(model|adapter)")
_OF_A_RUN = re.compile(r"/.*(?:@[0-9]+:[^/]+|/(?:update|warmup)/iteration=[0-9]+/[^/]+|/adapters/[^/]+)")
"""An update in the form of `team[].adapter`, or a folder that a run has published."""


class Pair(NamedTuple):
    """The runs of one seed on both sides, on their common problems."""

    seed: str  # of both runs; two seeds if they differ
    a: Panel
    b: Panel
    note: str

    @property
    def groups(self) -> IntArray | None:
        """The codes of the source groups, from a side that has them."""
        return self.a.groups if self.a.groups is not None else self.b.groups


def on_common_problems(pairs: Sequence[Pair]) -> list[Pair]:
    """Restrict the pairs to the problems that all of them have.

    Raises:
        InputError: they have none in common.
    """
    common = reduce(np.intersect1d, [pair.a.problem_ids for pair in pairs])
    if not len(common):
        raise InputError("the seeds have no held-out problem in common; compare seeds with the same held-out problems")
    return [pair._replace(a=pair.a.restricted(common), b=pair.b.restricted(common)) for pair in pairs]


def pairs_of(a: Sequence[RunData], b: Sequence[RunData], iterations: tuple[int, int] | None = None) -> list[Pair]:
    """Pair the runs of both sides.

    Args:
        a: one run, or several seeds of one configuration. Several runs on both sides are paired by
            seed. A single run is paired with every seed of the other side.
        b: the other side, as `a`.
        iterations: the iterations of the evaluations of A and of B; 0 is the evaluation of the
            untrained models. Default: the latest evaluation of each run. Imported predictions have
            only one.

    Raises:
        InputError: a seed has no partner, a side has several configurations, a problem differs
            between the sides, the sides have no model or no problem in common, or an evaluation is
            not published.
    """
    for name, side in (("A", a), ("B", b)):
        check_one_configuration(name, side)
    check_same_problems([*a, *b])
    if not set(a[0].models) & set(b[0].models):
        names = [f"{side} ({', '.join(data.models)})" for side, data in (("A", a[0]), ("B", b[0]))]
        raise InputError(f"{' and '.join(names)} have no model in common; models are matched by name")
    at_a, at_b = iterations or (None, None)
    pairs = [_pair(x, evaluation_of(x, at_a), y, evaluation_of(y, at_b)) for x, y in _partners(a, b)]
    if len(pairs) > 1 and min(len(a), len(b)) == 1:
        one, other = ("A", "B") if len(a) == 1 else ("B", "A")
        spread = f"{one} is one run: the spread is that of the seeds of {other}"
        pairs = [pair._replace(note=join_notes(spread, pair.note)) for pair in pairs]
    return pairs


def check_one_configuration(name: str, side: Sequence[RunData]) -> None:
    """Check that the runs of a side differ only in their seed.

    Raises:
        InputError: there is no run, or the runs differ in another field.
    """
    if not side:
        raise InputError(f"{name} has no run; give a run folder, or a sweep folder with the seeds of one configuration")
    if len(side) == 1:
        return
    imported = [str(data.path) for data in side if data.config is None]
    if imported:
        raise InputError(
            f"{name} has several runs, but {', '.join(imported)} has no seed (imported); give it as the only run"
        )
    seeds = [seed_of(data) for data in side]
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    fields = [fields_of(data) for data in side]
    differing = sorted({key for f in fields for key in {*fields[0], *f} if fields[0].get(key) != f.get(key)})
    if differing:
        raise InputError(
            f"{name} is not one configuration: its runs differ in {', '.join(differing)}; give the seeds of one of them"
        )
    if twice:
        raise InputError(f"{name} has several runs of seed {', '.join(twice)}; give one run per seed")


def primary_of(a: Sequence[RunData], b: Sequence[RunData]) -> PrimarySection | None:
    """The primary comparison that the runs declare, whose arms are A and B in any order; else None.

    If two different ones are declared for these arms, none of them is primary, so all tests are corrected.
    """
    if not a or not b:
        return None
    of_a, of_b = common_names(a), common_names(b)
    found: list[PrimarySection] = []
    for primary in (data.config.analysis.primary for data in (*a, *b) if data.config is not None):
        if primary is not None and primary not in found:
            first, second = primary.arms
            if (first in of_b and second in of_a) or (first in of_a and second in of_b):
                found.append(primary)
    return found[0] if len(found) == 1 else None


def is_primary(row: Mapping[str, Any], primary: PrimarySection) -> bool:
    """Whether a row of a comparison has the measure, the k and the model of the primary comparison."""
    return (row["measure"], row["k"], row["model"]) == (primary.measure, primary.k, primary.model or TEAM)


def arm_names(data: RunData) -> set[str]:
    """The names of the arm of a run (`core_hpc/runs/arms.py`).

    An imported run is known by the name of its folder. The arm is the same for all sets of an
    evaluation.
    """
    return {data.name} if data.config is None else names_of_arm(data.config.name, label_of(data.path.name))


def common_names(runs: Sequence[RunData]) -> set[str]:
    """The names by which all these runs are known (`arm_names`)."""
    return set.intersection(*(arm_names(data) for data in runs))


def arm_of(data: RunData) -> str:
    """The name of the arm of a run: its label without the seed, or its sweep. An imported run is its own arm."""
    return data.name if data.config is None else arm_name(data.config.name, label_of(data.path.name))


def seed_of(data: RunData) -> str:
    """Return the seed of a run as text."""
    return "imported" if data.config is None else str(data.config.seed)


def fields_of(data: RunData) -> dict[str, Any]:
    """Return the scientific fields except the seed; empty for imported predictions.

    Weights of trained runs are named by their arm (`weights_of_arm`).
    """
    if data.config is None:
        return {}
    fields = {key: value for key, value in flatten(scientific_fields(data.config)).items() if key != "seed"}
    return fields | weights_of_arm(data)


def weights_of_arm(data: RunData) -> dict[str, str]:
    """The fields of an evaluation that name weights of a trained run, with the arm of the evaluation instead.

    Each seed of an arm has weights of its own, which are files of its run. Together they are the
    weights of the arm.
    """
    if data.config is None or not data.only_evaluates:
        return {}
    fields = flatten({"team": data.config.model_dump(mode="json")["team"]})
    return {
        key: f"weights of {data.path.parent.absolute()}: {arm_of(data)}"
        for key, value in fields.items()
        if _WEIGHTS.fullmatch(key) and isinstance(value, str) and _OF_A_RUN.fullmatch(value)
    }


def _partners(a: Sequence[RunData], b: Sequence[RunData]) -> list[tuple[RunData, RunData]]:
    if len(a) == 1 or len(b) == 1:
        return [(x, y) for x in a for y in b]
    of_a, of_b = ({seed_of(data): data for data in side} for side in (a, b))
    sides = (("A", set(of_a), set(of_b)), ("B", set(of_b), set(of_a)))
    unpaired = [(name, sorted(own - other, key=int)) for name, own, other in sides]
    alone = [f"only {name} has seed {', '.join(seeds)}" for name, seeds in unpaired if seeds]
    if alone:
        raise InputError(f"seeds without a partner: {'; '.join(alone)}; give runs of the same seeds on both sides")
    return [(of_a[seed], of_b[seed]) for seed in sorted(of_a, key=int)]


def check_same_problems(runs: Sequence[RunData]) -> None:
    """Check that a held-out problem has the same question and gold answer in all runs.

    An empty question or gold answer is unknown, and counts as equal.

    Raises:
        InputError: a problem differs between two runs.
    """
    known: dict[tuple[str, str], tuple[str, RunData]] = {}
    for data in runs:
        problems = problems_of(data.path, data.config).filter(pl.col("split") == EVALUATION)
        for column in ("question", "gold"):
            for problem, value in problems.select("problem_id", column).filter(pl.col(column) != "").iter_rows():
                first_value, first = known.setdefault((problem, column), (value, data))
                if first_value != value:
                    raise InputError(
                        f"problem {problem!r} is not the same in two runs: its {column} is {first_value[:80]!r} in "
                        f"{first.path} and {value[:80]!r} in {data.path}; compare runs with the same held-out problems"
                    )


def _pair(x: RunData, at_x: int, y: RunData, at_y: int) -> Pair:
    whole_a = panel(x.counts, models=x.models, iteration=at_x)
    whole_b = panel(y.counts, models=y.models, iteration=at_y)
    a, b = paired(whole_a, whole_b)
    if not a.num_problems:
        raise InputError(f"{x.path} and {y.path} have no held-out problem in common; problems are matched by their id")
    unpaired = whole_a.num_problems + whole_b.num_problems - 2 * a.num_problems
    sides = (("A", x, at_x), ("B", y, at_y))
    trained = ", ".join(f"{side} {when(data, at)}" for side, data, at in sides if data.config is not None)
    left_out = [f"{unpaired} problems left out: in A or B only"] if unpaired else []
    left_out += [f"{side}: {p.note}" for side, p in (("A", whole_a), ("B", whole_b)) if p.note]
    seeds = dict.fromkeys((seed_of(x), seed_of(y)))
    return Pair(", ".join(seeds), a, b, join_notes(trained, *left_out))


def when(data: RunData, iteration: int) -> str:
    """Describe the models that an evaluation of a run is of."""
    if data.config is None:
        return "imported"
    if data.only_evaluates:
        return "without training"
    if iteration:
        return f"after iteration {iteration}"
    return "after the warm-up" if any(model.warmup is not None for model in data.config.team) else "untrained"


def evaluation_of(data: RunData, iteration: int | None = None) -> int:
    """Return the iteration of an evaluation of a run.

    Args:
        data: the run.
        iteration: the iteration that is wanted; default: the latest one. Imported predictions have
            only one evaluation, so it is ignored for them.

    Raises:
        InputError: the evaluation is not published for all models.
    """
    published = iterations_of(data.counts, models=data.models)
    if not published:
        raise InputError(f"{data.path}: no evaluation of all models is published yet")
    if iteration is None or data.config is None:
        return published[-1]
    if iteration not in published and iteration == 0 and not data.config.evaluation.before:
        raise InputError(
            f"{data.path}: this run does not evaluate its models before the first iteration (evaluation.before: "
            "false); give a run of the same models and held-out problems that does, or start this run again with --set "
            "evaluation.before=true"
        )
    if iteration not in published:
        listed = ", ".join(map(str, published))
        raise InputError(f"{data.path}: evaluation {iteration} is not published; published: {listed}")
    return iteration
