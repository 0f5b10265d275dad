"""Plain data that the update phase and the trainer share: settings, one task, and its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from core_hpc.config.model import LoraSection
from core_hpc.config.update import UpdateSection
from core_hpc.training.batching import Row, moves_weights, step_rows
from core_hpc.training.interruption import Interruption, ResumePoint
from core_hpc.training.policy import Dtype
from core_hpc.training.timings import UpdateTimings


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """How the trainer of one model is built. Tasks with equal settings can share a trainer."""

    model_folder: Path
    model_name: str
    """The model reference that is written into adapters."""
    lora: LoraSection | None
    """The adapter to train; None: every weight is trained."""
    dtype: Dtype = "auto"
    context_tokens: int | None = None
    """Context of the run, which selects the factors of longrope; None: that of the model."""
    four_bit: bool = False
    """The base weights under the adapter have 4 bits."""
    shard_base: bool = False
    """The ranks divide the base weights under the adapter among them."""
    with_reference: bool = True
    """Some task has a KL term. Full tuning then keeps the base weights a second time."""
    gradient_checkpointing: bool | None = None
    """Of all layers, or of none; None: of as many as memory demands, on a GPU."""
    compile_layers: bool | None = None
    """On a GPU; None: if the tasks are long enough for it to pay."""
    trust_remote_code: bool = False
    allow_pickle: bool = False


@dataclass(frozen=True, kw_only=True)
class UpdateTask:
    """Everything that one update computes from. It is the same on every rank."""

    rows: Sequence[Row]
    settings: UpdateSection
    temperature: float
    """The sampling temperature."""
    max_new_tokens: int
    """Longest completion that may be sampled."""
    total_steps: int
    """Optimizer steps of this model in the whole run: the horizon of warm-up and cosine."""
    shuffle_seed: int
    lora_seed: int
    previous: Path | None
    """Published folder of the update to continue from; None: a fresh optimizer."""
    adapter: Path | None = None
    """Folder of an adapter to begin with if there is no previous update; None: a fresh one."""
    on_progress: Callable[[int, int], None] | None = None
    """Called with (optimizer steps done, optimizer steps of the task)."""
    interruption: Interruption = field(default_factory=Interruption)
    resume: ResumePoint | None = None
    """Checkpoint of this task to continue from; the same on every rank."""
    max_mismatch: float | None = None
    """Largest mean difference from the engine in one step, nats per token; None: not checked."""
    num_similar_tasks: int = 1
    """Tasks of about this length that the process runs, including this one.

    They share compiled layers.
    """

    @property
    def trains_zero_signal(self) -> bool:
        """Whether completions without an advantage move the weights, too: by a KL term, or a gain of the user."""
        return self.settings.kl_weight > 0 or self.settings.loss_function is not None

    @property
    def first_step_shows_engine(self) -> bool:
        """Whether the first step computes a completion that the engine sampled, and so compares the two."""
        steps = step_rows(self.rows, problems_per_step=self.settings.problems_per_step, seed=self.shuffle_seed)
        first = [self.rows[i] for _, indices in steps[:1] for i in indices]
        return any(
            row.behaviour_logprobs is not None and moves_weights(row, with_zero_signal=self.trains_zero_signal)
            for row in first
        )

    @property
    def begins_at_base(self) -> bool:
        """Whether the weights before the task compute what the base weights do."""
        return self.previous is None and self.adapter is None


@dataclass(frozen=True)
class UpdateResult:
    """`steps` has the columns of schema.STEPS without run_id, iteration and model."""

    steps: pl.DataFrame
    steps_done: int
    num_ranks: int
    timings: UpdateTimings
