"""python -m core_hpc.launch SWEEP.yaml: from a sweep file to finished runs; the same command continues.

Thin: reads the file (sweep.py), prepares what is new (prepare.py), holds the sweep's claim (claims.py), drives the
runs (schedule.py) and prints the result tables (analysis).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core_hpc import runs as runfolders
from core_hpc import store
from core_hpc.claims import claim
from core_hpc.errors import CoreHpcError, InputError
from core_hpc.executors import LocalExecutor, LocalLimits
from core_hpc.paths import SweepPaths
from core_hpc.problems import Splits, check_counts, make_splits
from core_hpc.runs import ModelFacts
from core_hpc.schedule import RunProgress, Scheduler, inspect_run
from core_hpc.state import Graph, steps_per_iteration
from core_hpc.sweep import RunPlan, Sweep, load_sweep

LOG_WIDTH = 120
MIN_FREE_GB = 1.0
EXIT_INTERRUPTED = 130


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m core_hpc.launch", description="Run a sweep. The same command again continues where it was."
    )
    parser.add_argument("sweep", type=Path, help="YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides", help="override a field (repeatable)")
    parser.add_argument("--output", help="folder of all sweeps, instead of the file's `output`")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved runs and the work they mean; create nothing")
    parser.add_argument("--verify", action="store_true", help="check the checksums of everything that is published before going on")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    options = parse_arguments(arguments)
    # Not on a terminal (a log file), tables would otherwise be squeezed into 80 columns.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else LOG_WIDTH
    console = Console(highlight=False, width=width)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sweep = load_sweep(options.sweep, options.overrides, output=options.output)
        if options.dry_run:
            print_plan(sweep, console)
            return 0
        return launch(sweep, console, verify=options.verify)
    except CoreHpcError as e:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/bold red] {escape(str(e))}")
        return e.exit_code
    except KeyboardInterrupt:
        console.print("\ninterrupted; nothing that was published is lost. The same command goes on from here.", soft_wrap=True)
        return EXIT_INTERRUPTED


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def launch(sweep: Sweep, console: Console, *, verify: bool = False) -> int:
    """Run a sweep on this machine to its end; 0 when every run finished."""
    runfolders.check_conflicts(sweep)
    store.require_writable(sweep.folder, min_free_gb=MIN_FREE_GB)
    limits = LocalLimits.of(sweep.runs[0].config.cluster, max(len(plan.config.team) for plan in sweep.runs))
    prepared = _prepare_new(sweep, console)
    with claim(SweepPaths(sweep.folder).claim):
        progress = _open_runs(sweep, prepared, console, verify=verify)
        work_left = any(p.open for p in progress)
        if work_left:
            _drive(sweep, progress, limits, console)
        else:
            console.print(f"everything is done: {len(progress)} run(s) of sweep {sweep.name} are finished; nothing was changed.")
    return _conclude(sweep, progress, console)


# --- before -------------------------------------------------------------------------------------------------------


def _splits(plan: RunPlan) -> Splits:
    splits = make_splits(plan.config.problems)
    check_counts(plan.config, splits)
    return splits


def _prepare_new(sweep: Sweep, console: Console) -> dict[str, tuple[Splits, dict[str, ModelFacts]]]:
    """Splits and model facts of the runs whose folder does not exist yet, by run id."""
    new = [plan for plan in sweep.runs if not runfolders.exists(plan, sweep.folder)]
    splits = [_splits(plan) for plan in new]
    if not new:
        return {}
    console.print("preparing models and problems (the first time converts weights; a minute or two) ...")
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "facts.json")
        request = json.dumps({"configs": [plan.config.model_dump(mode="json") for plan in new]})
        done = subprocess.run(
            [sys.executable, "-m", "core_hpc.prepare", str(answer)], input=request.encode(), capture_output=True, check=False,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )
        if not answer.exists():
            words = done.stderr.decode(errors="replace")[-4000:]
            raise CoreHpcError(f"preparation ended with status {done.returncode}; its last words:\n{words}")
        facts = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in facts:
        raise InputError(f"{sweep.source}: nothing was created\n{facts['error']}")
    found = [{name: ModelFacts(**f) for name, f in run.items()} for run in facts["facts"]]
    return {plan.run_id: (s, f) for plan, s, f in zip(new, splits, found, strict=True)}


def _open_runs(
    sweep: Sweep, prepared: dict[str, tuple[Splits, dict[str, ModelFacts]]], console: Console, *, verify: bool
) -> list[RunProgress]:
    source = SweepPaths(sweep.folder).source
    if not source.exists():
        source.write_text(sweep.text, encoding="utf-8")
    opened = []
    for plan in sweep.runs:
        if runfolders.exists(plan, sweep.folder):
            run = runfolders.start(plan, sweep.folder)
        else:
            run = runfolders.create(plan, sweep.folder, *prepared[plan.run_id])
        progress, messages = inspect_run(run, clean=True, checksum=verify)
        for message in messages:
            console.print(f"[yellow]damaged:[/yellow] {escape(message)}")
        opened.append(progress)
    return opened


# --- dry run ------------------------------------------------------------------------------------------------------


def print_plan(sweep: Sweep, console: Console) -> None:
    """The resolved runs and the work that they mean, without creating anything or loading a heavy package."""
    table = Table(title=f"sweep {sweep.name}: {len(sweep.runs)} run(s) in {sweep.folder}", title_justify="left")
    for column in ("run", "tasks", "completions at most", "new tokens at most", "optimizer steps a model", "state"):
        table.add_column(column, justify="left" if column in ("run", "state") else "right")
    for plan in sweep.runs:
        splits = _splits(plan)
        graph = Graph.of(plan.config, num_evaluation_problems=splits.evaluation.height)
        completions, tokens, steps = most_work(plan, graph, splits.evaluation.height)
        state = "exists: will continue" if runfolders.exists(plan, sweep.folder) else "new"
        table.add_row(plan.run_id, f"{len(graph.tasks())}", f"{completions:,}", f"{tokens:,}", f"{steps:,}", state)
    console.print(table)
    console.print_json(json.dumps(sweep.runs[0].config.model_dump(mode="json")))
    if len(sweep.runs) > 1:
        console.print("(the configuration shown is that of the first run)")


def most_work(plan: RunPlan, graph: Graph, num_evaluation: int) -> tuple[int, int, int]:
    """(completions, new tokens, optimizer steps of a model), each at most."""
    config = plan.config
    protocol, evaluation, models = config.protocol, config.evaluation, len(config.team)
    rollouts = config.iterations * protocol.problems_per_iteration * models * (protocol.cold_samples + protocol.rescue_samples)
    evaluations = len(graph.evaluated()) * num_evaluation * models * evaluation.samples
    tokens = rollouts * protocol.sampling.max_new_tokens + evaluations * evaluation.sampling.max_new_tokens
    return rollouts + evaluations, tokens, config.iterations * steps_per_iteration(config)


# --- running ------------------------------------------------------------------------------------------------------


def _drive(sweep: Sweep, progress: list[RunProgress], limits: LocalLimits, console: Console) -> None:
    from core_hpc.display import Display, duration
    from core_hpc.tracking import Tracking

    cluster = sweep.runs[0].config.cluster
    done = sum(len(p.published & set(p.graph.tasks())) for p in progress)
    total = sum(len(p.graph.tasks()) for p in progress)
    console.print(
        f"sweep {sweep.name}: {len(progress)} run(s), {total} tasks" + (f", {done} of them published already" if done else "")
        + f"; {limits.num_running} task(s) at a time, {limits.threads} thread(s) each, {len(limits.gpus) or 'no'} GPU(s)"
    )
    started = time.monotonic()
    executor = LocalExecutor(cluster, limits)
    tracking = Tracking(progress)
    try:
        with Display(console, sweep.name, progress) as display:
            Scheduler(progress, executor, [display, tracking], max_attempts=cluster.max_attempts).run()
    finally:
        executor.close()
        tracking.close(progress)
    console.print(f"this start took {duration(time.monotonic() - started)}")


def _conclude(sweep: Sweep, progress: list[RunProgress], console: Console) -> int:
    from analysis.data import load_run
    from analysis.summary import summary_table
    from analysis.tables import render

    stopped = [p for p in progress if p.stopped]
    for p in progress:
        console.print()
        if p.stopped:
            console.print(f"[red]{escape(p.run.run_id)} stopped:[/red] {escape(p.stopped)}", soft_wrap=True)
        else:
            render([summary_table(load_run(p.run.root))], console)
    console.print("look further:")
    console.print(f"  tensorboard --logdir {sweep.folder}", soft_wrap=True)
    console.print(f"  python -m analysis report {sweep.folder} --out {sweep.folder / 'report'}", soft_wrap=True)
    for p in progress:
        console.print(f"  run folder: {p.run.root}", soft_wrap=True)
    return 1 if stopped else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
