"""Interruption of an update: between two optimizer steps, and at the same one on all ranks.

In: requests of the caller of the task (stop, or save at some interval). Out: one decision for all
ranks, and the position to store. Storing positions, and choosing the one to continue from, is in
`phases/checkpoint.py`.
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
    """Position of an update between two optimizer steps.

    The rest of the update depends on this position and its task, and on nothing else.
    """

    state: TrainingState
    steps: pl.DataFrame
    """Metrics of the task's steps so far, one row each (trainer.STEP_COLUMNS)."""
    details: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write weights and moments into `folder`. The caller writes `steps`."""
        write_position(folder, self.state, self.details)


@dataclass(frozen=True)
class ResumePoint:
    """A stored checkpoint: the folder that `Checkpoint.write` filled, and its steps."""

    folder: Path
    steps: pl.DataFrame


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """Requests of the caller to a running update. They may differ between ranks."""

    should_stop: Callable[[], bool] = lambda: False
    """Called between two optimizer steps; true on one rank stops all of them."""
    interval_s: float = 0.0
    """Seconds between checkpoints by the clock of rank 0; 0: only when the update stops."""
    save: Callable[[Checkpoint], bool] = lambda checkpoint: False
    """Called on rank 0; returns whether the checkpoint is stored. If not, the update continues."""


class Boundaries:
    """Decides between any two optimizer steps whether to stop or save; the same on every rank."""

    def __init__(
        self, requested: Interruption, *, rank: int, num_ranks: int, device: torch.device, steps_saved: int
    ) -> None:
        self._requested = requested
        self._keeps_time = rank == 0 and requested.interval_s > 0
        self._alone = num_ranks == 1
        self._device = device
        self._steps_saved = steps_saved
        self._saved_s = time.monotonic()

    def decide(self, steps_done: int) -> tuple[bool, bool]:
        """(stop, save) after `steps_done` optimizer steps of the task. Collective."""
        due = self._keeps_time and time.monotonic() - self._saved_s >= self._requested.interval_s
        stop = self._requested.should_stop()
        if not self._alone:
            stop, due = any_true([stop, due], self._device)
        save = (stop or due) and steps_done > self._steps_saved
        if save:
            self._steps_saved, self._saved_s = steps_done, time.monotonic()
        return stop, save


def rows_digest(rows: Sequence[Row]) -> str:
    """Hex digest of everything in the rows of a task, and of their order.

    >>> from dataclasses import replace
    >>> row = Row(
    ...     key=("p", 0), problem_id="p", prompt_token_ids=[1, 2], completion_token_ids=[3],
    ...     behaviour_logprobs=[-0.5], advantage=1.0, weight=0.8,
    ... )
    >>> other = replace(row, prompt_token_ids=[1], completion_token_ids=[2, 3])
    >>> rows_digest([row]) == rows_digest([other])
    False
    """
    digest = hashlib.sha256()
    for row in rows:
        behaviour = () if row.behaviour_logprobs is None else row.behaviour_logprobs
        sizes = (len(row.prompt_token_ids), len(row.completion_token_ids), len(behaviour))
        is_corrected = row.sampled_logprobs is not None
        values = (
            row.key,
            row.problem_id,
            row.advantage,
            row.weight,
            row.objective,
            row.lesson,
            is_corrected,
            row.peer_logprob,
        )
        digest.update(repr((*values, *sizes)).encode())
        digest.update(np.asarray([*row.prompt_token_ids, *row.completion_token_ids], np.int64).tobytes())
        digest.update(np.asarray(behaviour, np.float64).tobytes())
        for values_of_tokens in (row.sampled_logprobs, row.token_factors, row.teacher_logprobs):
            digest.update(np.asarray(values_of_tokens or (), np.float64).tobytes())
    return digest.hexdigest()
