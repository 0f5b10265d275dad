"""GPUs of this machine: which there are, and which a new worker group gets when others hold some. Pure but for looking.

In: the cluster section, and who holds what. Out: names as CUDA_VISIBLE_DEVICES has them. Starting and ending workers is
executors.py's; how much memory an engine takes is the engine's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core_hpc.common.errors import InputError
from core_hpc.config.cluster import ClusterSection
from core_hpc.engines import has_gpu

MOST_FOR_ENGINES = 0.9
"""With `gpu_sharing: split`: what the engines of a GPU may take of it together; the rest is for the trainers."""


Placement = tuple[tuple[str, ...], list[str]]
"""GPUs for a new worker group, and roles of the idle groups that must end first."""


@dataclass(frozen=True)
class Holder:
    """A worker group that holds GPUs. `kind`: what it does (generate or update)."""

    role: str
    kind: str
    gpus: tuple[str, ...]
    busy: bool
    last_used: float


def usable_gpus(cluster: ClusterSection) -> tuple[str, ...]:
    """Names of the GPUs to use: `cluster.gpus` are positions in what is visible; InputError when there is no such position."""
    if not has_gpu() and cluster.gpus is None:
        return ()
    listed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if cluster.gpus is None:
        return tuple(listed or (str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))))
    if listed and any(not 0 <= i < len(listed) for i in cluster.gpus):
        raise InputError(
            f"cluster.gpus: {cluster.gpus}, but CUDA_VISIBLE_DEVICES shows {len(listed)} GPU(s), counted from 0"
        )
    return tuple(listed[i] if listed else str(i) for i in cluster.gpus)


def most_on_a_gpu(num_models: int, num_ranks: int, num_gpus: int) -> int:
    """Worker groups of one kind that a GPU holds when every model has one of `num_ranks` processes, spread evenly.

    >>> most_on_a_gpu(2, 1, 2), most_on_a_gpu(2, 1, 1), most_on_a_gpu(3, 2, 4)
    (1, 2, 2)
    """
    return -(-num_models * num_ranks // num_gpus)


def check_gpus(cluster: ClusterSection, num_models: int, num_gpus: int) -> None:
    """InputError when so many GPUs of one machine are too few for the ranks, or cannot be shared as asked."""
    if num_gpus and cluster.update_ranks > num_gpus:
        raise InputError(
            f"cluster.update_ranks: {cluster.update_ranks} ranks need as many GPUs, this machine shows {num_gpus}; lower it"
        )
    if num_gpus and cluster.gpu_sharing == "split":
        engines = most_on_a_gpu(num_models, 1, num_gpus)
        if engines * cluster.gpu_memory_share > MOST_FOR_ENGINES:
            raise InputError(
                f"cluster.gpu_sharing: split puts {engines} engine(s) on a GPU ({num_models} models, {num_gpus} GPU(s)), each with "
                f"gpu_memory_share {cluster.gpu_memory_share:g} of it: more than {MOST_FOR_ENGINES:g} in all leaves no room for the "
                f"trainers. Set gpu_memory_share to {0.5 / engines:.2g}, which leaves them half, or use `gpu_sharing: evict`"
            )


def place_alone(count: int, gpus: Sequence[str], holders: Sequence[Holder]) -> Placement | None:
    """GPUs that a new group has for itself; None while too many are busy. Groups that have been idle the longest end first."""
    free = set(gpus) - {gpu for h in holders for gpu in h.gpus}
    ended: list[str] = []
    for holder in sorted((h for h in holders if not h.busy and h.gpus), key=lambda h: h.last_used):
        if len(free) >= count:
            break
        free |= set(holder.gpus)
        ended.append(holder.role)
    return (tuple(gpu for gpu in gpus if gpu in free)[:count], ended) if len(free) >= count else None


def place_beside(
    kind: str, count: int, gpus: Sequence[str], holders: Sequence[Holder], *, most: int
) -> Placement | None:
    """GPUs that a new group shares with others: those with the fewest of its kind; None while one of them is busy.

    A GPU never holds more than `most` of a kind (models of other runs): idle groups beyond that are named to be ended.
    """
    alike = {
        gpu: sorted((h for h in holders if h.kind == kind and gpu in h.gpus), key=lambda h: h.last_used) for gpu in gpus
    }
    busy = {gpu for h in holders if h.busy for gpu in h.gpus}
    chosen = sorted(gpus, key=lambda gpu: (len(alike[gpu]), gpu in busy))[:count]
    if len(chosen) < count or busy & set(chosen):
        return None
    ended = [h.role for gpu in chosen for h in alike[gpu][: max(0, len(alike[gpu]) + 1 - most)]]
    return tuple(chosen), list(dict.fromkeys(ended))
