"""Scoring at the paper's size: 1,000 problems x 6 completions; seconds, and their share of what an iteration takes at least.

    python -m tests.benchmarks.scoring --out /tmp/scoring.json [--size small] [--run FINISHED_RUN]

Two models, 2 + 1 completions of each, texts of varied length like solutions of word problems. Ours: what the phases hint and score
compute, with embeddings by all-MiniLM-L6-v2 (the cold texts are embedded in both), one distance matrix a problem, and the
verification of all answers (number, and latex, which needs algebra). The alternative: each text of each PAIR embedded when its
distance is wanted, and one verification at a time, on a sample, its time scaled to all problems. Both with the threads that the
launcher gives a task here. The lower bound of an iteration is that of `python -m analysis time`: max over models of cold, rescue and
trained tokens, each by the rate that was measured in --run, a finished run of real models on the same machine (with one task of
each model at a time: `tests.benchmarks.overhead --keep` leaves such a run).
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

from analysis.timing.account import time_table, times_of
from analysis.timing.critical_path import GENERATE, LOG_PROBS, TRAIN
from core_hpc.answers.extract import extract_answer
from core_hpc.answers.verifier import Verifier
from core_hpc.local.executor import LocalLimits
from core_hpc.models.resolve import resolve_embedder
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
"""Problems, problems of the alternative, rounds."""
COLD_SAMPLES, RESCUE_SAMPLES = 2, 1
TOKENS_PER_WORD = 1.4
"""To reckon with where texts have no tokens: digits and signs are tokens of their own."""
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
"""Forms of a / b: some are equal to others only by algebra, and the last is wrong."""


def make_rows(num_problems: int, seed: int = 0) -> pl.DataFrame:
    """Rollouts of cold and rescue with the columns that scoring reads; lengths are log-normal, 60 to 400 words."""
    rng, rows = random.Random(seed), []
    for p in range(num_problems):
        a, b = rng.randint(2, 90), rng.randint(2, 90)
        for model, (phase, k) in itertools.product(MODELS, [(COLD, 0), (COLD, 1), (RESCUE, 0)]):
            numbers = {"a": a, "b": b, "c": a * b, "d": a - b, "e": a + b}
            words = min(400, max(60, round(rng.lognormvariate(4.9, 0.5))))
            text = f"{rng.choice(_OPENINGS)}."
            while len(text.split()) < words:
                text += f" {rng.choice(_STEPS).format(**numbers)}."
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
    """For each completion an answer in LaTeX, of those that notation does not decide."""
    rng = random.Random(1)
    claims: list[tuple[str | None, str, str]] = []
    for a, b in rows.select("a", "b").iter_rows():
        answer = rng.choice(_LATEX).format(a=a, b=b, c=a * b, aa=a * a, bb=b * b)
        claims.append((answer, rf"\frac{{{a}}}{{{b}}}", "latex"))
    return claims


class TimedWarm(Warm):
    """Counts the seconds of embedding."""

    embed_s = 0.0

    def embed(self, reference: str, texts: Sequence[str]) -> np.ndarray:
        began = time.perf_counter()
        try:
            return super().embed(reference, texts)
        finally:
            self.embed_s += time.perf_counter() - began


def ours(run: Run, warm: TimedWarm, rows: pl.DataFrame) -> dict[str, float]:
    """Seconds of the parts of scoring."""
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
    """Seconds of distances pair by pair, and of verifying one after the other."""
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
    """Seconds that each model of a finished run would need to sample and learn these rows, at its measured rates."""
    words = statistics.mean(len(text.split()) for text in rows["text"])
    tokens = TOKENS_PER_WORD * words
    frame = time_table(times_of(finished)).filter(pl.col("item").is_in([GENERATE, TRAIN, LOG_PROBS]))
    needed = {}
    for (model,), own in frame.group_by("model"):
        sampled = own.filter(pl.col("item") == GENERATE, pl.col("phase").is_in([COLD, RESCUE]))
        learned = own.filter(pl.col("phase") == UPDATE)
        completions = rows.height / len(MODELS)
        sampling = completions * tokens * sampled["seconds"].sum() / sampled["tokens"].sum()
        learning = completions * (tokens + PROMPT_TOKENS) * learned["seconds"].sum() / learned["tokens"].sum()
        needed[str(model)] = sampling + learning
    return needed


def _num_pairs(samples: int) -> int:
    """Pairs of completions of a problem."""
    return math.comb(len(MODELS) * samples, 2)


def benchmark(folder: Path, size: str, rounds: int | None, finished: Path | None) -> dict[str, Any]:
    """Medians of ours and of the alternative, and the share of an iteration."""
    num_problems, num_pairwise, usual_rounds = SIZES[size]
    run = make_run(folder, settings(problems=4, cold=COLD_SAMPLES, rescue=RESCUE_SAMPLES))
    rows, warm, distance = make_rows(num_problems), TimedWarm(), run.config.reward.distance
    few = rows.filter(pl.col("problem_id") < f"p{num_pairwise:04d}")
    embedder = create_embedder(resolve_embedder(distance.embedder))
    threads = LocalLimits.of(run.config.cluster, len(MODELS)).threads
    torch.set_num_threads(threads)
    turns = [
        (ours(run, warm, rows), per_pair(embedder, few, distance.embedding_weight))
        for _ in range(rounds or usual_rounds)
    ]
    mine = {**medians([a for a, _ in turns]), "load": turns[0][0]["load"]}
    theirs = {name: s * num_problems / num_pairwise for name, s in medians([b for _, b in turns]).items()}
    theirs["distances of cold, for hints"] = (
        theirs["distances"] * _num_pairs(COLD_SAMPLES) / _num_pairs(COLD_SAMPLES + RESCUE_SAMPLES)
    )
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
    print_table(
        f"{figures['num_problems']:,} problems, {figures['num_completions']:,} completions, seconds",
        {name: f"{s:9.2f}" for name, s in figures["seconds"].items()}
        | {"all, without load": f"{figures['scoring_s']:9.2f}"},
    )
    print_table("pair by pair, seconds (scaled)", {name: f"{s:9.2f}" for name, s in figures["per_pair_s"].items()})
    rows = {"per pair / ours": f"{figures['per pair / ours']:.1f}"}
    if "bound_s" in figures:
        rows |= {f"an iteration at least, {m}, s": f"{s:.0f}" for m, s in figures["bound_s"].items()}
        rows |= {"scoring / the longest of them": f"{figures['share_of_iteration']:.2%}"}
    print_table("ratios", rows)


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = arguments(__doc__, SIZES, "rounds")
    parser.add_argument(
        "--run", type=Path, help="folder of a finished run of real models, for the rates of sampling and training"
    )
    options = parser.parse_args(given)
    conclude(lambda folder: benchmark(folder, options.size, options.rounds, options.run), show, options.out)


if __name__ == "__main__":
    main()
