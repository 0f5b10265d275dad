"""How the engines and trainers of one machine share its GPUs, computed from the memory they need.

In: the cluster section, the models of the runs, the memory of a GPU and of the machine. Out: a
`Sharing` with its reason. Only `gpu_memory` looks at the machine. What the ways of sharing mean for
workers is in `local/executor.py`; which GPU a worker gets is decided in `local/gpus.py`. The
figures are estimates on the safe side. Where they are too low, a worker runs out of memory and
reports it; `gpu_sharing: evict` always works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core_hpc.config.cluster import ClusterSection
from core_hpc.config.model import ModelSection
from core_hpc.engines.share import Sharing
from core_hpc.local.gpus import have_own_gpus, most_on_a_gpu
from core_hpc.runs.folder import Run

USABLE = 0.92
"""Share of a GPU's memory. The rest belongs to the driver, or is lost between blocks."""
CONTEXT_GB = 1.0
"""What a process takes of a GPU besides its tensors, asleep or awake."""
MIN_KV_CACHE_GB = 4.0
"""An engine with a smaller cache would be too slow."""
UPDATE_GB = 10.0
"""What an update needs besides weights and optimizer when activations are computed again in the
backward pass: one micro-batch and its logits."""
HOST_SHARE = 0.5
"""Share of the machine's memory for the weights of engines that sleep."""


@dataclass(frozen=True)
class Needs:
    """GiB that one model needs.

    Attributes:
        engine_gb: the weights of its engine, on each GPU of the engine.
        trainer_gb: weights, master weights and optimizer of its trainer.
    """

    engine_gb: float
    trainer_gb: float

    @classmethod
    def of(cls, model: ModelSection, num_weights: int, cluster: ClusterSection) -> Needs:
        """Compute the needs from the number of weights. By default a weight has 16 bits."""
        billion = num_weights / 2**30
        bytes_each = 2.0
        if model.tuning == "qlora":
            bytes_each = 0.6
        elif model.dtype == "float32":
            bytes_each = 4.0
        full = 8 + 16 / cluster.update_ranks + 2 if model.tuning == "full" else 0.0  # training/full.py
        base = bytes_each / (cluster.update_ranks if cluster.zero_stage == 3 else 1)
        return cls(billion * bytes_each / cluster.engine_gpus, billion * (base + full))


def choose(
    cluster: ClusterSection, needs: Sequence[Needs], *, num_gpus: int, gpu_gb: float | None, host_gb: float
) -> Sharing:
    """Choose how engines and trainers share GPUs.

    `evict` and `split` are used as configured. `sleep` becomes `evict` where memory is too small
    or not known. `auto` takes the first of split, sleep and evict that memory allows.

    Args:
        needs: those of the models of the largest team; empty: not known.
        gpu_gb: memory of the smallest GPU; None: not known.
        host_gb: memory of the machine.
    """
    asked, share = cluster.gpu_sharing, cluster.gpu_memory_share
    if not num_gpus:
        return Sharing("evict", share)
    if asked in ("evict", "split"):
        return Sharing("evict" if asked == "evict" else "split", share)
    unknown = gpu_gb is None or not needs or not all(n.engine_gb for n in needs)
    sizes = (cluster.engine_gpus, cluster.update_ranks)
    engines, trainers = (most_on_a_gpu(len(needs) or 1, size, num_gpus) for size in sizes)
    if asked == "auto" and needs and have_own_gpus(cluster, len(needs), num_gpus):
        return Sharing("evict", share, "every engine and trainer has a GPU of its own")
    if unknown:
        why = "the memory of the GPU or the size of a model is not known, so workers take turns"
        return Sharing("evict", share, why)
    assert gpu_gb is not None
    room = _Room.of(needs, engines, trainers, gpu_gb)
    has = f"{engines} engine(s) and {trainers} trainer(s) on a GPU of {gpu_gb:.0f} GiB"
    if asked == "auto" and room.split_gb >= room.least_engine_gb:
        why = f"{has}: all stay in memory, {room.split_gb:.0f} GiB for each engine"
        return Sharing("split", round(room.split_gb / gpu_gb, 3), why)
    asleep_gb = engines * num_gpus * max(n.engine_gb for n in needs)
    host_is_short = asleep_gb > HOST_SHARE * host_gb
    if room.sleep_gb < room.least_engine_gb or room.update_gb < 0 or host_is_short:
        short = f"{asleep_gb:.0f} GiB of sleeping weights on a machine with {host_gb:.0f} GiB" if host_is_short else has
        why = f"{short}: not enough memory for all, so a worker ends before the next one starts"
        return Sharing("evict", share, why)
    why = f"{has}: trainers stay, engines sleep in turns, {room.sleep_gb:.0f} GiB for the one that is awake"
    return Sharing("sleep", round(room.sleep_gb / gpu_gb, 3), why)


@dataclass(frozen=True)
class _Room:
    """GiB that are left on a GPU.

    Attributes:
        split_gb: for each engine when all stay awake.
        sleep_gb: for one engine when the others sleep.
        update_gb: for an update when all engines sleep.
        least_engine_gb: what the largest engine needs at least.
    """

    split_gb: float
    sleep_gb: float
    update_gb: float
    least_engine_gb: float

    @classmethod
    def of(cls, needs: Sequence[Needs], engines: int, trainers: int, gpu_gb: float) -> _Room:
        largest = sorted((n.trainer_gb for n in needs), reverse=True)
        kept = sum(largest[:trainers]) + trainers * CONTEXT_GB  # ranks of a model have several GPUs
        usable = USABLE * gpu_gb
        return cls(
            split_gb=(usable - kept - UPDATE_GB) / engines,
            sleep_gb=usable - kept - (engines - 1) * CONTEXT_GB,
            update_gb=usable - kept - UPDATE_GB - engines * CONTEXT_GB,
            least_engine_gb=max(n.engine_gb for n in needs) * 1.1 + CONTEXT_GB + MIN_KV_CACHE_GB,
        )


def gpu_memory(names: Sequence[str]) -> float | None:
    """Return the GiB of the smallest of these GPUs; None where the driver does not report them.

    Args:
        names: as in CUDA_VISIBLE_DEVICES.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            handles = [
                pynvml.nvmlDeviceGetHandleByIndex(int(n)) if n.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(n)
                for n in names
            ]
            return min(float(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles) / 2**30
        finally:
            pynvml.nvmlShutdown()
    except (ImportError, ValueError):
        return None
    except pynvml.NVMLError:
        return None


def needs_of(runs: Sequence[Run]) -> list[Needs]:
    """Return the needs of the models of the team that needs most."""
    teams = [[Needs.of(m, r.facts[m.name].num_weights, r.config.cluster) for m in r.config.team] for r in runs]
    return max(teams, key=lambda team: sum(n.engine_gb + n.trainer_gb for n in team), default=[])
