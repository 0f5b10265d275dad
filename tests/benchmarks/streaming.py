"""Parts that share an engine: rescues begin while other parts still sample cold completions.

    python -m tests.benchmarks.streaming --out FILE [--size small] [--dtype bfloat16]

The launcher runs one iteration of the quickstart's models in three ways, alternately: all problems
in one part; four parts, which an engine samples one after the other; and the same four parts at
once (cluster.parts_in_engine). Engines are warm, because the untrained models are evaluated first.
The benchmark measures completion tokens per second from the start of the first cold task to the end
of the last rescue, and the share of completions that are the same, token for token, as with one
part. Completions can differ because requests that are decoded together change rounding errors.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.timing.recorded import times_of
from core_hpc.store import shards
from core_hpc.store.schema import COLD, RESCUE, ROLLOUTS
from tests.benchmarks.measure import conclude, print_table
from tests.benchmarks.real_run import arguments, launched, settings

SIZES = {"small": (4, 2, 1, 1), "usual": (32, 4, 2, 3)}
"""Problems, cold and rescue samples, rounds."""
NUM_PARTS = 4
WAYS = {"one part": (1, 1), "parts in turns": (NUM_PARTS, 1), "parts at once": (NUM_PARTS, NUM_PARTS)}
"""Number of parts, and how many of them share an engine."""
IDENTITY = ["phase", "model", "problem_id", "sample_index"]


def turn(folder: Path, way: str, size: str, dtype: str) -> dict[str, Any]:
    """Run once. Return the seconds of sampling, and what was sampled."""
    problems, cold, rescue, _ = SIZES[size]
    num_parts, at_once = WAYS[way]
    values = [
        *settings(problems=problems, cold=cold, rescue=rescue, dtype=dtype),
        "evaluation.before=true",
        f"protocol.problems_per_part={problems // num_parts}",
        f"cluster.parts_in_engine={at_once}",
    ]
    run, _ = launched(folder, values)
    spans = [(t.began, t.ended) for t in times_of(run).tasks if t.key.phase in (COLD, RESCUE)]
    rows = shards.read_rows(run, ROLLOUTS, phases=[COLD, RESCUE]).select(
        *IDENTITY, "completion_token_ids", "num_completion_tokens"
    )
    shutil.rmtree(folder)
    seconds = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return {"seconds": seconds, "tokens_per_s": int(rows["num_completion_tokens"].sum()) / seconds, "rows": rows}


def benchmark(folder: Path, size: str, dtype: str, rounds: int | None) -> dict[str, Any]:
    """Run all ways alternately."""
    rounds = rounds or SIZES[size][-1]
    turns = [
        {way: turn(folder / f"{i}-{number}", way, size, dtype) for number, way in enumerate(WAYS)}
        for i in range(rounds)
    ]
    first = turns[0]["one part"]["rows"].rename({"completion_token_ids": "first"}).drop("num_completion_tokens")
    equal = {}
    for way in WAYS:
        both = turns[0][way]["rows"].join(first, on=IDENTITY)
        equal[way] = (both["completion_token_ids"] == both["first"]).mean()
    rates = {way: [t[way]["tokens_per_s"] for t in turns] for way in WAYS}
    ratios = {
        f"parts at once / {way}": statistics.median(
            t["parts at once"]["tokens_per_s"] / t[way]["tokens_per_s"] for t in turns
        )
        for way in WAYS
        if way != "parts at once"
    }
    return {
        "size": size,
        "dtype": dtype,
        "rounds": rounds,
        "num_completions": first.height,
        "tokens_per_s": rates,
        "seconds": {way: [t[way]["seconds"] for t in turns] for way in WAYS},
        "same completions as with one part": equal,
        "ratios": ratios,
    }


def show(figures: dict[str, Any]) -> None:
    """Print a report."""
    rows = {
        way: ", ".join(f"{rate:.0f}" for rate in rates) + " tokens/s" for way, rates in figures["tokens_per_s"].items()
    }
    rows |= {name: f"{value:.2f}" for name, value in figures["ratios"].items()}
    rows |= {
        f"{way}, the same as with one part": f"{part:.1%}"
        for way, part in figures["same completions as with one part"].items()
    }
    print_table(f"sampling, {figures['num_completions']} completions, {figures['dtype']}", rows)


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    options = arguments(__doc__, SIZES, "dtype", "rounds").parse_args(given)
    conclude(lambda folder: benchmark(folder, options.size, options.dtype, options.rounds), show, options.out)


if __name__ == "__main__":
    main()
