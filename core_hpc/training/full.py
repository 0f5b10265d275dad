"""The policy of `tuning: full`: every weight of the model is trained, as float32 masters of what the model computes with.

In: a way to load the base weights. Out: masters for the optimizer, and an ordinary Hugging Face model folder. The model
computes with weights of its own dtype, cast from the masters after every step; those are also what `write` publishes and an
engine loads, so trainer and engine have the same weights, where casting inside an autocast would leave the residual stream
in float32. A gradient is added to its master's, in float32, as soon as a backward pass has made it.

Memory per parameter on a rank, in bytes, with n ranks and a model of bfloat16: 2 (model) + 4 (masters) + 4 (their
gradients) + 16 / n (what ZeRO-2 partitions: master, two moments, reduced gradient) + 2 (reference policy, with kl_weight > 0
only; the base weights beside). LoRA needs 2, and next to nothing for the rest.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core_hpc.training.policy import Policy
from core_hpc.training.prefix_tree import TREE_ATTENTION
from core_hpc.training.state_io import share_with_group


class FullPolicy(Policy):
    """A model all of whose weights are trained. Tied weights are one parameter, under its first name."""

    trains_head = True

    def __init__(
        self,
        load: Callable[[], nn.Module],
        folder: Path,
        *,
        with_reference: bool,
        gradient_checkpointing: bool | None = None,
    ) -> None:
        """`load` gives the frozen base weights of `folder`; without reference, `log_probs` can only use the current weights."""
        super().__init__(load(), gradient_checkpointing=gradient_checkpointing)
        self._load = load
        self._folder = folder
        self._reference = load() if with_reference else None
        self._references = (False, True) if with_reference else (False,)
        if self._reference is not None and self.layout == "tree":
            self._reference.set_attn_implementation(TREE_ATTENTION)
        self._weights: dict[str, nn.Parameter] = dict(self.base.named_parameters())
        self._masters: dict[str, nn.Parameter] = {}
        for name, weight in self._weights.items():
            weight.requires_grad_(True).register_post_accumulate_grad_hook(partial(self._hand_over, name))

    def start(self, *, seed: int, from_base: bool) -> dict[str, nn.Parameter]:
        """New masters; nothing is drawn by the seed."""
        source = dict((self._reference or self._load()).named_parameters()) if from_base else self._weights
        self._masters = {
            name: nn.Parameter(source[name].detach().to(torch.float32, copy=True)) for name in self._weights
        }
        self.synchronise()
        return self._masters

    def _models(self) -> list[nn.Module]:
        return [self.base] if self._reference is None else [self.base, self._reference]

    @torch.no_grad()
    def synchronise(self) -> None:
        """Cast the masters to the model's dtype."""
        for name, weight in self._weights.items():
            weight.copy_(self._masters[name])

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """A model folder: weights in the model's dtype, and the base model's other files (tokenizer, chat template, code)."""
        persistent = self.base.state_dict().keys()
        state = {name: buffer for name, buffer in self.base.named_buffers() if name in persistent}
        state |= {name: tensor.to(self.dtype) for name, tensor in weights.items()}
        self.base.save_pretrained(folder, state_dict=state)
        for path in folder.glob("*.safetensors"):
            share_with_group(path)
        for pattern in ("*.json", "*.jinja", "*.txt", "*.model", "*.py"):
            for path in self._folder.glob(pattern):
                if not (folder / path.name).exists() and not path.name.endswith(".index.json"):
                    shutil.copyfile(path, folder / path.name)

    def _hand_over(self, name: str, weight: nn.Parameter) -> None:
        """Move a gradient that a backward pass has just completed to the master."""
        master = self._masters[name]
        assert weight.grad is not None
        gradient = weight.grad.float()
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        weight.grad = None

    @contextmanager
    def _model(self, *, reference: bool) -> Iterator[Any]:
        assert not reference or self._reference is not None
        yield self._reference if reference else self.base
