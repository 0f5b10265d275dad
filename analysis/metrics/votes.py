"""Majority votes: the expected maj@k of each model, the vote of the team, and the gated vote.

The input is the answer counts of one run. The output is one tidy frame with the schema of the
Pass@k table. A vote of k is the expectation over k completions that are drawn from all completions
(`estimators.wins_at_k`). The most frequent answer wins. In a tie of t answers, the correct one
counts 1/t. Completions without an answer do not vote, and without any vote the result is not
correct. In a gated vote the team answers only if the votes of all models agree.

Answers are equal if their canonical texts are equal. All correct answers are equal, in any
spelling. This module reads no file and formats no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from analysis.counts.counts import group_codes, iterations_of, models_of
from analysis.metrics.passk import PASS_TABLE, TEAM, too_few
from analysis.stats.estimators import FloatArray, IntArray, wins_at_k
from analysis.stats.intervals import join_notes, share
from core_hpc.store.schema import EVALUATE

MAJ, TEAM_MAJ, MATCHED_MAJ = "maj", "team_maj", "matched_maj"
GATED_ANSWERED, GATED_ACCURACY, GATED_CORRECT = "gated_answered", "gated_accuracy", "gated_correct"
VOTES = {
    MAJ: "majority vote of k completions of one model",
    TEAM_MAJ: "majority vote of k completions of each model, all votes pooled",
    MATCHED_MAJ: "majority vote of one model with as many completions as the team spends",
    GATED_ANSWERED: "share of problems on which the votes of all models agree; on all others the team abstains",
    GATED_ACCURACY: "share of these answers that are correct",
    GATED_CORRECT: "share of all problems on which the votes agree on the correct answer; abstaining counts as wrong",
}


@dataclass(frozen=True, kw_only=True)
class Ballots:
    """Answers of one phase and iteration, for the problems that all M models have.

    Shapes: M is the number of models, P the number of problems, W the largest number of different
    wrong answers to a problem.
    """

    models: tuple[str, ...]
    problem_ids: npt.NDArray[np.str_]  # (P,), sorted
    correct: IntArray  # (M, P) correct completions
    wrong: IntArray  # (M, P, W) completions with each wrong answer, in the same order for all models
    blank: IntArray  # (M, P) completions without an answer
    groups: IntArray  # (P,) codes of source groups; a problem without one has a code of its own
    num_left_out: int  # problems that some model does not have

    @property
    def n(self) -> IntArray:
        """(M, P) completions."""
        num_wrong: IntArray = self.wrong.sum(axis=2)
        return self.correct + num_wrong + self.blank

    @property
    def note(self) -> str:
        """The number of problems that were left out, as text; empty when it is 0."""
        return f"{self.num_left_out} problems left out: not published for every model" if self.num_left_out else ""


def ballots(answers: pl.DataFrame, *, models: Sequence[str], phase: str = EVALUATE, iteration: int) -> Ballots:
    """Build the ballots of one phase and iteration from answer counts.

    They have no problems when some model has no rows.
    """
    if "source_group" not in answers.columns:
        answers = answers.with_columns(source_group=pl.lit(None, pl.String()))
    team = pl.DataFrame(
        {"model": list(models), "m": range(len(models))}, schema={"model": pl.String(), "m": pl.Int64()}
    )
    here = answers.filter((pl.col("phase") == phase) & (pl.col("iteration") == iteration)).join(team, on="model")
    seen = here.group_by("problem_id").agg(pl.col("m").n_unique(), pl.col("source_group").first())
    problems = seen.filter(pl.col("m") == len(models)).drop("m").sort("problem_id").with_row_index("p")
    rows = here.join(problems.select("problem_id", "p"), on="problem_id")
    correct, blank = pl.col("correct"), ~pl.col("correct") & pl.col("answer").is_null()
    wrong = rows.filter(~correct & ~blank)
    wrong = wrong.with_columns(w=pl.col("answer").rank("dense").over("p") - 1)
    most = wrong["w"].max()
    shape = (len(models), problems.height)
    return Ballots(
        models=tuple(models),
        problem_ids=np.array(problems["problem_id"].to_list(), dtype=np.str_),
        correct=_completions(rows.filter(correct), ("m", "p"), shape),
        wrong=_completions(wrong, ("m", "p", "w"), (*shape, 1 + most if isinstance(most, int) else 0)),
        blank=_completions(rows.filter(blank), ("m", "p"), shape),
        groups=group_codes(problems["source_group"], problems["problem_id"]),
        num_left_out=seen.height - problems.height,
    )


def _completions(rows: pl.DataFrame, axes: tuple[str, ...], shape: tuple[int, ...]) -> IntArray:
    """Sum the completions (column n) into an array; the columns `axes` are the indices."""
    out = np.zeros(shape, dtype=np.int64)
    np.add.at(out, tuple(rows[axis].to_numpy() for axis in axes), rows["n"].to_numpy())
    return out


def vote_table(
    answers: pl.DataFrame, *, ks: Sequence[int], models: Sequence[str] | None = None, phase: str = EVALUATE
) -> pl.DataFrame:
    """Compute the votes of the models, the vote of the team and the gated vote of every iteration.

    The result is exact for any k. For a team the time grows fast with k: 5,000 problems with 64
    completions and two models take 0.5 s at k = 4 and 20 s at k = 16.

    Args:
        answers: answer counts of one run.
        ks: completions per model.
        models: the team; default: all models that have rows.
        phase: evaluate (held-out problems) or cold (training problems, without hints).

    Returns:
        A frame with the schema `PASS_TABLE` and the measures of `VOTES`. Estimates are fractions;
        they are null where a problem has fewer than k completions.
    """
    models = models or models_of(answers)
    rows = []
    for iteration in iterations_of(answers, models=models, phase=phase):
        b = ballots(answers, models=models, phase=phase, iteration=iteration)
        if len(b.problem_ids):
            rows += [{"phase": phase, "iteration": iteration, **row} for k in ks for row in _vote_rows(b, k)]
    return pl.DataFrame(rows, schema=PASS_TABLE)


def _vote_rows(b: Ballots, k: int) -> list[dict[str, Any]]:
    size = len(b.models)
    rows = [_single(b, m, k, spent=k, measure=MAJ) for m in range(size)]
    if size == 1:
        return rows
    pooled = wins_at_k(b.correct, b.wrong, b.blank, k)
    agreed, right = agreement(b, k)
    rows += [
        _team_row(b, TEAM_MAJ, k, pooled),
        *(_single(b, m, k, spent=size * k, measure=MATCHED_MAJ) for m in range(size)),
        _team_row(b, GATED_ANSWERED, k, agreed),
        _team_row(b, GATED_ACCURACY, k, right, agreed),
        _team_row(b, GATED_CORRECT, k, right),
    ]
    return rows


def _single(b: Ballots, m: int, k: int, *, spent: int, measure: str) -> dict[str, Any]:
    """maj@spent of model m, as a row of the group of k."""
    values = wins_at_k(b.correct[[m]], b.wrong[[m]], b.blank[[m]], spent)
    note = join_notes(too_few(b.n[m], spent), b.note)
    estimate = share(values, groups=b.groups, samples_per_unit=float(b.n[m].mean()), note=note)
    return {"measure": measure, "model": b.models[m], "k": k, "candidates": spent, **estimate.row()}


def _team_row(
    b: Ballots, measure: str, k: int, numerator: FloatArray, denominator: FloatArray | None = None
) -> dict[str, Any]:
    samples, note = float(b.n.sum(axis=0).mean()), join_notes(too_few(b.n, k), b.note)
    estimate = share(numerator, denominator, groups=b.groups, samples_per_unit=samples, note=note)
    return {"measure": measure, "model": TEAM, "k": k, "candidates": len(b.models) * k, **estimate.row()}


def agreement(b: Ballots, k: int) -> tuple[FloatArray, FloatArray]:
    """Chance that the majority votes of all models agree, with k completions per model.

    A tie in the vote of a model is broken at random. A model without any vote agrees with no other
    model. The models are sampled independently, so the chance is sum_a prod_m P(a wins the vote of
    m) over all answers a.

    Returns:
        Two arrays (P,): the chance that the votes agree, and the chance that they agree on the
        correct answer. They are NaN where some model has fewer than k completions.
    """
    # (M, P, 1 + W): the correct answers are one class.
    classes = np.concatenate([b.correct[..., None], b.wrong], axis=2)
    # The votes can agree only on a class that all models have.
    problem, chosen = np.nonzero((classes > 0).all(axis=0))
    together = np.ones(len(problem))
    for counts, blank in zip(classes, b.blank, strict=True):
        others = counts[problem]
        others[np.arange(len(problem)), chosen] = 0
        together *= wins_at_k(counts[problem, chosen][None], others[None], blank[problem][None], k)
    size = len(b.problem_ids)
    enough = (b.n >= k).all(axis=0)
    right = chosen == 0
    agreed = np.bincount(problem, together, minlength=size)
    agreed_right = np.bincount(problem[right], together[right], minlength=size)
    return np.where(enough, agreed, np.nan), np.where(enough, agreed_right, np.nan)
