"""What one update took: seconds of its parts, and the tokens that they were spent on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass
class UpdateTimings:
    """Seconds are those of this rank; tokens are of all ranks, one pass over the rows of the steps that were done here."""

    prepare_s: float = 0.0
    compile_s: float = 0.0
    old_s: float = 0.0
    reference_s: float = 0.0
    train_s: float = 0.0
    save_s: float = 0.0
    num_tokens: int = 0
    num_padded_tokens: int = 0
    num_pass_tokens: int = 0
    """Of the passes before training."""
    num_completion_tokens: int = 0
    num_unshared_tokens: int = 0
    """What num_tokens would be if no prompt were shared."""
    peak_rss_mb: float = 0.0
    peak_gpu_mb: float = 0.0
    num_checkpointed: int = 0
    """Layers that computed their activations again."""

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the seconds of a block to one field."""
        start = time.perf_counter()
        try:
            yield
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()  # what a GPU was only told to do would count for the next block
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - start)
