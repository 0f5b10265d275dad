"""What `--dry-run` prints: the runs, their work, estimated hours, and with SLURM what is submitted.

In: a sweep. Out: text. It creates nothing, needs no SLURM, and loads no heavy package. If problems
are not on this machine, it uses the number in the sweep file and reports that they are missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from core_hpc.common.errors import InputError
from core_hpc.config.cluster import ClusterSection, PhaseGroup
from core_hpc.config.problems import DataSetProblems
from core_hpc.controller import estimate
from core_hpc.controller.prepare import splits_of
from core_hpc.problems.sets import set_sizes
from core_hpc.runs import folder as runfolders
from core_hpc.runs.graph import Graph, steps_per_iteration
from core_hpc.runs.sweep import RunPlan, Sweep
from core_hpc.slurm.arrays import CHAINS
from core_hpc.slurm.submit import batch_script, group_of, job_parameters
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import COLD, EVALUATE


def print_plan(sweep: Sweep, console: Console) -> None:
    """Print the plan of a sweep.

    Raises:
        RunConflictError: a run was started with other scientific fields, so a start would be
            refused. The plan is printed first.
    """
    conflicts = runfolders.conflicts(sweep)
    held_out, missing = _held_out(sweep)
    graphs = {
        plan.run_id: Graph.of(plan.config, num_evaluation_problems=sum(held_out[plan.run_id].values()))
        for plan in sweep.runs
    }
    table = Table(title=f"sweep {sweep.name}: {len(sweep.runs)} run(s) in {sweep.folder}", title_justify="left")
    for column in ("run", "tasks", "completions at most", "new tokens at most", "optimizer steps per model", "state"):
        table.add_column(column, justify="left" if column in ("run", "state") else "right")
    for plan in sweep.runs:
        graph = graphs[plan.run_id]
        completions, tokens, steps = most_work(plan, graph, held_out[plan.run_id])
        state = "exists: will continue" if runfolders.exists(plan, sweep.folder) else "new"
        state = "conflict: see below" if plan.run_id in conflicts else state
        table.add_row(plan.run_id, f"{len(graph.tasks())}", f"{completions:,}", f"{tokens:,}", f"{steps:,}", state)
    console.print(table)
    console.print_json(json.dumps(sweep.runs[0].config.model_dump(mode="json")))
    if len(sweep.runs) > 1:
        console.print("(this is the configuration of the first run)")
    evaluated = {
        run_id: {name: len(graph.evaluated()) * num for name, num in held_out[run_id].items()}
        for run_id, graph in graphs.items()
    }
    _print_estimate(sweep, evaluated, console)
    cluster = sweep.cluster
    if cluster.uses_slurm:
        _print_arrays(sweep, graphs, console) if cluster.driver == "arrays" else _print_jobs(sweep, graphs, console)
        for what, script in planned_scripts(sweep, graphs[sweep.runs[0].run_id]).items():
            console.print(f"\n[bold]--- batch script: {what} ---[/bold]")
            console.print(script, markup=False, soft_wrap=True)
    for message in missing:
        console.print(f"\nbefore a start: {message}", markup=False, soft_wrap=True)
    if conflicts:
        runfolders.check_conflicts(sweep)


def _held_out(sweep: Sweep) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Find the number of held-out problems of each run, by set of its evaluation.

    Returns:
        The numbers by run and set, and messages about data sets that are missing here.

    Raises:
        InputError: the problems cannot be made. A missing data set of the hub is no error if the
            sweep file has its `count`.
    """
    found: dict[tuple[str, str, int], dict[str, int]] = {}
    by_run, missing = {}, []
    for plan in sweep.runs:
        problems, evaluation = plan.config.problems, plan.config.evaluation
        alike = problems.model_dump_json(), evaluation.model_dump_json(), plan.config.protocol.problems_per_iteration
        if alike not in found:  # runs of a sweep mostly have the same problems
            try:
                found[alike] = set_sizes(plan.config, splits_of(plan).evaluation)
            except InputError as e:
                held_out = {"": problems.evaluation, **{own.name: own.problems for own in evaluation.sets}}
                sources = (problems.train, *held_out.values())
                from_hub = any(isinstance(s, DataSetProblems) and s.path is None for s in sources)
                counts = {name: source.count for name, source in held_out.items() if source.count is not None}
                if not from_hub or len(counts) < len(held_out):
                    raise
                found[alike] = counts
                missing.append(str(e))
        by_run[plan.run_id] = found[alike]
    return by_run, list(dict.fromkeys(missing))


def _print_estimate(sweep: Sweep, evaluations: Mapping[str, Mapping[str, int]], console: Console) -> None:
    table = Table(title=f"estimated hours of one device, all {len(sweep.runs)} run(s)", title_justify="left")
    table.add_column("device, if completions have on average")
    for share in estimate.LENGTH_SHARES:
        table.add_column(f"{share:.0%} of max_new_tokens", justify="right")
    for device in estimate.DEVICES:
        totals = [
            sum(estimate.hours(plan.config, evaluations[plan.run_id], share, device) for plan in sweep.runs)
            for share in estimate.LENGTH_SHARES
        ]
        table.add_row(device.name, *(f"{hours:,.1f}" for hours in totals))
    console.print(table)
    console.print(estimate.FORMULA, markup=False)
    for device in estimate.DEVICES:
        rates = f"sampling {device.sampling:,g} and training {device.training:,g} billions of parameters x tokens/s"
        console.print(f"{device.name}: {rates} ({device.source})", markup=False)
    models = dict.fromkeys(model.model for plan in sweep.runs for model in plan.config.team)
    if unknown := [name for name in models if estimate.billions_of(name) is None]:
        billions = f"{estimate.UNKNOWN_BILLIONS:g} billion parameters"
        console.print(f"assumed to have {billions}, because the name has no size: {', '.join(unknown)}", markup=False)


def most_work(plan: RunPlan, graph: Graph, num_evaluation: Mapping[str, int]) -> tuple[int, int, int]:
    """The most (completions, new tokens, optimizer steps per model) that a run can have.

    Args:
        plan: the run.
        graph: its tasks.
        num_evaluation: held-out problems by set of the evaluation.
    """
    config = plan.config
    protocol, models = config.protocol, len(config.team)
    rollouts = config.iterations * protocol.problems_per_iteration * (protocol.cold_samples + protocol.rescue_samples)
    num_completions = rollouts * models
    tokens = sum(rollouts * config.sampling_of(model, COLD).max_new_tokens for model in config.team)
    for name, num in num_evaluation.items():
        own = config.for_set(name)
        evaluations = len(graph.evaluated()) * num * own.evaluation.samples
        num_completions += evaluations * models
        tokens += sum(evaluations * own.sampling_of(model, EVALUATE).max_new_tokens for model in own.team)
    return num_completions, tokens, config.iterations * steps_per_iteration(config)


# --- SLURM ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PlannedArray:
    """The array of one or more phases of an iteration, if all its tasks are ready at the same time.

    Attributes:
        times: how often it is submitted: once per iteration or evaluation.
        gpus: GPUs of one element.
        time_min: time limit of one element.
    """

    phases: tuple[str, ...]
    group: PhaseGroup
    num_tasks: int
    num_elements: int
    times: int
    gpus: int
    time_min: int

    @property
    def gpu_hours(self) -> float:
        """GPU-hours over the run, if every job takes its whole time limit."""
        return self.times * self.num_elements * self.gpus * self.time_min / 60


def planned_arrays(cluster: ClusterSection, graph: Graph) -> list[PlannedArray]:
    """The arrays of a run, in the order of its first iteration.

    With `slurm.chain_wait_s`, every element does its whole chain.
    """
    slurm = cluster.slurm
    chains = CHAINS if slurm.chain_wait_s is not None else ()
    chain_of: dict[str, tuple[str, ...]] = {phase: chain for chain in chains for phase in chain}
    keys: dict[tuple[str, ...], list[TaskKey]] = {}
    for key in graph.tasks():
        keys.setdefault(chain_of.get(key.phase, (key.phase,)), []).append(key)
    arrays = []
    for phases, of_phases in keys.items():
        iterations = sorted({k.iteration for k in of_phases})
        tasks = [k for k in of_phases if k.iteration == iterations[-1]]
        last = [k for k in tasks if k.phase == tasks[-1].phase]
        models = {k.model for k in last}
        group = group_of(last[0].phase)
        size = slurm.generate.parts_per_job if group == "generate" else 1
        elements = len(models) * -(-len(last) // len(models) // size)
        nodes = slurm.update.nodes if group == "update" else 1
        present = tuple(p for p in phases if any(k.phase == p for k in tasks))
        array = PlannedArray(
            phases=present,
            group=group,
            num_tasks=len(tasks),
            num_elements=elements,
            times=len(iterations),
            gpus=nodes * slurm.num_gpus(group),
            time_min=slurm.job(group)["time_min"],
        )
        arrays.append(array)
    return arrays


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


def planned_scripts(sweep: Sweep, graph: Graph) -> dict[str, str]:
    """The batch scripts of the first run, by their purpose.

    When they are submitted, names end in another, random part.
    """
    plan = sweep.runs[0]
    cluster = plan.config.cluster
    folder = RunPaths(sweep.folder / plan.run_id).slurm
    jobs: list[tuple[str, PhaseGroup, str, int]] = [("resident", "resident", "resident", 1)]
    if cluster.driver == "arrays":
        arrays = planned_arrays(cluster, graph)
        shown = [a for a in arrays if EVALUATE not in a.phases] or arrays  # a run may only evaluate
        one_of_each = {a.group: a for a in reversed(shown)}
        jobs = [
            (f"{g} (here {', '.join(a.phases)})", g, a.phases[0], a.num_elements)
            for g, a in reversed(one_of_each.items())
        ]
    scripts = {}
    for what, group, prefix, num_elements in jobs:
        name = f"{prefix}-0001-0000abcd"
        parameters = job_parameters(cluster, group, name=name, comment=f"core_hpc {plan.run_id}")
        scripts[what] = batch_script(cluster, folder / name, parameters, num_elements=num_elements)
    parameters = job_parameters(
        cluster, "controller", name="controller-0001-0000abcd", comment=f"core_hpc {sweep.name}"
    )
    scripts["controller (--detach only)"] = batch_script(
        cluster, sweep.folder / "slurm" / "controller", parameters, num_elements=1
    )
    return scripts
