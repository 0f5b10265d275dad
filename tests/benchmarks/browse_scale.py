"""Time and memory until the page of `analysis browse` is open on a run of 10 million completions.

    python -m tests.benchmarks.browse_scale --out FILE [--size small]

The run has simulated outcomes without texts (`simulated_run.py`). Each figure is measured in a new
process and includes its imports:

- `served`: the server starts and answers what the page asks for first, and then for five problems.
- `folder`: the whole folder is written, with the default number of completions.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.analysis_scale import SIZES
from tests.benchmarks.measure import in_process, measured, peak_mb, print_table, report
from tests.benchmarks.simulated_run import make_run

NUM_PROBLEMS = 5


def measure_one(way: str, run: Path) -> dict[str, float]:
    """Measure seconds and peak memory of one way to open the page."""
    with measured() as cost:
        from analysis.browse.content import Content, data_file
        from analysis.browse.export import export
        from analysis.counts.load import load_run

        content = Content([load_run(run, answers=False)], title="simulated")
        if way == "folder":
            with tempfile.TemporaryDirectory() as folder:
                export(content, Path(folder), title="simulated")
                size = sum(path.stat().st_size for path in Path(folder, "data").iterdir())
        else:
            block = content.blocks[-1]
            first = (content.index(live=True), content.problems(0, block.split), content.block(block))
            size = sum(len(data_file("first", part)) for part in first)
    figures = {"open_s": cost.wall_s, "open_cpu_s": cost.cpu_s, "size_mb": size / 1e6}
    if way == "served":
        ids = content.sizes(content.blocks[-1])["problem_id"].head(NUM_PROBLEMS).to_list()
        with measured() as reading:
            for problem in ids:
                assert dict(content.details(content.blocks[-1], [problem]))
        figures["problem_s"] = reading.wall_s / len(ids)
    return {**figures, "peak_mb": peak_mb()}


def benchmark(folder: Path, size: str) -> dict[str, Any]:
    """Make a run and measure both ways."""
    rows = make_run(folder / "run", SIZES[size])
    ways = {way: in_process("browse_scale", "--one", way, "--run", str(folder / "run")) for way in ("served", "folder")}
    return {"rows": rows, "ways": ways}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="usual")
    parser.add_argument("--one", choices=("served", "folder"), help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.one:
        print(json.dumps(measure_one(args.one, args.run)))
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = benchmark(Path(folder), args.size)
    shown = {way: ", ".join(f"{name} {value:.2f}" for name, value in of.items()) for way, of in figures["ways"].items()}
    print_table(f"{figures['rows']:,} completions", shown)
    if args.out:
        report(args.out, figures)


if __name__ == "__main__":
    main()
