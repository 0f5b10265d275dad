"""Where an update can be interrupted: between two optimizer steps, all ranks at the same one.

In: what the surroundings of the task ask for (stop, save every so many seconds). Out: one decision for all ranks, and
the position to store. Where and how positions are stored, and which one is used again, is phases/checkpoint.py's.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from core_hpc.training.batching import Row
from core_hpc.training.state_io import TrainingState, write_position
from core_hpc.training.zero2 import any_true


@dataclass(frozen=True)
class Checkpoint:
    """Position of an update between two optimizer steps: with the task, all that the rest of it depends on."""

    state: TrainingState
    steps: pl.DataFrame
    """Metrics of the task's steps so far, one row each (trainer.STEP_COLUMNS)."""
    details: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write weights and moments into `folder`; `steps` is for the caller to write."""
        write_position(folder, self.state, self.details)


@dataclass(frozen=True)
class ResumePoint:
    """A stored checkpoint: the folder that `Checkpoint.write` filled, and its steps."""

    folder: Path
    steps: pl.DataFrame


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """What the surroundings ask of a running update; ranks need not agree."""

    should_stop: Callable[[], bool] = lambda: False
    """Asked between two optimizer steps; true on one rank stops all of them."""
    interval_s: float = 0.0
    """Seconds between checkpoints by the clock of rank 0; 0: only when told to stop."""
    save: Callable[[Checkpoint], bool] = lambda checkpoint: False
    """Called on rank 0. Returns whether the checkpoint is stored; if not, the update goes on all the same."""


class Boundaries:
    """Decides at each boundary of two optimizer steps, alike on every rank."""

    def __init__(
        self, asked: Interruption, *, rank: int, num_ranks: int, device: torch.device, steps_saved: int
    ) -> None:
        self._asked = asked
        self._keeps_time = rank == 0 and asked.interval_s > 0
        self._alone = num_ranks == 1
        self._device = device
        self._steps_saved = steps_saved
        self._saved_s = time.monotonic()

    def decide(self, steps_done: int) -> tuple[bool, bool]:
        """(stop, save) after so many optimizer steps of the task. Collective."""
        due = self._keeps_time and time.monotonic() - self._saved_s >= self._asked.interval_s
        stop = self._asked.should_stop()
        if not self._alone:
            stop, due = any_true([stop, due], self._device)
        save = (stop or due) and steps_done > self._steps_saved
        if save:
            self._steps_saved, self._saved_s = steps_done, time.monotonic()
        return stop, save


def rows_digest(rows: Sequence[Row]) -> str:
    """Hex digest of everything in the rows of a task, and of their order.

    >>> row = Row(("p", 0), "p", [1, 2], [3], [-0.5], 1.0, 0.8)
    >>> rows_digest([row]) == rows_digest([Row(("p", 0), "p", [1], [2, 3], [-0.5], 1.0, 0.8)])
    False
    """
    digest = hashlib.sha256()
    for row in rows:
        behaviour = () if row.behaviour_logprobs is None else row.behaviour_logprobs
        sizes = (len(row.prompt_token_ids), len(row.completion_token_ids), len(behaviour))
        digest.update(repr((row.key, row.problem_id, row.advantage, row.weight, *sizes)).encode())
        digest.update(np.asarray([*row.prompt_token_ids, *row.completion_token_ids], np.int64).tobytes())
        digest.update(np.asarray(behaviour, np.float64).tobytes())
    return digest.hexdigest()
