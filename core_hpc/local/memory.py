"""How engines and trainers share the GPUs of one machine: worked out from what they need and what a GPU has. Pure but for `gpu_memory`.

In: the cluster section, the models of the runs, the memory of a GPU and of the machine. Out: a `Sharing`, with the words that say why.
What each way means for workers is executors.py's; which GPU a worker gets is gpus.py's. Figures are estimates on the safe side: where
they are wrong a worker runs out of memory and says so, and `gpu_sharing: evict` always works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core_hpc.config.cluster import ClusterSection
from core_hpc.config.run import ModelSection
from core_hpc.engines.share import Sharing
from core_hpc.local.gpus import most_on_a_gpu
from core_hpc.runs.folder import Run

USABLE = 0.92
"""Of a GPU's memory; the rest is the driver's, and lost between blocks."""
CONTEXT_GB = 1.0
"""What a process holds of a GPU besides its tensors, asleep or awake."""
MIN_KV_CACHE_GB = 4.0
"""Of an engine that is to be worth its while."""
UPDATE_GB = 10.0
"""What an update needs besides weights and optimizer, with all activations computed again: a micro-batch, its logits."""
HOST_SHARE = 0.5
"""Of the machine's memory, for weights of engines that sleep."""


@dataclass(frozen=True)
class Needs:
    """GiB of one model: weights of its engine; weights, masters and optimizer of its trainer."""

    engine_gb: float
    trainer_gb: float

    @classmethod
    def of(cls, model: ModelSection, num_weights: int, num_ranks: int) -> Needs:
        """By the number of weights, in 16 bits where nothing else is said."""
        billion = num_weights / 2**30
        bytes_each = 0.6 if model.tuning == "qlora" else 4.0 if model.dtype == "float32" else 2.0
        full = 8 + 16 / num_ranks + 2 if model.tuning == "full" else 0.0  # training/full.py
        return cls(billion * bytes_each, billion * (bytes_each + full))


def choose(
    cluster: ClusterSection, needs: Sequence[Needs], *, num_gpus: int, gpu_gb: float | None, host_gb: float
) -> Sharing:
    """What the user asked for; for `auto`, the best way that memory allows: split, else sleep, else evict.

    Args:
        needs: of the models of the largest team; empty: not known.
        gpu_gb: of the smallest GPU; None: not known.
    """
    asked, share = cluster.gpu_sharing, cluster.gpu_memory_share
    if not num_gpus:
        return Sharing("evict", share)
    if asked in ("evict", "split"):
        return Sharing("evict" if asked == "evict" else "split", share)
    unknown = gpu_gb is None or not needs or not all(n.engine_gb for n in needs)
    engines, trainers = (most_on_a_gpu(len(needs) or 1, ranks, num_gpus) for ranks in (1, cluster.update_ranks))
    if asked == "auto" and needs and len(needs) * (1 + cluster.update_ranks) <= num_gpus:
        return Sharing("evict", share, "every engine and trainer has a GPU of its own")
    if unknown:
        return Sharing(
            "evict", share, "the memory of the GPU, or the size of a model, is not known, so workers take turns"
        )
    assert gpu_gb is not None
    room = _Room.of(needs, engines, trainers, gpu_gb)
    has = f"{engines} engine(s) and {trainers} trainer(s) on a GPU of {gpu_gb:.0f} GiB"
    if asked == "auto" and room.split_gb >= room.least_engine_gb:
        return Sharing(
            "split",
            round(room.split_gb / gpu_gb, 3),
            f"{has}: all stay in memory, {room.split_gb:.0f} GiB for each engine",
        )
    host = engines * num_gpus * max(n.engine_gb for n in needs)
    if room.sleep_gb < room.least_engine_gb or room.update_gb < 0 or host > HOST_SHARE * host_gb:
        short = f"{host:.0f} GiB of weights in the machine's {host_gb:.0f} GiB" if host > HOST_SHARE * host_gb else has
        return Sharing("evict", share, f"{short}: not enough memory to stay, so one ends where the other begins")
    words = f"{has}: trainers stay, engines sleep in turns, {room.sleep_gb:.0f} GiB for the one that is awake"
    return Sharing("sleep", round(room.sleep_gb / gpu_gb, 3), words)


@dataclass(frozen=True)
class _Room:
    """GiB that are left on a GPU: for each engine when all stay; for one when the others sleep; for an update when all of them do."""

    split_gb: float
    sleep_gb: float
    update_gb: float
    least_engine_gb: float

    @classmethod
    def of(cls, needs: Sequence[Needs], engines: int, trainers: int, gpu_gb: float) -> _Room:
        largest = sorted((n.trainer_gb for n in needs), reverse=True)
        kept = sum(largest[:trainers]) + trainers * CONTEXT_GB  # ranks of one model lie on several GPUs
        usable = USABLE * gpu_gb
        return cls(
            split_gb=(usable - kept - UPDATE_GB) / engines,
            sleep_gb=usable - kept - (engines - 1) * CONTEXT_GB,
            update_gb=usable - kept - UPDATE_GB - engines * CONTEXT_GB,
            least_engine_gb=max(n.engine_gb for n in needs) * 1.1 + CONTEXT_GB + MIN_KV_CACHE_GB,
        )


def gpu_memory(names: Sequence[str]) -> float | None:
    """GiB of the smallest of these GPUs (names as in CUDA_VISIBLE_DEVICES); None where the driver does not tell."""
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
    """Of the team that needs most."""
    teams = [
        [Needs.of(m, r.facts[m.name].num_weights, r.config.cluster.update_ranks) for m in r.config.team] for r in runs
    ]
    return max(teams, key=lambda team: sum(n.engine_gb + n.trainer_gb for n in team), default=[])
