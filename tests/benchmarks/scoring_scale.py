"""Scoring without embeddings at 32, 64 and 128 completions per problem, against its plainest form.

    python -m tests.benchmarks.scoring_scale --out FILE [--problems 100]

Two models have equally many completions, three quarters of them cold. Vectors are random, because
the time of embedding is linear in the texts (`tests.benchmarks.scoring` measures it). The plain form
is `tests/support/plain_scoring.py`. Both compute the same scores, which is checked bit by bit.
"""

from __future__ import annotations

import argparse
import random
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl

from core_hpc.phases import score
from core_hpc.phases.context import TaskContext, Warm
from core_hpc.protocol import rewards
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, RESCUE, SCORE
from tests.benchmarks.measure import conclude, measured, print_table
from tests.benchmarks.scoring import text_of
from tests.support import plain_scoring
from tests.support.tracked_run import make_run

MODELS = ("m0", "m1")
COMPLETIONS = (32, 64, 128)
DIMENSIONS = 384


def make_rows(num_problems: int, completions: int, seed: int = 0) -> pl.DataFrame:
    """Make rollouts with the columns that scoring reads."""
    rng, rows = random.Random(seed), []
    samples = completions // len(MODELS)
    for p in range(num_problems):
        a, b = rng.randint(2, 90), rng.randint(2, 90)
        for model in MODELS:
            for k in range(samples):
                correct, cold = rng.random() < 0.3, k < samples * 3 // 4
                rows.append(
                    {
                        "problem_id": f"p{p:05d}",
                        "model": model,
                        "phase": COLD if cold else RESCUE,
                        "sample_index": k,
                        "text": text_of(rng, a, b),
                        "answer": str(a * b if correct else rng.randint(1, 99)),
                        "gold": str(a * b),
                        "correct": correct,
                        "hint_given": not cold,
                    }
                )
    return pl.DataFrame(rows)


def benchmark(folder: Path, num_problems: int) -> dict[str, Any]:
    """Return microseconds per completion of both forms, and how they grow."""
    context = TaskContext(run=make_run(folder), key=TaskKey(1, SCORE, TEAM, 0), warm=Warm())
    figures: dict[str, Any] = {"problems": num_problems}
    for completions in COMPLETIONS:
        rows = make_rows(num_problems, completions)
        vectors = np.random.default_rng(0).normal(size=(rows.height, DIMENSIONS)).astype(np.float32)
        with measured() as ours:
            scored = score.score_rollouts(context, rows, embeddings=vectors)
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(score, "operation_signature", plain_scoring.operation_signature))
            for name in ("peer_cold_correct", "exploit_rewards", "cross_rewards"):
                stack.enter_context(mock.patch.object(rewards, name, getattr(plain_scoring, name)))
            with measured() as plain:
                expected = score.score_rollouts(context, rows, embeddings=vectors)
        assert scored.equals(expected)
        figures[f"{completions} completions"] = {
            "us_per_completion": 1e6 * ours.cpu_s / rows.height,
            "plain_us_per_completion": 1e6 * plain.cpu_s / rows.height,
            "plain / ours": plain.cpu_s / ours.cpu_s,
        }
    first, last = (figures[f"{n} completions"]["us_per_completion"] for n in (COMPLETIONS[0], COMPLETIONS[-1]))
    figures["growth per completion, 32 to 128"] = last / first
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of all figures")
    parser.add_argument("--problems", type=int, default=100)
    options = parser.parse_args()
    show = partial(print_table, "scoring without embeddings")
    conclude(lambda folder: benchmark(folder, options.problems), show, options.out)


if __name__ == "__main__":
    main()
