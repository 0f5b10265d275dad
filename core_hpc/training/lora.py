"""The policies of `tuning: lora` and `qlora`: a PEFT adapter on frozen base weights.

In: a model. Out: an adapter to train, and an ordinary PEFT folder.

A linear layer is computed in the dtype of the frozen weights as x W^T + bias + scale (x A^T) B^T.
The result is that of PEFT's own layer except for rounding; the adapter and its gradients stay in
float32. PEFT's layer casts activations to float32 and the sum back again, which on a GPU takes
longer than the frozen product, and it keeps float32 copies of every input for the backward pass. An
engine computes an adapter in the base's dtype, too. PEFT's layer remains for layers that are not
plain linear ones (4 bits).

Shapes: N tokens, I inputs, O outputs, R rank.
"""

# Tensor names end in their shape.
# ruff: noqa: N803, N806

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from core_hpc.common.errors import InputError
from core_hpc.config.model import LoraSection
from core_hpc.models.loading import language_model, linear_layers, match_targets
from core_hpc.training.policy import Policy
from core_hpc.training.state_io import write_adapter


class _LoraProduct(torch.autograd.Function):  # type: ignore[misc]  # torch is not type-checked here
    """A linear layer with an adapter; the frozen weights get no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        x_NI, a_RI, b_OR = x.reshape(-1, x.shape[-1]), a_RI.to(x.dtype), b_OR.to(x.dtype)
        down_NR = x_NI @ a_RI.T
        y_NO = torch.add(F.linear(x_NI, weight_OI, bias_O), down_NR @ b_OR.T, alpha=scale)
        ctx.save_for_backward(x_NI, weight_OI, a_RI, b_OR, down_NR)
        ctx.scale, ctx.shape = scale, x.shape
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI, a_RI, b_OR, down_NR = ctx.saved_tensors
        grad_NO = grads[0].reshape(len(x_NI), -1)
        up_NR = grad_NO @ b_OR
        grad_a_RI = _product(up_NR.T, x_NI).mul_(ctx.scale)
        grad_b_OR = _product(grad_NO.T, down_NR).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.add(grad_NO @ weight_OI, up_NR @ a_RI, alpha=ctx.scale).view(ctx.shape)
        return grad_x, None, None, grad_a_RI, grad_b_OR, None


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The product in float32. A CPU first rounds it to the dtype of the factors."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


class LoraLinear(Linear):  # type: ignore[misc]  # peft is not type-checked here
    """PEFT's layer, computed in the dtype of the frozen weights."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the layer, [..., I] to [..., O]."""
        if self.disable_adapters:
            return self.base_layer(x)
        (name,) = self.active_adapters
        return _LoraProduct.apply(
            x,
            self.base_layer.weight,
            self.base_layer.bias,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
        )


class LoraPolicy(Policy):
    """An adapter on frozen base weights of 32, 16 or 4 bits; `start` replaces it by a fresh one."""

    def __init__(self, base: nn.Module, lora: LoraSection, *, name: str) -> None:
        """Prepare the model; `name` is the model reference written into published adapters."""
        super().__init__(base)
        part, _ = language_model(base)
        if part:
            print(f"update: the adapter trains {part} of {type(base).__name__}; its other parts get none", flush=True)
        self.lora = lora
        self.name = name
        self.peft: Any = None
        self._config: LoraConfig | None = None

    def start(self, *, seed: int, from_base: bool) -> dict[str, nn.Parameter]:
        """Replace the adapter by a fresh one: B is 0, and `seed` draws A.

        The names of the parameters are those of a PEFT adapter file.
        """
        if self.peft is not None:
            self.base = self.peft.unload()
        self._config = LoraConfig(
            r=self.lora.rank,
            lora_alpha=self.lora.alpha,
            lora_dropout=0.0,
            target_modules=existing_targets(self.base, self.lora.targets),
            exclude_modules=_outside_the_language_model(self.base),
            task_type="CAUSAL_LM",
        )
        layers = linear_layers(self.base)
        targets = [m for name, m in layers.items() if name.rpartition(".")[2] in self._config.target_modules]
        if all(type(m) is nn.Linear for m in targets):
            self._config._register_custom_module({nn.Linear: LoraLinear})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.peft = get_peft_model(self.base, self._config, autocast_adapter_dtype=True)
        # PEFT enables these for a kind of checkpointing that is not used here.
        self.base.disable_input_require_grads()
        # PEFT writes this machine's folder here, which means nothing on other machines.
        self._config.base_model_name_or_path = self.name
        for module in self.peft.modules():
            if not isinstance(module, GradientCheckpointingLayer):
                module.training = False
        return {n.replace(".default.", "."): p for n, p in self.peft.named_parameters() if p.requires_grad}

    def synchronise(self) -> None:
        """Do nothing: the adapter's layers compute with the parameters themselves."""

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write an ordinary PEFT folder."""
        assert self._config is not None
        write_adapter(folder, weights, self._config)

    def merged(self) -> dict[str, Tensor]:
        """All tensors of the base model, by their names in it, with the adapter added to the weights."""
        merged: dict[str, Tensor] = {}
        for name, tensor in self.base.state_dict().items():
            owner, _, last = name.rpartition(".")
            if ".lora_" in name:
                continue
            if owner.endswith(".base_layer") and last == "weight":
                layer = self.base.get_submodule(owner.removesuffix(".base_layer"))
                (adapter,) = layer.active_adapters
                tensor = (tensor.float() + layer.get_delta_weight(adapter).float()).to(tensor.dtype)
            merged[name.replace(".base_layer.", ".")] = tensor
        return merged

    @contextmanager
    def network(self, *, reference: bool) -> Iterator[Any]:
        """The base model, whose adapter is disabled for the reference policy."""
        with self.peft.disable_adapter() if reference else nullcontext():
            yield self.base


def _outside_the_language_model(model: nn.Module) -> str | None:
    """A regular expression for the names of the other parts' modules; None if there are no others."""
    prefix, _ = language_model(model)
    return rf"(?!{re.escape(prefix)}\.).*" if prefix else None


def existing_targets(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """The linear layers of the language model that `targets` mean, output embeddings excluded.

    Raises:
        InputError: none of them does.
    """
    layers = {name.rpartition(".")[2] for name in linear_layers(model)}
    found, _ = match_targets(layers, targets)
    if not found:
        raise InputError(f"lora.targets {list(targets)}: the model has no such layer; choose among {sorted(layers)}")
    return found
