"""Probes: which faster ways of computing give a model's own results on a few rows.

In: a transformers model as it was loaded. Out: its `Capabilities`. Two ways are compared with the
plain one: the head applied to single hidden states instead of the model's own logits, and a prefix
tree instead of padded rows. `compilation.py` compares compiled layers on the same rows.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from core_hpc.training.batching import Layout, Row
from core_hpc.training.forward import Capabilities, all_logits, head_logits, hidden_states
from core_hpc.training.micro_batch import MicroBatch, collate
from core_hpc.training.prefix_tree import TREE_ATTENTION


def find_capabilities(model: Any) -> Capabilities:
    """Try the model. Where the layout is `tree`, the model keeps the attention of trees."""
    with torch.no_grad():
        separate_head = _head_is_separate(model)
        return Capabilities(layout=_find_layout(model), separate_head=separate_head)


def is_close(left: Tensor, right: Tensor, *, half: float = 5e-2) -> bool:
    """Whether two results are the same except for rounding in the dtype of `left`.

    Args:
        half: relative tolerance for dtypes of 16 bits.
    """
    tolerance = 1e-3 if left.dtype == torch.float32 else half
    return bool((left - right).float().norm() <= tolerance * right.float().norm())


def probe_ids(model: Any, count: int) -> list[int]:
    """Token ids of the model's vocabulary."""
    vocabulary = model.config.get_text_config().vocab_size
    return [(7 * i + 3) % vocabulary for i in range(count)]


def probe_batch(model: Any, layout: Layout) -> MicroBatch:
    """Three rows: two have the same prompt, and the third shares only the beginning of it."""
    ids = probe_ids(model, 24)
    prompts = (ids[:8], ids[:8], [*ids[:5], *ids[9:13]])
    rows = [
        Row(
            key=(k,),
            problem_id="probe",
            prompt_token_ids=prompt,
            completion_token_ids=ids[8 + 4 * k : 12 + 4 * k],
            behaviour_logprobs=[0.0] * 4,
            advantage=0.0,
            weight=1.0,
        )
        for k, prompt in enumerate(prompts)
    ]
    device = next(model.parameters()).device
    return collate(rows, sorted(range(3), key=lambda k: rows[k].inputs), layout).to(device)


def _head_is_separate(model: Any) -> bool:
    """Whether hidden states and output embeddings give the logits; some families scale them."""
    if model.base_model is model or model.get_output_embeddings() is None:
        return False
    batch = probe_batch(model, "padded")
    return is_close(head_logits(model, hidden_states(model, batch)), all_logits(model, batch))


def _find_layout(model: Any) -> Layout:
    """The tree, where the model gives the same logits for it as for padded rows."""
    expected = _completion_logits(model, probe_batch(model, "padded"))
    attention_before = model.config._attn_implementation
    found = _tree_logits(model)
    if isinstance(found, Tensor) and is_close(found, expected):
        return "tree"
    model.set_attn_implementation(attention_before)
    why = found if isinstance(found, str) else "its results differ"
    print(
        f"update: {type(model).__name__} computes padded batches, so the prompt that completions share is "
        f"computed for each of them: {why}",
        flush=True,
    )
    return "padded"


def _tree_logits(model: Any) -> Tensor | str:
    """Logits of the probe's rows as a tree, or the reason why the model cannot compute them."""
    config = model.config.get_text_config()
    other_kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if other_kinds or getattr(config, "attention_chunk_size", None):
        return f"it has layers of other kinds ({', '.join(sorted(other_kinds)) or 'chunked attention'})"
    if not all(_accepts(part, "segments") for part in (model, model.base_model)):
        return "it takes no arguments for its attention"
    batch = probe_batch(model, "tree")
    assert batch.segments is not None
    windows: set[int | None] = set()
    try:
        model.set_attn_implementation(TREE_ATTENTION)
        found = _completion_logits(model, replace(batch, segments=replace(batch.segments, windows=windows)))
    except (RuntimeError, ValueError) as error:  # other shapes, or something that `tree_attention` refuses
        return f"{type(error).__name__}: {error}"
    if not windows:
        return "its attention cannot be replaced"
    if _has_sliding_window(config) and windows == {None}:
        return "its attention does not report its sliding window"
    return found


def _completion_logits(model: Any, batch: MicroBatch) -> Tensor:
    """The logits that predict the completion tokens, [M, V]."""
    return all_logits(model, batch).flatten(0, 1)[batch.source_U][batch.distinct_M]


def _accepts(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward method accepts the argument, by name or through `**kwargs`."""
    parameters = inspect.signature(model.forward).parameters
    return argument in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _has_sliding_window(config: Any) -> bool:
    """Whether some layer attends only to a window of tokens."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
