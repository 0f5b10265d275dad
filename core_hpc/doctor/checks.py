"""What a check of the doctor is: it examines a `Subject` and reports `Finding`s.

No check changes or downloads anything. The checks are in `doctor/packages.py`, `doctor/inputs.py` (what
the sweep names), `doctor/machine.py`, `doctor/storage.py`, `doctor/slurm.py`, and `doctor/job.py` (compute
nodes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from core_hpc.common.errors import CoreHpcError
from core_hpc.config.cluster import ClusterSection
from core_hpc.config.model import ModelSection
from core_hpc.runs.sweep import Sweep
from core_hpc.slurm.commands import Slurm, slurm_installed

OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was found, and what to do about it (empty if nothing needs to be done)."""

    status: str
    what: str
    advice: str = ""


@dataclass(frozen=True)
class Subject:
    """What is examined. `given` is false if the user named no sweep and `sweep` is a small stand-in."""

    sweep: Sweep
    given: bool
    slurm: Slurm

    @property
    def cluster(self) -> ClusterSection:
        return self.sweep.cluster

    @property
    def submits(self) -> bool:
        """Whether the sweep's tasks become SLURM jobs."""
        return self.cluster.uses_slurm

    @property
    def asks_slurm(self) -> bool:
        return self.submits or (not self.given and slurm_installed())

    @property
    def models(self) -> list[ModelSection]:
        """The different models of the runs."""
        found: dict[tuple[object, ...], ModelSection] = {}
        for model in (m for plan in self.sweep.runs for m in plan.config.team):
            found.setdefault((model.model, model.revision, model.trust_remote_code, model.allow_pickle), model)
        return list(found.values())

    @property
    def engines(self) -> set[str]:
        return {m.engine for plan in self.sweep.runs for m in plan.config.team}

    @property
    def embedders(self) -> list[str]:
        return sorted({plan.config.reward.distance.embedder for plan in self.sweep.runs})


Check = Callable[[Subject], Iterable[Finding]]


def run_checks(checks: Iterable[Check], subject: Subject) -> Iterator[Finding]:
    """Findings of several checks. An error for the user that a check raises becomes a finding."""
    for check in checks:
        try:
            yield from check(subject)
        except CoreHpcError as e:
            yield Finding(FAIL, str(e))
