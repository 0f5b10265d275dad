"""The update: tokens per second and memory, compared with TRL on the same completions.

    python -m tests.benchmarks.update_trl --out FILE [--model gemma3] [--dtype bfloat16]

Both use LoRA of rank 16 on all seven projections, AdamW, grpo with clipping and KL 0.04 (so one
pass for the reference and one for the log-probabilities before the update), four optimizer steps,
and no gradient checkpointing. TRL gets the completions from its `rollout_func`. All completions
have the same length, or their lengths have a long tail (log-normal). A token counts once in every
sequence that contains it, also if the computation is shared.

`GRPOTrainer` of TRL runs with several batch sizes, from small to large until one does not fit into
memory. Its fastest batch size is compared with ours, in speed and in memory. Every measurement is a
new process; its memory is the peak after the model is loaded and warm. Needs trl.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core_hpc.config.model import LoraSection
from core_hpc.config.update import UpdateSection
from core_hpc.engines import worker_environment
from core_hpc.models.folder import load_tokenizer
from core_hpc.models.resolve import resolve_model
from core_hpc.runs.sweep import load_sweep
from core_hpc.training.batching import Row
from tests.benchmarks.measure import (
    KilledError,
    conclude,
    in_process,
    medians,
    memory_mb,
    peak_mb,
    print_table,
    reset_peak,
)
from tests.benchmarks.real_run import MODELS, SWEEP, arguments

SIZES = {"small": (4, 2, 48, 1), "usual": (8, 4, 160, 3)}
"""Problems, completions per problem, mean length of a completion, rounds."""
PROMPT_TOKENS = 96
TAIL = 1.0
"""Standard deviation of the logarithm of lengths.

The longest of 32 is about five times the mean.
"""
MICRO_BATCH_TOKENS = 1024
STEPS = 4
BATCHES = (2, 4, 8)
"""Batch sizes of TRL, in completions."""
KL_WEIGHT = 0.04
TEMPERATURE = 0.7


def lengths(mix: str, count: int, mean: int, *, seed: int = 0) -> list[int]:
    """Return lengths of completions in random order. Their sum is about the same for all mixes.

    >>> lengths("uniform", 3, 50)
    [50, 50, 50]
    >>> long = lengths("long_tail", 400, 50)
    >>> abs(sum(long) / 400 - 50) < 1, min(long) >= 1, max(long) > 200
    (True, True, True)
    """
    if mix == "uniform":
        return [mean] * count
    normal = statistics.NormalDist(0, TAIL)
    # Quantiles are used instead of draws, so that the tail does not depend on chance.
    drawn = [2.718281828 ** normal.inv_cdf((i + 0.5) / count) for i in range(count)]
    scaled = [max(1, round(mean * count * x / sum(drawn))) for x in drawn]
    random.Random(seed).shuffle(scaled)
    return scaled


def make_rows(mix: str, size: str, vocabulary: int) -> list[Row]:
    """Make rows of random ids.

    Completions of a problem share a prompt and have advantages of both signs.
    """
    problems, samples, mean, _ = SIZES[size]
    rng, rows = random.Random(1), []
    found = lengths(mix, problems * samples, mean)
    for p in range(problems):
        prompt = [rng.randrange(10, vocabulary) for _ in range(PROMPT_TOKENS)]
        for k in range(samples):
            ids = [rng.randrange(10, vocabulary) for _ in range(found[p * samples + k])]
            rows.append(
                Row(
                    key=(p, k),
                    problem_id=f"p{p:03d}",
                    prompt_token_ids=prompt,
                    completion_token_ids=ids,
                    behaviour_logprobs=[-8.0] * len(ids),
                    advantage=1.0 if k % 2 else -1.0,
                    weight=1.0,
                )
            )
    return rows


def num_tokens(rows: Sequence[Row]) -> int:
    """Count the tokens of all sequences. A prompt counts once for each of its completions."""
    return sum(len(r.prompt_token_ids) + len(r.completion_token_ids) for r in rows)


def answer(rows: Sequence[Row], seconds: float, loaded_mb: float) -> dict[str, float]:
    """Return the figures of one measurement."""
    return {
        "tokens_per_s": num_tokens(rows) / seconds,
        "seconds": seconds,
        "peak_mb": peak_mb(),
        "loaded_mb": loaded_mb,
    }


def ours(folder: Path, rows: list[Row], dtype: Any, threads: int) -> dict[str, float]:
    """Measure one update of `Trainer`. It starts from the adapter of a short update before it."""
    import torch

    from core_hpc.training.task import TrainerSettings, UpdateTask
    from core_hpc.training.trainer import Trainer

    torch.set_num_threads(threads)
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    problems = len({r.problem_id for r in rows})
    settings = UpdateSection(
        problems_per_step=problems // STEPS,
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        kl_weight=KL_WEIGHT,
        importance={"kind": "none"},
    )
    lora = LoraSection()
    trainer = Trainer(TrainerSettings(model_folder=folder, model_name="benchmark", lora=lora, dtype=dtype))
    common: dict[str, Any] = {
        "settings": settings,
        "temperature": TEMPERATURE,
        "max_new_tokens": max(len(r.completion_token_ids) for r in rows),
        "total_steps": 100,
        "shuffle_seed": 0,
        "lora_seed": 0,
    }
    with tempfile.TemporaryDirectory() as out:
        short = [
            replace(
                r,
                prompt_token_ids=r.prompt_token_ids[:8],
                completion_token_ids=r.prompt_token_ids[8:16],
                behaviour_logprobs=[-8.0] * 8,
            )
            for r in rows[:2]
        ]
        trainer.update(UpdateTask(rows=short, previous=None, **common), Path(out, "first"))
        loaded = memory_mb()
        reset_peak()
        began = time.perf_counter()
        trainer.update(UpdateTask(rows=rows, previous=Path(out, "first"), **common), Path(out, "second"))
        seconds = time.perf_counter() - began
    trainer.close()
    return answer(rows, seconds, loaded)


def trl(folder: Path, rows: list[Row], dtype: Any, threads: int, batch: int) -> dict[str, float]:
    """Measure GRPOTrainer from when it has its completions to the end of its last step."""
    # TRL would import vLLM, which changes the process.
    sys.modules["vllm"] = None  # type: ignore[assignment]
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(threads)
    lora, samples = LoraSection(), len(rows) // len({r.problem_id for r in rows})
    by_prompt = {str(rows[i].problem_id): rows[i : i + samples] for i in range(0, len(rows), samples)}
    began, loaded = 0.0, 0.0

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        nonlocal began, loaded
        given = [by_prompt[prompts[i]][i % samples] for i in range(len(prompts))]
        _warm_up(trainer.model, torch)
        loaded = memory_mb()
        reset_peak()
        began = time.perf_counter()
        return {
            "prompt_ids": [list(r.prompt_token_ids) for r in given],
            "completion_ids": [list(r.completion_token_ids) for r in given],
            "logprobs": [list(r.behaviour_logprobs or ()) for r in given],
        }

    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            output_dir=out,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=len(rows) // STEPS // batch,
            steps_per_generation=len(rows) // batch,
            num_generations=samples,
            max_steps=STEPS,
            beta=KL_WEIGHT,
            loss_type="grpo",
            temperature=TEMPERATURE,
            gradient_checkpointing=False,
            bf16=dtype == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            model_init_kwargs={"dtype": dtype},
            max_completion_length=max(len(r.completion_token_ids) for r in rows),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            weight_decay=0.01,
            learning_rate=1e-5,
            seed=0,
        )
        trainer = GRPOTrainer(
            model=str(folder),
            args=config,
            processing_class=load_tokenizer(folder),
            rollout_func=rollout,
            reward_funcs=lambda completions, **_: [float(i % 2) for i in range(len(completions))],
            train_dataset=Dataset.from_list([{"prompt": name} for name in by_prompt]),
            peft_config=LoraConfig(
                r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets, task_type="CAUSAL_LM"
            ),
        )
        done = trainer.train()
        assert done.global_step == STEPS
    return answer(rows, time.perf_counter() - began, loaded)


def _warm_up(model: Any, torch: Any) -> None:
    """Run one forward and backward pass over a few tokens, as `ours` does with its short update."""
    ids = torch.arange(10, 26, device=model.device)[None]
    model(input_ids=ids).logits.float().logsumexp(-1).sum().backward()
    model.zero_grad(set_to_none=True)


def benchmark(size: str, model: str, dtype: str, rounds: int | None) -> dict[str, Any]:
    """Measure all batch sizes of TRL once, then alternately ours and the fastest one."""
    problems, samples, _, usual_rounds = SIZES[size]
    rounds = rounds or usual_rounds
    batches = [b for b in BATCHES if (problems * samples // STEPS) % b == 0]
    found = {}
    for mix in ("uniform", "long_tail"):
        options = ["--mix", mix, "--size", size, "--model", model, "--dtype", dtype]

        def turn(way: str, batch: int = 0, options: list[str] = options) -> dict[str, Any]:
            environment = worker_environment("transformers", len(os.sched_getaffinity(0)))
            return in_process("update_trl", "--one", way, "--batch", str(batch), *options, environment=environment)

        tried = {}
        with contextlib.suppress(KilledError):
            for batch in batches:
                tried[batch] = turn("trl", batch)
        fastest = max(tried, key=lambda b: tried[b]["tokens_per_s"])
        turns = [(turn("ours"), tried[fastest] if i == 0 else turn("trl", fastest)) for i in range(rounds)]
        mine, theirs = medians([a for a, _ in turns]), medians([b for _, b in turns])
        found[mix] = {
            "ours": mine,
            "trl": theirs,
            "trl_batch": fastest,
            "trl_batches": tried,
            "trl_batches_that_do_not_fit": [b for b in batches if b not in tried],
            "speed, ours / trl": statistics.median(a["tokens_per_s"] / b["tokens_per_s"] for a, b in turns),
            "peak memory, ours / trl": statistics.median(a["peak_mb"] / b["peak_mb"] for a, b in turns),
        }
    return {"size": size, "model": model, "dtype": dtype, "rounds": rounds, "mixes": found}


def show(figures: dict[str, Any]) -> None:
    """Print a report."""
    for mix, found in figures["mixes"].items():
        ways = {"ours": found["ours"], **{f"trl, batches of {b}": cost for b, cost in found["trl_batches"].items()}}
        rows = {
            way: f"{c['tokens_per_s']:8.1f} tokens/s  peak {c['peak_mb']:7.0f} MB (before: {c['loaded_mb']:.0f})"
            for way, c in ways.items()
        }
        rows |= {f"trl, batches of {b}": "do not fit into memory" for b in found["trl_batches_that_do_not_fit"]}
        rows |= {name: f"{value:.2f}" for name, value in found.items() if " / " in name}
        print_table(f"{mix}, {figures['model']}, {figures['dtype']}", rows)


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = arguments(__doc__, SIZES, "dtype", "rounds", "one", "mix", "batch")
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    options = parser.parse_args(given)
    if options.one:
        folder = resolve_model(load_sweep(SWEEP).runs[0].config.model(options.model).model).folder
        rows = make_rows(options.mix, options.size, len(load_tokenizer(folder)) - 10)
        threads = len(os.sched_getaffinity(0))
        if options.one == "ours":
            figures = ours(folder, rows, options.dtype, threads)
        else:
            figures = trl(folder, rows, options.dtype, threads, int(options.batch))
        print(json.dumps(figures))
        return
    conclude(lambda _: benchmark(options.size, options.model, options.dtype, options.rounds), show, options.out)


if __name__ == "__main__":
    main()
