"""Generation engines: `create_engine`, and the environment that an engine process needs.

In: an `EngineSpec`. Out: an `Engine` (the protocol is in `base.py`). There are three
implementations. Only `create_engine` imports heavy packages, so a controller on a login node can
use this module for planning. Engines do not build prompts and do not verify answers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core_hpc.common.errors import InputError
from core_hpc.config.model import LoraSection
from core_hpc.engines.base import AdapterRef, Completion, Engine, GenerationRequest, ProgressCallback, SamplingSettings
from core_hpc.models.quantization import require_four_bit

EngineKind = Literal["vllm", "transformers", "fake"]
CPU_NUM_SEQS, GPU_NUM_SEQS = 64, 256
"""Completions that an engine decodes at the same time by default. On a GPU decoding is limited by
reading the weights, so more completions cost little; vLLM waits where its KV cache is full."""

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


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """Everything that determines how an engine is built.

    Attributes:
        max_context_tokens: largest number of prompt and completion tokens together.
        dtype: auto is bfloat16 on a GPU and float32 on a CPU.
        lora: the shape of the adapters that the engine gets; None: it never gets one (tuning: full).
        four_bit: whether the base weights have 4 bits (tuning: qlora); needs a GPU.
        seed: seed of the engine itself; completions depend only on the seeds of their requests.
        kv_cache_gb: size of vLLM's KV cache in GiB; None is 0.5 on a CPU, and on a GPU the size
            that `gpu_memory_share` allows.
        gpu_memory_share: share of the GPU memory that vLLM uses.
        max_num_seqs: number of completions that are decoded at the same time; None: `num_seqs`.
        num_gpus: GPUs, or on a CPU processes, that vLLM splits the model among.
        sleeps: whether `Engine.sleep` releases the GPU memory.
    """

    kind: EngineKind
    model_folder: Path
    max_context_tokens: int
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    lora: LoraSection | None = field(default_factory=LoraSection)
    four_bit: bool = False
    trust_remote_code: bool = False
    seed: int = 0
    kv_cache_gb: float | None = None
    gpu_memory_share: float = 0.85
    max_num_seqs: int | None = None
    num_gpus: int = 1
    sleeps: bool = False

    def num_seqs(self, *, on_cpu: bool) -> int:
        """The number of completions that are decoded at the same time on this kind of device."""
        return self.max_num_seqs or (CPU_NUM_SEQS if on_cpu else GPU_NUM_SEQS)


def create_engine(spec: EngineSpec) -> Engine:
    """Load the model and return the engine.

    The process must have started with `worker_environment`.
    """
    if spec.kind != "fake" and spec.four_bit:
        require_four_bit(vllm=spec.kind == "vllm")
    if spec.kind == "vllm":
        from core_hpc.engines.vllm import VllmEngine

        return VllmEngine(spec)
    if spec.kind == "transformers":
        from core_hpc.engines.transformers import TransformersEngine

        return TransformersEngine(spec)
    if spec.kind == "fake":
        from core_hpc.engines.fake import FakeEngine

        return FakeEngine(spec)
    raise InputError(f"engine {spec.kind!r} is not known; set vllm, transformers or fake")


def check_requests(requests: Sequence[GenerationRequest], max_context_tokens: int) -> None:
    """Raise InputError if a prompt is empty or leaves no room for a new token."""
    for i, request in enumerate(requests):
        length = len(request.prompt_token_ids)
        if not 0 < length < max_context_tokens:
            raise InputError(
                f"request {i}: its prompt has {length} tokens and the engine's context {max_context_tokens}; a prompt "
                "needs at least one token and room for one more. Increase max_context_tokens of the model, or shorten "
                "hints and examples"
            )


def has_gpu() -> bool:
    """Whether this process sees an accelerator.

    Only device files are checked; importing torch takes seconds.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*")) or any(Path(p).exists() for p in ("/dev/kfd", "/dev/dxg"))


def worker_environment(kind: str, threads: int) -> dict[str, str]:
    """Environment variables with which the process of an engine must start.

    Libraries read most of them when they are loaded, so setting them later has no effect.

    Args:
        kind: vllm, transformers or fake.
        threads: number of CPU threads.

    Returns:
        Variables that override those of `os.environ`.
    """
    env = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # the controller has already resolved the model; a worker never downloads
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TQDM_DISABLE": "1",  # progress bars of libraries fill log files
    }
    if kind == "vllm":
        env |= {
            # A single process starts in seconds, and nothing remains when it is killed.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # The processes of an engine on several GPUs. A forked one would inherit the pipe to the
            # launcher, which then would not notice that its worker has died.
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1",  # they have nothing to save
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        }
    if not has_gpu():
        env["KMP_BLOCKTIME"] = "1"  # ms; idle threads must not spin if several processes share the cores
        env["KMP_AFFINITY"] = "none"  # otherwise Intel's OpenMP binds every forked process to the first core
        if kind == "vllm":
            env["TORCHDYNAMO_DISABLE"] = "1"  # otherwise the first sampled request compiles for 3 to 19 s
            # By default vLLM gives each process of an engine a NUMA node of its own, and stops if
            # there are too few of them.
            env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        if kind != "fake" and (preload := _preload()):
            env["LD_PRELOAD"] = preload
    return env


def _preload() -> str:
    """LD_PRELOAD with Intel's OpenMP added.

    The GNU version in torch wastes time spinning on shared cores.
    """
    present = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    openmp = Path(sys.prefix, "lib", "libiomp5.so")
    if openmp.is_file() and not any("omp" in Path(p).name for p in present):
        present.append(str(openmp))
    return ":".join(present)
