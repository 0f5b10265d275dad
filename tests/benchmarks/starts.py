"""CPU seconds until workers can compute: today's way of starting, against the plain one.

    python -m tests.benchmarks.starts [--rounds 3] [--size small] --out FILE

Engines: a vLLM engine is made in a process of its own, for each model of the quickstart. In the plain
way vLLM loads and copies the tokenizer as often as it does by itself, and it collects garbage among
all objects of its imports. Launches: a sweep of two tiny models (engine transformers, one iteration)
with all its processes. In the plain way each worker is a program that imports everything itself. The
two ways take turns. `--size small` leaves out the engines.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from core_hpc import launch
from core_hpc.engines import EngineSpec, create_engine, vllm, worker_environment
from core_hpc.local.forking import ForkServers
from core_hpc.models.resolve import resolve_model
from tests.benchmarks.measure import conclude, in_process, measured, medians, print_table
from tests.benchmarks.real_run import arguments
from tests.support.tiny import make_tiny_model, tiny_sweep

SIZES = ("small", "usual")
WAYS = ("today", "plain")
MODELS = {"smollm2": "pypi:smollm2-135m-instruct", "gemma3": "pypi:gemma-3-270m"}


def start_engine(reference: str) -> dict[str, float]:
    """Return the CPU seconds of making an engine, without the imports before it."""
    from core_hpc.models.imports import large_imports

    folder = resolve_model(reference).folder
    with large_imports():
        from vllm import LLM
    assert LLM
    began = time.process_time()
    create_engine(EngineSpec(kind="vllm", model_folder=folder, max_context_tokens=512))
    return {"cpu_s": time.process_time() - began}


def start_launch(sweep: str) -> dict[str, float]:
    """Run a sweep in this process and its workers."""
    with contextlib.redirect_stdout(sys.stderr):
        status = launch.main([sweep])
    return {"status": float(status)}


def plain(stack: contextlib.ExitStack) -> None:
    """Switch off in this process what makes starts cheaper."""
    for owner, name, value in (
        (vllm, "_one_tokenizer", contextlib.nullcontext),
        (gc, "freeze", lambda: None),
        (ForkServers, "of", lambda *_: None),
    ):
        stack.enter_context(mock.patch.object(owner, name, value))


def benchmark(folder: Path, size: str, rounds: int) -> dict[str, Any]:
    """Measure both ways in turns. Returns medians, and how many times as much the plain way takes."""
    models = [make_tiny_model(folder / f"model{i}", seed=i) for i in range(2)]
    team = [
        {"name": f"m{i}", "model": str(model), "engine": "transformers", "lora": {"rank": 4}}
        for i, model in enumerate(models)
    ]
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number in range(rounds):
        for way in WAYS:
            output = folder / f"{way}-{number}"
            sweep = tiny_sweep(folder / f"{way}-{number}.yaml", models, output, iterations=1, team=team)
            with measured() as cost:
                done = in_process("starts", "--one", "launch", "--way", way, "--what", str(sweep))
            assert done["status"] == 0
            runs.setdefault(("launch of two tiny models", way), []).append({"cpu_s": cost.commands_cpu_s})
            for name, reference in MODELS.items() if size == "usual" else ():
                options = ["--one", "engine", "--way", way, "--what", reference]
                found = in_process("starts", *options, environment=worker_environment("vllm", 1))
                runs.setdefault((f"engine of {name}", way), []).append(found)
    figures: dict[str, Any] = {"size": size, "rounds": rounds}
    for what in dict.fromkeys(what for what, _ in runs):
        today, before = (medians(runs[what, way])["cpu_s"] for way in WAYS)
        all_ratios = [b["cpu_s"] / t["cpu_s"] for t, b in zip(runs[what, "today"], runs[what, "plain"], strict=True)]
        figures[what] = {"today_s": today, "plain_s": before, "ratios": all_ratios}
    return figures


def show(figures: dict[str, Any]) -> None:
    """Print a report."""
    rows = {
        what: f"{found['plain_s']:.1f} -> {found['today_s']:.1f} CPU-s; {min(found['ratios']):.2f} to "
        f"{max(found['ratios']):.2f} times"
        for what, found in figures.items()
        if isinstance(found, dict)
    }
    print_table(f"plain -> today, medians of {figures['rounds']} rounds", rows)


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    options = arguments(__doc__, SIZES, "rounds", "one", "way", "what").parse_args(given)
    if options.one:
        with contextlib.ExitStack() as stack:
            if options.way == "plain":
                plain(stack)
            print(json.dumps((start_launch if options.one == "launch" else start_engine)(options.what)))
        return
    conclude(lambda folder: benchmark(folder, options.size, options.rounds or 3), show, options.out)


if __name__ == "__main__":
    main()
