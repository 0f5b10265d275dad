"""What a start would do: the runs, their work, estimated hours, checks, and with SLURM what is submitted.

In: a sweep. Out: a `Plan`, which `plan_text.py` prints for `--dry-run`. It creates nothing, needs no
SLURM, and loads no heavy package. If problems are not on this machine, it uses the number in the
sweep file and reports that they are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from core_hpc.common.errors import InputError
from core_hpc.config.cluster import ClusterSection
from core_hpc.config.problems import DataSetProblems
from core_hpc.config.slurm import PhaseGroup
from core_hpc.controller import estimate
from core_hpc.controller.plan_checks import Check, check_sweep
from core_hpc.controller.plan_power import Comparison, comparison_of
from core_hpc.controller.prepare import problems_key, splits_of
from core_hpc.engines import has_gpu
from core_hpc.problems.sets import set_sizes
from core_hpc.problems.splits import Splits
from core_hpc.runs import folder as runfolders
from core_hpc.runs.conflicts import find_conflicts
from core_hpc.runs.graph import Graph
from core_hpc.runs.sweep import RunPlan, Sweep
from core_hpc.slurm.arrays import CHAINS
from core_hpc.slurm.submit import batch_script, group_of, job_parameters
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import COLD, EVALUATE

State = Literal["new", "exists", "conflict"]
"""Whether a start makes a run, continues it, or is refused."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """The work of one run. Completions and tokens are the most that it can have."""

    run_id: str
    label: str
    state: State
    tasks: int
    completions: int
    new_tokens: int
    optimizer_steps: int
    """Per model."""
    evaluated: dict[str, int]
    """Held-out problems by set, in all evaluations together."""


@dataclass(frozen=True, kw_only=True)
class Hours:
    """Hours of one device for the whole sweep."""

    device: str
    unit: str
    low: float
    """If completions have the smallest of `estimate.LENGTH_SHARES` of their greatest length."""
    high: float
    """If all completions have their greatest length."""
    limit: float | None
    """GPU-hours of the jobs if each takes its whole time limit; None without SLURM, or if their number is open."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a start of a sweep would do."""

    sweep: Sweep
    runs: tuple[PlannedRun, ...]
    graphs: dict[str, Graph]
    hours: Hours
    checks: tuple[Check, ...]
    comparison: Comparison | None
    scripts: dict[str, str]
    """Batch scripts of the first run, by their purpose."""

    @property
    def is_refused(self) -> bool:
        """Whether a start would end with an error."""
        return any(check.refuses for check in self.checks) or any(run.state == "conflict" for run in self.runs)

    def as_json(self) -> dict[str, Any]:
        """Plain data for `--json`. The field `config` is the resolved configuration of the first run."""
        return {
            "sweep": self.sweep.name,
            "folder": str(self.sweep.folder),
            "runs": [asdict(run) for run in self.runs],
            "hours": asdict(self.hours),
            "checks": [asdict(check) for check in self.checks],
            "comparison": None if self.comparison is None else asdict(self.comparison),
            "scripts": self.scripts,
            "config": self.sweep.runs[0].config.model_dump(mode="json"),
        }


def make_plan(sweep: Sweep) -> Plan:
    """Find out what a start would do.

    Raises:
        InputError: the problems cannot be made.
    """
    conflicts = find_conflicts(sweep)
    problems = _Problems(sweep)
    graphs = {
        plan.run_id: Graph.of(plan.config, num_evaluation_problems=sum(problems.held_out[plan.run_id].values()))
        for plan in sweep.runs
    }
    runs = []
    for plan in sweep.runs:
        graph, held_out = graphs[plan.run_id], problems.held_out[plan.run_id]
        completions, tokens, steps = most_work(plan, graph, held_out)
        state: State = "exists" if runfolders.exists(plan, sweep.folder) else "new"
        runs.append(
            PlannedRun(
                run_id=plan.run_id,
                label=plan.label,
                state="conflict" if plan.run_id in conflicts else state,
                tasks=len(graph.tasks()),
                completions=completions,
                new_tokens=tokens,
                optimizer_steps=steps,
                evaluated={name: len(graph.evaluated()) * num for name, num in held_out.items()},
            )
        )
    return Plan(
        sweep=sweep,
        runs=tuple(runs),
        graphs=graphs,
        hours=_hours(sweep, runs, graphs),
        checks=(*problems.missing, *check_sweep(sweep, problems.splits)),
        comparison=comparison_of(sweep, {run_id: sizes[""] for run_id, sizes in problems.held_out.items()}),
        scripts=planned_scripts(sweep, graphs[sweep.runs[0].run_id]) if sweep.cluster.uses_slurm else {},
    )


class _Problems:
    """The problems of all runs.

    Attributes:
        splits: by run; a run whose data set is missing here has none.
        held_out: number of held-out problems by run and set of the evaluation.
        missing: a check for each data set that is missing here.

    Raises:
        InputError: the problems cannot be made. A missing data set of the hub is no error if the
            sweep file has its `count`.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.splits: dict[str, Splits] = {}
        self.held_out: dict[str, dict[str, int]] = {}
        found: dict[tuple[str, ...], tuple[Splits | None, dict[str, int]]] = {}
        messages: list[str] = []
        for plan in sweep.runs:
            problems, evaluation = plan.config.problems, plan.config.evaluation
            alike = problems_key(plan.config)
            if alike not in found:  # runs of a sweep mostly have the same problems
                try:
                    splits = splits_of(plan)
                    found[alike] = splits, set_sizes(plan.config, splits.evaluation)
                except InputError as e:
                    held_out = {"": problems.evaluation, **{own.name: own.problems for own in evaluation.sets}}
                    warmups = [source for m in plan.config.team if m.warmup is not None for source in m.warmup.sources]
                    sources = (problems.train, *held_out.values(), *warmups)
                    from_hub = any(isinstance(s, DataSetProblems) and s.path is None for s in sources)
                    counts = {name: source.count for name, source in held_out.items() if source.count is not None}
                    if not from_hub or len(counts) < len(held_out):
                        raise
                    found[alike] = None, counts
                    messages.append(str(e))
            own_splits, self.held_out[plan.run_id] = found[alike]
            if own_splits is not None:
                self.splits[plan.run_id] = own_splits
        self.missing = tuple(Check(what=message, refuses=False) for message in dict.fromkeys(messages))


def _hours(sweep: Sweep, runs: list[PlannedRun], graphs: dict[str, Graph]) -> Hours:
    cluster = sweep.cluster
    gpus = sum(cluster.slurm.num_gpus(group) for group in cluster.groups) if cluster.uses_slurm else int(has_gpu())
    device = estimate.device_of(cluster, has_gpu=bool(gpus))
    totals = sweep_hours(sweep, runs, device)
    limit = None
    if cluster.driver == "arrays" and gpus:
        limit = sum(a.gpu_hours for p in sweep.runs for a in planned_arrays(p.config.cluster, graphs[p.run_id]))
    unit = "GPU-hours" if gpus else "hours"
    return Hours(device=device.name, unit=unit, low=min(totals), high=max(totals), limit=limit)


def sweep_hours(sweep: Sweep, runs: Sequence[PlannedRun], device: estimate.Device) -> list[float]:
    """Hours of one device for all runs of a sweep, for each of `estimate.LENGTH_SHARES`."""
    return [
        sum(estimate.hours(p.config, run.evaluated, share, device) for p, run in zip(sweep.runs, runs, strict=True))
        for share in estimate.LENGTH_SHARES
    ]


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
    return num_completions, tokens, config.iterations * config.steps_per_iteration


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
