"""Speed and memory of the analysis: reading a run of 10 (or 100) million completions.

    python -m tests.benchmarks.analysis_scale --out FILE [--size large] [--slow-files]

The benchmark measures reading from shards and from cached counts, and a whole report. Every way
runs several times in turns with the others, each time in a new process, so that its peak memory can
be measured; the medians are reported. `--only` measures some of the ways. The alternatives are:

- `decode_and_count`: decode the needed columns and count with numpy.bincount, which is close to the
  fastest possible.
- `decode`: decode the columns only.
- `duckdb_same`, `duckdb_plain`: DuckDB's group-by on the same files, with the same figures and with
  two of them.
- `python_loop`: a Python loop over a sample of rows; its time is scaled to all rows.

`--slow-files` reads 1,000 small files instead, with a library that makes every operation on them
wait 2 ms. It needs a C compiler. The comparison needs DuckDB:
`pip install -e '.[benchmark]'`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import in_process, measured, medians, peak_mb, print_table, report
from tests.benchmarks.simulated_run import Size, make_run

SIZES = {
    "small": Size(problems=200, iterations=3, parts=2, cold=8, rescue=4, evaluation=8),
    "usual": Size(),
    "large": Size(cold=320, rescue=160, evaluation=260),
}
FILES = Size(problems=500, iterations=20, parts=8, cold=8, rescue=4, evaluation=8)
NUM_TURNS = 3
LOOP_ROWS = 200_000
OPERATION_US = 2000
COLUMNS = [
    "iteration",
    "phase",
    "model",
    "problem_id",
    "hint_given",
    "cold_failed",
    "teacher_model",
    "sample_index",
    "correct",
    "verdict",
    "finish_reason",
]
_KEYS = "iteration, phase, model, problem_id, hint_given, cold_failed, teacher_model"
_SAME = (
    f"select run_id, gold, {_KEYS}, count(*) n, sum(correct::int) c, sum((verdict = 'timeout')::int) t, "
    "sum((finish_reason = 'length')::int) l, min(case when correct then sample_index end) first, "
    "max(sample_index) last, sum(sample_index) s from read_parquet({files}) group by all"
)
_PLAIN = f"select {_KEYS}, count(*) n, sum(correct::int) c from read_parquet({{files}}) group by all"


def _files(run: Path) -> list[Path]:
    return sorted(p for phase in ("cold", "rescue", "evaluate") for p in run.glob(f"{phase}/iteration=*/*.parquet"))


def _ours(run: Path) -> int:
    from analysis.counts.load import load_run

    return int(load_run(run, answers=False).counts["n"].sum())


def _report(run: Path) -> int:
    """Read the run and make a table of Pass@k."""
    from analysis.counts.load import load_run
    from analysis.metrics.passk import pass_at_k_table

    data = load_run(run, answers=False)
    return pass_at_k_table(data.counts, ks=[1, 2, 4], models=data.models).height


def _whole_report(run: Path) -> int:
    """Write the report of the run, and return the size of its folder in bytes."""
    from analysis.__main__ import main as analyse

    with tempfile.TemporaryDirectory() as folder:
        if analyse(["report", str(run), "--out", folder]):
            raise RuntimeError("the report failed")
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _decode(run: Path, count: bool = False) -> int:
    import numpy as np
    import polars as pl

    rows, files = 0, _files(run)
    for start in range(0, len(files), 16):
        frame = pl.scan_parquet(files[start : start + 16], hive_partitioning=False).select(COLUMNS).collect()
        rows += frame.height
        if count:
            codes = frame["problem_id"].cast(pl.Categorical).to_physical().to_numpy()
            np.bincount(codes)
            np.bincount(codes, weights=frame["correct"].to_numpy())
    return rows


def _duckdb(run: Path, query: str) -> int:
    import duckdb

    return int(duckdb.sql(query.format(files=[str(p) for p in _files(run)])).pl()["n"].sum())


def _loop(run: Path) -> int:
    import polars as pl

    counts: dict[tuple[Any, ...], list[int]] = {}
    rows = pl.scan_parquet(_files(run), hive_partitioning=False).select(COLUMNS).head(LOOP_ROWS).collect()
    for row in rows.iter_rows():
        entry = counts.setdefault(row[:7], [0, 0])
        entry[0] += 1
        entry[1] += row[8]
    return rows.height


WAYS: dict[str, Callable[[Path], int]] = {
    "ours": _ours,
    "decode": _decode,
    "decode_and_count": lambda run: _decode(run, count=True),
    "duckdb_same": lambda run: _duckdb(run, _SAME),
    "duckdb_plain": lambda run: _duckdb(run, _PLAIN),
    "python_loop": _loop,
    "pass_table": _report,
    "report": _whole_report,
}
READERS = [way for way in WAYS if way != "report"]
"""The ways that are measured by default. A report of a large run takes minutes."""


def measure_one(way: str, run: Path) -> dict[str, float]:
    """Measure seconds and peak memory of one way of reading, without imports.

    Called in a new process.
    """
    import numpy as np  # noqa: F401
    import polars as pl  # noqa: F401

    import analysis.counts.load  # noqa: F401

    if way.startswith("duckdb"):
        import duckdb  # noqa: F401
    before = peak_mb()
    with measured() as cost:
        result = WAYS[way](run)
    return {"wall_s": cost.wall_s, "cpu_s": cost.cpu_s, "result": result, "peak_mb": peak_mb(), "imports_mb": before}


def _in_turns(
    ways: Sequence[str], run: Path, turns: int = NUM_TURNS, **environment: str
) -> dict[str, dict[str, float]]:
    """Return the medians of every way. The ways take turns, so that other work disturbs all of them."""
    costs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(turns):
        for way in ways:
            cost = in_process("analysis_scale", "--one", way, "--run", str(run), environment=environment)
            costs[way].append(cost)
    return {way: medians(of_way) for way, of_way in costs.items()}


def some_ways(folder: Path, size: Size, ways: Sequence[str], turns: int) -> dict[str, Any]:
    """Measure some ways on one run."""
    run = folder / "run"
    rows = make_run(run, size)
    costs = _in_turns(ways, run, turns)
    return {"rows": rows, "files": len(_files(run)), "turns": turns, "ways": costs, "ratios": _ratios(costs)}


def _ratios(ways: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    others = [way for way in ("decode", "decode_and_count", "duckdb_same", "duckdb_plain") if way in ways]
    names = {"cpu": "cpu_s", "wall": "wall_s"}
    return {
        f"ours / {other}": {name: round(ways["ours"][key] / ways[other][key], 3) for name, key in names.items()}
        for other in others
        if "ours" in ways
    }


def benchmark(folder: Path, size: Size, turns: int = NUM_TURNS) -> dict[str, Any]:
    """Measure all ways of reading one run, then cache the counts and measure reading from them."""
    from analysis.counts.load import keep_counts

    run = folder / "run"
    rows = make_run(run, size)
    ways = _in_turns(READERS, run, turns)
    ways["python_loop"]["cpu_s"] *= rows / ways["python_loop"]["result"]
    assert ways["ours"]["result"] == ways["duckdb_same"]["result"] == ways["decode"]["result"] == rows
    with measured() as keeping:
        for iteration in range(size.iterations + 1):
            keep_counts(run, iteration)
    kept = _in_turns(["ours", "pass_table"], run, turns)
    ways |= {f"{way}_from_kept": cost for way, cost in kept.items()}
    return {
        "rows": rows,
        "files": len(_files(run)),
        "ways": ways,
        "keeping_cpu_s_per_iteration": keeping.cpu_s / (size.iterations + 1),
        "ratios": _ratios(ways),
        "python_loop / ours": round(ways["python_loop"]["cpu_s"] / ways["ours"]["cpu_s"], 1),
    }


def slow_files(folder: Path) -> dict[str, Any]:
    """Compare our wall time with DuckDB's on 1,000 files on which every operation waits."""
    run, shim = folder / "run", folder / "shim.so"
    rows = make_run(run, FILES)
    source = Path(__file__).with_name("slow_files.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", str(source), "-o", str(shim), "-ldl"], check=True)
    slow = {"LD_PRELOAD": str(shim), "SLOW_PREFIX": str(run), "SLOW_US": str(OPERATION_US)}
    readers = ["ours", "duckdb_same"]
    fast_costs, slow_costs = _in_turns(readers, run), _in_turns(readers, run, **slow)
    ways = {way: {"fast": fast_costs[way], "slow": slow_costs[way]} for way in readers}
    wall = {way: figures["slow"]["wall_s"] for way, figures in ways.items()}
    return {
        "rows": rows,
        "files": len(_files(run)),
        "ways": ways,
        "ours / duckdb_same, slow": round(wall["ours"] / wall["duckdb_same"], 2),
    }


def show(figures: dict[str, Any]) -> None:
    """Print a report."""
    rows = {}
    for way, cost in figures["ways"].items():
        for name, one in [("", cost)] if "wall_s" in cost else [(f" ({k})", v) for k, v in cost.items()]:
            peak = f"peak {one['peak_mb']:6.0f} MB ({one['imports_mb']:.0f} of it imports)"
            rows[f"{way}{name}"] = f"{one['wall_s']:8.3f} s  {one['cpu_s']:8.3f} CPU-s  {peak}"
    print_table(f"{figures['rows']:,} completions in {figures['files']:,} files", rows)
    ratios = {name: value for name, value in figures.items() if "/" in name} | figures.get("ratios", {})
    if ratios:
        print_table("ratios", ratios)


def _measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    if args.slow_files:
        return slow_files(folder)
    if args.only:
        return some_ways(folder, SIZES[args.size], args.only, args.turns)
    return benchmark(folder, SIZES[args.size], args.turns)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="usual")
    parser.add_argument("--slow-files", action="store_true")
    parser.add_argument("--only", nargs="+", choices=WAYS, help="measure these ways only")
    parser.add_argument("--turns", type=int, default=NUM_TURNS, help="how often each way runs")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.one:
        print(json.dumps(measure_one(args.one, args.run)))
        return
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        figures = _measure(Path(folder), args)
    show(figures)
    print(f"in {time.monotonic() - began:.0f} s")
    if args.out:
        report(args.out, figures)


if __name__ == "__main__":
    main()
