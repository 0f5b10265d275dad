"""How engines and trainers share a GPU, as a worker process needs to know it.

The launcher decides this in `local/memory.py` and passes it to its workers in an environment
variable. This module converts the decision to the variable and back.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, cast

from core_hpc.common.environment import number_in
from core_hpc.config.cluster import ClusterSection

Kind = Literal["evict", "split", "sleep"]
ENVIRONMENT = "CORE_HPC_GPU_SHARING"
ENGINE_GPUS = "CORE_HPC_ENGINE_GPUS"
"""Variable of a worker: the GPUs of its engine. A SLURM job has those that it was submitted for, although the
configuration may have changed while it waited."""


def engine_gpus(cluster: ClusterSection) -> int:
    """The GPUs of an engine in this worker, or as configured."""
    return number_in(ENGINE_GPUS) or cluster.engine_gpus


@dataclass(frozen=True)
class Sharing:
    """How the GPUs of a machine are shared.

    Attributes:
        engine_share: share of a GPU's memory for each engine.
        why: the reason, for the log.
        trainers_stay: trainers are not ended between iterations.
    """

    kind: Kind
    engine_share: float
    why: str = ""
    trainers_stay: bool = True

    def environment(self) -> dict[str, str]:
        """The environment variable for a worker; `of_worker` is the inverse."""
        return {ENVIRONMENT: f"{self.kind} {self.engine_share} {int(self.trainers_stay)}"}

    @classmethod
    def of_worker(cls, cluster: ClusterSection) -> Sharing:
        """The decision in this worker's environment, or `evict` with the configured share."""
        kind, share, stay = os.environ.get(ENVIRONMENT, f"evict {cluster.gpu_memory_share} 1").split()
        return cls(cast(Kind, kind), float(share), trainers_stay=stay == "1")
