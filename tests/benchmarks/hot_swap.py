"""A new adapter in a running vLLM engine: how long a swap takes, and whether memory grows.

    python -m tests.benchmarks.hot_swap --out FILE [--size small] [--dtype bfloat16]

For each model of the quickstart one engine samples one token with an adapter of rank 16 that is new
to it, and then one with the same adapter, 100 times. The time of a swap is the median of the
differences. The growth of memory is the slope of a line through the RSS of the process after each
swap, without the first fifth. It is compared with the slope over as many calls without a swap.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core_hpc.config.model import LoraSection
from core_hpc.engines import worker_environment
from core_hpc.engines.base import AdapterRef, Engine, GenerationRequest, SamplingSettings
from core_hpc.phases.context import Warm
from core_hpc.runs.folder import Run, open_run
from tests.benchmarks.measure import conclude, in_process, memory_mb, print_table
from tests.benchmarks.real_run import MODELS, arguments, cold_task, make_run, settings

SIZES = {"small": 10, "usual": 100}
"""Number of swaps."""
SETTLING = 0.2
"""Share of the first calls that is ignored, because the engine allocates some memory only once."""
NUM_ADAPTERS = 2
TOKENS = tuple(range(20, 52))


def growth(memory: Sequence[float]) -> float:
    """Return the growth of memory in MB per call, by least squares without the first calls.

    >>> round(growth([500.0, 900.0, 100.0, 102.0, 104.0, 106.0, 108.0, 110.0, 112.0, 114.0]), 9)
    2.0
    """
    kept = memory[int(SETTLING * len(memory)) :]
    return float(np.polyfit(range(len(kept)), kept, 1)[0])


def make_adapters(run: Run, model: str, folder: Path) -> dict[str, Any]:
    """Write adapters with random weights, and return their size."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(cold_task(run, model, Warm()).engine_spec().model_folder)
    lora = LoraSection()
    policy = get_peft_model(
        base, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets, task_type="CAUSAL_LM")
    )
    for number in range(NUM_ADAPTERS):
        for parameter in (p for p in policy.parameters() if p.requires_grad):
            torch.nn.init.normal_(parameter, std=0.01)
        policy.save_pretrained(folder / str(number))
    return {"adapter_mb": (folder / "0" / "adapter_model.safetensors").stat().st_size / 2**20}


def swaps(run: Run, model: str, folder: Path, count: int) -> dict[str, Any]:
    """Measure seconds and memory of calls with a new adapter and with the same one."""
    engine = Warm(threads=len(os.sched_getaffinity(0))).engine(cold_task(run, model, Warm()).engine_spec())
    found: dict[str, list[float]] = {"new_s": [], "same_s": [], "new_mb": [], "same_mb": []}
    _call(engine, folder, 0)
    for _ in range(count):
        _call(engine, folder, 0)
        found["same_mb"].append(memory_mb())
    for version in range(1, count + 1):
        found["new_s"].append(_call(engine, folder, version))
        found["new_mb"].append(memory_mb())
        found["same_s"].append(_call(engine, folder, version))
    differences = [a - b for a, b in zip(found["new_s"], found["same_s"], strict=True)]
    return {
        "swap_ms": 1000 * statistics.median(differences),
        "call_ms": 1000 * statistics.median(found["same_s"]),
        "slowest_swap_ms": 1000 * max(differences),
        "mb_per_swap": growth(found["new_mb"]),
        "mb_per_call": growth(found["same_mb"]),
        "first_mb": found["new_mb"][0],
        "last_mb": found["new_mb"][-1],
        "memory_mb": found["new_mb"],
    }


def _call(engine: Engine, folder: Path, version: int) -> float:
    """Return the seconds of sampling one token with a version of the adapter."""
    sampling = SamplingSettings(temperature=1.0, top_p=1.0, max_new_tokens=1)
    adapter = AdapterRef(folder / str(version % NUM_ADAPTERS), f"v{version}")
    began = time.perf_counter()
    engine.generate([GenerationRequest(TOKENS, seed=version)], sampling, adapter=adapter)
    return time.perf_counter() - began


def benchmark(folder: Path, size: str, dtype: str) -> dict[str, Any]:
    """Measure all models."""
    run = make_run(folder, settings(problems=4, cold=1, dtype=dtype))
    found = {}
    for model in MODELS:
        adapters = folder / f"adapters-{model}"
        options = ["--run", str(run.root), "--model", model, "--adapters", str(adapters), "--size", size]
        environment = worker_environment("vllm", len(os.sched_getaffinity(0)))
        made = in_process("hot_swap", "--one", "make", *options)
        found[model] = {**made, **in_process("hot_swap", "--one", "swap", *options, environment=environment)}
    return {"size": size, "dtype": dtype, "num_swaps": SIZES[size], "models": found}


def show(figures: dict[str, Any]) -> None:
    """Print a report."""
    for model, found in figures["models"].items():
        rows = {name: f"{value:.3f}" for name, value in found.items() if name != "memory_mb"}
        print_table(f"{model}, {figures['dtype']}, {figures['num_swaps']} swaps", rows)


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    options = arguments(__doc__, SIZES, "dtype", "one", "run", "model", "adapters").parse_args(given)
    if options.one:
        run, folder = open_run(Path(options.run)), Path(options.adapters)
        if options.one == "make":
            figures = make_adapters(run, options.model, folder)
        else:
            figures = swaps(run, options.model, folder, SIZES[options.size])
        print(json.dumps(figures))
        return
    conclude(lambda folder: benchmark(folder, options.size, options.dtype), show, options.out)


if __name__ == "__main__":
    main()
