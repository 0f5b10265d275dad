"""The policy: a frozen causal language model with a LoRA adapter, and its token log-probabilities.

In: a folder with a Hugging Face model. Out: log-probabilities of completion tokens under the current weights or,
with the adapter disabled, under the reference policy. This module does not compute losses or optimise, and holds
nothing of a task but the adapter that is attached last.

Shapes: B sequences, L padded length, H hidden size, V vocabulary, M completion tokens of a micro-batch.
"""

# Tensor names end in their shape.
# ruff: noqa: N803, N806

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from core_hpc.config import LoraSection
from core_hpc.errors import InputError
from core_hpc.training.batching import MicroBatch, Row, Sequence, collate
from core_hpc.training.losses import token_log_probs

Dtype = Literal["auto", "float32", "bfloat16"]


def load_base_model(
    folder: Path, *, dtype: Dtype, device: torch.device, trust_remote_code: bool = False, allow_pickle: bool = False
) -> nn.Module:
    """The frozen base weights; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    chosen = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(dtype) or (
        torch.bfloat16 if device.type == "cuda" else torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=chosen, trust_remote_code=trust_remote_code, use_safetensors=None if allow_pickle else True, local_files_only=True
    )
    return model.to(device).requires_grad_(False).eval()


def existing_targets(model: nn.Module, targets: Iterable[str]) -> list[str]:
    """Those of `targets` which name a linear layer of the model; InputError when there is none."""
    layers = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    head = next((n.rpartition(".")[2] for n, m in model.named_modules() if m is model.get_output_embeddings()), None)
    found = [t for t in targets if t in layers - {head}]
    if not found:
        raise InputError(f"lora.targets {list(targets)}: the model has no such layer; it has {sorted(layers - {head})}")
    return found


class Policy:
    """Base model and adapter. The base is loaded once; `attach` replaces the adapter."""

    def __init__(self, base: nn.Module, *, gradient_checkpointing: bool = False) -> None:
        self.base = base.eval()
        self.device = next(base.parameters()).device
        self.dtype = next(base.parameters()).dtype
        self.peft: Any = None
        self.config: LoraConfig | None = None
        text_config = base.config.get_text_config()
        self.vocabulary: int = text_config.vocab_size
        self._softcap: float | None = getattr(text_config, "final_logit_softcapping", None)
        if gradient_checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            # Checkpointing asks `training` of its own layers. Everything else stays in eval mode, so that old and
            # current log-probabilities never differ by a dropout that some base model has.
            for module in base.modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.training = True
        self.skips_logits = self._probe_head()
        self.max_shared_length = self._probe_sharing()

    def attach(self, lora: LoraSection, *, seed: int, name: str) -> dict[str, nn.Parameter]:
        """Replace the adapter by a fresh one (B = 0, A drawn by `seed`).

        `name` is the model reference that the published adapter carries. Returns the trainable float32 parameters
        under the names of a PEFT adapter file.
        """
        if self.peft is not None:
            self.base = self.peft.unload()
        self.config = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=existing_targets(self.base, lora.targets),
            task_type="CAUSAL_LM",
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.peft = get_peft_model(self.base, self.config, autocast_adapter_dtype=True)
        # PEFT puts this machine's folder here, which means nothing elsewhere.
        self.config.base_model_name_or_path = name
        for module in self.peft.modules():
            if not isinstance(module, GradientCheckpointingLayer):
                module.training = False
        return {n.replace(".default.", "."): p for n, p in self.peft.named_parameters() if p.requires_grad}

    def log_probs(self, batch: MicroBatch, *, temperature: float, reference: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of every completion token, [M] each; `reference`: with the adapter disabled."""
        with self.peft.disable_adapter() if reference else nullcontext():
            outputs = self._hidden(batch) if self.skips_logits else self._logits(batch)
            return token_log_probs(
                outputs.flatten(0, 1)[batch.source_M], batch.targets_M, self._head if self.skips_logits else _identity,
                temperature=temperature, vocabulary=self.vocabulary,
            )  # fmt: skip

    def _inputs(self, batch: MicroBatch) -> dict[str, Any]:
        return {
            "input_ids": batch.input_ids_BL,
            "position_ids": batch.position_ids_BL,
            "attention_mask": batch.attention_mask,
            "use_cache": False,
        }

    def _hidden(self, batch: MicroBatch) -> Tensor:
        return self.base.base_model(**self._inputs(batch)).last_hidden_state

    def _logits(self, batch: MicroBatch) -> Tensor:
        return self.base(**self._inputs(batch)).logits

    def _head(self, hidden_CH: Tensor) -> Tensor:
        logits_CV = self.base.get_output_embeddings()(hidden_CH)
        if self._softcap is not None:
            logits_CV = torch.tanh(logits_CV / self._softcap) * self._softcap
        return logits_CV

    def _probe_batch(self, sequences: list[tuple[int, ...]]) -> MicroBatch:
        ids = [(7 * i + 3) % self.vocabulary for i in range(20)]
        rows = [Row((k,), "probe", ids[:8], ids[8 + 4 * k : 12 + 4 * k], [0.0] * 4, 0.0, 1.0) for k in range(2)]
        planned = [Sequence(s, 8 + 4 * len(s)) for s in sequences]
        return collate(rows, planned, dtype=self.dtype).to(self.device)

    @torch.no_grad()
    def _probe_head(self) -> bool:
        """Does backbone + output embeddings give the model's own logits? Families differ in scales and caps."""
        if self.base.base_model is self.base or self.base.get_output_embeddings() is None:
            return False
        batch = self._probe_batch([(0,)])
        return self._close(self._head(self._hidden(batch)), self._logits(batch))

    @torch.no_grad()
    def _probe_sharing(self) -> int:
        """Length up to which prompts may be shared: 0 where the model does not honour the mask of shared prompts."""
        config = self.base.config.get_text_config()
        windows = [getattr(config, n, None) for n in ("sliding_window", "attention_chunk_size")]
        if getattr(config, "_attn_implementation", None) not in ("sdpa", "eager"):
            return 0
        shared, separate = self._probe_batch([(0, 1)]), self._probe_batch([(0,), (1,)])
        same = self._close(
            *(self._logits(b).flatten(0, 1)[b.source_M] for b in (shared, separate)),
        )
        # Within its window, sliding attention is full attention, so one mask serves both kinds of layers.
        return min([w for w in windows if w], default=2**31) if same else 0

    def _close(self, left: Tensor, right: Tensor) -> bool:
        tolerance = 1e-3 if self.dtype == torch.float32 else 5e-2
        return bool((left - right).float().norm() <= tolerance * right.float().norm())


def _identity(logits_CV: Tensor) -> Tensor:
    return logits_CV
