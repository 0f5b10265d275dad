"""What an update is given and what it answers; plain data that the phase and the trainer share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from core_hpc.config.update import UpdateSection
from core_hpc.training.batching import Row
from core_hpc.training.interruption import Interruption, ResumePoint
from core_hpc.training.timings import UpdateTimings


@dataclass(frozen=True, kw_only=True)
class UpdateTask:
    """Everything that one update computes from, the same on every rank."""

    rows: Sequence[Row]
    settings: UpdateSection
    temperature: float
    max_new_tokens: int
    """Longest completion that may be sampled."""
    total_steps: int
    """Optimizer steps of this model in the whole run: horizon of warm-up and cosine."""
    shuffle_seed: int
    lora_seed: int
    previous: Path | None
    """Published folder of an update to continue from; None: the base weights (a fresh adapter) and a fresh optimizer."""
    on_progress: Callable[[int, int], None] | None = None
    """Called with (optimizer steps done, optimizer steps of the task)."""
    interruption: Interruption = field(default_factory=Interruption)
    resume: ResumePoint | None = None
    """Checkpoint of this very task to go on from; the same on every rank."""
    num_alike: int = 1
    """Tasks of about this length, this one included, that a process does in the run: what it compiles serves all of them."""


@dataclass(frozen=True)
class UpdateResult:
    """`steps` has the columns of schema.STEPS without run_id, iteration and model."""

    steps: pl.DataFrame
    steps_done: int
    num_ranks: int
    timings: UpdateTimings
