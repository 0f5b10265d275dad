"""Roofline estimate of tokens per second on a GPU: floating-point operations and bytes, counted.

In: the shape of a model and the public figures of a GPU. Out: FLOPs, bytes and tokens per second of
prefill, decoding and training. All functions are pure. Experimental: only the training figure was
compared with a measurement (tests/README.md, one H100). Start-up, scheduling and communication are
not included.

Symbols: N parameters, L layers, h heads, v heads of keys and values, d width of a head. A
multiplication with an addition counts as 2 FLOPs, so a token costs 2 N in a forward pass (Kaplan et
al., arXiv 2001.08361). Weights and the KV cache are in bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass

BYTES = 2
"""Of a number in bfloat16."""
MFU = 0.4
"""Share of the peak FLOP/s that training and prefill reach. Llama 3 reports 38 to 43 % on H100 (arXiv 2407.21783)."""
BANDWIDTH_SHARE = 0.6
"""Share of the memory bandwidth that decoding reaches: an assumption."""
BATCH, CONTEXT, SEQUENCE = 64, 1024, 1024
"""Of the table and of the dry run: completions that are decoded together, mean tokens of each in the
KV cache, and tokens of a training sequence."""


@dataclass(frozen=True)
class Gpu:
    """Public figures of a GPU: dense bfloat16 FLOP/s, and bytes/s of its memory."""

    name: str
    flops_per_s: float
    bytes_per_s: float
    source: str


@dataclass(frozen=True)
class Shape:
    """What the cost of a model depends on."""

    name: str
    parameters: float
    layers: int
    heads: int
    kv_heads: int
    head_width: int


GPUS = (
    Gpu("A100", 312e12, 2.039e12, "NVIDIA's data sheet of A100 80GB SXM"),
    Gpu("H100", 989e12, 3.35e12, "NVIDIA's data sheet of H100 SXM"),
    Gpu("H200", 989e12, 4.8e12, "NVIDIA's data sheet of H200 SXM"),
)
SHAPES = (
    Shape("3B, as Qwen2.5-3B", 3.09e9, layers=36, heads=16, kv_heads=2, head_width=128),
    Shape("4B, as Qwen3-4B", 4.02e9, layers=36, heads=32, kv_heads=8, head_width=128),
    Shape("8B, as Llama-3.1-8B", 8.03e9, layers=32, heads=32, kv_heads=8, head_width=128),
)
"""The figures are those of the models' own `config.json` and model cards."""


def forward_flops(shape: Shape, length: int) -> float:
    """FLOPs of a forward pass over one sequence: 2 N n + 2 L h d n^2.

    A token attends to n / 2 tokens on average, with 4 h d FLOPs in each layer (scores and values).
    """
    attention = 2 * shape.layers * shape.heads * shape.head_width * length**2
    return 2 * shape.parameters * length + attention


def training_flops(shape: Shape, length: int, *, lora: bool) -> float:
    """FLOPs of the optimizer steps over one sequence: 6 N n, with LoRA 4 N n; and three times the attention.

    The backward pass costs as much as the forward pass for the gradients of the activations, and
    as much again for those of the weights. With LoRA the base has no gradients of its weights, and
    the adapter is not counted. Attention has no weights: its backward pass costs twice the forward.
    """
    weights = 2 * shape.parameters * length
    attention = forward_flops(shape, length) - weights
    return (2 if lora else 3) * weights + 3 * attention


def kv_bytes(shape: Shape) -> int:
    """Bytes of one token in the KV cache: keys and values of all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_width * BYTES


def decode_bytes(shape: Shape, batch: int, context: int) -> float:
    """Bytes that one step of decoding reads: all weights once, and the KV cache of every completion."""
    return BYTES * shape.parameters + batch * context * kv_bytes(shape)


def decode_flops(shape: Shape, batch: int, context: int) -> float:
    """FLOPs of one step of decoding, which computes one token of every completion."""
    return batch * (2 * shape.parameters + 4 * shape.layers * shape.heads * shape.head_width * context)


def decode_tokens_per_s(gpu: Gpu, shape: Shape, batch: int = BATCH, context: int = CONTEXT) -> float:
    """Tokens per second of decoding. The slower of memory and arithmetic decides."""
    reading_s = decode_bytes(shape, batch, context) / (BANDWIDTH_SHARE * gpu.bytes_per_s)
    computing_s = decode_flops(shape, batch, context) / (MFU * gpu.flops_per_s)
    return batch / max(reading_s, computing_s)


def prefill_tokens_per_s(gpu: Gpu, shape: Shape, length: int = SEQUENCE) -> float:
    """Tokens per second of a forward pass over whole sequences, as for prompts and log-probabilities."""
    return MFU * gpu.flops_per_s * length / forward_flops(shape, length)


def training_tokens_per_s(gpu: Gpu, shape: Shape, length: int = SEQUENCE, *, lora: bool = True) -> float:
    """Tokens per second of the optimizer steps."""
    return MFU * gpu.flops_per_s * length / training_flops(shape, length, lora=lora)


def update_tokens_per_s(gpu: Gpu, shape: Shape, length: int = SEQUENCE) -> float:
    """Tokens per second of an update with LoRA.

    It has the optimizer steps, and a forward pass each for the old and the reference policy.
    """
    steps = 1 / training_tokens_per_s(gpu, shape, length)
    return 1 / (steps + 2 / prefill_tokens_per_s(gpu, shape, length))


def table() -> str:
    """The Markdown table of `yaml/README.md`."""
    lines = [
        "| model | GPU | prefill | decode | optimizer steps, LoRA | optimizer steps, all weights | update, LoRA |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        for gpu in GPUS:
            rates = (
                prefill_tokens_per_s(gpu, shape),
                decode_tokens_per_s(gpu, shape),
                training_tokens_per_s(gpu, shape),
                training_tokens_per_s(gpu, shape, lora=False),
                update_tokens_per_s(gpu, shape),
            )
            cells = " | ".join(f"{float(f'{rate:.2g}'):,.0f}" for rate in rates)
            lines.append(f"| {shape.name} | {gpu.name} | {cells} |")
    return "\n".join(lines)
