"""Generation with transformers and PEFT.

This engine is slower than vLLM but simple, and tests compare vLLM with it.
In: prompt token ids. Out: all sampled token ids with the log-probabilities of the distribution from
which they were drawn. This engine has its own sampling loop, because `generate` of transformers
uses one random stream for all rows of a batch; here each request has its own.

Shapes: B rows of a batch, U distinct prompts among them, T prompt length, V vocabulary, C
candidates of top-p.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.engines import EngineSpec, check_requests
from core_hpc.engines.base import (
    AdapterRef,
    Completion,
    FinishReason,
    GenerationRequest,
    ProgressCallback,
    SamplingSettings,
)
from core_hpc.engines.sampling import sample_tokens
from core_hpc.models.folder import end_token_ids, load_tokenizer
from core_hpc.models.imports import large_imports
from core_hpc.models.loading import load_model
from core_hpc.models.quantization import four_bit_options

if TYPE_CHECKING:
    from torch import Tensor

_BATCH_TOKENS_CPU = 16_384
_BATCH_TOKENS_GPU = 131_072


@dataclass(kw_only=True)
class _Row:
    """A completion in progress."""

    index: int
    prompt: tuple[int, ...]
    limit: int
    generator: Any
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class TransformersEngine:
    """One model with at most one adapter, which is never merged into the weights."""

    compile_s = 0.0

    def __init__(self, spec: EngineSpec) -> None:
        with large_imports():
            import torch

        self._spec = spec
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        on_cpu = self._device.type == "cpu"
        dtype = spec.dtype if spec.dtype != "auto" else ("float32" if on_cpu else "bfloat16")
        self._tokenizer = load_tokenizer(spec.model_folder, trust_remote_code=spec.trust_remote_code)
        load = partial(
            load_model,
            spec.model_folder,
            context_tokens=spec.max_context_tokens,
            trust_remote_code=spec.trust_remote_code,
        )
        if spec.four_bit:
            model = load(**four_bit_options(self._device))
        else:
            model = load(dtype=getattr(torch, dtype)).to(self._device)
        # PEFT freezes the model with the first adapter. Then other kernels would run and change the
        # last digits of the base model, so it is frozen from the beginning.
        self._model: Any = model.requires_grad_(False).eval()
        self._end_ids = end_token_ids(spec.model_folder, self._tokenizer)
        self._batch_tokens = _BATCH_TOKENS_CPU if on_cpu else _BATCH_TOKENS_GPU
        self._peft: Any = None
        self._adapter: AdapterRef | None = None
        self._num_adapters = 0

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingSettings,
        *,
        adapter: AdapterRef | None,
        on_progress: ProgressCallback | None = None,
    ) -> list[Completion]:
        """Sample one completion per request; see the protocol in base.py."""
        import torch

        if self._model is None:
            raise CoreHpcError("this engine was closed")
        check_requests(requests, self._spec.max_context_tokens)
        if self._spec.sleeps and not self._spec.four_bit:
            self._move(self._device)
        rows = [self._row(i, r, sampling) for i, r in enumerate(requests)]
        done: list[_Row] = []
        with torch.inference_mode(), self._with_adapter(adapter):
            for batch in self._batches(rows, sampling.max_new_tokens):
                for row in self._decode(batch, sampling):
                    done.append(row)
                    if on_progress is not None:
                        on_progress(len(done), sum(len(r.token_ids) for r in done))
        done.sort(key=lambda r: r.index)
        return [Completion(tuple(r.token_ids), tuple(r.logprobs), r.finish_reason or "length") for r in done]

    def sleep(self) -> None:
        """Move the model to the host memory. Weights in 4 bits cannot be moved and stay."""
        if self._spec.sleeps and not self._spec.four_bit:
            self._move("cpu")

    def _move(self, device: Any) -> None:
        import torch

        (self._peft if self._peft is not None else self._model).to(device)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Release the model."""
        import torch

        self._model = self._peft = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _row(self, index: int, request: GenerationRequest, sampling: SamplingSettings) -> _Row:
        import torch

        limit = min(sampling.max_new_tokens, self._spec.max_context_tokens - len(request.prompt_token_ids))
        generator = torch.Generator().manual_seed(request.seed)
        return _Row(index=index, prompt=request.prompt_token_ids, limit=limit, generator=generator)

    def _batches(self, rows: list[_Row], max_new_tokens: int) -> Iterator[list[_Row]]:
        """Batches of rows with similar prompt lengths, within the budget for keys and values."""
        batch: list[_Row] = []
        for row in sorted(rows, key=lambda r: (len(r.prompt), r.prompt, r.index)):
            full = (len(row.prompt) + max_new_tokens) * (len(batch) + 1) > self._batch_tokens
            if batch and (full or len(batch) == self._spec.num_seqs(on_cpu=self._device.type == "cpu")):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _decode(self, rows: list[_Row], sampling: SamplingSettings) -> Iterator[_Row]:
        """Sample all rows of a batch to the end; yields each row when it is finished."""
        import torch

        logits, mask, cache = self._prefill(rows)
        while True:
            tokens, logprobs = sample_tokens(logits, [r.generator for r in rows], sampling.temperature, sampling.top_p)
            for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
                row.token_ids.append(token)
                row.logprobs.append(logprob)
                row.finish_reason = self._finish_reason(row, sampling)
            keep = [i for i, r in enumerate(rows) if r.finish_reason is None]
            yield from (r for r in rows if r.finish_reason is not None)
            if not keep:
                return
            if len(keep) < len(rows):
                index = torch.tensor(keep, device=self._device)
                cache.batch_select_indices(index)
                tokens, mask, rows = tokens[index], mask[index], [rows[i] for i in keep]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            logits = self._forward(tokens[:, None], mask, cache)

    def _prefill(self, rows: list[_Row]) -> tuple[Tensor, Tensor, Any]:
        """Logits [B, V] after the prompts, attention mask [B, T] and cache.

        Equal prompts are computed once.
        """
        import torch
        from transformers import DynamicCache

        prompts = list(dict.fromkeys(r.prompt for r in rows))
        length = max(map(len, prompts))
        ids = torch.tensor([[0] * (length - len(p)) + list(p) for p in prompts], device=self._device)
        mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        cache = DynamicCache(config=self._model.config)
        logits = self._forward(ids, mask, cache)
        where = {p: i for i, p in enumerate(prompts)}
        index = torch.tensor([where[r.prompt] for r in rows], device=self._device)
        if len(prompts) < len(rows):
            cache.batch_select_indices(index)
        return logits[index], mask[index], cache

    def _forward(self, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """Logits [B, V] of the last position.

        Padding is on the left, so positions are counts of the mask.
        """
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1]

    def _finish_reason(self, row: _Row, sampling: SamplingSettings) -> FinishReason | None:
        if row.token_ids[-1] in self._end_ids or row.token_ids[-1] in sampling.stop_token_ids:
            return "stop"
        if stop_strings := sampling.stop_strings:
            # A character has at most four tokens (its bytes); the margin keeps the cut away from
            # the stop string.
            tail = row.token_ids[-4 * max(map(len, stop_strings)) - 4 :]
            text = self._tokenizer.decode(tail, skip_special_tokens=True)
            if any(s in text for s in stop_strings):
                return "stop"
        return "length" if len(row.token_ids) == row.limit else None

    @contextlib.contextmanager
    def _with_adapter(self, adapter: AdapterRef | None) -> Iterator[None]:
        if adapter is not None:
            self._load(adapter)
            yield
        elif self._peft is not None:
            with self._peft.disable_adapter():
                yield
        else:
            yield

    def _load(self, adapter: AdapterRef) -> None:
        """Make `adapter` the active adapter and remove the previous one."""
        from peft import PeftModel

        if adapter == self._adapter:
            return
        if not (adapter.path / "adapter_config.json").is_file():
            raise InputError(
                f"adapter {adapter.version}: {adapter.path} is not a PEFT adapter folder (no adapter_config.json)"
            )
        old, self._num_adapters = f"adapter{self._num_adapters}", self._num_adapters + 1
        name = f"adapter{self._num_adapters}"  # versions may contain dots, which PEFT forbids in names
        if self._peft is None:
            # This adds layers to self._model.
            self._peft = PeftModel.from_pretrained(self._model, str(adapter.path), adapter_name=name)
        else:
            self._peft.load_adapter(str(adapter.path), adapter_name=name)
            self._peft.set_adapter(name)
            self._peft.delete_adapter(old)
        self._peft.eval()
        self._adapter = adapter
