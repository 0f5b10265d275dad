"""Sampling speed: the cold phase, compared with plain vLLM and with batched transformers.

    python -m tests.benchmarks.cold_phase --out FILE [--size small] [--dtype bfloat16]

For each model of the quickstart one process has a warm engine. Two ways alternate: the cold phase
(prompts, sampling, texts, answers, verdicts, a published shard), and `LLM.generate` of the same
engine with the same prompts, sampling parameters and seeds. Both must sample the same tokens. The
prefix cache is emptied before each of them. Another process gives the same prompts to `generate` of
transformers, sorted by length, in batches of as many as the engine decodes at once. Rates are
completion tokens per second; the medians are reported.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from core_hpc.engines import CPU_NUM_SEQS, worker_environment
from core_hpc.engines.base import SamplingSettings
from core_hpc.phases import run_task
from core_hpc.phases.context import TaskContext, Warm
from core_hpc.runs.folder import Run, open_run
from core_hpc.store import shards
from core_hpc.store.schema import COLD, ROLLOUTS
from tests.benchmarks.measure import conclude, in_process, print_table
from tests.benchmarks.real_run import MODELS, arguments, cold_task, make_run, sampled_length, settings

SIZES = {"small": (4, 2, 2), "usual": (64, 4, 3)}
"""Problems, samples per problem, rounds."""


def rate_of_phase(run: Run, model: str, warm: Warm) -> tuple[float, pl.DataFrame]:
    """Return the completion tokens per second of the whole phase, and its rows."""
    context = cold_task(run, model, warm)
    shutil.rmtree(context.paths.task_folder(context.key), ignore_errors=True)
    began = time.perf_counter()
    run_task(context)
    seconds = time.perf_counter() - began
    rows = shards.read_task(run.root, context.key, ROLLOUTS)
    return int(rows["num_completion_tokens"].sum()) / seconds, rows


def rate_of_vllm(llm: Any, rows: pl.DataFrame, sampling: SamplingSettings) -> float:
    """Return the rate of `LLM.generate` on the prompts and seeds of these rows.

    It must sample the same tokens.
    """
    from core_hpc.engines.vllm import _sampling_parameters

    llm.reset_prefix_cache()
    prompts = [{"prompt_token_ids": ids} for ids in rows["prompt_token_ids"].to_list()]
    parameters = [_sampling_parameters(sampling, seed) for seed in rows["seed"].to_list()]
    began = time.perf_counter()
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    seconds = time.perf_counter() - began
    sampled = [list(o.outputs[0].token_ids) for o in outputs]
    assert sampled == rows["completion_token_ids"].to_list(), "the two ways sampled different tokens"
    return sum(map(len, sampled)) / seconds


def in_engine(run: Run, model: str, rounds: int, threads: int) -> dict[str, Any]:
    """Measure the phase and plain vLLM alternately. The first round only warms up."""
    warm = Warm(threads=threads)
    context = cold_task(run, model, warm)
    sampling = sampling_of(context)
    rates: dict[str, list[float]] = {"ours": [], "vllm": []}
    for _ in range(rounds + 1):
        ours, rows = rate_of_phase(run, model, warm)
        engine: Any = warm.engine(context.engine_spec())
        rates["ours"].append(ours)
        rates["vllm"].append(rate_of_vllm(engine._require(), rows, sampling))
    ratios = [a / b for a, b in zip(rates["ours"], rates["vllm"], strict=True)]
    return {
        **{name: found[1:] for name, found in rates.items()},
        "ratios": ratios[1:],
        "num_tokens": rows["num_completion_tokens"].sum(),
    }


def sampling_of(context: TaskContext) -> SamplingSettings:
    """Return the sampling settings of the cold phase."""
    sampling = context.run.config.sampling_of(context.model, COLD)
    return SamplingSettings(
        sampling.temperature, sampling.top_p, sampling.max_new_tokens, context.stop_strings(context.model)
    )


def in_transformers(run: Run, model: str, rounds: int, threads: int) -> dict[str, Any]:
    """Measure batched `generate` of transformers on the same prompts. It samples other tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    context = cold_task(run, model, Warm(threads=threads))
    sampling, spec, tokenizer = sampling_of(context), context.engine_spec(), context.tokenizer(context.model)
    language_model = AutoModelForCausalLM.from_pretrained(spec.model_folder, dtype=getattr(torch, spec.dtype)).eval()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = shards.read_task(run.root, context.key, ROLLOUTS)
    prompts = sorted(rows["prompt_token_ids"].to_list(), key=len)
    rates = []
    for _ in range(rounds + 1):
        began, num_tokens = time.perf_counter(), 0
        for start in range(0, len(prompts), CPU_NUM_SEQS):
            padded = tokenizer.pad(
                {"input_ids": prompts[start : start + CPU_NUM_SEQS]}, padding_side="left", return_tensors="pt"
            )
            with torch.inference_mode():
                out = language_model.generate(
                    **padded,
                    do_sample=True,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    top_k=0,
                    max_new_tokens=sampling.max_new_tokens,
                    stop_strings=list(sampling.stop_strings) or None,
                    tokenizer=tokenizer,
                    pad_token_id=tokenizer.pad_token_id,
                )
            num_tokens += sum(sampled_length(row, tokenizer) for row in out[:, padded["input_ids"].shape[1] :].tolist())
        rates.append(num_tokens / (time.perf_counter() - began))
    return {"transformers": rates[1:]}


def benchmark(folder: Path, size: str, dtype: str, rounds: int | None) -> dict[str, Any]:
    """Measure all models."""
    problems, samples, usual_rounds = SIZES[size]
    run = make_run(folder, settings(problems=problems, cold=samples, dtype=dtype))
    threads, found = len(os.sched_getaffinity(0)), {}
    for model in MODELS:
        options = ["--run", str(run.root), "--model", model]
        options += ["--rounds", str(rounds or usual_rounds), "--threads", str(threads)]
        rates: dict[str, Any] = {}
        for way in ("vllm", "transformers"):
            environment = worker_environment(way, threads)
            rates |= in_process("cold_phase", "--one", way, *options, environment=environment)
        middle = {way: statistics.median(rates[way]) for way in ("ours", "vllm", "transformers")}
        found[model] = {
            "tokens_per_s": middle,
            "ours / vllm": statistics.median(rates["ratios"]),
            "rounds": rates,
            "ours / transformers": middle["ours"] / middle["transformers"],
        }
    return {"size": size, "dtype": dtype, "num_completions": problems * samples, "threads": threads, "models": found}


def show(figures: dict[str, Any]) -> None:
    """Print a report."""
    for model, found in figures["models"].items():
        rows = {f"{way}, tokens/s": f"{rate:.1f}" for way, rate in found["tokens_per_s"].items()}
        rows |= {name: f"{value:.3f}" for name, value in found.items() if " / " in name}
        print_table(f"{model}, {figures['dtype']}, {figures['num_completions']} completions", rows)


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    options = arguments(__doc__, SIZES, "dtype", "rounds", "one", "run", "model", "threads").parse_args(given)
    if options.one:
        way = in_engine if options.one == "vllm" else in_transformers
        print(json.dumps(way(open_run(Path(options.run)), options.model, options.rounds, int(options.threads))))
        return
    conclude(lambda folder: benchmark(folder, options.size, options.dtype, options.rounds), show, options.out)


if __name__ == "__main__":
    main()
