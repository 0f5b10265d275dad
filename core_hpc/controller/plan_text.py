"""What `--dry-run` prints: a short plan, or with `--full` everything that is known.

In: a `Plan` (`plan.py`). Out: text. Nothing is computed here but sums.
"""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from core_hpc.controller import estimate
from core_hpc.controller.plan import Plan, planned_arrays, sweep_hours
from core_hpc.runs.conflicts import check_conflicts
from core_hpc.runs.graph import Graph
from core_hpc.runs.sweep import Sweep

NUM_SHOWN = 12
"""Runs in the table of a short plan."""
STALE = (
    "an iteration is sampled with the weights before the last update, while the one before is scored and updated; this "
    "saves most time where engines and trainers have GPUs of their own"
)
STATES = {"new": "new", "exists": "exists: will continue", "conflict": "conflict: see below"}


def print_plan(plan: Plan, console: Console, *, full: bool = False) -> None:
    """Print a plan.

    Raises:
        RunConflictError: a run was started with other scientific fields, so a start would be
            refused. The plan is printed first.
    """
    sweep = plan.sweep
    console.print(_runs(plan, full=full))
    if not full and len(plan.runs) > NUM_SHOWN:
        console.print(f"... and {len(plan.runs) - NUM_SHOWN} more runs (all of them: --full)")
    if len(plan.runs) > 1:
        completions, tokens = sum(r.completions for r in plan.runs), sum(r.new_tokens for r in plan.runs)
        console.print(f"all {len(plan.runs)} runs: at most {completions:,} completions and {tokens:,} new tokens")
    if full:
        console.print_json(json.dumps(sweep.runs[0].config.model_dump(mode="json")))
        if len(plan.runs) > 1:
            console.print("(this is the configuration of the first run)")
        _print_estimate(plan, console)
    console.print(_hours(plan), soft_wrap=True)
    if stale := [run for run in sweep.runs if run.config.protocol.staleness]:
        which = "" if len(stale) == len(sweep.runs) else f" ({len(stale)} of {len(sweep.runs)} runs)"
        console.print(f"protocol.staleness: 1{which}: {STALE}", soft_wrap=True)
    if plan.comparison is not None:
        console.print(f"comparison: {plan.comparison}", markup=False, soft_wrap=True)
    if full and sweep.cluster.driver == "arrays":
        _print_arrays(sweep, plan.graphs, console)
    elif sweep.cluster.uses_slurm and (full or sweep.cluster.driver == "resident"):
        _print_jobs(sweep, plan.graphs, console)
    _print_scripts(plan, console, full=full)
    for check in plan.checks:
        start = "a start is refused: " if check.refuses else "before a start: "
        console.print(f"\n{start}{check.what}", markup=False, soft_wrap=True)
    if any(run.state == "conflict" for run in plan.runs):
        check_conflicts(sweep)


def _runs(plan: Plan, *, full: bool) -> Table:
    sweep = plan.sweep
    table = Table(title=f"sweep {sweep.name}: {len(plan.runs)} run(s) in {sweep.folder}", title_justify="left")
    for column in ("run", "tasks", "completions at most", "new tokens at most", "optimizer steps per model", "state"):
        table.add_column(column, justify="left" if column in ("run", "state") else "right")
    for run in plan.runs if full else plan.runs[:NUM_SHOWN]:
        numbers = (run.tasks, run.completions, run.new_tokens, run.optimizer_steps)
        table.add_row(run.run_id, *(f"{number:,}" for number in numbers), STATES[run.state])
    return table


def _hours(plan: Plan) -> str:
    """One range for the whole sweep, and how it relates to the time limits of the jobs."""
    hours = plan.hours
    low, high = (f"{share:.0%}" for share in (estimate.LENGTH_SHARES[0], estimate.LENGTH_SHARES[-1]))
    computed = hours.device in {device.name for device in estimate.COMPUTED}
    device = f"{hours.device} (experimental: computed, not measured)" if computed else hours.device
    text = (
        f"{hours.unit}: {_number(hours.low)} to {_number(hours.high)} on {device}, for completions of {low} "
        f"to {high} of max_new_tokens (how it is computed: --full)"
    )
    if hours.limit is None:
        return text
    text += f"; the jobs may take {_number(hours.limit)} GPU-hours until their time limits"
    if hours.limit < hours.high:
        text += ". Long completions would not fit into them: raise time_min, or lower max_new_tokens"
    return text


def _number(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 0.1 else f"{hours:.2g}"


def _print_scripts(plan: Plan, console: Console, *, full: bool) -> None:
    for what, script in list(plan.scripts.items())[: None if full else 1]:
        console.print(f"\n[bold]--- batch script: {what} ---[/bold]")
        console.print(script, markup=False, soft_wrap=True)
    if not full and len(plan.scripts) > 1:
        console.print(f"\n{len(plan.scripts) - 1} more batch script(s), all jobs and the configuration: --full")


def _print_estimate(plan: Plan, console: Console) -> None:
    sweep = plan.sweep
    table = Table(title=f"estimated hours of one device, all {len(sweep.runs)} run(s)", title_justify="left")
    table.add_column("device, if completions have on average")
    for share in estimate.LENGTH_SHARES:
        table.add_column(f"{share:.0%} of max_new_tokens", justify="right")
    for device in (*estimate.DEVICES, *estimate.COMPUTED):
        totals = sweep_hours(sweep, plan.runs, device)
        table.add_row(device.name, *(f"{hours:,.1f}" for hours in totals))
    console.print(table)
    console.print(estimate.FORMULA, markup=False)
    for device in (*estimate.DEVICES, *estimate.COMPUTED):
        rates = f"sampling {device.sampling:,g} and training {device.training:,g} billions of parameters x tokens/s"
        if device.smallest:
            rates += f", smallest {device.smallest:g} billion"
        console.print(f"{device.name}: {rates} ({device.source})", markup=False)
    models = dict.fromkeys(model.model for plan in sweep.runs for model in plan.config.team)
    if unknown := [name for name in models if estimate.billions_of(name) is None]:
        billions = f"{estimate.UNKNOWN_BILLIONS:g} billion parameters"
        console.print(f"assumed to have {billions}, because the name has no size: {', '.join(unknown)}", markup=False)


def _print_arrays(sweep: Sweep, graphs: dict[str, Graph], console: Console) -> None:
    cluster = sweep.cluster
    total = 0.0
    for plan in sweep.runs:
        arrays = planned_arrays(plan.config.cluster, graphs[plan.run_id])
        hours = sum(a.gpu_hours for a in arrays)
        total += hours
        title = f"job arrays of {plan.run_id}: at most {hours:,.1f} GPU-hours (if every job takes its whole time limit)"
        table = Table(title=title, title_justify="left")
        for column in (
            "phases",
            "submitted",
            "elements",
            "tasks",
            "nodes",
            "ranks",
            "GPUs",
            "CPUs per process",
            "memory",
            "time limit",
        ):
            table.add_column(column, justify="left" if column == "phases" else "right")
        for a in arrays:
            job = cluster.slurm.job(a.group)
            nodes, ranks = (cluster.slurm.update.nodes, cluster.update_ranks) if a.group == "update" else (1, 1)
            table.add_row(
                ", ".join(a.phases),
                f"{a.times} times",
                str(a.num_elements),
                str(a.num_tasks),
                str(nodes),
                str(ranks),
                str(a.gpus),
                str(job["cpus"]),
                f"{job['mem_gb']:g} GB",
                f"{a.time_min} min",
            )
        console.print(table)
        if plan is not sweep.runs[-1]:
            console.print("")
    console.print(f"all {len(sweep.runs)} run(s): at most {total:,.1f} GPU-hours")


def _print_jobs(sweep: Sweep, graphs: dict[str, Graph], console: Console) -> None:
    """For the driver `resident`. Its number of jobs depends on how much each job does."""
    title = "one job per run; a successor follows when it reaches its time limit before the run is done"
    table = Table(title=title, title_justify="left")
    for column in ("run", "tasks", "GPUs", "ranks of an update", "CPUs", "memory", "time limit", "GPU-hours per job"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for plan in sweep.runs:
        cluster = plan.config.cluster
        job, gpus = cluster.slurm.job("resident"), cluster.slurm.num_gpus("resident")
        table.add_row(
            plan.run_id,
            str(len(graphs[plan.run_id].tasks())),
            str(gpus),
            str(cluster.update_ranks),
            str(job["cpus"]),
            f"{job['mem_gb']:g} GB",
            f"{job['time_min']} min",
            f"{gpus * job['time_min'] / 60:,.1f}",
        )
    console.print(table)
