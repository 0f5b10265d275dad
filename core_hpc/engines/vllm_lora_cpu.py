"""Faster and safer LoRA arithmetic for the CPU backend of vLLM.

The stock functions copy the adapter's matrix once per *token*, and they apply the last adapter to
rows without an adapter (index -1). The function here does one matrix product per distinct adapter
in the batch, adds it in place, and does nothing for index -1. `install` replaces the stock method
only if it has the expected parameters; otherwise it warns and changes nothing. GPU kernels are
never changed.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_PARAMETERS = ["self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "output_slices", "buffer", "kwargs"]
"""Parameters of `PunicaWrapperCPU.add_lora_linear` in vLLM 0.32."""


def install() -> bool:
    """Replace the stock method in this process.

    Returns:
        False, after a warning, if the method of this vLLM differs from the expected one.
    """
    try:
        from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU as Wrapper
    except ImportError as e:
        return _refuse(str(e))
    if Wrapper.add_lora_linear is add_lora_linear:
        return True
    if list(inspect.signature(Wrapper.add_lora_linear).parameters) != _PARAMETERS:
        return _refuse("add_lora_linear has other parameters than expected")
    Wrapper.add_lora_linear = add_lora_linear
    return True


def is_installed() -> bool:
    """Whether `install` has replaced the stock method in this process."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    return PunicaWrapperCPU.add_lora_linear is add_lora_linear


def _refuse(why: str) -> bool:
    warnings.warn(
        f"vLLM's CPU LoRA function is not replaced ({why}); results are correct, but slower",
        RuntimeWarning,
        stacklevel=3,
    )
    return False


def add_lora_linear(
    self: Any,
    y: Tensor,
    x: Tensor,
    lora_a_stacked: Sequence[Tensor],
    lora_b_stacked: Sequence[Tensor],
    scale: float,
    output_slices: Sequence[int],
    *,
    buffer: Any = None,
    **kwargs: Any,
) -> None:
    """Add the products of adapters to the output of a linear layer, in place.

    Shapes: T tokens, I inputs, L loaded adapters, R rank. A layer that joins several projections
    has a matrix A and a matrix B for each of them.

    Args:
        self: the wrapper, which knows the adapter of each token.
        y: [T, outputs of all projections].
        x: [T, I].
        lora_a_stacked: by projection: [L, 1, R, I].
        lora_b_stacked: by projection: [L, 1, outputs of the projection, R].
        scale: factor of the products.
        output_slices: outputs of each projection.
        buffer: not used.
        kwargs: not used.
    """
    y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
    for index, rows in _tokens_by_adapter(self.token_lora_indices):
        inputs, outputs = (x, y) if rows is None else (x[rows], y[rows])
        start = 0
        for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            down = inputs.float() @ a[index, 0].float().T
            part = outputs[:, start : start + size]
            part.addmm_(down.to(y.dtype), b[index, 0].to(y.dtype).T, alpha=scale)
            start += size
        if rows is not None:
            y[rows] = outputs


def _tokens_by_adapter(indices: Tensor) -> Iterator[tuple[int, Tensor | None]]:
    """The distinct adapters of a batch, each with a mask of its tokens; None: all tokens."""
    if not len(indices):
        return
    first = int(indices[0])
    if bool((indices == first).all()):
        if first >= 0:
            yield first, None
        return
    for index in indices.unique().tolist():
        if index >= 0:
            yield index, indices == index
