"""Generation with vLLM, on a GPU or a CPU.

The engine is in this process. With `EngineSpec.num_gpus` above 1, this process only schedules, and
one process per GPU computes with its part of every layer (`vllm_process.py`).

In: prompt token ids. Out: all sampled token ids with the log-probabilities of the distribution from
which they were drawn. vLLM permanently changes the process (environment, threads, memory binding),
so training needs another process. The process must start with `worker_environment("vllm", ...)`.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.config.model import LoraSection
from core_hpc.engines import EngineSpec, check_requests
from core_hpc.engines.base import AdapterRef, Completion, GenerationRequest, SamplingSettings
from core_hpc.engines.shared import StepEngine
from core_hpc.engines.vllm_compiled import share_compiled_code
from core_hpc.models.folder import is_mistral_file
from core_hpc.models.imports import large_imports, replaced
from core_hpc.models.loading import (
    JOINED_PROJECTIONS,
    check_split,
    check_vllm_dtype,
    check_vllm_packages,
    load_config,
    match_targets,
    resolve_rope,
)
from core_hpc.store.paths import EARLIER_OPTIMIZER_STATE

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.lora.request import LoRARequest

_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # sizes that vLLM accepts; an adapter may be smaller
_CPU_KV_CACHE_GB = 0.5
CPU_BLOCK_TOKENS = 32
"""Block size of the KV cache on a CPU; the fast attention of vLLM needs a multiple of 32.

Prompts share only whole blocks, and vLLM's default of 128 tokens is longer than many questions.
"""


class VllmEngine(StepEngine):
    """One vLLM engine. It keeps nothing between calls that could change a result; see `add`."""

    def __init__(self, spec: EngineSpec) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        config = load_config(spec.model_folder, trust_remote_code=spec.trust_remote_code)
        check_vllm_packages(config)
        check_split(config, spec.num_gpus)
        with large_imports():
            from vllm import LLM
            from vllm.platforms import current_platform

        self._spec = spec
        self._on_cpu = on_cpu = current_platform.is_cpu()
        self._asleep = False
        share_compiled_code()
        if on_cpu:
            from core_hpc.engines import vllm_cpu

            vllm_cpu.install()
        if spec.num_gpus > 1:
            # The processes of the engine are children of this one, and share its cores.
            threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
            os.environ["OMP_NUM_THREADS"] = str(max(1, threads // spec.num_gpus))
        with _without_other_tensors(spec.model_folder) as folder, _one_tokenizer():
            arguments = _engine_arguments(replace(spec, model_folder=folder), on_cpu=on_cpu)
            self._llm: LLM | None = LLM(**arguments)
        if spec.num_gpus > 1 and on_cpu:
            self._llm.collective_rpc("unlink_shared_memory")
        self.compile_s = float(self._llm.llm_engine.vllm_config.compilation_config.compilation_time)
        self._internal_ids: dict[str, str] = {}
        """Our id -> vLLM's id of each request in progress."""
        self._num_adapters = 0
        self._adapter: tuple[AdapterRef, LoRARequest] | None = None

    def add(
        self, requests: Sequence[GenerationRequest], sampling: SamplingSettings, adapter: AdapterRef | None
    ) -> list[str]:
        """Start requests and return their ids. All requests in progress use the same adapter.

        If no request is in progress, the prefix cache is emptied first. Prompts of an earlier call
        in the cache would change the last digits, and the results of a warm and a new worker would
        differ. Equal prompts of the same call still share their keys and values.
        """
        check_requests(requests, self._spec.max_context_tokens)
        llm = self._require()
        self._wake()
        if not self._internal_ids and not llm.reset_prefix_cache():
            raise CoreHpcError("vLLM could not empty its prefix cache; requests of an earlier call are still running")
        internal = llm.enqueue(
            [{"prompt_token_ids": list(r.prompt_token_ids)} for r in requests],
            [_sampling_parameters(sampling, r.seed) for r in requests],
            lora_request=self._lora_request(adapter),
            use_tqdm=False,
        )
        # The ids from `enqueue` are a counter with a random suffix; outputs have only the counter.
        ids = [i.partition("-")[0] for i in internal]
        self._internal_ids.update(zip(ids, internal, strict=True))
        return ids

    def step(self) -> list[tuple[str, Completion]]:
        """One forward pass for all requests in progress."""
        finished = [output for output in self._require().llm_engine.step() if output.finished]
        for output in finished:
            del self._internal_ids[output.request_id]
        return [(output.request_id, _completion(output.outputs[0])) for output in finished]

    def abort(self, ids: Sequence[str]) -> None:
        """Remove requests that are in progress."""
        internal = [self._internal_ids.pop(i) for i in ids if i in self._internal_ids]
        self._require().llm_engine.abort_request(internal, internal=True)

    def sleep(self) -> None:
        """Move the weights and captured CUDA graphs to the host memory and drop the KV cache.

        The adapter is in neither, so it is removed and loaded again with the next request.
        """
        if not self._spec.sleeps or self._asleep or self._on_cpu:
            return
        self._drop_adapter()
        self._require().sleep(level=1)
        self._asleep = True

    def close(self) -> None:
        """Release the engine. Some GPU memory is released only when the process ends.

        A sleeping engine is woken first, because vLLM would release memory again that is released
        already, and the next allocation of the process would fail. This needs the memory that the
        engine had, which is also what the next engine of the process needs. If it does not fit, the
        task fails, and the executor ends this process before it attempts the task again.
        """
        if self._llm is None:
            return
        self._wake()
        core: Any = getattr(self._llm.llm_engine, "engine_core", None)
        if hasattr(core, "shutdown"):
            core.shutdown()
        self._llm, self._adapter = None, None
        gc.collect()

    def _wake(self) -> None:
        if self._asleep:
            self._require().wake_up()
            self._asleep = False

    def _require(self) -> LLM:
        if self._llm is None:
            raise CoreHpcError("this engine was closed")
        return self._llm

    def _lora_request(self, adapter: AdapterRef | None) -> LoRARequest | None:
        """The request object of an adapter.

        Each version gets an id and a name that were never used before. vLLM would keep the old
        weights for a repeated id, and the old prefix cache for a repeated name.
        """
        from vllm.lora.request import LoRARequest

        if adapter is None:
            return None
        if self._adapter is not None and self._adapter[0] == adapter:
            return self._adapter[1]
        if not (adapter.path / "adapter_config.json").is_file():
            raise InputError(
                f"adapter {adapter.version}: {adapter.path} is not a PEFT adapter folder (no adapter_config.json)"
            )
        self._drop_adapter()
        self._num_adapters += 1
        request = LoRARequest(f"{adapter.version}#{self._num_adapters}", self._num_adapters, str(adapter.path))
        self._adapter = (adapter, request)
        return request

    def _drop_adapter(self) -> None:
        if self._adapter is not None:
            self._require().llm_engine.remove_lora(self._adapter[1].lora_int_id)
            self._adapter = None


def _engine_arguments(spec: EngineSpec, *, on_cpu: bool) -> dict[str, Any]:
    """Arguments of vllm.LLM.

    Raises:
        InputError: vLLM does not have what the spec asks for on this kind of device.
    """
    if not on_cpu:
        check_vllm_dtype(spec.dtype, has_adapter=spec.lora is not None)
    arguments: dict[str, Any] = {
        "model": str(spec.model_folder),
        "dtype": spec.dtype if spec.dtype != "auto" else ("float32" if on_cpu else "bfloat16"),
        "seed": spec.seed,
        "max_model_len": spec.max_context_tokens,
        "max_num_seqs": spec.num_seqs(on_cpu=on_cpu),
        "trust_remote_code": spec.trust_remote_code,
        "tokenizer_mode": "hf",  # tokenizer.json, like `load_tokenizer`
        "config_format": "hf",
        "hf_overrides": partial(_with_our_rope, context_tokens=spec.max_context_tokens),
        "language_model_only": True,  # no vision tower, and no memory for images
        **_lora_arguments(spec.lora),
        "logprobs_mode": "processed_logprobs",  # those of the sampling distribution, not of temperature 1
        "enable_prefix_caching": True,
        "disable_log_stats": True,
    }
    if spec.num_gpus > 1:
        arguments |= {
            "tensor_parallel_size": spec.num_gpus,
            "distributed_executor_backend": "mp",  # processes of this machine, never a Ray cluster
            "worker_extension_cls": "core_hpc.engines.vllm_process.Extension",
        }
    if spec.four_bit:
        arguments["quantization"] = "bitsandbytes"  # vllm-bnb-plugin quantizes while loading, like the trainer
    if on_cpu:
        cache_gb = spec.kv_cache_gb or _CPU_KV_CACHE_GB  # vLLM's default is 92 % of the memory
        arguments |= {
            "enforce_eager": True,
            # With chunked prompts vLLM rewinds the generator of a seeded request, which torch
            # cannot do on a CPU ("CPU Generator does not use offset"). So every prompt is processed
            # as a whole.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(1024, spec.max_context_tokens, spec.num_seqs(on_cpu=True)),
            "kv_cache_memory_bytes": int(cache_gb * 2**30),
            "block_size": CPU_BLOCK_TOKENS,
        }
    else:
        arguments |= {
            "gpu_memory_utilization": spec.gpu_memory_share,
            "enable_sleep_mode": spec.sleeps,
            "sleep_mode_offload_cudagraph": spec.sleeps,  # otherwise captured graphs stay in the GPU's memory
        }
        if spec.kv_cache_gb is not None:
            arguments["kv_cache_memory_bytes"] = int(spec.kv_cache_gb * 2**30)
    return arguments


@contextmanager
def _without_other_tensors(folder: Path) -> Iterator[Path]:
    """The folder of a model, or links to its files without those that vLLM must not load.

    vLLM would load the weights of `consolidated.safetensors` (Mistral's own format) and the
    optimizer state of an update by an earlier version.
    """
    paths = list(folder.iterdir())
    wanted = [path for path in paths if not is_mistral_file(path) and path.name != EARLIER_OPTIMIZER_STATE]
    if wanted == paths:
        yield folder
        return
    with TemporaryDirectory(prefix="core_hpc_model_") as temporary:
        for path in wanted:
            Path(temporary, path.name).symlink_to(path.absolute())
        yield Path(temporary)


@contextmanager
def _one_tokenizer() -> Iterator[None]:
    """In the block vLLM loads the tokenizer once.

    Otherwise it copies it for threads, and loads it again to render a chat as an exercise. Neither
    is used: prompts are token ids, and one thread has the engine. Copies of a vocabulary of 262,000
    entries take longer than the model itself.
    """
    from vllm.renderers import base, hf

    with (
        replaced(hf, "maybe_make_thread_pool", lambda tokenizer, copies=1: tokenizer),
        replaced(base.BaseRenderer, "warmup", lambda renderer, parameters: None),
    ):
        yield


def _with_our_rope(config: Any, *, context_tokens: int) -> Any:
    """The configuration of a model, with the rotary embedding that the trainer uses.

    vLLM keeps rotary embeddings of earlier engines of the process by their settings. The resolved
    settings differ for short and long contexts, and the original ones do not.
    """
    resolve_rope(config, context_tokens)
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("llama_4_scaling_beta") and not getattr(text, "llama_4_scaling", None):
        # vLLM reads the scaling of queries by their position only under its name in params.json.
        text.llama_4_scaling = {
            "original_max_position_embeddings": rope["original_max_position_embeddings"],
            "beta": rope["llama_4_scaling_beta"],
        }
    return config


def _lora_arguments(lora: LoraSection | None) -> dict[str, Any]:
    """Arguments for adapters of a shape.

    Without the names of the layers vLLM would prepare adapters for the output embeddings, too, which
    the trainer never adapts. Some models have a vocabulary for which it refuses that.
    """
    if lora is None:
        return {}
    rank = next((r for r in _LORA_RANKS if r >= lora.rank), None)
    if rank is None:
        raise InputError(f"vLLM supports adapters up to rank {_LORA_RANKS[-1]}, not {lora.rank}; reduce lora.rank")
    joined, _ = match_targets(JOINED_PROJECTIONS, lora.targets)
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": rank,
        "lora_target_modules": list(dict.fromkeys([*lora.targets, *joined])),
    }


def _sampling_parameters(sampling: SamplingSettings, seed: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p if sampling.temperature > 0 else 1.0,
        max_tokens=sampling.max_new_tokens,
        stop=list(sampling.stop_strings),
        stop_token_ids=list(sampling.stop_token_ids),
        seed=seed,
        logprobs=0,  # only that of the sampled token
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _completion(output: Any) -> Completion:
    """A completion from vLLM's output. Its token ids include the end token and the stop string.

    Raises:
        CoreHpcError: vLLM gave the completion up.
    """
    if output.finish_reason not in ("stop", "length"):
        raise CoreHpcError(f"vLLM gave a completion up (finish_reason {output.finish_reason}); see its log")
    token_ids = tuple(output.token_ids)
    logprobs = tuple(
        float(step[token].logprob) for token, step in zip(token_ids, output.logprobs[: len(token_ids)], strict=True)
    )
    return Completion(token_ids, logprobs, output.finish_reason)
