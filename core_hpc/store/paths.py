"""Every file name of a sweep, in one place; and the key of a task, which its file names are made of.

    OUTPUT/SWEEP/                      claim.json  controller.json  sweep.yaml
    OUTPUT/SWEEP/RUN_ID/               run.json (identity, never changed)  config.json (as of the last start)  horizon.json
                       problems/       train, evaluation, examples: frozen
                       cold/iteration=0001/MODEL-p000.UID.parquet + MODEL-p000.manifest.json      likewise rescue, evaluate
                       hint/iteration=0001/team-p000...    score/iteration=0001/team-p000...
                       update/iteration=0001/MODEL-p000.UID/   adapter, optimizer, schedule, steps.parquet
                       checkpoint/iteration=0001/MODEL-p000-step0012.UID/   while an update runs: optimizer, steps so far
                       counts/         iteration=0001.UID/   what analysis makes of its rollouts, kept
                       tensorboard/    logs/

A file counts only when a manifest names it (store.py). This module does no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core_hpc.store.schema import PHASES

MANIFEST_SUFFIX = ".manifest.json"
TEAM = "team"
"""Stands for the model in the names of tasks which belong to the whole team."""


@dataclass(frozen=True, order=True, slots=True)
class TaskKey:
    """Identity of one phase task within a run. `model` is TEAM for hint and score."""

    iteration: int
    phase: str
    model: str
    part: int = 0

    def __str__(self) -> str:
        return f"{self.phase}/{self.iteration:04d}/{self.model}/{self.part:03d}"

    @classmethod
    def parse(cls, text: str) -> TaskKey:
        """Inverse of str().

        >>> TaskKey.parse("cold/0001/smollm2/000")
        TaskKey(iteration=1, phase='cold', model='smollm2', part=0)
        """
        phase, iteration, model, part = text.split("/")
        if phase not in PHASES:
            raise ValueError(f"unknown phase in task key {text!r}")
        return cls(int(iteration), phase, model, int(part))


@dataclass(frozen=True, slots=True)
class RunPaths:
    """File names of one run folder."""

    root: Path

    @property
    def identity(self) -> Path:
        return self.root / "run.json"

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def horizon(self) -> Path:
        return self.root / "horizon.json"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def slurm(self) -> Path:
        """Submissions to SLURM: a record and a folder (scripts, logs, status) of each."""
        return self.root / "slurm"

    @property
    def problems(self) -> Path:
        return self.root / "problems"

    @property
    def kept(self) -> Path:
        """Counts of finished iterations (analysis.counts.cache)."""
        return self.root / "counts"

    def phase_folder(self, phase: str, iteration: int) -> Path:
        return self.root / phase / f"iteration={iteration:04d}"

    def task_folder(self, key: TaskKey) -> Path:
        return self.phase_folder(key.phase, key.iteration)

    def task_name(self, key: TaskKey) -> str:
        """Stem of the task's published files within its folder."""
        return f"{key.model}-p{key.part:03d}"

    def task_manifest(self, key: TaskKey) -> Path:
        return self.task_folder(key) / f"{self.task_name(key)}{MANIFEST_SUFFIX}"

    def checkpoint_folder(self, key: TaskKey) -> Path:
        """Where an update that has not published yet keeps its position (phases/checkpoint.py)."""
        return self.phase_folder("checkpoint", key.iteration)

    def checkpoint_name(self, key: TaskKey, num_steps: int) -> str:
        """Stem of the checkpoint after so many optimizer steps of the task."""
        return f"{self.task_name(key)}-step{num_steps:04d}"


@dataclass(frozen=True, slots=True)
class SweepPaths:
    """File names of one sweep folder."""

    root: Path

    @property
    def claim(self) -> Path:
        return self.root / "claim.json"

    @property
    def controller(self) -> Path:
        """The last word of the sweep's controller on itself and its runs (controller.Heartbeat)."""
        return self.root / "controller.json"

    @property
    def stop_request(self) -> Path:
        """While it exists, no controller of this sweep submits anything."""
        return self.root / "stop.json"

    @property
    def slurm(self) -> Path:
        """Jobs of detached controllers."""
        return self.root / "slurm"

    @property
    def source(self) -> Path:
        return self.root / "sweep.yaml"

    def run(self, run_id: str) -> RunPaths:
        return RunPaths(self.root / run_id)
