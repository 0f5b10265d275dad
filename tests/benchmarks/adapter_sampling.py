"""CPU seconds of sampling with an adapter: today's way, vLLM's own, and the base weights.

    python -m tests.benchmarks.adapter_sampling [--rounds 3] [--size small] --out FILE

For each model of the quickstart one engine per way samples the same number of tokens, one thread
each, after a first call that is not counted. vLLM's own way uses its functions for a CPU, and it
prepares adapters for every layer that it can adapt. The engine of the base weights cannot have an
adapter. The three ways take turns. `--size small` has one model and few tokens.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from core_hpc.config.model import LoraSection
from core_hpc.engines import create_engine, vllm, vllm_cpu, worker_environment
from core_hpc.engines.base import AdapterRef, GenerationRequest, SamplingSettings
from core_hpc.phases.context import Warm
from core_hpc.runs.folder import Run, open_run
from tests.benchmarks.measure import conclude, in_process, medians, print_table
from tests.benchmarks.real_run import MODELS, arguments, cold_task, make_run, settings

WAYS = ("today", "stock", "base")
SIZES = {"small": (MODELS[:1], 8, 8), "usual": (MODELS, 64, 24)}
"""The models, the completions, and the tokens of each completion."""
PROMPT_TOKENS = 32


own_arguments = vllm._lora_arguments


def arguments_for_every_layer(lora: LoraSection | None) -> dict[str, Any]:
    """The arguments of vLLM without the names of the layers that may have an adapter."""
    return {name: value for name, value in own_arguments(lora).items() if name != "lora_target_modules"}


def sample(run: Run, model: str, way: str, adapter: AdapterRef, size: str) -> dict[str, float]:
    """Return the CPU seconds and tokens of the second of two calls."""
    _, count, length = SIZES[size]
    spec = cold_task(run, model, Warm()).engine_spec()
    with contextlib.ExitStack() as stack:
        if way == "stock":
            stack.enter_context(mock.patch.object(vllm_cpu, "install", return_value=False))
            stack.enter_context(mock.patch.object(vllm, "_lora_arguments", arguments_for_every_layer))
        engine = create_engine(replace(spec, lora=None) if way == "base" else spec)
    sampling = SamplingSettings(temperature=1.0, top_p=1.0, max_new_tokens=length)
    for call in range(2):
        prompts = [tuple(range(first, first + PROMPT_TOKENS)) for first in range(20 + call, 20 + call + count)]
        requests = [GenerationRequest(prompt, seed=i) for i, prompt in enumerate(prompts)]
        began = time.process_time()
        done = engine.generate(requests, sampling, adapter=None if way == "base" else adapter)
        cpu_s = time.process_time() - began
    num_tokens = sum(len(completion.token_ids) for completion in done)
    return {"cpu_s": cpu_s, "tokens": num_tokens, "tokens_per_cpu_s": num_tokens / cpu_s}


def benchmark(folder: Path, size: str, rounds: int) -> dict[str, Any]:
    """Measure the three ways in turns. Returns medians, and how much faster today's way is than the others."""
    run = make_run(folder, settings(problems=4, cold=1))
    found: dict[str, Any] = {}
    for model in SIZES[size][0]:
        adapters = folder / f"adapters-{model}"
        options = ["--run", str(run.root), "--model", model, "--adapters", str(adapters), "--size", size]
        in_process("hot_swap", "--one", "make", *options)
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                environment = worker_environment("vllm", 1)
                runs[way].append(in_process("adapter_sampling", "--one", way, *options, environment=environment))
        found[model] = {way: medians(measured) for way, measured in runs.items()}
        for way in WAYS[1:]:
            pairs = zip(runs["today"], runs[way], strict=True)
            found[model][f"ratios_{way}"] = [t["tokens_per_cpu_s"] / o["tokens_per_cpu_s"] for t, o in pairs]
    return {"size": size, "rounds": rounds, "models": found}


def show(figures: dict[str, Any]) -> None:
    """Print a report."""
    for model, found in figures["models"].items():
        rows = {way: f"{found[way]['tokens_per_cpu_s']:.1f} tokens per CPU-s" for way in WAYS}
        for way in WAYS[1:]:
            ratios = found[f"ratios_{way}"]
            rows[f"today against {way}"] = f"{min(ratios):.2f} to {max(ratios):.2f} times"
        print_table(f"{model}, medians of {figures['rounds']} rounds", rows)


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    options = arguments(__doc__, SIZES, "rounds", "one", "run", "model", "adapters").parse_args(given)
    if options.one:
        adapter = AdapterRef(Path(options.adapters) / "0", "v1")
        print(json.dumps(sample(open_run(Path(options.run)), options.model, options.one, adapter, options.size)))
        return
    conclude(lambda folder: benchmark(folder, options.size, options.rounds or 3), show, options.out)


if __name__ == "__main__":
    main()
