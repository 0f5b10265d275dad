"""Scoring of 1,000 problems x 6 completions: seconds, and their share of an iteration.

    python -m tests.benchmarks.scoring --out FILE [--size small] [--run FINISHED_RUN]

Two models have 2 + 1 completions per problem. The texts have various lengths, like solutions of
word problems. Measured is what the phases hint and score compute: embeddings with all-MiniLM-L6-v2
(of the cold texts twice; in a run the score phase reads those of the hint phase), one distance
matrix per problem, and the verification of all answers (numbers, and LaTeX, which needs algebra).
The alternative embeds both texts of each PAIR when their distance is needed, and verifies one
answer at a time. It runs on a sample of problems, and its time is scaled to all of them. Both use
as many threads as the launcher gives to a task on this machine.

The lower bound of an iteration is that of `python -m analysis time`: the maximum over models of
cold, rescue and trained tokens, at the rates that were measured in `--run`. This must be a finished
run of real models on the same machine with one task per model at a time, as
`tests.benchmarks.overhead --keep` creates it.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from analysis.timing.account import time_table
from analysis.timing.critical_path import GENERATE, LOG_PROBS, TRAIN
from analysis.timing.recorded import times_of
from core_hpc.answers.extract import extract_answer
from core_hpc.answers.verifier import Verifier
from core_hpc.local.executor import LocalLimits
from core_hpc.models.embedders import resolve_embedder
from core_hpc.phases.context import TaskContext, Warm
from core_hpc.phases.score import score_rollouts
from core_hpc.protocol.distance import operation_signature
from core_hpc.protocol.embeddings import create_embedder
from core_hpc.runs.folder import Run
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, CORRECT, RESCUE, SCORE, UPDATE
from tests.benchmarks.measure import conclude, medians, print_table
from tests.benchmarks.real_run import MODELS, arguments, make_run, settings

SIZES = {"small": (20, 2, 1), "usual": (1000, 10, 1)}
"""Number of problems, of problems for the alternative, and of rounds."""
COLD_SAMPLES, RESCUE_SAMPLES = 2, 1
TOKENS_PER_WORD = 1.4
"""An estimate, because the texts are not tokenized. Each digit and sign is one token."""
PROMPT_TOKENS = 150
_OPENINGS = (
    "First we look at what is given",
    "Let us write x for what is asked",
    "We add up what is known",
    "Consider each part",
)
_STEPS = (
    "There are {a} boxes with {b} apples each, so {a} * {b} = {c}",
    "We subtract {b} from {a} and get {d}",
    "Half of {c} is needed",
    "The ratio of {a} to {b} is simplified",
    "Therefore x = {c}, which we check by multiplying",
    "Adding {a} and {b} gives {e}",
)
_LATEX = (r"\frac{{{a}}}{{{b}}}", r"\frac{{{c}}}{{{bb}}}", r"\sqrt{{{aa}}}/{b}", r"{a}/{b}", r"{a}")
"""Forms of a / b. Some are equal to others only by algebra, and the last one is wrong."""


def text_of(rng: random.Random, a: int, b: int) -> str:
    """Make a text of 60 to 400 words."""
    numbers = {"a": a, "b": b, "c": a * b, "d": a - b, "e": a + b}
    words = min(400, max(60, round(rng.lognormvariate(4.9, 0.5))))
    text = f"{rng.choice(_OPENINGS)}."
    while len(text.split()) < words:
        text += f" {rng.choice(_STEPS).format(**numbers)}."
    return text


def make_rows(num_problems: int, seed: int = 0) -> pl.DataFrame:
    """Make rollouts with the columns that scoring reads, and texts of 60 to 400 words."""
    rng, rows = random.Random(seed), []
    for p in range(num_problems):
        a, b = rng.randint(2, 90), rng.randint(2, 90)
        for model, (phase, k) in itertools.product(MODELS, [(COLD, 0), (COLD, 1), (RESCUE, 0)]):
            text = text_of(rng, a, b)
            correct = rng.random() < 0.5
            result = a * b if correct else a * b + rng.randint(1, 9)
            rows.append(
                {
                    "problem_id": f"p{p:04d}",
                    "model": model,
                    "phase": phase,
                    "sample_index": k,
                    "text": f"{text} #### {result}",
                    "answer": str(result),
                    "gold": str(a * b),
                    "correct": correct,
                    "hint_given": phase == RESCUE,
                    "a": a,
                    "b": b,
                }
            )
    return pl.DataFrame(rows)


def latex_claims(rows: pl.DataFrame) -> list[tuple[str | None, str, str]]:
    """Make a LaTeX answer for each completion that cannot be judged by its notation alone."""
    rng = random.Random(1)
    claims: list[tuple[str | None, str, str]] = []
    for a, b in rows.select("a", "b").iter_rows():
        answer = rng.choice(_LATEX).format(a=a, b=b, c=a * b, aa=a * a, bb=b * b)
        claims.append((answer, rf"\frac{{{a}}}{{{b}}}", "latex"))
    return claims


class TimedWarm(Warm):
    """A Warm that sums the seconds of embedding."""

    embed_s = 0.0

    def embed(self, reference: str, texts: Sequence[str]) -> np.ndarray:
        began = time.perf_counter()
        try:
            return super().embed(reference, texts)
        finally:
            self.embed_s += time.perf_counter() - began


def ours(run: Run, warm: TimedWarm, rows: pl.DataFrame) -> dict[str, float]:
    """Measure the parts of scoring in seconds."""
    context, seconds = TaskContext(run=run, key=TaskKey(1, SCORE, TEAM, 0), warm=warm), dict[str, float]()
    began = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[name], began = now - began, now

    warm.embed(run.config.reward.distance.embedder, ["load"])
    lap("load")
    claims = [
        (extract_answer(text, "number"), gold, "number") for text, gold in rows.select("text", "gold").iter_rows()
    ]
    verifier = Verifier()
    assert [v == CORRECT for v in verifier.verify_many(claims)] == rows["correct"].to_list()
    lap("verify numbers")
    verifier.verify_many(latex_claims(rows))
    verifier.close()
    lap("verify latex")
    score_rollouts(context, rows.filter(pl.col("phase") == COLD))
    lap("hint: score cold")
    before = warm.embed_s
    score_rollouts(context, rows)
    lap("score")
    return {**seconds, "of score: embeddings": warm.embed_s - before}


def per_pair(embedder: Any, rows: pl.DataFrame, weight: float) -> dict[str, float]:
    """Measure distances pair by pair, and the verification of single answers, in seconds."""
    began = time.perf_counter()
    for group in rows.partition_by("problem_id"):
        for left, right in itertools.combinations(group["text"].to_list(), 2):
            x, y = (embedder.embed([text])[0] for text in (left, right))
            cosine = float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
            one, two = operation_signature(left), operation_signature(right)
            jaccard = len(one & two) / len(one | two) if one | two else 1.0
            assert weight * (1 - cosine) + (1 - weight) * (1 - jaccard) >= -1e-6
    middle = time.perf_counter()
    verifier = Verifier(num_workers=1)
    for claim in latex_claims(rows):
        verifier.verify_many([claim])
    verifier.close()
    return {"distances": middle - began, "verify latex": time.perf_counter() - middle}


def bound_s(finished: Path, rows: pl.DataFrame) -> dict[str, float]:
    """Return the seconds of sampling and training on these rows by model.

    They are computed with the rates of a finished run.
    """
    words = statistics.mean(len(text.split()) for text in rows["text"])
    tokens = TOKENS_PER_WORD * words
    frame = time_table(times_of(finished)).filter(pl.col("item").is_in([GENERATE, TRAIN, LOG_PROBS]))
    needed = {}
    for (model,), own in frame.group_by("model"):
        sampled = own.filter(pl.col("item") == GENERATE, pl.col("phase").is_in([COLD, RESCUE]))
        learned = own.filter(pl.col("phase") == UPDATE)
        completions = rows.height / len(MODELS)
        sampling = completions * tokens * seconds_per_token(sampled)
        needed[str(model)] = sampling + completions * (tokens + PROMPT_TOKENS) * seconds_per_token(learned)
    return needed


def seconds_per_token(times: pl.DataFrame) -> float:
    """Return the mean seconds per token of some rows of the accounting of time."""
    return float(times["seconds"].sum()) / float(times["tokens"].sum())


def _num_pairs(samples: int) -> int:
    """Return the number of pairs of completions of a problem."""
    return math.comb(len(MODELS) * samples, 2)


def benchmark(folder: Path, size: str, rounds: int | None, finished: Path | None) -> dict[str, Any]:
    """Return the medians of ours and of the alternative, and the share of an iteration."""
    num_problems, num_pairwise, usual_rounds = SIZES[size]
    run = make_run(folder, settings(problems=4, cold=COLD_SAMPLES, rescue=RESCUE_SAMPLES))
    rows, warm, distance = make_rows(num_problems), TimedWarm(), run.config.reward.distance
    few = rows.filter(pl.col("problem_id") < f"p{num_pairwise:04d}")
    embedder = create_embedder(resolve_embedder(distance.embedder))
    threads = LocalLimits.of(run.config.cluster, len(MODELS)).threads
    torch.set_num_threads(threads)
    weight = distance.embedding_weight
    turns = [(ours(run, warm, rows), per_pair(embedder, few, weight)) for _ in range(rounds or usual_rounds)]
    mine = {**medians([a for a, _ in turns]), "load": turns[0][0]["load"]}
    theirs = {name: s * num_problems / num_pairwise for name, s in medians([b for _, b in turns]).items()}
    share_cold = _num_pairs(COLD_SAMPLES) / _num_pairs(COLD_SAMPLES + RESCUE_SAMPLES)
    theirs["distances of cold, for hints"] = theirs["distances"] * share_cold
    scoring_s = mine["hint: score cold"] + mine["score"] + mine["verify latex"] + mine["verify numbers"]
    figures: dict[str, Any] = {
        "size": size,
        "num_problems": num_problems,
        "num_completions": rows.height,
        "threads": threads,
        "seconds": mine,
        "scoring_s": scoring_s,
        "per_pair_s": theirs,
        "per pair / ours": sum(theirs.values()) / scoring_s,
    }
    if finished is not None:
        bounds = bound_s(finished, rows)
        figures |= {"bound_s": bounds, "share_of_iteration": scoring_s / max(bounds.values())}
    return figures


def show(figures: dict[str, Any]) -> None:
    """Print a report."""
    seconds = {**figures["seconds"], "all, without load": figures["scoring_s"]}
    print_table(
        f"{figures['num_problems']:,} problems, {figures['num_completions']:,} completions, seconds",
        {name: f"{s:9.2f}" for name, s in seconds.items()},
    )
    print_table("pair by pair, seconds (scaled)", {name: f"{s:9.2f}" for name, s in figures["per_pair_s"].items()})
    rows = {"per pair / ours": f"{figures['per pair / ours']:.1f}"}
    if "bound_s" in figures:
        rows |= {f"lower bound of an iteration, {m}, s": f"{s:.0f}" for m, s in figures["bound_s"].items()}
        rows |= {"scoring / the largest bound": f"{figures['share_of_iteration']:.2%}"}
    print_table("ratios", rows)


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = arguments(__doc__, SIZES, "rounds")
    parser.add_argument("--run", type=Path, help="finished run of real models, for the rates of sampling and training")
    options = parser.parse_args(given)
    conclude(lambda folder: benchmark(folder, options.size, options.rounds, options.run), show, options.out)


if __name__ == "__main__":
    main()
