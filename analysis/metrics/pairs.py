"""Which runs may be compared with which: seeds, problems, models and evaluations of two sides brought together.

In: `RunData` of both sides. Out: a `Pair` for each two runs that belong together, on their common problems; or an error
that says why they cannot be compared. Nothing is estimated here (compare.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl

from analysis.counts.counts import Panel, iterations_of, paired, panel
from analysis.counts.load import RunData, problems_of
from analysis.stats.estimators import IntArray
from analysis.stats.intervals import join_notes
from core_hpc.common.errors import InputError
from core_hpc.config.run import flatten, scientific_fields
from core_hpc.problems.splits import EVALUATION


class Pair(NamedTuple):
    """The runs of one seed, on their common problems."""

    seed: str  # of both; two, if they differ
    a: Panel
    b: Panel
    note: str

    @property
    def groups(self) -> IntArray | None:
        """Source groups, where one of the sides knows them."""
        return self.a.groups if self.a.groups is not None else self.b.groups


def pairs_of(a: Sequence[RunData], b: Sequence[RunData], iterations: tuple[int, int] | None = None) -> list[Pair]:
    """The runs of both sides, brought together.

    Args:
        a, b: each one run, or several seeds of one configuration. Several on both sides are paired by seed; one run is
            paired with every seed of the other side.
        iterations: of the evaluations of A and of B (0: the untrained models); default: the latest one of each run. Imported
            predictions have one.

    Raises:
        InputError: seeds without a partner, a side of several configurations, a problem that is not the same on both
            sides, nothing in common, an evaluation that is not published.
    """
    for name, side in (("A", a), ("B", b)):
        check_one_configuration(name, side)
    check_same_problems([*a, *b])
    if not set(a[0].models) & set(b[0].models):
        names = [f"{side} ({', '.join(data.models)})" for side, data in (("A", a[0]), ("B", b[0]))]
        raise InputError(f"{' and '.join(names)} have no model in common: models are matched by name")
    at_a, at_b = iterations or (None, None)
    pairs = [_pair(x, evaluation_of(x, at_a), y, evaluation_of(y, at_b)) for x, y in _partners(a, b)]
    if len(pairs) > 1 and min(len(a), len(b)) == 1:
        one, other = ("A", "B") if len(a) == 1 else ("B", "A")
        said = f"{one} is one run: the spread is that of {other}'s seeds"
        pairs = [pair._replace(note=join_notes(said, pair.note)) for pair in pairs]
    return pairs


def check_one_configuration(name: str, side: Sequence[RunData]) -> None:
    """InputError unless the runs of a side differ in nothing but their seed."""
    if not side:
        raise InputError(f"{name} has no run; give a run folder, or a sweep folder with the seeds of one configuration")
    if len(side) == 1:
        return
    imported = [str(data.path) for data in side if data.config is None]
    if imported:
        raise InputError(f"{name} has several runs, but {', '.join(imported)} has no seed (imported); give it alone")
    seeds = [seed_of(data) for data in side]
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    fields = [fields_of(data) for data in side]
    differing = sorted(
        {key for other in fields for key in {*fields[0], *other} if fields[0].get(key) != other.get(key)}
    )
    if differing:
        raise InputError(
            f"{name} is not one configuration: its runs differ in {', '.join(differing)}; give the seeds of one of them"
        )
    if twice:
        raise InputError(f"{name} has several runs of seed {', '.join(twice)}; give one of each")


def seed_of(data: RunData) -> str:
    """The run's seed as text."""
    return "imported" if data.config is None else str(data.config.seed)


def fields_of(data: RunData) -> dict[str, Any]:
    """Scientific fields beside the seed."""
    return (
        {} if data.config is None else {k: v for k, v in flatten(scientific_fields(data.config)).items() if k != "seed"}
    )


def _partners(a: Sequence[RunData], b: Sequence[RunData]) -> list[tuple[RunData, RunData]]:
    if len(a) == 1 or len(b) == 1:
        return [(x, y) for x in a for y in b]
    of_a, of_b = ({seed_of(data): data for data in side} for side in (a, b))
    sides = (("A", set(of_a), set(of_b)), ("B", set(of_b), set(of_a)))
    alone = [
        f"{name} alone has seed {', '.join(sorted(own - other, key=int))}" for name, own, other in sides if own - other
    ]
    if alone:
        raise InputError(f"seeds without a partner: {'; '.join(alone)}; give runs of the same seeds on both sides")
    return [(of_a[seed], of_b[seed]) for seed in sorted(of_a, key=int)]


def check_same_problems(runs: Sequence[RunData]) -> None:
    """InputError when a held-out problem has another question or gold answer in another run. Unknown (empty) is no difference."""
    known: dict[tuple[str, str], tuple[str, RunData]] = {}
    for data in runs:
        problems = problems_of(data.path, data.config).filter(pl.col("split") == EVALUATION)
        for column in ("question", "gold"):
            for problem, value in problems.select("problem_id", column).filter(pl.col(column) != "").iter_rows():
                said, first = known.setdefault((problem, column), (value, data))
                if said != value:
                    raise InputError(
                        f"problem {problem!r} is not the same: its {column} is {said[:80]!r} in {first.path} and {value[:80]!r} in "
                        f"{data.path}; compare runs that were evaluated on the same problems"
                    )


def _pair(x: RunData, at_x: int, y: RunData, at_y: int) -> Pair:
    whole_a, whole_b = (
        panel(x.counts, models=x.models, iteration=at_x),
        panel(y.counts, models=y.models, iteration=at_y),
    )
    a, b = paired(whole_a, whole_b)
    if not a.num_problems:
        raise InputError(f"{x.path} and {y.path} have no held-out problem in common: problems are matched by their id")
    alone = whole_a.num_problems + whole_b.num_problems - 2 * a.num_problems
    trained = ", ".join(
        f"{side} {when(at)}" for side, data, at in (("A", x, at_x), ("B", y, at_y)) if data.config is not None
    )
    said = [f"{alone} problems left out: in A or B only"] if alone else []
    said += [f"{side}: {p.note}" for side, p in (("A", whole_a), ("B", whole_b)) if p.note]
    seeds = dict.fromkeys((seed_of(x), seed_of(y)))
    return Pair(", ".join(seeds), a, b, join_notes(trained, *said))


def when(iteration: int) -> str:
    """What an evaluation is of, in words."""
    return f"after iteration {iteration}" if iteration else "untrained"


def evaluation_of(data: RunData, iteration: int | None = None) -> int:
    """The iteration of a run's evaluation; default: the latest. InputError when it is not published for all models."""
    published = iterations_of(data.counts, models=data.models)
    if not published:
        raise InputError(f"{data.path}: no evaluation of all its models is published yet")
    if iteration is None or data.config is None:
        return published[-1]
    if iteration not in published and iteration == 0 and not data.config.evaluation.before:
        raise InputError(
            f"{data.path}: the untrained models are not evaluated in this run (evaluation.before: false); give a run of the same models "
            "and held-out problems that has them, or start this one again with --set evaluation.before=true"
        )
    if iteration not in published:
        raise InputError(
            f"{data.path}: evaluation {iteration} is not published; there is {', '.join(map(str, published))}"
        )
    return iteration
