"""How often the 95 % intervals of the analysis contain the true value, in simulated studies.

    python -m tests.benchmarks.interval_coverage --out FILE

A study has the results of a run with 200 problems: 8 completions of two models per problem, before
and after training, their answers, and rescue completions of one model with and without a hint. The
probability that a model solves a problem has a beta distribution, in which many problems are solved
nearly always or never. Its mean is the same for both models, and the two are correlated. Equal
models are the hardest case for the gain over the best model.

The true value is that of the population of problems, averaged over a million problems: in closed
form given the probabilities of a problem, or by simulation if it depends on drawn answers. Every
interval comes from the tables of a report.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from analysis.counts.counts import ANSWERS, COUNTS
from analysis.metrics.overlap import overlap_table
from analysis.metrics.passk import before_after_table, gain_table, pass_at_k_table
from analysis.metrics.rescue import rescue_table, uplift_of
from analysis.metrics.votes import Ballots, agreement, vote_table
from analysis.stats.estimators import FloatArray, IntArray, wins_at_k
from core_hpc.store.schema import COLD, EVALUATE, RESCUE
from tests.benchmarks.measure import measured, print_table, report

MODELS = ("ada", "bob")
PROBLEMS, SAMPLES, RESCUES = 200, 8, 4
SUCCESS, FAILURE = 0.5, 0.7
"""The beta distribution of the probability that a model solves a problem."""
SHARED = 0.6
"""Share of this distribution that the models have in common."""
WRONG_ANSWERS, BLANK = 4, 0.1
"""Number of wrong answers of a problem, and the share of wrong completions without an answer."""
LEVELS_K, VOTE_K, GROUP_SIZE = 4, 4, 4
FEW_CORRECT = {
    f"rescue uplift, no effect, {n} cases, {r:.0%} correct": (n, r) for n, r in ((200, 0.02), (100, 0.04), (50, 0.1))
}
"""Cases and the chance of a correct rescue completion, with and without the hint: few of the control are correct."""
TARGET_PERCENT = 93.0
Interval = tuple[float | None, float | None]


@dataclass(frozen=True)
class Problems:
    """Problems that are drawn from the population, with their true probabilities."""

    solves: FloatArray  # (2, P) probability that a completion is correct before training
    later: FloatArray  # (2, P) the same after training
    choice: FloatArray  # (P, WRONG_ANSWERS) probability of each wrong answer, if it is wrong
    help: FloatArray  # (P,) share of failures that become correct with the hint


def drawn(rng: np.random.Generator, size: int) -> Problems:
    """Draw problems with correlated beta variables.

    They are ratios of sums of gamma variables that share terms.
    """

    def gamma(shape: float) -> FloatArray:
        return rng.gamma(SHARED * shape, size=size) + rng.gamma((1 - SHARED) * shape, size=(len(MODELS), size))

    good, bad = gamma(SUCCESS), gamma(FAILURE)
    solves = good / (good + bad)
    return Problems(solves, solves**0.8, rng.dirichlet(np.full(WRONG_ANSWERS, 0.5), size), rng.beta(0.5, 2, size))


def answers_of(rng: np.random.Generator, problems: Problems, n: int) -> tuple[IntArray, IntArray, IntArray]:
    """Draw the numbers of correct (2, P), wrong (2, P, W) and blank (2, P) completions among n."""
    wrong = (1 - problems.solves)[..., None] * (1 - BLANK) * problems.choice
    chances = np.concatenate([problems.solves[..., None], ((1 - problems.solves) * BLANK)[..., None], wrong], axis=2)
    counts = rng.multinomial(n, chances / chances.sum(axis=2, keepdims=True))
    return counts[..., 0], counts[..., 2:], counts[..., 1]


def rescued(rng: np.random.Generator, problems: Problems, solves: FloatArray) -> dict[str, IntArray]:
    """Draw rescue completions of the first model, given its probabilities `solves`: (P,) each."""
    hinted = rng.binomial(RESCUES, 0.5, len(solves))
    helped = solves + problems.help * (1 - solves)
    return {
        "hinted_n": hinted,
        "hinted_c": rng.binomial(hinted, helped),
        "control_n": RESCUES - hinted,
        "control_c": rng.binomial(RESCUES - hinted, solves),
    }


def truth(rng: np.random.Generator, size: int) -> dict[str, float]:
    """Return the true value of every figure."""
    p = drawn(rng, size)
    a, b = p.solves
    fail_a, fail_b = 1 - a, 1 - b
    joint, one, two = (fail_a * fail_b).mean(), fail_a.mean(), fail_b.mean()
    all_a, all_b = fail_a**SAMPLES, fail_b**SAMPLES
    covariance = np.cov(a, b)
    team = (1 - (fail_a * fail_b) ** 2).mean()
    same = (fail_a * fail_b * (1 - BLANK) ** 2 * (p.choice**2).sum(axis=1)).mean()
    values = {
        "Pass@1": a.mean(),
        "Pass@4": (1 - fail_a**LEVELS_K).mean(),
        "pass^4": (a**LEVELS_K).mean(),
        "first-4": (1 - fail_a**LEVELS_K).mean(),
        "team Pass@2": team,
        "difference of Pass@1, paired": (p.later[0] - a).mean(),
        "difference of Pass@4, paired": ((1 - (1 - p.later[0]) ** LEVELS_K) - (1 - fail_a**LEVELS_K)).mean(),
        "gain over the best, equal k": team - max((1 - f**2).mean() for f in (fail_a, fail_b)),
        "gain over the best, matched budget": team - max((1 - f**4).mean() for f in (fail_a, fail_b)),
        "gain over one model, matched budget": team - (1 - fail_a**4).mean(),
        "joint failure, sample": joint,
        "joint failure, problem": (all_a * all_b).mean(),
        "Jaccard, problem": (all_a * all_b).mean() / (all_a + all_b - all_a * all_b).mean(),
        "P(B fails | A fails), sample": joint / one,
        "lift, sample": joint / (one * two),
        "kappa, sample": (1 + 2 * joint - one - two - (one * two + (1 - one) * (1 - two)))
        / (1 - one * two - (1 - one) * (1 - two)),
        "phi, sample": (joint - one * two) / np.sqrt(one * (1 - one) * two * (1 - two)),
        "phi without noise": covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]),
        "self-correlation": covariance[0, 0] / (one * (1 - one)),
        "same wrong answer": same / joint,
        "Pass@1, source groups": a.mean(),
        "difference, source groups": (p.later[0] - a).mean(),
        **_votes(rng, p),
        **_rescues(rng, p),
        **dict.fromkeys(FEW_CORRECT, 0.0),
    }
    return {name: float(value) for name, value in values.items()}


def _votes(rng: np.random.Generator, p: Problems) -> dict[str, float]:
    correct, wrong, blank = answers_of(rng, p, VOTE_K)
    size = correct.shape[1]
    ids = np.arange(size)
    names = ids.astype(np.str_)
    cast = Ballots(
        models=MODELS, problem_ids=names, correct=correct, wrong=wrong, blank=blank, groups=ids, num_left_out=0
    )
    agreed, right = agreement(cast, VOTE_K)
    return {
        "maj@4": float(wins_at_k(correct[:1], wrong[:1], blank[:1], VOTE_K).mean()),
        "team vote, 4 of each": float(wins_at_k(correct, wrong, blank, VOTE_K).mean()),
        "agreement": float(agreed.mean()),
        "accuracy where agreed": float(right.sum() / agreed.sum()),
    }


def _rescues(rng: np.random.Generator, p: Problems) -> dict[str, float]:
    solves = p.solves[0]
    failed = (1 - solves) ** SAMPLES  # probability that the problem is a rescue case
    counts = rescued(rng, p, solves)
    helped, resampled = (
        (failed * counts[f"{kind}_c"]).sum() / (failed * counts[f"{kind}_n"]).sum() for kind in ("hinted", "control")
    )
    won = (failed * (counts["hinted_c"] > 0)).sum()
    return {
        "rescue per attempt": helped,
        "rescue per case": won / (failed * (counts["hinted_n"] > 0)).sum(),
        "rescue recovery": won / failed.sum(),
        "rescue uplift": helped - resampled,
    }


def long_counts(c: IntArray, *, iteration: int, phase: str = EVALUATE, **columns: Any) -> pl.DataFrame:
    """Make the frame COUNTS from (2, P) numbers of correct completions among SAMPLES."""
    size = c.shape[1]
    frame = pl.DataFrame(
        {
            "iteration": iteration,
            "phase": phase,
            "model": np.repeat(MODELS, size),
            "problem_id": np.tile(np.arange(size).astype(str), 2),
            "hint_given": False,
            "cold_failed": None,
            "teacher_model": None,
            "n": SAMPLES,
            "c": c.ravel(),
            "num_timeout": 0,
            "num_truncated": 0,
            "num_no_answer": 0,
            **columns,
        }
    )
    return frame.with_columns(first_correct=None).select(pl.col(name).cast(dtype) for name, dtype in COUNTS.items())


def long_answers(correct: IntArray, wrong: IntArray, blank: IntArray) -> pl.DataFrame:
    """Make the frame ANSWERS of the completions."""
    classes = [
        ("right", True, correct),
        (None, False, blank),
        *((f"w{w}", False, wrong[..., w]) for w in range(WRONG_ANSWERS)),
    ]
    size = correct.shape[1]
    frames = [
        pl.DataFrame(
            {
                "iteration": 0,
                "phase": EVALUATE,
                "model": np.repeat(MODELS, size),
                "problem_id": np.tile(np.arange(size).astype(str), 2),
                "answer": answer,
                "correct": is_correct,
                "n": n.ravel(),
            }
        ).select(pl.col(name).cast(dtype) for name, dtype in ANSWERS.items())
        for answer, is_correct, n in classes
    ]
    return pl.concat(frames).filter(pl.col("n") > 0)


def study(rng: np.random.Generator) -> Iterator[tuple[str, Interval]]:
    """Simulate one study and yield every interval of its tables."""
    p = drawn(rng, PROBLEMS)
    correct, wrong, blank = answers_of(rng, p, SAMPLES)
    first = np.argmax(rng.random((2, PROBLEMS, SAMPLES)).argsort(axis=2) < correct[..., None], axis=2).ravel()
    before = long_counts(correct, iteration=0).with_columns(
        first_correct=pl.when(pl.col("c") > 0).then(pl.Series(first.astype(np.int32)))
    )
    after = long_counts(rng.binomial(SAMPLES, p.later), iteration=1)
    answers = long_answers(correct, wrong, blank)
    levels, change = pass_at_k_table(before, ks=[1, 2, 4]), before_after_table(pl.concat([before, after]), ks=[1, 4])
    gains, overlap = gain_table(before, ks=[2]), overlap_table(before, answers=answers)
    votes = vote_table(answers, ks=[VOTE_K])
    between = overlap.filter(pl.col("model_a") != pl.col("model_b"))
    one, best = {"model": "ada"}, {"against": "best"}
    of_sample, of_problem = {"level": "sample"}, {"level": "problem"}
    yield "Pass@1", interval(levels, measure="pass", k=1, **one)
    yield "Pass@4", interval(levels, measure="pass", k=LEVELS_K, **one)
    yield "pass^4", interval(levels, measure="pass_hat", k=LEVELS_K, **one)
    yield "first-4", interval(levels, measure="first", k=LEVELS_K, **one)
    yield "team Pass@2", interval(levels, measure="team_pass", k=2)
    yield "difference of Pass@1, paired", interval(change, when="difference", measure="pass", k=1, **one)
    yield "difference of Pass@4, paired", interval(change, when="difference", measure="pass", k=LEVELS_K, **one)
    yield "gain over the best, equal k", interval(gains, baseline="equal_k", **best)
    yield "gain over the best, matched budget", interval(gains, baseline="matched_budget", **best)
    yield "gain over one model, matched budget", interval(gains, baseline="matched_budget", against="ada")
    yield "joint failure, sample", interval(between, measure="joint_failure", **of_sample)
    yield "joint failure, problem", interval(between, measure="joint_failure", **of_problem)
    yield "Jaccard, problem", interval(between, measure="jaccard", **of_problem)
    yield "P(B fails | A fails), sample", interval(between, measure="b_fails_given_a", **of_sample)
    for measure in ("lift", "kappa", "phi"):
        yield f"{measure}, sample", interval(between, measure=measure, **of_sample)
    yield "phi without noise", interval(between, measure="phi_corrected")
    yield "self-correlation", interval(overlap, measure="phi", model_a="ada", model_b="ada")
    yield "same wrong answer", interval(between, measure="same_wrong_answer")
    yield "maj@4", interval(votes, measure="maj", **one)
    yield "team vote, 4 of each", interval(votes, measure="team_maj")
    yield "agreement", interval(votes, measure="gated_answered")
    yield "accuracy where agreed", interval(votes, measure="gated_accuracy")
    yield from rescue_intervals(rng, p, correct)
    for name, (num_cases, rate) in FEW_CORRECT.items():
        yield name, few_correct_uplift(rng, num_cases, rate)
    yield from group_intervals(rng)


def rescue_intervals(rng: np.random.Generator, p: Problems, cold: IntArray) -> Iterator[tuple[str, Interval]]:
    """Yield the intervals of the rescue of the first model.

    Its evaluated completions are the cold ones.
    """
    counts = rescued(rng, p, p.solves[0])
    failed = np.flatnonzero(cold[0] == 0)
    parts = [long_counts(cold, iteration=1, phase=COLD)]
    for kind in ("hinted", "control"):
        n, c = (np.tile(counts[f"{kind}_{x}"], (2, 1)) for x in "nc")
        hint = {"hint_given": kind == "hinted", "cold_failed": True, "teacher_model": "bob"}
        rows = long_counts(c, iteration=1, phase=RESCUE, n=n.ravel(), **hint)
        is_case = (pl.col("model") == "ada") & pl.col("problem_id").is_in(failed.astype(str).tolist())
        parts.append(rows.filter(is_case & (pl.col("n") > 0)))
    table = rescue_table(pl.concat(parts), groups=["student"]).filter(pl.col("student") == "ada")
    for name in ("per_attempt", "per_case", "recovery", "uplift"):
        yield f"rescue {name.replace('_', ' ')}", interval(table, rate=name)


def few_correct_uplift(rng: np.random.Generator, num_cases: int, rate: float) -> Interval:
    """Return the interval of the uplift of hints without effect, with two rescue completions per case.

    Each of them sees the hint with probability 0.75, the default of core_hpc.
    """
    hinted = rng.binomial(2, 0.75, num_cases)
    sides = (hinted, 2 - hinted)
    sums = np.stack([x for n in sides for x in (rng.binomial(n, rate), n)], axis=1).astype(np.float64)
    uplift = uplift_of(sums[None], np.arange(num_cases))
    return uplift.low, uplift.high


def group_intervals(rng: np.random.Generator) -> Iterator[tuple[str, Interval]]:
    """Yield intervals of a study with PROBLEMS source groups.

    Variants of a question are equally difficult.
    """
    p = drawn(rng, PROBLEMS)
    before, after = (
        long_counts(rng.binomial(SAMPLES, np.repeat(s, GROUP_SIZE, axis=1)), iteration=i)
        for i, s in enumerate((p.solves, p.later))
    )
    both = pl.concat([before, after]).with_columns(
        source_group=(pl.col("problem_id").cast(pl.Int64) // GROUP_SIZE).cast(pl.String)
    )
    table = before_after_table(both, ks=[1])
    yield "Pass@1, source groups", interval(table, when="before", measure="pass", model="ada")
    yield "difference, source groups", interval(table, when="difference", measure="pass", model="ada")


def interval(frame: pl.DataFrame, **where: Any) -> Interval:
    """Return the bounds in the only row with these values."""
    row = frame.filter(pl.all_horizontal(pl.col(name) == value for name, value in where.items())).row(0, named=True)
    return row["low"], row["high"]


def coverage(num_studies: int, *, seed: int, population: int) -> dict[str, Any]:
    """Simulate studies and compare the intervals of every figure with its true value; see `covered`."""
    rng = np.random.default_rng(seed)
    true = truth(rng, population)
    return covered(true, (study(rng) for _ in range(num_studies)))


def covered(true: dict[str, float], studies: Iterable[Iterable[tuple[str, Interval]]]) -> dict[str, Any]:
    """Compare the intervals of every figure in all studies with its true value.

    Returns:
        For each figure the percentages of intervals that contain the true value, are above it, are
        below it, or do not exist, and the mean width.
    """
    found: dict[str, list[Interval]] = {name: [] for name in true}
    for study_intervals in studies:
        for name, bounds in study_intervals:
            found[name].append(bounds)
    out = {}
    for name, intervals in found.items():
        defined = np.array([bounds for bounds in intervals if None not in bounds], dtype=np.float64)
        low, high = defined.T
        out[name] = {
            "truth": round(true[name], 4),
            "covered_percent": round(100 * float(((low <= true[name]) & (true[name] <= high)).mean()), 1),
            "above_percent": round(100 * float((low > true[name]).mean()), 1),
            "below_percent": round(100 * float((high < true[name]).mean()), 1),
            "no_interval_percent": round(100 * (1 - len(defined) / len(intervals)), 1),
            "mean_width": round(float((high - low).mean()), 4),
        }
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of all figures")
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument(
        "--population", type=int, default=1_000_000, help="problems over which the true value is averaged"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with measured() as cost:
        figures = coverage(options.studies, seed=options.seed, population=options.population)
    error = 100 * np.sqrt(0.05 * 0.95 / options.studies)
    settings = {"studies": options.studies, "problems": PROBLEMS, "samples": SAMPLES, "seed": options.seed}
    target = {"target_percent": TARGET_PERCENT, "standard_error_percent": round(error, 2)}
    report(options.out, {**settings, **target, "cost": cost.figures(), "figures": figures})
    standard = f"target {TARGET_PERCENT:g} %, standard error {error:.1f} %"
    title = f"{options.studies} studies of {PROBLEMS} problems; {standard}"
    print_table(title, {name: _line(figure, error) for name, figure in figures.items()})


def _line(figure: dict[str, float], error: float) -> str:
    names = ("covered", "above", "below", "no_interval")
    shares = "   ".join(f"{name} {figure[f'{name}_percent']:5.1f} %" for name in names)
    # Among thirty figures some are below the target by chance.
    missed = figure["covered_percent"] < TARGET_PERCENT - 2 * error
    warning = "   BELOW TARGET by more than 2 standard errors" if missed else ""
    return f"{shares}   width {figure['mean_width']:.3f}{warning}"


if __name__ == "__main__":
    main()
