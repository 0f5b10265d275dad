"""Generation engines: one protocol (base.py), three implementations, and how the process of one must be started.

In: an `EngineSpec`. Out: an `Engine`. Heavy packages are imported by `create_engine`, never by this module, so that
a controller on a login node can plan work with it. Building prompts and judging answers happen elsewhere.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core_hpc.common.errors import InputError
from core_hpc.engines.base import AdapterRef, Completion, Engine, GenerationRequest, ProgressCallback, SamplingSettings
from core_hpc.models.quantization import require_four_bit

EngineKind = Literal["vllm", "transformers", "fake"]

__all__ = [
    "AdapterRef",
    "Completion",
    "Engine",
    "EngineKind",
    "EngineSpec",
    "GenerationRequest",
    "ProgressCallback",
    "SamplingSettings",
    "check_requests",
    "create_engine",
    "has_gpu",
    "worker_environment",
]


@dataclass(frozen=True)
class EngineSpec:
    """Everything that decides how an engine is built."""

    kind: EngineKind
    model_folder: Path
    max_context_tokens: int
    """Longest prompt + completion, in tokens."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on a GPU, float32 on CPU."""
    max_lora_rank: int | None = 16
    """None: no adapter is ever given (tuning: full)."""
    four_bit: bool = False
    """Base weights of 4 bits (tuning: qlora); needs a GPU."""
    trust_remote_code: bool = False
    seed: int = 0
    """Seed of the engine itself; completions depend on the seeds of their requests only."""
    kv_cache_gb: float | None = None
    """Size of vLLM's KV cache in GiB; None: 0.5 on CPU, by `gpu_memory_share` on a GPU."""
    gpu_memory_share: float = 0.85
    max_num_seqs: int = 64
    """Completions decoded at the same time."""
    sleeps: bool = False
    """It will be told to `sleep`."""


def create_engine(spec: EngineSpec) -> Engine:
    """Load the model and return the engine. The process should have been started with `worker_environment`."""
    if spec.four_bit and spec.kind != "fake":
        require_four_bit()
    if spec.kind == "vllm":
        from core_hpc.engines.vllm import VllmEngine

        return VllmEngine(spec)
    if spec.kind == "transformers":
        from core_hpc.engines.transformers import TransformersEngine

        return TransformersEngine(spec)
    if spec.kind == "fake":
        from core_hpc.engines.fake import FakeEngine

        return FakeEngine(spec)
    raise InputError(f"engine {spec.kind!r} is not known; write vllm, transformers or fake")


def check_requests(requests: Sequence[GenerationRequest], max_context_tokens: int) -> None:
    """InputError when a prompt is empty or leaves no room for a single new token."""
    for i, request in enumerate(requests):
        length = len(request.prompt_token_ids)
        if not 0 < length < max_context_tokens:
            raise InputError(
                f"request {i}: its prompt has {length} tokens and the engine's context {max_context_tokens}; prompts need at least "
                "one token and room for one more. Raise max_context_tokens of the model, or shorten hints and examples"
            )


def has_gpu() -> bool:
    """Is an accelerator visible to this process? Looks at device files only: importing torch costs seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*")) or any(Path(p).exists() for p in ("/dev/kfd", "/dev/dxg"))


def worker_environment(kind: str, threads: int) -> dict[str, str]:
    """Variables which a process that will hold such an engine must be *started* with.

    Most are read when a library is loaded, so setting them later has no effect. Merge over `os.environ`.
    """
    env = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # the controller has resolved the model to a folder; a worker never downloads
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TQDM_DISABLE": "1",  # progress bars of libraries fill log files
    }
    if kind == "vllm":
        env |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: start-up in seconds, and killing it leaves nothing behind
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        }
    if not has_gpu():
        env["KMP_BLOCKTIME"] = "1"  # ms; idle threads must not spin when cores are shared
        if kind == "vllm":
            env["TORCHDYNAMO_DISABLE"] = "1"  # else the first sampled request compiles for 3 to 19 s
        if kind != "fake" and (preload := _preload()):
            env["LD_PRELOAD"] = preload
    return env


def _preload() -> str:
    """LD_PRELOAD with Intel's OpenMP added: GNU's, which torch brings, spins badly when cores are shared."""
    present = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    openmp = Path(sys.prefix, "lib", "libiomp5.so")
    if openmp.is_file() and not any("omp" in Path(p).name for p in present):
        present.append(str(openmp))
    return ":".join(present)
