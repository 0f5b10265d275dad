"""A linear layer with a LoRA adapter, computed in the dtype of the frozen weights and with few passes over memory.

In: activations. Out: x W^T + bias + scale (x A^T) B^T, as PEFT's layer gives it, but for rounding. The adapter stays in float32,
and so do its gradients. PEFT casts activations to the adapter's float32 and the sum back again, which on a GPU moves more memory
than the frozen product takes, and keeps float32 copies of every input for the backward pass; an engine computes an adapter in
the base's dtype, too. PEFT's own layer remains for anything but one plain adapter on a plain linear layer.

Shapes: N tokens, I inputs, O outputs, R rank.
"""

# Tensor names end in their shape.
# ruff: noqa: N803, N806

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor


class _LoraProduct(torch.autograd.Function):
    """The frozen weights get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
        x_NI, a_RI, b_OR = x.reshape(-1, x.shape[-1]), a_RI.to(x.dtype), b_OR.to(x.dtype)
        down_NR = x_NI @ a_RI.T
        y_NO = torch.add(F.linear(x_NI, weight_OI, bias_O), down_NR @ b_OR.T, alpha=scale)
        ctx.save_for_backward(x_NI, weight_OI, a_RI, b_OR, down_NR)
        ctx.scale, ctx.shape = scale, x.shape
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI, a_RI, b_OR, down_NR = ctx.saved_tensors
        grad_NO = grads[0].reshape(len(x_NI), -1)
        up_NR = grad_NO @ b_OR
        grad_a_RI = _product(up_NR.T, x_NI).mul_(ctx.scale)
        grad_b_OR = _product(grad_NO.T, down_NR).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.add(grad_NO @ weight_OI, up_NR @ a_RI, alpha=ctx.scale).view(ctx.shape)
        return grad_x, None, None, grad_a_RI, grad_b_OR, None


def _product(left: Tensor, right: Tensor) -> Tensor:
    """In float32, whatever the factors have. A CPU rounds the result to their dtype before."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


class LoraLinear(Linear):
    """PEFT's layer with another way to compute it."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., I] to [..., O]."""
        if self.disable_adapters:
            return self.base_layer(x)
        (name,) = self.active_adapters
        return _LoraProduct.apply(
            x, self.base_layer.weight, self.base_layer.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        )
