"""Every file name of a sweep, and the key of a task, from which its file names are made.

    OUTPUT/.warmups/                     warm-ups of all sweeps, by what they are computed from
    OUTPUT/SWEEP/
        claim.json  controller.json  stop.json  sweep.yaml  slurm/
        RUN_ID/
            run.json                     identity, never changed
            config.json  horizon.json    as of the last start
            wandb.json                   the id in W&B, if points are copied to it, and what was copied
            problems/                    train, evaluation, examples; fixed at the start
                                         chosen.json: of a rescored run, the choice of training problems
            extensions/                  files with functions of the user, copied at the start
            adapters/                    MODEL.UID/: an adapter with which the model begins; fixed at the start
            warmup/iteration=0000/       MODEL-p000.UID/: a model, which replaces the base weights
            cold/iteration=0001/         MODEL-p000.UID.parquet and MODEL-p000.manifest.json;
                                         likewise rescue, evaluate
            hint/iteration=0001/         team-p000.UID/: hints.parquet, embeddings of the cold texts
            score/iteration=0001/        team-p000.UID.parquet
            update/iteration=0001/       MODEL-p000.UID/: adapter, optimizer/, steps.parquet
            checkpoint/iteration=0001/   MODEL-p000-step0012.UID/, while an update is running
            counts/                      iteration=0001.UID/: cached counts of its rollouts
            slurm/  tensorboard/  wandb/  logs/

A file counts only if a manifest names it (`manifests.py`). This module does no I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from core_hpc.store.phases import PHASES

MANIFEST_SUFFIX = ".manifest.json"
TEAM = "team"
"""Stands for the model in the names of tasks of the whole team."""
OPTIMIZER_STATE = "optimizer/state.safetensors"
"""In the folder of an update. A subfolder, because an engine loads all weight files of a folder."""
EARLIER_OPTIMIZER_STATE = "optimizer.safetensors"
"""The name of this file in updates that earlier versions published."""
OPTIMIZER_STATES = (OPTIMIZER_STATE, EARLIER_OPTIMIZER_STATE)

Kind = tuple[str, str]
"""Phase and model of a task."""


@dataclass(frozen=True, order=True, slots=True)
class TaskKey:
    """Identity of one task within a run.

    `model` is TEAM for hint and score, and `iteration` is 0 for warmup.
    """

    iteration: int
    phase: str
    model: str
    part: int = 0

    def __str__(self) -> str:
        return f"{self.phase}/{self.iteration:04d}/{self.model}/{self.part:03d}"

    @property
    def kind(self) -> Kind:
        return self.phase, self.model

    @classmethod
    def parse(cls, text: str) -> TaskKey:
        """Parse what `str()` returns.

        >>> TaskKey.parse("cold/0001/smollm2/000")
        TaskKey(iteration=1, phase='cold', model='smollm2', part=0)
        """
        phase, iteration, model, part = text.split("/")
        if phase not in PHASES:
            raise ValueError(f"unknown phase in task key {text!r}")
        return cls(int(iteration), phase, model, int(part))


def phase_iteration(folder_name: str) -> int | None:
    """The iteration of a phase folder, or None if the folder has another name.

    >>> phase_iteration("iteration=0012"), phase_iteration("iteration=0012.bak")
    (12, None)
    """
    match = re.fullmatch(r"iteration=([0-9]{4,9})", folder_name)
    iteration = int(match[1]) if match else -1
    return iteration if folder_name == f"iteration={iteration:04d}" else None


@dataclass(frozen=True, slots=True)
class RunPaths:
    """File names of one run folder."""

    root: Path

    @property
    def identity(self) -> Path:
        """Written last when a run folder is created, and never changed."""
        return self.root / "run.json"

    @property
    def config(self) -> Path:
        """The configuration of the last start."""
        return self.root / "config.json"

    @property
    def horizon(self) -> Path:
        """The horizons of the learning-rate schedule (`runs/graph.py`)."""
        return self.root / "horizon.json"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def wandb(self) -> Path:
        """Copies of TensorBoard's points for W&B. The package itself gives the folder its name."""
        return self.root / "wandb"

    @property
    def wandb_id(self) -> Path:
        """The id under which W&B knows the run, and what was copied to it."""
        return self.root / "wandb.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def slurm(self) -> Path:
        """Submissions to SLURM, each with a record and a folder (scripts, logs, status)."""
        return self.root / "slurm"

    @property
    def problems(self) -> Path:
        return self.root / "problems"

    @property
    def chosen(self) -> Path:
        """The training problems of each iteration of a rescored run, which has no scores that choose them."""
        return self.problems / "chosen.json"

    @property
    def extensions(self) -> Path:
        """Copies of the files with functions of the user, which all tasks load (`extensions/sources.py`)."""
        return self.root / "extensions"

    @property
    def adapters(self) -> Path:
        """Adapters with which models begin, fixed at the first start (`runs/adapters.py`)."""
        return self.root / "adapters"

    def adapter_manifest(self, model: str) -> Path:
        """Manifest of the adapter with which a model begins."""
        return self.adapters / f"{model}{MANIFEST_SUFFIX}"

    @property
    def warmups(self) -> Path:
        """Warm-ups that all runs below the same `output` share (`phases/warmup.py`)."""
        return self.root.parent.parent / ".warmups"

    @property
    def kept(self) -> Path:
        """Cached counts of finished iterations (`analysis/counts/cache.py`)."""
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
        """Where an unfinished update stores its position (`phases/checkpoint.py`)."""
        return self.phase_folder("checkpoint", key.iteration)

    def checkpoint_name(self, key: TaskKey, num_steps: int) -> str:
        """Stem of the checkpoint after `num_steps` optimizer steps of the task."""
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
        """What the controller last reported about itself and its runs (`Heartbeat`)."""
        return self.root / "controller.json"

    @property
    def stop_request(self) -> Path:
        """While this file exists, no controller of this sweep submits anything."""
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
