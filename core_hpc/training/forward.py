"""One forward pass of a causal language model over a micro-batch.

In: a transformers model and the tensors of a micro-batch. Out: hidden states or logits, with their
gradients. The functions keep no state. `probes.py` decides which of them are right for a model.

Shapes: B sequences, L length, H hidden size, V vocabulary, C tokens of a chunk.
"""

# Tensor names end in their shape.
# ruff: noqa: N803, N806

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core_hpc.training.batching import Layout
from core_hpc.training.micro_batch import MicroBatch


@dataclass(frozen=True)
class Capabilities:
    """The faster ways of computing that give the model's own results."""

    layout: Layout
    """`tree` where the model can compute rows as a prefix tree, else `padded`."""
    separate_head: bool
    """Whether hidden states and output embeddings give the model's own logits.

    Then logits are computed only for the tokens that need them.
    """


def hidden_states(model: Any, batch: MicroBatch) -> Tensor:
    """Last hidden states, [B, L, H]."""
    return model.base_model(**_arguments(batch)).last_hidden_state


def all_logits(model: Any, batch: MicroBatch) -> Tensor:
    """Logits of the model's own forward method, [B, L, V]."""
    return model(**_arguments(batch)).logits


def head_logits(model: Any, hidden_CH: Tensor) -> Tensor:
    """Logits from hidden states, [C, V], with the soft cap that some families apply to them."""
    logits_CV = model.get_output_embeddings()(hidden_CH)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits_CV if cap is None else torch.tanh(logits_CV / cap) * cap


def _arguments(batch: MicroBatch) -> dict[str, Any]:
    arguments = {
        "input_ids": batch.input_ids_BL,
        "position_ids": batch.position_ids_BL,
        "attention_mask": batch.attention_mask_BL,
        "use_cache": False,
    }
    return arguments if batch.segments is None else {**arguments, "segments": batch.segments}
