"""Losses against an independent float64 loop in plain Python, and chunked log-softmax against the naive one."""

from __future__ import annotations

import math
import random

import pytest
import torch

from core_hpc.config import ImportanceSection, UpdateSection
from core_hpc.training import losses
from core_hpc.training.losses import TokenBatch, importance_weights, k3, objective, token_log_probs
from core_hpc.training.schedule import learning_rate

Completion = dict[str, list[float] | float]


def reference_grpo(completions: list[Completion], settings: UpdateSection, normaliser: int) -> tuple[float, list[list[float]]]:
    """Eq. 21 and its derivative by hand, one token at a time; the minimum is decided by comparison, not by min()."""
    loss, slopes = 0.0, []
    low, high = 1 - settings.clip_low, 1 + settings.clip_high
    for c in completions:
        total, row = 0.0, []
        advantage, length = c["advantage"], len(c["current"])
        for current, old, reference, behaviour in zip(c["current"], c["old"], c["reference"], c["behaviour"], strict=True):
            ratio = math.exp(current - old)
            importance = min(math.exp(old - behaviour), settings.importance.cap)
            held = (advantage > 0 and ratio > high) or (advantage < 0 and ratio < low)
            bounded = min(max(ratio, low), high)
            total += -(bounded if held else ratio) * advantage * importance
            slope = 0.0 if held else -ratio * advantage * importance
            total += settings.kl_weight * (math.exp(reference - current) - (reference - current) - 1)
            slope += settings.kl_weight * (1 - math.exp(reference - current))
            row.append(slope * c["weight"] / length / normaliser)
        loss += total / length * c["weight"] / normaliser
        slopes.append(row)
    return loss, slopes


def make_completions(seed: int) -> list[Completion]:
    rng = random.Random(seed)
    found = []
    for advantage, weight in ((1.3, 1.0), (-0.7, 1.0), (0.0, 1.0), (0.9, 0.8), (-1.1, 0.8)):
        length = rng.randint(1, 7)
        old = [-rng.uniform(0.1, 4) for _ in range(length)]
        found.append({
            "advantage": advantage, "weight": weight, "old": old,
            "current": [o + rng.uniform(-0.6, 0.6) for o in old],
            "reference": [o + rng.uniform(-0.5, 0.5) for o in old],
            "behaviour": [o + rng.uniform(-1.5, 0.5) for o in old],
        })  # fmt: skip
    return found


def tensors(completions: list[Completion], settings: UpdateSection) -> tuple[torch.Tensor, TokenBatch]:
    def flat(name: str) -> torch.Tensor:
        return torch.tensor([v for c in completions for v in c[name]], dtype=torch.float64)

    lengths = torch.tensor([len(c["old"]) for c in completions])
    old = flat("old")
    batch = TokenBatch(
        old_M=old, reference_M=flat("reference") if settings.kl_weight else None,
        importance_M=importance_weights(old, flat("behaviour"), settings.importance),
        row_M=torch.repeat_interleave(torch.arange(len(completions)), lengths), lengths_N=lengths,
        advantage_N=torch.tensor([c["advantage"] for c in completions], dtype=torch.float64),
        weight_N=torch.tensor([c["weight"] for c in completions], dtype=torch.float64),
    )  # fmt: skip
    return flat("current").requires_grad_(), batch


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
def test_grpo_equals_the_formula_with_gradients(seed: int, kl_weight: float) -> None:
    settings = UpdateSection(kl_weight=kl_weight, clip_low=0.2, clip_high=0.28)
    completions = make_completions(seed)
    current, batch = tensors(completions, settings)
    terms = objective(current, batch, settings, normaliser=11)
    terms.loss.backward()
    loss, slopes = reference_grpo(completions, settings, 11)
    assert terms.loss.item() == pytest.approx(loss, abs=1e-12)
    assert current.grad.tolist() == pytest.approx([s for row in slopes for s in row], abs=1e-12)
    assert terms.clipped_M.any()
    assert not terms.clipped_M.all()


def test_parts_of_a_step_add_up() -> None:
    """Micro-batches and ranks are summed: the normaliser is global, so any split gives the same loss."""
    settings = UpdateSection()
    completions = make_completions(3)
    whole = objective(*tensors(completions, settings), settings, normaliser=5).loss.item()
    parts = [objective(*tensors(c, settings), settings, normaliser=5).loss.item() for c in (completions[:1], completions[1:])]
    assert sum(parts) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize(
    ("advantage", "ratio", "moves"), [(1.0, 1.5, False), (1.0, 0.5, True), (-1.0, 0.5, False), (-1.0, 1.5, True), (-1.0, 1.1, True)]
)
def test_clip_is_a_minimum_for_both_signs(advantage: float, ratio: float, moves: bool) -> None:
    """Trap 3: with max in place of min, a bad completion that became likelier would not be pushed down."""
    settings = UpdateSection(kl_weight=0)
    completion: Completion = {"advantage": advantage, "weight": 1.0, "old": [-2.0], "current": [-2.0 + math.log(ratio)],
                              "reference": [0.0], "behaviour": [-2.0]}  # fmt: skip
    current, batch = tensors([completion], settings)
    objective(current, batch, settings, normaliser=1).loss.backward()
    assert (current.grad.item() != 0) is moves


def test_k3_is_never_negative_and_zero_at_equality() -> None:
    difference = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    values = k3(torch.zeros_like(difference), difference)
    assert (values >= 0).all()
    assert values[500] == 0
    tiny = k3(torch.zeros(1001), torch.linspace(-1e-3, 1e-3, 1001))
    assert (tiny >= 0).all()


def test_importance_is_truncated_detached_and_can_be_off() -> None:
    old = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    behaviour = torch.tensor([-1.0, -5.0, 0.0])
    weights = importance_weights(old, behaviour, ImportanceSection(cap=2.0))
    assert weights.tolist() == pytest.approx([1.0, 2.0, math.exp(-1)])
    assert not weights.requires_grad
    assert importance_weights(old, behaviour, ImportanceSection(kind="none")).tolist() == [1, 1, 1]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("bias", [False, True])
def test_chunked_log_softmax_equals_naive(monkeypatch: pytest.MonkeyPatch, temperature: float, bias: bool) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 37, bias=bias).requires_grad_(False)
    targets = torch.randint(37, (23,))
    upstream = torch.randn(23)
    results = []
    for budget in (37 * 5, 10**6):
        monkeypatch.setattr(losses, "MAX_LOGITS", budget)
        hidden = (torch.randn(23, 8, generator=torch.Generator().manual_seed(1)) * 3).requires_grad_()
        logp, entropy = token_log_probs(hidden, targets, head, temperature=temperature, vocabulary=37)
        (logp * upstream).sum().backward()
        results.append((logp.detach(), entropy, hidden.grad))
    hidden = (torch.randn(23, 8, generator=torch.Generator().manual_seed(1)) * 3).requires_grad_()
    distribution = (head(hidden) / (temperature or 1)).log_softmax(-1)
    naive = distribution[torch.arange(23), targets]
    (naive * upstream).sum().backward()
    for logp, entropy, grad in results:
        torch.testing.assert_close(logp, naive.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=distribution.detach()).entropy(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(grad, hidden.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("total", [1, 2, 9, 10, 500])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_learning_rate_closed_form(total: int, share: float) -> None:
    settings = UpdateSection(learning_rate=2e-4, warmup_share=share)
    warmup = math.ceil(share * total)
    for step in range(total):
        expected = (step + 1) / warmup if step < warmup else math.cos(math.pi / 2 * (step - warmup) / max(total - warmup, 1)) ** 2
        assert learning_rate(settings, steps_done=step, total_steps=total) == pytest.approx(2e-4 * expected)
        assert learning_rate(settings, steps_done=step, total_steps=total) > 0
    constant = settings.model_copy(update={"schedule": "constant"})
    assert learning_rate(constant, steps_done=total + 5, total_steps=total) == (2e-4 if warmup < total else pytest.approx(2e-4))
