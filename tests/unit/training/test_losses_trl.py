"""Losses against TRL's own `GRPOTrainer._compute_loss`: values and gradients.

The tests are skipped if TRL is not installed. It is an optional dependency: `pip install --no-deps
trl==1.16.0`, with accelerate and datasets. The method is called on a substitute of the trainer that
returns given log-probabilities, so no model is run. Options that TRL does not have (rescue weight
and temperature, further micro-batches of the step) have their neutral value here and are checked in
`test_losses.py`.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from core_hpc.config.update import UpdateSection
from core_hpc.training.losses import StepSize, TokenBatch, objective

MAX_NEW_TOKENS = 9
KNOWN = {"gspo": "grpo"}
"""Our losses that have another name in TRL."""


@pytest.fixture(scope="module")
def compute_loss() -> Iterator[Callable[..., torch.Tensor]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vllm", None)  # otherwise TRL imports vLLM, which changes the process
        module = pytest.importorskip("trl.trainer.grpo_trainer", exc_type=ImportError)
        yield module.GRPOTrainer._compute_loss


def make_batch(seed: int, spread: float) -> dict[str, Any]:
    """Padded [completions, tokens] tensors; the advantages have both signs."""
    rng = random.Random(seed)
    lengths = [rng.randint(1, MAX_NEW_TOKENS) for _ in range(8)]
    size = (len(lengths), max(lengths))
    generator = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> torch.Tensor:
        return (torch.rand(size, generator=generator, dtype=torch.float64) * 2 - 1) * scale

    old = -2.5 + noise(2.0)
    return {
        "lengths": torch.tensor(lengths),
        "mask": torch.arange(size[1]) < torch.tensor(lengths)[:, None],
        "old": old,
        "current": (old + noise(spread)),
        "reference": old + noise(0.5),
        "importance": 1 + noise(0.8),
        "advantages": torch.tensor([rng.gauss(0, 1) * (i != 3) for i in range(len(lengths))], dtype=torch.float64),
    }


def theirs(
    compute: Callable[..., torch.Tensor], data: dict[str, Any], settings: UpdateSection
) -> tuple[float, torch.Tensor]:
    current = data["current"].clone().requires_grad_()
    cispo = settings.loss == "cispo"
    trainer = SimpleNamespace(
        loss_type=KNOWN.get(settings.loss, settings.loss),
        importance_sampling_level=settings.ratio,
        beta=settings.kl_weight,
        epsilon_low=settings.clip_low,
        epsilon_high=settings.ratio_cap if cispo else settings.clip_high,
        args=SimpleNamespace(
            use_bias_correction_kl=settings.kl_times_ratio,
            delta=None,
            sapo_temperature_pos=settings.tau_positive,
            sapo_temperature_neg=settings.tau_negative,
            steps_per_generation=1,
        ),
        max_completion_length=MAX_NEW_TOKENS,
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)},
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        _get_per_token_logps_and_entropies=lambda *_, **__: (current, torch.zeros_like(current), None),
    )
    ids = data["mask"].long()
    loss = compute(
        trainer,
        trainer.model,
        {
            "prompt_ids": ids,
            "prompt_mask": ids,
            "completion_ids": ids,
            "completion_mask": ids,
            "advantages": data["advantages"],
            "old_per_token_logps": data["old"],
            "ref_per_token_logps": data["reference"],
            "importance_sampling_ratio": data["importance"],
            "num_items_in_batch": ids.sum(),
        },
    )
    loss.backward()
    return loss.item(), current.grad[data["mask"]]


def ours(data: dict[str, Any], settings: UpdateSection) -> tuple[float, torch.Tensor]:
    mask, lengths = data["mask"], data["lengths"]
    current = data["current"][mask].clone().requires_grad_()
    batch = TokenBatch(
        old_M=data["old"][mask],
        reference_M=data["reference"][mask] if settings.kl_weight else None,
        importance_M=data["importance"][mask],
        row_M=torch.repeat_interleave(torch.arange(len(lengths)), lengths),
        lengths_N=lengths,
        advantage_N=data["advantages"],
        weight_N=torch.ones(len(lengths), dtype=torch.float64),
        rescue_N=torch.zeros(len(lengths), dtype=torch.bool),
    )
    loss = objective(current, batch, settings, StepSize(len(lengths), int(lengths.sum()), MAX_NEW_TOKENS)).loss
    loss.backward()
    return loss.item(), current.grad


OPTIONS: list[dict[str, Any]] = [
    {},
    {"kl_weight": 0.3},
    {"ratio": "sequence"},
    {"kl_weight": 0.3, "kl_times_ratio": True},
]
CASES = [
    (name, options)
    for name in ("grpo", "dapo", "dr_grpo", "bnpo", "gspo", "sapo", "cispo")
    # With sequence ratios TRL multiplies k3 by these; the gradient is then not that of the reverse KL.
    for options in (OPTIONS[:3] if name == "gspo" else OPTIONS)
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_same_value_and_gradient(compute_loss: Callable[..., torch.Tensor], name: str, options: dict[str, Any]) -> None:
    settings = UpdateSection(loss=name, **options)
    tolerance = 1e-7 if name == "sapo" else 1e-12  # TRL has float32 temperatures for sapo
    for seed in range(3):
        data = make_batch(seed, 4e-3 if name == "gspo" else 2.0)
        value, gradient = ours(data, settings)
        expected, slopes = theirs(compute_loss, data, settings)
        assert value == pytest.approx(expected, abs=tolerance)
        assert torch.count_nonzero(gradient) > 5
        torch.testing.assert_close(gradient, slopes, atol=tolerance, rtol=0)
