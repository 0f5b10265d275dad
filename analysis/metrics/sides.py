"""The measures of a comparison, for both sides A and B, with a value for each problem.

The input is a pair of panels on the same problems. The output is `TwoSided`s: levels and gains of A
and of B before their difference is taken. `metrics/compare.py` takes it and adds the intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.counts.counts import Panel
from analysis.metrics.passk import (
    COVERAGE,
    EQUAL_K,
    MATCHED_BUDGET,
    MATCHED_PASS,
    OTHER_NUMBERS,
    PASS,
    TEAM,
    TEAM_PASS,
    too_few,
)
from analysis.stats.estimators import FloatArray, coverage, pass_at_k, team_pass_at_k
from analysis.stats.intervals import join_notes

GAIN = {EQUAL_K: f"gain_{EQUAL_K}", MATCHED_BUDGET: f"gain_{MATCHED_BUDGET}"}


@dataclass(frozen=True, kw_only=True)
class TwoSided:
    """One measure on both sides, with its value for each of P problems.

    A gain has one row for each model of a side. Its level in a seed is that of the row with the
    smallest mean, which is the gain over the best model of this seed. All other measures have one
    row.
    """

    measure: str
    model: str
    k: int | None
    candidates: int | None
    a: FloatArray  # (S, I, P), with S seeds
    b: FloatArray  # (S, J, P)
    why_undefined: str  # empty if the figure is defined

    def levels(self) -> tuple[float, float]:
        """Return the mean over problems and seeds in A and in B; for a gain, over the best models."""
        of_a, of_b = (float(side.mean(axis=2).min(axis=1).mean()) for side in (self.a, self.b))
        return of_a, of_b


def two_sided(a: Panel, b: Panel, ks: Sequence[int]) -> list[TwoSided]:
    """The measures of one pair of runs: Pass@k, team Pass@k, matched budget, gains and coverage.

    Models are matched by name. With teams of different sizes, models have no matched budget, and team
    Pass@k and the gain at matched budget are undefined, because A and B spend different numbers of
    completions.
    """
    sizes = len(a.models), len(b.models)
    models = [m for m in a.models if m in b.models]
    out: list[TwoSided] = []
    for k in ks:
        out += [_single(a, b, m, k, spent=k, measure=PASS) for m in models]
        if min(sizes) > 1:
            out.append(_team(a, b, k))
        if min(sizes) > 1 and sizes[0] == sizes[1]:
            out += [_single(a, b, m, k, spent=sizes[0] * k, measure=MATCHED_PASS) for m in models]
        if min(sizes) > 1:
            out += [_gain(a, b, k, baseline) for baseline in GAIN]
    spent = a.n.sum(axis=0), b.n.sum(axis=0)
    why = "" if (spent[0] == spent[1]).all() else OTHER_NUMBERS
    covered = TwoSided(
        measure=COVERAGE,
        model=TEAM,
        k=None,
        candidates=None if why else int(spent[0].max()),
        a=coverage(a.c)[None, None],
        b=coverage(b.c)[None, None],
        why_undefined=why,
    )
    return [*out, covered]


def _single(a: Panel, b: Panel, model: str, k: int, *, spent: int, measure: str) -> TwoSided:
    (n_a, c_a), (n_b, c_b) = ((p.n[i], p.c[i]) for p in (a, b) for i in [p.models.index(model)])
    return TwoSided(
        measure=measure,
        model=model,
        k=k,
        candidates=spent,
        a=pass_at_k(n_a, c_a, spent)[None, None],
        b=pass_at_k(n_b, c_b, spent)[None, None],
        why_undefined=_why(too_few(n_a, spent), too_few(n_b, spent)),
    )


def _why(in_a: str, in_b: str) -> str:
    """Join the reasons why a figure is undefined in A and in B; empty when there are none."""
    return in_a if in_a == in_b else join_notes(*(f"{side}: {why}" for side, why in (("A", in_a), ("B", in_b)) if why))


def _spent(a: Panel, b: Panel, k: int) -> tuple[int | None, str]:
    """Return the number of candidates of a team figure, and why it is undefined when A and B differ in it."""
    of_a, of_b = len(a.models) * k, len(b.models) * k
    if of_a == of_b:
        return of_a, ""
    return None, f"{OTHER_NUMBERS} (A spends {of_a} candidates per problem, B spends {of_b})"


def _team(a: Panel, b: Panel, k: int) -> TwoSided:
    candidates, why = _spent(a, b, k)
    of_a, of_b = (team_pass_at_k(p.n, p.c, k)[None, None] for p in (a, b))
    return TwoSided(
        measure=TEAM_PASS,
        model=TEAM,
        k=k,
        candidates=candidates,
        a=of_a,
        b=of_b,
        why_undefined=join_notes(why, _why(*(too_few(p.n.min(axis=0), k) for p in (a, b)))),
    )


def _gain(a: Panel, b: Panel, k: int, baseline: str) -> TwoSided:
    """Subtract each model from the team. The smallest difference is the gain over the best one."""
    needed = [k * len(p.models) if baseline == MATCHED_BUDGET else k for p in (a, b)]
    rows = [team_pass_at_k(p.n, p.c, k) - pass_at_k(p.n, p.c, own) for p, own in zip((a, b), needed, strict=True)]
    candidates, why = _spent(a, b, k) if baseline == MATCHED_BUDGET else (k, "")
    few = _why(*(too_few(p.n.min(axis=0), own) for p, own in zip((a, b), needed, strict=True)))
    return TwoSided(
        measure=GAIN[baseline],
        model=TEAM,
        k=k,
        candidates=candidates,
        a=rows[0][None],
        b=rows[1][None],
        why_undefined=join_notes(why, few),
    )
