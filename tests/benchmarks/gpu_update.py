"""The update on a GPU: tokens per second and memory, compared with the speed of matrix products.

    python -m tests.benchmarks.gpu_update --out FILE [--device cpu --size tiny]

The models have random bfloat16 weights in the shapes of Qwen2.5-0.5B and Qwen3-4B, with LoRA of
rank 16 on all seven projections. The loss is grpo. For each length from 512 to 4,096 tokens the
benchmark measures one optimizer step of `Trainer.update` over about 32k tokens, in micro-batches of
16k, after a small update that compiles. An eighth of a sequence is the prompt, which the four
completions of a problem share. The medians of three updates are reported, at one length also
without compiling.

Only computed tokens count, so a shared prompt counts once. The roofline is 6 x parameters x tokens,
at the measured rate of a large matrix product in the same precision. Frozen base weights need only
4 x parameters if no activations are computed again, so a share above 1 is possible. On a machine
without a GPU nothing is measured, unless `--device cpu` is given.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from core_hpc.config.model import LoraSection
from core_hpc.config.update import UpdateSection
from core_hpc.training import build
from core_hpc.training.batching import Row
from core_hpc.training.task import TrainerSettings, UpdateTask
from core_hpc.training.trainer import Trainer
from tests.benchmarks.measure import conclude, peak_mb, reset_peak
from tests.benchmarks.real_run import arguments

SHAPES: dict[str, dict[str, dict[str, int]]] = {
    "usual": {
        "Qwen2.5-0.5B": {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "vocab_size": 151936,
        },
        "Qwen3-4B": {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
        },
    },
    "tiny": {
        "tiny": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 512,
        },
    },
}
LENGTHS = {"usual": (512, 1024, 2048, 4096), "tiny": (64, 128)}
TOKENS = {"usual": 32768, "tiny": 1024}
"""Tokens of one update."""
MATMUL = {"usual": 8192, "tiny": 512}
"""Rows and columns of the matrices with which the rate is measured."""
SAMPLES = 4
ROUNDS = 3
MICRO_BATCH_TOKENS = 16384
PLAIN_LENGTH = {"usual": 2048, "tiny": 64}
"""The length that is also measured without compiling."""


def matmul_rate(device: torch.device, size: int, *, repeats: int = 10) -> float:
    """Floating-point operations per second of a bfloat16 product of two square matrices."""
    x, y = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    x @ y
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        x @ y
    _wait(device)
    return repeats * 2 * size**3 / (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def make_rows(length: int, tokens: int, vocabulary: int) -> list[Row]:
    """Make random sequences of one length, `SAMPLES` per problem."""
    rng, rows, prompt_tokens = random.Random(0), [], length // 8
    for p in range(max(1, tokens // length // SAMPLES)):
        prompt = [rng.randrange(10, vocabulary) for _ in range(prompt_tokens)]
        for k in range(SAMPLES):
            ids = [rng.randrange(10, vocabulary) for _ in range(length - prompt_tokens)]
            rows.append(
                Row(
                    key=(p, k),
                    problem_id=f"p{p}",
                    prompt_token_ids=prompt,
                    completion_token_ids=ids,
                    behaviour_logprobs=[-10.0] * len(ids),
                    advantage=1.0 if k % 2 else -1.0,
                    weight=1.0,
                )
            )
    return rows


def make_base(shape: dict[str, int], device: torch.device) -> Any:
    """Make a model with random weights in bfloat16."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    with torch.device(device):
        config = Qwen3Config(**shape, tie_word_embeddings=True, max_position_embeddings=32768)
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).requires_grad_(False).eval()


def make_trainer(
    shape: dict[str, int], device: torch.device, *, compile_layers: bool, checkpointing: bool | None = None
) -> tuple[Trainer, int]:
    """Make a trainer of an adapter on random weights; also return the number of parameters."""
    base = make_base(shape, device)
    with mock.patch.object(build, "load_base_model", return_value=base):
        trainer = Trainer(
            TrainerSettings(
                model_folder=Path(),
                model_name="benchmark",
                lora=LoraSection(),
                dtype="bfloat16",
                compile_layers=compile_layers,
                gradient_checkpointing=checkpointing,
            )
        )
    return trainer, sum(p.numel() for p in base.parameters())


def update(trainer: Trainer, rows: list[Row], folder: Path, device: torch.device) -> dict[str, float]:
    """Run one update of a new adapter and return its seconds, tokens and peak memory."""
    settings = UpdateSection(problems_per_step=len(rows), micro_batch_tokens=MICRO_BATCH_TOKENS)
    longest = max(len(r.completion_token_ids) for r in rows)
    spec = UpdateTask(
        rows=rows,
        settings=settings,
        temperature=1.0,
        max_new_tokens=longest,
        total_steps=100,
        shuffle_seed=0,
        lora_seed=0,
        previous=None,
    )
    reset_peak()
    began = time.perf_counter()
    timings = trainer.update(spec, folder).timings
    _wait(device)
    names = ("train_s", "compile_s", "num_tokens", "num_checkpointed")
    found = {name: float(getattr(timings, name)) for name in names}
    return {**found, "seconds": time.perf_counter() - began, "peak_mb": timings.peak_gpu_mb or peak_mb()}


def benchmark(folder: Path, size: str, device: torch.device) -> dict[str, Any]:
    """Measure all shapes and lengths."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    rate, rows = matmul_rate(device, MATMUL[size]), []
    for (name, shape), compile_layers in itertools.product(SHAPES[size].items(), (True, False)):
        trainer, parameters = make_trainer(shape, device, compile_layers=compile_layers)
        compile_s = 0.0
        for length in LENGTHS[size] if compile_layers else (PLAIN_LENGTH[size],):
            data = make_rows(length, TOKENS[size], shape["vocab_size"])
            compile_s = max(compile_s, update(trainer, data[:SAMPLES], folder / "warm", device)["compile_s"])
            turns = [update(trainer, data, folder / "out", device) for _ in range(ROUNDS)]
            middle = {key: statistics.median(t[key] for t in turns) for key in turns[0]}
            speed = middle["num_tokens"] / middle["seconds"]
            rows.append(
                {
                    "model": name,
                    "parameters": parameters,
                    "length": length,
                    "compiled": trainer.policy.is_compiled,
                    **middle,
                    "tokens_per_s": speed,
                    "compile_s": compile_s,
                    "train_tokens_per_s": middle["num_tokens"] / middle["train_s"],
                    "roofline_tokens_per_s": rate / 6 / parameters,
                    "of_roofline": speed * 6 * parameters / rate,
                }
            )
            print(_line(rows[-1]), flush=True)
        trainer.close()
        del trainer
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return {"size": size, "device": card, "matmul_tflops": rate / 1e12, "updates": rows}


def _line(row: dict[str, Any]) -> str:
    compiled = "compiled" if row["compiled"] else "not compiled"
    name = f"{row['model']} ({row['parameters'] / 1e9:.2f}B), {row['length']} tokens, {compiled}"
    again = f"{row['num_checkpointed']:g} checkpointed layers, {row['compile_s']:.0f} s to compile"
    return (
        f"{name:<50}{row['tokens_per_s']:9,.0f} tokens/s ({row['train_tokens_per_s']:,.0f} in training), "
        f"{row['of_roofline']:.0%} of the roofline, peak {row['peak_mb'] / 1024:.1f} GiB, {again}"
    )


def show(figures: dict[str, Any]) -> None:
    """Print a report."""
    print(f"{figures['device']}, {figures['matmul_tflops']:.2f} TFLOP/s in bfloat16 products")
    for row in figures["updates"]:
        print(f"  {_line(row)}")


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = arguments(__doc__, SHAPES)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args(given)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # otherwise the trainer uses a GPU if there is one
    elif not torch.cuda.is_available():
        print("no GPU was found, so nothing was measured. To test the benchmark itself: --device cpu --size tiny")
        return
    conclude(lambda folder: benchmark(folder, options.size, torch.device(options.device)), show, options.out)


if __name__ == "__main__":
    main()
