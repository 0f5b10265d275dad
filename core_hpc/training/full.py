"""The policy of `tuning: full`: every weight is trained, through a float32 master of it.

In: a way to load the base weights. Out: masters for the optimizer, and an ordinary Hugging Face
model folder.

The model computes with weights of its own dtype, which are cast from the masters after every step.
`write` publishes these cast weights and an engine loads them, so trainer and engine have the same
weights. (Casting inside an autocast would leave the residual stream in float32.) As soon as a
backward pass has made a gradient, it is added to the master's gradient in float32.

Memory in bytes per parameter on one of n ranks, for a model in bfloat16: 2 (model) + 4 (masters) +
4 (their gradients) + 16 / n (what ZeRO-2 partitions: master, two moments, reduced gradient) + 2
(base weights of the reference policy, only if kl_weight > 0). LoRA needs 2, and very little
besides.
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

from core_hpc.models.folder import is_mistral_file
from core_hpc.models.loading import save_model, trained_parameters
from core_hpc.training.policy import Policy
from core_hpc.training.prefix_tree import TREE_ATTENTION
from core_hpc.training.state_io import share_with_group

OTHER_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.py")
"""Files of a model folder besides its weights: tokenizer, chat template, code."""


def write_model(model: Any, state: Mapping[str, Tensor], folder: Path, *, source: Path) -> None:
    """Write a model folder with these tensors, and the other files of the base model in `source`."""
    save_model(model, folder, source=source, state=state)
    for path in folder.glob("*.safetensors"):
        share_with_group(path)
    for pattern in OTHER_FILES:
        for path in source.glob(pattern):
            describes_base_weights = path.name.endswith(".index.json") or is_mistral_file(path)
            if not (folder / path.name).exists() and not describes_base_weights:
                shutil.copyfile(path, folder / path.name)


class FullPolicy(Policy):
    """A model of which every weight of the language model is trained.

    Tied weights are one parameter, which has the first of their names.
    """

    trains_head = True

    def __init__(self, load: Callable[[], nn.Module], folder: Path, *, with_reference: bool) -> None:
        """Load the model, and the base weights a second time for the reference policy.

        Args:
            load: returns the frozen base weights of `folder`.
            with_reference: False saves their memory; `log_probs` then needs the current weights.
        """
        super().__init__(load())
        self._load = load
        self._folder = folder
        self._reference = load() if with_reference else None
        self.has_reference = with_reference
        if self._reference is not None and self.layout == "tree":
            self._reference.set_attn_implementation(TREE_ATTENTION)
        self._weights: dict[str, nn.Parameter] = trained_parameters(self.base)
        self._masters: dict[str, nn.Parameter] = {}
        for name, weight in self._weights.items():
            weight.requires_grad_(True).register_post_accumulate_grad_hook(partial(self._hand_over, name))

    def start(self, *, seed: int, from_base: bool) -> dict[str, nn.Parameter]:
        """Make new masters. Nothing is drawn, so `seed` has no effect."""
        source = dict((self._reference or self._load()).named_parameters()) if from_base else self._weights
        self._masters = {
            name: nn.Parameter(source[name].detach().to(torch.float32, copy=True)) for name in self._weights
        }
        self.synchronise()
        return self._masters

    def networks(self) -> list[nn.Module]:
        """The model, and that of the reference policy."""
        return [self.base] if self._reference is None else [self.base, self._reference]

    def synchronise(self) -> None:
        """Cast the masters to the model's dtype."""
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(self._masters[name])

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write weights in the model's dtype, and the other files of the base model."""
        persistent = self.base.state_dict().keys()
        state: dict[str, Tensor] = {name: buffer for name, buffer in self.base.named_buffers() if name in persistent}
        state |= {name: weight.detach() for name, weight in self.base.named_parameters() if name not in weights}
        state |= {name: tensor.to(self.dtype) for name, tensor in weights.items()}
        write_model(self.base, state, folder, source=self._folder)

    @contextmanager
    def network(self, *, reference: bool) -> Iterator[Any]:
        """The trained model, or the base model for the reference policy."""
        assert not reference or self._reference is not None
        yield self._reference if reference else self.base

    def _hand_over(self, name: str, weight: nn.Parameter) -> None:
        """Move a gradient that a backward pass has just completed to the master."""
        master = self._masters[name]
        assert weight.grad is not None
        gradient = weight.grad.float()
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        weight.grad = None
