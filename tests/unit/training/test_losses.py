"""Every loss against its equation in a plain Python loop, with gradients; the learning rate."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from core_hpc.config.update import IMPORTANCE_CAPS, LOSS_OPTIONS, ImportanceSection, UpdateSection
from core_hpc.training.learning_rate import learning_rate
from core_hpc.training.losses import LOSSES, LossTerms, StepSize, TokenBatch, importance_weights, k3, objective

STEP = StepSize(num_completions=11, num_tokens=53, max_new_tokens=16)
"""The micro-batches below belong to this step."""

CLIP = {"grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "dr_grpo": (0.2, 0.2), "bnpo": (0.2, 0.2), "gspo": (3e-4, 4e-4)}
KL = {"grpo": 0.04, "bnpo": 0.04, "sapo": 0.04}
SPREAD = {"gspo": 4e-3, "cispo": 4.0}
"""Largest |current - old| of a token, so that some ratios are clipped; other losses: 2."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Log-probabilities of the tokens of one completion, and the values that all of them share."""

    advantage: float
    weight: float = 1.0
    rescue: bool = False
    current: list[float]
    old: list[float]
    reference: list[float]
    behaviour: list[float]


def make_completions(seed: int, spread: float = 2.0) -> list[Completion]:
    rng = random.Random(seed)
    found = []
    cold = [(advantage, 1.0, False) for advantage in (1.3, -0.7, 0.0, 2.0, -1.7)]
    for advantage, weight, rescue in [*cold, (0.9, 0.8, True), (-1.1, 0.8, True)]:
        old = [-rng.uniform(0.1, 4) for _ in range(rng.randint(1, 7))]
        found.append(
            Completion(
                advantage=advantage,
                weight=weight,
                rescue=rescue,
                old=old,
                current=[o + rng.uniform(-spread, spread) for o in old],
                reference=[o + rng.uniform(-0.5, 0.5) for o in old],
                behaviour=[o + rng.uniform(-1.0, 0.8) for o in old],
            )
        )
    return found


def tensors(completions: list[Completion], settings: UpdateSection) -> tuple[torch.Tensor, TokenBatch]:
    def flat(name: str) -> torch.Tensor:
        return torch.tensor([v for c in completions for v in getattr(c, name)], dtype=torch.float64)

    lengths = torch.tensor([len(c.old) for c in completions])
    row, old = torch.repeat_interleave(torch.arange(len(completions)), lengths), flat("old")
    batch = TokenBatch(
        old_M=old,
        reference_M=flat("reference") if settings.kl_weight else None,
        importance_M=importance_weights(old, flat("behaviour"), row, lengths, settings.importance),
        row_M=row,
        lengths_N=lengths,
        advantage_N=torch.tensor([c.advantage for c in completions], dtype=torch.float64),
        weight_N=torch.tensor([c.weight for c in completions], dtype=torch.float64),
        rescue_N=torch.tensor([c.rescue for c in completions]),
    )
    return flat("current").requires_grad_(), batch


# --- the equations, one token at a time ----------------------------------------------------------


def reference_importance(c: Completion, kind: str) -> list[float]:
    differences = [o - b for o, b in zip(c.old, c.behaviour, strict=True)]
    if kind == "none":
        return [1.0] * len(differences)
    if kind == "token_truncate":
        return [min(math.exp(d), 2.0) for d in differences]
    if kind == "token_band":
        return [math.exp(d) if 0.5 <= math.exp(d) <= 5.0 else 0.0 for d in differences]
    if kind == "sequence_mask":
        whole = math.prod(math.exp(d) for d in differences)
        return [whole if whole <= 3.0 else 0.0] * len(differences)
    geometric = math.prod(math.exp(d) for d in differences) ** (1 / len(differences))
    if kind == "geometric_reject":
        return [1.0 if 0.5 <= geometric <= 2.0 else 0.0] * len(differences)
    return [min(geometric, 2.0)] * len(differences)


def reference_gain(name: str, ratio: float, stopped_ratio: float, current: float, c: Completion) -> float:
    """The gain of a token; the minimum is found by comparison, not by min()."""
    if name == "sapo":
        tau = 0.8 if c.rescue else 1.0 if c.advantage > 0 else 1.05
        return 4 / tau / (1 + math.exp(-tau * (ratio - 1))) * c.advantage
    if name == "cispo":
        return (5.0 if stopped_ratio > 5 else stopped_ratio) * c.advantage * current
    low, high = CLIP[name]
    if c.advantage > 0 and ratio > 1 + high:
        return (1 + high) * c.advantage
    if c.advantage < 0 and ratio < 1 - low:
        return (1 - low) * c.advantage
    return ratio * c.advantage


def reference_ratios(c: Completion, current: list[float], level: str) -> list[float]:
    ratios = [math.exp(a - b) for a, b in zip(current, c.old, strict=True)]
    return ratios if level == "token" else [math.prod(ratios) ** (1 / len(ratios))] * len(ratios)


def reference_loss(
    name: str,
    completions: list[Completion],
    currents: list[list[float]],
    *,
    level: str,
    kl: float,
    kl_times_ratio: bool = False,
    importance: str = "token_truncate",
) -> float:
    """The loss at `currents`. A stopped gradient uses the completions' own log-probabilities."""
    loss = 0.0
    for c, current in zip(completions, currents, strict=True):
        ratios, stopped = (reference_ratios(c, x, level) for x in (current, c.current))
        divisor = {"dr_grpo": 11 * 16, "dapo": 53, "bnpo": 53, "cispo": 53}.get(name, 11 * len(current))
        for t, weight in enumerate(reference_importance(c, importance)):
            difference = c.reference[t] - current[t]
            factor = math.exp(current[t] - c.old[t]) if kl_times_ratio else 1.0
            penalty = kl * (math.exp(difference) - difference - 1) * factor
            gain = reference_gain(name, ratios[t], stopped[t], current[t], c)
            loss += c.weight * (penalty - weight * gain) / divisor
    return loss


def check(name: str, completions: list[Completion], settings: UpdateSection, **options: Any) -> LossTerms:
    """Check the loss and its derivatives against the loop and its central differences."""
    current, batch = tensors(completions, settings)
    terms = objective(current, batch, settings, STEP)
    terms.loss.backward()
    base = [list(c.current) for c in completions]
    assert terms.loss.item() == pytest.approx(reference_loss(name, completions, base, **options), abs=1e-12)
    slopes = []
    for i, row in enumerate(base):
        for t in range(len(row)):
            sides = []
            for shift in (1e-6, -1e-6):
                moved = [list(r) for r in base]
                moved[i][t] += shift
                sides.append(reference_loss(name, completions, moved, **options))
            slopes.append((sides[0] - sides[1]) / 2e-6)
    assert current.grad.tolist() == pytest.approx(slopes, abs=1e-8)
    assert torch.count_nonzero(current.grad) > 5
    return terms


def level_of(name: str) -> str:
    return "sequence" if name == "gspo" else "token"


def test_every_loss_has_options_and_a_function() -> None:
    assert list(LOSSES) == list(LOSS_OPTIONS) == ["grpo", "dapo", "dr_grpo", "bnpo", "gspo", "sapo", "cispo"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", LOSSES)
def test_defaults_equal_the_equation_with_gradients(name: str, seed: int) -> None:
    completions = make_completions(seed, SPREAD.get(name, 2.0))
    terms = check(name, completions, UpdateSection(loss=name), level=level_of(name), kl=KL.get(name, 0.0))
    assert not terms.clipped_M.all()
    assert bool(terms.clipped_M.any()) is (name != "sapo")


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "gspo"])
@pytest.mark.parametrize(
    "importance", ["sequence_mask", "geometric_truncate", "token_band", "geometric_reject", "none"]
)
def test_options_combine(name: str, importance: str) -> None:
    """Sequence ratios, KL times the ratio, and kinds of importance correction, for every loss."""
    section = ImportanceSection(kind=importance)
    settings = UpdateSection(loss=name, ratio="sequence", kl_weight=0.3, kl_times_ratio=True, importance=section)
    check(name, make_completions(5), settings, level="sequence", kl=0.3, kl_times_ratio=True, importance=importance)
    token = UpdateSection(loss=name, kl_weight=0.3, importance=section)
    check(name, make_completions(6), token, level="token", kl=0.3, importance=importance)


@pytest.mark.parametrize("name", LOSSES)
def test_parts_of_a_step_add_up(name: str) -> None:
    """The divisor is global, so any cut into micro-batches gives the same value and gradient."""
    settings = UpdateSection(loss=name, kl_weight=0.1)
    completions = make_completions(3, SPREAD.get(name, 2.0))
    results = []
    for cuts in ([0, 7], [0, 1, 5, 7], [0, 3, 4, 6, 7]):
        value, slopes = 0.0, list[float]()
        for start, end in itertools.pairwise(cuts):
            current, batch = tensors(completions[start:end], settings)
            loss = objective(current, batch, settings, STEP).loss
            loss.backward()
            value, slopes = value + loss.item(), slopes + current.grad.tolist()
        results.append([value, *slopes])
    assert results[1] == pytest.approx(results[0], abs=1e-14)
    assert results[2] == pytest.approx(results[0], abs=1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_a_completion_without_advantage_adds_exactly_nothing_unless_there_is_kl(name: str) -> None:
    """So the update can leave it out of its forward passes if it counts in the size of the step."""
    (silent,) = (c for c in make_completions(1, SPREAD.get(name, 2.0)) if c.advantage == 0)
    for kl_weight in (0.0, 0.04):
        settings = UpdateSection(loss=name, kl_weight=kl_weight)
        current, batch = tensors([silent], settings)
        terms = objective(current, batch, settings, STEP)
        terms.loss.backward()
        assert (terms.loss.item() != 0) is (kl_weight > 0)
        assert bool(current.grad.any()) is (kl_weight > 0)
        assert not terms.clipped_M.any()


@pytest.mark.parametrize("name", [n for n in CLIP if n != "gspo"])
@pytest.mark.parametrize(
    ("advantage", "ratio", "moves"),
    [(1.0, 1.5, False), (1.0, 0.5, True), (-1.0, 0.5, False), (-1.0, 1.5, True), (-1.0, 1.1, True)],
)
def test_clip_is_a_minimum_for_both_signs(name: str, advantage: float, ratio: float, moves: bool) -> None:
    """Trap 3: the minimum corrects a bad completion that became more likely.

    The maximum would not.
    """
    settings = UpdateSection(loss=name, kl_weight=0)
    moved = [-2.0 + math.log(ratio)]
    completion = Completion(advantage=advantage, current=moved, old=[-2.0], reference=[0.0], behaviour=[-2.0])
    current, batch = tensors([completion], settings)
    terms = objective(current, batch, settings, STEP)
    terms.loss.backward()
    assert (current.grad.item() != 0) is moves
    assert terms.clipped_M.item() is not moves


def test_gspo_clips_whole_completions() -> None:
    """Tokens whose ratios cancel are not clipped. A completion that moved is clipped as a whole."""
    still = Completion(advantage=1.0, current=[-1.5, -2.5], old=[-2.0, -2.0], reference=[0.0] * 2, behaviour=[-2.0] * 2)
    moved = replace(still, current=[-1.5, -2.0])
    current, batch = tensors([still, moved], UpdateSection(loss="gspo"))
    terms = objective(current, batch, UpdateSection(loss="gspo"), STEP)
    terms.loss.backward()
    assert terms.clipped_M.tolist() == [False, False, True, True]
    assert terms.ratio_M.tolist() == pytest.approx([1, 1, math.exp(0.25), math.exp(0.25)])
    assert current.grad[:2].tolist() == pytest.approx([-1 / 11 / 2] * 2)
    assert current.grad[2:].tolist() == [0, 0]


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("rescue", [False, True])
def test_sapo_counts_its_gradient_once(advantage: float, rescue: bool) -> None:
    """Trap 9: the gate is the objective. On policy its slope is A for every tau.

    Multiplied by log pi, the slope would be A + 2/tau A log pi.
    """
    log_prob = [-2.0]
    completion = Completion(
        advantage=advantage, rescue=rescue, current=log_prob, old=log_prob, reference=[0.0], behaviour=log_prob
    )
    settings = UpdateSection(loss="sapo", kl_weight=0)
    current, batch = tensors([completion], settings)
    objective(current, batch, settings, STEP).loss.backward()
    assert current.grad.item() == pytest.approx(-advantage / 11)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_cispo_caps_the_ratio_itself_and_keeps_every_token(advantage: float) -> None:
    ratios = [0.1, 1.2, 4.9, 50.0]
    completion = Completion(
        advantage=advantage,
        current=[-5 + math.log(r) for r in ratios],
        old=[-5.0] * 4,
        reference=[0.0] * 4,
        behaviour=[-5.0] * 4,
    )
    current, batch = tensors([completion], UpdateSection(loss="cispo"))
    terms = objective(current, batch, UpdateSection(loss="cispo"), STEP)
    terms.loss.backward()
    assert current.grad.tolist() == pytest.approx([-advantage * r / 53 for r in (0.1, 1.2, 4.9, 5.0)])
    assert terms.clipped_M.tolist() == [False, False, False, True]


def test_each_loss_depends_on_the_length_as_defined() -> None:
    """Sum of the gradients of a completion of four tokens, divided by that of one token."""

    def pull(name: str, length: int) -> float:
        same = [-2.0] * length
        completion = Completion(advantage=1.0, current=same, old=same, reference=same, behaviour=same)
        current, batch = tensors([completion], UpdateSection(loss=name, kl_weight=0))
        objective(current, batch, UpdateSection(loss=name, kl_weight=0), STEP).loss.backward()
        return float(current.grad.sum())

    ratios = {name: pull(name, 4) / pull(name, 1) for name in LOSSES}
    assert ratios == pytest.approx({"grpo": 1, "dapo": 4, "dr_grpo": 4, "bnpo": 4, "gspo": 1, "sapo": 1, "cispo": 4})


def test_kl_with_the_ratio_has_the_gradient_of_the_reverse_kl() -> None:
    """The expectation of grad(r k3) over the old policy is grad KL(current || reference).

    That of grad(k3) is not.
    """
    generator = torch.Generator().manual_seed(0)
    logits, old, reference = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(3))
    logits.requires_grad_()
    current, old, reference = logits.log_softmax(0), old.log_softmax(0), reference.log_softmax(0)
    (exact,) = torch.autograd.grad((current.exp() * (current - reference)).sum(), logits, retain_graph=True)

    def expected(kl_times_ratio: bool) -> torch.Tensor:
        settings = UpdateSection(kl_weight=1.0, kl_times_ratio=kl_times_ratio)
        zero = torch.zeros(6, dtype=torch.float64)
        batch = TokenBatch(
            old_M=old,
            reference_M=reference,
            importance_M=zero,
            row_M=torch.arange(6),
            lengths_N=torch.ones(6, dtype=torch.long),
            advantage_N=zero,
            weight_N=old.exp(),
            rescue_N=zero.bool(),
        )
        loss = objective(current, batch, settings, replace(STEP, num_completions=1)).loss
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    assert torch.allclose(expected(True), exact, atol=1e-12)
    assert not torch.allclose(expected(False), exact, atol=1e-2)


def test_k3_is_never_negative_and_zero_at_equality() -> None:
    difference = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    values = k3(torch.zeros_like(difference), difference)
    assert (values >= 0).all()
    assert values[500] == 0
    tiny = k3(torch.zeros(1001), torch.linspace(-1e-3, 1e-3, 1001))
    assert (tiny >= 0).all()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (ImportanceSection(), [1.0, 2.0, math.exp(-1), math.exp(0.5), math.exp(0.5)]),
        (ImportanceSection(cap=1.0), [1.0, 1.0, math.exp(-1), 1.0, 1.0]),
        (ImportanceSection(kind="sequence_mask"), [0.0, 0.0, 0.0, math.e, math.e]),
        (ImportanceSection(kind="sequence_mask", cap=2.0), [0.0] * 5),
        (ImportanceSection(kind="geometric_truncate"), [2.0, 2.0, 2.0, math.exp(0.5), math.exp(0.5)]),
        (ImportanceSection(kind="token_band"), [1.0, 0.0, 0.0, math.exp(0.5), math.exp(0.5)]),
        (ImportanceSection(kind="token_band", floor=0.3), [1.0, 0.0, math.exp(-1), math.exp(0.5), math.exp(0.5)]),
        (ImportanceSection(kind="token_band", floor=1.0, cap=60.0), [1.0, math.exp(4), 0.0] + [math.exp(0.5)] * 2),
        (ImportanceSection(kind="geometric_reject"), [0.0, 0.0, 0.0, 1.0, 1.0]),
        (ImportanceSection(kind="geometric_reject", cap=3.0), [1.0] * 5),
        (ImportanceSection(kind="geometric_reject", cap=1.5), [0.0] * 5),
        (ImportanceSection(kind="none"), [1.0] * 5),
    ],
)
def test_importance_kinds_are_detached(settings: ImportanceSection, expected: list[float]) -> None:
    """Two completions with differences (0, 4, -1) and (0.5, 0.5).

    The products of their ratios are e^3 and e.
    """
    old = torch.tensor([-1.0, -1.0, -1.0, -2.0, -2.0], requires_grad=True)
    behaviour = torch.tensor([-1.0, -5.0, 0.0, -2.5, -2.5])
    weights = importance_weights(old, behaviour, torch.tensor([0, 0, 0, 1, 1]), torch.tensor([3, 2]), settings)
    assert weights.tolist() == pytest.approx(expected)
    assert not weights.requires_grad


@pytest.mark.parametrize(
    "kind", ["token_truncate", "sequence_mask", "geometric_truncate", "token_band", "geometric_reject"]
)
def test_importance_does_not_hide_nan(kind: str) -> None:
    weights = importance_weights(
        torch.tensor([float("nan")]),
        torch.zeros(1),
        torch.zeros(1, dtype=torch.long),
        torch.ones(1, dtype=torch.long),
        ImportanceSection(kind=kind),
    )
    assert weights.isnan().all()


@pytest.mark.parametrize("kind", IMPORTANCE_CAPS)
def test_a_completion_that_the_engine_did_not_sample_has_the_weight_1(kind: str) -> None:
    """It has no behaviour log-probabilities (NaN). The weights of the other one do not depend on it."""
    old, nan = torch.tensor([-1.0, -3.0, -2.0, -2.0]), math.nan
    behaviour, row = torch.tensor([nan, nan, -2.5, -2.25]), torch.tensor([0, 0, 1, 1])
    settings = ImportanceSection(kind=kind)
    alone = importance_weights(old[2:], behaviour[2:], row[2:] - 1, torch.tensor([2]), settings)
    weights = importance_weights(old, behaviour, row, torch.tensor([2, 2]), settings)
    assert weights.tolist() == [1.0, 1.0, *alone.tolist()]


def test_the_warm_up_has_no_step_more_because_of_rounding() -> None:
    settings = UpdateSection(learning_rate=1.0, warmup_share=0.07)  # 0.07 * 100 is 7.000000000000001
    assert [learning_rate(settings, steps_done=done, total_steps=100) for done in (5, 6, 7)] == [6 / 7, 1.0, 1.0]


@pytest.mark.parametrize("total", [1, 2, 9, 10, 500])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_learning_rate_closed_form(total: int, share: float) -> None:
    settings = UpdateSection(learning_rate=2e-4, warmup_share=share)
    warmup = math.ceil(share * total)
    for step in range(total):
        if step < warmup:
            expected = (step + 1) / warmup
        else:
            expected = math.cos(math.pi / 2 * (step - warmup) / max(total - warmup, 1)) ** 2
        assert learning_rate(settings, steps_done=step, total_steps=total) == pytest.approx(2e-4 * expected)
        assert learning_rate(settings, steps_done=step, total_steps=total) > 0
    constant = settings.model_copy(update={"schedule": "constant"})
    assert learning_rate(constant, steps_done=total + 5, total_steps=total) == 2e-4
