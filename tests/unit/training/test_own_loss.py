"""A loss of the user: the same value and gradient as the built-in one, and errors that name its line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core_hpc.common.errors import ExtensionError, InputError
from core_hpc.config.extensions import LossFunction
from core_hpc.config.update import UpdateSection
from core_hpc.extensions import sources
from core_hpc.extensions.sources import Source, read_source
from core_hpc.training.losses import StepSize, TokenBatch, objective
from core_hpc.training.own_loss import own_gain, try_loss
from tests.support.examples import EXAMPLES

LENGTHS = torch.tensor([3, 1, 4])
STEP = StepSize(num_completions=3, num_tokens=8, max_new_tokens=16)


def function_in(source: Source, name: str, **options: float) -> LossFunction:
    sources.remember([source])
    return LossFunction(function=source.reference(name), options=dict(options))


def own(body: str) -> LossFunction:
    return function_in(
        Source("my_loss.py", f"import torch\n\ndef gain(ratio, advantage, log_prob, rescue):\n{body}"), "gain"
    )


def batch() -> tuple[torch.Tensor, TokenBatch]:
    random = torch.Generator().manual_seed(0)
    old = -torch.rand(8, generator=random, dtype=torch.float64) * 3
    current = (old + torch.randn(8, generator=random, dtype=torch.float64)).requires_grad_()
    return current, TokenBatch(
        old_M=old,
        reference_M=old - 0.3,
        importance_M=torch.rand(8, generator=random, dtype=torch.float64),
        row_M=torch.repeat_interleave(torch.arange(3), LENGTHS),
        lengths_N=LENGTHS,
        advantage_N=torch.tensor([1.2, -0.7, 0.4], dtype=torch.float64),
        weight_N=torch.tensor([1.0, 0.8, 1.0], dtype=torch.float64),
        rescue_N=torch.tensor([False, True, False]),
    )


@pytest.mark.parametrize("loss", ["grpo", "dapo"])
def test_the_example_equals_the_clip_of_the_built_in_loss(loss: str) -> None:
    example = function_in(read_source(Path(EXAMPLES / "my_training.py")), "clipped", low=0.2, high=0.25)
    results = []
    for function, clips in ((None, {"clip_low": 0.2, "clip_high": 0.25}), (example, {})):
        settings = UpdateSection.model_validate({"loss": loss, "kl_weight": 0.04, "loss_function": function, **clips})
        current, tokens = batch()
        terms = objective(current, tokens, settings, STEP)
        terms.loss.backward()
        results.append((terms.loss.detach(), current.grad))
    for built_in, by_function in zip(*results, strict=True):
        assert built_in is not None
        torch.testing.assert_close(by_function, built_in, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("    return ratio.foo()", r"my_loss\.py, line 4, in gain: AttributeError: .*\n    return ratio\.foo\(\)"),
        (
            "    return ratio.sum()",
            r"gain returned a tensor of shape \(\), not a tensor of shape \(4,\), one",
        ),
        ("    return 1.0", "gain returned float, not a tensor"),
        ("    return ratio.detach()", "gain returned a tensor without a gradient; compute it from ratio or log_prob"),
    ],
)
def test_a_mistake_names_the_file_before_anything_is_submitted(body: str, expected: str) -> None:
    with pytest.raises(InputError, match=rf"(?s)update\.loss_function\.function: .*{expected}"):
        try_loss(UpdateSection(loss_function=own(body)))


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match=r"the gradient of gain at the old policy is not finite"):
        try_loss(UpdateSection(loss_function=own("    return (ratio - 1).sqrt() * advantage")))


def test_a_failure_in_a_step_names_the_line() -> None:
    function = own("    if ratio.numel() > 4:\n        raise RuntimeError('too many')\n    return ratio * advantage")
    try_loss(UpdateSection(loss_function=function))
    ratio = torch.ones(5, requires_grad=True)
    with pytest.raises(ExtensionError, match=r"my_loss\.py, line 5, in gain: RuntimeError: too many"):
        own_gain(function, ratio_M=ratio, advantage_M=ratio.detach(), log_prob_M=ratio, rescue_M=ratio > 2)
