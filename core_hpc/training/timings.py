"""What one update took: seconds of its parts, and the tokens on which they were spent."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from core_hpc.training.batching import Row, StepPlan


@dataclass(kw_only=True)
class UpdateTimings:
    """Seconds of this rank, and tokens of all ranks, for one pass over the rows of its steps."""

    prepare_s: float = 0.0
    compile_s: float = 0.0
    old_s: float = 0.0
    reference_s: float = 0.0
    train_s: float = 0.0
    save_s: float = 0.0
    num_tokens: int = 0
    num_padded_tokens: int = 0
    num_pass_tokens: int = 0
    """Tokens of the passes before training."""
    num_completion_tokens: int = 0
    num_unshared_tokens: int = 0
    """What num_tokens would be if no prompt were shared."""
    peak_rss_mb: float = 0.0
    peak_gpu_mb: float = 0.0
    num_checkpointed: int = 0
    """Layers that computed their activations again."""

    def count_tokens(self, plans: Sequence[StepPlan], rows: Sequence[Row]) -> None:
        """Count the tokens of planned steps, whose row indices refer to `rows`."""
        computed = [rows[i] for plan in plans for i in plan.rows_run]
        self.num_tokens = sum(plan.num_tokens for plan in plans)
        self.num_padded_tokens = sum(plan.num_padded_tokens for plan in plans)
        self.num_completion_tokens = sum(len(row.completion_token_ids) for row in computed)
        num_prompt_tokens = sum(len(row.prompt_token_ids) for row in computed)
        self.num_unshared_tokens = num_prompt_tokens + self.num_completion_tokens

    def measure_memory(self, device: torch.device) -> None:
        """Read the largest memory so far, of this process and of its GPU."""
        self.peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if device.type == "cuda":
            self.peak_gpu_mb = torch.cuda.max_memory_allocated(device) / 2**20

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the seconds of a block to one field."""
        start = time.perf_counter()
        try:
            yield
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()  # a GPU may still be at work, which would count for the next block
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - start)
