"""Scoring of many completions per problem: against its plainest form, and the whole score task.

    python -m tests.benchmarks.scoring_scale --out FILE [--size small] [--problems 100]
    python -m tests.benchmarks.scoring_scale --task --out FILE [--size small] [--problems 10000] [--completions 64]
        [--parts 40] [--scored 4]

Two models have equally many completions, three quarters of them cold. Vectors are random, because
the time of embedding is linear in the texts (`tests.benchmarks.scoring` measures it).

- Without `--task`: scoring in memory at 32, 64 and 128 completions per problem. The plain form is
  `tests/support/plain_scoring.py`. Both compute the same scores, which is checked bit by bit.
- With `--task`: from the shards of all models to published scores, one part after the other in a new
  process, as a worker runs them. The shards have token ids and log-probabilities as long as the
  texts, and the hint phase has published its vectors. The first part is also scored alone, in new
  processes: as the phase does it (narrow), and with all columns of the shards decoded (wide). Both
  publish the same scores, which is checked. Memory is the peak of the process, imports included.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl

from core_hpc.phases import score
from core_hpc.phases.context import TaskContext, Warm
from core_hpc.protocol import rewards
from core_hpc.runs.contents import read_rollouts
from core_hpc.runs.folder import Run
from core_hpc.store import shards
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, RESCUE, ROLLOUTS, SCORE, SCORES
from tests.benchmarks.measure import conclude, in_process, measured, peak_mb, print_table
from tests.benchmarks.scoring import text_of
from tests.benchmarks.simulated_scoring import DIMENSIONS, EMBEDDER, MODELS, RandomVectors, Size, make_shards
from tests.support import plain_scoring
from tests.support.tracked_run import make_run

COMPLETIONS = (32, 64, 128)
SIZES = {"small": 8, "usual": 100}
"""Number of problems."""


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


# --- the whole task ------------------------------------------------------------------------------


def score_parts(run: Run, num_parts: int, *, wide: bool) -> dict[str, float]:
    """Run the score tasks of the first parts. Called in a new process.

    Returns:
        CPU seconds, those of reading rollouts among them, and memory in MiB before and at the peak.
    """
    before_mb, read_s = peak_mb(), 0.0

    def read(run: Run, keys: list[TaskKey], *, columns: Sequence[str]) -> pl.DataFrame:
        nonlocal read_s
        began = time.process_time()
        rollouts = read_rollouts(run, keys, columns=list(ROLLOUTS.schema) if wide else columns)
        read_s += time.process_time() - began
        return rollouts

    warm = Warm(_embedder=(EMBEDDER, RandomVectors()))
    with measured() as cost, mock.patch.object(score, "read_rollouts", read):
        for part in range(num_parts):
            score.run(TaskContext(run=run, key=TaskKey(1, SCORE, TEAM, part), warm=warm))
    return {"cpu_s": cost.cpu_s, "read_cpu_s": read_s, "peak_mb": peak_mb(), "imports_mb": before_mb}


def _scores(run: Run, num_parts: int) -> pl.DataFrame:
    return shards.read_tasks(run.root, [TaskKey(1, SCORE, TEAM, part) for part in range(num_parts)], SCORES)


def benchmark_task(folder: Path, size: Size, num_scored: int | None = None) -> dict[str, Any]:
    """Return the costs of the score tasks: of the first part in both ways, and of all.

    Args:
        folder: where to write.
        size: the iteration.
        num_scored: if given, only so many of its parts are made and scored.
    """
    root = folder / "run"
    run, num_parts = size.run(root), min(num_scored or size.num_parts, size.num_parts)
    num_bytes = make_shards(run, num_parts)
    found, frames = dict[str, dict[str, float]](), list[pl.DataFrame]()

    def scored(way: str, num_parts: int) -> dict[str, float]:
        shutil.rmtree(root / SCORE, ignore_errors=True)
        numbers = [str(n) for n in (*astuple(size), num_parts)]
        cost = in_process("scoring_scale", "--one", way, *numbers, "--root", str(root))
        frames.append(_scores(run, num_parts))
        num = frames[-1].height
        return {**cost, "completions": num, "us_per_completion": 1e6 * cost["cpu_s"] / num}

    for way in ("wide", "narrow"):  # all columns, and those that are used
        found[f"first part, {way}"] = scored(way, 1)
    assert frames[0].equals(frames[1])
    found[f"{num_parts} part(s), narrow"] = scored("narrow", num_parts)
    return {**vars(size), "input_mb": num_bytes / 2**20, "tasks": found}


def show_task(figures: dict[str, Any]) -> None:
    """Print a report."""
    rows = {
        name: f"{cost['completions']:9,.0f} completions  {cost['cpu_s']:8.2f} CPU-s "
        f"({cost['read_cpu_s']:.2f} reading)  {cost['us_per_completion']:6.1f} us per completion  "
        f"peak {cost['peak_mb']:6.0f} MB ({cost['imports_mb']:.0f} of it imports)"
        for name, cost in figures["tasks"].items()
    }
    title = f"{figures['problems']:,} problems x {figures['completions']} completions in {figures['parts']} part(s)"
    print_table(f"{title}, {figures['input_mb']:,.0f} MB of input", rows)


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file of all figures")
    parser.add_argument("--size", choices=SIZES, default="usual")
    parser.add_argument("--problems", type=int)
    parser.add_argument("--task", action="store_true", help="measure the whole score task")
    parser.add_argument("--completions", type=int, default=64, help="with --task: completions per problem")
    parser.add_argument("--parts", type=int, default=2, help="with --task: score tasks per iteration")
    parser.add_argument("--scored", type=int, help="with --task: make and score only so many of them")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.one:
        way, *numbers = options.one
        *size, num_parts = map(int, numbers)
        print(json.dumps(score_parts(Size(*size).run(options.root), num_parts, wide=way == "wide")))
        return
    problems = options.problems or SIZES[options.size]
    if options.task:
        size = Size(problems, options.completions, options.parts)
        conclude(lambda folder: benchmark_task(folder, size, options.scored), show_task, options.out)
    else:
        show = partial(print_table, "scoring without embeddings")
        conclude(lambda folder: benchmark(folder, problems), show, options.out)


if __name__ == "__main__":
    main()
