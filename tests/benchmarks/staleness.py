"""What `protocol.staleness: 1` gains: a SIMULATION of GPUs, and a real run whose tasks sleep.

    python -m tests.benchmarks.staleness --out FILE [--size small]

1. Simulation. A team of 3B and 4B parameters on 2, 4 and 8 H100s. The real task graph decides what
   is ready, and a task starts when its worker and its GPUs are free, as under the driver `local`.
   No GPU is used: the seconds of tasks come from these formulas.

   sample = ceil(n / S) x longest x 2P / (B x e) + n x mean x 2P / (F x e)
   update = P x (n x mean + 150 x prompts) / R / ranks' speed + 2.5 s

   P: parameters; n: completions of the task; S: completions that vLLM decodes at once; longest:
   max_new_tokens, because some completion always reaches it; mean: mean length in tokens. A step of
   decoding reads all weights (2 bytes each) and computes 2 operations per weight and token; reading
   the KV cache and the prompts are left out. B = 3.35 TB/s is the data sheet of the H100 SXM,
   F = 778 TFLOP/s and R = 40,000 billion parameters x tokens/s were measured on an H100 (tests/README.md,
   The update on a GPU; `controller/estimate.py`), and so were the 2.5 s of a task. The efficiency
   e = 0.6 is an assumption, as are 0.85 of the speed for each doubling of the GPUs of a worker, 2 s
   for a hint or score task, and that half of the problems are rescued.

   GPUs are divided in two ways. own: engine and trainer of a model have GPUs of their own; shared:
   they take turns on all GPUs of their model. `unordered` is a graph in which cold tasks do not wait
   until their model has sampled the iteration before.
2. Real run. The launcher with the driver `local` and the fake engine on two tiny models, with
   staleness 0 and 1. A prompt function sleeps while it samples, and a loss function while it
   updates, so that the tasks of different workers do not compete for cores. The figure is the time
   from the first task to the last update.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.timing.recorded import times_of
from core_hpc.controller.estimate import DEVICES, PROMPT_TOKENS
from core_hpc.engines import GPU_NUM_SEQS
from core_hpc.runs.graph import Graph
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, GENERATION_PHASES, OUTSIDE_ITERATIONS, RESCUE, UPDATE
from tests.benchmarks.measure import conclude, print_table
from tests.benchmarks.real_run import arguments
from tests.support.harness import launch, the_run
from tests.support.tiny import make_tiny_model, tiny_sweep

BILLIONS = {"3b": 3.0, "4b": 4.0}
BYTES_PER_S, FLOPS = 3.35e12, 7.78e14
EFFICIENCY, DOUBLING = 0.6, 0.85
UPDATE_S, SCORE_S = 2.5, 2.0
RESCUED = 0.5
ITERATIONS = 12
GPUS = (2, 4, 8)
MAX_NEW_TOKENS = 3072


@dataclass(frozen=True)
class Work:
    """The work of an iteration: problems, cold and rescue samples, and the mean share of the longest completion."""

    problems: int
    cold: int
    rescue: int
    share: float


WORKS = {
    "the paper's 40 x (2 + 1), 10 %": Work(40, 2, 1, 0.1),
    "the paper's 40 x (2 + 1), 30 %": Work(40, 2, 1, 0.3),
    "128 x (4 + 2), 10 %": Work(128, 4, 2, 0.1),
    "128 x (4 + 2), 30 %": Work(128, 4, 2, 0.3),
}


# --- simulation -----------------------------------------------------------------------------------


def speed(num_gpus: int) -> float:
    """The speed of a worker on some GPUs, relative to one.

    >>> speed(1), speed(2), round(speed(4), 2)
    (1.0, 1.7, 2.89)
    """
    return float((2 * DOUBLING) ** math.log2(num_gpus))


def seconds_of(key: TaskKey, work: Work, num_gpus: int) -> float:
    """The seconds of a task, by the formulas above."""
    if key.model == TEAM:
        return SCORE_S
    billions, mean = BILLIONS[key.model], work.share * MAX_NEW_TOKENS
    samples = {COLD: work.problems * work.cold, RESCUE: work.problems * work.rescue * RESCUED}
    if key.phase in GENERATION_PHASES:
        num = samples[key.phase]
        reading = math.ceil(num / GPU_NUM_SEQS) * MAX_NEW_TOKENS * 2e9 * billions / (BYTES_PER_S * EFFICIENCY)
        computing = num * mean * 2e9 * billions / (FLOPS * EFFICIENCY)
        return (reading + computing) / speed(num_gpus)
    tokens = sum(samples.values()) * mean + 2 * work.problems * PROMPT_TOKENS
    return billions * tokens / DEVICES[0].training / speed(num_gpus) + UPDATE_S


def role(key: TaskKey) -> tuple[str, str]:
    """The worker of a task, as in `runs/roles.py`."""
    if key.model == TEAM:
        return ("score", TEAM)
    return ("update" if key.phase == UPDATE else "generate", key.model)


def placement(num_gpus: int, *, shared: bool) -> dict[tuple[str, str], frozenset[int]]:
    """The GPUs of each worker."""
    each = num_gpus // (2 if shared else 4)
    found = {("score", TEAM): frozenset[int]()}
    for number, model in enumerate(BILLIONS):
        for kind, place in (("generate", number), ("update", number if shared else number + 2)):
            found[kind, model] = frozenset(range(place * each, (place + 1) * each))
    return found


def graph_of(staleness: int, iterations: int = ITERATIONS) -> Graph:
    """The task graph of the team, without evaluations."""
    return Graph(
        models=tuple(BILLIONS),
        iterations=iterations,
        num_parts=1,
        num_evaluation_parts=0,
        evaluate_every=0,
        evaluate_before=False,
        has_rescue=True,
        staleness=staleness,
    )


class Unordered(Graph):
    """Without the order of cold tasks within a model."""

    def _last_samples(self, model: str, iteration: int) -> list[TaskKey]:
        return []


def simulate(graph: Graph, work: Work, gpus: Mapping[tuple[str, str], frozenset[int]]) -> float:
    """Seconds of an iteration, as a mean over the run."""
    published: set[TaskKey] = set()
    running: list[tuple[float, TaskKey]] = []
    now = 0.0
    while not graph.finished(published):
        started = {key for _, key in running}
        for key in (key for key in graph.ready(published) if key not in started):
            own = role(key)
            if all(own != role(other) and not gpus[own] & gpus[role(other)] for _, other in running):
                heapq.heappush(running, (now + seconds_of(key, work, max(1, len(gpus[own]))), key))
        now, key = heapq.heappop(running)
        published.add(key)
    return now / graph.iterations


def simulated() -> list[dict[str, Any]]:
    """One row per amount of work and number of GPUs."""
    rows = []
    for name, work in WORKS.items():
        for num_gpus in GPUS:
            row: dict[str, Any] = {"work": name, "gpus": num_gpus}
            for layout in ("shared", "own") if num_gpus > len(BILLIONS) else ("shared",):
                gpus = placement(num_gpus, shared=layout == "shared")
                graphs = graph_of(0), graph_of(1), Unordered(**vars(graph_of(1)))
                newest, stale, unordered = (simulate(graph, work, gpus) for graph in graphs)
                row[layout] = {"newest_s": newest, "stale_s": stale, "unordered_s": unordered}
                row[layout] |= {"speed_up": newest / stale, "speed_up_unordered": newest / unordered}
            layouts = [row[layout] for layout in ("shared", "own") if layout in row]
            row["best"] = min(at["newest_s"] for at in layouts) / min(at["stale_s"] for at in layouts)
            rows.append(row)
    return rows


# --- a real run whose tasks sleep -----------------------------------------------------------------

FUNCTIONS = """
import time


def slow_prompt(question, hint, examples, instruction, style, *, seconds):
    time.sleep(seconds)
    return "\\n".join([question, *([f"Hint: {hint}"] if hint else []), "Answer:"])


def slow_loss(ratio, advantage, log_prob, rescue, *, seconds):
    time.sleep(seconds)
    return ratio * advantage
"""


@dataclass(frozen=True)
class Sleeps:
    """The real run: seconds that a prompt and a micro-batch sleep, problems, and iterations."""

    prompt_s: float = 0.75
    batch_s: float = 3.0
    problems: int = 8
    iterations: int = 4


SIZES = {"small": Sleeps(0.2, 0.5, 4, 2), "usual": Sleeps()}


def sleeping(folder: Path, sleeps: Sleeps, staleness: int) -> dict[str, float]:
    """Run the launcher. Return the seconds from the first task to the last update, and those of the command."""
    folder.mkdir()
    (folder / "slow.py").write_text(FUNCTIONS)
    models = [make_tiny_model(folder / f"model{i}", seed=i) for i in range(2)]
    sampling = {"max_new_tokens": 32, "temperature": 1.0, "top_p": 1.0}
    sweep = tiny_sweep(
        folder / "tiny.yaml",
        models,
        folder / "out",
        iterations=sleeps.iterations,
        protocol={
            "problems_per_iteration": sleeps.problems,
            "cold_samples": 2,
            "rescue_samples": 1,
            "even_budget": True,
            "hint_tokens": 64,
            "staleness": staleness,
            "prompt_function": {"function": "slow.py:slow_prompt", "options": {"seconds": sleeps.prompt_s}},
            "sampling": sampling,
        },
        update={
            "problems_per_step": sleeps.problems // 4,
            "micro_batch_tokens": 100_000,
            "loss_function": {"function": "slow.py:slow_loss", "options": {"seconds": sleeps.batch_s}},
        },
        evaluation={"before": False, "samples": 1, "sampling": sampling},
        problems={
            "train": {"source": "generated", "task": "addition_chain", "count": 2 * sleeps.problems, "seed": 1},
            "evaluation": {"source": "generated", "task": "addition_chain", "count": 1, "seed": 2},
        },
        cluster={"num_running": 5, "threads": 1},
    )
    done = launch(sweep, timeout_s=3600)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    tasks = [t for t in times_of(the_run(folder / "out" / "tiny")).tasks if t.key.phase not in OUTSIDE_ITERATIONS]
    spent: dict[str, float] = {"wall_s": max(t.ended for t in tasks) - min(t.began for t in tasks)}
    for phase in (COLD, RESCUE, UPDATE):
        own = [t.ended - t.began for t in tasks if t.key.phase == phase]
        spent[f"{phase}_s"] = sum(own) / len(own)
    return spent


def benchmark(folder: Path, size: str) -> dict[str, Any]:
    """Both parts."""
    runs = [sleeping(folder / f"staleness{staleness}", SIZES[size], staleness) for staleness in (0, 1)]
    return {"simulated": simulated(), "runs": runs, "speed_up": runs[0]["wall_s"] / runs[1]["wall_s"]}


def show(figures: dict[str, Any]) -> None:
    """Print a report."""
    rows = {}
    for row in figures["simulated"]:
        at = [
            f"{layout} {row[layout]['newest_s']:.1f} -> {row[layout]['stale_s']:.1f} s "
            f"({row[layout]['speed_up']:.2f}x, unordered {row[layout]['speed_up_unordered']:.2f}x)"
            for layout in ("shared", "own")
            if layout in row
        ]
        rows[f"{row['work']}, {row['gpus']} GPUs"] = f"{', '.join(at)}; best of both {row['best']:.2f}x"
    print_table("SIMULATED seconds of an iteration with staleness 0 -> 1, 3B + 4B on H100s", rows)
    measured = [", ".join(f"{name} {value:.1f}" for name, value in run.items()) for run in figures["runs"]]
    print_table("tasks that sleep, driver local", {f"staleness {i}": text for i, text in enumerate(measured)})
    print(f"speed-up {figures['speed_up']:.2f}")


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    options = arguments(__doc__, SIZES).parse_args(given)
    conclude(lambda folder: benchmark(folder, options.size), show, options.out)


if __name__ == "__main__":
    main()
