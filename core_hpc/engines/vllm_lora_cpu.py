"""Faster and safer LoRA arithmetic for the CPU backend of vLLM.

The stock functions copy the adapter's matrix once per *token*, and they apply the last adapter to
rows without an adapter (index -1). The functions here do one matrix product per distinct adapter in
the batch, and nothing for index -1. `install` replaces the stock functions only if they have the
expected parameters; otherwise it warns and changes nothing. GPU kernels are never changed.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Parameters of the stock functions (vLLM 0.32, vllm.lora.ops.torch_ops.lora_ops), in order.
_EXPECTED = {
    "bgmv_shrink": ("inputs", "lora_b_weights", "output_tensor", "lora_indices_tensor", "scaling"),
    "bgmv_expand_slice": (
        "inputs",
        "lora_b_weights",
        "output_tensor",
        "lora_indices_tensor",
        "slice_offset",
        "slice_size",
        "add_inputs",
    ),
    "sgmv_shrink": (
        "inputs",
        "lora_a_weights",
        "output_tensor",
        "b_seq_start_loc",
        "seq_len_tensor",
        "lora_indices_tensor",
        "batches",
        "max_seq_length",
        "token_nums",
        "scaling",
    ),
    "sgmv_expand_slice": (
        "inputs",
        "lora_b_weights",
        "output_tensor",
        "b_seq_start_loc",
        "seq_len_tensor",
        "lora_indices_tensor",
        "batches",
        "max_seq_length",
        "token_nums",
        "slice_offset",
        "slice_size",
        "add_inputs",
    ),
}


def install() -> bool:
    """Replace the stock functions in this process.

    Returns:
        False, after a warning, if the functions of this vLLM differ from the expected ones.
    """
    try:
        from vllm.lora.ops.torch_ops import lora_ops
        from vllm.lora.punica_wrapper import punica_cpu
    except ImportError as e:
        return _refuse(str(e))
    for name, parameters in _EXPECTED.items():
        stock = getattr(lora_ops, name, None)
        if getattr(stock, "replaces_stock", False):
            return True
        found = tuple(inspect.signature(stock).parameters) if stock is not None else ()
        if found != parameters or stock is not getattr(punica_cpu, name, None):
            return _refuse(f"{name} differs from the expected function")
    _replace(lora_ops, punica_cpu, "bgmv_shrink", _make_shrink(lora_ops.bgmv_shrink))
    _replace(lora_ops, punica_cpu, "bgmv_expand_slice", _make_expand_slice(lora_ops.bgmv_expand_slice))
    return True


def is_installed() -> bool:
    """Whether `install` has replaced the stock functions in this process."""
    from vllm.lora.punica_wrapper import punica_cpu

    return getattr(punica_cpu.bgmv_shrink, "replaces_stock", False)


def _refuse(why: str) -> bool:
    warnings.warn(
        f"vLLM's CPU LoRA functions are not replaced ({why}); results are correct, but slower",
        RuntimeWarning,
        stacklevel=3,
    )
    return False


def _replace(lora_ops: Any, punica_cpu: Any, name: str, function: Callable[..., None]) -> None:
    """Replace a function in both modules. sgmv_* uses the first one, decoding the second one."""
    function.replaces_stock = True  # type: ignore[attr-defined]
    setattr(lora_ops, name, function)
    setattr(punica_cpu, name, function)


def _product(inputs: Tensor, weights: Tensor, indices: Tensor, dtype: Any) -> Tensor | None:
    """The products weights[indices[i]] @ inputs[i], with zero rows for index -1.

    Args:
        inputs: [T, I].
        weights: [L, O, I] or [L, 1, O, I].
        indices: [T]; -1 means no adapter.
        dtype: of the computation.

    Returns:
        [T, O], or None if all indices are -1.
    """
    weights = weights.squeeze(1) if weights.dim() == 4 else weights
    inputs = inputs.to(dtype)
    first = int(indices[0])
    if bool((indices == first).all()):
        return inputs @ weights[first].to(dtype).T if first >= 0 else None
    out = inputs.new_zeros(len(inputs), weights.shape[1])
    for index in indices.unique().tolist():
        if index >= 0:
            rows = indices == index
            out[rows] = inputs[rows] @ weights[index].to(dtype).T
    return out


def _make_shrink(stock: Callable[..., None]) -> Callable[..., None]:
    def bgmv_shrink(
        inputs: Tensor, lora_b_weights: Tensor, output_tensor: Tensor, lora_indices_tensor: Tensor, scaling: float = 1.0
    ) -> None:
        if len(lora_indices_tensor) != len(inputs) or not len(inputs):  # only the stock function can broadcast
            stock(inputs, lora_b_weights, output_tensor, lora_indices_tensor, scaling)
            return
        rank = lora_b_weights.shape[-2]
        product = _product(inputs, lora_b_weights, lora_indices_tensor, output_tensor.dtype)
        output_tensor[:, :rank] = 0 if product is None else product * scaling

    return bgmv_shrink


def _make_expand_slice(stock: Callable[..., None]) -> Callable[..., None]:
    def bgmv_expand_slice(
        inputs: Tensor,
        lora_b_weights: Tensor,
        output_tensor: Tensor,
        lora_indices_tensor: Tensor,
        slice_offset: int,
        slice_size: int,
        add_inputs: bool = True,
    ) -> None:
        if len(lora_indices_tensor) != len(inputs) or len(output_tensor) != len(inputs) or not len(inputs):
            stock(inputs, lora_b_weights, output_tensor, lora_indices_tensor, slice_offset, slice_size, add_inputs)
            return
        product = _product(inputs, lora_b_weights, lora_indices_tensor, output_tensor.dtype)
        target = output_tensor[:, slice_offset : slice_offset + slice_size]
        if not add_inputs:
            target.zero_()
        if product is not None:
            target += product

    return bgmv_expand_slice
