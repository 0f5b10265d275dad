"""The policy of a trainer from its settings.

In: the folder of a model, and what is trained of it. Out: a `Policy` on the device of this rank. With
divided base weights every rank calls it (`sharding.py`).
"""

from __future__ import annotations

from functools import partial

import torch

from core_hpc.training.full import FullPolicy
from core_hpc.training.lora import LoraPolicy
from core_hpc.training.memory import layers_of
from core_hpc.training.policy import Policy, load_base_model
from core_hpc.training.sharding import shard_layers
from core_hpc.training.task import TrainerSettings


def build_policy(settings: TrainerSettings, device: torch.device) -> Policy:
    """Load the base model, with what is trained of it."""
    load = partial(
        load_base_model,
        settings.model_folder,
        dtype=settings.dtype,
        device=device,
        context_tokens=settings.context_tokens,
        four_bit=settings.four_bit,
        trust_remote_code=settings.trust_remote_code,
        allow_pickle=settings.allow_pickle,
    )
    if settings.lora is None:
        return FullPolicy(load, settings.model_folder, with_reference=settings.with_reference)
    base = load(move=not settings.shard_base)
    if settings.shard_base:
        shard_layers(base, layers_of(base), device)
    return LoraPolicy(base, settings.lora, name=settings.model_name)
