"""TODO docstring."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, cast

from core_hpc.config.cluster import ClusterSection

Kind = Literal["evict", "split", "sleep"]


ENVIRONMENT = "CORE_HPC_GPU_SHARING"


@dataclass(frozen=True)
class Sharing:
    """The way, the share of a GPU that each engine takes, and why."""

    kind: Kind
    engine_share: float
    why: str = ""

    def environment(self) -> dict[str, str]:
        """What a worker is told of it (`of_worker`)."""
        return {ENVIRONMENT: f"{self.kind} {self.engine_share}"}

    @classmethod
    def of_worker(cls, cluster: ClusterSection) -> Sharing:
        """What this worker was told by who started it, else what the configuration says."""
        kind, share = os.environ.get(ENVIRONMENT, f"evict {cluster.gpu_memory_share}").split()
        return cls(cast(Kind, kind), float(share))
