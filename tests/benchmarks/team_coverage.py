"""How often the intervals of selectors, areas, hints and overlap changes contain the true value.

    python -m tests.benchmarks.team_coverage --out FILE

A study has 200 problems. Two models with correlated chances to solve a problem give 4 completions
each, before and after training, with answers, tokens and log-probabilities. Hints show the answer
or not, which changes how much they help. Every interval comes from the tables of the analysis. The
true value is that of the population: in closed form, or the mean over many problems where it depends
on the order of completions. `interval_coverage` does the same for the other tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from analysis.counts.completions import COMPLETIONS
from analysis.counts.load import RunData
from analysis.metrics.hints import hint_table
from analysis.metrics.learning import area_weights, learning_table
from analysis.metrics.overlap_change import overlap_change_table
from analysis.metrics.selectors import selector_table
from analysis.stats.estimators import FloatArray
from core_hpc.config.run import RunConfig
from core_hpc.store.schema import LEAK_NONE, LEAK_RESULT, RESCUE
from tests.benchmarks import interval_coverage as base
from tests.benchmarks.measure import measured, print_table, report

PROBLEMS, SAMPLES, K = 200, 4, 2
ITERATIONS = (0, 2, 8)
SELECTED = ("oracle", "majority", "confidence", "first_agree", "gated")
HELP = {LEAK_NONE: 0.15, LEAK_RESULT: 0.5}
"""Mean share of failures that a hint turns into successes."""


def completions_of(rng: np.random.Generator, problems: base.Problems, n: int) -> pl.DataFrame:
    """Draw n completions of two models per problem. Long completions are more often wrong."""
    size = problems.solves.shape[1]
    solves = problems.solves[:, :, None]
    correct = rng.random((2, size, n)) < solves
    wrong = (rng.random((2, size, n, 1)) > problems.choice.cumsum(axis=1)[None, :, None, :-1]).sum(axis=-1)
    blank = rng.random((2, size, n)) < base.BLANK
    answer = np.where(correct, "right", np.where(blank, "", np.char.add("w", wrong.astype(str))))
    tokens = rng.gamma(4, 50 + 100 * (1 - solves), (2, size, n)).astype(int) + 1
    frame = pl.DataFrame(
        {
            "model": np.repeat(base.MODELS, size * n),
            "problem_id": np.tile(np.repeat(np.arange(size).astype(str), n), 2),
            "sample_index": np.tile(np.arange(n), 2 * size),
            "answer": answer.ravel(),
            "correct": correct.ravel(),
            "num_tokens": tokens.ravel(),
            "mean_logprob": rng.normal(0.5 * correct, 0.5).ravel(),
            "source_group": None,
        }
    ).with_columns(answer=pl.col("answer").replace("", None))
    return frame.select(pl.col(name).cast(dtype) for name, dtype in COMPLETIONS.items())


def selector_figures(frame: pl.DataFrame) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of the team, of the gate that begins with the first model."""
    table = selector_table(frame, ks=[K], models=base.MODELS)
    for row in table.filter(pl.col("model").is_in(["team", " > ".join(base.MODELS)])).iter_rows(named=True):
        if row["selector"] in SELECTED:
            yield f"{row['selector']}: {row['figure'].replace('_', ' ')}", row


def chances_at(problems: base.Problems, iteration: int) -> FloatArray:
    """Chances (2, P) that a completion is correct after an iteration."""
    chances: FloatArray = problems.solves ** (1 - 0.4 * iteration / ITERATIONS[-1])
    return chances


def curve(rng: np.random.Generator, problems: base.Problems) -> pl.DataFrame:
    """Counts of the evaluations of one run."""
    return pl.concat(
        base.long_counts(rng.binomial(base.SAMPLES, chances_at(problems, i)), iteration=i) for i in ITERATIONS
    )


def hinted(rng: np.random.Generator, problems: base.Problems) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Counts of rescues of the first model on all problems, and the hints. Half of them leak."""
    size = problems.solves.shape[1]
    leaks = rng.random(size) < 0.5
    chance = problems.solves[0] * 0.5
    share = rng.beta(2, 2 / np.where(leaks, HELP[LEAK_RESULT], HELP[LEAK_NONE]) - 2)
    n = rng.binomial(4, 0.5, size)
    ids = np.arange(size).astype(str)
    parts = []
    for hint, num, p in ((True, n, chance + share * (1 - chance)), (False, 4 - n, chance)):
        rows = base.long_counts(
            np.tile(rng.binomial(num, p), (2, 1)), iteration=1, phase=RESCUE, n=np.tile(num, 2), hint_given=hint
        ).with_columns(cold_failed=True, teacher_model=pl.lit("bob"))
        parts.append(rows.filter(pl.col("model") == base.MODELS[0], pl.col("n") > 0))
    hints = pl.DataFrame(
        {
            "iteration": pl.Series(np.ones(size), dtype=pl.Int32),
            "model": base.MODELS[0],
            "problem_id": ids,
            "num_hint_tokens": 9,
            "leak": np.where(leaks, LEAK_RESULT, LEAK_NONE),
        }
    )
    return pl.concat(parts), hints


def truth(rng: np.random.Generator, size: int) -> dict[str, float]:
    """Return the true value of every figure."""
    p = base.drawn(rng, size)
    values = {
        name: row["estimate"] for name, row in selector_figures(completions_of(rng, base.drawn(rng, size // 10), K))
    }
    levels = np.array([chances_at(p, i)[0].mean() for i in ITERATIONS])
    values |= {
        "area": area_weights(ITERATIONS) @ levels,
        "area gain": area_weights(ITERATIONS) @ levels - levels[0],
    }
    phis, joints = [], []
    for i in (ITERATIONS[0], ITERATIONS[-1]):
        a, b = 1 - chances_at(p, i)
        joint, one, two = (a * b).mean(), a.mean(), b.mean()
        joints.append(joint)
        phis.append((joint - one * two) / np.sqrt(one * (1 - one) * two * (1 - two)))
    values |= {"change of joint failure": joints[1] - joints[0], "change of phi": phis[1] - phis[0]}
    failed = 1 - 0.5 * p.solves[0].mean()
    values |= {
        "uplift, result": HELP[LEAK_RESULT] * failed,
        "uplift, result - none": (HELP[LEAK_RESULT] - HELP[LEAK_NONE]) * failed,
    }
    return {name: float(value) for name, value in values.items()}


def study(rng: np.random.Generator, config: RunConfig) -> Iterator[tuple[str, base.Interval]]:
    """Simulate one study and yield its intervals."""
    p = base.drawn(rng, PROBLEMS)
    for name, row in selector_figures(completions_of(rng, p, SAMPLES)):
        yield name, (row["low"], row["high"])
    counts = curve(rng, p)
    learned = learning_table([RunData(Path("run"), config, list(base.MODELS), counts, pl.DataFrame())], ks=[1])
    for figure in ("area", "area_gain"):
        yield figure.replace("_", " "), base.interval(learned, figure=figure, measure="pass", model="ada")
    changes = overlap_change_table(counts)
    for measure in ("joint_failure", "phi"):
        yield f"change of {measure.replace('_', ' ')}", base.interval(changes, level="sample", measure=measure)
    rescues, hints = hinted(rng, p)
    effects = hint_table(rescues, hints=hints)
    for leak in (LEAK_RESULT, f"{LEAK_RESULT} - {LEAK_NONE}"):
        yield f"uplift, {leak}", base.interval(effects, student="team", leak=leak, measure="uplift")


def simulated_config() -> RunConfig:
    """A configuration, which a run needs to have learning curves."""
    team = [{"name": name, "model": "fake:any", "engine": "fake"} for name in base.MODELS]
    problems = {split: {"source": "generated", "count": 20} for split in ("train", "evaluation")}
    plain = {"name": "simulated", "iterations": 8, "team": team, "problems": problems}
    return RunConfig.model_validate(plain)


def coverage(num_studies: int, *, seed: int, population: int) -> dict[str, Any]:
    """Simulate studies; return coverage, misses and mean width of each figure, in percent."""
    rng, config = np.random.default_rng(seed), simulated_config()
    true = truth(rng, population)
    return base.covered(true, (study(rng, config) for _ in range(num_studies)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of all figures")
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--population", type=int, default=400_000, help="problems of the true values")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with measured() as cost:
        figures = coverage(options.studies, seed=options.seed, population=options.population)
    error = 100 * np.sqrt(0.05 * 0.95 / options.studies)
    settings = {"studies": options.studies, "problems": PROBLEMS, "seed": options.seed}
    report(
        options.out,
        {**settings, "standard_error_percent": round(error, 2), "cost": cost.figures(), "figures": figures},
    )
    lines = {
        name: f"covered {f['covered_percent']:5.1f} %   no interval {f['no_interval_percent']:4.1f} %   "
        f"truth {f['truth']:9.4f}   width {f['mean_width']:.3f}"
        for name, f in figures.items()
    }
    print_table(f"{options.studies} studies of {PROBLEMS} problems; standard error {error:.1f} %", lines)


if __name__ == "__main__":
    main()
