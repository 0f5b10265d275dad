"""The GPUs of this machine: which of them are used, and which of them a new worker group gets.

In: the cluster section, and the worker groups that hold GPUs now. Out: names of GPUs as in
CUDA_VISIBLE_DEVICES. Only `usable_gpus` looks at the machine. Workers are started and ended in
`local/executor.py`. How much memory an engine may take is decided in `local/memory.py`.
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
"""With `gpu_sharing: split`: the share of a GPU's memory that its engines may take together. The
rest is for the trainers."""


Placement = tuple[tuple[str, ...], list[str]]
"""GPUs for a new worker group, and roles of the idle groups that must end first."""


@dataclass(frozen=True)
class Holder:
    """A worker group that holds GPUs. `kind` is what it does: generate or update."""

    role: str
    kind: str
    gpus: tuple[str, ...]
    busy: bool
    last_used: float


def num_gpu_devices() -> int:
    """Number of NVIDIA GPUs of this machine, by their device files."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def visible_gpus() -> tuple[str, ...]:
    """Return the names of the GPUs that this process sees, as in CUDA_VISIBLE_DEVICES.

    Raises:
        InputError: there are GPUs, but their number is unknown.
    """
    listed = tuple(name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name)
    if listed or not has_gpu():
        return listed
    if num := num_gpu_devices():
        return tuple(str(i) for i in range(num))
    raise InputError(
        "this machine has a GPU, but no device file counts its GPUs (WSL2, ROCm). Set the environment variable "
        "CUDA_VISIBLE_DEVICES to their indices, for example to 0; or to an empty text, to use none"
    )


def usable_gpus(cluster: ClusterSection) -> tuple[str, ...]:
    """Return the names of the GPUs to use.

    `cluster.gpus` are positions among the visible GPUs. Without this field all visible GPUs are
    used.

    Raises:
        InputError: a position is out of range.
    """
    visible = visible_gpus()
    if cluster.gpus is None:
        return visible if has_gpu() else ()
    if any(not 0 <= i < len(visible) for i in cluster.gpus):
        by = "CUDA_VISIBLE_DEVICES shows" if os.environ.get("CUDA_VISIBLE_DEVICES") else "this machine has"
        raise InputError(
            f"cluster.gpus: {cluster.gpus} is out of range, because {by} {len(visible)} GPU(s), numbered from 0. "
            f"Correct cluster.gpus or CUDA_VISIBLE_DEVICES, or leave cluster.gpus out"
        )
    return tuple(visible[i] for i in cluster.gpus)


def most_on_a_gpu(num_models: int, num_ranks: int, num_gpus: int) -> int:
    """Return the most worker groups of one kind on a GPU, when the models are spread evenly.

    Args:
        num_ranks: GPUs of the group of one model.

    >>> most_on_a_gpu(2, 1, 2), most_on_a_gpu(2, 1, 1), most_on_a_gpu(3, 2, 4)
    (1, 2, 2)
    """
    return -(-num_models * num_ranks // num_gpus)


def check_slices(names: Sequence[str], *, update_ranks: int, engine_gpus: int) -> None:
    """Refuse slices of GPUs (MIG) for processes that NCCL connects.

    Only the newest versions of NCCL support slices, as an experiment.

    Args:
        names: those of the GPUs, as in CUDA_VISIBLE_DEVICES.

    Raises:
        InputError: an update has several ranks, or an engine several GPUs, and one of them is a slice.
    """
    found = next((name for name in names if name.startswith("MIG-")), None)
    if found is None:
        return
    for field, count, what in (
        ("update_ranks", update_ranks, "the ranks of an update"),
        ("engine_gpus", engine_gpus, "the processes of an engine"),
    ):
        if count > 1:
            raise InputError(
                f"cluster.{field}: {count}, but CUDA_VISIBLE_DEVICES shows slices of GPUs ({found}), and NCCL, which "
                f"connects {what}, needs whole GPUs. Set cluster.{field} to 1, or use GPUs without MIG"
            )


def check_gpus(cluster: ClusterSection, num_models: int, num_gpus: int, *, names: Sequence[str] = ()) -> None:
    """Check that the GPUs of one machine suffice for ranks and engines, and can be shared as configured.

    Args:
        names: those of the GPUs, where they are known.

    Raises:
        InputError: they are too few or unfit, or the engines would leave no memory for the trainers.
    """
    check_slices(names, update_ranks=cluster.update_ranks, engine_gpus=cluster.engine_gpus)
    if num_gpus and cluster.update_ranks > num_gpus:
        raise InputError(
            f"cluster.update_ranks: {cluster.update_ranks} ranks need as many GPUs, but this machine shows {num_gpus}. "
            f"Set cluster.update_ranks to {num_gpus} or less"
        )
    if num_gpus and cluster.engine_gpus > num_gpus:
        raise InputError(
            f"cluster.engine_gpus: an engine needs {cluster.engine_gpus} GPUs, but this machine shows {num_gpus}. "
            f"Set cluster.engine_gpus to {num_gpus} or less"
        )
    if num_gpus and cluster.gpu_sharing == "split":
        engines = most_on_a_gpu(num_models, cluster.engine_gpus, num_gpus)
        if engines * cluster.gpu_memory_share > MOST_FOR_ENGINES:
            raise InputError(
                f"cluster.gpu_sharing: split puts {engines} engine(s) on a GPU ({num_models} models, {num_gpus} "
                f"GPU(s)), and each takes gpu_memory_share {cluster.gpu_memory_share:g} of its memory. More than "
                f"{MOST_FOR_ENGINES:g} in all leaves no room for the trainers. Set gpu_memory_share to "
                f"{0.5 / engines:.2g}, which leaves them half of the memory, or use `gpu_sharing: evict`"
            )


def have_own_gpus(cluster: ClusterSection, num_models: int, num_gpus: int) -> bool:
    """Whether every engine and every trainer can have GPUs of its own."""
    return num_models * (cluster.engine_gpus + cluster.update_ranks) <= num_gpus


def place_alone(count: int, gpus: Sequence[str], holders: Sequence[Holder]) -> Placement | None:
    """Choose GPUs that a new group does not share.

    If too few GPUs are free, idle groups must end, those that were used longest ago first.

    Returns:
        The placement, or None while too many GPUs are busy.
    """
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
    """Choose GPUs that a new group shares with others: those with the fewest groups of its kind.

    Args:
        most: limit for groups of one kind on a GPU. Idle groups above it (models of other runs)
            must end.

    Returns:
        The placement, or None while a group on one of these GPUs is busy.
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
