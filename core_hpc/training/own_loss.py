"""The gain of a token by a function of the user (`update.loss_function`).

In: the tensors of `losses.Tokens`. Out: the gain of each token, which keeps its gradient. The function
runs in the process of the trainer, because its tensors belong to the graph of the model. It therefore
has no time limit. A mistake of it becomes an `ExtensionError` that names the line of the user's file.
"""

# Tensor names end in their shape.
# ruff: noqa: N803, N806

from __future__ import annotations

import torch
from torch import Tensor

from core_hpc.common.errors import CoreHpcError, ExtensionError, InputError
from core_hpc.config.extensions import LossFunction
from core_hpc.config.update import UpdateSection
from core_hpc.extensions.child import explain, load
from core_hpc.extensions.sources import function_name, source_of


def own_gain(
    function: LossFunction, *, ratio_M: Tensor, advantage_M: Tensor, log_prob_M: Tensor, rescue_M: Tensor
) -> Tensor:
    """The gain of each token, [M]: what is to be maximised.

    Args:
        function: the function and its options.
        ratio_M: policy ratios, with gradient.
        advantage_M: advantages.
        log_prob_M: log-probabilities under the weights to train, with gradient.
        rescue_M: whether the token was sampled in the rescue phase.

    Raises:
        ExtensionError: the function fails, or returns something else.
    """
    source, name = source_of(function.function), function_name(function.function)
    try:
        gain = getattr(load(source), name)(ratio_M, advantage_M, log_prob_M, rescue_M, **function.options)
    except (CoreHpcError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as e:  # code of a user may raise anything
        raise ExtensionError(explain(e, source)) from e
    wanted = tuple(ratio_M.shape)
    if not isinstance(gain, Tensor) or tuple(gain.shape) != wanted:
        shown = f"a tensor of shape {tuple(gain.shape)}" if isinstance(gain, Tensor) else type(gain).__name__
        raise ExtensionError(f"{source.path}: {name} returned {shown}, not a tensor of shape {wanted}, one per token")
    if not gain.requires_grad and ratio_M.requires_grad:
        raise ExtensionError(
            f"{source.path}: {name} returned a tensor without a gradient; compute it from ratio or log_prob"
        )
    return gain


def try_loss(settings: UpdateSection) -> None:
    """Call the user's function once with four tokens, before any job is submitted.

    Raises:
        InputError: it fails, or its gradient is not finite.
    """
    function = settings.loss_function
    if function is None:
        return
    log_prob_M = torch.tensor([-1.0, -0.5, -2.0, -0.1], requires_grad=True)
    try:
        gain_M = own_gain(
            function,
            ratio_M=(log_prob_M - log_prob_M.detach()).exp(),
            advantage_M=torch.tensor([1.0, -1.0, 0.5, 0.0]),
            log_prob_M=log_prob_M,
            rescue_M=torch.tensor([False, False, True, True]),
        )
    except ExtensionError as e:
        raise InputError(f"update.loss_function.function: {e}") from e
    gain_M.sum().backward()
    if log_prob_M.grad is None or not bool(log_prob_M.grad.isfinite().all()):
        source = source_of(function.function)
        raise InputError(
            f"update.loss_function.function: {source.path}: the gradient of {function_name(function.function)} at the "
            "old policy is not finite"
        )
