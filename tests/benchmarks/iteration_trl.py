"""Whole iterations on one CPU core: the launcher, compared with TRL's GRPOTrainer.

    python -m tests.benchmarks.iteration_trl --out FILE [--size small] [--ways trl-8 vllm]

Both train one model with LoRA of rank 16 on all seven projections, in float32, on the same prompts:
4 problems x 4 completions of at most 32 tokens, two optimizer steps, three iterations. Both use
grpo with clipping, KL 0.04 and AdamW, temperature 0.7, and whether the answer is correct as the
reward. No activations are computed again. Every turn is a new command on one core. The ways are:

- `trl-N`: GRPOTrainer with `generate` of transformers and batches of N. Its vLLM needs a GPU.
- `transformers`, `vllm`: the launcher with a team of one model, the driver `local` and this engine.

What differs: TRL is one process. The launcher has one process each for the controller, the engine,
the trainer and scoring; its phases publish files; it embeds all texts for rewards, although their
weight is 0; and it evaluates one held-out problem after the last iteration, which is not counted.
TRL pads batches and computes a prompt once per completion; the launcher computes it once. Both
compute old log-probabilities in a pass, because an iteration has several steps: TRL for all rows,
the launcher for those after the first step. Warm-up and schedule of the learning rate differ, which
costs nothing. The ways sample different completions.

Each turn is observed from outside: CPU seconds and memory of all processes of the command. The
figures are those of the iterations after the first one. Start-up is the first iteration, with
everything before it, minus the mean of the others. Memory is the largest sum over processes, of RSS
and of PSS, in which processes divide shared pages among them. Compare CPU seconds if other work
uses the machine. Needs trl.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

import yaml
from core_hpc.answers.extract import extract_answer
from core_hpc.answers.verifier import verify
from core_hpc.config.model import LoraSection
from core_hpc.engines import worker_environment
from core_hpc.phases.context import Warm
from core_hpc.runs.contents import problems_of_part
from core_hpc.runs.folder import Run, open_run
from core_hpc.runs.sweep import load_sweep
from core_hpc.store import shards
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import COLD, CORRECT, ROLLOUTS
from tests.benchmarks.measure import conclude, print_table
from tests.benchmarks.real_run import TIMEOUT_S, arguments, cold_task, prepared_run
from tests.support.harness import ROOT, the_run

SIZES = {"small": (8, 4, 32, 3, 1), "usual": (4, 4, 32, 3, 1)}
"""Problems, completions per problem, most new tokens, iterations, rounds."""
STEPS = 2
"""Optimizer steps of an iteration."""
WAYS = ("trl-4", "trl-8", "transformers", "vllm")
MODEL = "pypi:smollm2-135m-instruct"
NAME = "policy"
KL_WEIGHT = 0.04
TEMPERATURE = 0.7
LEARNING_RATE = 4e-5
POLL_S = 0.2


def write_sweep(path: Path, reference: str, engine: str, size: str) -> Path:
    """Write a sweep file with a team of one model."""
    problems, samples, new_tokens, iterations, _ = SIZES[size]
    addition = {"source": "generated", "task": "addition_chain", "options": {"num_terms": 2, "max_value": 12}}
    sampling = {"temperature": TEMPERATURE, "top_p": 1.0, "max_new_tokens": new_tokens}
    sweep = {
        "name": "iteration",
        "seed": 0,
        "iterations": iterations,
        "team": [{"name": NAME, "model": reference, "engine": engine, "dtype": "float32"}],
        "problems": {
            "train": {**addition, "count": problems, "seed": 1},
            "evaluation": {**addition, "count": 1, "seed": 2},
        },
        "protocol": {
            "problems_per_iteration": problems,
            "cold_samples": samples,
            "rescue_samples": 0,
            "sampling": sampling,
        },
        "reward": {
            "exploit": {"partial": "none"},
            **{part: {"weight": 0.0} for part in ("explore", "rescue", "trace_accuracy", "cross")},
        },
        "update": {
            "group": "model",
            "problems_per_step": problems // STEPS,
            "learning_rate": LEARNING_RATE,
            "kl_weight": KL_WEIGHT,
            "importance": {"kind": "none"},
            "micro_batch_tokens": 1024,
            "checkpoint_min": 1e6,
        },
        "evaluation": {"before": False, "samples": 1, "sampling": sampling},
    }
    path.write_text(yaml.safe_dump(sweep), encoding="utf-8")
    return path


# --- TRL -----------------------------------------------------------------------------------------


def trl(run: Run, batch: int, marks: Path) -> None:
    """Train with GRPOTrainer. A line per iteration with its number of tokens is added to `marks`."""
    # TRL would import vLLM, which changes the process.
    sys.modules["vllm"] = None  # type: ignore[assignment]
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    config, lora = run.config, LoraSection()
    task = cold_task(run, NAME, Warm(threads=1))
    builder, stops, spec = task.prompt_builder(task.model), task.stop_strings(task.model), task.engine_spec()
    rows, tokenizer = [], builder.tokenizer
    for problem in problems_of_part(run, task.key).to_dicts():
        ids = builder.build(problem["question"])
        text = tokenizer.decode(list(ids))
        assert tuple(tokenizer(text=text)["input_ids"]) == ids, "TRL would get other tokens"
        rows.append({"prompt": text, "gold": problem["gold"], "answer_kind": problem["answer_kind"]})
    num_rows, num_tokens = len(rows) * config.protocol.cold_samples, [0]

    def reward(completion_ids: Any, gold: Any, answer_kind: Any, **_: Any) -> list[float]:
        num_tokens[0] += sum(map(len, completion_ids))
        texts = [builder.completion_text(ids, stops) for ids in completion_ids]
        given = zip(texts, gold, answer_kind, strict=True)
        return [float(verify(extract_answer(text, kind), right, kind) == CORRECT) for text, right, kind in given]

    class Marks(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % STEPS == 0:
                with marks.open("a") as out:
                    out.write(f"{num_tokens[0]}\n")
                num_tokens[0] = 0

    with tempfile.TemporaryDirectory() as out:
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(spec.model_folder, dtype=torch.float32),
            args=GRPOConfig(
                output_dir=out,
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=num_rows // STEPS // batch,
                steps_per_generation=num_rows // batch,
                num_generations=config.protocol.cold_samples,
                max_steps=STEPS * config.iterations,
                beta=KL_WEIGHT,
                loss_type="grpo",
                temperature=TEMPERATURE,
                top_p=1.0,
                top_k=0,
                max_completion_length=config.sampling_of(task.model, COLD).max_new_tokens,
                learning_rate=LEARNING_RATE,
                weight_decay=0.01,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                use_vllm=False,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=0,
            ),
            processing_class=tokenizer,
            reward_funcs=reward,
            train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(
                r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets, task_type="CAUSAL_LM"
            ),
            callbacks=[Marks()],
        )
        assert trainer.train().global_step == STEPS * config.iterations


# --- measuring -----------------------------------------------------------------------------------


@dataclass
class Sample:
    """What all processes of a command have used so far, and their memory now."""

    seconds: float
    cpu_s: float
    rss_mb: float
    pss_mb: float


def sample(root: psutil.Process, began: float) -> Sample:
    """Look at a process and its descendants. Those that have ended count in the CPU time of their parents."""
    cpu_s = rss = pss = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            cpu_s += sum(process.cpu_times()[:4])
            memory = process.memory_full_info()
            rss, pss = rss + memory.rss, pss + memory.pss
        except psutil.Error:
            continue  # it has just ended
    return Sample(time.perf_counter() - began, cpu_s, rss / 2**20, pss / 2**20)


def observe(command: Sequence[str], count: Callable[[], int], core: int, environment: dict[str, str]) -> dict[str, Any]:
    """Run a command on one core until it ends.

    Args:
        command: the command.
        count: returns how many iterations have ended.
        core: index of the core.
        environment: variables that override those of this process.

    Returns:
        The figures at the end of every iteration, the peaks of memory, and the seconds of all.
    """
    with tempfile.TemporaryFile("w+") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        root, ends, rss, pss = psutil.Process(process.pid), list[Sample](), 0.0, 0.0
        try:
            while process.poll() is None and time.perf_counter() - began < TIMEOUT_S:
                ended = count()
                try:
                    now = sample(root, began)
                except psutil.Error:
                    break  # it has ended between the two looks
                rss, pss = max(rss, now.rss_mb), max(pss, now.pss_mb)
                ends += [now] * (ended - len(ends))
                time.sleep(POLL_S)
            process.wait(timeout=60)
        finally:
            process.kill()
        log.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}:\n{log.read()[-4000:]}")
    return {
        "command_s": time.perf_counter() - began,
        "ends": [vars(end) for end in ends],
        "peak_rss_mb": rss,
        "peak_pss_mb": pss,
    }


def figures_of(observed: dict[str, Any], num_tokens: Sequence[int]) -> dict[str, Any]:
    """Return the figures of the iterations after the first one. `num_tokens` is for each iteration."""
    ends = observed["ends"]
    assert len(ends) == len(num_tokens) > 1, f"{len(ends)} of {len(num_tokens)} iterations were seen to end"
    warm = {name: (ends[-1][name] - ends[0][name]) / (len(ends) - 1) for name in ("seconds", "cpu_s")}
    return {
        "iteration_s": warm["seconds"],
        "iteration_cpu_s": warm["cpu_s"],
        "tokens_per_cpu_s": statistics.mean(num_tokens[1:]) / warm["cpu_s"],
        "tokens": statistics.mean(num_tokens[1:]),
        "start_s": ends[0]["seconds"] - warm["seconds"],
        "start_cpu_s": ends[0]["cpu_s"] - warm["cpu_s"],
        "peak_rss_mb": observed["peak_rss_mb"],
        "peak_pss_mb": observed["peak_pss_mb"],
        "load_average": os.getloadavg()[0],
        **observed,
    }


def turn(folder: Path, way: str, reference: str, size: str, core: int) -> dict[str, Any]:
    """Run one way once and measure it."""
    folder.mkdir()
    iterations = SIZES[size][3]
    if way.startswith("trl"):
        # TRL reads problems and prompts of this run.
        sweep = load_sweep(write_sweep(folder / "sweep.yaml", reference, "transformers", size), output=str(folder))
        run = prepared_run(sweep)
        marks = folder / "marks"
        marks.touch()
        command = [sys.executable, "-m", "tests.benchmarks.iteration_trl", "--one", way]
        command += ["--run", str(run.root), "--marks", str(marks)]
        observed = observe(
            command, lambda: len(marks.read_text().splitlines()), core, worker_environment("transformers", 1)
        )
        return figures_of(observed, [int(line) for line in marks.read_text().splitlines()])
    path = write_sweep(folder / "sweep.yaml", reference, way, size)
    command = [sys.executable, "-m", "core_hpc.launch", str(path), "--output", str(folder)]
    pattern = f"iteration/*/update/iteration=*/{NAME}-p000.manifest.json"
    observed = observe(command, lambda: len(list(folder.glob(pattern))), core, {})
    run_folder = the_run(folder / "iteration")
    tokens = [
        int(shards.read_task(run_folder, TaskKey(i, COLD, NAME, 0), ROLLOUTS)["num_completion_tokens"].sum())
        for i in range(1, iterations + 1)
    ]
    return figures_of(observed, tokens)


COMPARED = ("iteration_s", "iteration_cpu_s", "tokens_per_cpu_s", "start_cpu_s", "peak_rss_mb", "peak_pss_mb")


def benchmark(folder: Path, *, ways: Sequence[str], reference: str, size: str, rounds: int | None) -> dict[str, Any]:
    """Run all ways in turns. Compare ours with the batch size of TRL that uses the least CPU time."""
    core = max(os.sched_getaffinity(0))
    turns: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for number in range(rounds or SIZES[size][4]):
        for way in ways if number % 2 == 0 else ways[::-1]:
            turns[way].append(turn(folder / f"{way}-{number}", way, reference, size, core))
            last = turns[way][-1]
            print(f"{way}: " + ", ".join(f"{name} {last[name]:.2f}" for name in COMPARED), flush=True)
    middle = {
        way: {name: statistics.median(t[name] for t in found) for name in COMPARED} for way, found in turns.items()
    }
    of_trl = [way for way in ways if way.startswith("trl")]
    best = min(of_trl, key=lambda way: middle[way]["iteration_cpu_s"]) if of_trl else None
    ratios = {
        f"{way} / {best}": {name: middle[way][name] / middle[best][name] for name in COMPARED}
        for way in ways
        if best is not None and way not in of_trl
    }
    return {"model": reference, "size": size, "core": core, "medians": middle, "ratios": ratios, "turns": turns}


def show(figures: dict[str, Any]) -> None:
    """Print a report."""

    def line(values: dict[str, float]) -> str:
        return ", ".join(f"{name} {value:.2f}" for name, value in values.items())

    print_table(f"{figures['model']}, size {figures['size']}", {w: line(v) for w, v in figures["medians"].items()})
    if figures["ratios"]:
        print_table("ratios", {name: line(values) for name, values in figures["ratios"].items()})


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = arguments(__doc__, SIZES, "rounds", "one", "run", "marks")
    parser.add_argument("--model", default=MODEL, help="a model reference, as in a sweep file")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="what to run")
    options = parser.parse_args(given)
    if options.one:
        trl(open_run(Path(options.run)), int(options.one.removeprefix("trl-")), Path(options.marks))
        return

    def measure(folder: Path) -> dict[str, Any]:
        return benchmark(folder, ways=options.ways, reference=options.model, size=options.size, rounds=options.rounds)

    conclude(measure, show, options.out)


if __name__ == "__main__":
    main()
