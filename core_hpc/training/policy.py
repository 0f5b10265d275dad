"""The policy: a causal language model of which something is trained, and its token log-probabilities.

In: a folder with a Hugging Face model. Out: log-probabilities of completion tokens under the current weights or under
the reference policy, which is the base weights. `Policy` is what every kind of tuning shares: lora.py trains an adapter on
frozen base weights, full.py every weight. When it is loaded it tries out what the model can do: whether its layers give the logits
without the model's own head, whether it computes trees. This module does not compute losses or optimise, and holds nothing
of a task but what `start` made.

Shapes: B sequences, L length, H hidden size, V vocabulary, M completion tokens of a micro-batch, U distinct predictions among them.
"""

# Tensor names end in their shape.
# ruff: noqa: N803, N806

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from core_hpc.models.quantization import four_bit_options, require_four_bit
from core_hpc.training.batching import Layout, Row
from core_hpc.training.device import (
    ActivationSize,
    GpuMemoryError,
    compile_layers,
    free_memory,
    is_close,
    layers_of,
    layers_to_checkpoint,
)
from core_hpc.training.micro_batch import MicroBatch, collate
from core_hpc.training.prefix_tree import TREE_ATTENTION
from core_hpc.training.token_log_probs import token_log_probs

Dtype = Literal["auto", "float32", "bfloat16"]
MEASURED_TOKENS = 1024
"""Of the forward pass that tells how much memory activations take."""


def load_base_model(
    folder: Path,
    *,
    dtype: Dtype,
    device: torch.device,
    four_bit: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> nn.Module:
    """The frozen base weights; `auto` is bfloat16 on a GPU and float32 on a CPU. `four_bit` needs a GPU (quantisation.py)."""
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    options |= {"use_safetensors": None if allow_pickle else True}
    if four_bit:
        require_four_bit()
        model = AutoModelForCausalLM.from_pretrained(folder, **four_bit_options(device), **options)
    else:
        chosen = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(dtype) or (
            torch.bfloat16 if device.type == "cuda" else torch.float32
        )
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=chosen, **options).to(device)
    return model.requires_grad_(False).eval()


class Policy(ABC):
    """A model of which something is trained. The base is loaded once; `start` begins a task."""

    trains_head = False
    """Whether the output embeddings are trained."""
    _references: tuple[bool, ...] = (False, True)
    """Values of `reference` that `log_probs` can be called with."""

    def __init__(self, base: nn.Module, *, gradient_checkpointing: bool | None = None) -> None:
        """`gradient_checkpointing`: of all layers, or none; None: of as many as memory demands, on a GPU."""
        self.base = base.eval()
        self.device = next(base.parameters()).device
        self.dtype = next(base.parameters()).dtype
        text_config = base.config.get_text_config()
        self.num_weights = sum(p.numel() for p in base.parameters())
        self.vocabulary: int = text_config.vocab_size
        self._softcap: float | None = getattr(text_config, "final_logit_softcapping", None)
        self._layers = layers_of(base)
        self._checkpoints = gradient_checkpointing
        if gradient_checkpointing or (
            gradient_checkpointing is None and self._on_gpu and base.supports_gradient_checkpointing
        ):
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            base.disable_input_require_grads()
        self.checkpoint(len(self._layers) if gradient_checkpointing else 0)
        self._activations: ActivationSize | None = None
        self.is_compiled = self._tried_to_compile = False
        self.skips_logits = self._probe_head()
        self.layout: Layout = self._probe_layout()

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def checkpoint(self, num_layers: int) -> None:
        """Have the first layers compute their activations again in the backward pass.

        Checkpointing asks `training` of its own layers. Everything else stays in eval mode, so that old and current
        log-probabilities never differ by a dropout that some base model has.
        """
        self.num_checkpointed = num_layers
        for n, layer in enumerate(self._layers):
            layer.training = n < num_layers

    @abstractmethod
    def start(self, *, seed: int, from_base: bool) -> dict[str, nn.Parameter]:
        """Begin a task: the trainable float32 parameters by name, with what the first task of a run starts from.

        Not `from_base`: the caller gives all of them other values. After any change of their values, `synchronise`.
        """

    @abstractmethod
    def synchronise(self) -> None:
        """Let the model compute with the present values of the trainable parameters."""

    @abstractmethod
    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write what other programs load, with these values of the trainable parameters."""

    @abstractmethod
    def _model(self, *, reference: bool) -> Any:
        """Context manager: the model that computes with the current weights, or with those of the reference policy."""

    def log_probs(self, batch: MicroBatch, *, temperature: float, reference: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of every completion token, [M] each; `reference`: under the base weights."""
        with self._model(reference=reference) as model:
            outputs = self._hidden(model, batch) if self.skips_logits else self._logits(model, batch)
            head = partial(self._head, model) if self.skips_logits else torch.clone
            logp_U, entropy_U = token_log_probs(
                outputs.flatten(0, 1)[batch.source_U],
                batch.targets_U,
                head,
                temperature=temperature,
                vocabulary=self.vocabulary,
                trains_head=self.trains_head,
                compiled=self.is_compiled,
            )
            return logp_U[batch.distinct_M], entropy_U[batch.distinct_M]

    def compile(self) -> None:
        """Compile the layers, once, on a GPU; after `start`. Where that fails they compute as they did, and it is said why."""
        if self._tried_to_compile or not self._on_gpu or self.layout != "tree":
            return
        self._tried_to_compile = True
        # Else the first layer, whose input would need no gradient, is another one to the compiler.
        self.base.get_input_embeddings().register_forward_hook(_need_gradient)
        why = compile_layers([layer for model in self._models() for layer in layers_of(model)], self._all_ways)
        self.is_compiled = why is None
        if why is not None:
            print(f"update: {type(self.base).__name__} is not compiled: {why}", flush=True)

    def _models(self) -> list[nn.Module]:
        """Those that compute log-probabilities."""
        return [self.base]

    def _all_ways(self, compiled: bool) -> tuple[Tensor, Tensor]:
        """Log-probabilities and gradients of the probe's rows, with gradients (checkpointed and not), without, and of the reference."""
        self.is_compiled = compiled
        batch, values, grads, kept = self._probe_batch("tree"), list[Tensor](), list[Tensor](), self.num_checkpointed
        # A few are enough to compare, and of all weights of a model (tuning: full) there would be no room for the gradients.
        trained = sorted((p for p in self.base.parameters() if p.requires_grad), key=Tensor.numel)[:64]
        for count in {0, len(self._layers)} if self._checkpoints is None else {kept}:
            self.checkpoint(count)
            logp_M, _ = self.log_probs(batch, temperature=1.0)
            values.append(logp_M.detach())
            grads += [
                g.flatten() for g in torch.autograd.grad(logp_M.sum(), trained, allow_unused=True) if g is not None
            ]
        self.checkpoint(kept)
        with torch.no_grad():
            values += [self.log_probs(batch, temperature=1.0, reference=reference)[0] for reference in self._references]
        return torch.cat(values).to(self.dtype), torch.cat(grads).to(self.dtype)

    def fit(self, num_tokens: int, num_keys: int) -> None:
        """Checkpoint as many layers as the memory of the GPU demands for the largest micro-batch, where the user leaves it open.

        GpuMemoryError, with what to do, when it will not fit even so.
        """
        if self._checkpoints is not None or not self._on_gpu or not self.base.supports_gradient_checkpointing:
            return
        if self._activations is None:
            self._activations = self._measure_activations()
        free = free_memory(self.device)
        count = layers_to_checkpoint(
            self._activations, num_layers=len(self._layers), num_tokens=num_tokens, num_keys=num_keys, free=free
        )
        if count is None:
            raise GpuMemoryError(
                f"update: a micro-batch of {num_tokens} tokens does not fit into the {free / 2**30:.1f} GiB that are free on the GPU, even "
                "with all activations computed again; lower update.micro_batch_tokens, or leave the update more of the GPU"
            )
        self.checkpoint(count)

    def _measure_activations(self) -> ActivationSize:
        """By a forward pass of a few tokens."""
        kept = self.num_checkpointed
        self.checkpoint(0)
        ids = [(7 * i + 3) % self.vocabulary for i in range(MEASURED_TOKENS + 1)]
        batch = collate([Row((), "probe", ids[:1], ids[1:], None, 0.0, 1.0)], [0], self.layout).to(self.device)
        before = torch.cuda.memory_allocated(self.device)
        with self._model(reference=False) as model:
            hidden = self._hidden(model, batch) if self.skips_logits else self._logits(model, batch)
        per_token = (torch.cuda.memory_allocated(self.device) - before) / MEASURED_TOKENS
        del hidden
        self.checkpoint(kept)
        config = self.base.config.get_text_config()
        size = torch.finfo(self.dtype).bits // 8
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        key = (
            2
            * (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
            * head
            * size
            * len(self._layers)
        )
        return ActivationSize(per_token, config.hidden_size * size, key)

    def _inputs(self, batch: MicroBatch) -> dict[str, Any]:
        inputs = {
            "input_ids": batch.input_ids_BL,
            "position_ids": batch.position_ids_BL,
            "attention_mask": batch.attention_mask_BL,
        }
        more = {} if batch.segments is None else {"segments": batch.segments}
        return {**inputs, **more, "use_cache": False}

    def _hidden(self, model: Any, batch: MicroBatch) -> Tensor:
        return model.base_model(**self._inputs(batch)).last_hidden_state

    def _logits(self, model: Any, batch: MicroBatch) -> Tensor:
        return model(**self._inputs(batch)).logits

    def _head(self, model: Any, hidden_CH: Tensor) -> Tensor:
        logits_CV = model.get_output_embeddings()(hidden_CH)
        if self._softcap is not None:
            logits_CV = torch.tanh(logits_CV / self._softcap) * self._softcap
        return logits_CV

    def _probe_batch(self, layout: Layout) -> MicroBatch:
        """Three rows of which two share a prompt, and one only the beginning of it."""
        ids = [(7 * i + 3) % self.vocabulary for i in range(24)]
        prompts = (ids[:8], ids[:8], [*ids[:5], *ids[9:13]])
        rows = [
            Row((k,), "probe", prompt, ids[8 + 4 * k : 12 + 4 * k], [0.0] * 4, 0.0, 1.0)
            for k, prompt in enumerate(prompts)
        ]
        return collate(rows, sorted(range(3), key=lambda k: rows[k].inputs), layout).to(self.device)

    def _probe_logits(self, batch: MicroBatch) -> Tensor:
        return self._logits(self.base, batch).flatten(0, 1)[batch.source_U][batch.distinct_M]

    @torch.no_grad()
    def _probe_head(self) -> bool:
        """Does backbone + output embeddings give the model's own logits? Families differ in scales and caps."""
        if self.base.base_model is self.base or self.base.get_output_embeddings() is None:
            return False
        batch = self._probe_batch("padded")
        return is_close(self._head(self.base, self._hidden(self.base, batch)), self._logits(self.base, batch))

    @torch.no_grad()
    def _probe_layout(self) -> Layout:
        """The tree, where the model computes it as it computes its rows apart; it then keeps the attention of trees."""
        wanted = self._probe_logits(self._probe_batch("padded"))
        before = self.base.config._attn_implementation
        found = self._tree_logits()
        if isinstance(found, Tensor) and is_close(found, wanted):
            return "tree"
        self.base.set_attn_implementation(before)
        why = found if isinstance(found, str) else "its results differ"
        print(
            f"update: {type(self.base).__name__} computes padded batches, what rows share each time: {why}", flush=True
        )
        return "padded"

    def _tree_logits(self) -> Tensor | str:
        """Of the probe's rows as a tree, or why they cannot be had."""
        config = self.base.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if kinds or getattr(config, "attention_chunk_size", None):
            return f"layers of other kinds ({', '.join(sorted(kinds)) or 'chunked attention'})"
        if not all(_passes_on(model, "segments") for model in (self.base, self.base.base_model)):
            return "it takes no arguments for its attention"
        batch = self._probe_batch("tree")
        assert batch.segments is not None
        windows: set[int | None] = set()
        try:
            self.base.set_attn_implementation(TREE_ATTENTION)
            found = self._probe_logits(replace(batch, segments=replace(batch.segments, windows=windows)))
        except (RuntimeError, ValueError) as error:  # shapes of another attention, and what `tree_attention` cannot do
            return f"{type(error).__name__}: {error}"
        if not windows:
            return "its attention cannot be replaced"
        if _slides(config) and windows == {None}:
            return "its attention does not say how far it sees"
        return found


def _need_gradient(module: nn.Module, inputs: Any, output: Tensor) -> None:
    if torch.is_grad_enabled():
        output.requires_grad_(True)


def _passes_on(model: nn.Module, argument: str) -> bool:
    """Whether a model's forward takes an argument, by name or as one of any name."""
    parameters = inspect.signature(model.forward).parameters
    return argument in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _slides(config: Any) -> bool:
    """Whether some layer sees a window of tokens only."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
