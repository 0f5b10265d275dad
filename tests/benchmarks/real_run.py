"""Runs of the quickstart at the sizes of benchmarks, with its models, problems and settings.

The input is the number of problems, samples and iterations. The output is `--set` values for the
launcher, a new run folder, or a finished run and its accounting of time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from analysis.timing.account import iteration_table, waited_table
from analysis.timing.critical_path import GENERATE, LOG_PROBS, START, TRAIN
from analysis.timing.recorded import times_of
from core_hpc.controller.prepare import prepare, splits_of
from core_hpc.phases.context import TaskContext, Warm
from core_hpc.runs import creation
from core_hpc.runs.folder import Run
from core_hpc.runs.sweep import Sweep, load_sweep
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import COLD
from tests.support.harness import ROOT, launch, the_run

SWEEP = ROOT / "yaml" / "quickstart.yaml"
MODELS = ("smollm2", "gemma3")
DTYPES = ("float32", "bfloat16")
STARTING = (START, "import", "load", "compile")
"""Items of the accounting of time that a warm process does not have."""
TIMEOUT_S = 7200


def settings(*, problems: int, cold: int, rescue: int = 0, iterations: int = 1, dtype: str = "float32") -> list[str]:
    """Return `--set` values.

    Each model samples cold + rescue completions per problem; one problem is held out.
    """
    return [
        f"iterations={iterations}",
        f"problems.train.count={problems}",
        "problems.evaluation.count=1",
        f"protocol.problems_per_iteration={problems}",
        f"protocol.cold_samples={cold}",
        f"protocol.rescue_samples={rescue}",
        f"protocol.even_budget={str(rescue > 0).lower()}",
        "evaluation.before=false",
        "evaluation.samples=1",
        *(f"team.{name}.dtype={dtype}" for name in MODELS),
    ]


def make_run(folder: Path, values: Sequence[str]) -> Run:
    """Create a run folder of the quickstart in which nothing is published yet."""
    return prepared_run(load_sweep(SWEEP, values, output=str(folder)))


def prepared_run(sweep: Sweep) -> Run:
    """Create the folder of the only run of a sweep, after its preparation. Nothing is published yet."""
    (plan,) = sweep.runs
    return creation.create(plan, sweep.folder, splits_of(plan), prepare(plan.config))


def cold_task(run: Run, model: str, warm: Warm) -> TaskContext:
    """Return the first cold task of a model."""
    return TaskContext(run=run, key=TaskKey(1, COLD, model, 0), warm=warm)


def sampled_length(ids: Sequence[int], tokenizer: Any) -> int:
    """Count the tokens of a completion in a padded row of `generate`, including its end token."""
    end, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
    if end in ids:
        return ids.index(end) + 1
    # A completion that ended with a stop string has no end token.
    return len(ids) - next((i for i, token in enumerate(reversed(ids)) if token != padding), len(ids))


def launched(folder: Path, values: Sequence[str], env: dict[str, str] | None = None) -> tuple[Path, float]:
    """Run the launcher until it ends. Return the run folder and the seconds of the command."""
    began = time.perf_counter()
    done = launch(SWEEP, "--output", str(folder), *(f"--set={v}" for v in values), env=env, timeout_s=TIMEOUT_S)
    if done.returncode:
        output = f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
        raise RuntimeError(f"the launcher ended with status {done.returncode}:\n{output}")
    return the_run(folder / "quickstart"), time.perf_counter() - began


def account(run: Path) -> list[dict[str, Any]]:
    """Return for each iteration its row of `analysis.timing.account` and its seconds by item."""
    times = times_of(run)
    waited = waited_table(times).group_by("iteration", "item").agg(pl.col("seconds").sum())
    rows = []
    for row in iteration_table(times).iter_rows(named=True):
        spent = dict(waited.filter(pl.col("iteration") == row["iteration"]).select("item", "seconds").rows())
        rows.append({**row, "waited": spent, **_split(row, spent)})
    return rows


def _split(row: dict[str, Any], spent: dict[str, float]) -> dict[str, float]:
    own_s = row["wall_s"] - row["elsewhere_s"]
    return {
        "own_s": own_s,
        "warm_s": own_s - sum(spent.get(item, 0.0) for item in STARTING),
        "generate_s": spent.get(GENERATE, 0.0),
        "update_s": spent.get(TRAIN, 0.0) + spent.get(LOG_PROBS, 0.0),
    }


def arguments(about: str | None, sizes: Collection[str], *more: str) -> argparse.ArgumentParser:
    """Make the parser of a benchmark.

    Args:
        about: text for --help.
        sizes: choices of --size.
        more: further options: "dtype", "rounds", and hidden options for child processes.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file of all figures")
    parser.add_argument("--size", choices=sizes, default="usual")
    for name in more:
        if name == "dtype":
            parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the base weights")
        elif name == "rounds":
            parser.add_argument("--rounds", type=int, help="how often each way is measured")
        else:
            parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    return parser
