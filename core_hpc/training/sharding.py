"""Frozen base weights divided among the ranks of an update (`cluster.zero_stage: 3`).

In: a model with frozen weights, and the process group. Out: the same model on this rank's device.
Of every layer it has the part of this rank. Before a layer computes, forward or backward, its
weights are gathered from all ranks, and they are released afterwards (`fully_shard` of torch).
Embeddings stay whole. An adapter is added later and is not divided here: its gradients and its
optimizer are those of ZeRO-2 (`zero2.py`).

Gathering is collective, so all ranks must compute equally many micro-batches. A rank that has fewer
of its own computes others, without an effect (`batching.idle_batches`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from core_hpc.common.errors import InputError


def shard_layers(model: nn.Module, layers: Iterable[nn.Module], device: torch.device) -> None:
    """Divide the weights of the layers among the ranks, and move the model to the device. Collective.

    Args:
        model: it is on a CPU, and its weights need no gradients.
        layers: of the model. They are moved one by one, so the device never holds the whole model.
        device: of this rank.

    Raises:
        InputError: the model has no layers that can be divided.
    """
    layers = list(layers)
    if not layers:
        raise InputError(
            f"cluster.zero_stage: 3 does not know the layers of {type(model).__name__}, so it cannot divide their "
            "weights among the ranks; leave zero_stage out"
        )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    model.to(device)


def is_sharded(model: nn.Module) -> bool:
    """Whether some weights of a model are divided among the ranks."""
    return any(isinstance(p, DTensor) for p in model.parameters())
